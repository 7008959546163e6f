//! The alias of a host end: a fixed, short grammar that says whose it is and which addresses it has, so that the
//! records can be rebuilt when somebody wiped them under running pods.
//!
//! `weft1 <network> <container> <ifname> <IPv4,…|-> <IPv6,…|-> <flags>`, the names as hashes. At most 255 bytes.

use std::fmt;
use std::net::IpAddr;

use crate::key::{Hash, Key};

const TAG: &str = "weft1";
/// The kernel's limit (`IFALIASZ` less the closing zero).
const MAX: usize = 255;

/// What an alias says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// Whose link it is.
    pub key: Key,
    /// The pod's addresses on it.
    pub addresses: Vec<IpAddr>,
    /// The addresses are Weft's own to give, not a delegated IPAM plugin's.
    pub own_addresses: bool,
    /// The addresses come from granted blocks, not from the configuration's ranges.
    pub cluster: bool,
    /// The first half of the hash of the runtime that made it; empty if unknown.
    pub runtime: String,
}

impl Alias {
    /// The alias as text; `None` if it would not fit into the kernel's 255 bytes.
    pub fn to_text(&self) -> Option<String> {
        let text = self.to_string();
        (text.len() <= MAX).then_some(text)
    }

    /// Reads an alias; `None` if it is not one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [TAG, network, container, ifname, v4, v6, flags] = words[..] else { return None };
        let (letters, runtime) = flags.split_once(':')?;
        let mut addresses = family(v4, IpAddr::is_ipv4)?;
        addresses.extend(family(v6, IpAddr::is_ipv6)?);
        Some(Self {
            key: Key {
                network: Hash::parse(network)?,
                container: Hash::parse(container)?,
                ifname: Hash::parse(ifname)?,
            },
            addresses,
            own_addresses: letters.contains('o'),
            cluster: letters.contains('c'),
            runtime: runtime.to_owned(),
        })
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { network, container, ifname } = &self.key;
        let v4 = list(&self.addresses, IpAddr::is_ipv4);
        let v6 = list(&self.addresses, IpAddr::is_ipv6);
        write!(f, "{TAG} {network} {container} {ifname} {v4} {v6} ")?;
        if self.own_addresses {
            f.write_str("o")?;
        }
        if self.cluster {
            f.write_str("c")?;
        }
        write!(f, ":{}", self.runtime)
    }
}

fn list(addresses: &[IpAddr], of_family: fn(&IpAddr) -> bool) -> String {
    let words: Vec<String> = addresses.iter().filter(|ip| of_family(ip)).map(IpAddr::to_string).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(",") }
}

fn family(words: &str, of_family: fn(&IpAddr) -> bool) -> Option<Vec<IpAddr>> {
    if words == "-" {
        return Some(Vec::new());
    }
    words.split(',').map(|word| word.parse().ok().filter(of_family)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn alias(addresses: Vec<IpAddr>, own_addresses: bool, cluster: bool) -> Alias {
        let runtime = Hash::of("containerd").as_str().get(..8).unwrap_or_default().to_owned();
        Alias { key: Key::of("net", "container", "eth0"), addresses, own_addresses, cluster, runtime }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            v4 in proptest::collection::vec(any::<u32>(), 0..3),
            v6 in proptest::collection::vec(any::<u128>(), 0..3),
            own in any::<bool>(),
            cluster in any::<bool>(),
        ) {
            let addresses = v4.into_iter().map(|bits| IpAddr::V4(bits.into()))
                .chain(v6.into_iter().map(|bits| IpAddr::V6(bits.into()))).collect();
            let alias = alias(addresses, own, cluster);
            if let Some(text) = alias.to_text() {
                prop_assert_eq!(Alias::parse(&text), Some(alias));
            }
        }

        #[test]
        fn foreign_aliases_are_not_ours(text in ".{0,300}") {
            prop_assert!(Alias::parse(&text).is_none());
        }
    }

    #[test]
    fn a_dual_stack_pod_fits_and_too_many_addresses_are_refused() {
        let v6: IpAddr = "fd00:1111:2222:3333:4444:5555:6666:7777".parse().unwrap();
        let v4: IpAddr = "203.203.203.203".parse().unwrap();
        assert!(alias(vec![v4, v6], true, true).to_text().is_some());
        assert!(alias(vec![v6; 6], true, true).to_text().is_none());
    }

    #[test]
    fn an_alias_with_the_wrong_family_in_a_column_is_refused() {
        let text = alias(vec![], true, false).to_string().replacen("- -", "fd00::1 -", 1);
        assert!(Alias::parse(&text).is_none());
    }
}
