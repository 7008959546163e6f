//! What `weftd status` says about this node's part in the cluster.

use serde::Serialize;
use weft_cni::ip::{IfAddr, Subnet};

use super::{Link, Machine, Phase};
use crate::cluster::blocks::total;
use crate::cluster::finding::{Code, Finding};
use crate::cluster::record::{HeldBlock, Network, NodeState};

/// The cluster as this node sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub node: String,
    /// Its id.
    pub instance: String,
    /// `starting`, `waiting`, `member`, `removed` or `superseded`.
    pub phase: &'static str,
    /// Why the store cannot be reached; `None` if it can, or if it refuses this node.
    pub store_away: Option<String>,
    /// Why it refuses this node, or what this node last asked of it; `None` if it does not.
    pub store_refuses: Option<String>,
    /// The highest revision seen.
    pub revision: i64,
    /// Whether all nodes are known as they are now.
    pub complete: bool,
    /// The store was rewritten, and not everybody has spoken since.
    pub rewritten: bool,
    /// The cluster's configuration.
    pub network: Option<Network>,
    /// How others reach this node.
    pub addresses: Vec<IfAddr>,
    /// Its blocks.
    pub blocks: Vec<HeldBlock>,
    /// Those of them that the plugin gives addresses of.
    pub granted: Vec<Subnet>,
    /// How many other nodes there are; those that were removed do not count.
    pub peers: usize,
    /// How many nodes were removed whose tombstones are in the store.
    pub tombstones: usize,
    /// Blocks held in the cluster and all there are, per family.
    pub held: Vec<Held>,
}

/// How full the cluster is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Held {
    /// Whether this is about IPv4.
    pub ipv4: bool,
    /// Blocks that somebody holds.
    pub held: u64,
    /// All there are.
    pub total: u64,
}

impl Machine {
    /// The cluster as this node sees it.
    pub fn status(&self) -> Status {
        let record = self.record();
        let tombstones = self.peers.iter().filter(|(_, entry)| entry.state == NodeState::Removed).count();
        let full = |network: &Network| {
            let held = |ipv4| Held { ipv4, held: self.peers.held(ipv4), total: total(network, ipv4) };
            network.families().map(held).collect()
        };
        Status {
            node: self.facts.node.to_string(),
            instance: self.me.instance.clone(),
            phase: match self.phase {
                Phase::Starting => "starting",
                Phase::Waiting { .. } => "waiting",
                Phase::Member => "member",
                Phase::Removed => "removed",
                Phase::Superseded => "superseded",
            },
            store_away: match &self.link {
                Link::Down { reason, refused: false } => Some(reason.clone()),
                Link::Up | Link::Down { refused: true, .. } => None,
            },
            store_refuses: match &self.link {
                Link::Down { reason, refused: true } => Some(reason.clone()),
                Link::Up | Link::Down { refused: false, .. } => {
                    let refusal = self.findings.get(&(Code::StoreRefuses, String::new()));
                    refusal.map(|finding| finding.sentence.clone())
                }
            },
            revision: self.revision,
            complete: self.complete,
            rewritten: self.rewritten.is_some(),
            network: self.network.as_deref().cloned(),
            addresses: record.map_or_else(|| self.published.value.clone(), |record| record.addresses.clone()),
            blocks: record.map(|record| record.blocks.clone()).unwrap_or_default(),
            granted: self.local.blocks().filter(|block| self.local.is_granted(block)).collect(),
            peers: self.peers.len() - tombstones,
            tombstones,
            held: self.network.as_deref().map(full).unwrap_or_default(),
        }
    }

    /// What a person should know now.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.values()
    }
}
