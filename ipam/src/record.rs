//! What is written down about an attachment.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weft_cni::ip::IfAddr;

use crate::key::{Hash, Key};

/// The format number of every file here. A file with another number is another version's: it is kept and named.
pub const FORMAT: u32 = 1;

/// Who an attachment is. Never changed once written: address files are hard links to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The format number.
    pub format: u32,
    /// The network's name; empty in a record rebuilt from an alias, which has hashes only.
    pub network: String,
    /// The container ID; empty as above.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name in the pod; empty as above.
    pub ifname: String,
    /// Hashes of the three.
    pub hashes: [String; 3],
}

impl Owner {
    /// Of (network, containerID, ifname).
    pub fn new(network: &str, container_id: &str, ifname: &str) -> Self {
        let mut owner = Self::of_key(&Key::of(network, container_id, ifname));
        owner.network = network.to_owned();
        owner.container_id = container_id.to_owned();
        owner.ifname = ifname.to_owned();
        owner
    }

    /// Of an attachment of which only the hashes are known.
    pub fn of_key(key: &Key) -> Self {
        let hashes = [&key.network, &key.container, &key.ifname].map(|hash| hash.as_str().to_owned());
        Self {
            format: FORMAT,
            network: String::new(),
            container_id: String::new(),
            ifname: String::new(),
            hashes,
        }
    }

    /// The key; `None` if the file was tampered with.
    pub fn key(&self) -> Option<Key> {
        let [network, container, ifname] = &self.hashes;
        Some(Key {
            network: Hash::parse(network)?,
            container: Hash::parse(container)?,
            ifname: Hash::parse(ifname)?,
        })
    }

    /// Names for a person, as far as known.
    pub fn describe(&self) -> String {
        if self.container_id.is_empty() {
            format!("attachment with hashes {}", self.hashes.join(" "))
        } else {
            format!("container {} interface {} on network {}", self.container_id, self.ifname, self.network)
        }
    }
}

/// How far an ADD got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Begun. Whatever the record names may or may not exist.
    Intent,
    /// Answered.
    Done,
}

/// An address and the file that says it is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenAddress {
    /// The pod's address.
    pub address: IfAddr,
    /// The gateway of its range, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The file, relative to the state folder; empty when a delegated IPAM plugin holds the address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// The hint file and the index in it, for the time of release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<(String, u64)>,
}

/// The host end of a pod's link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its index; 0 until the kernel has given one.
    pub index: u32,
    /// Its MAC, as text.
    pub mac: String,
    /// Its alias.
    pub alias: String,
}

/// The bridge that the host end is a port of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
}

/// What was done for an attachment, or is about to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The format number.
    pub format: u32,
    /// How far it got.
    pub phase: Phase,
    /// When it was begun, in nanoseconds of CLOCK_BOOTTIME.
    pub created: u64,
    /// The program that called us, `/proc/<parent>/exe`; empty if unknown.
    #[serde(default)]
    pub runtime: String,
    /// `CNI_NETNS` as given.
    #[serde(default)]
    pub netns: PathBuf,
    /// Rebuilt from the kernel after the folder was wiped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rebuilt: bool,
    /// The pod's addresses: candidates while the phase is `intent`.
    #[serde(default)]
    pub addresses: Vec<TakenAddress>,
    /// The host end; `None` for a delegated `weft-ipam`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
    /// The pod end's MAC, as text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod_mac: String,
    /// The bridge, in bridge mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
    /// The node has a route to each address over the bridge (cluster pods).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub routed: bool,
    /// Spoof guard elements were written for the host end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guarded: bool,
    /// Single addresses with a masquerade element of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masqueraded: Vec<IpAddr>,
    /// The IPAM plugin that gave the addresses, if it is not ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegate: Option<String>,
    /// Warnings for `weftd check`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Record {
    /// An ADD that has just begun.
    pub fn begun(created: u64, runtime: String, netns: PathBuf) -> Self {
        Self {
            format: FORMAT,
            phase: Phase::Intent,
            created,
            runtime,
            netns,
            rebuilt: false,
            addresses: Vec::new(),
            host: None,
            pod_mac: String::new(),
            bridge: None,
            routed: false,
            guarded: false,
            masqueraded: Vec::new(),
            delegate: None,
            notes: Vec::new(),
        }
    }
}
