//! The runtime harness tests itself with the reference plugins, then pods of a private containerd live on weft.

use std::net::IpAddr;

use netns_tests::{
    Allow, CriPod, Inside, Lab, Residue, Runtime, Server, lab, reference_bin_dir, require_containerd,
    weft_bin_dir,
};
use serde_json::json;

#[test]
fn pods_of_a_private_containerd_have_addresses_reach_each_other_and_leave_nothing() {
    let (true, Some(dir)) = (require_containerd(), reference_bin_dir()) else { return };
    let lab = lab!();
    let node = lab.node("n1");
    let server = lab.outside(&node);
    let conflist = json!({"cniVersion": "1.0.0", "name": "test", "plugins": [{
        "type": "bridge", "bridge": "cbr0", "isDefaultGateway": true, "ipMasq": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:244::/64"}]]}
    }]});
    let runtime = Runtime::start(&node, &conflist, &[dir]);
    let before = Residue::take(&node);
    let pods = ["a", "b"].map(|name| runtime.run_pod(name));

    let [a, b] = &pods;
    assert_eq!(a.ips.len(), 2, "{a:?}");
    assert!(node.enter(|| a.netns.exists()), "{a:?}");
    assert!(a.network_setup.is_some_and(|time| !time.is_zero() && time < a.sandbox_setup), "{a:?}");
    assert!(runtime.exec(a, ["/podtool", "addr"]).stdout.contains(&a.ips[0].to_string()));
    for &ip in &b.ips {
        let ping = runtime.exec(a, ["/podtool", "ping", &ip.to_string(), "3"]);
        assert_eq!(ping.code, 0, "{ping:?}");
        assert_eq!(get(&runtime, a, ip, CriPod::PORT), a.ip_like(ip));
    }
    assert_eq!(get(&runtime, a, Server::V4, server.v4().port()), Some(Server::NODE_V4));
    assert_ne!(runtime.exec(a, ["/podtool", "ping", "192.0.2.99"]).code, 0);
    runtime.network_ready().expect("ready");

    for pod in &pods {
        runtime.stop_pod(pod).expect("stop");
        runtime.remove_pod(pod).expect("remove");
    }
    assert!(runtime.pods().is_empty());
    let bridge =
        Allow::nothing().link("cbr0").forwarding().path("/var/lib/cni/networks/test/last_reserved_ip");
    let empty_tables =
        bridge.path("/var/lib/cni/networks/test/lock").table("ip nat").table("ip6 nat").text("nat :");
    before.assert_settles(&node, &empty_tables);
}

#[test]
fn pods_of_a_private_containerd_live_on_weft_in_bridge_mode() {
    live_on_weft("bridge");
}

#[test]
fn pods_of_a_private_containerd_live_on_weft_in_veth_mode() {
    live_on_weft("veth");
}

fn live_on_weft(mode: &str) {
    if !require_containerd() {
        return;
    }
    let lab = Lab::new(&format!("containerd_weft_{mode}"));
    let node = lab.node("n1");
    let server = lab.outside(&node);
    let conflist = json!({"cniVersion": "1.0.0", "name": "test", "plugins": [{
        "type": "weft", "mode": mode, "isDefaultGateway": true, "ipMasq": true,
        "ipam": {"ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:244::/64"}]]}
    }]});
    let dirs: Vec<_> = [Some(weft_bin_dir()), reference_bin_dir()].into_iter().flatten().collect();
    let runtime = Runtime::start(&node, &conflist, &dirs);
    let run_and_remove = |name: &str, look: &dyn Fn(&CriPod)| {
        let pod = runtime.run_pod(name);
        look(&pod);
        runtime.stop_pod(&pod).expect("stop");
        runtime.remove_pod(&pod).expect("remove");
    };
    // What the first pod of a network brings stays: the bridge, the table, the sysctls.
    run_and_remove("first", &|_| ());
    let before = Residue::take(&node);

    run_and_remove("second", &|pod| {
        assert_eq!(pod.ips.len(), 2, "{pod:?}");
        for (ip, seen_as) in [(Server::V4, Server::NODE_V4), (Server::V6, Server::NODE_V6)] {
            assert_eq!(get(&runtime, pod, ip, server.v4().port()), Some(seen_as));
        }
        let meanwhile = before.difference(&Residue::take(&node), &Allow::nothing()).join("\n");
        for holds in ["+ Link: ", "+ File: /run/weft/"] {
            assert!(meanwhile.contains(holds), "no {holds} in:\n{meanwhile}");
        }
    });
    before.assert_settles(&node, &Allow::nothing());
}

fn get(runtime: &Runtime, pod: &CriPod, ip: IpAddr, port: u16) -> Option<IpAddr> {
    let output = runtime.exec(pod, ["/podtool", "get", &ip.to_string(), &port.to_string()]);
    output.stdout.trim().parse().ok()
}

#[test]
fn a_dropped_runtime_leaves_no_process_mount_or_control_group() {
    let (true, Some(dir)) = (require_containerd(), reference_bin_dir()) else { return };
    let lab = lab!();
    let node = lab.node("n1");
    let conflist = json!({"cniVersion": "1.0.0", "name": "test", "plugins": [{
        "type": "ptp", "ipam": {"type": "host-local", "subnet": "10.244.0.0/24"}
    }]});
    let before = Residue::take(&node);
    // Those in /run/netns come and go with other labs.
    let mounts = || {
        let table = node.enter(|| std::fs::read_to_string("/proc/thread-self/mountinfo")).expect("mountinfo");
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| !point.starts_with("/run/netns/")).map(str::to_owned).collect::<Vec<_>>()
    };
    let mounted = mounts();

    let runtime = Runtime::start(&node, &conflist, &[dir]);
    let mut pod = runtime.run_pod("a");
    runtime.restart_container(&mut pod).expect("a fresh container");
    assert_eq!(runtime.exec(&pod, ["/podtool", "ping", "127.0.0.1"]).code, 0);
    drop(runtime);

    let host_local = Allow::nothing().path("/var/lib/cni/").forwarding();
    before.assert_settles(&node, &host_local);
    assert_eq!(mounts(), mounted);
    let groups = std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten();
    let ours = groups.flat_map(|group| std::fs::read_dir(group.path()).into_iter().flatten().flatten());
    let ours: Vec<_> =
        ours.filter(|group| group.file_name().to_string_lossy().starts_with(lab.tag())).collect();
    assert!(ours.is_empty(), "{ours:?}");
}
