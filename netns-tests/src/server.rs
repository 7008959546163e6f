//! A server outside the node: the proof that masquerade works, since it knows no way back to pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::inside::{Inside, Place};
use crate::lab::{Shared, configure};
use crate::node::Node;
use crate::seen::Listener;

/// The node's uplink.
const UPLINK: &str = "uplink0";
/// The server's side of it.
const DOWNLINK: &str = "node0";
/// Where every server tells callers which address it sees.
const PORT: u16 = 7777;

/// A machine behind a node's uplink; both have addresses of 192.0.2.0/24 and 2001:db8:1::/64.
#[derive(Debug)]
pub struct Server {
    place: Place,
    _listener: Listener,
}

impl Inside for Server {
    fn place(&self) -> &Place {
        &self.place
    }
}

impl Server {
    /// The server's IPv4 address.
    pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    /// The server's IPv6 address.
    pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1));
    /// The node's IPv4 address towards it.
    pub const NODE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    /// The node's IPv6 address towards it.
    pub const NODE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2));

    pub(crate) fn create(lab: &Arc<Shared>, node: &Node) -> Self {
        let name = format!("outside-of-{}", node.name());
        let netns = lab.netns(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let place = Place { name, net: netns.path, mnt: node.place().mnt.clone() };
        lab.join((node, UPLINK), (&place, DOWNLINK));
        let cidr = |v4: IpAddr, v6: IpAddr| [format!("{v4}/24"), format!("{v6}/64")];
        let ends =
            [(node.place(), UPLINK, Self::NODE_V4, Self::NODE_V6), (&place, DOWNLINK, Self::V4, Self::V6)];
        for (end, link, v4, v6) in ends {
            let [v4, v6] = cidr(v4, v6);
            configure(end, link, &[&v4, &v6]);
        }
        for gateway in [Self::V4, Self::V6] {
            node.run(["ip", "route", "add", "default", "via", &gateway.to_string(), "dev", UPLINK]);
        }
        let listener = place.listen(PORT);
        Self { place, _listener: listener }
    }

    /// Where it tells callers which IPv4 address it sees: for [`Inside::seen_by`].
    pub fn v4(&self) -> SocketAddr {
        SocketAddr::new(Self::V4, PORT)
    }

    /// Where it tells callers which IPv6 address it sees: for [`Inside::seen_by`].
    pub fn v6(&self) -> SocketAddr {
        SocketAddr::new(Self::V6, PORT)
    }

    /// Teaches the server the way to a range of pods, so that it can be reached without masquerade.
    pub fn add_return_route(&self, range: &str) {
        let via = if range.contains(':') { Self::NODE_V6 } else { Self::NODE_V4 };
        self.run(["ip", "route", "replace", range, "via", &via.to_string(), "dev", DOWNLINK]);
    }
}
