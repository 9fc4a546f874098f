//! Work that a reconcile starts, looks at in later passes and never waits for.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::AbortHandle;

/// Jobs by owner and key. What is no longer wanted is cancelled; what has something to say wakes its owner.
pub struct Jobs<K, V> {
    owners: Arc<Mutex<Owners<K, V>>>,
    wake: Arc<dyn Fn(&str) + Send + Sync>,
}

type Owners<K, V> = HashMap<String, HashMap<K, Job<V>>>;

struct Job<V> {
    task: AbortHandle,
    said: Option<Arc<V>>,
}

impl<V> Drop for Job<V> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a job says something. The last word counts.
pub struct Voice<V>(Box<dyn Fn(V) + Send + Sync>);

impl<V> Voice<V> {
    /// Says `word` and wakes the owner.
    pub fn say(&self, word: V) {
        (self.0)(word);
    }
}

impl<K, V> Jobs<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// No jobs. `wake` is called with the owner of a job that said something.
    pub fn new(wake: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { owners: Arc::default(), wake: Arc::new(wake) }
    }

    /// Makes the jobs of `owner` exactly those of `wanted`: others are cancelled, missing ones are started, ended ones
    /// keep their last word for as long as they are wanted.
    pub fn advance<F>(&self, owner: &str, wanted: impl IntoIterator<Item = (K, impl FnOnce(Voice<V>) -> F)>)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut owners = self.lock();
        let mut before = owners.remove(owner).unwrap_or_default();
        let mut jobs = HashMap::new();
        for (key, start) in wanted {
            let job = before.remove(&key).unwrap_or_else(|| Job {
                task: tokio::spawn(start(self.voice(owner, &key))).abort_handle(),
                said: None,
            });
            jobs.insert(key, job);
        }
        if !jobs.is_empty() {
            owners.insert(owner.to_owned(), jobs);
        }
    }

    /// The last word of each job of `owner` that has said anything.
    #[must_use]
    pub fn said(&self, owner: &str) -> HashMap<K, Arc<V>> {
        let owners = self.lock();
        let jobs = owners.get(owner).into_iter().flatten();
        jobs.filter_map(|(key, job)| Some((key.clone(), job.said.clone()?))).collect()
    }

    /// Whether `owner` has a job of this key.
    #[must_use]
    pub fn has(&self, owner: &str, key: &K) -> bool {
        self.lock().get(owner).is_some_and(|jobs| jobs.contains_key(key))
    }

    /// The jobs of `owner`, whatever they said.
    #[cfg(test)]
    pub(crate) fn known(&self, owner: &str) -> Vec<K> {
        self.lock().get(owner).into_iter().flat_map(HashMap::keys).cloned().collect()
    }

    /// Makes these the jobs of `owner`, as if each had been started and had said this.
    #[cfg(test)]
    pub(crate) fn resume(&self, owner: &str, jobs: impl IntoIterator<Item = (K, Option<Arc<V>>)>) {
        let job = |said| Job { task: tokio::spawn(std::future::pending::<()>()).abort_handle(), said };
        self.lock().insert(owner.to_owned(), jobs.into_iter().map(|(key, said)| (key, job(said))).collect());
    }

    /// Cancels everything of `owner`.
    pub fn cancel(&self, owner: &str) {
        self.lock().remove(owner);
    }

    fn voice(&self, owner: &str, key: &K) -> Voice<V> {
        let (owners, wake) = (Arc::downgrade(&self.owners), Arc::clone(&self.wake));
        let (owner, key) = (owner.to_owned(), key.clone());
        Voice(Box::new(move |word| {
            let Some(owners) = owners.upgrade() else { return };
            let mut owners = owners.lock().unwrap_or_else(PoisonError::into_inner);
            // A job that was cancelled while it spoke is not heard.
            if let Some(job) = owners.get_mut(&owner).and_then(|jobs| jobs.get_mut(&key)) {
                job.said = Some(Arc::new(word));
                drop(owners);
                wake(&owner);
            }
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Owners<K, V>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::{mpsc, oneshot};

    type Start = Box<dyn FnOnce(Voice<u32>) -> futures::future::BoxFuture<'static, ()> + Send>;

    #[tokio::test]
    async fn a_job_runs_once_is_heard_and_forgotten_when_it_is_not_wanted() {
        let (woken, mut wakes) = mpsc::unbounded_channel();
        let jobs = Jobs::new(move |owner: &str| woken.send(owner.to_owned()).expect("the test listens"));
        let say = |word: u32| -> Start { Box::new(move |voice| Box::pin(async move { voice.say(word) })) };
        jobs.advance("a", [("job", say(1))]);
        assert_eq!(wakes.recv().await.as_deref(), Some("a"));
        jobs.advance("a", [("job", say(2))]);
        assert_eq!(jobs.said("a").get("job").map(|word| **word), Some(1), "the job that ended is not run again");
        jobs.advance("a", Vec::<(&str, Start)>::new());
        assert!(jobs.said("a").is_empty());
    }

    #[tokio::test]
    async fn what_is_not_wanted_any_more_is_cancelled() {
        let jobs: Jobs<&str, u32> = Jobs::new(|_| {});
        let (alive, dropped) = oneshot::channel::<()>();
        let hang: Start = Box::new(move |_| {
            Box::pin(async move {
                let _alive = alive;
                std::future::pending().await
            })
        });
        jobs.advance("a", [("job", hang)]);
        jobs.cancel("a");
        assert!(dropped.await.is_err(), "the future was dropped");
    }
}
