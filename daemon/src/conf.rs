//! What `weftd` is told: a file, `WEFT_…` variables and flags, laid over each other and read once into values that
//! cannot be wrong. Every problem is reported, not the first. Nothing here reads a file, the environment or the
//! kernel; [`load`] does.

mod host;
mod keys;
mod layers;
pub mod load;
mod read;
mod suggest;
#[cfg(test)]
mod tests;
mod variables;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use weft_cni::ip::{IfAddr, Subnet};
use weft_overlay::wanted::Direct;

use crate::cluster::Asked;

pub use host::{HostFacts, HostNetwork, overlaps};
pub use keys::{KEYS, Key, Kind};
pub use layers::{Layers, Origin};
pub use read::{read_changes, read_password};
pub use suggest::nearest;
pub use variables::LOG;

/// Where the file is unless somebody says otherwise.
pub const DEFAULT_FILE: &str = "/etc/weft/weftd.toml";

/// One thing that is wrong with what `weftd` was told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Invalid {
    /// The key, as in `store.endpoints`; with the flag or variable it came from if it was not the file.
    pub field: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Invalid {
    /// A problem with one key.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

/// The name of a node: what Kubernetes allows for one, so that it is also a key in the store and a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeName(String);

impl NodeName {
    /// Reads a name.
    ///
    /// # Errors
    /// A sentence that says what a name is.
    pub fn parse(text: &str) -> Result<Self, String> {
        let plain = |label: &str| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() <= 253 && text.split('.').all(plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "{text:?} is no node name: small letters, digits, '-' and '.', as Kubernetes allows for a node"
        ))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A secret: neither `{}` nor `{:?}` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for whoever must send it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Everything that `weftd` was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conf {
    /// This node.
    pub node: NodeName,
    /// The cluster's store.
    pub store: StoreConf,
    /// What the cluster should be; what is not said is not disagreed with.
    pub network: NetworkConf,
    /// VXLAN parameters of the cluster.
    pub vxlan: VxlanConf,
    /// Where the container runtime looks.
    pub cni: CniConf,
    /// How other nodes reach this one, if it must not be found out.
    pub underlay: UnderlayConf,
    /// What to do about a firewall of somebody else's that drops forwarded packets.
    pub foreign_forward: ForeignForward,
    /// Where monitoring asks.
    pub metrics: Option<SocketAddr>,
    /// Whether a node that boots while the store is away gives addresses from what it knew before.
    pub offline_boot: bool,
    /// Identity, key and cached snapshot live here.
    pub data_dir: PathBuf,
    /// Where the kernel's settings are writable: containers see `/proc/sys` read-only.
    pub sysctl_root: PathBuf,
}

impl Conf {
    /// What this node's own file says about the cluster; `None` if nothing: it obeys.
    pub fn asked(&self) -> Option<Asked> {
        let asked = asked(&self.network, &self.vxlan);
        (asked != Asked::default()).then_some(asked)
    }
}

fn asked(network: &NetworkConf, vxlan: &VxlanConf) -> Asked {
    Asked {
        cidrs: network.cidrs.clone(),
        block_size_v4: network.block_size_v4,
        block_size_v6: network.block_size_v6,
        vxlan: network.backend.map(|backend| backend == BackendKind::Vxlan),
        vni: vxlan.vni,
        port: vxlan.port,
        direct: network.direct,
        masquerade: network.masquerade,
        no_masquerade: network.no_masquerade.clone(),
        reissue_after: network.reissue_after,
    }
}

/// `[store]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConf {
    /// Which store.
    pub kind: StoreKind,
    /// etcd: URLs of its members. File: the one path.
    pub endpoints: Vec<String>,
    /// Certificates of the authority that signed the members' own.
    pub ca: Option<PathBuf>,
    /// This node's certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Who to log in as.
    pub username: Option<String>,
    /// With what.
    pub password: Option<Secret>,
    /// The file that the password came from, if it did: it can change there.
    pub password_file: Option<PathBuf>,
    /// What every key begins with.
    pub prefix: String,
}

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// An etcd.
    Etcd,
    /// A static description in a file.
    File,
}

/// `[network]`: the cluster's own configuration, and two keys of this node (`mode` and `mtu`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkConf {
    /// The pods' networks.
    pub cidrs: Option<Vec<Subnet>>,
    /// Prefix length of an IPv4 block.
    pub block_size_v4: Option<u8>,
    /// Prefix length of an IPv6 block.
    pub block_size_v6: Option<u8>,
    /// How pods are joined to this node.
    pub mode: Option<PodMode>,
    /// How nodes are joined.
    pub backend: Option<BackendKind>,
    /// Whether nodes of one subnet use plain routes.
    pub direct: Option<Direct>,
    /// The pods' MTU in bytes, if the detected one is wrong.
    pub mtu: Option<u32>,
    /// Whether pods reach the outside under the node's address.
    pub masquerade: Option<bool>,
    /// Destinations that see the pods' own addresses all the same.
    pub no_masquerade: Option<Vec<Subnet>>,
    /// Seconds after which blocks of a removed node that never answered are given to others.
    pub reissue_after: Option<u64>,
}

/// How pods are joined to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodMode {
    /// Ports of a bridge.
    Bridge,
    /// A link of its own for each.
    Veth,
}

impl PodMode {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Veth => "veth",
        }
    }
}

/// How nodes are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// Plain routes.
    Routes,
    /// VXLAN.
    Vxlan,
}

/// `[vxlan]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VxlanConf {
    /// The network identifier.
    pub vni: Option<u32>,
    /// The UDP port.
    pub port: Option<u16>,
}

/// `[cni]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConf {
    /// Where the conflist goes.
    pub conf_dir: PathBuf,
    /// Where the plugins go.
    pub bin_dir: PathBuf,
}

/// `interface` and `addresses`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnderlayConf {
    /// Publish this interface's addresses.
    pub interface: Option<String>,
    /// Publish these.
    pub addresses: Vec<IfAddr>,
}

/// What to do about a foreign FORWARD policy of DROP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignForward {
    /// Say it in `status` and the log.
    Report,
    /// Also accept the pods' networks there, by `iptables`.
    Iptables,
}
