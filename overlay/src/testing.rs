//! Small worlds for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_netlink::link::Mac;

use crate::underlay::{Facts, LinkFact};
use crate::wanted::{Backend, Direct, Peer, ThisNode, Wanted};

/// Links with addresses, from index 2 on.
pub fn facts(links: &[(&str, u32, &[&str])]) -> Facts {
    let mut facts = Facts::default();
    for ((name, mtu, addresses), index) in links.iter().zip(2..) {
        facts.links.insert(index, LinkFact { name: (*name).into(), mtu: *mtu, up: true });
        facts.addresses.extend(addresses.iter().map(|address| (index, address.parse().unwrap())));
    }
    facts
}

/// Node `a`, 192.0.2.1/24, with 10.1.1.0/24.
pub fn this() -> ThisNode {
    ThisNode {
        name: "a".into(),
        blocks: vec!["10.1.1.0/24".parse().unwrap()],
        node_addresses: vec!["10.1.1.0".parse().unwrap()],
        vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
        published: vec!["192.0.2.1/24".parse().unwrap()],
    }
}

/// A peer with these published addresses and blocks; its node addresses are the first of the first block.
pub fn peer(published: &[&str], blocks: &[&str], mac: u8) -> Arc<Peer> {
    let blocks: Vec<weft_cni::ip::Subnet> = blocks.iter().map(|block| block.parse().unwrap()).collect();
    let first = |v4: bool| blocks.iter().find(|block| block.is_ipv4() == v4).map(weft_cni::ip::Subnet::first);
    Arc::new(Peer {
        published: published.iter().map(|address| address.parse().unwrap()).collect(),
        node_addresses: first(true).into_iter().chain(first(false)).collect(),
        vtep_mac: Some(Mac([2, 0, 0, 0, 0, mac])),
        blocks,
    })
}

/// Node `a` in a cluster of 10.1.0.0/16 without peers.
pub fn wanted(backend: Backend) -> Wanted {
    Wanted {
        cidrs: vec!["10.1.0.0/16".parse().unwrap()],
        backend,
        direct: Direct::Never,
        masquerade: true,
        no_masquerade: Vec::new(),
        mtu: None,
        this: this(),
        peers: BTreeMap::new(),
        may_remove: true,
    }
}
