//! Which ways are gone: all with so many interferences, then random ones with many; and what is left of a way that breaks
//! a promise when everything is taken out of it that it does not need.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    objects::{Sharded, mix},
    operator::Next,
    promises::Broken,
    state::{Event, State},
};

/// How long a way may be before it has to have come to rest by itself.
pub(super) const PATIENCE: usize = 600;

/// A story, by name, from where it begins.
#[derive(Clone, Debug)]
pub(super) struct Seed {
    pub(super) name: &'static str,
    pub(super) state: State,
}

/// A way that broke a promise.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) broken: Broken,
    pub(super) seed: Seed,
    pub(super) events: Vec<Event>,
}

/// A way, newest event first.
#[derive(Debug)]
struct Way {
    event: Event,
    before: Option<Arc<Way>>,
}

fn events(way: Option<&Arc<Way>>) -> Vec<Event> {
    let mut events: Vec<_> = std::iter::successors(way, |way| way.before.as_ref()).map(|way| way.event).collect();
    events.reverse();
    events
}

/// A state from which other ways lead.
struct Place {
    seed: usize,
    state: State,
    way: Option<Arc<Way>>,
}

/// In which phase what happened how often.
pub(super) type Coverage = BTreeMap<(&'static str, &'static str), usize>;

/// What was seen so far.
pub(super) struct Exploration {
    seeds: Vec<Seed>,
    states: Sharded<HashSet<u64>>,
    known: Sharded<HashSet<u64>>,
    events: AtomicUsize,
    stop: AtomicBool,
    coverage: Mutex<Coverage>,
    fault: Mutex<Option<Fault>>,
    limit: usize,
}

impl Exploration {
    /// Nothing is seen yet; with so many states it is enough.
    pub(super) fn of(seeds: Vec<Seed>, limit: usize) -> Self {
        Self {
            seeds,
            states: Sharded::default(),
            known: Sharded::default(),
            events: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            coverage: Mutex::default(),
            fault: Mutex::default(),
            limit,
        }
    }

    /// Distinct canonical states.
    pub(super) fn states(&self) -> usize {
        self.states.parts().map(|part| part.len()).sum()
    }

    /// Events that happened in all.
    pub(super) fn events(&self) -> usize {
        self.events.load(Ordering::Relaxed)
    }

    pub(super) fn coverage(&self) -> Coverage {
        self.coverage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first promise that was found to be broken.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_enough(&self) -> bool {
        self.states() >= self.limit
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Every way on which at most so many things interfere, or until it is enough. Returns with how many all of them were
    /// gone.
    pub(super) fn exhaust(&self, interferences: usize) -> usize {
        let seeds = self.seeds.iter().enumerate();
        let begin = seeds.map(|(seed, story)| Place { seed, state: story.state.clone(), way: None }).collect();
        let mut places = self.each(begin, |place, found, tally| {
            self.follow(place.seed, place.state.clone(), None, Some(found), tally);
        });
        for interference in 1..=interferences {
            let last = interference == interferences;
            let next = self.each(places, |place, found, tally| {
                for event in place.state.deviations(false) {
                    if self.is_over() {
                        return;
                    }
                    let Some((state, way)) = self.go(place.seed, &place.state, place.way.as_ref(), event, tally) else {
                        continue;
                    };
                    if self.is_new(&state) {
                        let mut keep = (!last).then_some(&mut *found);
                        if let Some(keep) = &mut keep {
                            keep.push(Place { seed: place.seed, state: state.clone(), way: Some(Arc::clone(&way)) });
                        }
                        self.follow(place.seed, state, Some(way), keep, tally);
                    }
                }
            });
            if self.is_over() || self.is_enough() {
                return interference - 1;
            }
            places = next;
        }
        interferences
    }

    /// Random ways until there are enough states, each with a seed of its own.
    pub(super) fn wander(&self, ways: usize) {
        let next = AtomicUsize::new(0);
        let threads = threads();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut tally = Tally::default();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= ways || self.is_over() || self.is_enough() {
                            break;
                        }
                        self.way(number, &mut tally);
                    }
                    self.add(tally);
                });
            }
        });
    }

    /// One random way.
    fn way(&self, number: usize, tally: &mut Tally) {
        let mut random = Random::of(number);
        let seed = random.below(self.seeds.len());
        let mut choice = Choice::of(random);
        let (mut state, mut way) = (self.seeds[seed].state.clone(), None);
        while let Some(event) = choice.next(&state) {
            let Some((next, gone)) = self.go(seed, &state, way.as_ref(), event, tally) else { return };
            self.is_new(&next);
            (state, way) = (next, Some(gone));
        }
        self.settle(seed, &state, way.as_ref());
    }

    /// Works on every place, with all the threads there are.
    fn each(&self, places: Vec<Place>, work: impl Fn(&Place, &mut Vec<Place>, &mut Tally) + Sync) -> Vec<Place> {
        let next = AtomicUsize::new(0);
        let threads = threads();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        let (mut found, mut tally) = (Vec::new(), Tally::default());
                        while let Some(place) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
                            if self.is_over() || self.is_enough() {
                                break;
                            }
                            work(place, &mut found, &mut tally);
                        }
                        self.add(tally);
                        found
                    })
                })
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
        })
    }

    /// What happens by itself, until it has happened before.
    fn follow(
        &self,
        seed: usize,
        mut state: State,
        mut way: Option<Arc<Way>>,
        mut keep: Option<&mut Vec<Place>>,
        tally: &mut Tally,
    ) {
        for _ in 0..PATIENCE {
            let Some(event) = state.ahead() else { return self.settle(seed, &state, way.as_ref()) };
            let Some((next, gone)) = self.go(seed, &state, way.as_ref(), event, tally) else { return };
            if !self.is_new(&next) {
                return;
            }
            if let Some(keep) = &mut keep {
                keep.push(Place { seed, state: next.clone(), way: Some(Arc::clone(&gone)) });
            }
            (state, way) = (next, Some(gone));
        }
    }

    fn settle(&self, seed: usize, state: &State, way: Option<&Arc<Way>>) {
        if let Err(broken) = state.truth.rests(&state.api) {
            self.fails(seed, broken, events(way));
        }
    }

    /// One event. Nothing where it broke a promise.
    fn go(
        &self,
        seed: usize,
        state: &State,
        way: Option<&Arc<Way>>,
        event: Event,
        tally: &mut Tally,
    ) -> Option<(State, Arc<Way>)> {
        *tally.0.entry((state.phase(), name(event))).or_default() += 1;
        let gone = Arc::new(Way { event, before: way.cloned() });
        match state.after(event) {
            Ok(next) => Some((next, gone)),
            Err(broken) => {
                self.fails(seed, broken, events(Some(&gone)));
                None
            }
        }
    }

    fn is_new(&self, state: &State) -> bool {
        let hash = state.hash();
        self.states.part(hash).insert(hash);
        let known = mix(hash, state.truth.hash());
        self.known.part(known).insert(known)
    }

    fn fails(&self, seed: usize, broken: Broken, events: Vec<Event>) {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let shorter = fault.as_ref().is_none_or(|known| known.events.len() > events.len());
        if shorter {
            *fault = Some(Fault { broken, seed: self.seeds[seed].clone(), events });
        }
        self.stop.store(true, Ordering::Relaxed);
    }

    fn add(&self, tally: Tally) {
        let mut coverage = self.coverage.lock().unwrap_or_else(PoisonError::into_inner);
        for (cell, count) in tally.0 {
            self.events.fetch_add(count, Ordering::Relaxed);
            *coverage.entry(cell).or_default() += count;
        }
    }
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

#[derive(Default)]
struct Tally(Coverage);

/// The same numbers in every run.
struct Random(u64);

impl Random {
    fn of(number: usize) -> Self {
        Self(mix(u64::try_from(number).unwrap_or_default(), 20_261_127))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 = mix(self.0, 1);
        usize::try_from(self.0 >> 33).unwrap_or_default() % limit.max(1)
    }
}

/// What happens on a random way: now and then something interferes, and at last nothing does any more.
pub(super) struct Choice {
    random: Random,
    /// One of so many events interferes.
    often: usize,
    /// Of so many events.
    length: usize,
    gone: usize,
}

impl Choice {
    fn of(mut random: Random) -> Self {
        let (often, length) = (3 + random.below(14), 60 + random.below(200));
        Self { random, often, length, gone: 0 }
    }

    /// Those of the random way of this number.
    pub(super) fn numbered(number: usize) -> Self {
        Self::of(Random::of(number))
    }

    pub(super) fn next(&mut self, state: &State) -> Option<Event> {
        self.gone += 1;
        let interferes = self.gone < self.length && self.random.below(self.often) == 0;
        let others = if interferes { state.deviations(true) } else { Vec::new() };
        let chosen = (!others.is_empty()).then(|| others[self.random.below(others.len())]);
        chosen.or_else(|| state.ahead()).filter(|_| self.gone < self.length + PATIENCE)
    }
}

/// What an event is called in a table.
pub(super) fn name(event: Event) -> &'static str {
    match event {
        Event::Step => "write answered",
        Event::Watch => "watches tell",
        Event::Pass => "pass",
        Event::Machine(_) => "machine",
        Event::Answer(_) => "preview answers",
        Event::Verdict(_) => "verdict",
        Event::Release => "watch catches up",
        Event::Arrive => "late write",
        Event::Story => "story",
        Event::Later => "time passes",
        Event::Crash => "crash",
        Event::CrashUnderWay => "crash, write under way",
        Event::Impatience => "own write unseen",
        Event::Hold(_) => "watch behind",
        Event::Early => "early pass",
        Event::Edit(_) => "spec change",
        Event::Approve => "annotation set",
        Event::Withdraw => "annotation cleared",
        Event::Decide(_) => "decision",
        Event::Policy(_) => "policy change",
        Event::Plugin(_) => "plugin change",
        Event::Evict(_) => "eviction",
        Event::Restart(_) => "restart",
        Event::Break(_) => "Pod breaks",
        Event::Scale(_) => "scale",
        Event::Touch(_) => "other manager",
        Event::Jump(_) => "clock jump",
    }
}

/// The table of what happened in which phase.
pub(super) fn table(coverage: &Coverage) -> String {
    let phases: BTreeSet<_> = coverage.keys().map(|(phase, _)| *phase).collect();
    let events: BTreeSet<_> = coverage.keys().map(|(_, event)| *event).collect();
    let mut text = format!("{:<24}", "");
    phases.iter().for_each(|phase| write!(text, "{phase:>11}").expect("a text"));
    for event in events {
        write!(text, "\n{event:<24}").expect("a text");
        for phase in &phases {
            let count = coverage.get(&(*phase, event)).copied().unwrap_or_default();
            write!(text, "{count:>11}").expect("a text");
        }
    }
    text
}

impl Fault {
    /// The same fault by fewer events: none of those that are left can be taken out.
    pub(super) fn shrunk(mut self) -> Self {
        self.events = self.replay(&self.events).unwrap_or_else(|| self.events.clone());
        let mut size = self.events.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < self.events.len() {
                let end = (at + size).min(self.events.len());
                let fewer: Vec<_> = self.events[..at].iter().chain(&self.events[end..]).copied().collect();
                match self.replay(&fewer) {
                    Some(events) => self.events = events,
                    None => at = end,
                }
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
        self
    }

    /// Whether these events break the same promise; those that happened until then.
    fn replay(&self, events: &[Event]) -> Option<Vec<Event>> {
        let mut state = self.seed.state.clone();
        let mut done = Vec::new();
        for event in events {
            if !state.can(*event) {
                continue;
            }
            done.push(*event);
            match state.after(*event) {
                Ok(next) => state = next,
                Err(broken) => return (broken.promise == self.broken.promise).then_some(done),
            }
        }
        let rests = state.rests().then(|| state.truth.rests(&state.api).err()).flatten();
        rests.filter(|broken| broken.promise == self.broken.promise).map(|_| done)
    }

    /// The way, a line for everything that happened.
    pub(super) fn tell(&self) -> String {
        let mut text = format!("in the story `{}`:", self.seed.name);
        let mut state = self.seed.state.clone();
        for event in &self.events {
            let what = told(&state, *event);
            match state.after(*event) {
                Ok(next) => {
                    let phase =
                        if next.phase() == state.phase() { String::new() } else { format!("  -> {}", next.phase()) };
                    write!(text, "\n  {what}{phase}").expect("a text");
                    state = next;
                }
                Err(broken) => {
                    write!(text, "\n  {what}\n{broken}").expect("a text");
                    return text;
                }
            }
        }
        write!(text, "\n{}", self.broken).expect("a text");
        text
    }
}

/// An event in words.
fn told(state: &State, event: Event) -> String {
    match (event, &state.flight) {
        (Event::Step | Event::CrashUnderWay, Some(flight)) => match &*flight.next {
            Next::Send(sent) => {
                let key = sent.request.key;
                let word = if event == Event::Step { "sends" } else { "ends, and on its way is" };
                format!("the operator {word} {:?} {} {}", sent.request.verb, key.kind.as_str(), key.name())
            }
            Next::End(_) => "the pass ends".into(),
        },
        _ => format!("{event:?}"),
    }
}
