//! Asks what a candidate asks: wins the Lease, keeps it, gives it up.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, api::PostParams};
use tokio::time::{sleep, timeout};

use super::{
    Hold, Lock,
    candidate::{Answer, Candidate, Question, RENEWAL, Standing},
    hold::now,
};

/// For one answer: so that there is time for another try, over another connection, before the hold ends.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// A candidate and the API that it asks.
pub struct Campaign {
    api: Api<Lease>,
    candidate: Candidate,
    /// Why the last question was not answered.
    trouble: Option<String>,
}

/// Why the Lease is ours no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Somebody else holds it.
    #[error("{0} holds it")]
    Taken(String),
    /// It was not renewed in time.
    #[error("it was not renewed in time: {0}")]
    Unrenewed(String),
}

impl Campaign {
    /// For this Lease, by way of a client that always writes.
    #[must_use]
    pub fn new(client: Client, lock: Lock) -> Self {
        Self { api: Api::namespaced(client, &lock.namespace), candidate: Candidate::new(lock), trouble: None }
    }

    /// Which Lease it is about.
    #[must_use]
    pub fn lock(&self) -> &Lock {
        self.candidate.lock()
    }

    /// Waits until the Lease is ours, and `hold` stands. Meanwhile `tell` hears who holds it.
    pub async fn win(&mut self, hold: &Hold, mut tell: impl FnMut(&str)) {
        loop {
            let (standing, pause) = self.ask(PATIENCE).await;
            match standing {
                Standing::Ours(until) => return hold.last(until),
                Standing::Theirs(holder) => tell(&holder),
                Standing::Open => {}
            }
            sleep(pause).await;
        }
    }

    /// Renews it for as long as that is possible. When this returns, `hold` does not stand any more.
    pub async fn keep(&mut self, hold: &Hold) -> Lost {
        let mut pause = RENEWAL;
        loop {
            sleep(pause.min(hold.left())).await;
            let left = hold.left();
            if left.is_zero() {
                let stopped = || "this process did not run for a while".to_owned();
                return Lost::Unrenewed(self.trouble.take().unwrap_or_else(stopped));
            }
            let (standing, next) = self.ask(PATIENCE.min(left)).await;
            pause = next;
            match standing {
                // Once it is over it is over, whatever was answered in the end.
                Standing::Ours(until) if hold.stands() => hold.last(until),
                Standing::Theirs(holder) => {
                    hold.over();
                    return Lost::Taken(holder);
                }
                Standing::Ours(_) | Standing::Open => {}
            }
        }
    }

    /// Gives it up after the last write, so that the next one need not wait for its end.
    pub async fn release(&mut self, hold: &Hold) {
        let held = hold.stands();
        hold.over();
        let Some(lease) = self.candidate.parts().filter(|_| held) else { return };
        match self.put(Question::Replace(lease), PATIENCE).await {
            Answer::Is(_) => tracing::info!("{} is free", self.lock()),
            Answer::Absent | Answer::Conflict | Answer::Unknown => {
                tracing::warn!(trouble = self.trouble, "{} could not be given up and runs out by itself", self.lock());
            }
        }
    }

    async fn ask(&mut self, patience: Duration) -> (Standing, Duration) {
        let sent = now();
        let question = self.candidate.asks(sent, Timestamp::now());
        let answer = self.put(question.clone(), patience).await;
        self.candidate.hears(&question, sent, answer, now())
    }

    async fn put(&mut self, question: Question, patience: Duration) -> Answer {
        let (name, params) = (&self.lock().name, PostParams::default());
        let asked = async {
            match question {
                Question::Read => self.api.get(name).await,
                Question::Create(lease) => self.api.create(&params, &lease).await,
                Question::Replace(lease) => self.api.replace(name, &params, &lease).await,
            }
        };
        let trouble = match timeout(patience, asked).await {
            Ok(Ok(lease)) => {
                self.trouble = None;
                return Answer::Is(lease);
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => return Answer::Absent,
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => return Answer::Conflict,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", patience.as_secs_f32().ceil()),
        };
        tracing::warn!(trouble, "{} could not be asked for", self.lock());
        self.trouble = Some(trouble);
        Answer::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt as _;
    use kube::client::Body;
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};
    use tower::BoxError;

    /// The Lease in an API, and what was asked of it.
    #[derive(Default)]
    struct Held {
        lease: Option<Value>,
        version: u64,
        asked: Vec<Method>,
    }

    impl Held {
        fn answer(&mut self, method: &Method, body: Value) -> (StatusCode, Value) {
            self.asked.push(method.clone());
            let found = self.lease.clone();
            match (method, found) {
                (&Method::GET, Some(found)) => (StatusCode::OK, found),
                (&Method::GET | &Method::PUT, None) => (StatusCode::NOT_FOUND, Value::Null),
                (&Method::POST, Some(_)) => (StatusCode::CONFLICT, Value::Null),
                (&Method::PUT, Some(found)) if version(&found) != version(&body) => (StatusCode::CONFLICT, Value::Null),
                _ => (StatusCode::OK, self.store(body)),
            }
        }

        fn store(&mut self, mut lease: Value) -> Value {
            self.version += 1;
            lease["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.lease = Some(lease.clone());
            lease
        }

        fn holder(&self) -> Option<&str> {
            self.lease.as_ref()?["spec"]["holderIdentity"].as_str()
        }
    }

    fn version(lease: &Value) -> &Value {
        &lease["metadata"]["resourceVersion"]
    }

    fn campaign(held: &Arc<Mutex<Held>>, identity: &str) -> Campaign {
        let held = Arc::clone(held);
        let service = tower::service_fn(move |request: Request<Body>| {
            let held = Arc::clone(&held);
            async move {
                let (head, body) = request.into_parts();
                let body = serde_json::from_slice(&body.collect().await?.to_bytes()).unwrap_or_default();
                let (status, mut answer) = held.lock().expect("no panic").answer(&head.method, body);
                if !status.is_success() {
                    answer = json!({ "kind": "Status", "status": "Failure", "code": status.as_u16() });
                }
                let answer = Response::builder().status(status).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, BoxError>(answer?)
            }
        });
        let lock = Lock { namespace: "ns".into(), name: "lock".into(), identity: identity.into() };
        Campaign::new(Client::new(service, "ns"), lock)
    }

    #[tokio::test]
    async fn who_wins_holds_it_until_it_is_given_up_and_the_next_one_need_not_wait() {
        let held = Arc::new(Mutex::new(Held::default()));
        let (mut first, hold) = (campaign(&held, "first"), Hold::default());
        first.win(&hold, |holder| panic!("{holder} holds what there is not")).await;
        assert!(hold.stands());
        assert_eq!(held.lock().expect("no panic").holder(), Some("first"));

        let (mut second, other) = (campaign(&held, "second"), Hold::default());
        let (standing, _) = second.ask(PATIENCE).await;
        assert_eq!(standing, Standing::Theirs("first".to_owned()));

        first.release(&hold).await;
        assert!(!hold.stands());
        assert_eq!(held.lock().expect("no panic").holder(), None);
        second.win(&other, |holder| panic!("{holder} has given it up")).await;
        assert_eq!((other.stands(), held.lock().expect("no panic").holder()), (true, Some("second")));
    }

    #[tokio::test]
    async fn who_was_started_again_takes_up_what_was_its_own() {
        let held = Arc::new(Mutex::new(Held::default()));
        campaign(&held, "me").win(&Hold::default(), |_| {}).await;
        let again = Hold::default();
        campaign(&held, "me").win(&again, |holder| panic!("{holder} is what it was itself")).await;
        assert!(again.stands());
        let lease = held.lock().expect("no panic").lease.clone().expect("a Lease");
        assert_eq!(lease["spec"]["leaseTransitions"], 0, "nobody else has had it");
    }

    #[tokio::test]
    async fn what_somebody_else_has_taken_is_lost_and_not_given_up() {
        let held = Arc::new(Mutex::new(Held::default()));
        let (mut me, hold) = (campaign(&held, "me"), Hold::default());
        me.win(&hold, |_| {}).await;
        let taken = {
            let mut held = held.lock().expect("no panic");
            let mut lease = held.lease.clone().expect("a Lease");
            lease["spec"]["holderIdentity"] = "other".into();
            held.store(lease);
            held.asked.clear();
            held.version
        };
        assert_eq!(me.ask(PATIENCE).await.0, Standing::Open, "it has changed");
        assert_eq!(me.ask(PATIENCE).await.0, Standing::Theirs("other".into()));
        me.release(&hold).await;
        let held = held.lock().expect("no panic");
        assert_eq!((held.asked.as_slice(), held.version), (&[Method::PUT, Method::GET][..], taken));
    }

    #[tokio::test]
    async fn a_hold_that_is_over_is_lost_though_nobody_has_taken_it() {
        let held = Arc::new(Mutex::new(Held::default()));
        let (mut me, hold) = (campaign(&held, "me"), Hold::default());
        me.win(&hold, |_| {}).await;
        // As after a stop.
        hold.over();
        assert!(matches!(me.keep(&hold).await, Lost::Unrenewed(_)));
        assert!(!hold.stands());
        assert_eq!(held.lock().expect("no panic").asked, [Method::GET, Method::POST], "nothing more");
    }
}
