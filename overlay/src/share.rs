//! What one peer is to the kernel, as if there were no other: so that a change of one peer is decided by itself. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use weft_cni::ip::{IfAddr, Subnet};
use weft_netlink::link::Mac;
use weft_netlink::rules::Interval;

use crate::desired::{interval, mtu_over, primary_is_ipv4};
use crate::finding::Finding;
use crate::objects::{Device, Hop, Key, Object};
use crate::underlay::{Underlay, Way};
use crate::wanted::{Backend, Direct, Peer, Wanted};

/// A peer's part of what the kernel should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Objects. Those before a route are what it needs.
    pub objects: Vec<(Key, Object)>,
    /// Next hops on the underlay itself.
    pub next_hops: BTreeSet<IpAddr>,
    /// Blocks whose next hop the packet rules cannot see.
    pub unseen: Vec<Interval>,
    /// What people should know.
    pub findings: Vec<Finding>,
}

/// How a peer is reached.
struct Path {
    device: Device,
    remote: IpAddr,
    mac: Mac,
}

/// Decides about one peer. The other peers of `wanted` do not matter.
pub fn share(wanted: &Wanted, underlay: &Underlay, name: &str, peer: &Peer) -> Share {
    let mut builder = Builder { wanted, underlay, name, peer, to: Share::default() };
    builder.apart();
    match wanted.backend {
        Backend::Routes => builder.routed(),
        Backend::Vxlan { .. } => builder.tunnelled(),
    }
    builder.to
}

struct Builder<'a> {
    wanted: &'a Wanted,
    underlay: &'a Underlay,
    name: &'a str,
    peer: &'a Peer,
    to: Share,
}

impl<'a> Builder<'a> {
    fn apart(&mut self) {
        self.to.findings.extend(inside(self.wanted, self.name, &self.peer.published));
    }

    /// Plain routes: the next hop is the node itself.
    fn routed(&mut self) {
        for block in &self.peer.blocks {
            let Some((via, way)) = self.next_hop(block.is_ipv4()) else {
                self.find("no-route", no_route(self.name, self.peer, block));
                continue;
            };
            let mtu = self.wanted.mtu.unwrap_or(way.mtu);
            self.route(*block, via, &way.link, mtu);
            self.direct(*block, via);
        }
    }

    /// The first published address of the peer that is on a link of ours, of the block's family if there is one. IPv4
    /// packets can take an IPv6 next hop, not the other way round.
    fn next_hop(&self, ipv4: bool) -> Option<(IpAddr, &'a Way)> {
        let on_link = |of_ipv4: bool| {
            let published = self.peer.published.iter().filter(move |address| address.is_ipv4() == of_ipv4);
            published.map(IfAddr::addr).find_map(|ip| Some((ip, self.underlay.on_link(ip)?)))
        };
        on_link(ipv4).or_else(|| if ipv4 { on_link(false) } else { None })
    }

    fn tunnelled(&mut self) {
        let direct = match self.wanted.direct {
            Direct::Never => None,
            Direct::SameSubnet => shared_subnet(&self.wanted.this.published, &self.peer.published),
        };
        let mut path = None;
        for block in &self.peer.blocks {
            let direct = direct.filter(|via| via.is_ipv4() == block.is_ipv4() || block.is_ipv4());
            if let Some(way) = direct.and_then(|via| self.underlay.on_link(via)) {
                let mtu = self.wanted.mtu.unwrap_or(way.mtu);
                let via = direct.unwrap_or_else(|| block.first());
                self.route(*block, via, &way.link, mtu);
                self.direct(*block, via);
                continue;
            }
            if path.is_none() {
                path = self.path();
            }
            if let Some(path) = &path {
                self.through(path, *block);
            }
        }
    }

    /// Over IPv4 if both nodes publish such an address, else over IPv6: both decide alike.
    fn path(&mut self) -> Option<Path> {
        let (this, peer, name) = (&self.wanted.this, self.peer, self.name);
        let shared = |ipv4| this.published(ipv4).and_then(|_| peer.published(ipv4));
        let Some(remote) = shared(true).or_else(|| shared(false)) else {
            let text = format!(
                "node {name} and this node publish no addresses of one family ({} and {}): there is no way between them",
                list(&peer.published),
                list(&this.published)
            );
            self.find("no-common-family", text);
            return None;
        };
        let Some(mac) = peer.vtep_mac else {
            let text =
                format!("node {name} publishes no MAC of its VXLAN device: it does not use this backend yet");
            self.find("no-vtep-mac", text);
            return None;
        };
        let second = primary_is_ipv4(this) && !remote.is_ipv4();
        let device = if second { Device::Vxlan6 } else { Device::Vxlan };
        Some(Path { device, remote: remote.addr(), mac })
    }

    fn through(&mut self, path: &Path, block: Subnet) {
        let Some(inner) = self.peer.inner(block.is_ipv4()) else { return };
        let Some(way) = self.underlay.way(path.remote.is_ipv4()) else { return };
        let mtu = mtu_over(self.wanted, way, path.remote.is_ipv4(), &mut |finding| {
            self.to.findings.push(finding);
        });
        self.to.objects.push((Key::Neighbour(path.device, inner), Object::Mac(path.mac)));
        self.to.objects.push((Key::Forward(path.device, path.mac), Object::Remote(path.remote)));
        self.route(block, inner, &path.device.link(), mtu);
    }

    fn route(&mut self, block: Subnet, via: IpAddr, link: &Arc<str>, mtu: u32) {
        let source = self.wanted.this.node_address(block.is_ipv4());
        let hop = Hop { via, link: link.clone(), source, mtu: Some(mtu) };
        self.to.objects.push((Key::route(block), Object::Hop(hop)));
    }

    /// Tells the rules of a next hop on the underlay itself.
    fn direct(&mut self, block: Subnet, via: IpAddr) {
        if via.is_ipv4() == block.is_ipv4() {
            self.to.next_hops.insert(via);
        } else {
            self.to.unseen.extend(interval(&block));
        }
    }

    fn find(&mut self, code: &'static str, text: String) {
        self.to.findings.push(Finding { code, subject: self.name.to_owned(), text });
    }
}

/// A node whose own address is a pod's cannot be reached: packets for the cluster do not leave unrouted.
pub fn inside<'a>(
    wanted: &'a Wanted,
    name: &'a str,
    published: &'a [IfAddr],
) -> impl Iterator<Item = Finding> + 'a {
    published.iter().filter_map(move |address| {
        let cidr = wanted.cidrs.iter().find(|cidr| cidr.contains(address.addr()))?;
        let text = format!(
            "node {name} publishes {address}, which is inside the cluster cidr {cidr}: packets to it are refused \
             as packets to an unknown pod; the cluster cidrs must not hold node addresses"
        );
        Some(Finding { code: "underlay-in-cluster", subject: name.to_owned(), text })
    })
}

/// The peer's address in a subnet that both *publish*. Both nodes find the same subnet from the same two records,
/// whatever their links say at the moment: a decision by one alone would send one way plain and the other tunnelled.
pub(crate) fn shared_subnet(ours: &[IfAddr], theirs: &[IfAddr]) -> Option<IpAddr> {
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
