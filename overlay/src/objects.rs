//! The kernel objects of the overlay, keyed as the kernel keys them: one key can hold one thing only.
//!
//! Names, not indexes: those are looked up when a request is made.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use weft_cni::ip::Subnet;
use weft_netlink::link::{Mac, Vxlan};

/// Metric of a block's route: lower wins, and no other program takes this one by chance.
pub const ROUTE_METRIC: u32 = 8787;
/// Metric of an unreachable route: anybody's route to the same prefix wins.
pub const UNREACHABLE_METRIC: u32 = 1_000_000;

/// Our objects, those that should be or those that are.
pub type Objects = BTreeMap<Key, Object>;

/// A device of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// Holds the node addresses.
    Node,
    /// Carries frames over the family by which this node is reached first.
    Vxlan,
    /// Carries frames over IPv6 to those nodes that have nothing else, if this node has both.
    Vxlan6,
}

/// What the kernel knows an object by. Ordered as they are made; removed the other way round.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A setting under the sysctl root. Not planned with the others: nobody tells when it changes.
    Setting(String),
    /// A route that refuses packets.
    Unreachable {
        /// Destination.
        to: Subnet,
        /// Metric.
        metric: u32,
    },
    /// The chains and sets in nf_tables, all together: the kernel replaces them at one moment.
    Rules,
    /// A link.
    Link(Device),
    /// An address on a link.
    Address(Device, IpAddr),
    /// A permanent neighbour.
    Neighbour(Device, IpAddr),
    /// A forwarding entry.
    Forward(Device, Mac),
    /// A route to a block of another node.
    Route {
        /// Destination.
        to: Subnet,
        /// Metric.
        metric: u32,
    },
}

/// The rest of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// Nothing: it is there or not.
    Plain,
    /// A link.
    Link(LinkSpec),
    /// The neighbour's MAC.
    Mac(Mac),
    /// The node behind a MAC.
    Remote(IpAddr),
    /// A next hop.
    Hop(Hop),
}

/// A link of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    /// Administratively up.
    pub up: bool,
    /// The rest.
    pub kind: LinkKind,
}

/// What a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Holds addresses, carries nothing: a dummy device, or a bridge without ports where the kernel has none.
    Holder,
    /// A VXLAN device.
    Vxlan {
        /// Its MAC, as published.
        mac: Mac,
        /// Its MTU.
        mtu: u32,
        /// What cannot be changed.
        settings: Vxlan,
    },
    /// Something that has no business under our name: the driver's.
    Other(String),
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The next hop, on the link whatever addresses say.
    pub via: IpAddr,
    /// The link.
    pub link: Arc<str>,
    /// Source address of the node's own packets.
    pub source: Option<IpAddr>,
    /// MTU along the route.
    pub mtu: Option<u32>,
}

impl Device {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Node, Self::Vxlan, Self::Vxlan6];

    /// The interface name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "weft-node",
            Self::Vxlan => "weft-vx",
            Self::Vxlan6 => "weft-vx6",
        }
    }

    /// Its name, shared: thousands of routes lead over it.
    pub fn link(self) -> Arc<str> {
        static NAMES: LazyLock<[Arc<str>; 3]> =
            LazyLock::new(|| Device::ALL.map(|device| device.name().into()));
        let [node, vxlan, vxlan6] = &*NAMES;
        match self {
            Self::Node => node.clone(),
            Self::Vxlan => vxlan.clone(),
            Self::Vxlan6 => vxlan6.clone(),
        }
    }

    /// The device of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|device| device.name() == name)
    }
}

impl Key {
    /// The route of a block.
    pub fn route(to: Subnet) -> Self {
        Self::Route { to, metric: ROUTE_METRIC }
    }

    /// The route that refuses what no other route takes.
    pub fn unreachable(to: Subnet) -> Self {
        Self::Unreachable { to, metric: UNREACHABLE_METRIC }
    }

    /// The device that it is on and goes with.
    pub fn device(&self) -> Option<Device> {
        match self {
            Self::Address(device, _) | Self::Neighbour(device, _) | Self::Forward(device, _) => Some(*device),
            Self::Setting(_)
            | Self::Unreachable { .. }
            | Self::Rules
            | Self::Link(_)
            | Self::Route { .. } => None,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(path) => write!(f, "setting {path}"),
            Self::Unreachable { to, .. } => write!(f, "unreachable route {to}"),
            Self::Rules => f.write_str("packet rules (nftables table inet weft)"),
            Self::Link(device) => write!(f, "link {device}"),
            Self::Address(device, ip) => write!(f, "address {ip} on {device}"),
            Self::Neighbour(device, ip) => write!(f, "neighbour {ip} on {device}"),
            Self::Forward(device, mac) => write!(f, "forwarding entry {mac} on {device}"),
            Self::Route { to, .. } => write!(f, "route {to}"),
        }
    }
}
