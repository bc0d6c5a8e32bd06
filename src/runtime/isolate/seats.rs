//! Which engine takes a session: one that stands, one that starts, or a new one.
//!
//! Invariants: an engine holds sessions of one principal and one profile only; sessions that ask at once wait for one start together,
//! as many as an engine takes, and nobody else waits for it; engines that start count as engines. Decides, and starts nothing itself.

use std::sync::Arc;

use tokio::sync::watch;

use crate::sandbox::error::SandboxError;

use super::IsolateBounds;

/// Whose isolates an engine may hold: sessions of different principals or profiles never share one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The principal.
    pub owner: String,
    /// Name of the profile.
    pub profile: String,
}

/// An engine as far as a seat is concerned.
pub trait Room {
    /// Whose sessions it takes.
    fn key(&self) -> &Key;
    /// Sessions that it holds.
    fn sessions(&self) -> u64;
    /// Executions that it has had.
    fn executions(&self) -> u64;
    /// False once it is to take no further session.
    fn is_fit(&self) -> bool;
    /// True as long as it takes requests.
    fn is_alive(&self) -> bool;
    /// Ends it, with all its sessions.
    fn give_up(&self, why: &str);
}

/// Tells engines that start apart.
pub type Number = u64;

/// Where a session goes.
pub enum Seat<E> {
    /// Into this engine, which has room as long as the lock is held.
    In(Arc<E>),
    /// Into one that starts: look again when its start is over.
    Soon(Start),
    /// Into a new one, which the caller is to start.
    New(Number),
    /// Nowhere: there are as many engines as there may be.
    None,
}

/// A start that somebody else has under way.
pub struct Start(watch::Receiver<Option<SandboxError>>);

impl Start {
    /// Waits for its end. The error is what kept the engine from standing; a start that was given up is none.
    pub async fn over(&mut self) -> Result<(), SandboxError> {
        let failure = self.0.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        failure.map_or(Ok(()), Err)
    }
}

struct Starting {
    number: Number,
    key: Key,
    /// Who waits is who listens; closed when the start is over.
    told: watch::Sender<Option<SandboxError>>,
}

/// All engines.
pub struct Seats<E> {
    bounds: IsolateBounds,
    standing: Vec<Arc<E>>,
    starting: Vec<Starting>,
    next: Number,
}

impl<E: Room> Seats<E> {
    /// Of no engine yet.
    pub fn new(bounds: IsolateBounds) -> Self {
        Self { bounds, standing: Vec::new(), starting: Vec::new(), next: 0 }
    }

    /// A seat for one more session of `key`.
    pub fn look(&mut self, key: &Key) -> Seat<E> {
        self.clear();
        if let Some(engine) = self.standing.iter().find(|engine| engine.key() == key && self.has_room(engine)) {
            return Seat::In(Arc::clone(engine));
        }
        // The one that starts it takes a place too.
        let takes = |start: &&Starting| start.key == *key && start.told.receiver_count() as u64 + 1 < self.bounds.sessions_max;
        if let Some(start) = self.starting.iter().find(takes) {
            return Seat::Soon(Start(start.told.subscribe()));
        }
        if (self.standing.len() + self.starting.len()) as u64 >= self.bounds.engines_max {
            // One that waits for sessions of somebody else gives way.
            let Some(idle) = self.standing.iter().position(|engine| engine.sessions() == 0) else { return Seat::None };
            self.standing.swap_remove(idle).give_up("it gave way to another one");
        }
        self.next += 1;
        self.starting.push(Starting { number: self.next, key: key.clone(), told: watch::Sender::new(None) });
        Seat::New(self.next)
    }

    /// The engine stands, with its first session in it; who waits for it looks again.
    pub fn stands(&mut self, number: Number, engine: Arc<E>) {
        self.standing.push(engine);
        self.given_up(number);
    }

    /// The engine can't be started; who waits for it is told.
    pub fn failed(&mut self, number: Number, why: &SandboxError) {
        if let Some(start) = self.starting.iter().find(|start| start.number == number) {
            start.told.send_replace(Some(why.clone()));
        }
        self.given_up(number);
    }

    /// Nobody starts the engine any more; who waits for it looks again. Does nothing once its start is over.
    pub fn given_up(&mut self, number: Number) {
        self.starting.retain(|start| start.number != number);
    }

    /// Ends those that are spent, and lets go of those that are over: a session that is closed may still know its engine.
    pub fn clear(&mut self) {
        for engine in self.standing.iter().filter(|engine| self.is_spent(engine)) {
            engine.give_up("it has had its executions");
        }
        self.standing.retain(|engine| engine.is_alive());
    }

    fn has_room(&self, engine: &E) -> bool {
        engine.sessions() < self.bounds.sessions_max && engine.executions() < self.bounds.executions_max && engine.is_fit()
    }

    /// True when nobody is in it and nobody will be.
    fn is_spent(&self, engine: &E) -> bool {
        engine.sessions() == 0 && (engine.executions() >= self.bounds.executions_max || !engine.is_fit())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;

    struct Fake {
        key: Key,
        sessions: AtomicU64,
        over: AtomicBool,
    }

    impl Room for Fake {
        fn key(&self) -> &Key {
            &self.key
        }
        fn sessions(&self) -> u64 {
            self.sessions.load(Ordering::Relaxed)
        }
        fn executions(&self) -> u64 {
            0
        }
        fn is_fit(&self) -> bool {
            true
        }
        fn is_alive(&self) -> bool {
            !self.over.load(Ordering::Relaxed)
        }
        fn give_up(&self, _: &str) {
            self.over.store(true, Ordering::Relaxed);
        }
    }

    fn key(owner: &str) -> Key {
        Key { owner: owner.into(), profile: "default".into() }
    }

    /// Engines for three sessions each, two at once.
    fn seats() -> Seats<Fake> {
        let memory_bytes = NonZeroU64::new(1 << 30).expect("not zero");
        Seats::new(IsolateBounds { sessions_max: 3, engines_max: 2, executions_max: 10, spares_max: 1, memory_bytes })
    }

    fn new(seats: &mut Seats<Fake>, owner: &str) -> Number {
        match seats.look(&key(owner)) {
            Seat::New(number) => number,
            other => panic!("{owner} is to start an engine, not {}", name(&other)),
        }
    }

    fn soon(seats: &mut Seats<Fake>, owner: &str) -> Start {
        match seats.look(&key(owner)) {
            Seat::Soon(start) => start,
            other => panic!("{owner} is to wait for a start, not {}", name(&other)),
        }
    }

    fn name(seat: &Seat<Fake>) -> &'static str {
        match seat {
            Seat::In(_) => "in",
            Seat::Soon(_) => "soon",
            Seat::New(_) => "new",
            Seat::None => "none",
        }
    }

    fn stands(seats: &mut Seats<Fake>, number: Number, owner: &str) -> Arc<Fake> {
        let engine = Arc::new(Fake { key: key(owner), sessions: AtomicU64::new(1), over: AtomicBool::new(false) });
        seats.stands(number, Arc::clone(&engine));
        engine
    }

    /// Takes the seat that there must be.
    fn sit(seats: &mut Seats<Fake>, owner: &str) -> Arc<Fake> {
        match seats.look(&key(owner)) {
            Seat::In(engine) => {
                engine.sessions.fetch_add(1, Ordering::Relaxed);
                engine
            }
            other => panic!("there is room for {owner}, not {}", name(&other)),
        }
    }

    #[tokio::test]
    async fn sessions_that_ask_at_once_wait_for_one_start_and_share_its_engine() {
        let mut seats = seats();
        let number = new(&mut seats, "one");
        let mut waiting = [soon(&mut seats, "one"), soon(&mut seats, "one")];
        let second = new(&mut seats, "one");
        assert_ne!(number, second, "the control: the fourth does not fit into an engine for three");
        let engine = stands(&mut seats, number, "one");
        for start in &mut waiting {
            assert_eq!(start.over().await, Ok(()));
            assert!(Arc::ptr_eq(&sit(&mut seats, "one"), &engine));
        }
        assert_eq!(engine.sessions(), 3);
    }

    #[test]
    fn a_start_keeps_nobody_else_waiting() {
        let mut seats = seats();
        let number = new(&mut seats, "one");
        let engine = stands(&mut seats, number, "one");
        let other = new(&mut seats, "other");
        assert!(Arc::ptr_eq(&sit(&mut seats, "one"), &engine), "there is room in an engine that stands");
        drop(soon(&mut seats, "other"));
        stands(&mut seats, other, "other");
        assert!(!Arc::ptr_eq(&sit(&mut seats, "other"), &engine), "of another principal");
    }

    #[test]
    fn who_no_longer_waits_takes_no_place() {
        let mut seats = seats();
        new(&mut seats, "one");
        let (first, _second) = (soon(&mut seats, "one"), soon(&mut seats, "one"));
        drop(first);
        soon(&mut seats, "one");
    }

    #[tokio::test]
    async fn a_start_that_fails_tells_who_waits_and_one_that_is_given_up_lets_them_try() {
        let mut seats = seats();
        let number = new(&mut seats, "one");
        let mut waiting = soon(&mut seats, "one");
        let why = SandboxError::Busy { cause: "no memory".into() };
        seats.failed(number, &why);
        assert_eq!(waiting.over().await, Err(why));
        let number = new(&mut seats, "one");
        let mut waiting = soon(&mut seats, "one");
        seats.given_up(number);
        assert_eq!(waiting.over().await, Ok(()));
        new(&mut seats, "one");
    }

    #[test]
    fn engines_that_start_count_and_only_an_idle_one_that_stands_gives_way() {
        let mut seats = seats();
        let number = new(&mut seats, "one");
        new(&mut seats, "second");
        assert_eq!(name(&seats.look(&key("third"))), "none");
        let engine = stands(&mut seats, number, "one");
        assert_eq!(name(&seats.look(&key("third"))), "none");
        engine.sessions.store(0, Ordering::Relaxed);
        new(&mut seats, "third");
        assert!(!engine.is_alive());
    }
}
