//! What the store is asked. One request at a time: each is decided on what the one before it found.

use std::time::Duration;

use weft_cni::ip::Subnet;

use super::claim::Claim;
use super::{Link, Machine, Phase};
use crate::cluster::finding::Code;
use crate::cluster::record::NodeRecord;
use crate::cluster::{Now, Output};
use crate::store::{
    CONFIG, KeyValue, Listing, Op, Reply, StoreError, StoreReply, StoreRequest, Txn, TxnOutcome,
};

/// What the request in flight is for.
#[derive(Clone, Debug)]
pub(super) enum Task {
    /// Read the own keys.
    Verify,
    CreateConfig,
    KeepSession,
    EndSession,
    /// Read the own record and blocks, to write them in a way that depends on what is there.
    ReadFor(Rewrite),
    /// Write the own record, alone or with blocks.
    Write(Box<NodeRecord>),
    Claim(Box<NodeRecord>, Vec<Claim>),
    ListBlocks,
    RetireOrphan(Subnet),
    /// Have everything that is followed listed again.
    Relist,
}

impl Task {
    /// Whether it changes something in the store.
    fn is_write(&self) -> bool {
        match self {
            Self::CreateConfig
            | Self::KeepSession
            | Self::EndSession
            | Self::Write(_)
            | Self::Claim(..)
            | Self::RetireOrphan(_) => true,
            Self::Verify | Self::ReadFor(_) | Self::ListBlocks | Self::Relist => false,
        }
    }
}

/// Why the own record is written together with blocks that must be looked at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rewrite {
    /// Another instance had this name: its blocks are retired.
    TakeOver,
    /// The store forgot what this node had.
    Reassert,
    /// These are given back.
    Release(Vec<Subnet>),
    /// This node was removed, and has no pods any more.
    Acknowledge,
}

#[derive(Debug)]
struct InFlight {
    id: u64,
    task: Task,
    /// What was known when it was asked: the answer cannot be older.
    revision: i64,
    /// When it was asked: what the answer proves, it proves for then.
    asked: Now,
}

/// One request at a time, with pauses after failures.
#[derive(Debug)]
pub(super) struct Lane {
    next: u64,
    in_flight: Option<InFlight>,
    not_before: Duration,
    failures: u32,
    random: u64,
}

impl Lane {
    pub(super) fn new(seed: &[u8; 32]) -> Self {
        let random = seed.iter().skip(8).take(8).fold(1, |random, byte| random << 8 | u64::from(*byte));
        Self { next: 1, in_flight: None, not_before: Duration::ZERO, failures: 0, random: random | 1 }
    }

    pub(super) fn not_before(&self) -> Option<Duration> {
        self.in_flight.is_none().then_some(self.not_before)
    }

    pub(super) fn idle(&self) -> bool {
        self.in_flight.is_none()
    }

    /// The store is back: no reason to wait any more.
    pub(super) fn relax(&mut self) {
        (self.failures, self.not_before) = (0, Duration::ZERO);
    }

    /// A number below `below` that other nodes do not have.
    pub(super) fn jitter(&mut self, below: Duration) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let millis = u64::try_from(below.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.random.checked_rem(millis).unwrap_or(0))
    }

    /// A pause that doubles up to `most`, cut by up to a half so that nodes do not come back all at once.
    fn back_off(&mut self, now: Duration, least: Duration, most: Duration) {
        self.failures = (self.failures + 1).min(16);
        let full = least.saturating_mul(1 << (self.failures - 1).min(10)).min(most);
        self.not_before = now + full - self.jitter(full / 2);
    }

    /// The record that is being written, if one is.
    pub(super) fn writing(&self) -> Option<&NodeRecord> {
        match &self.in_flight.as_ref()?.task {
            Task::Write(record) | Task::Claim(record, _) => Some(record),
            Task::Verify
            | Task::CreateConfig
            | Task::KeepSession
            | Task::EndSession
            | Task::ReadFor(_)
            | Task::Relist
            | Task::RetireOrphan(_)
            | Task::ListBlocks => None,
        }
    }
}

impl Machine {
    /// Asks for the most urgent thing, if nothing is being asked.
    pub(super) fn drive(&mut self) {
        let may = self.lane.idle() && self.link == Link::Up && self.now.boot >= self.lane.not_before;
        if !may || self.exited || self.stopping {
            return;
        }
        match self.next_task() {
            Some((task, op)) => self.ask(task, op),
            // What was refused is not wanted any more.
            None => self.refusal_over(),
        }
    }

    pub(super) fn ask(&mut self, task: Task, op: Op) {
        let id = self.lane.next;
        self.lane.next += 1;
        self.lane.in_flight = Some(InFlight { id, task, revision: self.revision, asked: self.now });
        self.out.push_back(Output::Store(StoreRequest { id, op }));
    }

    fn next_task(&mut self) -> Option<(Task, Op)> {
        if self.relist {
            self.listing_floor = self.revision;
            return Some((Task::Relist, Op::Relist));
        }
        if self.verify {
            return Some((Task::Verify, Op::Read(self.verify_keys())));
        }
        match self.phase {
            Phase::Starting if self.lacks_config() => self.create_config(),
            Phase::Starting | Phase::Member if self.unreadable => None,
            Phase::Starting => self.next_to_stand().or_else(|| Some(self.next_to_join())),
            Phase::Member => self.next_to_stand().or_else(|| self.next_as_member()),
            Phase::Waiting { .. } => None,
            Phase::Removed | Phase::Superseded => self.next_to_leave(),
        }
    }

    /// Whether there is no configuration to join by, or this node's own is to be the cluster's.
    fn lacks_config(&self) -> bool {
        let creates = self.network_revision == 0 && self.facts.init && self.rewritten.is_none();
        self.network.is_none() || creates
    }

    /// What one that takes part needs before anything else: a session, and a store that knows what it has.
    fn next_to_stand(&self) -> Option<(Task, Op)> {
        if !self.session_held {
            return Some(self.keep_session());
        }
        self.must_reassert().then(|| self.read_for(Rewrite::Reassert))
    }

    fn next_to_join(&self) -> (Task, Op) {
        if self.foreign.is_some() { self.read_for(Rewrite::TakeOver) } else { self.join() }
    }

    fn next_as_member(&mut self) -> Option<(Task, Op)> {
        if let Some(write) = self.publish_addresses() {
            return Some(write);
        }
        let released = self.to_release();
        if !released.is_empty() {
            return Some(self.read_for(Rewrite::Release(released)));
        }
        self.next_claim()
    }

    fn next_to_leave(&mut self) -> Option<(Task, Op)> {
        if self.session_held && !self.session_over {
            self.session_over = true;
            return Some((Task::EndSession, Op::EndSession));
        }
        self.to_acknowledge().then(|| self.read_for(Rewrite::Acknowledge))
    }

    pub(super) fn end_session(&mut self) {
        let id = self.lane.next;
        self.lane.next += 1;
        self.out.push_back(Output::Store(StoreRequest { id, op: Op::EndSession }));
    }

    pub(super) fn replied(&mut self, reply: StoreReply) {
        let Some(flight) = self.lane.in_flight.take_if(|flight| flight.id == reply.id) else { return };
        match reply.result {
            Ok(answer) => {
                self.lane.failures = 0;
                self.asked = flight.asked;
                if self.link == Link::Up && (flight.task.is_write() || !self.refused_write) {
                    self.refusal_over();
                }
                self.answered(flight, answer);
            }
            Err(error) => self.failed(&flight.task, &error),
        }
    }

    fn refusal_over(&mut self) {
        self.refused_write = false;
        self.clear(Code::StoreRefuses, "");
    }

    fn answered(&mut self, flight: InFlight, reply: Reply) {
        match (flight.task, reply) {
            (Task::Verify, Reply::Read { revision, items }) => {
                self.verified(revision, flight.revision, items)
            }
            (Task::ReadFor(why), Reply::Read { revision, items }) => {
                if self.fresh(revision, flight.revision) {
                    self.rewrite(why, &items);
                }
            }
            (Task::CreateConfig, Reply::Txn(_)) => self.verify = true,
            (Task::KeepSession, Reply::Txn(outcome)) => self.session_answered(&outcome),
            (Task::Write(record), Reply::Txn(outcome)) => {
                self.written(*record, &outcome, flight.revision);
            }
            (Task::Claim(record, claims), Reply::Txn(outcome)) => {
                self.claimed(*record, &claims, outcome, flight.revision);
            }
            (Task::ListBlocks, Reply::Listing(listing)) => self.blocks_listed(listing, flight.revision),
            (Task::EndSession, _) => self.session_held = false,
            (Task::Relist, _) => self.relist = false,
            (Task::RetireOrphan(block), _) => self.orphan_retired(&block),
            // The store answered another question than was asked: believe nothing.
            (
                Task::Verify
                | Task::ReadFor(_)
                | Task::CreateConfig
                | Task::KeepSession
                | Task::Write(_)
                | Task::Claim(..)
                | Task::ListBlocks,
                Reply::Read { .. } | Reply::Listing(_) | Reply::Txn(_) | Reply::Done,
            ) => self.verify = true,
        }
    }

    fn blocks_listed(&mut self, listing: Listing, asked_at: i64) {
        if self.fresh(listing.revision, asked_at) {
            self.learn_blocks(listing.items);
        }
    }

    /// Whether an answer is not older than what was known when it was asked for.
    pub(super) fn fresh(&mut self, revision: i64, asked_at: i64) -> bool {
        if revision < asked_at {
            self.verify = true;
            return false;
        }
        self.revision = self.revision.max(revision);
        true
    }

    /// The own record was written, or was not what it was thought to be. Whether it was.
    pub(super) fn written(&mut self, record: NodeRecord, outcome: &TxnOutcome, asked_at: i64) -> bool {
        match outcome {
            TxnOutcome::Committed { revision } if *revision > asked_at => {
                self.revision = self.revision.max(*revision);
                self.own_stands(record, *revision);
                true
            }
            // Committed into an older history, or a compare did not hold: what stands there tells.
            TxnOutcome::Committed { .. } | TxnOutcome::Conflict { .. } => {
                self.verify = true;
                false
            }
        }
    }

    fn failed(&mut self, task: &Task, error: &StoreError) {
        let now = self.now.boot;
        let (short, long) = (Duration::from_millis(500), Duration::from_secs(5));
        match error {
            StoreError::UnknownOutcome { .. } => {
                self.verify = true;
                self.lane.back_off(now, Duration::from_millis(100), long);
            }
            StoreError::Unavailable { .. } | StoreError::Compacted { .. } => {
                self.lane.back_off(now, short, 3 * long)
            }
            StoreError::Refused { reason } => {
                self.refused_write = task.is_write();
                self.find_refusal(reason);
                self.lane.back_off(now, long, 12 * long);
            }
            StoreError::NoSpace { reason } => {
                self.find_full(reason);
                self.lane.back_off(now, long, 12 * long);
            }
        }
        if matches!(task, Task::KeepSession | Task::EndSession) {
            self.verify = true;
        }
        if matches!(task, Task::Claim(..) | Task::ListBlocks) {
            self.refuse_needs(&format!("a block could not be claimed: {error}"));
        }
    }
}

/// One of the items that were read.
pub(super) fn item<'a>(items: &'a [(String, Option<KeyValue>)], key: &str) -> Option<&'a KeyValue> {
    items.iter().find(|(name, _)| name == key).and_then(|(_, item)| item.as_ref())
}

/// The configuration as a compare: a claim counts only under the configuration it was made for.
pub(super) fn config_compare(revision: i64) -> crate::store::Compare {
    crate::store::Compare { key: CONFIG.to_owned(), expect: crate::store::Expect::ModRevision(revision) }
}

/// A transaction as an operation.
pub(super) fn txn(txn: Txn) -> Op {
    Op::Txn(txn)
}
