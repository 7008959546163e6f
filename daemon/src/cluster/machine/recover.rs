//! A store that was rewritten: restored from a backup, or made anew. Nothing is removed and nothing claimed until this
//! node has asserted what it had, and nothing of the others is given up until they have spoken, or a person has.

use std::collections::BTreeSet;
use std::time::Duration;

use weft_cni::ip::Subnet;

use super::lane::{Task, item, txn};
use super::{Machine, Phase};
use crate::cluster::RECOVERY_PAUSE;
use crate::cluster::block_key;
use crate::cluster::finding::Code;
use crate::cluster::memory::seconds;
use crate::cluster::record::{BlockRecord, BlockState, HeldBlock, NodeRecord};
use crate::store::{Compare, Expect, KeyValue, Op, Txn, Write};

/// What is known about a rewritten store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rewritten {
    /// This node has said again what it has.
    pub asserted: bool,
}

impl Machine {
    /// The store does not show what it showed before. `relist`: what is followed may be another history.
    pub(super) fn note_rewrite(&mut self, relist: bool) {
        // One that is out of the cluster has nothing to assert.
        let out = matches!(self.phase, Phase::Removed | Phase::Superseded);
        let known = self.rewritten.is_some_and(|rewritten| out || !rewritten.asserted);
        self.claims.pause(self.now.boot + RECOVERY_PAUSE);
        if known {
            return;
        }
        self.rewritten = Some(Rewritten { asserted: out });
        self.verify = true;
        self.name_rewrite();
        if relist {
            self.follow_anew();
        }
    }

    fn name_rewrite(&mut self) {
        self.find(
            Code::HistoryRewritten,
            "",
            "the store was restored from a backup, or is another one: it does not show what it showed before",
            "Nodes assert their blocks again by themselves. If nodes stay away for good: `weftd repair --accept`",
        );
    }

    /// An earlier run found the store rewritten, and nodes that it knew did not speak since. What this node itself
    /// has to say again shows when its record is read.
    pub(super) fn resume_recovery(&mut self) {
        if self.peers.outstanding() {
            self.rewritten = Some(Rewritten { asserted: true });
            self.name_rewrite();
        }
    }

    /// Whether this node must say again what it has. Without a memory of it there is nothing to say.
    pub(super) fn must_reassert(&self) -> bool {
        self.rewritten.is_some_and(|rewritten| !rewritten.asserted)
    }

    /// The own record, and with it every block, as this node knows it from before.
    pub(super) fn reassert(&self, items: &[(String, Option<KeyValue>)]) -> Option<(Task, Op)> {
        let stands = self.own.as_ref().map(|own| &own.record);
        let base = newest(stands, self.memory.as_ref());
        let mut record = self.announced(base);
        let others = self.foreign.as_ref().map(|own| &own.record);
        if let Some(old) = others {
            record.epoch = record.epoch.max(old.epoch + 1);
        }
        record.recovered_at = seconds(self.now.wall).max(record.recovered_at + 1);
        let mut write = Txn::default();
        record.blocks = self.claims_again(&mut write, items);
        self.put_own(&mut write, &record);
        for held in stands.into_iter().flat_map(|stands| &stands.blocks) {
            if !record.holds(&held.cidr) && !writes(&write, &held.cidr) {
                self.free(&mut write, &block_key(&held.cidr), items);
            }
        }
        if let Some(old) = others {
            self.retire(&mut write, old, items);
        }
        Some((Task::Write(Box::new(record)), txn(write)))
    }

    /// What this node had, each block with the epoch that it needs to keep its route.
    fn claims_again(&self, write: &mut Txn, items: &[(String, Option<KeyValue>)]) -> Vec<HeldBlock> {
        let had = match &self.memory {
            Some(memory) => memory.blocks.clone(),
            // Memory is lost, but these folders were made in this boot: only what this node held was ever granted.
            None => self.local.blocks().map(|cidr| HeldBlock { cidr, epoch: 1 }).collect(),
        };
        had.into_iter().filter_map(|held| self.claim_again(write, held, items)).collect()
    }

    fn claim_again(
        &self,
        write: &mut Txn,
        held: HeldBlock,
        items: &[(String, Option<KeyValue>)],
    ) -> Option<HeldBlock> {
        let key = block_key(&held.cidr);
        let stands = item(items, &key);
        let block = stands.and_then(|stands| BlockRecord::parse(&key, &stands.value).ok());
        let mut epoch = held.epoch;
        if let Some(block) = &block {
            let ours = block.owner == self.facts.node && block.instance == self.me.instance;
            if ours && block.state == BlockState::Held && block.epoch == epoch {
                return Some(held);
            }
            if !ours && self.memory.is_none() {
                return None;
            }
            // This claim is the earlier one, in the history that was lost: it keeps the route.
            epoch = epoch.max(block.epoch).max(u64::try_from(self.revision).unwrap_or(0)) + u64::from(!ours);
        }
        let value = BlockRecord::held(&self.facts.node, &self.me.instance, epoch);
        let expect = stands.map_or(Expect::Absent, |stands| Expect::ModRevision(stands.mod_revision));
        write.compares.push(Compare { key: key.clone(), expect });
        write.writes.push(Write::Put { key, value: value.to_value(), lease: None });
        Some(HeldBlock { cidr: held.cidr, epoch })
    }

    /// The own record was written; if it had to be asserted again, it is now.
    pub(super) fn reasserted(&mut self, record: &NodeRecord) {
        let again = self.memory.as_ref().is_none_or(|memory| record.recovered_at > memory.recovered_at);
        if let Some(rewritten) = self.rewritten.as_mut().filter(|rewritten| !rewritten.asserted && again) {
            rewritten.asserted = true;
            self.claims.pause(self.now.boot + RECOVERY_PAUSE);
        }
    }

    /// Recovery ends when everybody known from before has spoken.
    pub(super) fn end_recovery(&mut self) {
        let done = self.rewritten.is_some_and(|rewritten| rewritten.asserted)
            && self.complete
            && self.claims.pause_until.is_none_or(|until| self.now.boot >= until)
            && !self.peers.outstanding()
            && self.vanished.values().all(Option::is_some);
        if done {
            self.rewritten = None;
            self.clear(Code::HistoryRewritten, "");
            self.snapshot_changed();
        }
    }

    /// A person says that what the store shows is right.
    pub(super) fn accept_history(&mut self) {
        let names = self.peers.accept();
        self.touched.extend(names);
        let lost: Vec<_> =
            self.vanished.iter().filter(|(_, at)| at.is_none()).map(|(name, _)| name.clone()).collect();
        for name in lost {
            self.forget(&name);
        }
    }

    /// Whether what is not wanted may be removed from the kernel.
    pub(super) fn may_remove(&self) -> bool {
        let known = matches!(self.phase, Phase::Member | Phase::Removed);
        self.complete && known && self.rewritten.is_none()
    }

    /// Blocks of this node that others list as well.
    pub(super) fn contested(&self) -> BTreeSet<Subnet> {
        self.own_blocks().into_iter().filter(|block| !self.peers.rivals(block).is_empty()).collect()
    }

    /// How long nobody claims, if so.
    pub(super) fn pause_left(&self) -> Option<Duration> {
        self.claims.pause_until?.checked_sub(self.now.boot).filter(|left| !left.is_zero())
    }
}

/// The one of two states of the own record that this node wrote later.
pub(super) fn newest<'a>(
    stands: Option<&'a NodeRecord>,
    memory: Option<&'a NodeRecord>,
) -> Option<&'a NodeRecord> {
    stands.into_iter().chain(memory).max_by_key(|record| (record.epoch, record.serial))
}

fn writes(write: &Txn, block: &Subnet) -> bool {
    let key = block_key(block);
    write.writes.iter().any(|write| write.key() == key)
}
