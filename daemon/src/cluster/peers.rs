//! What this node knows of the others, small enough for 5,000 of them, with an index of who holds which block, so
//! that one remote event costs the blocks of one node and nothing that grows with the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_cni::ip::{IfAddr, Subnet};
use weft_netlink::link::Mac;
use weft_overlay::wanted::Peer;

use super::blocks::is_block;
use super::record::{HeldBlock, Network, NodeRecord, NodeState};

/// One other node, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub instance: Box<str>,
    pub epoch: u64,
    pub serial: u64,
    pub mod_revision: i64,
    pub state: NodeState,
    pub addresses: Box<[IfAddr]>,
    pub blocks: Box<[HeldBlock]>,
    pub vtep_mac: Option<Mac>,
    pub recovered_at: u64,
    /// Of a tombstone: seconds since 1970.
    pub until: Option<u64>,
    /// Its key is not in the store, and there was no tombstone.
    pub gone: bool,
    /// What a store that was rewritten shows less of it than was known before.
    pub before: Option<Box<Before>>,
}

/// What was known of a node in the history that a restored store has lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    pub epoch: u64,
    pub serial: u64,
    pub blocks: Box<[HeldBlock]>,
}

impl Entry {
    pub fn new(record: NodeRecord, mod_revision: i64) -> Self {
        Self {
            instance: record.instance.into(),
            epoch: record.epoch,
            serial: record.serial,
            mod_revision,
            state: record.state,
            addresses: record.addresses.into(),
            blocks: record.blocks.into(),
            vtep_mac: record.vtep_mac,
            recovered_at: record.recovered_at,
            until: record.removed.and_then(|removed| removed.until),
            gone: false,
            before: None,
        }
    }

    /// Whether its record lists a block, or did in a history that was lost.
    pub fn lists(&self, block: &Subnet) -> bool {
        self.all_blocks().iter().any(|held| held.cidr == *block)
    }

    /// A node's writes and its removals in their order.
    fn version(&self) -> (u64, u64) {
        (self.epoch, self.serial)
    }

    /// The newest that was ever known of it.
    fn newest(&self) -> (u64, u64) {
        let before = self.before.as_ref().map(|before| (before.epoch, before.serial));
        self.version().max(before.unwrap_or_default())
    }

    /// What it holds, with what a rewritten store has forgotten.
    fn all_blocks(&self) -> Vec<HeldBlock> {
        let mut blocks = self.blocks.to_vec();
        let before = self.before.iter().flat_map(|before| before.blocks.iter());
        blocks.extend(before.filter(|old| !self.blocks.iter().any(|new| new.cidr == old.cidr)));
        blocks
    }

    /// Still known from an earlier history only: nothing of it may be removed, nobody may take its blocks.
    fn outstanding(&self) -> bool {
        self.before.is_some()
    }
}

/// What one change of a record means for others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Nodes whose [`Peer`] may be another one now; with this node's own name if it is about its blocks.
    pub names: BTreeSet<Arc<str>>,
    /// The store shows an older state of the node than it showed before.
    pub regressed: bool,
    /// The node says that it found the store rewritten.
    pub recovering: bool,
}

/// The other nodes.
#[derive(Debug)]
pub struct Peers {
    me: Arc<str>,
    network: Option<Arc<Network>>,
    own: Vec<HeldBlock>,
    entries: BTreeMap<Arc<str>, Entry>,
    owners: BTreeMap<Subnet, Vec<(u64, Arc<str>)>>,
    retired: BTreeMap<Subnet, (u64, Arc<str>)>,
    held: [u64; 2],
    outstanding: usize,
}

impl Peers {
    pub fn new(me: Arc<str>) -> Self {
        Self {
            me,
            network: None,
            own: Vec::new(),
            entries: BTreeMap::new(),
            owners: BTreeMap::new(),
            retired: BTreeMap::new(),
            held: [0; 2],
            outstanding: 0,
        }
    }

    /// Other blocks may count now.
    pub fn set_network(&mut self, network: Arc<Network>) {
        self.network = Some(network);
        self.owners.clear();
        self.retired.clear();
        self.held = [0; 2];
        let names: Vec<Arc<str>> = self.entries.keys().cloned().collect();
        for name in names {
            self.index(&name, true, &mut BTreeSet::new());
        }
        for held in self.own.clone() {
            self.add_owner(held, &self.me.clone(), &mut BTreeSet::new());
        }
    }

    /// This node's own record lists these.
    pub fn set_own(&mut self, blocks: &[HeldBlock]) -> BTreeSet<Arc<str>> {
        let mut names = BTreeSet::new();
        let me = self.me.clone();
        for held in std::mem::replace(&mut self.own, blocks.to_vec()) {
            if !blocks.contains(&held) {
                self.drop_owner(held, &me, &mut names);
            }
        }
        for held in blocks {
            self.add_owner(*held, &me, &mut names);
        }
        names
    }

    /// A record of another node was read or reported.
    pub fn apply(&mut self, record: NodeRecord, mod_revision: i64) -> Touched {
        let name = record.name.clone();
        let mut entry = Entry::new(record, mod_revision);
        let mut touched = Touched::default();
        if let Some(old) = self.entries.get(&name) {
            touched.recovering = entry.recovered_at > old.recovered_at;
            if entry.version() < old.newest() {
                let (epoch, serial) = old.newest();
                let blocks = old.all_blocks().into();
                entry.before = Some(Box::new(Before { epoch, serial, blocks }));
                touched.regressed = old.before.is_none();
            }
        }
        self.put(&name, Some(entry), &mut touched.names);
        touched
    }

    /// A node's key is not there. Its entry stays until [`Peers::forget`].
    pub fn vanish(&mut self, name: &str) -> bool {
        let Some(entry) = self.entries.get_mut(name) else { return false };
        !std::mem::replace(&mut entry.gone, true)
    }

    /// Nobody asks for this node any more.
    pub fn forget(&mut self, name: &str) -> BTreeSet<Arc<str>> {
        let mut names = BTreeSet::new();
        let key = self.entries.get_key_value(name).map(|(key, _)| key.clone());
        if let Some(key) = key {
            self.put(&key, None, &mut names);
        }
        names
    }

    /// The history that was lost is given up: a person said so.
    pub fn accept(&mut self) -> BTreeSet<Arc<str>> {
        let mut names = BTreeSet::new();
        let lost: Vec<Arc<str>> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.outstanding())
            .map(|(name, _)| name.clone())
            .collect();
        for name in lost {
            let entry = self.entries.get(&name).map(|entry| Entry { before: None, ..entry.clone() });
            self.put(&name, entry, &mut names);
        }
        names
    }

    /// From a cached snapshot.
    pub fn restore(&mut self, name: Arc<str>, entry: Entry) {
        self.put(&name, Some(entry), &mut BTreeSet::new());
    }

    fn put(&mut self, name: &Arc<str>, entry: Option<Entry>, names: &mut BTreeSet<Arc<str>>) {
        names.insert(name.clone());
        self.index(name, false, names);
        self.outstanding -= usize::from(self.entries.get(name).is_some_and(Entry::outstanding));
        match entry {
            Some(entry) => {
                self.outstanding += usize::from(entry.outstanding());
                self.entries.insert(name.clone(), entry);
                self.index(name, true, names);
            }
            None => {
                self.entries.remove(name);
            }
        }
    }

    /// Puts a node's blocks into the index, or takes them out of it.
    fn index(&mut self, name: &Arc<str>, add: bool, names: &mut BTreeSet<Arc<str>>) {
        let Some(entry) = self.entries.get(name) else { return };
        let (state, until, blocks) = (entry.state, entry.until, entry.all_blocks());
        for held in blocks {
            match (state, add) {
                (NodeState::Active, true) => self.add_owner(held, name, names),
                (NodeState::Active, false) => self.drop_owner(held, name, names),
                (NodeState::Removed, true) => {
                    self.retired.insert(held.cidr, (until.unwrap_or(0), name.clone()));
                }
                (NodeState::Removed, false) => {
                    if self.retired.get(&held.cidr).is_some_and(|(_, owner)| owner == name) {
                        self.retired.remove(&held.cidr);
                    }
                }
            }
        }
    }

    fn add_owner(&mut self, held: HeldBlock, name: &Arc<str>, names: &mut BTreeSet<Arc<str>>) {
        let Some(network) = &self.network else { return };
        if !is_block(network, &held.cidr) {
            return;
        }
        let owners = self.owners.entry(held.cidr).or_default();
        if owners.is_empty() {
            self.held[usize::from(held.cidr.is_ipv4())] += 1;
        }
        owners.retain(|(_, owner)| owner != name);
        owners.push((held.epoch, name.clone()));
        if owners.len() > 1 {
            names.extend(owners.iter().map(|(_, owner)| owner.clone()));
        }
    }

    fn drop_owner(&mut self, held: HeldBlock, name: &Arc<str>, names: &mut BTreeSet<Arc<str>>) {
        let Some(owners) = self.owners.get_mut(&held.cidr) else { return };
        let before = owners.len();
        owners.retain(|(_, owner)| owner != name);
        names.extend(owners.iter().map(|(_, owner)| owner.clone()));
        if owners.is_empty() && before > 0 {
            self.owners.remove(&held.cidr);
            self.held[usize::from(held.cidr.is_ipv4())] -= 1;
        }
    }

    /// Who has this block: of several the one with the highest epoch; of equal ones, so that all agree, the first name.
    pub fn owner(&self, block: &Subnet) -> Option<&Arc<str>> {
        let owners = self.owners.get(block)?;
        owners.iter().max_by(|(a, one), (b, other)| a.cmp(b).then(other.cmp(one))).map(|(_, name)| name)
    }

    /// Others that list a block of this node, with their epochs.
    pub fn rivals(&self, block: &Subnet) -> Vec<(u64, Arc<str>)> {
        let all = self.owners.get(block).map(Vec::as_slice).unwrap_or_default();
        all.iter().filter(|(_, name)| *name != self.me).cloned().collect()
    }

    /// Until when a block of a removed node is kept, in seconds since 1970.
    pub fn retired_until(&self, block: &Subnet) -> Option<u64> {
        self.retired.get(block).map(|(until, _)| *until)
    }

    /// How many blocks of a family somebody holds.
    pub fn held(&self, ipv4: bool) -> u64 {
        self.held[usize::from(ipv4)]
    }

    /// The node of this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All others.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Entry)> {
        self.entries.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether something is known from an earlier history only.
    pub fn outstanding(&self) -> bool {
        self.outstanding > 0
    }

    /// What is wanted of a node; `None` if it is to be forgotten.
    pub fn peer(&self, name: &str) -> Option<Peer> {
        let entry = self.entries.get(name).filter(|entry| entry.state == NodeState::Active)?;
        let blocks = self.won(name, &entry.all_blocks());
        let node_addresses = node_addresses(&blocks);
        Some(Peer { published: entry.addresses.to_vec(), blocks, node_addresses, vtep_mac: entry.vtep_mac })
    }

    /// Those of a node's blocks that no other has with a higher epoch.
    pub fn won(&self, name: &str, blocks: &[HeldBlock]) -> Vec<Subnet> {
        let wins = |held: &&HeldBlock| self.owner(&held.cidr).is_some_and(|owner| **owner == *name);
        blocks.iter().filter(wins).map(|held| held.cidr).collect()
    }
}

/// The node's own address per family: the first of its first block.
pub fn node_addresses(blocks: &[Subnet]) -> Vec<IpAddr> {
    let first = |ipv4| blocks.iter().find(|block| block.is_ipv4() == ipv4).map(Subnet::first);
    [true, false].into_iter().filter_map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    fn record(name: &str, serial: u64, blocks: &[(&str, u64)]) -> NodeRecord {
        NodeRecord {
            format: 1,
            name: name.into(),
            instance: format!("i-{name}"),
            epoch: 1,
            serial,
            state: NodeState::Active,
            addresses: vec!["192.0.2.1/24".parse().unwrap()],
            blocks: blocks
                .iter()
                .map(|(cidr, epoch)| HeldBlock { cidr: cidr.parse().unwrap(), epoch: *epoch })
                .collect(),
            vtep_mac: None,
            version: String::new(),
            session: "s".to_owned(),
            recovered_at: 0,
            removed: None,
            unknown: Map::new(),
        }
    }

    fn peers() -> Peers {
        let mut peers = Peers::new("me".into());
        let cidrs = vec!["10.1.0.0/16".parse().unwrap()];
        peers.set_network(Arc::new(Network { cidrs, ..Network::default() }));
        peers
    }

    fn blocks(peers: &Peers, name: &str) -> Vec<String> {
        peers.peer(name).unwrap().blocks.iter().map(Subnet::to_string).collect()
    }

    #[test]
    fn the_higher_epoch_wins_whatever_comes_first() {
        for swap in [false, true] {
            let mut peers = peers();
            let mut records = [
                record("a", 1, &[("10.1.0.0/26", 5)]),
                record("b", 1, &[("10.1.0.0/26", 9), ("10.1.1.0/26", 2)]),
            ];
            if swap {
                records.reverse();
            }
            for record in records {
                peers.apply(record, 1);
            }
            assert_eq!(blocks(&peers, "a"), Vec::<String>::new());
            assert_eq!(blocks(&peers, "b"), ["10.1.0.0/26", "10.1.1.0/26"]);
            assert_eq!(peers.held(true), 2);
            let touched = peers.apply(record("b", 2, &[("10.1.1.0/26", 2)]), 2);
            assert_eq!(touched.names.iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(
                blocks(&peers, "a"),
                ["10.1.0.0/26"],
                "the loser has it again when the winner returns it"
            );
        }
    }

    #[test]
    fn equal_epochs_are_decided_alike_on_every_node() {
        let mut peers = peers();
        peers.apply(record("b", 1, &[("10.1.0.0/26", 5)]), 1);
        peers.apply(record("a", 1, &[("10.1.0.0/26", 5)]), 1);
        assert_eq!(peers.owner(&"10.1.0.0/26".parse().unwrap()).map(|name| &**name), Some("a"));
    }

    #[test]
    fn a_record_cannot_take_routes_of_what_is_no_block_of_the_cluster() {
        let mut peers = peers();
        peers.apply(record("evil", 1, &[("0.0.0.0/0", 9), ("10.2.0.0/26", 9), ("10.1.0.0/24", 9)]), 1);
        assert_eq!(blocks(&peers, "evil"), Vec::<String>::new());
        assert_eq!(peers.held(true), 0);
    }

    #[test]
    fn an_older_state_of_a_node_loses_it_nothing_until_it_speaks_again() {
        let mut peers = peers();
        peers.apply(record("a", 7, &[("10.1.0.0/26", 5), ("10.1.1.0/26", 6)]), 9);
        let touched = peers.apply(record("a", 3, &[("10.1.0.0/26", 5)]), 4);
        assert!(touched.regressed && peers.outstanding());
        assert_eq!(blocks(&peers, "a"), ["10.1.0.0/26", "10.1.1.0/26"]);
        peers.apply(record("a", 4, &[("10.1.0.0/26", 5)]), 5);
        assert!(peers.outstanding(), "still behind what was known");
        peers.apply(record("a", 8, &[("10.1.0.0/26", 5)]), 6);
        assert!(!peers.outstanding());
        assert_eq!(blocks(&peers, "a"), ["10.1.0.0/26"]);
        assert_eq!(peers.held(true), 1);
    }

    #[test]
    fn a_tombstone_goes_at_once_and_keeps_its_blocks_from_others() {
        let mut peers = peers();
        peers.apply(record("a", 7, &[("10.1.0.0/26", 5)]), 9);
        let removed = super::super::record::RemovedAt { at: 10, until: Some(99), acknowledged: false };
        let tombstone = NodeRecord {
            epoch: 2,
            state: NodeState::Removed,
            removed: Some(removed),
            ..record("a", 7, &[("10.1.0.0/26", 5)])
        };
        peers.apply(tombstone, 10);
        assert_eq!(peers.peer("a"), None);
        let block = "10.1.0.0/26".parse().unwrap();
        assert_eq!((peers.owner(&block), peers.retired_until(&block)), (None, Some(99)));
    }
}
