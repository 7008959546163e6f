//! A firewall of somebody else's whose FORWARD policy is DROP, as Docker and ufw leave it [F8]: said with "report", opened for
//! the pods with "iptables", healed when it is flushed, and as it was when Weft goes. By the real iptables of both kinds.

use netns_tests::cluster::{
    ClusterLab, ClusterNode, ClusterPod, Layout, Network, PATIENCE, WeftdConf, assert_all_reach_all,
    require_cluster, unreached,
};
use netns_tests::{Inside, require_programs, wait_until};

const FINDING: &str = "plane-foreign-forward-drop";
const FAMILIES: [&str; 2] = ["iptables", "ip6tables"];

/// What Docker makes, in short.
fn firewall(node: &ClusterNode, kind: &str) {
    for family in FAMILIES {
        let script = format!(
            "ipt() {{ {family}-{kind} -w 20 \"$@\"; }}; set -e; ipt -N DOCKER-USER; ipt -A DOCKER-USER -j RETURN; \
             ipt -A FORWARD -j DOCKER-USER; ipt -A FORWARD -i docker0 -j ACCEPT; ipt -P FORWARD DROP"
        );
        node.run(["sh", "-c", &script]);
    }
}

/// All rules of both families, without counters and times.
fn saved(node: &ClusterNode, kind: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for family in FAMILIES {
        let output = node.run([format!("{family}-{kind}-save"), "-t".to_owned(), "filter".to_owned()]);
        let text = String::from_utf8_lossy(&output.stdout);
        let rules = text.lines().filter(|line| !line.starts_with('#'));
        lines.extend(rules.map(|line| line.split(" [").next().unwrap_or_default().to_owned()));
    }
    lines
}

fn ours(node: &ClusterNode, kind: &str) -> usize {
    saved(node, kind).iter().filter(|line| line.contains("weft-pod-network")).count()
}

fn with(mut conf: WeftdConf, setting: &str) -> WeftdConf {
    conf.top.push(format!("foreign_forward = {setting:?}"));
    conf
}

fn restart(lab: &ClusterLab, setting: &str) {
    let weftd = lab.nodes[0].weftd();
    weftd.stop();
    weftd.configure(&with(lab.conf(0, &Network::default()), setting));
    weftd.start(&[]);
    weftd.wait_ready();
}

fn can_run(kind: &str) -> bool {
    let programs = FAMILIES.map(|family| format!("{family}-{kind}"));
    require_cluster() && require_programs(&programs.each_ref().map(String::as_str))
}

fn said_then_opened_then_as_before(kind: &str) {
    if !can_run(kind) {
        return;
    }
    let lab = ClusterLab::new(&format!("foreign-{kind}"), &Layout::default().nodes(2));
    let node = &lab.nodes[0];
    firewall(node, kind);
    let before = saved(node, kind);
    lab.start_all(&Network::default());
    let pods = lab.pod_on_each("p");
    let pods: Vec<&ClusterPod> = pods.iter().collect();

    // "report": nothing is changed, and each of the three places says why nothing goes through.
    let finding = node.weftd().wait_finding(FINDING, true);
    let sentence = finding["sentence"].to_string();
    assert!(sentence.contains("FORWARD") && sentence.contains("foreign_forward"), "{sentence}");
    assert!(node.weftd().log().contains("drops forwarded packets by policy"), "the log says nothing");
    let refused = pods[0].check().expect_err("CHECK");
    assert!(refused.contains("drops forwarded packets by policy"), "{refused}");
    pods[1].check().unwrap_or_else(|error| panic!("the other node drops nothing: {error}"));
    assert_eq!(unreached(&pods).len(), 4, "each pod at two addresses");
    assert_eq!(saved(node, kind), before);

    // "iptables": it is opened, in both families, and nobody complains any more.
    restart(&lab, "iptables");
    assert_all_reach_all(&pods);
    node.weftd().wait_finding(FINDING, false);
    pods[0].check().unwrap_or_else(|error| panic!("CHECK: {error}"));
    assert_eq!(ours(node, kind), 4, "two rules a family: {:#?}", saved(node, kind));

    // What is flushed comes back; the others' rules are not ours to bring.
    for family in FAMILIES {
        node.run([&format!("{family}-{kind}"), "-w", "20", "-F", "FORWARD"]);
    }
    wait_until("the rules are back", PATIENCE, || ours(node, kind) == 4);
    assert_all_reach_all(&pods);
    for family in FAMILIES {
        let script = format!(
            "{family}-{kind} -w 20 -A FORWARD -j DOCKER-USER; {family}-{kind} -w 20 -A FORWARD -i docker0 -j ACCEPT"
        );
        node.run(["sh", "-c", &script]);
    }

    // "report" again: what was put there goes.
    restart(&lab, "report");
    wait_until("the rules to go", PATIENCE, || ours(node, kind) == 0);
    assert_eq!(saved(node, kind), before);

    restart(&lab, "iptables");
    wait_until("the rules are there", PATIENCE, || ours(node, kind) == 4);
    node.weftd().stop();
    assert_eq!(ours(node, kind), 4, "stopping the daemon stops nothing");
    let said = node.weftd().command_ok(&["uninstall", "--pods"]);
    assert!(said.contains("foreign FORWARD chains"), "{said}");
    assert_eq!(saved(node, kind), before, "after uninstall");
}

#[test]
fn a_dropping_chain_of_iptables_nft_is_said_opened_healed_and_left_as_it_was() {
    said_then_opened_then_as_before("nft");
}

#[test]
fn a_dropping_chain_of_legacy_iptables_is_said_opened_healed_and_left_as_it_was() {
    said_then_opened_then_as_before("legacy");
}

/// A chain made with nft is another program's: reported, with what to do, and a rule that names Weft ends the report.
#[test]
fn a_dropping_chain_of_nft_is_only_reported_until_a_rule_names_weft() {
    if !can_run("nft") {
        return;
    }
    let lab = ClusterLab::new("foreign-own", &Layout::default().nodes(1));
    let node = &lab.nodes[0];
    node.run(["nft", "add table inet fw"]);
    node.run(["nft", "add chain inet fw routed { type filter hook forward priority 0; policy drop; }"]);
    let weftd = lab.start_with(0, with(lab.conf(0, &Network::default()), "iptables"), true);
    weftd.wait_ready();
    assert_eq!(weftd.wait_finding(FINDING, true)["subject"], "inet fw routed");
    let tables = node.run(["nft", "list", "tables"]);
    assert!(!String::from_utf8_lossy(&tables.stdout).contains("filter"), "no table was made");
    node.run(["nft", "add rule inet fw routed ip saddr 10.244.0.0/16 accept comment \"pods of weft\""]);
    weftd.wait_finding(FINDING, false);
}

#[test]
fn without_iptables_the_setting_is_refused_in_words() {
    if !can_run("nft") {
        return;
    }
    let lab = ClusterLab::new("foreign-none", &Layout::default().nodes(1));
    let node = &lab.nodes[0];
    // This mount is the node's own and ends with it.
    for folder in ["/usr/sbin", "/sbin"] {
        node.run(["mount", "-t", "tmpfs", "none", folder]);
    }
    let conf = with(lab.conf(0, &Network::default()), "iptables");
    let weftd = lab.start_with(0, conf, true);
    assert_eq!(weftd.wait_end().code(), Some(1));
    let log = weftd.log();
    assert!(log.contains("foreign_forward") && log.contains("there is no iptables"), "{log}");
}
