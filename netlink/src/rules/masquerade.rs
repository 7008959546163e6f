//! Masquerading by sets: sources that are, destinations that never are. Nothing per pod.

use std::collections::BTreeMap;

use super::interval::{self, Interval};
use super::{Presence, Schema, TABLE_NAME, commit, settled};
use crate::error::Result;
use crate::nft::Comparison::{Equal, NotEqual};
use crate::nft::Register::First;
use crate::nft::{BaseChain, Batch, Expression, Family, Header, Meta, Set, Table};
use crate::socket::Socket;

/// Packets from `sources` leave under the node's own address, unless they go to `plain` or to a multicast group.
///
/// All entries share one set of destinations: what is plain for one source is plain for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// The pods' addresses.
    pub sources: Interval,
    /// Destinations that see the pod's own address: usually the pod network itself. A pod that is a network of
    /// its own has none.
    pub plain: Option<Interval>,
}

/// What the kernel has of it, in the sets that were asked for; an absent set holds nothing.
#[derive(Debug, PartialEq, Eq)]
struct Observed {
    presence: Presence,
    held: BTreeMap<&'static str, Vec<Interval>>,
}

const TABLE: Table = Table { family: Family::Inet, name: TABLE_NAME };

static SCHEMA: Schema = Schema {
    table: TABLE,
    sets: &[
        interval_set("masq4", IPV4_ADDR, 4),
        interval_set("plain4", IPV4_ADDR, 4),
        interval_set("masq6", IPV6_ADDR, 16),
        interval_set("plain6", IPV6_ADDR, 16),
    ],
    // NF_INET_POST_ROUTING, `srcnat`.
    chain: BaseChain { name: "postrouting", kind: "nat", hook: 4, priority: 100 },
    rules: &[rule_v4, rule_v6],
};

/// `TYPE_IPADDR`, `TYPE_IP6ADDR` (nftables, include/datatype.h).
const IPV4_ADDR: u32 = 7;
const IPV6_ADDR: u32 = 8;

const fn interval_set(name: &'static str, key_type: u32, key_length: u32) -> Set {
    Set { name, key_type, key_length, interval: true, host_order: false }
}

/// `ip saddr @masq4 ip daddr != @plain4 ip daddr != 224.0.0.0/4 masquerade fully-random`.
fn rule_v4() -> Vec<Expression> {
    vec![
        Expression::meta(Meta::Protocol, First),
        Expression::compare(First, Equal, &[Family::Ipv4 as u8]),
        Expression::payload(Header::Network, 12, 4, First),
        Expression::member_of("masq4", First),
        Expression::payload(Header::Network, 16, 4, First),
        Expression::not_member_of("plain4", First),
        Expression::payload(Header::Network, 16, 4, First),
        Expression::mask(First, [240, 0, 0, 0]),
        Expression::compare(First, NotEqual, &[224, 0, 0, 0]),
        Expression::masquerade_fully_random(),
    ]
}

/// `ip6 saddr @masq6 ip6 daddr != @plain6 ip6 daddr != ff00::/8 masquerade fully-random`.
fn rule_v6() -> Vec<Expression> {
    vec![
        Expression::meta(Meta::Protocol, First),
        Expression::compare(First, Equal, &[Family::Ipv6 as u8]),
        Expression::payload(Header::Network, 8, 16, First),
        Expression::member_of("masq6", First),
        Expression::payload(Header::Network, 24, 16, First),
        Expression::not_member_of("plain6", First),
        Expression::payload(Header::Network, 24, 1, First),
        Expression::compare(First, NotEqual, &[255]),
        Expression::masquerade_fully_random(),
    ]
}

/// Makes all of `wanted` hold, beside what holds already. Says whether anything had to be changed.
///
/// An interval that overlaps others replaces them by their union, at one moment. Safe beside any number of
/// processes that do the same; ENOTEMPTY, EEXIST or ENOENT mean that they changed the same intervals again and
/// again.
pub fn ensure_masquerade(socket: &mut Socket, wanted: &[Masquerade]) -> Result<bool> {
    if wanted.is_empty() {
        return Ok(false);
    }
    let wanted = by_set(wanted);
    commit(socket, |socket| observe(socket, wanted.keys()), |observed| plan(observed, &wanted))
}

/// The entries of `wanted` that do not hold; all of them when the rules are damaged or the table is absent.
pub fn missing_masquerade(socket: &mut Socket, wanted: &[Masquerade]) -> Result<Vec<Masquerade>> {
    let (_, observed) = settled(socket, |socket| observe(socket, by_set(wanted).keys()))?;
    if observed.presence != Presence::Intact {
        return Ok(wanted.to_vec());
    }
    let holds = |set, wanted: Interval| {
        observed.held.get(set).is_some_and(|held| held.iter().any(|held| held.contains(&wanted)))
    };
    let is_missing = |entry: &&Masquerade| {
        let plain_holds = entry.plain.is_none_or(|plain| holds(plain_set(&plain), plain));
        !holds(sources_set(&entry.sources), entry.sources) || !plain_holds
    };
    Ok(wanted.iter().filter(is_missing).copied().collect())
}

/// Stops masquerading `sources` if the set holds exactly this interval: one that was merged into a larger stays.
/// Absent is no error. The destinations stay, as other sources may need them.
pub fn remove_masquerade_source(socket: &mut Socket, sources: Interval) -> Result<()> {
    let set = sources_set(&sources);
    let removal = |observed: &Observed| {
        let mut batch = Batch::new();
        if observed.held.get(set).is_some_and(|held| held.contains(&sources)) {
            batch.extend(TABLE.remove_elements(set, &interval::elements(&[sources])));
        }
        batch
    };
    commit(socket, |socket| observe(socket, [&set]), removal)?;
    Ok(())
}

/// Builds what is missing of the table, then changes each set. Pure.
fn plan(observed: &Observed, wanted: &BTreeMap<&'static str, Vec<Interval>>) -> Batch {
    let mut batch = SCHEMA.build(observed.presence);
    for (set, wanted) in wanted {
        let change = interval::plan(observed.held.get(set).map_or(&[], Vec::as_slice), wanted);
        batch.extend(TABLE.remove_elements(set, &interval::elements(&change.remove)));
        batch.extend(TABLE.add_elements(set, &interval::elements(&change.add)));
    }
    batch
}

/// The intervals wanted in each set; sets of which nothing is wanted are left out.
fn by_set(wanted: &[Masquerade]) -> BTreeMap<&'static str, Vec<Interval>> {
    let mut sets = BTreeMap::<_, Vec<_>>::new();
    for Masquerade { sources, plain } in wanted {
        sets.entry(sources_set(sources)).or_default().push(*sources);
        if let Some(plain) = plain {
            sets.entry(plain_set(plain)).or_default().push(*plain);
        }
    }
    sets
}

fn sources_set(sources: &Interval) -> &'static str {
    if sources.first().is_ipv4() { "masq4" } else { "masq6" }
}

fn plain_set(plain: &Interval) -> &'static str {
    if plain.first().is_ipv4() { "plain4" } else { "plain6" }
}

fn observe<'a>(socket: &mut Socket, sets: impl IntoIterator<Item = &'a &'static str>) -> Result<Observed> {
    let mut held = BTreeMap::new();
    for set in sets {
        let elements = TABLE.dump_elements(socket, set)?.unwrap_or_default();
        held.insert(*set, interval::intervals(&elements));
    }
    Ok(Observed { presence: SCHEMA.observe(socket)?, held })
}
