//! Turns on a bounded number of places, fair between namespaces: one that asks for a thousand waits behind its own.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// A number of places.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Mutex<Queue>>);

#[derive(Debug)]
struct Queue {
    free: usize,
    /// Who waits, by namespace, each in the order in which they came.
    waiting: BTreeMap<String, VecDeque<oneshot::Sender<Turn>>>,
    /// Whose turn it was last.
    last: String,
}

/// A place; given back when it is dropped.
#[derive(Debug)]
pub struct Turn(Option<Turns>);

impl Turns {
    /// So many places.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(Queue { free: places, waiting: BTreeMap::new(), last: String::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place. Who stops waiting is skipped.
    pub async fn take(&self, namespace: &str) -> Turn {
        let (sender, receiver) = oneshot::channel();
        self.lock().waiting.entry(namespace.to_owned()).or_default().push_back(sender);
        self.serve();
        // The sender is in the queue, and the queue lives as long as `self`.
        receiver.await.unwrap_or(Turn(None))
    }

    /// Gives free places to those who wait, a namespace after the other.
    fn serve(&self) {
        loop {
            let mut queue = self.lock();
            let Some(waiter) = (queue.free > 0).then(|| queue.next()).flatten() else { return };
            queue.free -= 1;
            // A turn that nobody takes is dropped, and dropping it takes the lock.
            drop(queue);
            let _ = waiter.send(Turn(Some(self.clone())));
        }
    }
}

impl Queue {
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = self.waiting.range::<String, _>((Excluded(&self.last), Unbounded)).next();
        let namespace = after.or_else(|| self.waiting.iter().next()).map(|(namespace, _)| namespace.clone())?;
        let queue = self.waiting.get_mut(&namespace)?;
        let waiter = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&namespace);
        }
        self.last = namespace;
        waiter
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.lock().free += 1;
            turns.serve();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt as _, future::BoxFuture};

    fn asked<'a>(turns: &'a Turns, namespace: &'static str) -> BoxFuture<'a, Turn> {
        let mut asked = turns.take(namespace).boxed();
        assert!((&mut asked).now_or_never().is_none(), "there is no place yet");
        asked
    }

    #[test]
    fn a_namespace_that_asks_for_much_does_not_keep_out_the_others() {
        let turns = Turns::new(1);
        let first = turns.take("a").now_or_never().expect("a free place");
        let (mut more, mut other) = ([asked(&turns, "a"), asked(&turns, "a")], asked(&turns, "b"));
        drop(first);
        let turn = (&mut other).now_or_never().expect("the other one's turn");
        assert!((&mut more[0]).now_or_never().is_none());
        drop(turn);
        let turn = (&mut more[0]).now_or_never().expect("in their order");
        assert!((&mut more[1]).now_or_never().is_none());
        drop(turn);
        assert!((&mut more[1]).now_or_never().is_some());
    }

    #[test]
    fn who_stops_waiting_keeps_no_place() {
        let turns = Turns::new(1);
        let first = turns.take("a").now_or_never().expect("a free place");
        drop(asked(&turns, "a"));
        let mut patient = asked(&turns, "b");
        drop(first);
        drop((&mut patient).now_or_never().expect("a place"));
        assert!(turns.take("a").now_or_never().is_some());
    }
}
