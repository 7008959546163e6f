//! The verbs that only look: CHECK names every difference and changes nothing (A24), STATUS says whether an ADD
//! can succeed (A19).

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use netns_tests::wait_until;
use netns_tests::{Allow, Cni, Inside, Node, Pod, Residue, lab, reference_bin_dir, require, weft_bin_dir};
use serde_json::{Value, json};

const V4: &str = "10.244.0.0/24";
const V6: &str = "fd00:244::/64";
const FAMILIES: [&[&str]; 3] = [&[V4], &[V6], &[V4, V6]];
const MODES: [&str; 2] = ["bridge", "veth"];
/// Code of CHECK's own findings.
const CHECK_FAILED: u64 = 103;

fn conf(version: &str, mode: &str, subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
    let mut conf = json!({
        "cniVersion": version, "name": "net", "type": "weft", "mode": mode, "isDefaultGateway": true,
        "ipMasq": true, "ipam": {"ranges": ranges}
    });
    if mode == "bridge" {
        conf["macspoofchk"] = json!(true);
        conf["hairpinMode"] = json!(true);
    }
    conf
}

fn with_result(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

/// A pod that was attached on a node of its own.
struct Attached {
    node: Node,
    weft: Cni,
    pod: Pod,
    conf: Value,
    result: Value,
    mode: &'static str,
}

impl Attached {
    fn new(node: Node, mode: &'static str, subnets: &[&str]) -> Self {
        let weft = node.cni(weft_bin_dir(), "weft");
        let pod = node.pod("a");
        let conf = conf("1.1.0", mode, subnets);
        let result = weft.add(&pod, &conf).result();
        Self { node, weft, pod, conf, result, mode }
    }

    fn check(&self) -> netns_tests::Outcome {
        self.weft.check(&self.pod, &with_result(&self.conf, &self.result))
    }

    /// The host end's name.
    fn host(&self) -> String {
        let index = usize::from(self.mode == "bridge");
        self.result["interfaces"][index]["name"].as_str().unwrap().to_owned()
    }

    /// The pod's first address.
    fn ip(&self) -> IpAddr {
        address(&self.result, 0)
    }

    /// Its gateway.
    fn gateway(&self) -> String {
        self.result["ips"][0]["gateway"].as_str().unwrap().to_owned()
    }

    /// `-4` or `-6`.
    fn family(&self) -> &'static str {
        if self.ip().is_ipv4() { "-4" } else { "-6" }
    }

    /// Every file of the state folder's subfolder `name`.
    fn files(&self, name: &str) -> Vec<PathBuf> {
        files_of(&self.node, name)
    }

    fn pod_ip(&self, words: &str) {
        self.pod.run(["ip"].into_iter().chain(words.split(' ')));
    }

    fn node_ip(&self, words: &str) {
        self.node.run(["ip"].into_iter().chain(words.split(' ')));
    }
}

fn address(result: &Value, index: usize) -> IpAddr {
    let cidr = result["ips"][index]["address"].as_str().unwrap();
    cidr.split('/').next().unwrap().parse().unwrap()
}

fn files_of(node: &Node, name: &str) -> Vec<PathBuf> {
    let stamps = fs::read_dir(node.path("/run/weft")).unwrap().flatten();
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = stamps.map(|stamp| stamp.path().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files
}

/// A24: a clean attachment passes at once after ADD, in each version that has CHECK, and CHECK changes nothing.
#[test]
fn check_passes_on_a_clean_attachment_at_once_and_changes_nothing() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        for (at, subnets) in FAMILIES.iter().enumerate() {
            let node = lab.node(&format!("{mode}{at}"));
            let weft = node.cni(weft_bin_dir(), "weft");
            for version in ["0.4.0", "1.0.0", "1.1.0"] {
                let pod = node.pod("a");
                let conf = conf(version, mode, subnets);
                let result = weft.add(&pod, &conf).result();
                weft.check(&pod, &with_result(&conf, &result)).ok_empty();
                let before = Residue::take(&node);
                weft.check(&pod, &with_result(&conf, &result)).ok_empty();
                before.assert_same(&Residue::take(&node), &Allow::nothing().processes());
                weft.del(&pod, &conf).ok_empty();
            }
        }
    }
}

/// Damage to an attachment, and the words by which CHECK has to name it.
type Damage = (&'static str, fn(&Attached) -> Vec<String>);

/// Damages that make sense in both modes.
const ANYWHERE: &[Damage] = &[
    ("the pod's address removed", |a| {
        let cidr = a.result["ips"][0]["address"].as_str().unwrap();
        a.pod_ip(&format!("address del {cidr} dev eth0"));
        vec![format!("lacks the address {cidr}")]
    }),
    ("the default route removed", |a| {
        a.pod_ip(&format!("{} route del default", a.family()));
        let any = if a.ip().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        vec![format!("lacks the route {any} via {}", a.gateway())]
    }),
    ("the default route by another gateway", |a| {
        let (any, other) =
            if a.ip().is_ipv4() { ("0.0.0.0/0", "10.244.0.77") } else { ("::/0", "fd00:244::77") };
        a.pod_ip(&format!("{} route replace default via {other} dev eth0 onlink", a.family()));
        vec![format!("lacks the route {any} via {}", a.gateway())]
    }),
    ("the pod end's MAC changed", |a| {
        a.pod_ip("link set eth0 address 02:11:22:33:44:55");
        vec!["eth0 has MAC 02:11:22:33:44:55".to_owned()]
    }),
    ("the pod end down", |a| {
        a.pod_ip("link set eth0 down");
        vec!["eth0 is down".to_owned()]
    }),
    ("the pod end renamed", |a| {
        a.pod_ip("link set eth0 down");
        a.pod_ip("link set eth0 name eth7");
        vec!["the pod has no interface eth0".to_owned()]
    }),
    ("the link deleted", |a| {
        a.node_ip(&format!("link del {}", a.host()));
        vec!["the pod has no interface eth0".to_owned(), format!("the host end {} is gone", a.host())]
    }),
    ("the host end down", |a| {
        a.node_ip(&format!("link set {} down", a.host()));
        vec![format!("{} is down", a.host())]
    }),
    ("the host end's alias changed", |a| {
        a.node.run(["ip", "link", "set", &a.host(), "alias", "somebody else's"]);
        vec![format!("{} does not carry this attachment's alias", a.host())]
    }),
    ("the masquerade rules deleted", |a| {
        a.node.run(["nft", "delete", "table", "inet", "weft"]);
        vec!["masquerade".to_owned(), "is missing".to_owned()]
    }),
    ("the reservation lost", |a| {
        let ip = a.ip().to_string();
        let file = a.files("pool").into_iter().find(|file| file.ends_with(&ip)).unwrap();
        fs::remove_file(file).unwrap();
        vec![format!("the reservation of {ip} is lost")]
    }),
    ("the reservation another's", |a| {
        let ip = a.ip().to_string();
        let file = a.files("pool").into_iter().find(|file| file.ends_with(&ip)).unwrap();
        fs::remove_file(&file).unwrap();
        fs::write(&file, "{}").unwrap();
        vec![format!("the reservation of {ip} is lost")]
    }),
    ("the record garbled", |a| {
        a.files("record").iter().for_each(|file| fs::write(file, "not a record").unwrap());
        vec!["the record of this attachment cannot be read".to_owned()]
    }),
    ("the owner file gone", |a| {
        a.files("owner").iter().for_each(|file| fs::remove_file(file).unwrap());
        vec!["there is no record of this attachment".to_owned()]
    }),
];

const ON_A_BRIDGE: &[Damage] = &[
    ("the host end moved off the bridge", |a| {
        a.node_ip(&format!("link set {} nomaster", a.host()));
        vec![format!("{} is no port of cbr0", a.host())]
    }),
    ("the host end moved to another bridge", |a| {
        a.node_ip("link add br9 type bridge");
        a.node_ip(&format!("link set {} master br9", a.host()));
        vec![format!("{} is no port of cbr0", a.host())]
    }),
    ("hairpin switched off", |a| {
        a.node.run(["bridge", "link", "set", "dev", &a.host(), "hairpin", "off"]);
        vec![format!("{} has hairpin false", a.host())]
    }),
    ("the bridge down", |a| {
        a.node_ip("link set cbr0 down");
        vec!["bridge cbr0 is down".to_owned()]
    }),
    ("the bridge gone", |a| {
        a.node_ip("link del cbr0");
        vec!["bridge cbr0 is gone".to_owned()]
    }),
    ("the gateway lost", |a| {
        a.node_ip("address flush dev cbr0 scope global");
        vec![format!("bridge cbr0 lacks the gateway {}", a.gateway())]
    }),
    ("the spoof guard deleted", |a| {
        a.node.run(["nft", "delete", "table", "bridge", "weft"]);
        vec![format!("the spoof guard of {} is missing", a.host())]
    }),
];

const ON_A_VETH: &[Damage] = &[("the node's route to the pod deleted", |a| {
    a.node_ip(&format!("{} route del {}", a.family(), a.ip()));
    vec![format!("the node has no route to {}", a.ip())]
})];

/// Each damage on a node of its own, for each family: named, and only looked at.
fn assert_named(lab: &netns_tests::Lab, mode: &'static str, damages: &[Damage]) {
    for (at, subnets) in FAMILIES.iter().enumerate() {
        for (nth, (what, damage)) in damages.iter().enumerate() {
            let node = lab.node(&format!("{mode}{at}x{nth}"));
            let attached = Attached::new(node.clone(), mode, subnets);
            attached.check().ok_empty();
            let words = damage(&attached);
            // Snapshots are slow: dual stack is both families.
            let damaged = (subnets.len() == 2).then(|| Residue::take(&node));
            let error = attached.check().error();
            let place = format!("{what} ({mode}, {subnets:?}): {error:?}");
            assert_eq!(error.code, CHECK_FAILED, "{place}");
            for word in &words {
                assert!(error.msg.contains(word), "no {word:?} in {place}");
            }
            // A link that lost its carrier loses its neighbours a moment later, by the kernel.
            let allow = Allow::nothing().processes().text("Neighbour: ");
            let changed =
                damaged.map(|before| before.difference(&Residue::take(&node), &allow)).unwrap_or_default();
            assert!(changed.is_empty(), "CHECK changed something; {place}\n{}", changed.join("\n"));
            attached.weft.del(&attached.pod, &attached.conf).ok_empty();
        }
    }
}

/// A24: each single damage is named; bridge mode.
#[test]
fn check_names_each_damage_in_bridge_mode() {
    if !require() {
        return;
    }
    let lab = lab!();
    assert_named(&lab, "bridge", &[ANYWHERE, ON_A_BRIDGE].concat());
}

/// A24: each single damage is named; veth mode.
#[test]
fn check_names_each_damage_in_veth_mode() {
    if !require() {
        return;
    }
    let lab = lab!();
    assert_named(&lab, "veth", &[ANYWHERE, ON_A_VETH].concat());
}

/// A24: all differences are named at once, not only the first.
#[test]
fn check_names_all_differences_at_once() {
    if !require() {
        return;
    }
    let lab = lab!();
    let attached = Attached::new(lab.node("n1"), "bridge", &[V4, V6]);
    let wanted_damages = [
        "the pod's address removed",
        "the pod end's MAC changed",
        "the host end moved off the bridge",
        "the gateway lost",
        "the masquerade rules deleted",
        "the spoof guard deleted",
        "the reservation lost",
    ];
    let mut words = Vec::new();
    for wanted in wanted_damages {
        let damage = ANYWHERE.iter().chain(ON_A_BRIDGE).find(|(what, _)| *what == wanted).unwrap();
        words.extend((damage.1)(&attached));
    }
    let error = attached.check().error();
    assert_eq!(error.code, CHECK_FAILED);
    for word in words {
        assert!(error.msg.contains(&word), "no {word:?} in {error:?}");
    }
    attached.weft.del(&attached.pod, &attached.conf).ok_empty();
}

/// A24: prevResult is needed, and must be this pod's.
#[test]
fn check_refuses_a_missing_prev_result_and_another_pods() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let attached = Attached::new(lab.node(mode), mode, &[V4, V6]);
        let error = attached.weft.check(&attached.pod, &attached.conf).error();
        assert_eq!((error.code, error.msg.as_str()), (7, "Required prevResult missing"));

        let other = attached.node.pod("b");
        let others = attached.weft.add(&other, &attached.conf).result();
        let error = attached.weft.check(&attached.pod, &with_result(&attached.conf, &others)).error();
        assert_eq!(error.code, CHECK_FAILED);
        for index in [0, 1] {
            let ip = address(&others, index);
            assert!(error.msg.contains(&format!("{ip} is not reserved for this attachment")), "{error:?}");
            assert!(error.msg.contains(&format!("lacks the address {ip}/")), "{error:?}");
        }
        assert!(error.msg.contains("prevResult is of the sandbox"), "{error:?}");

        let never = attached.node.pod("c");
        let error = attached.weft.check(&never, &with_result(&attached.conf, &attached.result)).error();
        assert_eq!(error.code, CHECK_FAILED);
        assert!(error.msg.contains("no record") && error.msg.contains("no interface eth0"), "{error:?}");
        assert!(error.msg.contains("the host end"), "{error:?}");

        other.destroy_netns();
        let gone = attached.weft.call("CHECK").pod(&attached.pod).env("CNI_NETNS", other.netns_path());
        let error = gone.conf(&with_result(&attached.conf, &attached.result)).run().error();
        assert_eq!(error.code, 8, "{error:?}");
        assert!(error.msg.contains(other.netns_path().to_str().unwrap()), "{error:?}");
    }
}

/// A24: what later plugins of the chain add or change is theirs: an interface, addresses on it, routes, a MAC that
/// is in prevResult, a route moved into another table (`sbr`), parameters of the link.
#[test]
fn check_tolerates_what_later_plugins_did() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let attached = Attached::new(lab.node(mode), mode, &[V4, V6]);
        let mut result = attached.result.clone();
        let pod_end = usize::from(mode == "bridge") + 1;
        result["interfaces"][pod_end]["mac"] = json!("02:11:22:33:44:55");
        attached.pod_ip("link set eth0 address 02:11:22:33:44:55");
        let later = json!({"name": "bwp0123456789a", "mac": "02:00:00:00:00:01"});
        let tunnel = json!({"name": "tun0", "sandbox": attached.pod.netns_path()});
        result["interfaces"].as_array_mut().unwrap().extend([later, tunnel]);
        let index = result["interfaces"].as_array().unwrap().len() - 1;
        result["ips"].as_array_mut().unwrap().push(json!({"address": "10.99.0.7/24", "interface": index}));
        attached.pod_ip("route add 198.51.100.0/24 dev eth0");
        attached.pod_ip("link set eth0 mtu 1300 txqueuelen 77 promisc on");
        attached.pod_ip("address add 10.98.0.1/32 dev lo");
        attached.pod_ip("route del default");
        attached.pod_ip(&format!("route add default via {} dev eth0 onlink table 100", attached.gateway()));
        attached.node.run([
            "tc",
            "qdisc",
            "add",
            "dev",
            &attached.host(),
            "root",
            "tbf",
            "rate",
            "8mbit",
            "burst",
            "32k",
            "latency",
            "50ms",
        ]);
        attached.weft.check(&attached.pod, &with_result(&attached.conf, &result)).ok_empty();
        // The MAC in prevResult is what counts: with the one of before it is a difference.
        let error = attached.check().error();
        assert!(error.msg.contains("eth0 has MAC 02:11:22:33:44:55"), "{error:?}");
        attached.weft.del(&attached.pod, &attached.conf).ok_empty();
    }
}

/// A24: the same after a real `tuning` that sets MAC and MTU.
#[test]
fn check_of_a_chain_with_tuning_passes() {
    if !require() {
        return;
    }
    let Some(reference) = reference_bin_dir() else { return };
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let conflist = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
            conf("1.0.0", mode, &[V4, V6]),
            {"type": "tuning", "mac": "02:11:22:33:44:55", "mtu": 1400, "promisc": true}
        ]});
        let chain = node.chain(&conflist, [weft_bin_dir(), reference.clone()]);
        let pod = node.pod("a");
        let result = chain.add(&pod).unwrap();
        assert!(result.to_string().contains("02:11:22:33:44:55"), "{result}");
        chain.check(&pod).unwrap_or_else(|failure| panic!("{failure}"));
        chain.del(&pod).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

/// A24: CHECK asks a delegated IPAM plugin too, and its word does not hide our own findings.
#[test]
fn check_forwards_to_the_ipam_delegate_and_names_its_finding_beside_ours() {
    if !require() {
        return;
    }
    let Some(reference) = reference_bin_dir() else { return };
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let weft = node.cni(weft_bin_dir(), "weft").with_path([weft_bin_dir(), reference.clone()]);
        let mut conf = conf("1.0.0", mode, &[]);
        conf["ipam"] = json!({"type": "host-local", "ranges": [[{"subnet": V4}]]});
        let pod = node.pod("a");
        let result = weft.add(&pod, &conf).result();
        weft.check(&pod, &with_result(&conf, &result)).ok_empty();

        let ip = address(&result, 0);
        fs::remove_file(node.path(&format!("/var/lib/cni/networks/net/{ip}"))).unwrap();
        let alone = weft.check(&pod, &with_result(&conf, &result)).error();
        assert!(alone.msg.contains("host-local"), "{alone:?}");
        pod.run(["ip", "address", "flush", "dev", "eth0"]);
        let both = weft.check(&pod, &with_result(&conf, &result)).error();
        let text = format!("{} {}", both.msg, both.details);
        assert!(text.contains("host-local") && text.contains(&format!("lacks the address {ip}")), "{both:?}");
        weft.del(&pod, &conf).ok_empty();
    }
}

/// A19 and STATUS: exhaustion is "try again" for ADD and "not available" for STATUS, both naming the pool; a DEL
/// ends it, and the freed address is given. A failed ADD of a dual-stack pod keeps no half of it.
#[test]
fn an_exhausted_pool_is_code_11_for_add_and_50_for_status_until_a_del() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let weft = node.cni(weft_bin_dir(), "weft");
        // The small pool is the second: the first address is taken by then, and has to be given back.
        let conf = conf("1.1.0", mode, &[V6, "10.244.0.0/29"]);
        weft.status(&conf).ok_empty();
        let pods: Vec<Pod> = (0..5).map(|nth| node.pod(&format!("p{nth}"))).collect();
        let results: Vec<Value> = pods.iter().map(|pod| weft.add(pod, &conf).result()).collect();
        let reserved = files_of(&node, "pool").len();
        assert_eq!(reserved, 10);
        let before = Residue::take(&node);

        let late = node.pod("late");
        let error = weft.add(&late, &conf).error();
        assert_eq!(error.code, 11, "{error:?}");
        assert!(error.msg.contains("10.244.0.1-10.244.0.6"), "{error:?}");
        assert!(error.details.contains("5 of 5"), "{error:?}");
        before.assert_settles(&node, &Allow::nothing());
        let status = weft.status(&conf).error();
        assert_eq!(status.code, 50, "{status:?}");
        assert!(
            status.msg.contains("10.244.0.1-10.244.0.6") && status.details.contains("5 of 5"),
            "{status:?}"
        );

        weft.del(&pods[2], &conf).ok_empty();
        weft.status(&conf).ok_empty();
        let again = weft.add(&late, &conf).result();
        assert_eq!(address(&again, 1), address(&results[2], 1));
        assert_eq!(files_of(&node, "pool").len(), reserved);
    }
}

/// STATUS: `statusOnExhausted` decides what an exhausted pool means; another word is refused by name and value.
#[test]
fn status_on_exhausted_can_be_switched() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let weft = node.cni(weft_bin_dir(), "weft");
    let pods: Vec<Pod> = (0..5).map(|nth| node.pod(&format!("p{nth}"))).collect();
    let mut conf = conf("1.1.0", "veth", &["10.244.0.0/29"]);
    pods.iter().for_each(|pod| drop(weft.add(pod, &conf).result()));
    for (word, code) in [("unavailable", Some(50)), ("", Some(50)), ("ok", None), ("maybe", Some(2))] {
        conf["statusOnExhausted"] = json!(word);
        let outcome = weft.status(&conf);
        match code {
            Some(code) => {
                let error = outcome.error();
                assert_eq!(error.code, code, "{word}: {error:?}");
                assert!(code != 2 || error.msg.contains("statusOnExhausted: maybe"), "{error:?}");
            }
            None => outcome.ok_empty(),
        }
    }
}

/// STATUS answers whether an ADD can succeed: attachments whose pods vanished do not count, for an ADD would
/// collect them.
#[test]
fn status_does_not_count_what_an_add_would_collect() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let weft = node.cni(weft_bin_dir(), "weft");
        let conf = conf("1.1.0", mode, &["10.244.0.0/29"]);
        let pods: Vec<Pod> = (0..5).map(|nth| node.pod(&format!("p{nth}"))).collect();
        let results: Vec<Value> = pods.iter().map(|pod| weft.add(pod, &conf).result()).collect();
        assert_eq!(weft.status(&conf).error().code, 50);
        pods[1].destroy_netns();
        let host = results[1]["interfaces"][usize::from(mode == "bridge")]["name"].as_str().unwrap();
        wait_until("its host end is gone", Duration::from_secs(5), || {
            !node.try_run(["ip", "link", "show", host]).status.success()
        });
        weft.status(&conf).ok_empty();
        let again = weft.add(&node.pod("again"), &conf).result();
        assert_eq!(address(&again, 0), address(&results[1], 0));
    }
}

/// STATUS: without ranges and without a granted block nothing can be served; a bad configuration stays code 7, an
/// option that cannot be honoured code 2, and a version without STATUS is named.
#[test]
fn status_names_why_no_add_can_succeed() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let weft = node.cni(weft_bin_dir(), "weft");
    let cluster = json!({"cniVersion": "1.1.0", "name": "net", "type": "weft"});
    let error = weft.status(&cluster).error();
    assert_eq!(error.code, 50, "{error:?}");
    assert!(error.msg.contains("no block of addresses has been granted"), "{error:?}");

    let mut bad = conf("1.1.0", "bridge", &["10.244.0.1/24"]);
    assert_eq!(weft.status(&bad).error().code, 7);
    bad = conf("1.1.0", "bridge", &[V4]);
    bad["mode"] = json!("carrier-pigeon");
    let error = weft.status(&bad).error();
    assert_eq!(error.code, 2);
    assert!(error.msg.contains("mode: carrier-pigeon"), "{error:?}");
    let error = weft.status(&conf("1.0.0", "bridge", &[V4])).error();
    assert_eq!((error.code, error.msg.as_str()), (1, "config version does not allow STATUS"));
    weft.status(&conf("1.1.0", "bridge", &[V4])).ok_empty();
}
