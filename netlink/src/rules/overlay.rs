//! The cluster daemon's chains in `inet weft`, beside the one of the standalone plugin: masquerade of what leaves the
//! cluster, the MSS clamp, no redirects to pods, and the second layer of failing closed.
//!
//! Chains are replaced when their rules are not exactly ours, elements change by difference. No rule depends on a
//! node's facts, only the sets do, so a new version is the only reason to replace a chain. Each rule's comment is the
//! hash of its own encoding: by it a chain is compared without understanding it.

mod chains;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use self::chains::{CHAINS, comment, comments};
use super::interval::{self, Interval};
use super::{TABLE_NAME, commit};
use crate::error::Result;
use crate::nft::{self, Batch, Element, Family, Set, Table};
use crate::socket::Socket;

const TABLE: Table = Table { family: Family::Inet, name: TABLE_NAME };
const BRIDGE_TABLE: Table = Table { family: Family::Bridge, name: TABLE_NAME };

/// What the rules of the cluster are about. The rules themselves never change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// All that pods of the cluster can have as addresses.
    pub cluster: Vec<Interval>,
    /// Sources that are masqueraded when they leave the cluster: `cluster`, or nothing.
    pub masquerade: Vec<Interval>,
    /// Destinations that see the pod's own address besides those in `cluster`.
    pub plain: Vec<Interval>,
    /// Next hops that lead to other nodes on a link.
    pub next_hops: BTreeSet<IpAddr>,
    /// Blocks whose next hop the rules cannot see (IPv4 by way of an IPv6 address).
    pub unseen: Vec<Interval>,
    /// Links that lead out of the node: by these, packets for the cluster leave only to `next_hops`.
    pub outside: BTreeSet<String>,
}

/// What the kernel has of it. To be kept between calls: while nobody else commits, nothing is read again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayState {
    generation: Option<u32>,
    found: Found,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    table: bool,
    /// Chains whose rules are exactly ours.
    intact: BTreeSet<&'static str>,
    sets: BTreeMap<&'static str, Vec<Element>>,
}

/// `TYPE_IPADDR`, `TYPE_IP6ADDR`, `TYPE_IFNAME` (nftables, include/datatype.h).
const IPV4_ADDR: u32 = 7;
const IPV6_ADDR: u32 = 8;
const IFNAME: u32 = 41;
const IFNAME_LENGTH: u32 = 16;

static SETS: [Set; 11] = [
    set("cluster4", IPV4_ADDR, 4, true),
    set("cluster6", IPV6_ADDR, 16, true),
    set("cluster-masq4", IPV4_ADDR, 4, true),
    set("cluster-masq6", IPV6_ADDR, 16, true),
    set("cluster-plain4", IPV4_ADDR, 4, true),
    set("cluster-plain6", IPV6_ADDR, 16, true),
    set("cluster-via4", IPV4_ADDR, 4, false),
    set("cluster-via6", IPV6_ADDR, 16, false),
    set("cluster-unseen4", IPV4_ADDR, 4, true),
    set("cluster-unseen6", IPV6_ADDR, 16, true),
    // `nft` takes a name for a number in host byte order, and would list it backwards.
    Set { host_order: true, ..set("cluster-outside", IFNAME, IFNAME_LENGTH, false) },
];

const fn set(name: &'static str, key_type: u32, key_length: u32, interval: bool) -> Set {
    Set { name, key_type, key_length, interval, host_order: false }
}

/// Makes the chains and sets hold exactly `wanted`. Says whether anything had to be changed.
///
/// Without `may_remove` elements are only added: a next hop that is not wanted any more may still have a route.
///
/// # Errors
/// When the kernel refuses, or others kept changing the ruleset.
pub fn ensure_overlay(
    socket: &mut Socket,
    state: &mut OverlayState,
    wanted: &Overlay,
    may_remove: bool,
) -> Result<bool> {
    if state.generation != Some(nft::generation(socket)?) {
        *state = OverlayState::default();
    }
    let known = state.generation.map(|_| state.found.clone());
    state.generation = None;
    let mut first = known;
    let observe = |socket: &mut Socket| match first.take() {
        Some(found) => Ok(found),
        None => observe(socket),
    };
    let changed = commit(socket, observe, |found| plan(found, wanted, may_remove))?;
    // Read again what was committed: cheap beside the commit, and true.
    let (generation, found) = super::settled(socket, self::observe)?;
    *state = OverlayState { generation: Some(generation), found };
    Ok(changed)
}

/// Removes both of Weft's tables, with what plugins put into them. Absent is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_tables(socket: &mut Socket) -> Result<bool> {
    let mut removed = false;
    for table in [TABLE, BRIDGE_TABLE] {
        let observe = |socket: &mut Socket| table.exists(socket);
        removed |= commit(socket, observe, |exists| {
            let mut batch = Batch::new();
            batch.extend(exists.then(|| table.delete()));
            batch
        })?;
    }
    Ok(removed)
}

fn observe(socket: &mut Socket) -> Result<Found> {
    let mut found = Found { table: TABLE.exists(socket)?, ..Found::default() };
    if !found.table {
        return Ok(found);
    }
    for chain in &CHAINS {
        if TABLE.comments(socket, chain.base.name)? == comments(chain) {
            found.intact.insert(chain.base.name);
        }
    }
    for set in &SETS {
        found.sets.extend(TABLE.dump_elements(socket, set.name)?.map(|elements| (set.name, elements)));
    }
    Ok(found)
}

/// Pure.
fn plan(found: &Found, wanted: &Overlay, may_remove: bool) -> Batch {
    let mut batch = Batch::new();
    let broken: Vec<_> = CHAINS.iter().filter(|chain| !found.intact.contains(chain.base.name)).collect();
    if !found.table {
        batch.extend([TABLE.create(super::COMMENT, netlink_packet_core::NLM_F_EXCL)]);
    }
    for (set, id) in SETS.iter().zip(100..) {
        if !found.sets.contains_key(set.name) {
            batch.extend([TABLE.create_set(set, id)]);
        }
    }
    for chain in broken {
        batch.extend([TABLE.create_chain(&chain.base), TABLE.flush_chain(chain.base.name)]);
        batch.extend(
            chain
                .rules
                .iter()
                .map(|rule| TABLE.add_commented_rule(chain.base.name, rule(), &comment(&rule()))),
        );
    }
    for (set, mut elements) in wanted.elements() {
        elements.sort();
        let held = found.sets.get(set).map_or(&[][..], Vec::as_slice);
        if held == elements {
            continue;
        }
        change(&mut batch, set, held, &elements, may_remove);
    }
    batch
}

/// Elements of a set by difference; an interval set's as whole intervals.
fn change(batch: &mut Batch, set: &str, held: &[Element], wanted: &[Element], may_remove: bool) {
    if SETS.iter().any(|known| known.name == set && !known.interval) {
        let missing: Vec<_> = wanted.iter().filter(|one| held.binary_search(one).is_err()).cloned().collect();
        let extra: Vec<_> = held.iter().filter(|one| wanted.binary_search(one).is_err()).cloned().collect();
        if may_remove {
            batch.extend(TABLE.remove_elements(set, &extra));
        }
        batch.extend(TABLE.add_elements(set, &missing));
        return;
    }
    let (held, mut wanted) = (interval::intervals(held), interval::intervals(wanted));
    if !may_remove {
        wanted.extend(&held);
        wanted = interval::merge(wanted);
    }
    let remove: Vec<_> = held.iter().filter(|one| !wanted.contains(one)).copied().collect();
    let add: Vec<_> = wanted.iter().filter(|one| !held.contains(one)).copied().collect();
    batch.extend(TABLE.remove_elements(set, &interval::elements(&remove)));
    batch.extend(TABLE.add_elements(set, &interval::elements(&add)));
}

impl Overlay {
    fn elements(&self) -> Vec<(&'static str, Vec<Element>)> {
        let ranges = |ranges: &[Interval], v4: bool| {
            let ranges = ranges.iter().filter(|range| range.first().is_ipv4() == v4).copied().collect();
            interval::elements(&interval::merge(ranges))
        };
        let next_hops = |v4: bool| {
            let hops = self.next_hops.iter().filter(|hop| hop.is_ipv4() == v4);
            hops.map(|hop| Element::start(interval::key(*hop))).collect()
        };
        vec![
            ("cluster4", ranges(&self.cluster, true)),
            ("cluster6", ranges(&self.cluster, false)),
            ("cluster-masq4", ranges(&self.masquerade, true)),
            ("cluster-masq6", ranges(&self.masquerade, false)),
            ("cluster-plain4", ranges(&self.plain, true)),
            ("cluster-plain6", ranges(&self.plain, false)),
            ("cluster-via4", next_hops(true)),
            ("cluster-via6", next_hops(false)),
            ("cluster-unseen4", ranges(&self.unseen, true)),
            ("cluster-unseen6", ranges(&self.unseen, false)),
            ("cluster-outside", self.outside.iter().map(|name| Element::start(padded(name))).collect()),
        ]
    }
}

/// An interface name as the kernel compares it.
fn padded(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(IFNAME_LENGTH as usize, 0);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_told_apart_by_their_comments() {
        let all: Vec<_> = CHAINS.iter().flat_map(comments).collect();
        // Failing closed is the same two rules on both hooks.
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len() - 2);
    }

    #[test]
    fn what_is_there_already_is_not_sent() {
        let range = Interval::new([10, 0, 0, 0].into(), [10, 255, 255, 255].into()).unwrap();
        let wanted = Overlay { cluster: vec![range], ..Overlay::default() };
        let found = Found {
            table: true,
            intact: CHAINS.iter().map(|chain| chain.base.name).collect(),
            sets: wanted.elements().into_iter().collect(),
        };
        assert!(plan(&found, &wanted, true).is_empty());
        assert!(!plan(&Found::default(), &wanted, true).is_empty());
        let none = Overlay::default();
        assert!(!plan(&found, &none, true).is_empty());
        assert!(plan(&found, &none, false).is_empty());
    }
}
