//! How full the ranges of a network are. Pure: from names of files to rows.

use std::net::IpAddr;

use super::RangeRow;

/// An address file.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// The address.
    pub ip: IpAddr,
    /// The file's inode: its owner file's, unless something is wrong.
    pub inode: u64,
}

/// A range that addresses were given from, as its file in `slot/` is called: `<network>-<first>-<last>`.
#[derive(Debug, PartialEq, Eq)]
pub struct Hint {
    /// The network's hash.
    pub network: String,
    first: IpAddr,
    last: IpAddr,
}

impl Hint {
    /// `None` for the hints of a block, whose folder says the same.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let (network, first, last) =
            (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().is_none().then(|| Self { network: network.to_owned(), first, last })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&ip)
    }
}

/// A row for each range that was ever given from, and one for what lies in none of them.
pub fn of_pool(network: &str, addresses: &[Taken], hints: &[&Hint]) -> Vec<RangeRow> {
    let row = |range, used, size| RangeRow { network: network.to_owned(), range, used, size };
    let mut rows: Vec<RangeRow> = hints
        .iter()
        .map(|hint| {
            let used = addresses.iter().filter(|taken| hint.contains(taken.ip)).count();
            row(Some(format!("{}-{}", hint.first, hint.last)), used, Some(size(hint.first, hint.last)))
        })
        .collect();
    let other = addresses.iter().filter(|taken| !hints.iter().any(|hint| hint.contains(taken.ip))).count();
    if other > 0 || rows.is_empty() {
        rows.push(row(None, other, None));
    }
    rows
}

/// How many addresses there are from first to last.
pub fn size(first: IpAddr, last: IpAddr) -> u128 {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    bits(last).saturating_sub(bits(first)).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(ip: &str) -> Taken {
        Taken { ip: ip.parse().unwrap(), inode: 1 }
    }

    #[test]
    fn a_hint_names_its_range_and_a_blocks_hint_is_none() {
        let hint = Hint::parse("00000000deadbeef-fd00::1-fd00::ff").unwrap();
        assert_eq!(hint.network, "00000000deadbeef");
        assert!(hint.contains("fd00::80".parse().unwrap()) && !hint.contains("fd00::100".parse().unwrap()));
        for other in ["10.1.2.0-26", "00000000deadbeef", "a-10.0.0.1-x", "a-10.0.0.1-10.0.0.9-b", ""] {
            assert_eq!(Hint::parse(other), None, "{other}");
        }
    }

    #[test]
    fn addresses_outside_of_every_known_range_are_counted_apart() {
        let hint = Hint::parse("n-10.0.0.1-10.0.0.254").unwrap();
        let rows = of_pool("n", &[taken("10.0.0.2"), taken("10.9.0.2"), taken("fd00::2")], &[&hint]);
        let numbers: Vec<_> = rows.iter().map(|row| (row.range.is_some(), row.used, row.size)).collect();
        assert_eq!(numbers, [(true, 1, Some(254)), (false, 2, None)]);
    }

    #[test]
    fn a_pool_without_known_ranges_has_one_row() {
        assert_eq!(of_pool("n", &[], &[]).len(), 1);
    }

    #[test]
    fn the_size_of_the_largest_range_does_not_overflow() {
        let all = size("::".parse().unwrap(), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap());
        assert_eq!(all, u128::MAX);
    }
}
