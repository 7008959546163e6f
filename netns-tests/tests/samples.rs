//! Every sample of `../conf` works as it is: pods reach each other, their gateway and the outside, and leave nothing.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use netns_tests::{Allow, Inside, Lab, Residue, Server, lab, reference_bin_dir, require, weft_bin_dir};
use serde_json::{Value, json};

fn samples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let conflists: BTreeSet<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == "conflist")).collect();
    assert!(conflists.len() >= 8, "{conflists:?}");
    conflists.into_iter().collect()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split_once('/').unwrap().0.parse().unwrap()).collect()
}

/// Two pods on a node of their own.
fn works(lab: &Lab, number: usize, conflist: &Value, version: &str) {
    let mut conflist = conflist.clone();
    conflist["cniVersion"] = version.into();
    let node = lab.node(&format!("n{number}"));
    let server = lab.outside(&node);
    let mut dirs = vec![weft_bin_dir()];
    dirs.extend(reference_bin_dir());
    let host_port = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let chain = node.chain(&conflist, dirs).with_capabilities(&host_port);
    let what = format!("{} at {version}", conflist["name"]);

    // Bridge, tables, chains and sysctls that stay are there before the snapshot.
    let warm_up = node.pod("warm-up");
    chain.add(&warm_up).unwrap_or_else(|failure| panic!("{what}: {failure}"));
    chain.del(&warm_up).unwrap_or_else(|failure| panic!("{what}: {failure}"));
    let before = Residue::take(&node);

    let (a, b) = (node.pod("a"), node.pod("b"));
    let [first, second] =
        [&a, &b].map(|pod| chain.add(pod).unwrap_or_else(|failure| panic!("{what}: {failure}")));
    // Debian 12's portmap looks for IPv6 rules that an IPv4 mapping never makes.
    let portmap = conflist["plugins"].as_array().unwrap().iter().any(|plugin| plugin["type"] == "portmap");
    if !portmap {
        chain.check(&a).unwrap_or_else(|failure| panic!("{what}: CHECK {failure}"));
    }
    let ranges = conflist["plugins"][0]["ipam"]["ranges"].as_array().unwrap().len();
    assert_eq!(addresses(&first).len(), ranges, "{what}: {first}");
    for ip in addresses(&second) {
        assert!(a.ping(ip, 2), "{what}: pod to pod {ip}");
        let outside = if ip.is_ipv4() { Server::V4 } else { Server::V6 };
        assert!(a.ping(outside, 2), "{what}: pod to {outside}");
        let socket = if ip.is_ipv4() { server.v4() } else { server.v6() };
        let seen = b.seen_by(socket).unwrap();
        let node = if ip.is_ipv4() { Server::NODE_V4 } else { Server::NODE_V6 };
        assert_eq!(seen, node, "{what}: masqueraded");
    }
    if portmap {
        chain.del(&b).unwrap();
        let _listener = a.listen(80);
        assert!(server.seen_by(SocketAddr::new(Server::NODE_V4, 8080)).is_ok(), "{what}: host port");
    }
    for pod in [&a, &b] {
        chain.del(pod).unwrap_or_else(|failure| panic!("{what}: DEL {failure}"));
        chain.del(pod).unwrap_or_else(|failure| panic!("{what}: second DEL {failure}"));
    }
    before.assert_settles(&node, &Allow::nothing());
}

#[test]
fn every_sample_works_at_every_version_that_it_offers() {
    if !require() {
        return;
    }
    let lab = lab!();
    let mut number = 0;
    for path in samples() {
        let conflist = read(&path);
        let stem = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(conflist["name"], stem.strip_prefix("10-").unwrap());
        let all_ours = conflist["plugins"].as_array().unwrap().iter().all(|plugin| plugin["type"] == "weft");
        // Reference plugins of Debian 12 know no 1.1.0, and one such plugin fails the whole list.
        let versions = if all_ours { json!(["0.4.0", "1.0.0", "1.1.0"]) } else { json!(["0.4.0", "1.0.0"]) };
        assert_eq!(conflist["cniVersions"], versions, "{stem}");
        assert_eq!(conflist["cniVersion"], "1.0.0", "{stem}");
        for version in conflist["cniVersions"].as_array().unwrap() {
            works(&lab, number, &conflist, version.as_str().unwrap());
            number += 1;
        }
    }
}
