//! What others hear: the data plane, the disk, whoever waits for readiness.

use std::sync::Arc;
use std::time::Duration;

use weft_cni::ip::Subnet;
use weft_overlay::wanted::{Peers, ThisNode, Wanted};

use super::{Machine, Phase};
use crate::cluster::finding::Code;
use crate::cluster::identity::vtep_mac;
use crate::cluster::memory::{Memory, Moment, SnapshotRef};
use crate::cluster::peers::node_addresses;
use crate::cluster::record::FORMAT;
use crate::cluster::{Changed, Output};

/// How long the first order to the data plane waits for this node's first block, at most: it mostly comes with the next
/// few answers of the store.
const FIRST_BLOCK: Duration = Duration::from_secs(5);

/// How long a changed snapshot waits, at least: it is written in one piece.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(30);

/// The first one comes soon: a node that boots without it and without the store has nothing to start from.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(2);

/// And a little more for each node in it, so that 5,000 of them do not keep the disk busy.
const SNAPSHOT_PER_NODE: Duration = Duration::from_millis(50);

/// How old the time of contact on the disk may get.
const CONTACT_EVERY: Duration = Duration::from_secs(600);

impl Machine {
    pub(super) fn publish(&mut self) {
        self.publish_wanted();
        let ready =
            self.wanted.is_some() && self.own_blocks().iter().any(|block| self.local.is_granted(block));
        if ready != self.ready {
            self.ready = ready;
            self.out.push_back(Output::Ready(ready));
        }
        if self.memory_due().is_some_and(|at| self.now.boot >= at) {
            self.write_memory();
        }
        if self.snapshot_due.is_some_and(|at| self.now.boot >= at) {
            self.write_snapshot();
        }
    }

    pub(super) fn publish_wanted(&mut self) {
        let Some(network) = self.network.clone() else { return };
        let names = std::mem::take(&mut self.touched);
        if self.awaits_first_block() {
            return;
        }
        let this = self.this_node();
        let may_remove = self.may_remove();
        let all = std::mem::take(&mut self.all_touched);
        let Some(wanted) = self.wanted.as_mut().filter(|_| !all) else {
            let peers = self.all_peers();
            let network = &network;
            self.emit_wanted(
                Wanted {
                    cidrs: network.cidrs.clone(),
                    backend: network.backend,
                    direct: network.direct,
                    masquerade: network.masquerade,
                    no_masquerade: network.no_masquerade.clone(),
                    mtu: self.facts.mtu,
                    this,
                    peers,
                    may_remove,
                }
                .into(),
                Changed::All,
            );
            return;
        };
        let mut changed = Vec::new();
        for name in names.into_iter().filter(|name| *name != self.facts.node) {
            let peer = self.peers.peer(&name);
            if wanted.peers.get(&name).map(|peer| &**peer) == peer.as_ref() {
                continue;
            }
            let wanted = Arc::make_mut(wanted);
            match peer {
                Some(peer) => wanted.peers.insert(name.clone(), Arc::new(peer)),
                None => wanted.peers.remove(&name),
            };
            changed.push(name);
        }
        let head = wanted.this != this || wanted.may_remove != may_remove;
        if head {
            let wanted = Arc::make_mut(wanted);
            (wanted.this, wanted.may_remove) = (this, may_remove);
        }
        let wanted = wanted.clone();
        if head {
            self.emit_wanted(wanted, Changed::All);
        } else if !changed.is_empty() {
            self.emit_wanted(wanted, Changed::Peers(changed));
        }
    }

    /// Whether the first order waits: the address that comes with this node's first block is on the routes to all peers,
    /// so without it all of them would be written twice. A node that has blocks by what it remembers never waits, nor
    /// does one that cannot get any as things are.
    fn awaits_first_block(&mut self) -> bool {
        if self.wanted.is_some() || !self.own_blocks().is_empty() {
            return false;
        }
        let joins = matches!(self.phase, Phase::Starting | Phase::Member);
        let claims = self.claims.full_until.is_none() && self.pause_left().is_none();
        let refused = [Code::StoreAway, Code::StoreRefuses, Code::StoreFull];
        let refused = refused.into_iter().any(|code| self.findings.contains_key(&(code, String::new())));
        let until = *self.first_order_by.get_or_insert(self.now.boot + FIRST_BLOCK);
        joins && claims && !refused && !self.unreadable && self.now.boot < until
    }

    /// When the first order comes at the latest, while it waits.
    pub(super) fn first_order_due(&self) -> Option<Duration> {
        self.first_order_by.filter(|_| self.wanted.is_none())
    }

    fn emit_wanted(&mut self, wanted: Arc<Wanted>, changed: Changed) {
        self.wanted = Some(wanted.clone());
        self.out.push_back(Output::Wanted { wanted, changed });
    }

    fn all_peers(&self) -> Peers {
        let peer = |name: &Arc<str>| Some((name.clone(), Arc::new(self.peers.peer(name)?)));
        self.peers.iter().filter_map(|(name, _)| peer(name)).collect()
    }

    fn this_node(&self) -> ThisNode {
        let record = self.record();
        let away = matches!(self.phase, Phase::Removed);
        let held = record.filter(|_| !away).map(|record| record.blocks.as_slice()).unwrap_or_default();
        let blocks: Vec<Subnet> = self.peers.won(&self.facts.node, held);
        let published = record.map_or(&self.published.value, |record| &record.addresses);
        ThisNode {
            name: self.facts.node.clone(),
            node_addresses: node_addresses(&blocks),
            blocks,
            vtep_mac: vtep_mac(&self.me.instance),
            published: published.clone(),
        }
    }

    /// Another snapshot should be written.
    pub(super) fn snapshot_changed(&mut self) {
        let nodes = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        let at = match self.snapshot_written {
            Some(at) => at + SNAPSHOT_EVERY + SNAPSHOT_PER_NODE.saturating_mul(nodes),
            None => self.now.boot + FIRST_SNAPSHOT,
        };
        self.snapshot_due.get_or_insert(at);
    }

    /// Only what was complete is worth starting from.
    pub(super) fn write_snapshot(&mut self) {
        let Some(network) = self.network.clone().filter(|_| self.complete && self.network_revision != 0)
        else {
            return;
        };
        if self.snapshot_due.take().is_none() {
            return;
        }
        self.snapshot_written = Some(self.now.boot);
        let snapshot = SnapshotRef {
            format: FORMAT,
            cluster: self.cluster,
            revision: self.revision,
            config_revision: self.network_revision,
            network: &network,
            nodes: self.peers.iter().collect(),
        };
        let bytes = snapshot.to_bytes();
        self.out.push_back(Output::PersistSnapshot(bytes));
    }

    /// When the time of contact on the disk is too old.
    pub(super) fn memory_due(&self) -> Option<Duration> {
        self.memory_written.map(|at| at + self.contact_every())
    }

    /// When the own keys are read again because nothing was heard of the store for a while.
    pub(super) fn contact_due(&self) -> Option<Duration> {
        let age = self.contact.as_ref()?.age(&self.facts.stamp, self.now).unwrap_or(Duration::MAX);
        let due = self.now.boot + self.contact_every().saturating_sub(age);
        Some(due.max(self.verified_at + self.contact_every()))
    }

    fn contact_every(&self) -> Duration {
        let limit = self.network.as_ref().map(|network| Duration::from_secs(network.reissue_after / 20));
        limit.map_or(CONTACT_EVERY, |limit| limit.min(CONTACT_EVERY))
    }

    /// Writes what this node last said and heard.
    pub(super) fn write_memory(&mut self) {
        let Some(record) = self.memory.clone() else { return };
        let contact =
            self.contact.clone().unwrap_or_else(|| Moment { stamp: String::new(), boot: 0, wall: 0 });
        let memory =
            Memory { format: FORMAT, record, cluster: self.cluster, revision: self.revision, contact };
        self.memory_written = Some(self.now.boot);
        self.out.push_back(Output::PersistMemory(memory.to_bytes()));
    }
}
