//! What joins the nodes: one bridge as a switch, and a router to a second subnet.

use crate::inside::{Inside, Place};
use crate::lab::{Lab, configure};

use super::EtcdOptions;

/// The name of a node's interface on the wire.
pub const UPLINK: &str = "eth0";

/// The families of the nodes' own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

impl Underlay {
    fn pick<T>(self, v4: T, v6: T) -> Vec<T> {
        match self {
            Self::V4 => vec![v4],
            Self::V6 => vec![v6],
            Self::Dual => vec![v4, v6],
        }
    }
}

/// Which subnet a machine is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// The one that etcd is on, too.
    Near,
    /// Behind the router.
    Far,
}

impl Segment {
    fn number(self) -> u8 {
        match self {
            Self::Near => 1,
            Self::Far => 2,
        }
    }
}

/// The shape of a cluster.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Families of the nodes' addresses.
    pub underlay: Underlay,
    /// One entry a node.
    pub nodes: Vec<Segment>,
    /// The store.
    pub etcd: EtcdOptions,
    /// MTU of every link of the underlay.
    pub mtu: u32,
}

impl Default for Layout {
    /// Three nodes, the third behind a router; IPv4 underlay; one etcd member without TLS.
    fn default() -> Self {
        Self {
            underlay: Underlay::V4,
            nodes: vec![Segment::Near, Segment::Near, Segment::Far],
            etcd: EtcdOptions::default(),
            mtu: 1500,
        }
    }
}

impl Layout {
    /// All nodes on one subnet, as the `routes` backend needs it.
    #[must_use]
    pub fn flat(mut self) -> Self {
        self.nodes = vec![Segment::Near; self.nodes.len()];
        self
    }

    /// So many nodes, the last of several behind the router.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = vec![Segment::Near; count];
        if let [_, .., last] = self.nodes.as_mut_slice() {
            *last = Segment::Far;
        }
        self
    }

    /// Another underlay.
    #[must_use]
    pub fn underlay(mut self, underlay: Underlay) -> Self {
        self.underlay = underlay;
        self
    }

    /// So many etcd members.
    #[must_use]
    pub fn members(mut self, count: usize) -> Self {
        self.etcd.members = count;
        self
    }
}

/// The switch and the router.
#[derive(Debug)]
pub struct Wire {
    switch: Place,
    /// The router between the two subnets: for a look, or for trouble on the way.
    pub router: Place,
    underlay: Underlay,
    mtu: u32,
}

impl Wire {
    pub(super) fn new(lab: &Lab, layout: &Layout) -> Self {
        let wire = Self {
            switch: bare(lab, "switch"),
            router: bare(lab, "router"),
            underlay: layout.underlay,
            mtu: layout.mtu,
        };
        for segment in [Segment::Near, Segment::Far] {
            let bridge = bridge(segment);
            wire.switch.run(["ip", "link", "add", bridge, "type", "bridge", "mcast_snooping", "0"]);
            wire.switch.run(["ip", "link", "set", bridge, "mtu", &layout.mtu.to_string(), "up"]);
            let port = format!("eth{}", segment.number());
            wire.connect(lab, &wire.router, &port, segment, 254);
        }
        for sysctl in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            wire.router.set_sysctl(sysctl, "1");
        }
        wire
    }

    /// Joins a machine to a subnet as host number `host`, with a default route; returns its addresses with lengths.
    pub fn plug(&self, lab: &Lab, place: &impl Inside, segment: Segment, host: usize) -> Vec<String> {
        let addresses = self.connect(lab, place.place(), UPLINK, segment, host);
        for gateway in self.underlay.pick(self.v4(segment, 254), self.v6(segment, 254)) {
            place.run(["ip", "route", "add", "default", "via", &gateway, "dev", UPLINK]);
        }
        addresses
    }

    /// Takes a machine's cable out (`false`) or puts it in again.
    pub fn set_plugged(&self, place: &impl Inside, plugged: bool) {
        let port = port_of(place.place());
        self.switch.run(["ip", "link", "set", &port, if plugged { "up" } else { "down" }]);
    }

    /// Lets a machine hear nothing from an address and say nothing to it (`true`), or as before.
    pub(super) fn set_blocked(place: &impl Inside, address: &str, blocked: bool) {
        let length = if address.contains(':') { 128 } else { 32 };
        let verb = if blocked { "add" } else { "delete" };
        place.run(["ip", "route", verb, "blackhole", &format!("{address}/{length}")]);
    }

    /// The address that host number `host` has, for URLs: the IPv4 one where there is one.
    pub fn address(&self, segment: Segment, host: usize) -> String {
        match self.underlay {
            Underlay::V4 | Underlay::Dual => self.v4(segment, host),
            Underlay::V6 => self.v6(segment, host),
        }
    }

    fn connect(&self, lab: &Lab, place: &Place, link: &str, segment: Segment, host: usize) -> Vec<String> {
        let port = if link == UPLINK { port_of(place) } else { format!("p-r{}", segment.number()) };
        lab.shared.join((&self.switch, &port), (place, link));
        let mtu = self.mtu.to_string();
        self.switch.run(["ip", "link", "set", &port, "mtu", &mtu, "master", bridge(segment), "up"]);
        place.run(["ip", "link", "set", link, "mtu", &mtu]);
        let v4 = format!("{}/24", self.v4(segment, host));
        let v6 = format!("{}/64", self.v6(segment, host));
        let addresses = self.underlay.pick(v4, v6);
        configure(place, link, &addresses.iter().map(String::as_str).collect::<Vec<_>>());
        addresses
    }

    #[expect(clippy::unused_self, reason = "addresses are the wire's to give")]
    fn v4(&self, segment: Segment, host: usize) -> String {
        format!("192.168.{}.{host}", segment.number())
    }

    #[expect(clippy::unused_self, reason = "addresses are the wire's to give")]
    fn v6(&self, segment: Segment, host: usize) -> String {
        format!("fd77:{}::{host:x}", segment.number())
    }
}

/// A machine without files of its own: a switch, a router, an etcd.
pub(super) fn bare(lab: &Lab, name: &str) -> Place {
    let netns = lab.shared.netns(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    Place { name: name.to_owned(), net: netns.path, mnt: None }
}

fn bridge(segment: Segment) -> &'static str {
    match segment {
        Segment::Near => "near",
        Segment::Far => "far",
    }
}

fn port_of(place: &Place) -> String {
    format!("p-{}", place.name)
}
