//! Blocks that go back: surplus ones that are empty and at rest, and those that another node has by a higher epoch.

use std::collections::BTreeSet;

use weft_cni::ip::Subnet;

use super::claim::Stock;
use super::lane::{Task, txn};
use super::{Machine, Phase};
use crate::cluster::{COOLDOWN, block_key};
use crate::store::{KeyValue, Op, Txn};

impl Machine {
    /// Chooses what to give back: more than one spare, empty, and at rest for long enough. Never the first block.
    pub(super) fn plan_return(&mut self) {
        let Some(network) = self.network.clone() else { return };
        let may = self.phase == Phase::Member
            && self.complete
            && !self.verify
            && self.rewritten.is_none()
            && self.claims.returning.is_empty()
            && self.needs.is_empty();
        if !may {
            return;
        }
        let stocks: Vec<(bool, Stock)> = network.families().map(|ipv4| (ipv4, self.stock(ipv4))).collect();
        let busy = stocks.iter().map(|(_, stock)| stock.busy.max(1)).max().unwrap_or(1);
        let scarce =
            stocks.iter().any(|(ipv4, _)| Self::left(&network, self.peers.held(*ipv4), *ipv4, 0) < 5);
        let keep = busy + u64::from(!scarce);
        let surplus = stocks.iter().filter(|(_, stock)| stock.giving > keep);
        let chosen: Option<Vec<Subnet>> = surplus.map(|(ipv4, _)| self.idle_block(*ipv4)).collect();
        self.claims.returning = chosen.unwrap_or_default();
    }

    /// The youngest block of a family that has been empty for longer than its addresses rest.
    fn idle_block(&self, ipv4: bool) -> Option<Subnet> {
        let own: Vec<Subnet> =
            self.own_blocks().into_iter().filter(|block| block.is_ipv4() == ipv4).collect();
        let idle = |block: &&Subnet| {
            let used = self.local.usage(block);
            let rested = used.and_then(|used| used.empty_since.filter(|_| used.used == 0));
            self.gives(block)
                && self.local.is_granted(block)
                && rested.is_some_and(|since| self.now.boot >= since + COOLDOWN)
        };
        own.iter().skip(1).rev().find(idle).copied()
    }

    /// A withdrawal met an address in use: what was on its way back stays.
    pub(super) fn forget_return(&mut self) {
        self.claims.returning.clear();
    }

    /// What the own record does not list any more is back.
    pub(super) fn returned(&mut self, before: &[Subnet], after: &[Subnet]) {
        if before != after {
            self.claims.returning.retain(|block| after.contains(block));
        }
    }

    /// Blocks to take out of the own record: withdrawn to be given back, or lost to another and empty.
    pub(super) fn to_release(&self) -> Vec<Subnet> {
        let returning = &self.claims.returning;
        let gone = |block: &Subnet| self.local.is_gone(block);
        let mut released: BTreeSet<Subnet> = BTreeSet::new();
        if !returning.is_empty() && returning.iter().all(gone) {
            released.extend(returning);
        }
        released.extend(self.own_blocks().into_iter().filter(|block| self.is_lost(block) && gone(block)));
        released.into_iter().collect()
    }

    pub(super) fn release(
        &self,
        blocks: &[Subnet],
        items: &[(String, Option<KeyValue>)],
    ) -> Option<(Task, Op)> {
        // It may have been granted again while the store was read.
        if self.to_release() != blocks {
            return None;
        }
        let mut record = self.announced(self.own.as_ref().map(|own| &own.record));
        record.blocks.retain(|held| !blocks.contains(&held.cidr));
        let mut write = Txn::default();
        self.put_own(&mut write, &record);
        for block in blocks {
            self.free(&mut write, &block_key(block), items);
        }
        Some((Task::Write(Box::new(record)), txn(write)))
    }
}
