//! Point 3: `weftd` away. Stopped, killed, upgraded, frozen, killed at each netlink message: no packet is lost, no
//! connection breaks, pods start and stop, and a restart that changes nothing changes nothing.

use std::time::{Duration, Instant};

use netns_tests::cluster::{
    ClusterLab, ClusterPod, Flow, Layout, Monitor, Network, PATIENCE, Prober, Underlay, assert_all_reach_all,
    blocks_giving, long_or, require_cluster, status,
};
use netns_tests::{Inside, wait_until, weft_bin_dir};

fn backends() -> [(&'static str, Layout, Network); 2] {
    let network = Network::default();
    [
        ("vxlan", Layout::default(), network.clone()),
        ("routes", Layout::default().flat().underlay(Underlay::Dual), network.backend("routes").mode("veth")),
    ]
}

fn started(name: &str, layout: &Layout, network: &Network) -> (ClusterLab, Vec<ClusterPod>) {
    let lab = ClusterLab::new(name, layout);
    lab.start_all(network);
    let pods = lab.pod_on_each("p");
    lab.assert_all_reach_all(&pods);
    (lab, pods)
}

fn assert_status(lab: &ClusterLab, when: &str) {
    for node in &lab.nodes {
        status(&node.node).unwrap_or_else(|error| panic!("{when}: STATUS of {}: {error}", node.name()));
    }
}

/// Waits until some time of traffic has passed: what is shown is that nothing is lost in it.
fn let_traffic_flow(time: Duration) {
    std::thread::sleep(time);
}

#[test]
fn no_packet_is_lost_while_weftd_is_stopped_killed_and_upgraded() {
    if !require_cluster() {
        return;
    }
    for (backend, layout, network) in backends() {
        let (lab, pods) = started(backend, &layout, &network);
        let upgraded = lab.lab().scratch("weftd-of-tomorrow");
        std::fs::copy(weft_bin_dir().join("weftd"), &upgraded).expect("another build");
        let probers: Vec<_> = pods[2].ips.iter().map(|ip| Prober::start(&pods[0], *ip)).collect();
        let flow = Flow::start(&pods[0], &pods[2], pods[2].ip());
        let started_at = Instant::now();
        for node in [0, 2] {
            let weftd = lab.nodes[node].weftd();
            assert!(weftd.stop().success(), "SIGTERM is an orderly end");
            assert_status(&lab, "stopped");
            let pod = lab.pod(node, "meanwhile");
            let other = if node == 0 { &pods[2] } else { &pods[0] };
            assert_all_reach_all(&[&pod, other]);
            pod.stop();
            weftd.start(&[]);
            weftd.wait_ready();
            weftd.kill();
            assert_status(&lab, "killed");
            let_traffic_flow(Duration::from_millis(300));
            weftd.start(&[]);
            weftd.wait_ready();
            assert!(weftd.stop().success());
            weftd.upgrade(&upgraded);
            weftd.start(&[]);
            weftd.wait_ready();
            assert_status(&lab, "upgraded");
        }
        eprintln!("{backend}: six ends and starts in {:?}", started_at.elapsed());
        let flow = flow.finish().unwrap_or_else(|error| panic!("{backend}: the connection broke: {error}"));
        for report in Prober::finish_all(probers) {
            eprintln!("{backend}: {report:?}, {flow:?}");
            report.assert_nothing_lost(backend);
        }
    }
}

#[test]
fn a_restart_that_changes_nothing_changes_nothing() {
    if !require_cluster() {
        return;
    }
    for (backend, layout, network) in backends() {
        let (lab, _pods) = started(backend, &layout, &network);
        let node = &lab.nodes[0];
        let mut monitor = Monitor::start(lab.lab(), &node.node);
        for signal in ["TERM", "KILL"] {
            if signal == "TERM" {
                node.weftd().stop();
            } else {
                node.weftd().kill();
            }
            node.weftd().start(&[]);
            node.weftd().wait_ready();
            node.weftd().wait_peers(2);
            let events = monitor.events();
            assert!(events.is_empty(), "{backend}, SIG{signal}:\n{}", events.join("\n"));
        }
    }
}

#[test]
fn a_frozen_weftd_costs_no_packet_and_no_pod() {
    if !require_cluster() {
        return;
    }
    let (lab, pods) = started("frozen", &Layout::default(), &Network::default());
    let probers: Vec<_> = pods[2].ips.iter().map(|ip| Prober::start(&pods[0], *ip)).collect();
    let flow = Flow::start(&pods[0], &pods[2], pods[2].ip());
    for node in &lab.nodes {
        node.weftd().freeze(true);
    }
    let until = Instant::now() + long_or(Duration::from_secs(300), Duration::from_secs(10));
    let mut rounds = 0;
    while Instant::now() < until {
        let young = lab.pod_on_each("young");
        assert_all_reach_all(&young.iter().collect::<Vec<_>>());
        assert_status(&lab, "frozen");
        young.iter().for_each(ClusterPod::stop);
        rounds += 1;
    }
    let thawed = Instant::now();
    for node in &lab.nodes {
        node.weftd().freeze(false);
        node.weftd().wait_ready();
    }
    lab.assert_records_agree(PATIENCE);
    eprintln!("{rounds} rounds of three pods; records agree {:?} after SIGCONT", thawed.elapsed());
    eprintln!("{:?}", flow.finish().expect("the connection lives"));
    for report in Prober::finish_all(probers) {
        eprintln!("frozen: {report:?}");
        report.assert_nothing_lost("frozen");
    }
}

#[test]
fn a_node_that_was_removed_meanwhile_is_swept_when_weftd_comes_back() {
    if !require_cluster() {
        return;
    }
    let (lab, pods) = started("swept", &Layout::default(), &Network::default());
    let block_of = |node: usize| -> String {
        let status = lab.nodes[node].weftd().status();
        status["blocks"][0]["cidr"].as_str().expect("a block").to_owned()
    };
    let gone = block_of(2);
    let routed = |node: usize| {
        let family = if gone.contains(':') { "-6" } else { "-4" };
        let routes = lab.nodes[node].run(["ip", family, "route", "show", "proto", "87"]);
        String::from_utf8_lossy(&routes.stdout).contains(gone.trim_end_matches("/26"))
    };
    assert!(routed(0) && routed(1));
    lab.nodes[1].weftd().stop();
    pods[2].stop();
    lab.nodes[2].weftd().stop();
    lab.nodes[0].weftd().command_ok(&["node", "rm", "c", "--force"]);
    wait_until("the one that runs sweeps at once", PATIENCE, || !routed(0));
    assert!(routed(1), "nobody is there to do it");
    lab.nodes[1].weftd().start(&[]);
    wait_until("the one that comes back sweeps", PATIENCE, || !routed(1));
    assert_all_reach_all(&[&pods[0], &pods[1]]);
}

/// SIGKILL at the n-th message that `weftd` sends to the kernel or the store, on a node that is new, and then on a
/// change of a peer; started again, all is as if nothing had happened.
#[test]
fn killed_at_any_message_weftd_completes_its_work_at_the_next_start() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("killat", &Layout::default());
    let network = Network::default();
    lab.start(0, &network);
    lab.start(1, &network);
    for node in 0..2 {
        lab.nodes[node].weftd().wait_ready();
    }
    let all: Vec<u32> = (1..60).collect();
    let some: Vec<u32> = vec![2, 5, 9, 14, 20];
    let weftd = lab.start_with(2, lab.conf(2, &network), false);
    weftd.wait_ready();
    for at in long_or(all, some) {
        // Everything is to be made again.
        lab.nodes[2].lose_everything(&[]);
        let inject = format!("inject=sendto,sendmsg:signal=KILL:when={at}");
        weftd.start_under(
            &["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=sendto,sendmsg", "-e", &inject],
            &[],
        );
        let ended = netns_tests::cluster::ended_within(weftd, Duration::from_secs(20));
        weftd.kill();
        if !ended {
            // It has no more messages to send; whoever traced it is gone, it is not.
            kill_weftd(&lab.nodes[2].node);
        }
        weftd.start(&[]);
        weftd.wait_ready();
        lab.nodes.iter().for_each(|node| node.weftd().wait_peers(2));
        let pods = lab.pod_on_each("p");
        lab.assert_all_reach_all(&pods);
        lab.assert_records_agree(PATIENCE);
        lab.assert_nothing_given_twice();
        pods.iter().for_each(ClusterPod::stop);
        eprintln!("killed at message {at}: {ended}");
        if !ended {
            break;
        }
    }
}

fn kill_weftd(node: &netns_tests::Node) {
    wait_until("weftd is dead", PATIENCE, || {
        let alive: Vec<String> = node
            .processes()
            .into_iter()
            .filter(|(_, line)| line.contains("weftd"))
            .map(|(pid, _)| pid.to_string())
            .collect();
        for pid in &alive {
            let _gone_already = node.try_run(["kill", "-KILL", pid]);
        }
        alive.is_empty()
    });
}

/// The same at the n-th message after a peer has claimed a block: the way to it must be there in the end.
#[test]
fn killed_while_it_follows_a_peer_weftd_completes_its_work_at_the_next_start() {
    if !require_cluster() {
        return;
    }
    let network = Network::default().with("block_size_v4 = 29").with("block_size_v6 = 125");
    let (lab, pods) = started("killfollow", &Layout::default().nodes(2), &network);
    let follower = &lab.nodes[1];
    let mut young = Vec::new();
    for at in long_or((1..30).collect(), vec![1, 2, 4, 7]) {
        let inject = format!("inject=sendto,sendmsg:signal=KILL:when={at}");
        let pid = follower.weftd().inspect(|process| process.pid()).to_string();
        let words = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=sendto,sendmsg", "-e", &inject, "-p", &pid];
        let mut strace = follower.command("strace");
        let mut strace = strace.args(words).spawn().expect("start strace");
        let traced = || status_line(&pid, "TracerPid").is_some_and(|tracer| tracer != "0");
        wait_until("strace is attached", PATIENCE, traced);
        let before = blocks_giving(&lab.nodes[0].node);
        while blocks_giving(&lab.nodes[0].node) == before {
            young.push(lab.pod(0, &format!("more{}", young.len())));
        }
        let ended = netns_tests::cluster::ended_within(follower.weftd(), Duration::from_secs(5));
        follower.weftd().kill();
        let _ended_with_it = strace.wait();
        follower.weftd().start(&[]);
        follower.weftd().wait_ready();
        assert_all_reach_all(&[&pods[1], young.last().expect("one in the new block")]);
        eprintln!("killed at message {at} of a peer's change: {ended}");
    }
    lab.assert_nothing_given_twice();
}

fn status_line(pid: &str, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}
