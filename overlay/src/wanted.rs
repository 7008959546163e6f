//! What the cluster's machine asks of the data plane: plain data, complete each time, nothing of it read from the kernel.
//!
//! Peers are shared ([`Arc`]), so that a new [`Wanted`] with one changed peer of 5,000 costs its maker 5,000 counters
//! and no copy: clone the map, put the new [`Peer`] in, keep all others. The data plane is told which one it is and keeps
//! no reference, so that mostly not even the map has to be cloned.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_cni::ip::{IfAddr, Subnet};
use weft_netlink::link::Mac;

/// The IANA port of VXLAN (RFC 7348 §5).
pub const VXLAN_PORT: u16 = 4789;

/// Everything this node's kernel should do for the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// All that pods of the cluster can have as addresses. What no block of a node covers is unreachable.
    pub cidrs: Vec<Subnet>,
    /// What carries packets from node to node.
    pub backend: Backend,
    /// Whether nodes of one subnet leave the backend's device out.
    pub direct: Direct,
    /// Whether packets of pods to addresses outside of `cidrs` leave under the node's own address.
    pub masquerade: bool,
    /// Destinations that see the pod's own address besides `cidrs`.
    pub no_masquerade: Vec<Subnet>,
    /// An MTU for pods that a person has set; `None`: what the underlay carries.
    pub mtu: Option<u32>,
    /// This node.
    pub this: ThisNode,
    /// The other nodes, by name: those that should be reached now. Who owns a contested block and how long a vanished
    /// node stays is decided before.
    pub peers: Peers,
    /// Whether what is not wanted may be removed. False before the first complete snapshot, from a cache, and on a
    /// store that was rewritten: then the data plane adds and changes only.
    pub may_remove: bool,
}

/// The other nodes, by name.
pub type Peers = BTreeMap<Arc<str>, Arc<Peer>>;

/// What is new in a [`Wanted`] since the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Anything.
    All,
    /// These peers came, changed or went; nothing else.
    Peers(Vec<Arc<str>>),
}

/// What carries packets from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Backend {
    /// A route per block by way of its node: nodes share a link.
    Routes,
    /// Frames in UDP (RFC 7348).
    Vxlan {
        /// Network identifier, 24 bits.
        vni: u32,
        /// UDP port, the same on all nodes; [`VXLAN_PORT`] if nothing speaks against it.
        port: u16,
    },
}

/// Whether nodes of one subnet leave the backend's device out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direct {
    /// All traffic takes the backend.
    #[default]
    Never,
    /// Plain routes between two nodes whose published addresses are in one subnet, by the records of both.
    SameSubnet,
}

/// This node as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThisNode {
    /// Its name.
    pub name: Arc<str>,
    /// Pod blocks it holds.
    pub blocks: Vec<Subnet>,
    /// The first address of its first block, per family: on a link of ours, never a pod's.
    pub node_addresses: Vec<IpAddr>,
    /// The MAC of its VXLAN device, published before it is used.
    pub vtep_mac: Mac,
    /// Its addresses as its record has them: others reach it by these.
    pub published: Vec<IfAddr>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its addresses as its record has them, in its order of preference within a family.
    pub published: Vec<IfAddr>,
    /// Its pod blocks.
    pub blocks: Vec<Subnet>,
    /// The first address of its first block, per family.
    pub node_addresses: Vec<IpAddr>,
    /// The MAC of its VXLAN device; without one VXLAN cannot reach it.
    pub vtep_mac: Option<Mac>,
}

impl Peer {
    /// Its first published address of a family.
    pub fn published(&self, ipv4: bool) -> Option<IfAddr> {
        first_of(&self.published, ipv4)
    }

    /// The address that stands for it inside the overlay: its node address, or the first of its first block.
    pub fn inner(&self, ipv4: bool) -> Option<IpAddr> {
        let node = self.node_addresses.iter().find(|address| address.is_ipv4() == ipv4).copied();
        node.or_else(|| self.blocks.iter().find(|block| block.is_ipv4() == ipv4).map(Subnet::first))
    }
}

impl ThisNode {
    /// Its first published address of a family.
    pub fn published(&self, ipv4: bool) -> Option<IfAddr> {
        first_of(&self.published, ipv4)
    }

    /// Its node address of a family.
    pub fn node_address(&self, ipv4: bool) -> Option<IpAddr> {
        self.node_addresses.iter().find(|address| address.is_ipv4() == ipv4).copied()
    }
}

impl Wanted {
    /// All but the peers.
    #[must_use]
    pub fn without_peers(&self) -> Self {
        Self {
            cidrs: self.cidrs.clone(),
            backend: self.backend,
            direct: self.direct,
            masquerade: self.masquerade,
            no_masquerade: self.no_masquerade.clone(),
            mtu: self.mtu,
            this: self.this.clone(),
            peers: Peers::new(),
            may_remove: self.may_remove,
        }
    }

    /// Whether pods speak this family.
    pub fn has_family(&self, ipv4: bool) -> bool {
        self.cidrs.iter().any(|cidr| cidr.is_ipv4() == ipv4)
    }
}

fn first_of(addresses: &[IfAddr], ipv4: bool) -> Option<IfAddr> {
    addresses.iter().find(|address| address.is_ipv4() == ipv4).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{peer, wanted};

    /// It goes to disk in snapshots and to people in `status`: names are kebab-case, addresses are texts.
    #[test]
    fn it_is_the_same_after_json() {
        let mut wanted = wanted(Backend::Vxlan { vni: 7, port: VXLAN_PORT });
        wanted.direct = Direct::SameSubnet;
        wanted.peers.insert("b".into(), peer(&["192.0.2.2/24"], &["10.1.2.0/24"], 2));
        let json = serde_json::to_string(&wanted).unwrap();
        assert!(
            json.contains(r#""backend":{"kind":"vxlan","vni":7,"port":4789},"direct":"same-subnet""#),
            "{json}"
        );
        assert!(json.contains(r#""vtep_mac":"02:00:00:00:00:02""#), "{json}");
        assert_eq!(serde_json::from_str::<Wanted>(&json).unwrap(), wanted);
    }
}
