//! Which ready sandboxes there shall be: shelves by kind, sized by what was asked for lately. No I/O.
//!
//! Invariants: a sandbox is given out once and never comes back; there are never more than the bounds say, those on their way
//! included; a kind that nobody asked for lately has none. Read `ready` for what lies on a shelf and `keeper` for who fills them.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Kinds that are remembered; past it the one asked for longest ago is forgotten.
const KINDS_MAX: usize = 64;

/// Bursts count for so long.
const BURST_SECONDS: u64 = 60;

/// After a request the cores belong to whoever made it, unless less than half of the shelf is left, and either nothing lies there or nobody asks
/// for a moment ([`LULL`]).
const PAUSE: Duration = Duration::from_millis(10);

/// Whoever asks for one after the other is not to have the next ones made beside that while there are any: shorter than it takes to make one.
pub const LULL: Duration = Duration::from_millis(1);

/// Whoever goes on with commands keeps them for so long at most, counted from the first request after which the shelf was not full.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// After a filling that failed.
const BACK_OFF: Duration = Duration::from_secs(2);

/// How much may lie ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolBounds {
    /// Sandboxes, of all kinds; 0: there is no pool.
    pub sandboxes_max: usize,
    /// Of a kind that was asked for lately, at least.
    pub ready_min: usize,
    /// Memory of all of them.
    pub memory_bytes_max: u64,
    /// How long a kind is kept ready after somebody asked for it.
    pub keep: Duration,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<K, T> {
    /// Make one of this kind and [`Shelves::put`] it, or say [`Shelves::failed`].
    Fill(K),
    /// End this one: it is in the way.
    Drop(T),
    /// Nothing before this time.
    At(Instant),
    /// Nothing until somebody asks.
    Rest,
}

/// What a request found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<T> {
    /// This one is the caller's.
    Ready(T),
    /// None that suits lies there, though some do lie there.
    Unsuited,
    /// The shelf is empty.
    Nothing,
}

/// All shelves. `K` tells kinds apart, `R` says how one of a kind is made, `T` is a ready sandbox.
#[derive(Debug)]
pub struct Shelves<K, R, T> {
    bounds: PoolBounds,
    begin: Instant,
    by_kind: HashMap<K, Shelf<R, T>>,
}

#[derive(Debug)]
struct Shelf<R, T> {
    recipe: R,
    ready: VecDeque<Ready<T>>,
    filling: usize,
    asked: Instant,
    /// Requests by second, the latest last.
    bursts: VecDeque<(u64, usize)>,
    /// The cores are the caller's until then.
    not_before: Instant,
    /// When something was last asked for while it was full.
    short_since: Instant,
    /// What failed is not tried again before.
    retry_at: Instant,
    /// Memory of the last one that was made, also where there was no room for it.
    last_bytes: u64,
}

#[derive(Debug)]
struct Ready<T> {
    sandbox: T,
    memory_bytes: u64,
}

impl<R, T> Shelf<R, T> {
    fn here(&self) -> usize {
        self.ready.len() + self.filling
    }

    fn wanted(&self, bounds: &PoolBounds, now: Instant) -> usize {
        if now.duration_since(self.asked) >= bounds.keep {
            return 0;
        }
        let burst = self.bursts.iter().map(|(_, requests)| *requests).max().unwrap_or(0);
        burst.clamp(bounds.ready_min.min(bounds.sandboxes_max), bounds.sandboxes_max)
    }

    /// With nothing on its way.
    fn is_full(&self, bounds: &PoolBounds, now: Instant) -> bool {
        self.filling == 0 && self.ready.len() >= self.wanted(bounds, now)
    }

    /// When something may be made for it, unless little is left.
    fn free_at(&self) -> Instant {
        self.not_before.max(self.retry_at)
    }

    /// When it is to be filled.
    fn due_at(&self, bounds: &PoolBounds, now: Instant) -> Instant {
        let is_little_left = self.here() * 2 < self.wanted(bounds, now);
        let due = match (is_little_left, self.ready.is_empty()) {
            (false, _) => self.not_before,
            (true, true) => now,
            (true, false) => self.not_before.min(self.asked + LULL).min(self.short_since + PAUSE_MAX),
        };
        due.max(self.retry_at)
    }

    fn note(&mut self, second: u64, now: Instant) {
        self.asked = now;
        match self.bursts.back_mut() {
            Some((last, requests)) if *last == second => *requests += 1,
            _ => self.bursts.push_back((second, 1)),
        }
        while self.bursts.front().is_some_and(|(first, _)| first + BURST_SECONDS <= second) {
            self.bursts.pop_front();
        }
    }
}

impl<K: Clone + Eq + Hash, R: Clone, T> Shelves<K, R, T> {
    /// Empty ones.
    pub fn new(bounds: PoolBounds, now: Instant) -> Self {
        Self { bounds, begin: now, by_kind: HashMap::new() }
    }

    /// Takes the oldest of that kind that `suits`, and remembers that the kind was asked for. `recipe` is called for a new kind.
    pub fn take(&mut self, kind: &K, now: Instant, suits: impl Fn(&T) -> bool, recipe: impl FnOnce() -> R) -> Found<T> {
        let second = now.duration_since(self.begin).as_secs();
        if !self.by_kind.contains_key(kind) {
            self.make_room();
            let shelf = Shelf {
                recipe: recipe(),
                ready: VecDeque::new(),
                filling: 0,
                asked: now,
                bursts: VecDeque::new(),
                not_before: now,
                short_since: now,
                retry_at: now,
                last_bytes: 0,
            };
            self.by_kind.insert(kind.clone(), shelf);
        }
        let Some(shelf) = self.by_kind.get_mut(kind) else { return Found::Nothing };
        if shelf.ready.len() >= shelf.wanted(&self.bounds, now) {
            shelf.short_since = now;
        }
        shelf.note(second, now);
        shelf.not_before = shelf.not_before.max(now + PAUSE);
        match shelf.ready.iter().position(|ready| suits(&ready.sandbox)) {
            Some(position) => shelf.ready.remove(position).map_or(Found::Nothing, |ready| Found::Ready(ready.sandbox)),
            None if shelf.ready.is_empty() => Found::Nothing,
            None => Found::Unsuited,
        }
    }

    /// A command begins in some session: what was asked for a moment ago is not filled beside it, unless little is left.
    pub fn put_off(&mut self, now: Instant) {
        for shelf in self.by_kind.values_mut() {
            let until = (now + PAUSE).min(shelf.short_since + PAUSE_MAX);
            shelf.not_before = shelf.not_before.max(until);
        }
    }

    /// A new kind takes the place of the empty one that was asked for longest ago.
    fn make_room(&mut self) {
        if self.by_kind.len() < KINDS_MAX {
            return;
        }
        let empty = self.by_kind.iter().filter(|(_, shelf)| shelf.here() == 0);
        if let Some(oldest) = empty.min_by_key(|(_, shelf)| shelf.asked).map(|(kind, _)| kind.clone()) {
            self.by_kind.remove(&oldest);
        }
    }

    /// What is to be done now. A `Fill` counts as on its way.
    pub fn next(&mut self, now: Instant) -> Next<K, T> {
        if let Some(surplus) = self.surplus(now) {
            return Next::Drop(surplus);
        }
        let bounds = self.bounds;
        let short = self.by_kind.iter().filter(|(_, shelf)| {
            // One that is larger than all of them may be has no place, however much is free.
            shelf.here() < shelf.wanted(&bounds, now) && shelf.last_bytes <= bounds.memory_bytes_max
        });
        let (due, later): (Vec<_>, Vec<_>) = short.partition(|(_, shelf)| shelf.due_at(&bounds, now) <= now);
        let later = later.iter().map(|(_, shelf)| shelf.due_at(&bounds, now)).min();
        let mut due: Vec<(K, Instant)> = due.into_iter().map(|(kind, shelf)| (kind.clone(), shelf.asked)).collect();
        // A kind that has no room must not keep the others from theirs.
        due.sort_by_key(|(_, asked)| Reverse(*asked));
        for (kind, asked) in due {
            if !self.is_full(&kind) {
                if let Some(shelf) = self.by_kind.get_mut(&kind) {
                    shelf.filling += 1;
                }
                return Next::Fill(kind);
            }
            if let Some(older) = self.older_than(asked, &kind) {
                return Next::Drop(older);
            }
        }
        later.map_or(Next::Rest, Next::At)
    }

    /// One that nobody wants any more.
    fn surplus(&mut self, now: Instant) -> Option<T> {
        let bounds = self.bounds;
        let shelf = self.by_kind.values_mut().find(|shelf| shelf.ready.len() > shelf.wanted(&bounds, now))?;
        shelf.ready.pop_front().map(|ready| ready.sandbox)
    }

    fn is_full(&self, kind: &K) -> bool {
        let here: usize = self.by_kind.values().map(Shelf::here).sum();
        // One on its way is taken for as large as the one before.
        let expected = self.by_kind.get(kind).map_or(0, |shelf| shelf.last_bytes);
        here >= self.bounds.sandboxes_max || self.memory_bytes() + expected > self.bounds.memory_bytes_max
    }

    /// When there is no room: of the kind that was asked for longest ago, and before `asked`.
    fn older_than(&mut self, asked: Instant, kind: &K) -> Option<T> {
        // A kind that has some makes do with them.
        if self.by_kind.get(kind).is_some_and(|shelf| shelf.here() > 0) {
            return None;
        }
        let others = self.by_kind.values_mut().filter(|shelf| !shelf.ready.is_empty() && shelf.asked < asked);
        others.min_by_key(|shelf| shelf.asked)?.ready.pop_front().map(|ready| ready.sandbox)
    }

    /// Lays down one that was to be made; it comes back when it is not wanted any more.
    pub fn put(&mut self, kind: &K, sandbox: T, memory_bytes: u64, now: Instant) -> Option<T> {
        // Two that grew larger than expected may be on their way at once.
        let fits = self.memory_bytes() + memory_bytes <= self.bounds.memory_bytes_max;
        let Some(shelf) = self.by_kind.get_mut(kind) else { return Some(sandbox) };
        shelf.filling = shelf.filling.saturating_sub(1);
        shelf.last_bytes = memory_bytes;
        if !fits {
            shelf.retry_at = now + BACK_OFF;
            return Some(sandbox);
        }
        shelf.ready.push_back(Ready { sandbox, memory_bytes });
        None
    }

    /// One could not be made.
    pub fn failed(&mut self, kind: &K, now: Instant) {
        if let Some(shelf) = self.by_kind.get_mut(kind) {
            shelf.filling = shelf.filling.saturating_sub(1);
            shelf.retry_at = now + BACK_OFF;
            // A kind that can't be made must not be tried for ever, nor at once although its shelf is empty.
            if shelf.here() == 0 {
                shelf.bursts.clear();
                shelf.asked = now.checked_sub(self.bounds.keep).unwrap_or(self.begin);
            }
        }
    }

    /// Takes a whole kind away: it means something else by now.
    pub fn forget(&mut self, kind: &K) -> Vec<T> {
        let shelf = self.by_kind.remove(kind);
        shelf.map(|shelf| shelf.ready.into_iter().map(|ready| ready.sandbox).collect()).unwrap_or_default()
    }

    /// Takes away those that are of no use.
    pub fn retain(&mut self, is_sound: impl Fn(&T) -> bool) -> Vec<T> {
        let mut gone = Vec::new();
        let is_sound = |ready: &Ready<T>| is_sound(&ready.sandbox);
        for shelf in self.by_kind.values_mut() {
            // Asked for each request, and nearly always true.
            if shelf.ready.iter().all(&is_sound) {
                continue;
            }
            let (sound, unsound): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut shelf.ready).into_iter().partition(&is_sound);
            shelf.ready = sound;
            gone.extend(unsound.into_iter().map(|ready| ready.sandbox));
        }
        gone
    }

    /// Takes away one that is not as it is wanted by now, from a shelf that is full and could be filled at once: they are replaced one after another.
    pub fn outdated(&mut self, now: Instant, is_as_wanted: impl Fn(&T) -> bool) -> Option<T> {
        let bounds = self.bounds;
        let mut full = self.by_kind.values_mut().filter(|shelf| shelf.is_full(&bounds, now) && shelf.free_at() <= now);
        full.find_map(|shelf| {
            let position = shelf.ready.iter().position(|ready| !is_as_wanted(&ready.sandbox))?;
            // Whoever works now keeps the cores from here on.
            shelf.short_since = now;
            shelf.ready.remove(position).map(|ready| ready.sandbox)
        })
    }

    /// When [`Self::outdated`] will find one where it finds none now.
    pub fn outdated_at(&self, now: Instant, is_as_wanted: impl Fn(&T) -> bool) -> Option<Instant> {
        let full = self.by_kind.values().filter(|shelf| shelf.is_full(&self.bounds, now));
        full.filter(|shelf| shelf.ready.iter().any(|ready| !is_as_wanted(&ready.sandbox))).map(Shelf::free_at).min()
    }

    /// How one of a kind is made.
    pub fn recipe(&self, kind: &K) -> Option<R> {
        self.by_kind.get(kind).map(|shelf| shelf.recipe.clone())
    }

    /// Kinds that have something ready.
    pub fn stocked(&self) -> Vec<K> {
        self.by_kind.iter().filter(|(_, shelf)| !shelf.ready.is_empty()).map(|(kind, _)| kind.clone()).collect()
    }

    /// How many lie ready.
    pub fn ready(&self) -> usize {
        self.by_kind.values().map(|shelf| shelf.ready.len()).sum()
    }

    /// What they hold.
    pub fn memory_bytes(&self) -> u64 {
        self.by_kind.values().flat_map(|shelf| &shelf.ready).map(|ready| ready.memory_bytes).sum()
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
