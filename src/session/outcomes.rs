//! What became of each execution, for `execution.status`.
//!
//! Invariants: a queued or running execution is never forgotten; one that ended stays for `remember_s`, within
//! `outcomes_max` and `outcome_bytes_max` per principal (the oldest go first); nobody sees another principal's.
//! Read `ticket` next, which writes here.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::command::{CommandOutput, CommandResult};
use crate::config::SessionConfig;
use crate::id::{ExecutionId, SessionId};

use super::api::{ExecutionStatus, Principal};
use super::locked;

/// The outcomes of all principals.
pub(super) struct Outcomes {
    shelves: Mutex<HashMap<Principal, Shelf>>,
    remember: Duration,
    kept_max: usize,
    bytes_max: u64,
}

/// Those of one principal.
#[derive(Default)]
struct Shelf {
    entries: HashMap<ExecutionId, Entry>,
    /// Those that ended, oldest first.
    ended: VecDeque<(Instant, ExecutionId, u64)>,
    ended_bytes: u64,
}

struct Entry {
    /// Absent for `execution.run`.
    session: Option<SessionId>,
    status: ExecutionStatus,
}

impl Outcomes {
    /// With the bounds of the configuration.
    pub(super) fn new(config: &SessionConfig) -> Self {
        Self {
            shelves: Mutex::default(),
            remember: Duration::from_secs(config.remember_s),
            kept_max: config.outcomes_max as usize,
            bytes_max: config.outcome_bytes_max,
        }
    }

    /// The execution was accepted; a second call for the same id changes nothing.
    pub(super) fn queued(&self, principal: &Principal, execution: &ExecutionId, session: Option<&SessionId>) {
        let mut shelves = locked(&self.shelves);
        let shelf = shelves.entry(principal.clone()).or_default();
        shelf
            .entries
            .entry(execution.clone())
            .or_insert_with(|| Entry { session: session.cloned(), status: ExecutionStatus::Queued });
    }

    /// The execution was taken off its queue.
    pub(super) fn running(&self, principal: &Principal, execution: &ExecutionId) {
        let mut shelves = locked(&self.shelves);
        if let Some(entry) = shelves.get_mut(principal).and_then(|shelf| shelf.entries.get_mut(execution)) {
            entry.status = ExecutionStatus::Running;
        }
    }

    /// The execution ended. What file commands gave is not kept: `execution.status` has no place for it.
    pub(super) fn ended(&self, principal: &Principal, result: &CommandResult) {
        let (output, bytes) = match &result.output {
            Some(CommandOutput::Execution(report)) => {
                let bytes = report.stdout.data.len() + report.stderr.data.len();
                (result.output.clone(), bytes as u64)
            }
            Some(
                CommandOutput::Written { .. }
                | CommandOutput::Read { .. }
                | CommandOutput::DirectoryCreated { .. }
                | CommandOutput::Copied { .. }
                | CommandOutput::Deleted { .. }
                | CommandOutput::Listing { .. }
                | CommandOutput::Started,
            )
            | None => (None, 0),
        };
        let kept = CommandResult {
            execution_id: result.execution_id.clone(),
            output,
            failure: result.failure.clone(),
            duration: result.duration,
        };
        self.settle(principal, &result.execution_id, ExecutionStatus::Ended(Box::new(kept)), bytes);
    }

    /// The execution never started.
    pub(super) fn refused(&self, principal: &Principal, execution: &ExecutionId, sentence: String) {
        let bytes = sentence.len() as u64;
        self.settle(principal, execution, ExecutionStatus::Refused(sentence), bytes);
    }

    fn settle(&self, principal: &Principal, execution: &ExecutionId, status: ExecutionStatus, bytes: u64) {
        let mut shelves = locked(&self.shelves);
        let shelf = shelves.entry(principal.clone()).or_default();
        let Some(entry) = shelf.entries.get_mut(execution) else { return };
        entry.status = status;
        shelf.ended.push_back((Instant::now(), execution.clone(), bytes));
        shelf.ended_bytes += bytes;
        // The newest always stays, however large: its caller is about to ask for it.
        while shelf.ended.len() > self.kept_max.max(1) || (shelf.ended_bytes > self.bytes_max && shelf.ended.len() > 1) {
            shelf.forget_oldest();
        }
    }

    /// What is known of it.
    pub(super) fn status(&self, principal: &Principal, execution: &ExecutionId) -> ExecutionStatus {
        let mut shelves = locked(&self.shelves);
        let Some(shelf) = shelves.get_mut(principal) else { return ExecutionStatus::NotFound };
        shelf.forget_before(Instant::now(), self.remember);
        shelf.entries.get(execution).map_or(ExecutionStatus::NotFound, |entry| entry.status.clone())
    }

    /// Outcomes of the principal that has most of them.
    #[cfg(test)]
    pub(super) fn ended_kept(&self) -> usize {
        locked(&self.shelves).values().map(|shelf| shelf.ended.len()).max().unwrap_or(0)
    }

    /// Whether the execution was one of that session's.
    pub(super) fn belongs(&self, principal: &Principal, execution: &ExecutionId, session: &SessionId) -> bool {
        let shelves = locked(&self.shelves);
        shelves
            .get(principal)
            .and_then(|shelf| shelf.entries.get(execution))
            .is_some_and(|entry| entry.session.as_ref() == Some(session))
    }

    /// Forgets what is older than `remember_s`.
    pub(super) fn purge(&self) {
        let now = Instant::now();
        locked(&self.shelves).retain(|_, shelf| {
            shelf.forget_before(now, self.remember);
            !shelf.entries.is_empty()
        });
    }
}

impl Shelf {
    fn forget_oldest(&mut self) {
        if let Some((_, execution, bytes)) = self.ended.pop_front() {
            self.entries.remove(&execution);
            self.ended_bytes -= bytes;
        }
    }

    fn forget_before(&mut self, now: Instant, remember: Duration) {
        while self.ended.front().is_some_and(|(at, ..)| now.duration_since(*at) >= remember) {
            self.forget_oldest();
        }
    }
}

/// A writer for one principal's outcomes.
#[derive(Clone)]
pub(super) struct OutcomeWriter {
    outcomes: Arc<Outcomes>,
    principal: Principal,
}

impl OutcomeWriter {
    pub(super) fn new(outcomes: Arc<Outcomes>, principal: Principal) -> Self {
        Self { outcomes, principal }
    }

    pub(super) fn queued(&self, execution: &ExecutionId, session: &SessionId) {
        self.outcomes.queued(&self.principal, execution, Some(session));
    }

    pub(super) fn running(&self, execution: &ExecutionId) {
        self.outcomes.running(&self.principal, execution);
    }

    pub(super) fn ended(&self, result: &CommandResult) {
        self.outcomes.ended(&self.principal, result);
    }

    pub(super) fn belongs(&self, execution: &ExecutionId, session: &SessionId) -> bool {
        self.outcomes.belongs(&self.principal, execution, session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::ExecutionReport;
    use crate::session::tests::simulated::plain_result;

    fn one() -> (Principal, ExecutionId) {
        (Principal("a".into()), ExecutionId::random())
    }

    fn outcomes(outcomes_max: u32, outcome_bytes_max: u64) -> Outcomes {
        Outcomes::new(&SessionConfig { outcomes_max, outcome_bytes_max, ..SessionConfig::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn an_outcome_is_remembered_for_its_time_and_a_running_one_for_ever() {
        let outcomes = outcomes(10, 1 << 20);
        let (principal, ended) = one();
        let (_, running) = one();
        outcomes.queued(&principal, &ended, None);
        outcomes.queued(&principal, &running, None);
        outcomes.running(&principal, &running);
        outcomes.ended(&principal, &plain_result(&ended));
        tokio::time::advance(Duration::from_secs(3599)).await;
        outcomes.purge();
        assert!(matches!(outcomes.status(&principal, &ended), ExecutionStatus::Ended(_)));
        tokio::time::advance(Duration::from_secs(1)).await;
        outcomes.purge();
        assert_eq!(outcomes.status(&principal, &ended), ExecutionStatus::NotFound);
        assert_eq!(outcomes.status(&principal, &running), ExecutionStatus::Running);
    }

    #[tokio::test]
    async fn past_the_bound_the_oldest_ended_one_goes_and_no_queued_one() {
        let outcomes = outcomes(3, 1 << 20);
        let (principal, waiting) = one();
        outcomes.queued(&principal, &waiting, None);
        let ids: Vec<_> = (0..4).map(|_| ExecutionId::random()).collect();
        for id in &ids {
            outcomes.queued(&principal, id, None);
            outcomes.ended(&principal, &plain_result(id));
        }
        assert_eq!(outcomes.status(&principal, &ids[0]), ExecutionStatus::NotFound);
        assert!(matches!(outcomes.status(&principal, &ids[1]), ExecutionStatus::Ended(_)));
        assert_eq!(outcomes.status(&principal, &waiting), ExecutionStatus::Queued);
    }

    #[tokio::test]
    async fn past_the_bound_in_bytes_the_oldest_goes_and_the_newest_stays_however_large() {
        let outcomes = outcomes(10, 100);
        let (principal, _) = one();
        let ids: Vec<_> = (0..3).map(|_| ExecutionId::random()).collect();
        for (id, bytes) in ids.iter().zip([60, 60, 600]) {
            outcomes.queued(&principal, id, None);
            let mut report = ExecutionReport::default();
            report.stdout.data = vec![b'x'; bytes];
            outcomes.ended(&principal, &CommandResult { output: Some(CommandOutput::Execution(report)), ..plain_result(id) });
            assert!(matches!(outcomes.status(&principal, id), ExecutionStatus::Ended(_)), "{bytes}");
        }
        assert_eq!(outcomes.status(&principal, &ids[0]), ExecutionStatus::NotFound);
        assert_eq!(outcomes.status(&principal, &ids[1]), ExecutionStatus::NotFound);
    }

    #[tokio::test]
    async fn another_principal_sees_nothing() {
        let outcomes = outcomes(3, 1 << 20);
        let (principal, id) = one();
        outcomes.queued(&principal, &id, None);
        assert_eq!(outcomes.status(&principal, &id), ExecutionStatus::Queued);
        assert_eq!(outcomes.status(&Principal("b".into()), &id), ExecutionStatus::NotFound);
    }
}
