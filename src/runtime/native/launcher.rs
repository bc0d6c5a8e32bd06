//! The server's side of the launcher's socket.
//!
//! Invariant: what a sandbox needs on the host (its uid range, its image) is held here until the launcher says that no
//! process of it lives, or until that is proven after the launcher's own end. Nothing here waits for a launcher that does not
//! read. Read `launchers` for its end.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{oneshot, watch};

use crate::plan::messages::{Birth, CreateRequest, LauncherMessage, LauncherRequest, SERVER_SOCKET, Tag};
use crate::plan::{Plan, StepFailure};
use crate::sandbox::cgroups::remove_directories;
use crate::sys::channel::{self, ChannelError};
use crate::sys::identity::Identity;
use crate::sys::process;
use crate::sys::socket::{self, Wait};

use super::launchers::{AtEnd, Proof};
use super::reaper::{Killed, Reaper};

/// What a sandbox holds on the host besides its processes.
pub type Held = Box<dyn Any + Send>;

/// Why a sandbox was not made.
#[derive(Debug)]
pub enum CreateFailure {
    /// A step failed.
    Step(StepFailure),
    /// Its control socket did not come through: here or at the launcher there was no descriptor left.
    ControlLost,
    /// The launcher is gone.
    LauncherGone,
    /// Too many groups of sandboxes that are over wait to be removed.
    Backlog,
}

struct Waiter {
    created: Option<oneshot::Sender<Result<OwnedFd, StepFailure>>>,
    gone: watch::Sender<Option<i32>>,
    cgroups: Vec<PathBuf>,
    held: Held,
    /// Its init, once it is known.
    init: Option<Identity>,
    /// It was killed, or its end was asked for.
    is_ending: bool,
}

/// A sandbox that the launcher has made.
pub struct Launched {
    /// Its number.
    pub tag: Tag,
    /// The control socket of its init.
    pub control: OwnedFd,
    /// Becomes the wait status of its init when no process of it lives.
    pub gone: watch::Receiver<Option<i32>>,
}

/// Requests that may wait for a launcher that does not read; past it a sandbox is refused.
const REQUESTS_WAITING_MAX: usize = 16_384;

/// Groups of sandboxes that are over and wait to be removed; past it none is made until some are gone.
const GROUPS_LEAVING_MAX: usize = 4096;

/// The launcher process.
pub struct LauncherClient {
    socket: Arc<OwnedFd>,
    waiters: Mutex<Option<HashMap<Tag, Waiter>>>,
    /// Groups of sandboxes that are over, as long as the launcher has not removed them.
    leaving: Mutex<Vec<PathBuf>>,
    late: Arc<Mutex<Late>>,
    next: AtomicU64,
    reaper: Arc<Reaper>,
}

/// What found no room in the socket.
#[derive(Default)]
struct Late {
    requests: VecDeque<LauncherRequest>,
    sender: Sender,
}

/// Whether a thread sends what is late. While one does everything goes through it, so that the order stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Sender {
    #[default]
    None,
    Running,
}

impl LauncherClient {
    /// Starts a launcher from a sealed copy of this binary. Whoever calls must [`Self::listen`].
    pub fn start(binary: BorrowedFd<'_>, reaper: Arc<Reaper>) -> std::io::Result<(Arc<Self>, Child)> {
        let to_io = |error: crate::sys::CallError| std::io::Error::from_raw_os_error(error.raw());
        let (ours, theirs) = socket::pair().map_err(to_io)?;
        let child = process::spawn_launcher(binary, theirs.as_fd(), SERVER_SOCKET)?;
        Ok((Self::over(ours, reaper), child))
    }

    fn over(socket: OwnedFd, reaper: Arc<Reaper>) -> Arc<Self> {
        Arc::new(Self {
            socket: Arc::new(socket),
            waiters: Mutex::new(Some(HashMap::new())),
            leaving: Mutex::default(),
            late: Arc::default(),
            next: AtomicU64::new(1),
            reaper,
        })
    }

    /// Has the process of a sandbox made, which then waits for [`Self::create`]. Dropping what is given ends it.
    pub fn begin(self: &Arc<Self>, birth: Birth) -> Result<Begun, CreateFailure> {
        if self.leave(Vec::new()) >= GROUPS_LEAVING_MAX {
            return Err(CreateFailure::Backlog);
        }
        let tag = self.next.fetch_add(1, Ordering::Relaxed);
        match self.send(LauncherRequest::Begin(tag, birth)) {
            Ok(()) => Ok(Begun { client: Arc::clone(self), tag: Some(tag) }),
            Err(_) => Err(CreateFailure::LauncherGone),
        }
    }

    /// Asks for a sandbox. `held` is dropped when no process of it lives, or at once when it can't be made.
    pub async fn create(&self, begun: Begun, plan: Plan, groups: Vec<PathBuf>, held: Held) -> Result<Launched, CreateFailure> {
        let Some(tag) = begun.tag else { return Err(CreateFailure::LauncherGone) };
        let (created, answer) = oneshot::channel();
        let (gone, watcher) = watch::channel(None);
        let cgroups = names(&groups);
        if let Some(waiters) = self.waiters.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            waiters.insert(tag, Waiter { created: Some(created), gone, cgroups: groups, held, init: None, is_ending: false });
        } else {
            begun.give_up(groups);
            return Err(CreateFailure::LauncherGone);
        }
        let request = CreateRequest::new(tag, plan, cgroups).map(|request| LauncherRequest::Create(Box::new(request)));
        if request.and_then(|request| self.send(request)).is_err() {
            begun.give_up(self.never_asked(tag));
            return Err(CreateFailure::LauncherGone);
        }
        match answer.await {
            Ok(Ok(control)) => {
                begun.keep();
                Ok(Launched { tag, control, gone: watcher })
            }
            Ok(Err(failure)) => Err(CreateFailure::Step(failure)),
            Err(_) if self.is_alive() => Err(CreateFailure::ControlLost),
            Err(_) => Err(CreateFailure::LauncherGone),
        }
    }

    /// The launcher never heard of this plan; what was its groups are given back.
    fn never_asked(&self, tag: Tag) -> Vec<PathBuf> {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.as_mut().and_then(|waiters| waiters.remove(&tag)).map(|waiter| waiter.cgroups).unwrap_or_default()
    }

    /// False once the launcher is gone.
    pub fn is_alive(&self) -> bool {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What the launcher does when the server is gone, however it went.
    pub fn at_end(&self, at_end: &AtEnd) {
        self.send(LauncherRequest::RemoveAtEnd(at_end.directories.clone())).ok();
        if let Some(way_back) = at_end.way_back.clone() {
            self.send(LauncherRequest::StepBackAtEnd(way_back)).ok();
        }
    }

    /// Ends a sandbox, unless that was done before; `Launched::gone` tells when it is over, and what is given becomes readable when no
    /// process of it lives.
    pub fn end(&self, tag: Tag) -> Option<Killed> {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a waiter it is over, or its launcher is and has taken it along.
        let waiter = waiters.as_mut().and_then(|waiters| waiters.get_mut(&tag)).filter(|waiter| !waiter.is_ending)?;
        // The end of its init is the end of its pid namespace, and needs nobody between.
        let killed = waiter.init.and_then(|init| self.reaper.kill(init).ok());
        // A launcher that has not heard is asked again by whoever asks next.
        waiter.is_ending = killed.is_some() || self.send(LauncherRequest::End(tag)).is_ok();
        killed
    }

    /// Never waits: callers are on the executor. A launcher that was stopped fills its socket; then a thread waits for it.
    fn send(&self, request: LauncherRequest) -> Result<(), ChannelError> {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if late.sender == Sender::None {
            match channel::send_now(self.socket.as_fd(), &request) {
                Err(ChannelError::Full) => {}
                sent => return sent,
            }
        }
        // What ends something is never one too many.
        let ends = matches!(request, LauncherRequest::End(_) | LauncherRequest::GiveUp(..));
        if late.requests.len() >= REQUESTS_WAITING_MAX && !ends {
            return Err(ChannelError::Full);
        }
        late.requests.push_back(request);
        if late.sender == Sender::None {
            let (socket, queue) = (Arc::clone(&self.socket), Arc::clone(&self.late));
            let sender = std::thread::Builder::new().name("launcher-late".into());
            if sender.spawn(move || send_late(&socket, &queue)).is_err() {
                late.requests.pop_back();
                return Err(ChannelError::Full);
            }
            late.sender = Sender::Running;
        }
        Ok(())
    }

    /// Lets the launcher see the end of its socket, which is its own end; the server outlives it.
    pub fn hang_up(&self) {
        self.send(LauncherRequest::ServerStays).ok();
        socket::hang_up(self.socket.as_fd());
    }

    /// Takes what the launcher says until its socket closes, or it can't be understood. In either case it is of no more use.
    pub fn listen(&self) {
        while let Ok(received) = channel::receive::<LauncherMessage>(self.socket.as_fd(), Wait::Yes) {
            self.take(received.message, received.descriptors);
        }
    }

    /// After the launcher's end: everybody who waits learns it by its sender's end, and what the sandboxes held is free as far
    /// as `proof` goes.
    pub fn release(&self, proof: Proof) {
        let waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let leaving = std::mem::take(&mut *self.leaving.lock().unwrap_or_else(PoisonError::into_inner));
        remove_unused(&leaving);
        for Waiter { created, gone, cgroups, held, .. } in waiters.into_values() {
            match proof {
                Proof::AllEnded => {
                    remove_unused(&cgroups);
                    drop(held);
                }
                // A uid range that a process may still have must not be given to another session.
                Proof::Unknown => std::mem::forget(held),
            }
            drop((created, gone));
        }
    }

    /// The launcher removes these groups within milliseconds. Should it end before, they are removed here. Gives how many wait.
    fn leave(&self, cgroups: Vec<PathBuf>) -> usize {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.retain(|group| group.exists());
        leaving.extend(cgroups);
        metrics::gauge!("codebeaker_groups_leaving").set(leaving.len() as f64);
        leaving.len()
    }

    fn take(&self, message: LauncherMessage, mut descriptors: Vec<OwnedFd>) {
        let mut guard = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiters) = guard.as_mut() else { return };
        match message {
            LauncherMessage::Created { sandbox, init } => {
                let Some(waiter) = waiters.get_mut(&sandbox) else { return };
                waiter.init = init;
                let Some(created) = waiter.created.take() else { return };
                if let Some(control) = descriptors.pop() {
                    // When nobody waits any more, `Begun` has asked for its end; the socket closes here.
                    created.send(Ok(control)).ok();
                }
            }
            LauncherMessage::Lost(tag) => {
                if let Some(waiter) = waiters.get_mut(&tag) {
                    waiter.created.take();
                }
            }
            LauncherMessage::Refused(tag, failure) => {
                if let Some(Waiter { created, cgroups, .. }) = waiters.remove(&tag) {
                    self.leave(cgroups);
                    if let Some(created) = created {
                        created.send(Err(failure)).ok();
                    }
                }
            }
            LauncherMessage::Gone { sandbox, status } => {
                if let Some(Waiter { gone, held, cgroups, .. }) = waiters.remove(&sandbox) {
                    self.leave(cgroups);
                    drop(held);
                    gone.send_replace(Some(status));
                }
            }
        }
    }
}

fn names(groups: &[PathBuf]) -> Vec<String> {
    groups.iter().map(|group| group.to_string_lossy().into_owned()).collect()
}

/// Removes groups that nothing was ever in, or nothing is any more.
fn remove_unused(cgroups: &[PathBuf]) {
    if let Err(error) = remove_directories(cgroups) {
        tracing::warn!(error = &error as &dyn std::error::Error, "a control group stays behind");
    }
}

/// Sends what is late until nothing is; a launcher that is gone takes nothing, and needs nothing.
fn send_late(socket: &OwnedFd, queue: &Mutex<Late>) {
    loop {
        let request = {
            let mut late = queue.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(request) = late.requests.pop_front() else {
                late.sender = Sender::None;
                return;
            };
            request
        };
        if let Err(error) = channel::send(socket.as_fd(), &request, &[]) {
            tracing::debug!(%error, "a late request did not reach the launcher");
        }
    }
}

/// A sandbox that is being made. When its maker goes away before it stands, or can't take it, it must not stay.
pub struct Begun {
    client: Arc<LauncherClient>,
    /// Absent once somebody else sees to its end.
    tag: Option<Tag>,
}

impl Begun {
    /// Before the launcher has its groups: they can go once its process has, which the launcher knows.
    pub fn give_up(mut self, groups: Vec<PathBuf>) {
        let Some(tag) = self.tag else { return };
        match self.client.send(LauncherRequest::GiveUp(tag, names(&groups))) {
            Ok(()) => {
                self.tag = None;
                self.client.leave(groups);
            }
            // It has gone, and its processes with it.
            Err(ChannelError::Closed) => remove_unused(&groups),
            // It has not heard: its end is asked for once more by the drop, and the groups go with the launcher's at the latest.
            Err(_) => drop(self.client.leave(groups)),
        }
    }

    fn keep(mut self) {
        self.tag = None;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(tag) = self.tag {
            self.client.send(LauncherRequest::End(tag)).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_that_does_not_read_holds_up_nobody_and_gets_everything_in_order() {
        const REQUESTS: Tag = 5_000;
        let (ours, theirs) = socket::pair().expect("a socket pair");
        let client = LauncherClient::over(ours, Arc::default());
        // If one of these waited, nobody would ever read.
        (1..=REQUESTS).for_each(|tag| client.send(LauncherRequest::End(tag)).expect("it is never one too many"));
        assert_eq!(client.late.lock().expect("no holder panics").sender, Sender::Running, "the control: they do not fit");
        for tag in 1..=REQUESTS {
            let received = channel::receive::<LauncherRequest>(theirs.as_fd(), Wait::Yes).expect("a request");
            assert!(matches!(received.message, LauncherRequest::End(of) if of == tag), "{:?}", received.message);
        }
    }

    #[test]
    fn late_requests_are_bounded_and_end_with_the_launcher() {
        let (ours, theirs) = socket::pair().expect("a socket pair");
        let client = LauncherClient::over(ours, Arc::default());
        let sent = (0..REQUESTS_WAITING_MAX as Tag * 2).take_while(|tag| client.send(begin(*tag)).is_ok()).count();
        assert!((REQUESTS_WAITING_MAX..REQUESTS_WAITING_MAX * 2).contains(&sent), "{sent}");
        assert!(client.send(LauncherRequest::End(1)).is_ok(), "what ends something is sent all the same");
        drop(theirs);
        let over = || client.late.lock().expect("no holder panics").sender == Sender::None;
        let patience = std::time::Duration::from_millis(10);
        assert!(
            (0..1000).any(|_| over() || {
                std::thread::sleep(patience);
                false
            }),
            "the thread ends"
        );
    }

    fn begin(tag: Tag) -> LauncherRequest {
        LauncherRequest::Begin(tag, Birth { namespaces: 0, born_in: None })
    }

    /// A plan without a step.
    fn nothing() -> Plan {
        Plan {
            namespaces: 0,
            born_in: None,
            programs_born_in: None,
            outside: Vec::new(),
            inside: Vec::new(),
            program: Vec::new(),
            start: crate::plan::Start::Copied,
            file_uid: 0,
            file_gid: 0,
        }
    }

    async fn create(client: &Arc<LauncherClient>, cgroups: Vec<PathBuf>) -> Result<Launched, CreateFailure> {
        let begun = Begun { client: Arc::clone(client), tag: Some(1) };
        client.create(begun, nothing(), cgroups, Box::new(())).await
    }

    /// The end of a launcher, also while a process that another test forks holds a copy of its socket.
    fn end(socket: &OwnedFd) {
        rustix::net::shutdown(socket, rustix::net::Shutdown::Both).expect("an own socket");
    }

    #[tokio::test]
    async fn a_sandbox_asked_of_a_launcher_that_is_gone_leaves_no_group() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let (ours, theirs) = socket::pair().expect("a socket pair");
        let client = LauncherClient::over(ours, Arc::default());
        let ask = async |name: &str| {
            let group = parent.path().join(name);
            std::fs::create_dir(&group).expect("an own directory");
            let asked = create(&client, vec![group.clone()]).await;
            assert!(matches!(asked, Err(CreateFailure::LauncherGone)) && !group.exists(), "{name}");
        };
        end(&theirs);
        ask("its socket is closed").await;
        client.release(Proof::AllEnded);
        ask("its end is known").await;
    }

    #[tokio::test]
    async fn one_that_has_begun_is_ended_unless_it_is_given_its_plan() {
        let (ours, theirs) = socket::pair().expect("a socket pair");
        let client = LauncherClient::over(ours, Arc::default());
        let heard = || {
            channel::receive::<LauncherRequest>(theirs.as_fd(), Wait::Yes).map(|received| received.message).expect("a request")
        };
        let birth = Birth { namespaces: 7, born_in: Some("/group".into()) };
        drop(client.begin(birth.clone()).expect("asked"));
        assert!(matches!(heard(), LauncherRequest::Begin(1, begun) if begun == birth));
        assert!(matches!(heard(), LauncherRequest::End(1)), "its maker gave it up");
        let begun = client.begin(birth).expect("asked");
        let created = client.create(begun, nothing(), Vec::new(), Box::new(()));
        let launcher = async {
            assert!(matches!(heard(), LauncherRequest::Begin(2, _)));
            assert!(matches!(heard(), LauncherRequest::Create(request) if request.sandbox == 2));
            let (control, _) = socket::pair().expect("a socket pair");
            client.take(LauncherMessage::Created { sandbox: 2, init: None }, vec![control]);
        };
        let (created, ()) = tokio::join!(created, launcher);
        let Launched { tag, .. } = created.expect("made");
        client.end(tag);
        assert!(matches!(heard(), LauncherRequest::End(2)), "nothing was said before it");
        client.end(tag);
        client.take(LauncherMessage::Gone { sandbox: 2, status: 0 }, Vec::new());
        client.end(tag);
        drop(client.begin(Birth { namespaces: 7, born_in: None }));
        assert!(matches!(heard(), LauncherRequest::Begin(3, _)), "once is enough, and what is gone needs no end");
    }

    #[tokio::test]
    async fn one_whose_init_is_known_is_killed_without_asking_the_launcher() {
        let mut init = std::process::Command::new("sleep").arg("30").spawn().expect("sleep starts");
        let pid = init.id().cast_signed();
        let identity = Identity::of(pid, process::open_pidfd(pid).expect("an own child").as_fd());
        let (ours, theirs) = socket::pair().expect("a socket pair");
        let client = LauncherClient::over(ours, Arc::default());
        let taker = &client;
        let told = |init| async move {
            let (control, _) = socket::pair().expect("a socket pair");
            taker.take(LauncherMessage::Created { sandbox: 1, init }, vec![control]);
        };
        tokio::join!(create(&client, Vec::new()), told(identity)).0.expect("made");
        let heard = || channel::receive::<LauncherRequest>(theirs.as_fd(), Wait::No).map(|received| received.message);
        assert!(matches!(heard(), Ok(LauncherRequest::Create(_))));
        let killed = client.end(1);
        // Linux 6.1 has no such identities.
        assert_eq!(killed.is_some(), identity.is_some());
        match killed {
            Some(killed) => killed.ended().await.expect("a pidfd can be watched"),
            None => init.kill().expect("an own child"),
        }
        assert_eq!(matches!(heard(), Ok(LauncherRequest::End(1))), identity.is_none());
        assert!(client.end(1).is_none(), "once is enough");
        assert!(matches!(heard(), Err(ChannelError::Empty)));
        init.wait().expect("an own child");
        // One that was reaped is left to the launcher, which has to say so anyway.
        tokio::join!(create(&client, Vec::new()), told(identity)).0.expect("made");
        assert!(matches!(heard(), Ok(LauncherRequest::Create(_))));
        assert!(client.end(1).is_none());
        assert!(matches!(heard(), Ok(LauncherRequest::End(1))));
    }

    #[test]
    fn nothing_is_made_while_too_many_groups_wait_to_be_removed() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let (ours, theirs) = socket::pair().expect("a socket pair");
        let client = LauncherClient::over(ours, Arc::default());
        let leaving = parent.path().join("leaving");
        std::fs::create_dir(&leaving).expect("an own directory");
        client.leave(vec![leaving.clone(); GROUPS_LEAVING_MAX]);
        let begin = || client.begin(Birth { namespaces: 0, born_in: None }).map(drop);
        assert!(matches!(begin(), Err(CreateFailure::Backlog)));
        std::fs::remove_dir(&leaving).expect("an own directory");
        assert!(begin().is_ok(), "the control: it is asked once they are gone");
        end(&theirs);
        assert!(matches!(begin(), Err(CreateFailure::LauncherGone)));
    }

    #[test]
    fn one_that_is_given_up_has_its_groups_removed_by_the_launcher_or_when_that_is_gone() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let (ours, theirs) = socket::pair().expect("a socket pair");
        let client = LauncherClient::over(ours, Arc::default());
        let group = parent.path().join("group");
        let begin = || {
            std::fs::create_dir(&group).expect("an own directory");
            client.begin(Birth { namespaces: 0, born_in: None }).expect("asked")
        };
        begin().give_up(vec![group.clone()]);
        let heard = || channel::receive::<LauncherRequest>(theirs.as_fd(), Wait::Yes).map(|received| received.message);
        assert!(matches!(heard(), Ok(LauncherRequest::Begin(1, _))));
        let LauncherRequest::GiveUp(1, groups) = heard().expect("a request") else { panic!("it is given up") };
        assert!(groups == [group.to_string_lossy()] && group.exists(), "a process may be in it");
        std::fs::remove_dir(&group).expect("an own directory");
        let begun = begin();
        end(&theirs);
        begun.give_up(vec![group.clone()]);
        assert!(!group.exists());
    }

    #[test]
    fn groups_that_a_launcher_left_behind_are_removed_after_its_end() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let group = parent.path().join("group");
        std::fs::create_dir(&group).expect("an own directory");
        let (ours, _theirs) = socket::pair().expect("a socket pair");
        let client = LauncherClient::over(ours, Arc::default());
        client.leave(vec![group.clone()]);
        client.leave(Vec::new());
        assert!(group.exists(), "while the launcher lives it is the launcher's work");
        client.release(Proof::AllEnded);
        assert!(!group.exists());
    }
}
