//! What the node has to reach others by: which link, source address and MTU. Pure: from facts that the kernel told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_cni::ip::{IfAddr, Subnet};

use crate::wanted::ThisNode;

/// Names that begin so are Weft's own devices, never underlay.
pub const OWN_PREFIX: &str = "weft-";

/// The node's links and addresses as far as they matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Links by index.
    pub links: BTreeMap<u32, LinkFact>,
    /// Addresses, by link.
    pub addresses: BTreeSet<(u32, IfAddr)>,
    /// Links that a default route leads to, and whether it is the IPv4 one.
    pub defaults: BTreeSet<(u32, bool)>,
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFact {
    /// Its name.
    pub name: Arc<str>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
}

/// How other nodes are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    /// Over IPv4.
    pub v4: Option<Way>,
    /// Over IPv6.
    pub v6: Option<Way>,
    /// Networks that links are in: hosts in them need no router.
    pub on_link: Vec<(Subnet, Way)>,
    /// Names of the links that lead out of the node.
    pub outside: BTreeSet<String>,
}

/// A link that leads to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Its name.
    pub link: Arc<str>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The node's published address, if a link has it (behind NAT none does).
    pub source: Option<IpAddr>,
}

impl Underlay {
    /// The way of a family.
    pub fn way(&self, ipv4: bool) -> Option<&Way> {
        if ipv4 { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    /// The link that `ip` is on without a router between, the most specific network first.
    pub fn on_link(&self, ip: IpAddr) -> Option<&Way> {
        let holding = self.on_link.iter().filter(|(network, _)| network.contains(ip));
        holding.max_by_key(|(network, _)| network.prefix_len()).map(|(_, way)| way)
    }
}

/// Finds out how this node reaches others: by the link that has its published address, else by the default route.
pub fn detect(facts: &Facts, this: &ThisNode) -> Underlay {
    let way = |ipv4| family_way(facts, this, ipv4);
    let mut underlay = Underlay { v4: way(true), v6: way(false), ..Underlay::default() };
    for (index, address) in &facts.addresses {
        let host = if address.is_ipv4() { 32 } else { 128 };
        let link_local = matches!(address.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local());
        if address.prefix_len() == host || link_local || address.addr().is_loopback() {
            continue;
        }
        if let Some(link) = foreign(facts, *index) {
            let way = Way { link: link.name.clone(), mtu: link.mtu, source: Some(address.addr()) };
            underlay.on_link.push((address.subnet(), way));
        }
    }
    let defaults = facts.defaults.iter().filter_map(|(index, _)| foreign(facts, *index));
    underlay.outside.extend(defaults.map(|link| link.name.to_string()));
    underlay.outside.extend(underlay.v4.iter().chain(&underlay.v6).map(|way| way.link.to_string()));
    underlay
}

fn family_way(facts: &Facts, this: &ThisNode, ipv4: bool) -> Option<Way> {
    let published: Vec<_> = this.published.iter().filter(|address| address.is_ipv4() == ipv4).collect();
    for address in &published {
        let held = facts.addresses.iter().find(|(_, held)| held.addr() == address.addr());
        if let Some(link) = held.and_then(|(index, _)| foreign(facts, *index)) {
            return Some(Way { link: link.name.clone(), mtu: link.mtu, source: Some(address.addr()) });
        }
    }
    let defaults = facts.defaults.iter().filter(|(_, is_ipv4)| *is_ipv4 == ipv4 && !published.is_empty());
    let link = defaults.filter_map(|(index, _)| foreign(facts, *index)).min_by_key(|link| link.mtu)?;
    Some(Way { link: link.name.clone(), mtu: link.mtu, source: None })
}

/// A link that is up and not ours.
fn foreign(facts: &Facts, index: u32) -> Option<&LinkFact> {
    facts.links.get(&index).filter(|link| link.up && !link.name.starts_with(OWN_PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{facts, this};

    #[test]
    fn the_link_with_the_published_address_leads_to_the_peers() {
        let underlay =
            detect(&facts(&[("eth0", 1500, &["192.0.2.1/24"]), ("eth1", 9000, &["10.9.0.1/24"])]), &this());
        let way = underlay.v4.as_ref().unwrap();
        assert_eq!((&*way.link, way.mtu, way.source), ("eth0", 1500, Some("192.0.2.1".parse().unwrap())));
        assert_eq!(underlay.v6, None);
        assert_eq!(&*underlay.on_link("10.9.0.7".parse().unwrap()).unwrap().link, "eth1");
        assert_eq!(underlay.on_link("10.8.0.7".parse().unwrap()), None);
    }

    #[test]
    fn behind_nat_the_default_route_tells() {
        let mut facts = facts(&[("eth0", 1460, &["10.0.0.5/24"])]);
        facts.defaults.insert((2, true));
        let way = detect(&facts, &this()).v4.unwrap();
        assert_eq!((&*way.link, way.mtu, way.source), ("eth0", 1460, None));
    }

    #[test]
    fn a_link_that_is_down_or_ours_is_no_way() {
        let mut down = facts(&[("eth0", 1500, &["192.0.2.1/24"])]);
        down.links.get_mut(&2).unwrap().up = false;
        assert_eq!(detect(&down, &this()).v4, None);
        let ours = facts(&[("weft-node", 1500, &["192.0.2.1/24"])]);
        assert_eq!(detect(&ours, &this()), Underlay::default());
    }
}
