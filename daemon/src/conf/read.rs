//! Layers to [`Conf`]: each value is read once, and each problem is kept while reading goes on.

mod store;

pub use store::read_password;

use std::path::PathBuf;
use std::str::FromStr;

use toml::Value;
use weft_overlay::wanted::Direct;

use crate::cluster::{self, Asked};

use super::keys::{KEYS, Key};
use super::layers::Layers;
use super::suggest::nearest;
use super::{
    BackendKind, CniConf, Conf, ForeignForward, Invalid, NetworkConf, NodeName, PodMode, UnderlayConf,
    VxlanConf,
};

const DATA_DIR: &str = "/var/lib/weft";
const SYSCTL_ROOT: &str = "/proc/sys";
const CONF_DIR: &str = "/etc/cni/net.d";
const BIN_DIR: &str = "/opt/cni/bin";
/// RFC 8200, section 5.
const IPV6_MTU: u32 = 1280;
/// IPv4 in practice needs 576.
const MTU: std::ops::RangeInclusive<u32> = 576..=65535;
const VNI: std::ops::RangeInclusive<u32> = 1..=0xff_ffff;
const ANY: std::ops::RangeInclusive<u32> = 0..=u32::MAX;
/// Keys of `[network]` that each node has to itself.
const OF_THE_NODE: [&str; 2] = ["network.mode", "network.mtu"];

impl Conf {
    /// Reads everything that was given. `hostname` is what the node is called if it has no name.
    ///
    /// # Errors
    /// All that is wrong, in the order of the keys.
    pub fn read(layers: &Layers, hostname: &str) -> Result<Self, Vec<Invalid>> {
        let mut reader = Reader { layers, problems: layers.problems().to_vec() };
        if layers.is_unreadable() {
            // What a file that could not be read does not say is no news.
            return Err(reader.problems);
        }
        reader.refuse_unbuilt();
        let conf = reader.conf(hostname);
        match conf {
            Some(conf) if reader.problems.is_empty() => Ok(conf),
            _ => Err(reader.problems),
        }
    }
}

/// Reads changes to the cluster's configuration, as `cidrs=…` or `network.cidrs=…`.
///
/// # Errors
/// All that is wrong with them.
pub fn read_changes(changes: &[String]) -> Result<Asked, Vec<Invalid>> {
    let mut problems = Vec::new();
    let mut flags = Vec::new();
    for change in changes {
        match split_change(change) {
            Ok(flag) => flags.push(flag),
            Err(problem) => problems.push(problem),
        }
    }
    let layers = Layers::new().flags(flags);
    problems.extend_from_slice(layers.problems());
    let mut reader = Reader { layers: &layers, problems };
    let (network, vxlan) = (reader.network(), reader.vxlan());
    if reader.problems.is_empty() { Ok(super::asked(&network, &vxlan)) } else { Err(reader.problems) }
}

fn split_change(change: &str) -> Result<(&'static Key, &str), Invalid> {
    let Some((name, value)) = change.split_once('=') else {
        return Err(Invalid::new(change, "is no change, as in cidrs=10.244.0.0/16"));
    };
    let of_the_cluster =
        || KEYS.iter().filter(|key| key.path.starts_with("network.") || key.path.starts_with("vxlan."));
    let short = |key: &&Key| key.path.rsplit('.').next() == Some(name);
    let Some(key) = of_the_cluster().find(|key| key.path == name || short(key)) else {
        let names = of_the_cluster().filter_map(|key| key.path.rsplit('.').next());
        let meant = nearest(name, names).map(|meant| format!("; is {meant} meant?")).unwrap_or_default();
        return Err(Invalid::new(name, format!("there is no such key of the cluster{meant}")));
    };
    if OF_THE_NODE.contains(&key.path) {
        return Err(Invalid::new(key.path, "is each node's own: set it in its weftd.toml"));
    }
    Ok((key, value))
}

struct Reader<'a> {
    layers: &'a Layers,
    problems: Vec<Invalid>,
}

impl Reader<'_> {
    fn conf(&mut self, hostname: &str) -> Option<Conf> {
        let node = self.node(hostname);
        let store = self.store();
        let conf = Conf {
            data_dir: self.path("data_dir", DATA_DIR),
            sysctl_root: self.path("sysctl_root", SYSCTL_ROOT),
            foreign_forward: self.foreign_forward(),
            metrics: self.parsed("metrics.listen", "an address with a port, as in 127.0.0.1:9469"),
            offline_boot: self.boolean("offline_boot").unwrap_or(true),
            underlay: UnderlayConf {
                interface: self.text("interface"),
                addresses: self.parsed_list("addresses").unwrap_or_default(),
            },
            network: self.network(),
            vxlan: self.vxlan(),
            cni: CniConf {
                conf_dir: self.path("cni.conf_dir", CONF_DIR),
                bin_dir: self.path("cni.bin_dir", BIN_DIR),
            },
            node: node?,
            store: store?,
        };
        self.check_cluster(&super::asked(&conf.network, &conf.vxlan));
        Some(conf)
    }

    fn foreign_forward(&mut self) -> ForeignForward {
        let choices = [("report", ForeignForward::Report), ("iptables", ForeignForward::Iptables)];
        self.choice("foreign_forward", &choices).unwrap_or(ForeignForward::Report)
    }

    fn node(&mut self, hostname: &str) -> Option<NodeName> {
        let given = self.text("node");
        let parsed = NodeName::parse(given.as_deref().unwrap_or(hostname));
        let because = if given.is_none() { " (the host name; give `node`)" } else { "" };
        parsed.map_err(|problem| self.complain("node", format!("{problem}{because}"))).ok()
    }

    fn network(&mut self) -> NetworkConf {
        let backends =
            [("routes", Some(BackendKind::Routes)), ("vxlan", Some(BackendKind::Vxlan)), ("wireguard", None)];
        let backend = match self.choice("network.backend", &backends) {
            Some(None) => {
                let problem = "\"wireguard\" is not built in this version; use \"vxlan\" or \"routes\"";
                self.complain("network.backend", problem);
                None
            }
            backend => backend.flatten(),
        };
        let network = NetworkConf {
            cidrs: self.parsed_list("network.cidrs"),
            block_size_v4: self.number("network.block_size_v4", 1..=32).and_then(|n| u8::try_from(n).ok()),
            block_size_v6: self.number("network.block_size_v6", 1..=128).and_then(|n| u8::try_from(n).ok()),
            mode: self.choice("network.mode", &[("bridge", PodMode::Bridge), ("veth", PodMode::Veth)]),
            backend,
            direct: self
                .choice("network.direct", &[("never", Direct::Never), ("same-subnet", Direct::SameSubnet)]),
            mtu: self.number("network.mtu", MTU),
            masquerade: self.boolean("network.masquerade"),
            no_masquerade: self.parsed_list("network.no_masquerade"),
            reissue_after: self.number("network.reissue_after", ANY).map(u64::from),
        };
        let six = network.cidrs.iter().flatten().any(|cidr| !cidr.is_ipv4());
        if six && network.mtu.is_some_and(|mtu| mtu < IPV6_MTU) {
            self.complain("network.mtu", format!("IPv6 needs at least {IPV6_MTU}"));
        }
        network
    }

    fn vxlan(&mut self) -> VxlanConf {
        VxlanConf {
            vni: self.number("vxlan.vni", VNI),
            port: self.number("vxlan.port", 1..=65535).and_then(|port| u16::try_from(port).ok()),
        }
    }

    /// A file that names networks must describe a cluster that could be: it may be the first.
    fn check_cluster(&mut self, asked: &Asked) {
        if asked.cidrs.is_none() {
            return;
        }
        for problem in cluster::create(asked).err().unwrap_or_default() {
            self.complain(problem.key, problem.problem);
        }
    }

    /// Keys that are fixed but whose work is not built: silence would be a promise.
    fn refuse_unbuilt(&mut self) {
        for path in ["wireguard.implementation", "wireguard.port"] {
            if self.layers.get(path).is_some() {
                self.complain(path, "WireGuard is not built in this version");
            }
        }
    }

    fn complain(&mut self, path: &str, problem: impl Into<String>) {
        self.problems.push(Invalid::new(self.layers.field(path), problem));
    }

    fn text(&mut self, path: &str) -> Option<String> {
        match self.layers.get(path).map(|(value, _)| value) {
            None => None,
            Some(Value::String(text)) if text.is_empty() => {
                self.complain(path, "is empty; leave it out instead");
                None
            }
            Some(Value::String(text)) => Some(text.clone()),
            Some(other) => {
                self.complain(path, format!("is {}, not a string", a(other)));
                None
            }
        }
    }

    fn parsed<T: FromStr>(&mut self, path: &str, what: &str) -> Option<T> {
        let text = self.text(path)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.complain(path, format!("{text:?} is not {what}"));
        }
        parsed
    }

    fn list(&mut self, path: &str) -> Option<Vec<String>> {
        let value = self.layers.get(path).map(|(value, _)| value)?;
        let words = value.as_array().and_then(|items| {
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        if words.is_none() {
            let kind = if value.is_array() { "an array with other things than strings" } else { a(value) };
            self.complain(path, format!("is {kind}, not an array of strings"));
        }
        words
    }

    fn parsed_list<T: FromStr<Err: std::fmt::Display>>(&mut self, path: &str) -> Option<Vec<T>> {
        let words = self.list(path)?;
        let mut parsed = Vec::with_capacity(words.len());
        for word in words {
            match word.parse::<T>() {
                Ok(item) => parsed.push(item),
                Err(problem) => self.complain(path, problem.to_string()),
            }
        }
        Some(parsed)
    }

    fn number(&mut self, path: &str, allowed: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let value = self.layers.get(path).map(|(value, _)| value)?;
        let Some(number) = value.as_integer() else {
            self.complain(path, format!("is {}, not a whole number", a(value)));
            return None;
        };
        let within = u32::try_from(number).ok().filter(|number| allowed.contains(number));
        if within.is_none() {
            self.complain(path, format!("{number} is not within {} to {}", allowed.start(), allowed.end()));
        }
        within
    }

    fn boolean(&mut self, path: &str) -> Option<bool> {
        let value = self.layers.get(path).map(|(value, _)| value)?;
        if value.as_bool().is_none() {
            self.complain(path, format!("is {}, not true or false", a(value)));
        }
        value.as_bool()
    }

    fn choice<T: Copy>(&mut self, path: &str, choices: &[(&str, T)]) -> Option<T> {
        let given = self.text(path)?;
        let found = choices.iter().find(|(name, _)| *name == given).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
            self.complain(path, format!("{given:?} is none of {}", names.join(", ")));
        }
        found
    }

    /// An absolute path: what a service's working directory is, nobody knows.
    fn path(&mut self, key: &str, default: &str) -> PathBuf {
        let given = self.text(key);
        if let Some(relative) = given.as_deref().filter(|path| !path.starts_with('/')) {
            self.complain(key, format!("{relative:?} is no absolute path"));
        }
        PathBuf::from(given.as_deref().unwrap_or(default))
    }
}

/// What a value is, for a sentence.
fn a(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a number",
        Value::Float(_) => "a number with a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "an array",
        Value::Table(_) => "a section",
    }
}
