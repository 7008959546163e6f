//! The lab of a cluster tests itself: etcd that loses members and its memory, the wire, traffic that counts what is
//! lost, and the recorder of changes. No `weftd` is needed.

use std::time::Duration;

use netns_tests::cluster::{
    ClusterLab, EtcdOptions, Flow, Layout, Monitor, Prober, Underlay, df_passes, transfer,
};
use netns_tests::{Inside, require, wait_until};

const SOON: Duration = Duration::from_secs(40);

fn address(lab: &ClusterLab, node: usize) -> std::net::IpAddr {
    lab.nodes[node].addresses[0].split('/').next().unwrap_or_default().parse().expect("an address")
}

#[test]
fn nodes_reach_each_other_through_the_switch_and_the_router() {
    if !require() {
        return;
    }
    for underlay in [Underlay::V4, Underlay::V6, Underlay::Dual] {
        let lab = ClusterLab::new("wire", &Layout::default().underlay(underlay));
        for from in 0..3 {
            for to in (0..3).filter(|to| *to != from) {
                for ip in &lab.nodes[to].addresses {
                    let ip = ip.split('/').next().unwrap_or_default().parse().expect("an address");
                    wait_until("the way is known", SOON, || lab.nodes[from].ping(ip, 1));
                }
            }
        }
        let far = address(&lab, 2);
        assert!(df_passes(&lab.nodes[0], far, 1500) && !df_passes(&lab.nodes[0], far, 1501), "{underlay:?}");
        let hop = lab.nodes[0].run(["ip", "route", "get", &far.to_string()]);
        assert!(String::from_utf8_lossy(&hop.stdout).contains("via"), "the third is behind the router");
    }
}

#[test]
fn an_etcd_of_three_survives_its_leader_and_forgets_on_demand() {
    if !require() {
        return;
    }
    let lab = ClusterLab::new("etcd3", &Layout::default().members(3));
    let etcd = &lab.etcd;
    etcd.put("/weft/v1/a", "1");
    let snapshot = etcd.snapshot("early");
    let early = etcd.revision();
    etcd.put("/weft/v1/b", "2");
    assert_eq!(etcd.list("/weft/v1/").len(), 2);
    let leader = etcd.leader();
    etcd.kill(leader);
    wait_until("another leads", SOON, || {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| etcd.put("/weft/v1/c", "3"))).is_ok()
    });
    etcd.restore(&snapshot);
    let keys: Vec<String> = etcd.list("/weft/v1/").into_iter().map(|item| item.key).collect();
    assert_eq!(keys, ["/weft/v1/a"]);
    assert!(etcd.revision() <= early + 1, "the revision went back");
    etcd.drive_past(early + 5);
    assert!(etcd.revision() > early + 5);
}

#[test]
fn an_etcd_with_certificates_and_passwords_starts() {
    if !require() {
        return;
    }
    let layout = Layout { etcd: EtcdOptions { members: 1, tls: true }, ..Layout::default() };
    let lab = ClusterLab::new("etcdtls", &layout);
    assert!(lab.etcd.endpoints()[0].starts_with("https://192.168.1.11"));
    lab.etcd.require_login("weft", "secret", "/weft/v1/");
    lab.etcd.put("/weft/v1/x", "1");
    assert_eq!(lab.etcd.get("/weft/v1/x").map(|item| item.value).as_deref(), Some("1"));
}

#[test]
fn the_prober_and_the_flow_notice_a_cable_that_was_out() {
    if !require() {
        return;
    }
    let lab = ClusterLab::new("prober", &Layout::default().flat());
    let [a, b] = [&lab.nodes[0], &lab.nodes[1]];
    let ip = address(&lab, 1);
    wait_until("the way is known", SOON, || a.ping(ip, 1));
    transfer(a, b, ip, 4 << 20).expect("all bytes arrive");
    let flow = Flow::start(a, b, ip);
    let prober = Prober::start(a, ip);
    // Not a wait for a state: time in which something could be lost.
    std::thread::sleep(Duration::from_millis(500));
    prober.finish().assert_nothing_lost("nothing happened");
    let prober = Prober::start(a, ip);
    std::thread::sleep(Duration::from_millis(100));
    lab.wire.set_plugged(b, false);
    std::thread::sleep(Duration::from_millis(300));
    lab.wire.set_plugged(b, true);
    wait_until("the way is there again", SOON, || a.ping(ip, 1));
    let report = prober.finish();
    assert!(report.lost > 10 && report.outage >= Duration::from_millis(200), "{report:?}");
    let flow = flow.finish().expect("TCP survives it");
    assert!(flow.slowest >= Duration::from_millis(100) && flow.rounds > 20, "{flow:?}");
}

#[test]
fn the_monitor_reports_what_changed_and_nothing_else() {
    if !require() {
        return;
    }
    let lab = ClusterLab::new("monitor", &Layout::default().flat());
    let node = &lab.nodes[0].node;
    let mut monitor = Monitor::start(lab.lab(), node);
    wait_until("traffic", SOON, || node.ping(address(&lab, 1), 1));
    assert_eq!(monitor.events(), Vec::<String>::new(), "traffic alone");
    node.run(["ip", "route", "add", "198.51.100.0/24", "via", "192.168.1.2"]);
    node.run(["nft", "add", "table", "inet", "other"]);
    let events = monitor.events();
    assert!(events.iter().any(|line| line.contains("198.51.100.0/24")), "{events:?}");
    assert!(events.iter().any(|line| line.contains("add table inet other")), "{events:?}");
}
