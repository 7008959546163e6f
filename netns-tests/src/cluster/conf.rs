//! `weftd.toml`, written from what a test cares about.

use std::fmt::Write;
use std::path::PathBuf;

use super::Etcd;

/// The cluster's network, as an operator would choose it.
#[derive(Clone, Debug)]
pub struct Network {
    /// The pods' networks.
    pub cidrs: Vec<String>,
    /// `routes` or `vxlan`.
    pub backend: String,
    /// `never` or `same-subnet`.
    pub direct: String,
    /// `bridge` or `veth`.
    pub mode: String,
    /// Further lines of `[network]`.
    pub more: Vec<String>,
}

impl Default for Network {
    /// Dual stack over VXLAN, pods on a bridge.
    fn default() -> Self {
        Self {
            cidrs: vec!["10.244.0.0/16".to_owned(), "fd00:244::/104".to_owned()],
            backend: "vxlan".to_owned(),
            direct: "never".to_owned(),
            mode: "bridge".to_owned(),
            more: Vec::new(),
        }
    }
}

impl Network {
    /// Another backend.
    #[must_use]
    pub fn backend(mut self, backend: &str) -> Self {
        self.backend = backend.to_owned();
        self
    }

    /// Another mode.
    #[must_use]
    pub fn mode(mut self, mode: &str) -> Self {
        self.mode = mode.to_owned();
        self
    }

    /// `same-subnet`.
    #[must_use]
    pub fn direct(mut self) -> Self {
        self.direct = "same-subnet".to_owned();
        self
    }

    /// Other networks.
    #[must_use]
    pub fn cidrs(mut self, cidrs: &[&str]) -> Self {
        self.cidrs = cidrs.iter().map(|&cidr| cidr.to_owned()).collect();
        self
    }

    /// IPv4 only.
    #[must_use]
    pub fn v4(self) -> Self {
        self.cidrs(&["10.244.0.0/16"])
    }

    /// IPv6 only.
    #[must_use]
    pub fn v6(self) -> Self {
        self.cidrs(&["fd00:244::/104"])
    }

    /// Another line of `[network]`.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        self.more.push(line.to_owned());
        self
    }

    fn section(&self) -> String {
        let mut text = format!(
            "[network]\ncidrs = {:?}\nbackend = {:?}\ndirect = {:?}\nmode = {:?}\n",
            self.cidrs, self.backend, self.direct, self.mode
        );
        for line in &self.more {
            text += line;
            text.push('\n');
        }
        text
    }
}

/// The file of one node.
#[derive(Clone, Debug)]
pub struct WeftdConf {
    /// `node`.
    pub node: String,
    /// `[store] endpoints`.
    pub endpoints: Vec<String>,
    /// `[store] ca`.
    pub ca: Option<PathBuf>,
    /// `[store] cert` and `key`.
    pub cert: Option<(PathBuf, PathBuf)>,
    /// `[store] username` and `password`.
    pub login: Option<(String, String)>,
    /// Further lines of `[store]`.
    pub store: Vec<String>,
    /// `[network]`; `None` obeys what the store says.
    pub network: Option<Network>,
    /// Lines before the first section.
    pub top: Vec<String>,
    /// Whole sections at the end.
    pub end: Vec<String>,
}

impl WeftdConf {
    /// A node of this name, with the endpoints and certificates of `etcd`.
    pub fn new(node: &str, etcd: &Etcd, network: &Network) -> Self {
        Self {
            node: node.to_owned(),
            endpoints: etcd.endpoints(),
            ca: etcd.authority().map(|authority| authority.ca.clone()),
            cert: etcd.client().map(|identity| (identity.cert.clone(), identity.key.clone())),
            login: None,
            store: Vec::new(),
            network: Some(network.clone()),
            top: Vec::new(),
            end: Vec::new(),
        }
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = format!("node = {:?}\n", self.node);
        for line in &self.top {
            let _infallible = writeln!(text, "{line}");
        }
        let _infallible = write!(text, "[store]\nkind = \"etcd\"\nendpoints = {:?}\n", self.endpoints);
        let mut key = |name: &str, value: &str| {
            let _infallible = writeln!(text, "{name} = {value:?}");
        };
        if let Some(ca) = &self.ca {
            key("ca", &ca.to_string_lossy());
        }
        if let Some((cert, secret)) = &self.cert {
            key("cert", &cert.to_string_lossy());
            key("key", &secret.to_string_lossy());
        }
        if let Some((name, password)) = &self.login {
            key("username", name);
            key("password", password);
        }
        for line in &self.store {
            text += line;
            text.push('\n');
        }
        text += &self.network.as_ref().map(Network::section).unwrap_or_default();
        for section in &self.end {
            text += section;
            text.push('\n');
        }
        text
    }
}
