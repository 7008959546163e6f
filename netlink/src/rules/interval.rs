//! Ranges of addresses, what a set holds of them, and which to add or remove. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::nft::Element;

/// The addresses from `first` to `last`, both included, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval {
    // Orders IPv4 before IPv6, so comparisons below need not look at the family.
    first: IpAddr,
    last: IpAddr,
}

/// How a set reaches what is wanted, in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Intervals that larger ones replace.
    pub remove: Vec<Interval>,
    /// Ascending, disjoint.
    pub add: Vec<Interval>,
}

impl Interval {
    /// `None` if the families differ or `last` is below `first`.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// Its lowest address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Its highest address.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether all of `other` is in it.
    pub fn contains(&self, other: &Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Adds what no single interval of the set contains yet, each merged with all that it overlaps.
///
/// Neighbours that only touch stay apart: the single address of a pod must remain removable on its own.
pub(super) fn plan(observed: &[Interval], wanted: &[Interval]) -> Change {
    let is_missing = |interval: &&Interval| !observed.iter().any(|held| held.contains(interval));
    let missing = merge(wanted.iter().filter(is_missing).copied().collect());
    let is_replaced = |held: &&Interval| missing.iter().any(|interval| interval.overlaps(held));
    let remove: Vec<_> = observed.iter().filter(is_replaced).copied().collect();
    Change { add: merge([missing.as_slice(), &remove].concat()), remove }
}

/// Joins what overlaps; ascending.
pub(super) fn merge(mut intervals: Vec<Interval>) -> Vec<Interval> {
    intervals.sort_unstable();
    intervals.dedup_by(|next, kept| {
        let joined = kept.overlaps(next);
        if joined {
            kept.last = kept.last.max(next.last);
        }
        joined
    });
    intervals
}

/// An interval set's elements: each start with its end, but none behind the highest address.
pub(super) fn elements(intervals: &[Interval]) -> Vec<Element> {
    let pair = |interval: &Interval| {
        [
            Some(Element::start(interval.first.into())),
            successor(interval.last).map(|next| Element::end(next.into())),
        ]
    };
    intervals.iter().flat_map(pair).flatten().collect()
}

/// The intervals that ascending elements describe. A start also ends the interval before it, and an end without a
/// start means nothing: `nft` leaves out the one and puts the other at the lowest address.
pub(super) fn intervals(elements: &[Element]) -> Vec<Interval> {
    let next_keys = elements.iter().skip(1).map(Some).chain([None]);
    let starts = elements.iter().zip(next_keys).filter(|(element, _)| element.start);
    starts
        .filter_map(|(element, next)| {
            let first = address(element.key.as_bytes())?;
            let last = match next {
                Some(next) => predecessor(address(next.key.as_bytes())?)?,
                None => highest(first),
            };
            Interval::new(first, last)
        })
        .collect()
}

fn address(key: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(key).ok().map(IpAddr::from);
    <[u8; 16]>::try_from(key).ok().map(IpAddr::from).or_else(v4)
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().checked_add(1)?).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().checked_add(1)?).into(),
    })
}

fn predecessor(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().checked_sub(1)?).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().checked_sub(1)?).into(),
    })
}

fn highest(same_family: IpAddr) -> IpAddr {
    match same_family {
        IpAddr::V4(_) => Ipv4Addr::BROADCAST.into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(u128::MAX).into(),
    }
}

#[cfg(test)]
mod tests;
