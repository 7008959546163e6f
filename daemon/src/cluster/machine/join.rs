//! What this node writes about itself: joining, new addresses, taking over a name, leaving.

use serde_json::Map;

use super::lane::{Rewrite, Task, item, txn};
use super::{Machine, Phase};
use crate::cluster::identity::vtep_mac;
use crate::cluster::memory::seconds;
use crate::cluster::record::{
    BlockRecord, BlockState, FORMAT, Network, NodeRecord, NodeState, RemovedAt, SessionRecord, node_key,
    session_key,
};
use crate::cluster::{ADDRESS_HOLD, SESSION_TTL, block_key, conf};
use crate::store::{CONFIG, Compare, Expect, KeyValue, Op, Session, Txn, Write};

/// No clock that is right shows an earlier time: 2026 began.
const PLAUSIBLE: u64 = 1_767_225_600;

impl Machine {
    pub(super) fn create_config(&mut self) -> Option<(Task, Op)> {
        if !self.facts.init {
            return None;
        }
        let asked = self.facts.asked.clone().unwrap_or_default();
        let network: Network = match self.network.as_deref().cloned().map_or_else(|| conf::create(&asked), Ok)
        {
            Ok(network) => network,
            Err(problems) => {
                let words: Vec<String> = problems.iter().map(ToString::to_string).collect();
                self.exit(format!(
                    "the configuration of the cluster cannot be created: {}",
                    words.join("; ")
                ));
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
        (
            Task::KeepSession,
            Op::KeepSession(Session { key, value: session.to_value(), ttl: SESSION_TTL, compares }),
        )
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
            write
                .compares
                .push(Compare { key: key.to_owned(), expect: Expect::ModRevision(stands.mod_revision) });
            write.writes.push(Write::Delete { key: key.to_owned() });
        }
    }

    /// Reads what a rewrite of the own record depends on.
    pub(super) fn read_for(&self, why: Rewrite) -> (Task, Op) {
        let foreign = self.foreign.iter().flat_map(|own| &own.record.blocks);
        let known =
            self.own.iter().map(|own| &own.record).chain(&self.memory).flat_map(|record| &record.blocks);
        let mut blocks: Vec<_> = match &why {
            Rewrite::Release(blocks) => blocks.clone(),
            Rewrite::TakeOver => foreign.map(|held| held.cidr).collect(),
            Rewrite::Acknowledge => known.map(|held| held.cidr).collect(),
            Rewrite::Reassert => {
                known.chain(foreign).map(|held| held.cidr).chain(self.local.blocks()).collect()
            }
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
