//! A watcher over a running cluster: whatever a node gives, the store says at that moment that it is this node's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use weft_cni::ip::Subnet;

use super::ClusterLab;
use super::etcd_api::KeyValue;
use super::ledger::{addresses_held, blocks_held};
use crate::wait::poll;

const PREFIX: &str = "/weft/v1/";
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Sets a flag when it goes out of scope, also by a panic: who waits for the flag must not wait for ever.
#[derive(Debug)]
pub struct StopAtEnd<'f>(pub &'f AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What [`watch_grants`] has seen.
#[derive(Debug, Default)]
pub struct Watched {
    /// How often it looked.
    pub looks: usize,
    /// Each address that was held at some look, by whomever.
    pub addresses: BTreeSet<IpAddr>,
    /// When blocks were seen that somebody had claimed since the look before; one entry each.
    pub claimed: Vec<Instant>,
    /// The same of blocks that went back.
    pub returned: Vec<Instant>,
    /// What was given or granted and is not the node's by the store, a sentence each.
    pub outside: BTreeSet<String>,
    /// What two nodes gave, a sentence each.
    pub twice: BTreeSet<String>,
}

impl Watched {
    /// How many blocks were claimed and how many went back between these moments. Those of which both happened
    /// between two looks are not counted.
    pub fn moves(&self, from: Instant, to: Instant) -> (usize, usize) {
        let within = |moments: &[Instant]| moments.iter().filter(|at| from <= **at && **at <= to).count();
        (within(&self.claimed), within(&self.returned))
    }

    fn moved(&mut self, before: &Owners, after: &Owners) {
        let now = Instant::now();
        let fresh = |old: &Owners, new: &Owners| new.keys().filter(|block| !old.contains_key(block)).count();
        self.claimed.extend(std::iter::repeat_n(now, fresh(before, after)));
        self.returned.extend(std::iter::repeat_n(now, fresh(after, before)));
    }
}

/// Whose each block is, by the store: those of which the block's record and its owner's agree.
type Owners = BTreeMap<Subnet, String>;

/// What a node gives of. The numbers tell what was given again from what stayed.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    addresses: BTreeMap<IpAddr, u64>,
    blocks: BTreeMap<Subnet, u64>,
}

/// Looks until `stop` is set. An address or a block counts as held if it was there before the store was read and is
/// still there afterwards, by the same grant: then the store must have had it in between.
pub fn watch_grants(lab: &ClusterLab, stop: &AtomicBool) -> Watched {
    let mut watched = Watched::default();
    let mut owners = owners(&lab.etcd.list(PREFIX));
    let mut before = look(lab);
    while poll(PAUSE, || stop.load(Ordering::Acquire).then_some(())).is_none() {
        let now = self::owners(&lab.etcd.list(PREFIX));
        watched.moved(&owners, &now);
        owners = now;
        let after = look(lab);
        let names = lab.nodes.iter().map(super::ClusterNode::name);
        let steady: Vec<(&str, Held)> =
            names.zip(before.iter().zip(&after).map(|(before, after)| before.kept_by(after))).collect();
        watched.outside.extend(steady.iter().flat_map(|(name, held)| outside(name, held, &owners)));
        watched.twice.extend(twice(&steady));
        watched.addresses.extend(after.iter().flat_map(|held| held.addresses.keys()));
        watched.looks += 1;
        before = after;
    }
    watched
}

fn look(lab: &ClusterLab) -> Vec<Held> {
    let held = |node| Held { addresses: addresses_held(node), blocks: blocks_held(node) };
    lab.nodes.iter().map(|node| held(&node.node)).collect()
}

impl Held {
    fn kept_by(&self, later: &Self) -> Self {
        let addresses = self.addresses.iter().filter(|(ip, inode)| later.addresses.get(ip) == Some(inode));
        let blocks = self.blocks.iter().filter(|(block, inode)| later.blocks.get(block) == Some(inode));
        Self {
            addresses: addresses.map(|(ip, inode)| (*ip, *inode)).collect(),
            blocks: blocks.map(|(block, inode)| (*block, *inode)).collect(),
        }
    }
}

fn outside(name: &str, held: &Held, owners: &Owners) -> Vec<String> {
    let own: Vec<&Subnet> =
        owners.iter().filter(|(_, owner)| *owner == name).map(|(block, _)| block).collect();
    let addresses = held.addresses.keys().filter(|ip| !own.iter().any(|block| block.contains(**ip)));
    let blocks = held.blocks.keys().filter(|block| !own.contains(block));
    let addresses = addresses.map(|ip| format!("{ip} was given on {name}, of no block of its own"));
    addresses.chain(blocks.map(|block| format!("{block} was granted on {name} and not its own"))).collect()
}

fn twice(held: &[(&str, Held)]) -> Vec<String> {
    let mut holders: BTreeMap<IpAddr, &str> = BTreeMap::new();
    let all = held.iter().flat_map(|(name, held)| held.addresses.keys().map(move |ip| (*ip, *name)));
    all.filter_map(|(ip, name)| Some(format!("{ip} was given on {} and {name}", holders.insert(ip, name)?)))
        .collect()
}

fn owners(items: &[KeyValue]) -> Owners {
    let under = |folder: &'static str| {
        items
            .iter()
            .filter_map(move |item| Some((item.key.strip_prefix(PREFIX)?.strip_prefix(folder)?, item.json())))
    };
    let listed: BTreeSet<(String, Subnet)> = under("n/")
        .flat_map(|(name, record)| {
            let blocks = record["blocks"].as_array().cloned().unwrap_or_default();
            let cidrs = blocks.into_iter().filter_map(|block| block["cidr"].as_str()?.parse().ok());
            cidrs.map(|cidr| (name.to_owned(), cidr)).collect::<Vec<_>>()
        })
        .collect();
    let held = under("b/").filter(|(_, record)| record["state"] == "held");
    let held = held.filter_map(|(block, record)| {
        Some((record["owner"].as_str()?.to_owned(), block.replacen('-', "/", 1).parse().ok()?))
    });
    held.filter(|pair| listed.contains(pair)).map(|(owner, block)| (block, owner)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, value: &str) -> KeyValue {
        KeyValue { key: format!("{PREFIX}{key}"), value: value.to_owned(), mod_revision: 1 }
    }

    fn held(addresses: &[(&str, u64)], blocks: &[(&str, u64)]) -> Held {
        Held {
            addresses: addresses
                .iter()
                .map(|(ip, inode)| (ip.parse().expect("an address"), *inode))
                .collect(),
            blocks: blocks.iter().map(|(block, inode)| (block.parse().expect("a block"), *inode)).collect(),
        }
    }

    #[test]
    fn a_block_is_whose_both_records_say_so() {
        let owners = owners(&[
            item("n/a", r#"{"blocks": [{"cidr": "10.1.0.0/29"}, {"cidr": "10.1.0.8/29"}]}"#),
            item("b/10.1.0.0-29", r#"{"owner": "a", "state": "held"}"#),
            item("b/10.1.0.8-29", r#"{"owner": "b", "state": "held"}"#),
            item("b/10.1.0.16-29", r#"{"owner": "a", "state": "held"}"#),
        ]);
        assert_eq!(
            owners.into_iter().map(|(block, owner)| format!("{block} {owner}")).collect::<Vec<_>>(),
            ["10.1.0.0/29 a"]
        );
    }

    #[test]
    fn what_is_given_outside_and_what_is_given_twice_is_named() {
        let owners: Owners = [("10.1.0.0/29".parse().expect("a block"), "a".to_owned())].into();
        let good = held(&[("10.1.0.1", 1)], &[("10.1.0.0/29", 2)]);
        assert!(outside("a", &good, &owners).is_empty());
        assert_eq!(outside("b", &good, &owners).len(), 2, "neither the address nor the block is b's");
        assert_eq!(twice(&[("a", good), ("b", held(&[("10.1.0.1", 9)], &[]))]).len(), 1);
    }

    #[test]
    fn only_what_stayed_by_the_same_grant_counts() {
        let before = held(&[("10.1.0.1", 1), ("10.1.0.2", 2)], &[("10.1.0.0/29", 3)]);
        let after = held(&[("10.1.0.1", 1), ("10.1.0.2", 7)], &[("10.1.0.0/29", 4)]);
        assert_eq!(before.kept_by(&after), held(&[("10.1.0.1", 1)], &[]));
    }
}
