//! A pod as a runtime hands it to a CNI plugin: a network namespace, an id, an interface name.

use std::io;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::host::{self, NsId};
use crate::inside::{Inside, Place};
use crate::lab::Shared;
use crate::netns::{self, Netns};
use crate::node::Node;

/// A pod of a [`Node`]. Clones are the same pod.
#[derive(Clone, Debug)]
pub struct Pod {
    place: Place,
    netns: Netns,
    container_id: String,
    ifname: String,
}

impl Inside for Pod {
    fn place(&self) -> &Place {
        &self.place
    }
}

impl Pod {
    pub(crate) fn create(lab: &Arc<Shared>, node: &Node, name: &str) -> io::Result<Self> {
        let label = format!("{}-{name}-{}", node.name(), lab.next());
        let netns = lab.netns(&label)?;
        let hash = Sha256::digest(format!("{}/{label}", lab.tag));
        let place = Place { name: label, net: netns.path.clone(), mnt: node.place().mnt.clone() };
        Ok(Self { place, netns, container_id: hex(&hash), ifname: "eth0".to_owned() })
    }

    /// `CNI_NETNS`.
    pub fn netns_path(&self) -> &Path {
        &self.netns.path
    }

    /// `CNI_CONTAINERID`: 64 hexadecimal digits, as containerd makes them.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// `CNI_IFNAME`: `eth0` unless changed by [`Pod::with_ifname`].
    pub fn ifname(&self) -> &str {
        &self.ifname
    }

    /// The same pod, to be attached under another interface name.
    pub fn with_ifname(&self, ifname: &str) -> Self {
        Self { ifname: ifname.to_owned(), ..self.clone() }
    }

    /// The same namespace under another container id.
    pub fn with_container_id(&self, container_id: &str) -> Self {
        Self { container_id: container_id.to_owned(), ..self.clone() }
    }

    /// Kills what runs in the pod and takes its namespace away; a later DEL gets a path that is gone.
    /// The kernel removes its links a little later, unless a socket opened in it still lives.
    pub fn destroy_netns(&self) {
        // Destroyed before, its number may be another's by now.
        if NsId::of(&self.netns.path).is_ok_and(|id| id == self.netns.id) {
            host::kill_inhabitants(&[self.netns.id].into());
        }
        netns::remove(&self.netns.path);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
