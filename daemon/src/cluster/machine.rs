//! The machine of one node. It holds what is known and decides what to do next; its parts, by what they are about:
//! `watch` (what the store reports), `lane` (what it is asked, one thing at a time), `own` and `join` (this node's
//! record), `recover` (a rewritten store), `claim`, `returns` and `needs` (blocks), `local` (the plugin's folders),
//! `publish` (what others hear).

mod claim;
mod join;
mod lane;
mod local;
mod needs;
mod own;
mod publish;
mod recover;
mod returns;
mod status;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use weft_cni::ip::{IfAddr, Subnet};
use weft_overlay::wanted::Wanted;

use self::claim::Claims;
use self::lane::Lane;
use self::local::Local;
use self::recover::Rewritten;
pub use self::status::Status;
use super::conf;
use super::finding::{Code, Finding, FindingChange};
use super::identity::{self, Identity};
use super::memory::{Memory, Moment, Snapshot};
use super::peers::Peers;
use super::record::{Network, NodeRecord};
use super::{ADDRESS_HOLD, Input, Now, Output, Refusal, StartFacts};
use crate::store::Resume;

/// Whether the store is there.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Link {
    /// Not since this start, or not any more, for this reason.
    Down {
        reason: String,
        /// It is there, and refuses this node.
        refused: bool,
    },
    Up,
}

/// How far this node takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Its record was not read yet, or it did not join yet.
    Starting,
    /// Another machine runs under this name: until its session ends, or this time comes.
    Waiting { until: Duration, look_again: Duration },
    /// It is in the cluster.
    Member,
    /// Its record is a tombstone.
    Removed,
    /// Another machine took its name over.
    Superseded,
}

/// The own record as it stands in the store.
#[derive(Clone, Debug)]
struct Own {
    record: NodeRecord,
    mod_revision: i64,
}

/// One node's part in the cluster.
pub struct Machine {
    facts: StartFacts,
    me: Identity,
    started: Now,
    now: Now,
    out: VecDeque<Output>,
    findings: BTreeMap<(Code, String), Finding>,

    network: Option<Arc<Network>>,
    /// Of `config` in the store; 0 if it is not there.
    network_revision: i64,
    peers: Peers,
    /// Peers whose key vanished, and when they go; `None`: when a person says so.
    vanished: BTreeMap<Arc<str>, Option<Duration>>,
    vanishing: BTreeSet<(Duration, Arc<str>)>,

    link: Link,
    cluster: u64,
    /// The highest that was seen in the store's present history.
    revision: i64,
    /// What was known when a listing may have begun: it cannot be older. This node's own writes go on meanwhile.
    listing_floor: i64,
    /// All of `n/` is known as it is now.
    complete: bool,
    /// Everything is to be listed again, now or then.
    relist: bool,
    relist_at: Option<Duration>,
    /// What is known comes from a snapshot of an earlier run, and whether the store still has that history.
    resumed: Option<Resumed>,
    contact: Option<Moment>,
    /// When the own keys were last read.
    verified_at: Duration,
    /// When the request was made that is being answered.
    asked: Now,

    phase: Phase,
    /// The own keys must be read before anything else is done.
    verify: bool,
    /// The store showed a lower revision once; twice is proof.
    suspect: bool,
    own: Option<Own>,
    /// There is a record of this name that was not ours when it was read: its revision.
    foreign: Option<Own>,
    /// The own key holds something that cannot be read.
    unreadable: bool,
    /// What this node last said.
    memory: Option<NodeRecord>,
    /// It was a write that the store refused: that it answers reads proves nothing.
    refused_write: bool,
    session_held: bool,
    session_over: bool,
    /// What stands in the own session's key when it may be replaced.
    session_revision: i64,
    rewritten: Option<Rewritten>,
    published: Held<Vec<IfAddr>>,

    lane: Lane,
    claims: Claims,
    local: Local,
    needs: Vec<u64>,
    ready: bool,
    exited: bool,
    stopping: bool,

    wanted: Option<Arc<Wanted>>,
    /// The first order waits for this node's first block, until then.
    first_order_by: Option<Duration>,
    touched: BTreeSet<Arc<str>>,
    all_touched: bool,
    snapshot_due: Option<Duration>,
    snapshot_written: Option<Duration>,
    memory_written: Option<Duration>,
}

/// A following that began at a cached snapshot.
#[derive(Clone, Copy, Debug)]
struct Resumed {
    /// The snapshot's revision.
    from: i64,
    /// The newest node of it stands in the store as it was.
    witnessed: bool,
    /// What the watch has to reach.
    catch_up: Option<i64>,
    /// When it is listed anew all the same.
    patience: Duration,
}

/// A value that counts once it has held for a while.
#[derive(Clone, Debug)]
struct Held<T> {
    value: T,
    since: Duration,
}

impl Machine {
    /// A node that starts.
    ///
    /// # Errors
    /// Why it must not start, and the way out.
    pub fn new(mut facts: StartFacts, now: Now) -> Result<Self, Refusal> {
        let me = identity::decide(&facts)?;
        if let (true, Some(asked)) = (facts.init, &facts.asked) {
            conf::create(asked).map_err(|problems| Refusal {
                sentence: "this node's file is no configuration of a cluster".to_owned(),
                details: problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            })?;
        }
        let memory = facts.memory.take().map(|bytes| Memory::parse(&bytes));
        let snapshot = facts.snapshot.take().map(|bytes| Snapshot::parse(&bytes));
        let mut machine = Self::empty(facts, me, now);
        machine.note_identity();
        match memory {
            Some(Ok(memory)) => machine.remember(memory),
            Some(Err(error)) => machine.raise_garbage("memory", &error),
            None => {}
        }
        match snapshot {
            Some(Ok(snapshot)) => machine.restore(snapshot),
            Some(Err(error)) => machine.raise_garbage("snapshot", &error),
            None => {}
        }
        machine.local.start(&machine.facts.local.clone());
        let resume =
            machine.resumed.map(|resumed| Resume { revision: resumed.from, cluster: machine.cluster });
        machine.out.push_back(Output::Follow(resume));
        machine.settle();
        Ok(machine)
    }

    fn empty(facts: StartFacts, me: Identity, now: Now) -> Self {
        let node = facts.node.clone();
        Self {
            lane: Lane::new(&facts.seed),
            claims: Claims::new(&node),
            published: Held { value: facts.published.clone(), since: Duration::ZERO },
            me,
            started: now,
            now,
            out: VecDeque::new(),
            findings: BTreeMap::new(),
            network: None,
            network_revision: 0,
            peers: Peers::new(node),
            vanished: BTreeMap::new(),
            vanishing: BTreeSet::new(),
            link: Link::Down { reason: "it was not reached yet".to_owned(), refused: false },
            cluster: 0,
            revision: 0,
            listing_floor: 0,
            complete: false,
            relist: false,
            relist_at: None,
            resumed: None,
            contact: None,
            verified_at: now.boot,
            asked: now,
            phase: Phase::Starting,
            verify: true,
            suspect: false,
            own: None,
            foreign: None,
            unreadable: false,
            memory: None,
            refused_write: false,
            session_held: false,
            session_over: false,
            session_revision: 0,
            rewritten: None,
            local: Local::default(),
            needs: Vec::new(),
            ready: false,
            exited: false,
            stopping: false,
            wanted: None,
            first_order_by: None,
            touched: BTreeSet::new(),
            all_touched: true,
            snapshot_due: None,
            snapshot_written: None,
            memory_written: None,
            facts,
        }
    }

    fn note_identity(&mut self) {
        if self.me.write {
            let file = self.me.file(&self.facts.machine_id, &self.facts.node);
            self.out.push_back(Output::PersistIdentity { file, run: self.me.instance.clone() });
        }
        if let Some(finding) = self.me.finding.take() {
            self.raise(finding);
        }
    }

    /// What this node last said counts if it is about this very instance.
    fn remember(&mut self, memory: Memory) {
        if memory.record.instance != self.me.instance || memory.record.name != self.facts.node {
            return;
        }
        (self.cluster, self.revision) = (memory.cluster, memory.revision);
        self.contact = Some(memory.contact);
        self.touched.extend(self.peers.set_own(&memory.record.blocks));
        self.memory = Some(memory.record);
    }

    fn restore(&mut self, snapshot: Snapshot) {
        let same = self.cluster == 0 || self.cluster == snapshot.cluster;
        if !same {
            return;
        }
        self.cluster = snapshot.cluster;
        self.network = Some(Arc::new(snapshot.network));
        self.network_revision = snapshot.config_revision;
        if let Some(network) = &self.network {
            self.peers.set_network(network.clone());
        }
        let again = self.now.boot + super::VANISHED_AFTER;
        for (name, entry) in snapshot.nodes.into_iter().filter(|(name, _)| *name != self.facts.node) {
            if entry.gone {
                self.vanished.insert(name.clone(), Some(again));
                self.vanishing.insert((again, name.clone()));
            }
            self.peers.restore(name, entry);
        }
        self.resume_recovery();
        // The memory may be newer than the snapshot; events are wanted from the snapshot on.
        self.revision = self.revision.max(snapshot.revision);
        let patience = self.now.boot + super::OFFLINE_AFTER;
        let from = snapshot.revision;
        self.resumed = Some(Resumed { from, witnessed: false, catch_up: None, patience });
    }

    /// Takes note of what happened and decides.
    pub fn handle(&mut self, input: Input, now: Now) {
        self.now = now;
        if self.exited {
            return;
        }
        match input {
            Input::Store(reply) => self.replied(reply),
            Input::Watch(report) => self.reported(report),
            Input::LocalUse(blocks) => self.local.observe(&blocks),
            Input::NeedBlock { id } => self.needs.push(id),
            Input::GrantDone { block, result } => self.granted(block, result),
            Input::QuarantineDone { block, result } => self.quarantined(block, result),
            Input::WithdrawDone { block, result } => self.withdrawn(block, &result),
            Input::Published(addresses) => {
                if self.published.value != addresses {
                    self.published = Held { value: addresses, since: now.boot };
                }
            }
            Input::AcceptHistory => self.accept_history(),
            Input::NewLogin => self.lane.relax(),
            Input::Tick => {}
            Input::Stop => self.stop(),
        }
        self.settle();
    }

    /// The next thing to do; `None` when there is nothing more.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.write_memory();
        self.write_snapshot();
        if self.session_held {
            self.end_session();
        }
    }

    /// Level-triggered: from what is known to what should be, however it came about.
    fn settle(&mut self) {
        if self.exited || self.stopping {
            return;
        }
        self.expire();
        self.plan_return();
        self.publish_wanted();
        self.drive();
        self.reconcile();
        self.answer_needs();
        self.drive();
        self.publish();
    }

    /// What time alone brings about.
    fn expire(&mut self) {
        while let Some((at, name)) = self.vanishing.first().cloned() {
            if at > self.now.boot {
                break;
            }
            self.vanishing.remove(&(at, name.clone()));
            self.forget(&name);
        }
        if let Phase::Waiting { until, look_again } = self.phase
            && self.now.boot >= look_again
        {
            let look_again = self.now.boot + Duration::from_secs(5);
            self.phase = Phase::Waiting { until, look_again };
            self.verify = true;
        }
        if self.resumed.is_some_and(|resumed| !self.complete && self.now.boot >= resumed.patience)
            && self.link == Link::Up
        {
            self.follow_anew();
        }
        if self.relist_at.is_some_and(|at| self.now.boot >= at) {
            (self.relist, self.relist_at) = (true, None);
        }
        if self.phase == Phase::Member && self.contact_due().is_some_and(|at| self.now.boot >= at) {
            self.verify = true;
        }
        self.check_age();
        self.end_recovery();
    }

    /// Lists everything again: what is known may be of another history.
    fn follow_anew(&mut self) {
        self.resumed = None;
        self.complete = false;
        self.relist = true;
    }

    /// The wall clock as far as it can be believed when being early does harm: a jump forward does not count.
    fn cautious_wall(&self) -> SystemTime {
        self.now.wall.min(self.elapsed_wall())
    }

    /// The wall clock when being late does harm.
    fn generous_wall(&self) -> SystemTime {
        self.now.wall.max(self.elapsed_wall())
    }

    fn elapsed_wall(&self) -> SystemTime {
        self.started.wall + self.now.boot.saturating_sub(self.started.boot)
    }

    /// When [`Input::Tick`] is due if nothing else happens.
    pub fn next_timeout(&self) -> Option<Now> {
        if self.exited || self.stopping {
            return None;
        }
        let boot = self.timers().into_iter().flatten().filter(|at| *at > self.now.boot).min()?;
        Some(Now { boot, wall: self.now.wall + boot.saturating_sub(self.now.boot) })
    }

    fn timers(&self) -> Vec<Option<Duration>> {
        let mut timers = vec![
            self.vanishing.first().map(|(at, _)| *at),
            self.lane.not_before(),
            self.resumed.filter(|_| !self.complete).map(|resumed| resumed.patience),
            Some(self.started.boot + super::OFFLINE_AFTER),
            self.age_limit_at(),
            Some(self.published.since + ADDRESS_HOLD),
            self.claims.pause_until,
            self.claims.full_until,
            self.snapshot_due,
            self.relist_at,
            self.contact_due(),
            self.memory_due(),
            self.first_order_due(),
        ];
        if let Phase::Waiting { look_again, .. } = self.phase {
            timers.push(Some(look_again));
        }
        timers.extend(self.local.timers());
        timers
    }

    fn raise(&mut self, finding: Finding) {
        let key = (finding.code, finding.subject.clone());
        if self.findings.get(&key) != Some(&finding) {
            self.findings.insert(key, finding.clone());
            self.out.push_back(Output::Finding(FindingChange::Raised(finding)));
        }
    }

    fn find(&mut self, code: Code, subject: &str, sentence: impl Into<String>, way_out: impl Into<String>) {
        let (sentence, way_out) = (sentence.into(), way_out.into());
        self.raise(Finding { code, subject: subject.to_owned(), sentence, way_out });
    }

    fn raise_garbage(&mut self, subject: &str, garbage: &super::record::Garbage) {
        self.find(Code::BadRecord, subject, garbage.to_string(), garbage.way_out());
    }

    fn clear(&mut self, code: Code, subject: &str) {
        if self.findings.remove(&(code, subject.to_owned())).is_some() {
            let subject = subject.to_owned();
            self.out.push_back(Output::Finding(FindingChange::Cleared { code, subject }));
        }
    }

    /// Ends the process; nothing more is decided.
    fn exit(&mut self, sentence: String) {
        self.exited = true;
        self.out.push_back(Output::Exit { code: 1, sentence });
    }

    /// The own record, as the store has it or as this node last wrote it: whichever is newer.
    fn record(&self) -> Option<&NodeRecord> {
        recover::newest(self.own.as_ref().map(|own| &own.record), self.memory.as_ref())
    }

    /// What this node holds by its record.
    fn own_blocks(&self) -> Vec<Subnet> {
        self.record().map(|record| record.blocks.iter().map(|held| held.cidr).collect()).unwrap_or_default()
    }
}
