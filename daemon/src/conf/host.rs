//! What the host says against the configuration: networks that the pods' would hide, files that cannot be read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use weft_cni::ip::Subnet;

use super::{Conf, Invalid};

/// A network that the host itself uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostNetwork {
    /// The network.
    pub subnet: Subnet,
    /// How a person finds it, as in "the address 10.0.0.5/24 on eth0".
    pub what: String,
}

/// What was found on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Networks of the host, without what Weft made.
    pub networks: Vec<HostNetwork>,
    /// Files that the configuration names and that cannot be read, with the reason.
    pub unreadable: BTreeMap<PathBuf, String>,
    /// Where an `iptables` was looked for in vain; `None` if there is one, or nobody wants it.
    pub no_iptables_in: Option<String>,
}

impl Conf {
    /// All that the host says against this configuration.
    pub fn check(&self, host: &HostFacts) -> Vec<Invalid> {
        let cidrs = self.network.cidrs.as_deref().unwrap_or_default();
        let mut problems = overlaps(cidrs, &host.networks);
        let files =
            [("store.ca", &self.store.ca), ("store.cert", &self.store.cert), ("store.key", &self.store.key)];
        for (field, path) in files {
            let Some(path) = path else { continue };
            if let Some(reason) = host.unreadable.get(path) {
                problems.push(Invalid::new(field, format!("read {}: {reason}", path.display())));
            }
        }
        if let Some(folders) = &host.no_iptables_in {
            let problem = format!(
                "\"iptables\" needs the program that made the foreign chain, and there is no iptables, iptables-nft or \
                 iptables-legacy in {folders}: install it, or say \"report\" and accept the pods' networks there yourself"
            );
            problems.push(Invalid::new("foreign_forward", problem));
        }
        problems
    }
}

/// Pods' networks that hide a network of the host's own.
pub fn overlaps(cidrs: &[Subnet], networks: &[HostNetwork]) -> Vec<Invalid> {
    let clash = |cidr: &Subnet| {
        let clashing = networks.iter().find(|network| network.subnet.overlaps(cidr))?;
        let problem = format!(
            "{cidr} overlaps with {} of this host: packets for one would go to the other. \
             Choose a network that nothing else uses",
            clashing.what
        );
        Some(Invalid::new("network.cidrs", problem))
    };
    cidrs.iter().filter_map(clash).collect()
}
