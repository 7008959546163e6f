//! What the tests of lifecycle, network, addresses and node share: modes times families, and looks at the kernel.

#![expect(dead_code, reason = "each test file uses a part of it")]

pub mod packet;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use netns_tests::{Inside, Node, Pod};
use serde_json::{Value, json};

/// A mode and its families: the axes along which most rules must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub veth: bool,
    pub v4: bool,
    pub v6: bool,
}

impl Case {
    /// Bridge and veth, each with IPv4, IPv6 and both.
    pub fn all() -> Vec<Self> {
        let families = [(true, false), (false, true), (true, true)];
        [false, true].into_iter().flat_map(|veth| families.map(|(v4, v6)| Self { veth, v4, v6 })).collect()
    }

    /// Both modes, dual stack.
    pub fn dual() -> [Self; 2] {
        [false, true].map(|veth| Self { veth, v4: true, v6: true })
    }

    /// Short enough for a node's name.
    pub fn name(self) -> String {
        let mode = if self.veth { "veth" } else { "bridge" };
        let family = match (self.v4, self.v6) {
            (true, true) => "dual",
            (true, false) => "v4",
            _ => "v6",
        };
        format!("{mode}-{family}")
    }

    /// How many addresses a pod gets.
    pub fn families(self) -> usize {
        usize::from(self.v4) + usize::from(self.v6)
    }

    /// Those of the two that belong to its families.
    pub fn pick<T>(self, v4: T, v6: T) -> Vec<T> {
        [(v4, self.v4), (v6, self.v6)].into_iter().filter(|(_, has)| *has).map(|(item, _)| item).collect()
    }

    /// A network of 10.244.0.0/24 and fd00:244::/64, masqueraded, with a default route.
    pub fn conf(self) -> Value {
        self.conf_of("10.244.0.0/24", "fd00:244::/64")
    }

    /// The same with so few addresses that tests can use them up: five IPv4, six IPv6.
    pub fn small_conf(self) -> Value {
        self.conf_of("10.244.0.0/29", "fd00:244::/125")
    }

    /// How many pods [`Case::small_conf`] has room for.
    pub fn small_room(self) -> usize {
        if self.v4 { 5 } else { 6 }
    }

    pub fn conf_of(self, v4: &str, v6: &str) -> Value {
        let mut ranges = Vec::new();
        ranges.extend(self.v4.then(|| json!([{"subnet": v4}])));
        ranges.extend(self.v6.then(|| json!([{"subnet": v6}])));
        json!({
            "cniVersion": "1.1.0", "name": "net", "type": "weft", "mode": self.mode(),
            "isDefaultGateway": true, "ipMasq": true, "ipam": {"type": "weft-ipam", "ranges": ranges}
        })
    }

    /// A network whose addresses come from granted blocks.
    pub fn cluster_conf(self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "net", "type": "weft", "mode": self.mode(),
            "isDefaultGateway": true, "ipam": {"type": "weft-ipam"}
        })
    }

    pub fn mode(self) -> &'static str {
        if self.veth { "veth" } else { "bridge" }
    }
}

/// `conf` with other values for some top-level keys; `null` takes a key away.
pub fn with(conf: &Value, changes: &Value) -> Value {
    let mut conf = conf.clone();
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            conf.as_object_mut().unwrap().remove(key);
        } else {
            conf[key] = value.clone();
        }
    }
    conf
}

/// `conf` as CHECK and DEL get it.
pub fn with_result(conf: &Value, result: &Value) -> Value {
    with(conf, &json!({"prevResult": result}))
}

/// The addresses of a result of version 0.3.0 and later.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    list(&result["ips"]).iter().map(|ip| bare(&ip["address"])).collect()
}

/// The gateways of such a result.
pub fn gateways(result: &Value) -> Vec<IpAddr> {
    list(&result["ips"]).iter().filter_map(|ip| ip["gateway"].as_str()?.parse().ok()).collect()
}

/// An address without its prefix length.
pub fn bare(cidr: &Value) -> IpAddr {
    let text = cidr.as_str().unwrap_or_else(|| panic!("{cidr} is no address"));
    text.split('/').next().unwrap().parse().unwrap()
}

/// The host end that a result names: the first veth outside a sandbox.
pub fn host_end(result: &Value) -> String {
    let interfaces = list(&result["interfaces"]);
    let host = interfaces.iter().find(|link| {
        link["sandbox"].as_str().unwrap_or_default().is_empty()
            && link["name"].as_str().unwrap().starts_with("veth")
    });
    host.unwrap_or_else(|| panic!("no host end in {result}"))["name"].as_str().unwrap().to_owned()
}

/// A JSON array; absent is empty.
pub fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// One link as `ip -d -j` shows it, flags of a bridge port included; `None` if there is none.
pub fn link(place: &impl Inside, name: &str) -> Option<Value> {
    let output = place.try_run(["ip", "-d", "-j", "address", "show", "dev", name]);
    let links: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    list(&links).into_iter().find(|link| link["ifname"] == name)
}

/// The names of all links.
pub fn links(place: &impl Inside) -> Vec<String> {
    let links = place.json(["ip", "-j", "link"]);
    list(&links).iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

/// Whether a link is up, and has this flag.
pub fn has_flag(link: &Value, flag: &str) -> bool {
    list(&link["flags"]).iter().any(|found| found == flag)
}

/// The addresses of a link as `address/length`, without those the kernel made.
pub fn addresses_of(place: &impl Inside, name: &str) -> Vec<String> {
    let link = link(place, name).unwrap_or_else(|| panic!("no link {name}"));
    let info = list(&link["addr_info"]);
    let given = info.iter().filter(|address| address["scope"] == "global" || address["local"] == "fe80::1");
    let mut texts: Vec<String> = given
        .map(|address| format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"]))
        .collect();
    texts.sort();
    texts
}

/// The addresses that the node's records say are taken, in every pool and block, sorted.
pub fn taken(node: &Node) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for stamp in entries(&node.path("/run/weft")) {
        for parent in ["pool", "block"] {
            let folders = entries(&node.path(&format!("/run/weft/{stamp}/{parent}")));
            for folder in folders.iter().filter(|name| !name.starts_with('.')) {
                let files = entries(&node.path(&format!("/run/weft/{stamp}/{parent}/{folder}")));
                found.extend(files.iter().map(|name| name.parse::<IpAddr>().unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The names in a folder; none if there is no folder.
pub fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Everything below the node's state folder is taken away, as an impatient administrator does.
pub fn wipe(node: &Node) {
    for name in entries(&node.path("/run/weft")) {
        fs::remove_dir_all(node.path(&format!("/run/weft/{name}"))).unwrap();
    }
}

/// The pod reaches every one of these.
#[track_caller]
pub fn assert_reaches(pod: &Pod, wanted: &[IpAddr]) {
    for ip in wanted {
        // One is enough, and quick; only a lost one is worth more patience.
        assert!(pod.ping(*ip, 1) || pod.ping(*ip, 3), "{} does not reach {ip}", pod.netns_path().display());
    }
}

/// The round trip of one single echo request, in milliseconds; `None` when it was not answered.
pub fn first_ping(place: &impl Inside, ip: IpAddr) -> Option<f64> {
    let output = place.try_run(["ping", "-n", "-c", "1", "-W", "1", &ip.to_string()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let time = text.split("time=").nth(1)?.split(' ').next()?;
    time.parse().ok()
}

/// The state of a neighbour entry and its MAC.
pub fn neighbour(place: &impl Inside, ip: IpAddr, dev: &str) -> Option<Value> {
    let entries = place.json(["ip", "-j", "neigh", "show", "dev", dev]);
    list(&entries).into_iter().find(|entry| entry["dst"] == ip.to_string())
}
