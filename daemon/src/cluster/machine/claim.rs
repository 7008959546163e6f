//! Blocks: how many this node should have, which it claims, which it gives back. IPv4 and IPv6 together, or not at all.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_cni::ip::Subnet;

use super::lane::{Task, config_compare, item, txn};
use super::{Machine, Phase};
use crate::cluster::blocks::{self, parse_block_key};
use crate::cluster::finding::Code;
use crate::cluster::memory::seconds;
use crate::cluster::record::{BlockRecord, BlockState, HeldBlock, NodeRecord};
use crate::cluster::{Network, block_key, claim_order, host_seed};
use crate::store::{CONFIG, Compare, Expect, KeyValue, Op, Txn, TxnOutcome, Write};

/// How long a block is not tried again that was somebody's when it was tried.
const AVOID: Duration = Duration::from_secs(60);

/// How long after the cluster was full it is tried again, if nothing was heard of meanwhile.
const FULL: Duration = Duration::from_secs(30);

/// After so many blocks that were taken against expectation all of them are listed.
const CONFLICTS: u32 = 3;

/// One block to claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    block: Subnet,
    /// What stands there: nothing, or a record that may be replaced.
    replaces: Option<Found>,
}

/// A block's record that is not a held block of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    mod_revision: i64,
    epoch: u64,
    /// When it may be taken, in seconds since 1970.
    due: u64,
}

/// A block's record whose owner is not there, or does not list it.
#[derive(Clone, Debug)]
struct Orphan {
    mod_revision: i64,
    seen: Duration,
    record: BlockRecord,
}

/// What is known about claiming besides the nodes' records.
#[derive(Debug)]
pub(super) struct Claims {
    seed: u64,
    /// Not tried until then.
    avoid: BTreeMap<Subnet, Duration>,
    /// Retired, or left over from this node itself.
    found: BTreeMap<Subnet, Found>,
    /// Held by a node that does not list it, and since when it was seen so: left over.
    orphans: BTreeMap<Subnet, Orphan>,
    conflicts: u32,
    listed: bool,
    /// Nobody claims until then.
    pub pause_until: Option<Duration>,
    /// There was nothing to claim; tried again then.
    pub full_until: Option<Duration>,
    /// Blocks on their way back.
    pub returning: Vec<Subnet>,
}

impl Claims {
    pub(super) fn new(node: &str) -> Self {
        Self {
            seed: host_seed(node),
            avoid: BTreeMap::new(),
            found: BTreeMap::new(),
            orphans: BTreeMap::new(),
            conflicts: 0,
            listed: false,
            pause_until: None,
            full_until: None,
            returning: Vec::new(),
        }
    }

    pub(super) fn pause(&mut self, until: Duration) {
        self.pause_until = self.pause_until.max(Some(until));
    }

    /// Somebody let a block go: what was taken, or all of it, may be free.
    pub(super) fn retry(&mut self) {
        self.full_until = None;
        self.avoid.clear();
    }

    pub(super) fn is_returning(&self, block: &Subnet) -> bool {
        self.returning.contains(block)
    }
}

/// What this node has of one family.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stock {
    /// Blocks that give addresses.
    pub giving: u64,
    /// Those of them that pods use, or that rest from use.
    pub busy: u64,
    /// Whether one of them has a free address.
    pub free: bool,
    /// Whether one of them is about to be granted.
    pub coming: bool,
}

impl Machine {
    pub(super) fn stock(&self, ipv4: bool) -> Stock {
        let mut stock = Stock::default();
        for block in self.own_blocks().iter().filter(|block| block.is_ipv4() == ipv4 && self.gives(block)) {
            let used = self.local.usage(block);
            stock.giving += 1;
            stock.busy += u64::from(used.is_some_and(|used| used.used > 0 || used.resting > 0));
            stock.coming |= !self.local.is_granted(block);
            stock.free |= self.local.is_granted(block)
                && used.is_none_or(|used| used.free_cool > 0 || used.resting > 0);
        }
        stock
    }

    /// How many blocks of each family are left over when this node has taken `more`, in percent of all.
    pub(super) fn left(network: &Network, held: u64, ipv4: bool, more: u64) -> u64 {
        let total = blocks::total(network, ipv4);
        let free = total.saturating_sub(held.saturating_add(more));
        free.saturating_mul(100).checked_div(total).unwrap_or(0)
    }

    /// The families in which this node should claim one more block now.
    fn lacking(&self, network: &Network) -> Vec<bool> {
        let stocks: Vec<(bool, Stock)> = network.families().map(|ipv4| (ipv4, self.stock(ipv4))).collect();
        let busy = stocks.iter().map(|(_, stock)| stock.busy.max(1)).max().unwrap_or(1);
        let spare =
            stocks.iter().all(|(ipv4, _)| Self::left(network, self.peers.held(*ipv4), *ipv4, 1) >= 10);
        let mut target = busy + u64::from(spare);
        if !self.needs.is_empty() {
            let short = stocks
                .iter()
                .filter(|(_, stock)| !stock.free && !stock.coming)
                .map(|(_, stock)| stock.giving + 1);
            target = target.max(short.max().unwrap_or(0));
        }
        stocks.iter().filter(|(_, stock)| stock.giving < target).map(|(ipv4, _)| *ipv4).collect()
    }

    fn may_claim(&self) -> bool {
        self.phase == Phase::Member
            && self.complete
            && !self.verify
            && !self.must_reassert()
            && self.pause_left().is_none()
            && self.network_revision != 0
            && self.claims.returning.is_empty()
            && !self.stale()
    }

    /// The next claim, if one is due.
    pub(super) fn next_claim(&mut self) -> Option<(Task, Op)> {
        let network = self.network.clone()?;
        if !self.may_claim() || self.claims.full_until.is_some_and(|until| self.now.boot < until) {
            return None;
        }
        let lacking = self.lacking(&network);
        if lacking.is_empty() {
            return None;
        }
        if self.claims.conflicts >= CONFLICTS {
            return Some(Self::list_blocks());
        }
        let picked: Option<Vec<Claim>> = lacking.iter().map(|ipv4| self.pick(&network, *ipv4)).collect();
        match picked {
            Some(claims) => Some(self.claim(claims)),
            None if !self.claims.listed => Some(Self::list_blocks()),
            None => self.retire_orphan().or_else(|| {
                self.full(&network);
                None
            }),
        }
    }

    fn list_blocks() -> (Task, Op) {
        (Task::ListBlocks, Op::List { prefix: "b/".to_owned() })
    }

    /// A block that nobody is known to have; retired ones, whose time is over, last.
    fn pick(&mut self, network: &Network, ipv4: bool) -> Option<Claim> {
        let now = self.now.boot;
        self.claims.avoid.retain(|_, until| *until > now);
        let fresh = claim_order(network, ipv4, self.claims.seed).find(|block| {
            self.peers.owner(block).is_none()
                && self.peers.retired_until(block).is_none()
                && !self.claims.avoid.contains_key(block)
                && !self.claims.found.contains_key(block)
        });
        if let Some(block) = fresh {
            return Some(Claim { block, replaces: None });
        }
        let wall = seconds(self.cautious_wall());
        let due = |(block, found): &(&Subnet, &Found)| {
            block.is_ipv4() == ipv4
                && found.due <= wall
                && self.peers.owner(block).is_none()
                && !self.claims.avoid.contains_key(*block)
        };
        self.claims
            .found
            .iter()
            .find(due)
            .map(|(block, found)| Claim { block: *block, replaces: Some(*found) })
    }

    fn claim(&self, claims: Vec<Claim>) -> (Task, Op) {
        let mut record = self.announced(self.own.as_ref().map(|own| &own.record));
        let mut write = Txn::default();
        for claim in &claims {
            let key = block_key(&claim.block);
            let replaced = claim.replaces.map_or(0, |found| found.epoch);
            let epoch = replaced.max(u64::try_from(self.revision).unwrap_or(0)) + 1;
            let expect =
                claim.replaces.map_or(Expect::Absent, |found| Expect::ModRevision(found.mod_revision));
            let value = BlockRecord::held(&self.facts.node, &self.me.instance, epoch);
            record.blocks.push(HeldBlock { cidr: claim.block, epoch });
            write.compares.push(Compare { key: key.clone(), expect });
            write.writes.push(Write::Put { key: key.clone(), value: value.to_value(), lease: None });
            write.on_conflict_read.push(key);
        }
        write.compares.push(config_compare(self.network_revision));
        write.on_conflict_read.push(CONFIG.to_owned());
        self.put_own(&mut write, &record);
        (Task::Claim(Box::new(record), claims), txn(write))
    }

    pub(super) fn claimed(
        &mut self,
        record: NodeRecord,
        claims: &[Claim],
        outcome: TxnOutcome,
        asked_at: i64,
    ) {
        if let TxnOutcome::Conflict { revision, current } = outcome {
            if self.fresh(revision, asked_at) {
                self.lost_race(claims, &current);
            }
            return;
        }
        if self.written(record, &outcome, asked_at) {
            for claim in claims {
                self.claims.found.remove(&claim.block);
            }
            (self.claims.conflicts, self.claims.listed) = (0, false);
            self.clear(Code::ClusterFull, "");
            self.warn_when_filling();
        }
    }

    /// Something was not as it was thought to be: what stands there is learned, and the next block is tried.
    fn lost_race(&mut self, claims: &[Claim], current: &[(String, Option<KeyValue>)]) {
        let own = self.own.as_ref().map(|own| (own.record.key(), own.mod_revision));
        if let Some((key, mod_revision)) = own
            && item(current, &key).map(|item| item.mod_revision) != Some(mod_revision)
        {
            self.verify = true;
            return;
        }
        let config = item(current, CONFIG);
        if config.map(|config| config.mod_revision) != Some(self.network_revision) {
            self.config_is(config.cloned());
            return;
        }
        self.claims.conflicts += 1;
        for claim in claims {
            self.claims.found.remove(&claim.block);
            if let Some(stands) = item(current, &block_key(&claim.block)) {
                self.learn_block(stands.clone());
            }
        }
    }

    /// Everything under `b/` was listed.
    pub(super) fn learn_blocks(&mut self, items: Vec<KeyValue>) {
        (self.claims.conflicts, self.claims.listed) = (0, true);
        self.claims.found.clear();
        let before = std::mem::take(&mut self.claims.orphans);
        for item in items {
            self.suspect_orphan(&item, &before);
            self.learn_block(item);
        }
    }

    /// A held block that its owner does not list was left over when somebody deleted the owner's record. A claim
    /// that this node has not heard of yet looks the same, so that it must be seen twice.
    fn suspect_orphan(&mut self, stands: &KeyValue, before: &BTreeMap<Subnet, Orphan>) {
        let Some(block) = parse_block_key(&stands.key) else { return };
        let Ok(record) = BlockRecord::parse(&stands.key, &stands.value) else { return };
        let listed = self
            .peers
            .get(&record.owner)
            .is_some_and(|entry| *entry.instance == *record.instance && (entry.gone || entry.lists(&block)));
        if record.state != BlockState::Held || listed || record.owner == self.facts.node {
            return;
        }
        let mod_revision = stands.mod_revision;
        let known = before.get(&block).filter(|orphan| orphan.mod_revision == mod_revision);
        let seen = known.map_or(self.now.boot, |orphan| orphan.seen);
        self.claims.orphans.insert(block, Orphan { mod_revision, seen, record });
    }

    /// Puts a block that was left over on its way back, by the same rule as one of a removed node.
    fn retire_orphan(&self) -> Option<(Task, Op)> {
        let network = self.network.as_ref()?;
        let until = self.retired_until(network)?;
        let old = |(_, orphan): &(&Subnet, &Orphan)| self.now.boot >= orphan.seen + FULL;
        let (block, orphan) = self.claims.orphans.iter().find(old)?;
        let key = block_key(block);
        let value = BlockRecord { state: BlockState::Retired, until: Some(until), ..orphan.record.clone() };
        let write = Txn {
            compares: vec![Compare { key: key.clone(), expect: Expect::ModRevision(orphan.mod_revision) }],
            writes: vec![Write::Put { key, value: value.to_value(), lease: None }],
            on_conflict_read: Vec::new(),
        };
        Some((Task::RetireOrphan(*block), txn(write)))
    }

    pub(super) fn orphan_retired(&mut self, block: &Subnet) {
        self.claims.orphans.remove(block);
        self.claims.listed = false;
    }

    fn learn_block(&mut self, stands: KeyValue) {
        let Some(block) = parse_block_key(&stands.key) else {
            return;
        };
        let avoid = self.now.boot + AVOID;
        let record = match BlockRecord::parse(&stands.key, &stands.value) {
            Ok(record) => record,
            Err(garbage) => {
                self.raise_garbage(&stands.key, &garbage);
                self.claims.avoid.insert(block, avoid);
                return;
            }
        };
        self.clear(Code::BadRecord, &stands.key);
        let ours = record.owner == self.facts.node && record.instance == self.me.instance;
        let due = match record.state {
            BlockState::Held if ours => Some(0),
            BlockState::Held => None,
            BlockState::Retired => Some(record.until.unwrap_or(u64::MAX)),
        };
        match due {
            Some(due) => {
                let found = Found { mod_revision: stands.mod_revision, epoch: record.epoch, due };
                self.claims.found.insert(block, found);
            }
            None => {
                self.claims.avoid.insert(block, avoid);
            }
        }
    }

    fn full(&mut self, network: &Network) {
        self.claims.full_until = Some(self.now.boot + FULL);
        self.claims.listed = false;
        let words: Vec<String> = network
            .families()
            .map(|ipv4| {
                let (held, total) = (self.peers.held(ipv4), blocks::total(network, ipv4));
                format!("{held} of {total} {} blocks are held", if ipv4 { "IPv4" } else { "IPv6" })
            })
            .collect();
        let retired = self.claims.found.values().filter(|found| found.due > 0).count();
        let sentence = format!(
            "no block is left in the cluster: {}, {retired} wait for nodes that were removed",
            words.join(" and ")
        );
        let way_out = "Add a network with `weftd config set cidrs=…` (the old ones and the new), or free the blocks of nodes that are gone with `weftd node rm --destroyed`";
        self.refuse_needs(&format!("{sentence}. {way_out}"));
        self.find(Code::ClusterFull, "", sentence, way_out);
    }

    fn warn_when_filling(&mut self) {
        let Some(network) = self.network.clone() else { return };
        let filling =
            network.families().find(|ipv4| Self::left(&network, self.peers.held(*ipv4), *ipv4, 0) < 20);
        match filling {
            Some(ipv4) => {
                let (held, total) = (self.peers.held(ipv4), blocks::total(&network, ipv4));
                let sentence = format!("{held} of {total} blocks of the cluster are held");
                self.find(Code::ClusterFilling, "", sentence, "Add a network with `weftd config set`");
            }
            None => self.clear(Code::ClusterFilling, ""),
        }
    }
}
