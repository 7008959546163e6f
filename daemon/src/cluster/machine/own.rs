//! This node's own record: whether it stands as this node left it, who else claims to be this node, joining, leaving.

use std::time::Duration;

use serde_json::Map;
use weft_cni::ip::IfAddr;

use super::lane::{Rewrite, Task, item, txn};
use super::{Machine, Own, Phase};
use crate::cluster::finding::Code;
use crate::cluster::identity::vtep_mac;
use crate::cluster::memory::{Moment, seconds};
use crate::cluster::record::{
    BlockRecord, BlockState, FORMAT, Network, NodeRecord, NodeState, RemovedAt, SessionRecord, node_key, session_key,
};
use crate::cluster::{ADDRESS_HOLD, SESSION_TTL, block_key, conf};
use crate::store::{CONFIG, Compare, Expect, KeyValue, Op, Session, Txn, TxnOutcome, Write};

/// How long after the end of a session's life it is surely gone from the store.
const SESSION_SLACK: Duration = Duration::from_secs(5);

/// No clock that is right shows an earlier time: 2026 began.
const PLAUSIBLE: u64 = 1_767_225_600;

impl Machine {
    pub(super) fn verify_keys(&self) -> Vec<String> {
        let mut keys = vec![CONFIG.to_owned(), node_key(&self.facts.node), session_key(&self.facts.node)];
        keys.extend(self.witness().map(|(key, _)| key));
        keys
    }

    /// The newest thing in the cached snapshot: if it stands in the store as it was, so does all that is older.
    fn witness(&self) -> Option<(String, i64)> {
        self.resumed.filter(|resumed| !resumed.witnessed)?;
        let there = self.peers.iter().filter(|(_, entry)| !entry.gone);
        let newest = there.max_by_key(|(_, entry)| entry.mod_revision)?;
        Some((node_key(newest.0), newest.1.mod_revision))
    }

    /// The own keys were read.
    pub(super) fn verified(&mut self, revision: i64, asked_at: i64, items: Vec<(String, Option<KeyValue>)>) {
        if revision < asked_at {
            if std::mem::replace(&mut self.suspect, true) {
                self.suspect = false;
                self.revision = revision;
                self.note_rewrite(true);
            }
            return;
        }
        self.suspect = false;
        self.revision = self.revision.max(revision);
        self.hear_witness(&items);
        (self.verify, self.verified_at) = (false, self.now.boot);
        self.config_is(item(&items, CONFIG).cloned());
        if self.exited {
            return;
        }
        let own = item(&items, &node_key(&self.facts.node)).cloned();
        let session = item(&items, &session_key(&self.facts.node)).cloned();
        self.judge(own, session);
    }

    fn hear_witness(&mut self, items: &[(String, Option<KeyValue>)]) {
        let Some((key, revision)) = self.witness() else {
            // No other node was known: nothing can have been forgotten of them.
            if let Some(resumed) = &mut self.resumed {
                resumed.witnessed = true;
            }
            return;
        };
        if item(items, &key).is_some_and(|stands| stands.mod_revision == revision) {
            if let Some(resumed) = &mut self.resumed {
                resumed.witnessed = true;
            }
        } else {
            self.follow_anew();
        }
    }

    /// What the own key says, against what this node remembers that it said.
    fn judge(&mut self, own: Option<KeyValue>, session: Option<KeyValue>) {
        let key = node_key(&self.facts.node);
        let parsed = own.map(|stands| (stands.mod_revision, NodeRecord::parse(&key, &stands.value)));
        (self.foreign, self.unreadable) = (None, false);
        match parsed {
            None => self.not_there(),
            Some((_, Err(garbage))) => {
                self.raise_garbage(&key, &garbage);
                self.unreadable = true;
                return;
            }
            Some((mod_revision, Ok(record))) if record.instance != self.me.instance => {
                self.another(Own { record, mod_revision });
            }
            Some((mod_revision, Ok(record))) => self.ours(Own { record, mod_revision }),
        }
        self.clear(Code::BadRecord, &key);
        if matches!(self.phase, Phase::Starting | Phase::Waiting { .. }) || !self.session_held {
            self.judge_session(session);
        }
    }

    fn not_there(&mut self) {
        self.own = None;
        if self.memory.is_some() && !matches!(self.phase, Phase::Removed | Phase::Superseded) {
            self.note_rewrite(false);
        }
    }

    /// The record is of another instance of this name: older than this one, or its successor.
    fn another(&mut self, stands: Own) {
        self.own = None;
        match &self.memory {
            Some(memory) if stands.record.epoch >= memory.epoch => self.superseded(&stands.record.addresses),
            Some(_) => {
                self.foreign = Some(stands);
                self.note_rewrite(false);
            }
            None => self.foreign = Some(stands),
        }
    }

    fn ours(&mut self, stands: Own) {
        let record = &stands.record;
        if record.state == NodeState::Removed {
            self.removed(stands);
            return;
        }
        let remembered = self.memory.as_ref().map(|memory| (memory.epoch, memory.serial));
        let older = remembered.is_some_and(|known| (record.epoch, record.serial) < known);
        if self.phase == Phase::Member && !older && record.session != self.me.session {
            self.superseded(&record.addresses.clone());
            return;
        }
        if self.phase == Phase::Superseded || self.phase == Phase::Removed {
            // A restored store has forgotten it. This node has not, and leaves the record to people.
            self.own = None;
            return;
        }
        if older {
            self.own = Some(stands);
            self.note_rewrite(false);
        } else {
            let joined = record.session == self.me.session;
            self.own_is(stands);
            if joined && self.phase == Phase::Starting {
                self.member();
            }
        }
    }

    /// The own record stands like this in the store, by its own word.
    pub(super) fn own_stands(&mut self, record: NodeRecord, mod_revision: i64) {
        if record.state == NodeState::Removed {
            self.removed(Own { record, mod_revision });
            return;
        }
        self.clear(Code::StoreFull, "");
        self.reasserted(&record);
        self.own_is(Own { record, mod_revision });
        self.member();
    }

    fn own_is(&mut self, stands: Own) {
        self.contact = Some(Moment::new(&self.facts.stamp, self.asked));
        let before = self.own_blocks();
        let names = self.peers.set_own(&stands.record.blocks);
        self.touched.extend(names);
        self.foreign = None;
        let changed = self.memory.as_ref() != Some(&stands.record);
        self.memory = Some(stands.record.clone());
        self.own = Some(stands);
        if changed {
            self.write_memory();
        }
        let after = self.own_blocks();
        self.returned(&before, &after);
    }

    fn member(&mut self) {
        if matches!(self.phase, Phase::Starting | Phase::Waiting { .. }) {
            self.phase = Phase::Member;
            self.clear(Code::Clone, "");
        }
    }

    /// Who holds the session of this name. One of this very boot is our own, of a process that died.
    fn judge_session(&mut self, session: Option<KeyValue>) {
        let key = session_key(&self.facts.node);
        self.session_revision = session.as_ref().map_or(0, |session| session.mod_revision);
        let parsed = session.and_then(|session| SessionRecord::parse(&key, &session.value).ok());
        let ours = |session: &SessionRecord| {
            session.session == self.me.session
                || (session.stamp == self.facts.stamp && session.instance == self.me.instance)
        };
        match parsed {
            Some(other) if !ours(&other) => self.somebody_else(&other.addresses),
            Some(_) | None => {
                if let Phase::Waiting { .. } = self.phase {
                    self.phase = Phase::Starting;
                    self.clear(Code::Clone, "");
                }
            }
        }
    }

    fn somebody_else(&mut self, addresses: &[IfAddr]) {
        let sentence = format!(
            "another machine runs as node {}{}: this one does not take part",
            self.facts.node,
            place(addresses)
        );
        let way_out = "Give one of them another name; a copied disk needs a new /etc/machine-id, too";
        self.find(Code::Clone, "", sentence.clone(), way_out);
        match self.phase {
            Phase::Starting => {
                let until = self.now.boot + Duration::from_secs(SESSION_TTL.0.into()) + SESSION_SLACK;
                self.phase = Phase::Waiting { until, look_again: self.now.boot + SESSION_SLACK };
            }
            Phase::Waiting { until, .. } if self.now.boot >= until => self.exit(format!("{sentence}. {way_out}")),
            Phase::Waiting { .. } | Phase::Member | Phase::Removed | Phase::Superseded => {}
        }
    }

    /// Another machine joined under this name while this one's session was not alive.
    fn superseded(&mut self, addresses: &[IfAddr]) {
        self.phase = Phase::Superseded;
        let sentence = format!(
            "another machine has joined as node {}{}: this one gives no more addresses",
            self.facts.node,
            place(addresses)
        );
        let way_out = "Its pods keep running; drain it, then give it a name of its own, without its old /var/lib/weft";
        self.find(Code::Clone, "", sentence, way_out);
        self.forget_return();
    }

    fn removed(&mut self, stands: Own) {
        self.phase = Phase::Removed;
        self.rewritten = None;
        self.clear(Code::HistoryRewritten, "");
        self.forget_return();
        let names = self.peers.set_own(&[]);
        self.touched.extend(names);
        let sentence = format!("node {} was removed: it gives no more addresses, its pods keep running", self.facts.node);
        let way_out = "To let it join again: drain it, stop weftd, remove /var/lib/weft and restart the node";
        self.find(Code::Removed, "", sentence, way_out);
        let changed = self.memory.as_ref() != Some(&stands.record);
        self.memory = Some(stands.record.clone());
        self.own = Some(stands);
        if changed {
            self.write_memory();
        }
    }

    /// The watch showed the own record. What this very request writes is no news.
    pub(super) fn own_reported(&mut self, record: &NodeRecord, mod_revision: i64) {
        let known = self.own.as_ref().or(self.foreign.as_ref()).map_or(0, |own| own.mod_revision);
        if mod_revision <= known || self.lane.writing() == Some(record) {
            return;
        }
        self.verify = true;
    }

    pub(super) fn create_config(&mut self) -> Option<(Task, Op)> {
        if !self.facts.init {
            return None;
        }
        let asked = self.facts.asked.clone().unwrap_or_default();
        let network: Network = match self.network.as_deref().cloned().map_or_else(|| conf::create(&asked), Ok) {
            Ok(network) => network,
            Err(problems) => {
                let words: Vec<String> = problems.iter().map(ToString::to_string).collect();
                self.exit(format!("the configuration of the cluster cannot be created: {}", words.join("; ")));
                return None;
            }
        };
        let value = crate::cluster::record::to_value(&network);
        let create = Txn {
            compares: vec![Compare { key: CONFIG.to_owned(), expect: Expect::Absent }],
            writes: vec![Write::Put { key: CONFIG.to_owned(), value, lease: None }],
            on_conflict_read: Vec::new(),
        };
        Some((Task::CreateConfig, txn(create)))
    }

    pub(super) fn keep_session(&self) -> (Task, Op) {
        let key = session_key(&self.facts.node);
        let session = SessionRecord {
            format: FORMAT,
            instance: self.me.instance.clone(),
            session: self.me.session.clone(),
            stamp: self.facts.stamp.clone(),
            addresses: self.published.value.clone(),
        };
        let expect = match self.session_revision {
            0 => Expect::Absent,
            revision => Expect::ModRevision(revision),
        };
        let compares = vec![Compare { key: key.clone(), expect }];
        (Task::KeepSession, Op::KeepSession(Session { key, value: session.to_value(), ttl: SESSION_TTL, compares }))
    }

    pub(super) fn session_answered(&mut self, outcome: &TxnOutcome) {
        match outcome {
            TxnOutcome::Committed { .. } => self.session_held = true,
            TxnOutcome::Conflict { .. } => self.verify = true,
        }
    }

    /// The transaction by which this start announces itself.
    pub(super) fn join(&self) -> (Task, Op) {
        let record = self.announced(self.own.as_ref().map(|own| &own.record));
        self.write(record)
    }

    /// The own record with what this start knows about itself.
    pub(super) fn announced(&self, base: Option<&NodeRecord>) -> NodeRecord {
        let addresses = self.published.value.clone();
        let version = self.facts.version.clone();
        let session = self.me.session.clone();
        let vtep_mac = Some(vtep_mac(&self.me.instance));
        match base {
            Some(base) => {
                let serial = base.serial + 1;
                NodeRecord { serial, addresses, version, session, vtep_mac, ..base.clone() }
            }
            None => NodeRecord {
                format: FORMAT,
                name: self.facts.node.clone(),
                instance: self.me.instance.clone(),
                epoch: 1,
                serial: 1,
                state: NodeState::Active,
                addresses,
                blocks: Vec::new(),
                vtep_mac,
                version,
                session,
                recovered_at: 0,
                removed: None,
                unknown: Map::new(),
            },
        }
    }

    /// Writes the own record alone.
    fn write(&self, record: NodeRecord) -> (Task, Op) {
        let mut write = Txn::default();
        self.put_own(&mut write, &record);
        (Task::Write(Box::new(record)), txn(write))
    }

    /// Adds the own record to a transaction: it counts only if the record stands as it was last seen.
    pub(super) fn put_own(&self, write: &mut Txn, record: &NodeRecord) {
        let key = record.key();
        let stands = self.own.as_ref().or(self.foreign.as_ref());
        let expect = stands.map_or(Expect::Absent, |own| Expect::ModRevision(own.mod_revision));
        write.compares.push(Compare { key: key.clone(), expect });
        write.writes.push(Write::Put { key: key.clone(), value: record.to_value(), lease: None });
        write.on_conflict_read.push(key);
    }

    /// Publishes addresses that are new, and have held.
    pub(super) fn publish_addresses(&self) -> Option<(Task, Op)> {
        let own = self.own.as_ref()?;
        let held = self.now.boot >= self.published.since + ADDRESS_HOLD;
        let new = own.record.addresses != self.published.value && !self.published.value.is_empty();
        (held && new).then(|| self.write(self.announced(Some(&own.record))))
    }

    /// The blocks of the instance before this one are nobody's until it can be trusted to be gone.
    pub(super) fn take_over(&self, items: &[(String, Option<KeyValue>)]) -> Option<(Task, Op)> {
        let old = self.foreign.as_ref()?;
        let mut record = self.announced(None);
        record.epoch = old.record.epoch + 1;
        let mut write = Txn::default();
        self.put_own(&mut write, &record);
        self.retire(&mut write, &old.record, items);
        Some((Task::Write(Box::new(record)), txn(write)))
    }

    /// Retires what another instance of this name still holds.
    pub(super) fn retire(&self, write: &mut Txn, old: &NodeRecord, items: &[(String, Option<KeyValue>)]) {
        let network = self.network.as_deref().cloned().unwrap_or_default();
        let until = self.retired_until(&network);
        for held in &old.blocks {
            let key = block_key(&held.cidr);
            // What this node claimed after it was free is its own, also in a store that has forgotten that.
            if write.writes.iter().any(|write| write.key() == key) {
                continue;
            }
            let Some(stands) = item(items, &key) else { continue };
            let Ok(block) = BlockRecord::parse(&key, &stands.value) else { continue };
            let theirs = block.owner == old.name && block.instance == old.instance;
            if theirs && block.state == BlockState::Held {
                let retired = BlockRecord { state: BlockState::Retired, until, ..block };
                let expect = Expect::ModRevision(stands.mod_revision);
                write.compares.push(Compare { key: key.clone(), expect });
                write.writes.push(Write::Put { key, value: retired.to_value(), lease: None });
            }
        }
    }

    /// When blocks that are retired now are given to others. With a clock that was never set nobody could tell when
    /// that is: then a person says so.
    pub(super) fn retired_until(&self, network: &Network) -> Option<u64> {
        let wall = seconds(self.generous_wall());
        (wall > PLAUSIBLE).then(|| wall.saturating_add(network.reissue_after))
    }

    /// Whether this node, removed, has nothing left of what it had.
    pub(super) fn to_acknowledge(&self) -> bool {
        let removed = self.own.as_ref().and_then(|own| own.record.removed.as_ref());
        self.phase == Phase::Removed
            && removed.is_some_and(|removed| !removed.acknowledged)
            && self.local.is_empty()
    }

    pub(super) fn acknowledge(&self, items: &[(String, Option<KeyValue>)]) -> Option<(Task, Op)> {
        let own = self.own.as_ref()?;
        let removed = own.record.removed.clone()?;
        let record = NodeRecord {
            serial: own.record.serial + 1,
            blocks: Vec::new(),
            removed: Some(RemovedAt { until: None, acknowledged: true, ..removed }),
            ..own.record.clone()
        };
        let mut write = Txn::default();
        self.put_own(&mut write, &record);
        for held in &own.record.blocks {
            self.free(&mut write, &block_key(&held.cidr), items);
        }
        Some((Task::Write(Box::new(record)), txn(write)))
    }

    /// Removes a block's record if it is this node's.
    pub(super) fn free(&self, write: &mut Txn, key: &str, items: &[(String, Option<KeyValue>)]) {
        let Some(stands) = item(items, key) else { return };
        let Ok(block) = BlockRecord::parse(key, &stands.value) else { return };
        if block.owner == self.facts.node && block.instance == self.me.instance {
            write.compares.push(Compare { key: key.to_owned(), expect: Expect::ModRevision(stands.mod_revision) });
            write.writes.push(Write::Delete { key: key.to_owned() });
        }
    }

    /// Reads what a rewrite of the own record depends on.
    pub(super) fn read_for(&self, why: Rewrite) -> (Task, Op) {
        let foreign = self.foreign.iter().flat_map(|own| &own.record.blocks);
        let known = self.own.iter().map(|own| &own.record).chain(&self.memory).flat_map(|record| &record.blocks);
        let mut blocks: Vec<_> = match &why {
            Rewrite::Release(blocks) => blocks.clone(),
            Rewrite::TakeOver => foreign.map(|held| held.cidr).collect(),
            Rewrite::Acknowledge => known.map(|held| held.cidr).collect(),
            Rewrite::Reassert => known.chain(foreign).map(|held| held.cidr).chain(self.local.blocks()).collect(),
        };
        blocks.sort();
        blocks.dedup();
        let keys = std::iter::once(node_key(&self.facts.node)).chain(blocks.iter().map(block_key)).collect();
        (Task::ReadFor(why), Op::Read(keys))
    }

    /// Writes the own record and blocks, as they were read a moment ago.
    pub(super) fn rewrite(&mut self, why: Rewrite, items: &[(String, Option<KeyValue>)]) {
        let stands = self.own.as_ref().or(self.foreign.as_ref()).map(|own| own.mod_revision);
        if item(items, &node_key(&self.facts.node)).map(|item| item.mod_revision) != stands {
            self.verify = true;
            return;
        }
        let next = match why {
            Rewrite::TakeOver => self.take_over(items),
            Rewrite::Reassert => self.reassert(items),
            Rewrite::Release(blocks) => self.release(&blocks, items),
            Rewrite::Acknowledge => self.acknowledge(items),
        };
        if let Some((task, op)) = next {
            self.ask(task, op);
        }
    }
}

fn place(addresses: &[IfAddr]) -> String {
    addresses.first().map(|address| format!(", at {}", address.addr())).unwrap_or_default()
}
