//! The records in the store: JSON with a format number. What cannot be read is named and left alone; unknown fields
//! of a record that this node writes again are kept.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft_cni::ip::{IfAddr, Subnet};
use weft_netlink::link::Mac;
use weft_overlay::wanted::{Backend, Direct};

use super::blocks::BlockSizes;
use super::conf;
use crate::store::NODES;

/// The format of every record that this version writes, and the highest that it reads.
pub const FORMAT: u32 = 1;

/// Longest value that is looked at.
const MAX_VALUE: usize = 256 * 1024;

/// Why a value is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    /// Not what it should be.
    #[error(
        "the value of {key} in the store is no {what}: {problem}; it is left as it is and counts for nothing"
    )]
    Unreadable {
        /// The key.
        key: String,
        /// What should be there.
        what: &'static str,
        /// Why it is not.
        problem: String,
    },
    /// Written by a newer version.
    #[error(
        "{key} in the store has format {format}, and this weftd reads formats up to {FORMAT}; it is left as it is"
    )]
    NewerFormat {
        /// The key.
        key: String,
        /// Its format.
        format: u64,
    },
}

impl Garbage {
    /// What a person can do.
    pub fn way_out(&self) -> String {
        match self {
            Self::Unreadable { key, .. } => format!(
                "Find out who wrote {key}; delete it with `etcdctl del` if it is not Weft's, or let its node write it again"
            ),
            Self::NewerFormat { .. } => {
                "Bring weftd on this node to the newest version in the cluster".to_owned()
            }
        }
    }
}

/// `config`: what all nodes agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Of the record.
    pub format: u32,
    /// The pods' networks.
    pub cidrs: Vec<Subnet>,
    /// Prefix length of an IPv4 block.
    #[serde(default = "v4_size")]
    pub block_size_v4: u8,
    /// Prefix length of an IPv6 block.
    #[serde(default = "v6_size")]
    pub block_size_v6: u8,
    /// How nodes are joined.
    pub backend: Backend,
    /// Whether nodes of one subnet use plain routes.
    #[serde(default)]
    pub direct: Direct,
    /// Whether pods reach the outside under the node's address.
    #[serde(default = "yes")]
    pub masquerade: bool,
    /// Destinations that see the pods' own addresses all the same.
    #[serde(default)]
    pub no_masquerade: Vec<Subnet>,
    /// Seconds after which blocks of a removed node that never answered are given to others. It only grows.
    #[serde(default = "reissue_after")]
    pub reissue_after: u64,
    /// What newer versions wrote.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

fn v4_size() -> u8 {
    BlockSizes::default().v4
}

fn v6_size() -> u8 {
    BlockSizes::default().v6
}

fn yes() -> bool {
    true
}

fn reissue_after() -> u64 {
    7 * 24 * 3600
}

impl Default for Network {
    fn default() -> Self {
        Self {
            format: FORMAT,
            cidrs: Vec::new(),
            block_size_v4: v4_size(),
            block_size_v6: v6_size(),
            backend: Backend::Vxlan { vni: 1, port: weft_overlay::wanted::VXLAN_PORT },
            direct: Direct::Never,
            masquerade: true,
            no_masquerade: Vec::new(),
            reissue_after: reissue_after(),
            unknown: Map::new(),
        }
    }
}

impl Network {
    /// The prefix lengths of blocks.
    pub fn sizes(&self) -> BlockSizes {
        BlockSizes { v4: self.block_size_v4, v6: self.block_size_v6 }
    }

    /// Which families pods have, as "is IPv4".
    pub fn families(&self) -> impl Iterator<Item = bool> + '_ {
        [true, false].into_iter().filter(|ipv4| self.cidrs.iter().any(|cidr| cidr.is_ipv4() == *ipv4))
    }

    /// Reads `config`.
    ///
    /// # Errors
    /// A sentence about all that is wrong with it.
    pub fn parse(value: &[u8]) -> Result<Self, Garbage> {
        let network: Self = parse(crate::store::CONFIG, "configuration of the cluster", value)?;
        let problems: Vec<String> = conf::problems(&network).iter().map(ToString::to_string).collect();
        if problems.is_empty() {
            return Ok(network);
        }
        Err(Garbage::Unreadable {
            key: crate::store::CONFIG.to_owned(),
            what: "configuration of the cluster",
            problem: problems.join("; "),
        })
    }
}

/// Whether a node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It does.
    Active,
    /// Its record is a tombstone.
    Removed,
}

/// A block in a node's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeldBlock {
    /// The block.
    pub cidr: Subnet,
    /// Of the claim: where two nodes list one block, the higher one has it.
    pub epoch: u64,
}

/// What a tombstone says about the removal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedAt {
    /// Seconds since 1970, by whoever removed it.
    pub at: u64,
    /// When its blocks are given to others, seconds since 1970; `None`: they are free already.
    pub until: Option<u64>,
    /// The node saw it, has no pods left and gives no addresses.
    #[serde(default)]
    pub acknowledged: bool,
}

/// `n/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Of the record.
    pub format: u32,
    /// As in the key.
    pub name: Arc<str>,
    /// The machine's own id, which outlives its address but not its disk.
    pub instance: String,
    /// Grows with each instance of this name and with its removal.
    pub epoch: u64,
    /// Grows with each write of the node itself. A store that has a lower one than the node remembers was rewritten.
    pub serial: u64,
    /// Whether it takes part.
    pub state: NodeState,
    /// How others reach it, in the order of preference.
    pub addresses: Vec<IfAddr>,
    /// The first of each family is the one with the node's own address.
    pub blocks: Vec<HeldBlock>,
    /// Of its VXLAN device.
    #[serde(default)]
    pub vtep_mac: Option<Mac>,
    /// Of its weftd.
    #[serde(default)]
    pub version: String,
    /// Of its weftd's last start.
    pub session: String,
    /// When it found the store rewritten and asserted itself again; seconds since 1970, 0 for never.
    #[serde(default)]
    pub recovered_at: u64,
    /// For a tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<RemovedAt>,
    /// What newer versions wrote.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl NodeRecord {
    /// Reads a node's record.
    ///
    /// # Errors
    /// A sentence about what is wrong with it.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, Garbage> {
        let record: Self = parse(key, "node record", value)?;
        let complain =
            |problem: String| Garbage::Unreadable { key: key.to_owned(), what: "node record", problem };
        if key.strip_prefix(NODES) != Some(&record.name) {
            return Err(complain(format!("it is about {:?}", record.name)));
        }
        let mut blocks: Vec<&Subnet> = record.blocks.iter().map(|held| &held.cidr).collect();
        blocks.sort();
        let twice = blocks.windows(2).find(|pair| matches!(pair, [a, b] if a.overlaps(b)));
        match twice {
            Some(pair) => Err(complain(format!("it lists {} twice", pair[0]))),
            None => Ok(record),
        }
    }

    /// The key of this record.
    pub fn key(&self) -> String {
        node_key(&self.name)
    }

    /// As it is written.
    pub fn to_value(&self) -> Vec<u8> {
        to_value(self)
    }

    /// Whether it lists this block.
    pub fn holds(&self, block: &Subnet) -> bool {
        self.blocks.iter().any(|held| held.cidr == *block)
    }
}

/// The key of a node's record.
pub fn node_key(name: &str) -> String {
    format!("{NODES}{name}")
}

/// The key of a node's session.
pub fn session_key(name: &str) -> String {
    format!("alive/{name}")
}

/// Whether a block's owner still has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockState {
    /// It has.
    Held,
    /// Its owner was removed, or replaced, and may still run: nobody gets it before `until`.
    Retired,
}

/// `b/<cidr>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRecord {
    /// Of the record.
    pub format: u32,
    /// The node's name.
    pub owner: Arc<str>,
    /// Its instance.
    pub instance: String,
    /// Of the claim.
    pub epoch: u64,
    /// Whether it is held.
    pub state: BlockState,
    /// Seconds since 1970, for [`BlockState::Retired`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

impl BlockRecord {
    /// A claim.
    pub fn held(owner: &Arc<str>, instance: &str, epoch: u64) -> Self {
        let (owner, instance) = (owner.clone(), instance.to_owned());
        Self { format: FORMAT, owner, instance, epoch, state: BlockState::Held, until: None }
    }

    /// Reads a block's record.
    ///
    /// # Errors
    /// A sentence about what is wrong with it.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, Garbage> {
        parse(key, "block record", value)
    }

    /// As it is written.
    pub fn to_value(&self) -> Vec<u8> {
        to_value(self)
    }
}

/// `alive/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Of the record.
    pub format: u32,
    /// The node's instance.
    pub instance: String,
    /// This start of its weftd.
    pub session: String,
    /// The boot and the network namespace it runs in.
    pub stamp: String,
    /// How to reach it.
    pub addresses: Vec<IfAddr>,
}

impl SessionRecord {
    /// Reads a session.
    ///
    /// # Errors
    /// A sentence about what is wrong with it.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, Garbage> {
        parse(key, "session", value)
    }

    /// As it is written.
    pub fn to_value(&self) -> Vec<u8> {
        to_value(self)
    }
}

/// Any of the records as bytes. They are plain data, so that this cannot fail; were it to, an empty value would be
/// written, which every reader names as garbage.
pub(super) fn to_value(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).unwrap_or_default()
}

/// Reads a record of a format that is known.
pub(super) fn parse<T: DeserializeOwned>(key: &str, what: &'static str, value: &[u8]) -> Result<T, Garbage> {
    #[derive(Deserialize)]
    struct Head {
        format: u64,
    }
    let complain = |problem: String| Garbage::Unreadable { key: key.to_owned(), what, problem };
    if value.len() > MAX_VALUE {
        return Err(complain(format!("it has {} bytes", value.len())));
    }
    let head: Head = serde_json::from_slice(value).map_err(|error| complain(error.to_string()))?;
    if head.format > u64::from(FORMAT) {
        return Err(Garbage::NewerFormat { key: key.to_owned(), format: head.format });
    }
    serde_json::from_slice(value).map_err(|error| complain(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NODE: &str = r#"{"format":1,"name":"a","instance":"i","epoch":1,"serial":4,"state":"active",
        "addresses":["192.0.2.1/24"],"blocks":[{"cidr":"10.1.0.0/26","epoch":7}],"session":"s","rack":"r7"}"#;

    #[test]
    fn unknown_fields_survive_a_rewrite() {
        let record = NodeRecord::parse("n/a", NODE.as_bytes()).unwrap();
        let again = NodeRecord::parse("n/a", &record.to_value()).unwrap();
        assert_eq!(again, record);
        assert_eq!(again.unknown["rack"], "r7");
        let config = br#"{"format":1,"cidrs":["10.1.0.0/16"],"backend":{"kind":"routes"},"colour":"red"}"#;
        assert_eq!(Network::parse(config).unwrap().unknown["colour"], "red");
    }

    #[test]
    fn a_newer_format_is_named_and_never_guessed_at() {
        let newer = NODE.replace("\"format\":1", "\"format\":2");
        let error = NodeRecord::parse("n/a", newer.as_bytes()).unwrap_err();
        assert_eq!(error, Garbage::NewerFormat { key: "n/a".to_owned(), format: 2 });
        assert!(error.to_string().contains("n/a in the store has format 2"), "{error}");
    }

    #[test]
    fn a_record_under_a_foreign_name_or_with_a_block_twice_is_garbage() {
        let error = NodeRecord::parse("n/b", NODE.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("it is about \"a\""), "{error}");
        let twice = NODE.replace("\"blocks\":[", "\"blocks\":[{\"cidr\":\"10.1.0.0/24\",\"epoch\":1},");
        let error = NodeRecord::parse("n/a", twice.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("10.1.0.0/24 twice"), "{error}");
    }

    #[test]
    fn all_that_is_wrong_with_a_configuration_is_said_at_once() {
        let config = br#"{"format":1,"cidrs":["10.1.0.0/16","10.1.2.0/24"],"block_size_v4":12,
            "backend":{"kind":"vxlan","vni":0,"port":0}}"#;
        let error = Network::parse(config).unwrap_err().to_string();
        for part in ["10.1.2.0/24 overlaps", "block_size_v4", "vni", "port"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(value: Vec<u8>, text in "\\PC{0,80}", cut in 0_usize..200) {
            let truncated = &NODE.as_bytes()[..cut.min(NODE.len() - 1)];
            for value in [value.as_slice(), text.as_bytes(), truncated] {
                prop_assert!(NodeRecord::parse("n/a", value).is_err());
                prop_assert!(Network::parse(value).is_err());
                prop_assert!(BlockRecord::parse("b/x", value).is_err());
                prop_assert!(SessionRecord::parse("alive/a", value).is_err());
            }
        }
    }
}
