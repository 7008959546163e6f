//! Point 8: bad input. Each is a clear sentence, all problems at once, and pods that run go on running.

use std::net::IpAddr;

use netns_tests::cluster::{
    Authority, ClusterLab, ClusterPod, EtcdOptions, Layout, Network, PATIENCE, WeftdConf, require_cluster,
};
use netns_tests::wait_until;

fn tls(members: usize) -> Layout {
    Layout { etcd: EtcdOptions { members, tls: true }, ..Layout::default().nodes(2) }
}

/// Runs `weftd` with this configuration on a node where nothing ran yet; it must end by itself, with exit code 1.
fn refusal(lab: &ClusterLab, node: usize, conf: WeftdConf) -> String {
    let weftd = lab.start_with(node, conf, true);
    let status = weftd.wait_end();
    assert_eq!(status.code(), Some(1), "{}", weftd.log());
    weftd.log()
}

#[track_caller]
fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "says nothing of {word:?}:\n{text}");
    }
}

#[test]
fn every_problem_of_a_configuration_is_named_at_once() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("badconf", &Layout::default().nodes(1));
    let network = Network::default()
        .cidrs(&["10.244.0.0/16", "10.244.128.0/17", "192.168.1.0/24"])
        .backend("vxlam")
        .with("block_sise_v4 = 26");
    let mut conf = lab.conf(0, &network);
    conf.top.push("nod = \"x\"".to_owned());
    conf.end.push("[vxlan]\nport = 99999".to_owned());
    let text = refusal(&lab, 0, conf);
    assert_says(&text, &["vxlam", "block_sise_v4", "block_size_v4", "nod", "99999", "10.244.128.0/17"]);
}

#[test]
fn a_cidr_that_is_the_hosts_own_network_is_refused() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("owncidr", &Layout::default().nodes(1));
    let text = refusal(&lab, 0, lab.conf(0, &Network::default().cidrs(&["192.168.0.0/16"])));
    assert_says(&text, &["192.168.0.0/16", "192.168.1", "eth0"]);
}

#[test]
fn a_configuration_that_disagrees_with_the_clusters_names_each_difference() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("disagree", &Layout::default().nodes(2));
    lab.start(0, &Network::default());
    lab.nodes[0].weftd().wait_ready();
    let other = Network::default().cidrs(&["10.99.0.0/16"]).backend("routes").with("block_size_v4 = 24");
    let text = refusal(&lab, 1, lab.conf(1, &other));
    assert_says(&text, &["10.99.0.0/16", "10.244.0.0/16", "routes", "vxlan", "block_size_v4"]);
    // One that says nothing obeys.
    let weftd = lab.nodes[1].weftd();
    let mut conf = lab.conf(1, &Network::default());
    conf.network = None;
    weftd.configure(&conf);
    weftd.start(&[]);
    lab.wait_ready();
}

#[test]
fn wrong_and_expired_certificates_are_named_and_pods_go_on() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("certs", &tls(1));
    lab.start_all(&Network::default());
    let pods = lab.pod_on_each("p");
    lab.assert_all_reach_all(&pods);
    let node = &lab.nodes[1];
    let dir = lab.lab().scratch("certs");
    std::fs::create_dir_all(&dir).expect("a folder");
    let stranger = Authority::new(&dir, "stranger");
    let expired = lab.etcd.authority().expect("an authority").sign_expired("expired");
    let foreign = stranger.sign("foreign", &[]);
    let good = lab.conf(1, &Network::default());
    let cases: [(&str, WeftdConf, &[&str]); 4] = [
        (
            "another authority",
            WeftdConf { ca: Some(stranger.ca.clone()), ..good.clone() },
            &["certificate", "ca"],
        ),
        (
            "an expired certificate",
            WeftdConf { cert: Some((expired.cert, expired.key)), ..good.clone() },
            &["expired"],
        ),
        (
            "a stranger's certificate",
            WeftdConf { cert: Some((foreign.cert, foreign.key)), ..good.clone() },
            &["certificate"],
        ),
        ("no certificate", WeftdConf { cert: None, ..good.clone() }, &["certificate"]),
    ];
    for (what, conf, words) in cases {
        node.weftd().kill();
        node.weftd().configure(&conf);
        node.weftd().start(&[]);
        let said = netns_tests::cluster::complaint(node.weftd());
        eprintln!("{what}: {said}");
        assert_says(&said.to_lowercase(), words);
        // A refusal is no outage: nobody is to go and look for an etcd that is away.
        let finding = node.weftd().wait_finding("store-refuses", true);
        assert_says(&finding["sentence"].to_string().to_lowercase(), words);
        node.weftd().wait_finding("store-away", false);
        lab.assert_all_reach_all(&pods);
        let pod = lab.pod(1, "meanwhile");
        pod.stop();
    }
    node.weftd().kill();
    node.weftd().configure(&good);
    node.weftd().start(&[]);
    lab.wait_ready();
}

#[test]
fn a_wrong_password_is_named_and_the_right_one_works() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("password", &Layout::default().nodes(1));
    lab.etcd.require_login("weft", "secret", "/weft/v1/");
    let with = |password: &str| {
        let mut conf = lab.conf(0, &Network::default());
        conf.login = Some(("weft".to_owned(), password.to_owned()));
        conf
    };
    let weftd = lab.start_with(0, with("wrong"), true);
    let said = netns_tests::cluster::complaint(weftd);
    eprintln!("{said}");
    assert_says(&said.to_lowercase(), &["password", "weft"]);
    assert!(!weftd.log().contains("wrong\""), "the password is in the log");
    weftd.kill();
    weftd.configure(&with("secret"));
    weftd.start(&["--init"]);
    weftd.wait_ready();
    lab.pod(0, "p").stop();
}

/// Garbage in the store: unreadable records, a node that claims everybody's block, keys of nobody. Each is named, the
/// rest works, and what runs goes on.
#[test]
fn a_store_full_of_garbage_is_named_and_harms_nobody() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("garbage", &Layout::default().nodes(2));
    lab.start_all(&Network::default());
    let pods = lab.pod_on_each("p");
    lab.assert_all_reach_all(&pods);
    let ips: Vec<IpAddr> = pods.iter().flat_map(|pod| pod.ips.clone()).collect();
    for (key, value) in [
        ("n/broken", "\u{1}not json"),
        ("n/list", "[1,2,3]"),
        ("n/future", r#"{"format": 99, "name": "future"}"#),
        ("n/other", r#"{"format": 1, "name": "another-name"}"#),
        ("n/", "{}"),
        ("n/Bad Name", "{}"),
        ("b/nonsense", "{}"),
        ("alive/ghost", "…"),
        ("unknown/key", "x"),
    ] {
        lab.etcd.put(&format!("/weft/v1/{key}"), value);
    }
    lab.etcd.put("/weft/v1/n/big", &"x".repeat(900_000));
    let finding = lab.nodes[0].weftd().wait_finding("bad-record", true);
    assert_says(&finding["sentence"].to_string(), &["n/"]);
    lab.assert_all_reach_all(&pods);
    let young = lab.pod_on_each("young");
    lab.assert_all_reach_all(&young);
    // The configuration itself.
    let config = lab.etcd.get("/weft/v1/config").expect("a configuration").value;
    lab.etcd.put("/weft/v1/config", "{{{");
    for node in &lab.nodes {
        node.weftd().wait_finding("bad-config", true);
    }
    lab.assert_all_reach_all(&pods);
    let again = lab.pod_on_each("again");
    lab.assert_all_reach_all(&again);
    // A daemon that starts now must not harm what runs either.
    lab.nodes[1].weftd().kill();
    lab.nodes[1].weftd().start(&[]);
    wait_until("it says what is wrong", PATIENCE, || {
        !lab.nodes[1].weftd().is_running()
            || lab.nodes[1]
                .weftd()
                .try_status()
                .is_some_and(|s| s["findings"].to_string().contains("bad-config"))
    });
    lab.assert_all_reach_all(&pods);
    lab.etcd.put("/weft/v1/config", &config);
    lab.nodes[1].weftd().kill();
    lab.nodes[1].weftd().start(&[]);
    lab.nodes.iter().for_each(|node| drop(node.weftd().wait_finding("bad-config", false)));
    lab.assert_all_reach_all(&pods);
    assert_eq!(ips, pods.iter().flat_map(|pod| pod.ips.clone()).collect::<Vec<_>>());
    pods.iter().for_each(ClusterPod::stop);
}
