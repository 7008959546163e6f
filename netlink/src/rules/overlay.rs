//! The cluster daemon's chains in `inet weft`, beside the one of the standalone plugin: masquerade of what leaves the
//! cluster, the MSS clamp, no redirects to pods, and the second layer of failing closed.
//!
//! Chains are replaced when their rules are not exactly ours, elements change by difference. No rule depends on a
//! node's facts, only the sets do, so a new version is the only reason to replace a chain. Each rule's comment is the
//! hash of its own encoding: by it a chain is compared without understanding it.

mod chains;
mod difference;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use self::chains::{CHAINS, Chain, comment, comments};
use self::difference::Difference;
use super::interval::{self, Interval};
use super::{Outcome, TABLE_NAME, Transaction, commit, settled, transact};
use crate::error::Result;
use crate::nft::{self, Batch, Element, Family, Key, Set, Table};
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
    pub unseen: BTreeSet<Interval>,
    /// Links that lead out of the node: by these, packets for the cluster leave only to `next_hops`.
    pub outside: BTreeSet<String>,
}

/// What the kernel has of it, and as of which generation of its rules. To be kept between calls: while nobody else
/// commits, nothing is read again, so that one next hop costs the same beside five thousand others as beside five.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayState {
    known: Option<(u32, Found)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    table: bool,
    /// Chains whose rules are exactly ours.
    intact: BTreeSet<&'static str>,
    /// Those that are there, with their elements, ascending.
    sets: BTreeMap<&'static str, Vec<Element>>,
}

/// What turns one [`Found`] into what is wanted.
#[derive(Default)]
struct Change {
    table: bool,
    sets: Vec<(&'static Set, u32)>,
    chains: Vec<&'static Chain>,
    elements: Vec<(&'static Set, Difference)>,
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
    let now = nft::generation(socket)?;
    // Whatever goes wrong from here on, nothing is known any more.
    let known = state.known.take().filter(|(generation, _)| *generation == now);
    let mut change = Change::default();
    let made = transact(socket, known, observe, |found| {
        change = Change::between(found, wanted, may_remove);
        change.batch()
    })?;
    let changed = made.outcome != Outcome::Nothing;
    state.known = Some(match learn(socket, made, &change)? {
        Some(known) => known,
        // Read again what was committed: true, whatever happened.
        None => settled(socket, observe)?,
    });
    Ok(changed)
}

/// What the kernel has after a transaction, if that is certain without reading it: elements of sets changed and nothing
/// else, on exactly what was known, and the next generation is that of this very transaction. A transaction that the
/// kernel takes for an empty one makes no generation: then something is not as it was thought to be.
fn learn(socket: &mut Socket, made: Transaction<Found>, change: &Change) -> Result<Option<(u32, Found)>> {
    let Transaction { observed: mut found, generation, outcome } = made;
    match outcome {
        Outcome::Nothing => return Ok(Some((generation, found))),
        Outcome::Unguarded => return Ok(None),
        Outcome::Guarded if change.is_structural() => return Ok(None),
        Outcome::Guarded => {}
    }
    let next = nft::next_generation(generation);
    if nft::generation(socket)? != next {
        return Ok(None);
    }
    for (set, difference) in &change.elements {
        difference.apply(found.sets.entry(set.name).or_default());
    }
    Ok(Some((next, found)))
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

impl Change {
    /// Pure. Without `may_remove` elements only come.
    fn between(found: &Found, wanted: &Overlay, may_remove: bool) -> Self {
        let mut change = Self { table: !found.table, ..Self::default() };
        change.sets = SETS.iter().zip(100..).filter(|(set, _)| !found.sets.contains_key(set.name)).collect();
        change.chains = CHAINS.iter().filter(|chain| !found.intact.contains(chain.base.name)).collect();
        for (set, elements) in SETS.iter().zip(wanted.elements()) {
            let held = found.sets.get(set.name).map_or(&[][..], Vec::as_slice);
            let difference = if set.interval {
                Difference::of_intervals(held, &elements, may_remove)
            } else {
                Difference::of_keys(held, &elements, may_remove)
            };
            change.elements.extend((!difference.is_empty()).then_some((set, difference)));
        }
        change
    }

    /// Whether it is about more than elements of sets that are there.
    fn is_structural(&self) -> bool {
        self.table || !self.sets.is_empty() || !self.chains.is_empty()
    }

    fn batch(&self) -> Batch {
        let mut batch = Batch::new();
        batch.extend(self.table.then(|| TABLE.create(super::COMMENT, netlink_packet_core::NLM_F_EXCL)));
        batch.extend(self.sets.iter().map(|(set, id)| TABLE.create_set(set, *id)));
        for chain in &self.chains {
            let name = chain.base.name;
            let rules = chain.rules.iter().map(|rule| rule());
            batch.extend([TABLE.create_chain(&chain.base), TABLE.flush_chain(name)]);
            batch.extend(rules.map(|rule| TABLE.add_commented_rule(name, rule.clone(), &comment(&rule))));
        }
        for (set, difference) in &self.elements {
            batch.extend(TABLE.remove_elements(set.name, &difference.remove));
            batch.extend(TABLE.add_elements(set.name, &difference.add));
        }
        batch
    }
}

impl Overlay {
    /// What each of [`SETS`] should hold, ascending.
    fn elements(&self) -> [Vec<Element>; SETS.len()] {
        let of = |ranges: &mut dyn Iterator<Item = &Interval>, v4: bool| {
            let ranges = ranges.filter(|range| range.first().is_ipv4() == v4).copied().collect();
            let mut elements = interval::elements(&interval::merge(ranges));
            // Of two ranges that touch, the end of the one and the start of the other have one key.
            elements.sort();
            elements
        };
        let ranges = |ranges: &[Interval], v4: bool| of(&mut ranges.iter(), v4);
        let next_hops = |v4: bool| {
            let hops = self.next_hops.iter().filter(|hop| hop.is_ipv4() == v4);
            hops.map(|hop| Element::start((*hop).into())).collect()
        };
        let mut outside: Vec<_> = self.outside.iter().map(|name| Element::start(padded(name))).collect();
        outside.sort();
        [
            ranges(&self.cluster, true),
            ranges(&self.cluster, false),
            ranges(&self.masquerade, true),
            ranges(&self.masquerade, false),
            ranges(&self.plain, true),
            ranges(&self.plain, false),
            next_hops(true),
            next_hops(false),
            of(&mut self.unseen.iter(), true),
            of(&mut self.unseen.iter(), false),
            outside,
        ]
    }
}

/// An interface name as the kernel compares it.
fn padded(name: &str) -> Key {
    let mut key = [0; IFNAME_LENGTH as usize];
    for (to, from) in key.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    key.into()
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
            sets: SETS.iter().map(|set| set.name).zip(wanted.elements()).collect(),
        };
        let is_empty = |found: &Found, wanted: &Overlay, may_remove: bool| {
            Change::between(found, wanted, may_remove).batch().is_empty()
        };
        assert!(is_empty(&found, &wanted, true));
        assert!(!is_empty(&Found::default(), &wanted, true));
        let none = Overlay::default();
        assert!(!is_empty(&found, &none, true));
        assert!(is_empty(&found, &none, false));
    }
}
