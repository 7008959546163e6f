//! Decides what the kernel should have: from what the cluster wants and how this node reaches others. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_cni::ip::Subnet;
use weft_netlink::link::Vxlan;
use weft_netlink::rules::{Interval, Overlay};

use crate::finding::Finding;
use crate::mtu::{self, Pods};
use crate::objects::{Device, Key, LinkKind, LinkSpec, Object, Objects};
use crate::share::{self, Share, share};
use crate::underlay::{Underlay, Way};
use crate::wanted::{Backend, Peer, ThisNode, Wanted};

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
    /// How many peers each next hop of the rules stands for.
    hops: BTreeMap<IpAddr, usize>,
    /// Two peers claim one thing: who has it depends on all of them.
    clashing: bool,
}

/// Decides. Peers whose addresses are no use to this node are left out, with a finding for each.
pub fn desired(wanted: &Wanted, underlay: &Underlay) -> Desired {
    let mut builder = Builder { wanted, underlay, to: Desired::default() };
    builder.fail_closed();
    builder.node_addresses();
    builder.pod_mtu();
    builder.carriers();
    builder.rules();
    let mut to = builder.to;
    to.findings.extend(share::inside(wanted, &wanted.this.name, &wanted.this.published));
    let mut owners = BTreeMap::new();
    for (name, peer) in &wanted.peers {
        to.add(name, share(wanted, underlay, name, peer), &mut owners);
    }
    to
}

/// What [`Desired::change`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These objects may be others now, and the rules, if so.
    Done {
        /// The objects.
        keys: Vec<Key>,
        /// Whether the rules changed.
        rules: bool,
    },
    /// Nothing: it is about more than one peer. Everything must be decided anew.
    Entangled,
}

impl Desired {
    /// Adds what a peer needs. `owners` says who has what already: two nodes of one MAC cannot both be reached.
    fn add<'a>(&mut self, name: &'a str, share: Share, owners: &mut BTreeMap<Key, &'a str>) {
        self.findings.extend(share.findings);
        for hop in share.next_hops {
            *self.hops.entry(hop).or_default() += 1;
            self.rules.next_hops.insert(hop);
        }
        self.rules.unseen.extend(share.unseen);
        // What a route needs comes before it: without that there is no route either.
        let mut lacks = false;
        for (key, object) in share.objects {
            let is_route = matches!(key, Key::Route { .. });
            if lacks {
                lacks = !is_route;
                continue;
            }
            let owner = *owners.entry(key.clone()).or_insert(name);
            if owner == name {
                self.objects.insert(key, object);
                continue;
            }
            self.clashing = true;
            self.findings.insert(clash(owner, name, &key));
            lacks = !is_route;
        }
    }

    /// Brings the change of one peer in, from `before` to `after`, at the cost of that peer alone. All else of `wanted`,
    /// and `underlay`, is as it was when everything was decided.
    pub fn change(
        &mut self,
        wanted: &Wanted,
        underlay: &Underlay,
        name: &str,
        [before, after]: [Option<&Peer>; 2],
    ) -> Change {
        let of =
            |peer: Option<&Peer>| peer.map(|peer| share(wanted, underlay, name, peer)).unwrap_or_default();
        let (old, new) = (of(before), of(after));
        let has = |key: &Key| old.objects.iter().any(|(old, _)| old == key);
        let taken = |(key, _): &(Key, Object)| self.objects.contains_key(key) && !has(key);
        if self.clashing || new.objects.iter().any(taken) {
            return Change::Entangled;
        }
        let mut keys: Vec<Key> = old.objects.iter().map(|(key, _)| key.clone()).collect();
        for key in &keys {
            self.objects.remove(key);
        }
        keys.extend(new.objects.iter().map(|(key, _)| key.clone()));
        self.objects.extend(new.objects);
        // What is about a link is said for all peers, and stays.
        for finding in old.findings.iter().filter(|finding| finding.subject == name) {
            self.findings.remove(finding);
        }
        self.findings.extend(new.findings);
        let mut rules = old.unseen != new.unseen;
        for interval in &old.unseen {
            self.rules.unseen.remove(interval);
        }
        self.rules.unseen.extend(new.unseen);
        rules |= self.change_hops(&old.next_hops, &new.next_hops);
        Change::Done { keys, rules }
    }

    /// Says whether the rules changed.
    fn change_hops(&mut self, old: &BTreeSet<IpAddr>, new: &BTreeSet<IpAddr>) -> bool {
        let mut changed = false;
        for hop in new.difference(old) {
            *self.hops.entry(*hop).or_default() += 1;
            changed |= self.rules.next_hops.insert(*hop);
        }
        for hop in old.difference(new) {
            let left = self.hops.get(hop).map_or(0, |count| count.saturating_sub(1));
            if left > 0 {
                self.hops.insert(*hop, left);
                continue;
            }
            self.hops.remove(hop);
            changed |= self.rules.next_hops.remove(hop);
        }
        changed
    }
}

fn clash(owner: &str, name: &str, key: &Key) -> Finding {
    let text = match key {
        Key::Route { to, .. } => {
            format!("nodes {owner} and {name} both publish block {to}: {owner} gets its packets")
        }
        Key::Setting(_)
        | Key::Unreachable { .. }
        | Key::Rules
        | Key::Link(_)
        | Key::Address(..)
        | Key::Neighbour(..)
        | Key::Forward(..) => {
            format!("nodes {owner} and {name} both publish the {key}: {name} is not reached")
        }
    };
    Finding { code: "clash", subject: name.to_owned(), text }
}

struct Builder<'a> {
    wanted: &'a Wanted,
    underlay: &'a Underlay,
    to: Desired,
}

impl Builder<'_> {
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

    /// The published address by which this node is reached first says over which family it mostly sends.
    fn pod_mtu(&mut self) {
        let ipv4 = primary_is_ipv4(&self.wanted.this);
        let way = self.underlay.way(ipv4).or_else(|| self.underlay.way(!ipv4));
        self.to.pod_mtu = way.map(|way| {
            mtu_over(self.wanted, way, ipv4, &mut |finding| {
                self.to.findings.insert(finding);
            })
        });
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
            let mtu = mtu_over(self.wanted, way, ipv4, &mut |finding| {
                self.to.findings.insert(finding);
            });
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

/// What the backend leaves of a link's MTU, unless a person has said.
pub(crate) fn mtu_over(wanted: &Wanted, way: &Way, ipv4: bool, find: &mut impl FnMut(Finding)) -> u32 {
    let mut find = |code: &'static str, subject: &str, text: String| {
        find(Finding { code, subject: subject.to_owned(), text });
    };
    let backend = match wanted.backend {
        Backend::Routes => mtu::Backend::Routes,
        Backend::Vxlan { .. } => mtu::Backend::Vxlan,
    };
    let family = if ipv4 { mtu::Underlay::V4 } else { mtu::Underlay::V6 };
    let pods = if wanted.has_family(false) { Pods::WithV6 } else { Pods::V4Only };
    let carried = mtu::pod_mtu(way.mtu, backend, family, pods).unwrap_or_else(|small| {
        find("mtu-too-small", &way.link, format!("link {}: {small}", way.link));
        way.mtu.saturating_sub(backend.overhead(family))
    });
    match wanted.mtu {
        Some(forced) if forced > carried => {
            let text = format!(
                "the configured mtu {forced} is more than link {} carries ({carried}): large packets are lost",
                way.link
            );
            find("mtu-too-large", &way.link, text);
            forced
        }
        Some(forced) if forced < pods.minimum() => {
            let text = format!(
                "the configured mtu {forced} is less than pods need ({}): the kernel switches IPv6 off below it",
                pods.minimum()
            );
            find("mtu-too-small", "mtu", text);
            forced
        }
        Some(forced) => forced,
        None => carried,
    }
}

/// Whether this node is reached over IPv4 first: if it publishes such an address.
pub(crate) fn primary_is_ipv4(this: &ThisNode) -> bool {
    this.published(true).is_some() || this.published(false).is_none()
}

pub(crate) fn interval(subnet: &Subnet) -> Option<Interval> {
    Interval::new(subnet.first(), subnet.last())
}

#[cfg(test)]
mod tests;
