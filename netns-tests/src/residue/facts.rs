//! Reads the facts of a snapshot from the node, each as one line that is the same whenever the fact is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::inside::{Inside, text};
use crate::node::Node;

/// What sort of thing a fact is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Link,
    Address,
    Route,
    Rule,
    Neighbour,
    Fdb,
    Qdisc,
    Nft,
    Element,
    Iptables,
    Sysctl,
    File,
    Process,
}

/// One line of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    pub kind: Kind,
    /// The link or nft table it belongs to; empty for others.
    pub subject: String,
    /// The kernel adds and removes it together with the link.
    pub by_kernel: bool,
    pub text: String,
}

impl std::fmt::Display for Fact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)
    }
}

type Reader = fn(&Node) -> Vec<Fact>;

/// Reads everything. The readers run side by side: they are a dozen programs.
pub fn collect(node: &Node) -> BTreeSet<Fact> {
    let readers: [Reader; 6] = [links, routes, neighbours, bridge_and_tc, packet_rules, files_and_sysctls];
    let facts = std::thread::scope(|scope| {
        let running = readers.map(|reader| scope.spawn(move || reader(node)));
        running.map(|reader| reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    // Last, so that the programs above are not seen.
    facts.into_iter().flatten().chain(processes(node)).collect()
}

fn links(node: &Node) -> Vec<Fact> {
    let listed = node.json(["ip", "-j", "-d", "address", "show"]);
    let mut facts = Vec::new();
    for link in items(&listed) {
        let name = word(link, "ifname");
        let kind = word(&link["linkinfo"], "info_kind");
        let line = format!("{name} {kind} master={} alias={}", word(link, "master"), word(link, "ifalias"));
        facts.push(fact(Kind::Link, &name, line));
        // The kernel's own link-local addresses come when they like; fe80::1 is the gateway that weft sets.
        let by_kernel = |address: &&Value| {
            address["scope"] == "link" && address["family"] == "inet6" && address["local"] != "fe80::1"
        };
        for address in items(&link["addr_info"]).filter(|address| !by_kernel(address)) {
            let line = format!("{}/{} dev {name}", word(address, "local"), address["prefixlen"]);
            facts.push(fact(Kind::Address, &name, line));
        }
    }
    facts
}

fn routes(node: &Node) -> Vec<Fact> {
    let mut facts = Vec::new();
    for family in ["-4", "-6"] {
        let routes = node.json(["ip", family, "-j", "-d", "route", "show", "table", "all"]);
        facts.extend(items(&routes).filter(|route| !follows_an_address(route)).map(|route| {
            let by_kernel = route["protocol"] == "kernel";
            Fact { by_kernel, ..fact(Kind::Route, &word(route, "dev"), line(route)) }
        }));
        let rules = node.json(["ip", family, "-j", "rule", "show"]);
        facts.extend(items(&rules).map(|rule| fact(Kind::Rule, "", format!("{family} {}", line(rule)))));
    }
    facts
}

/// Whether the kernel made this route from an address, which is a fact of its own. Some come only when
/// duplicate address detection ends, or when forwarding is switched on.
fn follows_an_address(route: &Value) -> bool {
    let target = word(route, "dst");
    let kind = word(route, "type");
    let implied = ["local", "broadcast", "anycast", "multicast"].contains(&kind.as_str());
    route["protocol"] == "kernel" && (implied || target.starts_with("fe80:"))
}

/// Whether the kernel made this FDB entry because somebody listens to a multicast group.
fn is_membership(entry: &Value) -> bool {
    let mac = word(entry, "mac");
    mac.starts_with("33:33:") || mac.starts_with("01:00:5e:")
}

fn neighbours(node: &Node) -> Vec<Fact> {
    let entries = node.json(["ip", "-j", "neigh", "show"]);
    let proxies = node.json(["ip", "-j", "neigh", "show", "proxy"]);
    let seeded = |entry: &&Value| entry.get("extern_learn").is_some() || has(&entry["state"], "PERMANENT");
    let entries = items(&entries).filter(seeded).map(|entry| (entry, ""));
    entries
        .chain(items(&proxies).map(|entry| (entry, " proxy")))
        .map(|(entry, mark)| {
            let dev = word(entry, "dev");
            let mac = word(entry, "lladdr");
            fact(Kind::Neighbour, &dev, format!("{} {mac} dev {dev}{mark}", word(entry, "dst")))
        })
        .collect()
}

fn bridge_and_tc(node: &Node) -> Vec<Fact> {
    let fdb = node.json(["bridge", "-j", "fdb", "show"]);
    let set_by_someone = |entry: &&Value| {
        ["permanent", "static"].contains(&word(entry, "state").as_str())
            || has(&entry["flags"], "extern_learn")
    };
    let fdb = items(&fdb).filter(set_by_someone).filter(|entry| !is_membership(entry)).map(|entry| {
        let by_kernel = entry["state"] == "permanent";
        Fact { by_kernel, ..fact(Kind::Fdb, &word(entry, "ifname"), line(entry)) }
    });
    let qdiscs = node.json(["tc", "-j", "qdisc", "show"]);
    // Handle 0 is the default that every link is born with.
    let qdiscs = items(&qdiscs).filter(|qdisc| qdisc["handle"] != "0:").map(|qdisc| {
        let dev = word(qdisc, "dev");
        fact(Kind::Qdisc, &dev, format!("{} {} dev {dev}", word(qdisc, "kind"), word(qdisc, "handle")))
    });
    fdb.chain(qdiscs).collect()
}

fn packet_rules(node: &Node) -> Vec<Fact> {
    let ruleset = node.json(["nft", "-j", "list", "ruleset"]);
    let mut facts: Vec<_> = items(&ruleset["nftables"]).flat_map(nft).collect();
    for save in ["iptables-save", "ip6tables-save"] {
        facts.extend(iptables(node, save));
    }
    facts
}

/// An nft object as one fact, its elements as facts of their own.
fn nft(object: &Value) -> Vec<Fact> {
    let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else {
        return Vec::new();
    };
    if kind == "metainfo" {
        return Vec::new();
    }
    let name = if kind == "table" { word(body, "name") } else { word(body, "table") };
    let table = format!("{} {name}", word(body, "family"));
    let mut body = body.clone();
    let elements = body.as_object_mut().and_then(|body| body.remove("elem")).unwrap_or_default();
    let set = format!("{table} {}", word(&body, "name"));
    let elements =
        items(&elements).map(|element| fact(Kind::Element, &table, format!("{set}: {}", line(element))));
    let own = fact(Kind::Nft, &table, format!("{kind} {}", line(&body)));
    std::iter::once(own).chain(elements).collect()
}

fn iptables(node: &Node, save: &str) -> Vec<Fact> {
    let installed =
        ["/sbin", "/usr/sbin", "/bin", "/usr/bin"].iter().any(|dir| Path::new(dir).join(save).exists());
    if !installed {
        return Vec::new();
    }
    let output = node.try_run([save]);
    if !output.status.success() {
        return vec![fact(Kind::Iptables, "", format!("{save} failed: {}", text(&output)))];
    }
    let mut table = String::new();
    let mut facts = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.to_owned();
        } else if !line.starts_with('#') && line != "COMMIT" {
            let rule = line.split(" [").next().unwrap_or(line);
            facts.push(fact(Kind::Iptables, "", format!("{save} {table} {rule}")));
        }
    }
    facts
}

fn files_and_sysctls(node: &Node) -> Vec<Fact> {
    node.enter(|| {
        let mut files = Vec::new();
        for top in ["/run/weft", "/var/lib/weft", "/var/lib/cni"] {
            walk(Path::new(top), &mut files);
        }
        let files = files.into_iter().filter(|path| counts(path)).map(|path| fact(Kind::File, "", path));
        files.chain(["ipv4", "ipv6"].into_iter().flat_map(sysctls)).collect()
    })
}

/// Whether a file says that an attachment is there: below `/run/weft/<stamp>/`, only some do.
fn counts(path: &str) -> bool {
    let Some(inside) = path.strip_prefix("/run/weft/") else { return true };
    let folder = inside.split('/').nth(1).unwrap_or_default();
    ["owner", "record", "pool", "block"].contains(&folder) || inside.contains("tmp")
}

fn walk(dir: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), files),
            _ => files.push(entry.path().to_string_lossy().into_owned()),
        }
    }
}

fn sysctls(family: &str) -> Vec<Fact> {
    let conf = format!("/proc/sys/net/{family}/conf");
    let mut facts = Vec::new();
    for link in fs::read_dir(&conf).into_iter().flatten().flatten() {
        let name = link.file_name().to_string_lossy().into_owned();
        for key in fs::read_dir(link.path()).into_iter().flatten().flatten() {
            // Some are not readable before they are written: no change to see there.
            let Ok(value) = fs::read_to_string(key.path()) else { continue };
            let key = key.file_name().to_string_lossy().into_owned();
            let line = format!("{family}/conf/{name}/{key} = {}", value.trim_end());
            facts.push(fact(Kind::Sysctl, &name, line));
        }
    }
    facts
}

fn processes(node: &Node) -> Vec<Fact> {
    let line = |(pid, command): (i32, String)| fact(Kind::Process, "", format!("{pid} {command}"));
    node.processes().into_iter().map(line).collect()
}

fn fact(kind: Kind, subject: &str, text: String) -> Fact {
    Fact { kind, subject: subject.to_owned(), by_kernel: false, text }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn word(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_default().to_owned()
}

fn has(list: &Value, wanted: &str) -> bool {
    items(list).any(|item| item == wanted)
}

/// An object as compact JSON, without what changes by itself.
fn line(value: &Value) -> String {
    let mut value = value.clone();
    strip(&mut value);
    value.to_string()
}

fn strip(value: &mut Value) {
    const FLEETING: [&str; 7] = ["handle", "packets", "bytes", "expires", "flags", "used", "updated"];
    match value {
        Value::Object(object) => {
            object.retain(|key, _| !FLEETING.contains(&key.as_str()));
            object.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
