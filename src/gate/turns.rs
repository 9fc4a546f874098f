//! Turns on a bounded number of places, fair between namespaces: one that asks for a thousand waits behind its own.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, oneshot};

/// A number of places.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Places>);

#[derive(Debug)]
struct Places {
    number: NonZeroU32,
    queue: Mutex<Queue>,
    /// Told whenever the last place is given back.
    emptied: Notify,
}

#[derive(Debug)]
struct Queue {
    taken: u32,
    /// Most that were taken at once since that was forgotten.
    most: u32,
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
    pub fn new(number: NonZeroU32) -> Self {
        let queue = Queue { taken: 0, most: 0, waiting: BTreeMap::new(), last: String::new() };
        Self(Arc::new(Places { number, queue: Mutex::new(queue), emptied: Notify::new() }))
    }

    /// How many.
    #[must_use]
    pub fn places(&self) -> NonZeroU32 {
        self.0.number
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody has a place, after more than so many had one at once.
    pub async fn empty_after(&self, burst: u32) {
        while !self.lock().is_over(burst) {
            self.0.emptied.notified().await;
        }
    }

    /// Forgets a burst. False where it is not over: somebody has a place again.
    #[must_use]
    pub fn forget(&self, burst: u32) -> bool {
        let mut queue = self.lock();
        let over = queue.is_over(burst);
        if over {
            queue.most = 0;
        }
        over
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
            let free = queue.taken < self.0.number.get();
            let Some(waiter) = free.then(|| queue.next()).flatten() else { return };
            queue.taken += 1;
            queue.most = queue.most.max(queue.taken);
            // A turn that nobody takes is dropped, and dropping it takes the lock.
            drop(queue);
            let _ = waiter.send(Turn(Some(self.clone())));
        }
    }
}

impl Queue {
    fn is_over(&self, burst: u32) -> bool {
        self.taken == 0 && self.most > burst
    }

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
            turns.lock().taken -= 1;
            turns.serve();
            if turns.lock().taken == 0 {
                turns.0.emptied.notify_one();
            }
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
        let turns = Turns::new(NonZeroU32::MIN);
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
    fn a_burst_is_over_when_nobody_has_a_place_and_is_told_once() {
        let turns = Turns::new(NonZeroU32::new(3).expect("a number"));
        let take = || turns.take("a").now_or_never().expect("a place");
        drop((take(), take()));
        let mut told = turns.empty_after(2).boxed();
        assert!((&mut told).now_or_never().is_none(), "two are no burst");
        let burst = (take(), take(), take());
        drop((burst.0, burst.1));
        assert!((&mut told).now_or_never().is_none(), "one is left");
        assert!(!turns.forget(2));
        drop(burst.2);
        assert!((&mut told).now_or_never().is_some());
        assert!(turns.forget(2));
        assert!(!turns.forget(2), "it is forgotten");
    }

    #[test]
    fn who_stops_waiting_keeps_no_place() {
        let turns = Turns::new(NonZeroU32::MIN);
        let first = turns.take("a").now_or_never().expect("a free place");
        drop(asked(&turns, "a"));
        let mut patient = asked(&turns, "b");
        drop(first);
        drop((&mut patient).now_or_never().expect("a place"));
        assert!(turns.take("a").now_or_never().is_some());
    }
}
