//! What the data plane tells the daemon: data, for `status`, metrics and the log.

use std::collections::BTreeSet;

use serde::Serialize;
use weft_netlink::rules::ForwardChain;

use crate::finding::Finding;
use crate::underlay::Underlay;

/// How the data plane is. Sent after a pass that changed anything of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlaneReport {
    /// The kernel has what is wanted, all of it. False before the first [`Wanted`](crate::wanted::Wanted).
    pub in_sync: bool,
    /// Objects that the kernel should have.
    pub objects: usize,
    /// What could not be done: what was attempted, on what, and the kernel's sentence.
    pub failures: Vec<String>,
    /// What people should know.
    pub findings: BTreeSet<Finding>,
    /// Foreign chains that forwarded packets pass.
    pub foreign_forward: Vec<ForwardChain>,
    /// Objects that were put back after somebody else removed or changed them, since the start.
    pub healed: u64,
    /// Requests that the kernel was sent, since the start: what a change costs must not grow with the cluster.
    pub requests: u64,
    /// Bytes that the kernel answered, since the start: a list is one request, however long it is.
    pub received: u64,
    /// How other nodes are reached.
    pub underlay: Vec<UnderlayReport>,
    /// The MTU that pods should have.
    pub pod_mtu: Option<u32>,
    /// Whether the last [`Wanted`](crate::wanted::Wanted) allowed removals.
    pub may_remove: bool,
    /// The number of the order that it is about, as [`DataPlane::want`](crate::DataPlane::want) gave it; 0 before the
    /// first.
    pub order: u64,
    /// Milliseconds that the last pass which changed anything took.
    pub last_change_ms: u64,
}

/// A link that leads to other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnderlayReport {
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// Its name.
    pub link: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The published address, if the link has it.
    pub source: Option<std::net::IpAddr>,
}

/// What removing everything did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// What was removed.
    pub removed: Vec<String>,
    /// What could not be, and why.
    pub failures: Vec<String>,
}

/// The ways of both families.
pub fn underlay(underlay: &Underlay) -> Vec<UnderlayReport> {
    let ways = [("IPv4", &underlay.v4), ("IPv6", &underlay.v6)];
    let report = |(family, way): (&'static str, &Option<crate::underlay::Way>)| {
        way.as_ref().map(|way| UnderlayReport {
            family,
            link: way.link.to_string(),
            mtu: way.mtu,
            source: way.source,
        })
    };
    ways.into_iter().filter_map(report).collect()
}
