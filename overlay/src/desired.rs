//! Decides what the kernel should have: from what the cluster wants and how this node reaches others. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_cni::ip::{IfAddr, Subnet};
use weft_netlink::link::{Mac, Vxlan};
use weft_netlink::rules::{Interval, Overlay};

use crate::finding::Finding;
use crate::mtu::{self, Pods};
use crate::objects::{Device, Hop, Key, LinkKind, LinkSpec, Object, Objects};
use crate::underlay::{Underlay, Way};
use crate::wanted::{Backend, Direct, Peer, ThisNode, Wanted};

/// What the kernel should have, and what stands in the way of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Links, addresses, neighbours, forwarding entries and routes.
    pub objects: Objects,
    /// Packet rules.
    pub rules: Overlay,
    /// The MTU that pods should have; `None` while no way to other nodes is known.
    pub pod_mtu: Option<u32>,
    /// What people should know.
    pub findings: BTreeSet<Finding>,
}

/// How a peer is reached.
struct Path<'a> {
    device: Device,
    remote: IpAddr,
    mac: Mac,
    peer: &'a Peer,
}

/// Decides. Peers whose addresses are no use to this node are left out, with a finding for each.
pub fn desired(wanted: &Wanted, underlay: &Underlay) -> Desired {
    let mut builder = Builder { wanted, underlay, to: Desired::default(), owners: BTreeMap::new() };
    builder.fail_closed();
    builder.node_addresses();
    builder.pod_mtu();
    builder.underlay_apart();
    for (name, peer) in &wanted.peers {
        match wanted.backend {
            Backend::Routes => builder.routed(name, peer),
            Backend::Vxlan { .. } => builder.tunnelled(name, peer),
        }
    }
    builder.carriers();
    builder.rules();
    builder.to
}

struct Builder<'a> {
    wanted: &'a Wanted,
    underlay: &'a Underlay,
    to: Desired,
    /// Who has a neighbour or forwarding entry already: two nodes of one MAC cannot both be reached.
    owners: BTreeMap<Key, &'a str>,
}

impl<'a> Builder<'a> {
    /// Before anything else: what nobody routes is refused here, instead of leaving by the default route.
    fn fail_closed(&mut self) {
        for subnet in self.wanted.cidrs.iter().chain(&self.wanted.this.blocks) {
            self.to.objects.insert(Key::unreachable(*subnet), Object::Plain);
        }
    }

    fn node_addresses(&mut self) {
        if self.wanted.this.node_addresses.is_empty() {
            return;
        }
        let holder = LinkSpec { up: true, kind: LinkKind::Holder };
        self.to.objects.insert(Key::Link(Device::Node), Object::Link(holder));
        for ip in &self.wanted.this.node_addresses {
            self.to.objects.insert(Key::Address(Device::Node, *ip), Object::Plain);
        }
    }

    /// A node whose own address is a pod's cannot be reached: packets for the cluster do not leave unrouted.
    fn underlay_apart(&mut self) {
        let this = &self.wanted.this;
        let peers = self.wanted.peers.iter().map(|(name, peer)| (name, &peer.published));
        let all = std::iter::once((&this.name, &this.published)).chain(peers);
        let inside = all.flat_map(|(name, published)| published.iter().map(move |address| (name, address)));
        let inside = inside.filter_map(|(name, address)| {
            let cidr = self.wanted.cidrs.iter().find(|cidr| cidr.contains(address.addr()))?;
            let text = format!(
                "node {name} publishes {address}, which is inside the cluster cidr {cidr}: packets to it are refused \
                 as packets to an unknown pod; the cluster cidrs must not hold node addresses"
            );
            Some(Finding { code: "underlay-in-cluster", subject: name.to_string(), text })
        });
        self.to.findings.extend(inside);
    }

    /// The published address by which this node is reached first says over which family it mostly sends.
    fn pod_mtu(&mut self) {
        let ipv4 = primary_is_ipv4(&self.wanted.this);
        let way = self.underlay.way(ipv4).or_else(|| self.underlay.way(!ipv4));
        self.to.pod_mtu = way.map(|way| self.mtu_over(way, ipv4));
        if way.is_none() {
            let published: Vec<_> = self.wanted.this.published.iter().map(ToString::to_string).collect();
            self.find(
                "no-underlay",
                &self.wanted.this.name,
                format!(
                    "no link that is up has a published address of this node ({}) and there is no default route: \
                     other nodes cannot be reached",
                    published.join(", ")
                ),
            );
        }
    }

    /// What the backend leaves of a link's MTU, unless a person has said.
    fn mtu_over(&mut self, way: &Way, ipv4: bool) -> u32 {
        let backend = match self.wanted.backend {
            Backend::Routes => mtu::Backend::Routes,
            Backend::Vxlan { .. } => mtu::Backend::Vxlan,
        };
        let family = if ipv4 { mtu::Underlay::V4 } else { mtu::Underlay::V6 };
        let pods = if self.wanted.has_family(false) { Pods::WithV6 } else { Pods::V4Only };
        let carried = mtu::pod_mtu(way.mtu, backend, family, pods).unwrap_or_else(|small| {
            self.find("mtu-too-small", &way.link, format!("link {}: {small}", way.link));
            way.mtu.saturating_sub(backend.overhead(family))
        });
        match self.wanted.mtu {
            Some(forced) if forced > carried => {
                let text = format!(
                    "the configured mtu {forced} is more than link {} carries ({carried}): large packets are lost",
                    way.link
                );
                self.find("mtu-too-large", &way.link, text);
                forced
            }
            Some(forced) if forced < pods.minimum() => {
                let text = format!(
                    "the configured mtu {forced} is less than pods need ({}): the kernel switches IPv6 off below it",
                    pods.minimum()
                );
                self.find("mtu-too-small", "mtu", text);
                forced
            }
            Some(forced) => forced,
            None => carried,
        }
    }

    /// Plain routes: the next hop is the node itself.
    fn routed(&mut self, name: &'a str, peer: &'a Peer) {
        for block in &peer.blocks {
            let Some((via, way)) = self.next_hop(peer, block.is_ipv4()) else {
                self.find("no-route", name, no_route(name, peer, block));
                continue;
            };
            let mtu = self.wanted.mtu.unwrap_or(way.mtu);
            self.route(name, *block, via, &way.link, mtu);
            self.direct(*block, via);
        }
    }

    /// The first published address of the peer that is on a link of ours, of the block's family if there is one. IPv4
    /// packets can take an IPv6 next hop, not the other way round.
    fn next_hop(&self, peer: &Peer, ipv4: bool) -> Option<(IpAddr, &'a Way)> {
        let on_link = |of_ipv4: bool| {
            let published = peer.published.iter().filter(move |address| address.is_ipv4() == of_ipv4);
            published.map(IfAddr::addr).find_map(|ip| Some((ip, self.underlay.on_link(ip)?)))
        };
        on_link(ipv4).or_else(|| if ipv4 { on_link(false) } else { None })
    }

    fn tunnelled(&mut self, name: &'a str, peer: &'a Peer) {
        let direct = match self.wanted.direct {
            Direct::Never => None,
            Direct::SameSubnet => shared_subnet(&self.wanted.this.published, &peer.published),
        };
        let mut path = None;
        for block in &peer.blocks {
            let direct = direct.filter(|via| via.is_ipv4() == block.is_ipv4() || block.is_ipv4());
            if let Some(way) = direct.and_then(|via| self.underlay.on_link(via)) {
                let mtu = self.wanted.mtu.unwrap_or(way.mtu);
                let via = direct.unwrap_or_else(|| block.first());
                self.route(name, *block, via, &way.link, mtu);
                self.direct(*block, via);
                continue;
            }
            if path.is_none() {
                path = self.path(name, peer);
            }
            if let Some(path) = &path {
                self.through(name, path, *block);
            }
        }
    }

    /// Over IPv4 if both nodes publish such an address, else over IPv6: both decide alike.
    fn path(&mut self, name: &'a str, peer: &'a Peer) -> Option<Path<'a>> {
        let this = &self.wanted.this;
        let shared = |ipv4| this.published(ipv4).and_then(|_| peer.published(ipv4));
        let Some(remote) = shared(true).or_else(|| shared(false)) else {
            let text = format!(
                "node {name} and this node publish no addresses of one family ({} and {}): there is no way between them",
                list(&peer.published),
                list(&this.published)
            );
            self.find("no-common-family", name, text);
            return None;
        };
        let Some(mac) = peer.vtep_mac else {
            let text =
                format!("node {name} publishes no MAC of its VXLAN device: it does not use this backend yet");
            self.find("no-vtep-mac", name, text);
            return None;
        };
        let second = primary_is_ipv4(this) && !remote.is_ipv4();
        let device = if second { Device::Vxlan6 } else { Device::Vxlan };
        Some(Path { device, remote: remote.addr(), mac, peer })
    }

    fn through(&mut self, name: &'a str, path: &Path<'a>, block: Subnet) {
        let Some(inner) = path.peer.inner(block.is_ipv4()) else { return };
        let Some(way) = self.underlay.way(path.remote.is_ipv4()) else { return };
        let mtu = self.mtu_over(way, path.remote.is_ipv4());
        let entries = [
            (Key::Neighbour(path.device, inner), Object::Mac(path.mac)),
            (Key::Forward(path.device, path.mac), Object::Remote(path.remote)),
        ];
        for (key, object) in entries {
            let owner = *self.owners.entry(key.clone()).or_insert(name);
            if owner != name {
                let text = format!("nodes {owner} and {name} both publish the {key}: {name} is not reached");
                self.find("clash", name, text);
                return;
            }
            self.to.objects.insert(key, object);
        }
        self.route(name, block, inner, &path.device.name().into(), mtu);
    }

    fn route(&mut self, name: &'a str, block: Subnet, via: IpAddr, link: &std::sync::Arc<str>, mtu: u32) {
        let key = Key::route(block);
        let owner = *self.owners.entry(key.clone()).or_insert(name);
        if owner != name {
            let text =
                format!("nodes {owner} and {name} both publish block {block}: {owner} gets its packets");
            return self.find("clash", name, text);
        }
        let source = self.wanted.this.node_address(block.is_ipv4());
        let hop = Hop { via, link: link.clone(), source, mtu: Some(mtu) };
        self.to.objects.insert(key, Object::Hop(hop));
    }

    /// Tells the rules of a next hop on the underlay itself.
    fn direct(&mut self, block: Subnet, via: IpAddr) {
        if via.is_ipv4() == block.is_ipv4() {
            self.to.rules.next_hops.insert(via);
        } else {
            self.to.rules.unseen.extend(interval(&block));
        }
    }

    /// The VXLAN devices. The first one is there before any peer is: others may send already.
    fn carriers(&mut self) {
        let Backend::Vxlan { vni, port } = self.wanted.backend else { return };
        let primary = primary_is_ipv4(&self.wanted.this);
        for (device, ipv4) in [(Device::Vxlan, primary), (Device::Vxlan6, false)] {
            let Some(way) = self.underlay.way(ipv4) else { continue };
            let publishes = self.wanted.this.published(ipv4).is_some();
            if !publishes || (device == Device::Vxlan6 && !primary) {
                continue;
            }
            // The second one as soon as the node publishes both: a node with IPv6 only may send any time.
            let mtu = self.mtu_over(way, ipv4);
            let settings = Vxlan { vni, port, local: way.source, learning: false };
            let kind = LinkKind::Vxlan { mac: self.wanted.this.vtep_mac, mtu, settings };
            self.to.objects.insert(Key::Link(device), Object::Link(LinkSpec { up: true, kind }));
        }
    }

    fn rules(&mut self) {
        let rules = &mut self.to.rules;
        rules.cluster = self.wanted.cidrs.iter().filter_map(interval).collect();
        if self.wanted.masquerade {
            rules.masquerade.clone_from(&rules.cluster);
        }
        rules.plain = self.wanted.no_masquerade.iter().filter_map(interval).collect();
        rules.outside.clone_from(&self.underlay.outside);
    }

    fn find(&mut self, code: &'static str, subject: &str, text: String) {
        self.to.findings.insert(Finding { code, subject: subject.to_owned(), text });
    }
}

/// Whether this node is reached over IPv4 first: if it publishes such an address.
fn primary_is_ipv4(this: &ThisNode) -> bool {
    this.published(true).is_some() || this.published(false).is_none()
}

/// The peer's address in a subnet that both *publish*. Both nodes find the same subnet from the same two records,
/// whatever their links say at the moment: a decision by one alone would send one way plain and the other tunnelled.
fn shared_subnet(ours: &[IfAddr], theirs: &[IfAddr]) -> Option<IpAddr> {
    let host = |address: &IfAddr| address.prefix_len() == if address.is_ipv4() { 32 } else { 128 };
    let subnets: BTreeSet<_> = ours.iter().filter(|address| !host(address)).map(IfAddr::subnet).collect();
    let shared = theirs.iter().filter(|address| subnets.contains(&address.subnet()));
    shared.min_by_key(|address| (!address.is_ipv4(), address.subnet())).map(IfAddr::addr)
}

fn no_route(name: &str, peer: &Peer, block: &Subnet) -> String {
    if !block.is_ipv4() && peer.published(false).is_none() {
        return format!(
            "block {block} of node {name}: IPv6 packets need an IPv6 next hop, and {name} publishes none ({}); \
             backend \"vxlan\" carries them over IPv4",
            list(&peer.published)
        );
    }
    format!(
        "block {block} of node {name}: none of its addresses ({}) is on a link of this node, and a router between them \
         knows no pods; backend \"vxlan\" goes through routers",
        list(&peer.published)
    )
}

fn list(addresses: &[IfAddr]) -> String {
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

fn interval(subnet: &Subnet) -> Option<Interval> {
    Interval::new(subnet.first(), subnet.last())
}

#[cfg(test)]
mod tests;
