//! Cryptokey routing: which peer an address belongs to, by the longest prefix of the whole device.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// A prefix, of either family. Bits behind its length are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    v4: bool,
    bits: u128,
    length: u8,
}

impl Prefix {
    /// The prefix of `length` bits that holds `address`; `None` if the family has not that many.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (bits, width) = bits_of(address);
        (length <= width).then(|| Self { v4: width == 32, bits: mask(bits, length), length })
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        let octets = self.bits.to_be_bytes();
        match octets.first_chunk::<4>() {
            Some(v4) if self.v4 => IpAddr::from(*v4),
            _ => IpAddr::from(octets),
        }
    }

    /// Its length in bits.
    pub fn length(&self) -> u8 {
        self.length
    }
}

/// Prefixes of all peers; each belongs to one. `P` names a peer.
#[derive(Debug)]
pub struct Allowed<P> {
    /// By family and length, so that the longest are asked first: nodes give prefixes of few lengths.
    tables: BTreeMap<(bool, u8), HashMap<u128, P>>,
}

impl<P> Default for Allowed<P> {
    fn default() -> Self {
        Self { tables: BTreeMap::new() }
    }
}

impl<P: Copy + PartialEq> Allowed<P> {
    /// Gives a prefix to a peer, and takes it from whoever had it.
    pub fn give(&mut self, prefix: Prefix, peer: P) {
        self.tables.entry((prefix.v4, prefix.length)).or_default().insert(prefix.bits, peer);
    }

    /// Takes a prefix away, if it is this peer's.
    pub fn take(&mut self, prefix: Prefix, peer: P) {
        let key = (prefix.v4, prefix.length);
        if let Some(table) = self.tables.get_mut(&key)
            && table.get(&prefix.bits) == Some(&peer)
        {
            table.remove(&prefix.bits);
            if table.is_empty() {
                self.tables.remove(&key);
            }
        }
    }

    /// Takes all of a peer's prefixes away.
    pub fn take_all(&mut self, peer: P) {
        self.tables.retain(|_, table| {
            table.retain(|_, owner| *owner != peer);
            !table.is_empty()
        });
    }

    /// The peer with the longest prefix that holds the address.
    pub fn peer_of(&self, address: IpAddr) -> Option<P> {
        let (bits, width) = bits_of(address);
        let family = self.tables.range((width == 32, 0)..=(width == 32, width)).rev();
        family.into_iter().find_map(|((_, length), table)| table.get(&mask(bits, *length)).copied())
    }

    /// A peer's prefixes, in order.
    pub fn of_peer(&self, peer: P) -> Vec<Prefix> {
        let mut prefixes: Vec<Prefix> = Vec::new();
        for ((v4, length), table) in &self.tables {
            #[expect(clippy::disallowed_methods, reason = "sorted below")]
            let own = table.iter().filter(|(_, owner)| **owner == peer);
            prefixes.extend(own.map(|(bits, _)| Prefix { v4: *v4, bits: *bits, length: *length }));
        }
        prefixes.sort_by_key(|prefix| (!prefix.v4, prefix.bits, prefix.length));
        prefixes
    }
}

/// An address left-aligned in 128 bits, and how many it has.
fn bits_of(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

fn mask(bits: u128, length: u8) -> u128 {
    bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_longest_prefix_wins_and_families_are_apart() {
        let mut allowed = Allowed::default();
        for (text, peer) in [("0.0.0.0/0", 1), ("10.1.0.0/16", 2), ("10.1.2.0/26", 3), ("fd00::/64", 4)] {
            allowed.give(prefix(text), peer);
        }
        let of = |text: &str| allowed.peer_of(text.parse().unwrap());
        assert_eq!(of("10.1.2.63"), Some(3));
        assert_eq!(of("10.1.2.64"), Some(2));
        assert_eq!(of("192.0.2.1"), Some(1));
        assert_eq!(of("fd00::1"), Some(4));
        assert_eq!(of("fe80::1"), None);
    }

    #[test]
    fn a_prefix_given_again_is_taken_from_its_first_owner() {
        let mut allowed = Allowed::default();
        allowed.give(prefix("10.1.0.0/16"), 1);
        allowed.give(prefix("10.1.7.7/16"), 2);
        assert_eq!(allowed.of_peer(1), []);
        allowed.take(prefix("10.1.0.0/16"), 1);
        assert_eq!(allowed.of_peer(2), [prefix("10.1.0.0/16")]);
        allowed.take_all(2);
        assert_eq!(allowed.peer_of("10.1.0.1".parse().unwrap()), None);
    }

    proptest! {
        #[test]
        fn it_is_a_search_through_all(
            given in prop::collection::vec((any::<u32>(), 0u8..=32, 0u8..5), 0..40),
            asked in prop::collection::vec(any::<u32>(), 0..20),
        ) {
            let mut allowed = Allowed::default();
            let mut plain: Vec<(Prefix, u8)> = Vec::new();
            for (bits, length, peer) in given {
                // Few bits, so that prefixes overlap.
                let prefix = Prefix::new(IpAddr::from((bits & 0x0303_0303).to_be_bytes()), length).unwrap();
                allowed.give(prefix, peer);
                plain.retain(|(other, _)| *other != prefix);
                plain.push((prefix, peer));
            }
            for bits in asked {
                let ip = IpAddr::from((bits & 0x0303_0303).to_be_bytes());
                let holds = |p: &&(Prefix, u8)| Prefix::new(ip, p.0.length()) == Some(p.0);
                let expected = plain.iter().filter(holds).max_by_key(|p| p.0.length()).map(|p| p.1);
                prop_assert_eq!(allowed.peer_of(ip), expected);
            }
        }
    }
}
