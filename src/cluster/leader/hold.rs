//! Until when this process may write: one owner of the fact, asked right before anything is sent.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::http::Request;
use kube::{Client, client::Body};
use rustix::time::{ClockId, clock_gettime};
use tower::BoxError;

use super::candidate::Moment;

/// The hold on the Lease. It stands for a while and is made longer; once it is over, it is over. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Hold(Arc<AtomicU64>);

/// Why something was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not sent: this process does not hold its Lease, so another one may be at work")]
pub struct NotHeld;

impl Hold {
    /// Whether this process may write.
    #[must_use]
    pub fn stands(&self) -> bool {
        !self.left().is_zero()
    }

    /// For how long.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.end().saturating_sub(now())
    }

    /// It stands until then.
    pub(super) fn last(&self, until: Moment) {
        let millis = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.0.store(millis, Ordering::SeqCst);
    }

    /// It is over.
    pub(super) fn over(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    fn end(&self) -> Moment {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// What the clock of this machine reads. One that goes on while the machine is suspended.
#[must_use]
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    // No machine was started in the future.
    Duration::try_from(time).unwrap_or_default()
}

/// A client that reads as `client` does and writes only while `hold` stands. What has not been sent when it ends, because
/// this process was stopped or a connection had to be made first, is not sent any more.
#[must_use]
pub fn guard(client: Client, hold: Hold) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, hold) = (client.clone(), hold.clone());
        async move {
            let writes = !request.method().is_safe();
            let mut answer = pin!(client.send(request));
            poll_fn(|context| match writes && !hold.stands() {
                true => Poll::Ready(Err(BoxError::from(NotHeld))),
                false => answer.as_mut().poll(context).map_err(BoxError::from),
            })
            .await
        }
    });
    Client::new(service, namespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{Method, Response};
    use futures::FutureExt as _;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{
        Api,
        api::{DeleteParams, Patch, PatchParams, PostParams},
    };
    use std::sync::Mutex;
    use tokio::sync::Notify;

    /// A client whose requests wait for a connection, and what was sent over it.
    fn api(connected: Arc<Notify>) -> (Client, Arc<Mutex<Vec<Method>>>) {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&sent);
        let service = tower::service_fn(move |request: Request<Body>| {
            let (log, connected) = (Arc::clone(&log), Arc::clone(&connected));
            async move {
                connected.notified().await;
                log.lock().expect("no panic").push(request.method().clone());
                Ok::<_, BoxError>(Response::new(Body::from(br#"{"metadata":{"name":"a"}}"#.to_vec())))
            }
        });
        (Client::new(service, "ns"), sent)
    }

    fn connected() -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        notify.notify_one();
        notify
    }

    fn standing() -> Hold {
        let hold = Hold::default();
        hold.last(now() + Duration::from_secs(3_600));
        hold
    }

    fn is_not_held<T>(answer: Result<T, kube::Error>) -> bool {
        matches!(answer, Err(kube::Error::Service(cause)) if cause.is::<NotHeld>())
    }

    #[tokio::test]
    async fn nothing_is_written_but_while_the_hold_stands() {
        let hold = standing();
        let patch = Patch::Merge(serde_json::json!({}));
        for stands in [true, false] {
            if !stands {
                hold.over();
            }
            let mut all_sent = Vec::new();
            for write in 0..4 {
                let (client, sent) = api(connected());
                let maps: Api<ConfigMap> = Api::default_namespaced(guard(client, hold.clone()));
                let refused = match write {
                    0 => is_not_held(maps.create(&PostParams::default(), &ConfigMap::default()).await),
                    1 => is_not_held(maps.replace("a", &PostParams::default(), &ConfigMap::default()).await),
                    2 => is_not_held(maps.patch("a", &PatchParams::default(), &patch).await),
                    _ => is_not_held(maps.delete("a", &DeleteParams::default()).await),
                };
                assert_eq!(refused, !stands);
                all_sent.extend(sent.lock().expect("no panic").iter().cloned());
            }
            let wanted = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
            assert_eq!(all_sent, if stands { &wanted[..] } else { &[] });
        }
    }

    #[tokio::test]
    async fn what_is_read_is_read_at_any_time() {
        let (client, sent) = api(connected());
        let maps: Api<ConfigMap> = Api::default_namespaced(guard(client, Hold::default()));
        assert!(maps.get("a").await.is_ok());
        assert_eq!(*sent.lock().expect("no panic"), [Method::GET]);
    }

    #[tokio::test]
    async fn what_waited_for_a_connection_when_the_hold_ended_is_not_sent() {
        let (hold, connection) = (standing(), Arc::new(Notify::new()));
        let (client, sent) = api(Arc::clone(&connection));
        let maps: Api<ConfigMap> = Api::default_namespaced(guard(client, hold.clone()));
        let (params, map) = (PostParams::default(), ConfigMap::default());
        let mut write = Box::pin(maps.create(&params, &map));
        while !is_waited_for(&connection) {
            assert!(write.as_mut().now_or_never().is_none(), "it waits for a connection");
            tokio::task::yield_now().await;
        }
        hold.over();
        connection.notify_waiters();
        assert!(is_not_held(write.await));
        assert_eq!(*sent.lock().expect("no panic"), Vec::<Method>::new());
    }

    fn is_waited_for(connection: &Arc<Notify>) -> bool {
        // Whoever waits holds it too, beside the test and the client.
        Arc::strong_count(connection) > 2
    }
}
