//! Block arithmetic: which blocks a network has, in which order a node tries them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sha2::{Digest, Sha256};
use weft_cni::ip::Subnet;

use super::record::Network;

/// How far a block may be from its network's size: more bits would make more blocks than a counter can hold.
pub const MAX_BLOCK_BITS: u8 = 32;

/// Prefix lengths of blocks. They never change: else two keys could stand for one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// IPv4; 26 unless said otherwise.
    pub v4: u8,
    /// IPv6; 122 unless said otherwise.
    pub v6: u8,
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self { v4: 26, v6: 122 }
    }
}

impl BlockSizes {
    /// The one for a family.
    pub fn of(self, ipv4: bool) -> u8 {
        if ipv4 { self.v4 } else { self.v6 }
    }
}

/// The key of a block: `b/10.1.2.0-26`.
pub fn block_key(block: &Subnet) -> String {
    format!("b/{}-{}", block.addr(), block.prefix_len())
}

/// The block of a key, if it is the key of one.
pub fn parse_block_key(key: &str) -> Option<Subnet> {
    let (addr, prefix) = key.strip_prefix("b/")?.rsplit_once('-')?;
    let block: Subnet = format!("{addr}/{prefix}").parse().ok()?;
    (block_key(&block) == key).then_some(block)
}

/// Where a node begins to look, so that nodes that start together do not race for the same block.
pub fn host_seed(node: &str) -> u64 {
    let digest = Sha256::digest(node.as_bytes());
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// How many blocks of a family the cluster has.
pub fn total(network: &Network, ipv4: bool) -> u64 {
    cidrs(network, ipv4).map(|cidr| count(cidr, network.sizes().of(ipv4))).sum()
}

/// Whether this is one of the cluster's blocks: of the right size, inside of a cidr.
pub fn is_block(network: &Network, block: &Subnet) -> bool {
    let ipv4 = block.is_ipv4();
    block.prefix_len() == network.sizes().of(ipv4)
        && cidrs(network, ipv4).any(|cidr| cidr.contains(block.addr()))
}

/// All blocks of a family, each once, beginning where `seed` says and going on with a step that visits all.
pub fn claim_order(network: &Network, ipv4: bool, seed: u64) -> impl Iterator<Item = Subnet> {
    let size = network.sizes().of(ipv4);
    let cidrs: Vec<Subnet> = cidrs(network, ipv4).copied().collect();
    let total: u64 = cidrs.iter().map(|cidr| count(cidr, size)).sum();
    let start = seed.checked_rem(total).unwrap_or(0);
    (0..total).filter_map(move |step| nth(&cidrs, size, (start + step) % total))
}

fn cidrs(network: &Network, ipv4: bool) -> impl Iterator<Item = &Subnet> {
    network.cidrs.iter().filter(move |cidr| cidr.is_ipv4() == ipv4)
}

fn count(cidr: &Subnet, size: u8) -> u64 {
    let bits = size.saturating_sub(cidr.prefix_len()).min(MAX_BLOCK_BITS);
    if size < cidr.prefix_len() { 0 } else { 1 << bits }
}

fn nth(cidrs: &[Subnet], size: u8, mut index: u64) -> Option<Subnet> {
    for cidr in cidrs {
        let here = count(cidr, size);
        if index < here {
            return Subnet::new(offset(cidr.addr(), size, index)?, size).ok();
        }
        index -= here;
    }
    None
}

fn offset(base: IpAddr, size: u8, index: u64) -> Option<IpAddr> {
    Some(match base {
        IpAddr::V4(base) => {
            let by = u32::try_from(index << 32_u8.checked_sub(size)?).ok()?;
            Ipv4Addr::from(u32::from(base).checked_add(by)?).into()
        }
        IpAddr::V6(base) => {
            let by = u128::from(index).checked_shl(u32::from(128_u8.checked_sub(size)?))?;
            Ipv6Addr::from(u128::from(base).checked_add(by)?).into()
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn network(cidrs: &[&str]) -> Network {
        Network { cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(), ..Network::default() }
    }

    #[test]
    fn every_node_tries_every_block_once_from_a_place_of_its_own() {
        let network = network(&["10.1.0.0/22", "10.9.0.0/25", "fd00::/120"]);
        let tried: Vec<Subnet> = claim_order(&network, true, host_seed("a")).collect();
        assert_eq!(tried.len() as u64, total(&network, true));
        assert_eq!(tried.iter().collect::<BTreeSet<_>>().len(), 18);
        assert!(tried.iter().all(|block| is_block(&network, block)));
        let starts: BTreeSet<Subnet> =
            (0..30).filter_map(|n| claim_order(&network, true, host_seed(&format!("n{n}"))).next()).collect();
        assert!(starts.len() > 8, "{starts:?}");
        assert_eq!(claim_order(&network, false, 3).count(), 4);
    }

    #[test]
    fn blocks_of_an_ipv6_network_are_counted_and_found() {
        let network = network(&["fd00:1::/96"]);
        assert_eq!(total(&network, false), 1 << 26);
        let block = claim_order(&network, false, (1 << 26) - 1).next().unwrap();
        assert_eq!(block.to_string(), "fd00:1::ffff:ffc0/122");
        assert_eq!(claim_order(&network, true, 5).count(), 0);
    }

    #[test]
    fn what_is_not_of_the_clusters_size_or_place_is_no_block() {
        let network = network(&["10.1.0.0/22"]);
        for text in ["10.1.0.0/25", "10.1.0.0/27", "10.2.0.0/26", "0.0.0.0/0", "fd00::/122"] {
            assert!(!is_block(&network, &text.parse().unwrap()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_key_is_its_block_and_back(addr: u32, prefix in 0_u8..=32) {
            let base = Ipv4Addr::from(addr & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0));
            let block = Subnet::new(base.into(), prefix).unwrap();
            prop_assert_eq!(parse_block_key(&block_key(&block)), Some(block));
        }

        #[test]
        fn garbage_is_no_block_key(key in "b/[0-9a-f:./-]{0,20}") {
            if let Some(block) = parse_block_key(&key) {
                prop_assert_eq!(block_key(&block), key);
            }
        }
    }
}
