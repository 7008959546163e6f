//! What others take away comes back, what did not change is left alone, what is not ours is never touched.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper of a test may panic as the test itself may"
)]

mod common_overlay;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common_overlay::{Families, Member, SOON, VXLAN, World, dump};
use netns_tests::{Inside, Node, lab, require, wait_for, wait_until};
use weft_netlink::link::{self, Mac};
use weft_netlink::rules::{Interval, Masquerade, ensure_masquerade};
use weft_netlink::{EventStream, Protocol, Socket, route};
use weft_overlay::wanted::{Backend, Changed, Direct, Peer, Wanted};
use weft_overlay::{DataPlane, Setup};

/// Within this, what others deleted is back.
const HEALED: Duration = Duration::from_secs(1);

fn world(lab: netns_tests::Lab, backend: Backend) -> World {
    let mut world = World::new(lab, Families::DUAL);
    world.start(backend, Direct::Never);
    world
}

/// A program that prints each change, until dropped.
struct Monitor {
    child: Child,
}

impl Monitor {
    fn start(node: &Node, words: &[&str]) -> Self {
        let mut command = node.command(words[0]);
        let child = command.args(&words[1..]).stdout(Stdio::piped()).spawn().unwrap();
        Self { child }
    }

    /// All that it printed until now. `mark` makes a change that the program must print, so that nothing before is missed.
    fn until(mut self, mark: impl Fn(), sign: &str) -> String {
        let mut output = self.child.stdout.take().unwrap();
        let (mut seen, mut part) = (String::new(), [0; 4096]);
        mark();
        while !seen.contains(sign) {
            let length = output.read(&mut part).unwrap();
            assert!(length > 0, "the monitor ended: {seen}");
            seen.push_str(&String::from_utf8_lossy(&part[..length]));
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        seen
    }
}

/// Starts once the monitors really listen: each is shown a change that it must print.
fn monitors(node: &Node) -> (Monitor, Monitor) {
    let monitors =
        (Monitor::start(node, &["ip", "monitor", "all"]), Monitor::start(node, &["nft", "monitor"]));
    for (index, monitor) in [&monitors.0, &monitors.1].into_iter().enumerate() {
        // Both are netlink sockets of the program; until they are bound, the kernel lists none.
        let pid = monitor.child.id().to_string();
        wait_until(&format!("monitor {index} to listen"), SOON, || {
            let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/netlink")).unwrap_or_default();
            sockets.lines().any(|line| {
                let columns: Vec<_> = line.split_whitespace().collect();
                columns.get(2) == Some(&pid.as_str())
                    && columns.get(3).is_some_and(|groups| *groups != "00000000")
            })
        });
    }
    monitors
}

/// D: a restart that changes nothing causes no netlink event at all.
#[test]
fn a_restart_that_changes_nothing_is_silent() {
    if !require() {
        return;
    }
    for backend in [VXLAN, Backend::Routes] {
        let mut world = world(lab!(), backend);
        let wanted = world.wanted(0, backend, Direct::Never);
        world.members[0].stop();
        let node = world.members[0].node.clone();
        // Sockets of netfilter are really closed a little later; that is no event.
        let (links, rules) = monitors(&node);
        world.members[0].start();
        world.members[0].want(wanted);
        let mark = || drop(node.run(["ip", "link", "add", "mark", "type", "bridge"]));
        let seen = links.until(mark, "mark");
        let before: Vec<_> = seen.lines().take_while(|line| !line.contains("mark")).collect();
        assert!(
            before.iter().all(|line| line.contains("nsid") || line.trim().is_empty()),
            "{backend:?}: {seen}"
        );
        let mark = || drop(node.run(["nft", "add", "table", "inet", "sign"]));
        let seen = rules.until(mark, "sign");
        assert!(seen.trim_start().starts_with("add table inet sign"), "{backend:?}: {seen}");
    }
}

/// Does harm and measures how long it takes until all is as before.
fn heals(member: &Member, what: &str, harm: &[&str]) {
    let node = &member.node;
    let before = comparable(node);
    let start = Instant::now();
    node.run(harm);
    let limit = SOON;
    wait_until(&format!("{what} to be healed: {:?}", member.last()), limit, || comparable(node) == before);
    let took = start.elapsed();
    println!("healed {what} in {took:?} (with the dumps that look)");
    assert!(took < HEALED * 3, "{what}: {took:?}");
}

/// What is ours, without indexes, counters and handles.
fn comparable(node: &Node) -> BTreeMap<&'static str, String> {
    let device = "cd /sys/class/net/weft-vx && cat mtu address flags || echo none";
    let commands: [(&str, &[&str]); 7] = [
        ("device", &["sh", "-c", device]),
        ("addresses", &["ip", "-br", "address", "show", "to", "10.1.0.0/16"]),
        ("routes", &["ip", "route", "show", "proto", "87"]),
        ("routes6", &["ip", "-6", "route", "show", "proto", "87"]),
        ("neighbours", &["ip", "neighbour", "show", "nud", "permanent"]),
        ("entries", &["bridge", "fdb", "show"]),
        ("rules", &["nft", "-s", "list", "ruleset"]),
    ];
    let text = |words: &[&str]| {
        let text = String::from_utf8_lossy(&node.run(words).stdout).into_owned();
        let mut lines: Vec<_> =
            text.lines().filter(|line| !line.contains("33:33:") && !line.contains("01:00:5e")).collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    commands.into_iter().map(|(name, words)| (name, text(words))).collect()
}

/// The time itself, without programs that look: by netlink, one route after the other.
#[test]
fn a_deleted_route_is_back_within_a_second() {
    if !require() {
        return;
    }
    let world = world(lab!(), VXLAN);
    let mut socket = world.members[0].node.enter(Socket::route).unwrap();
    let mut times = Vec::new();
    for ipv4 in [true, false] {
        let blocks =
            route::own(&mut socket, ipv4).unwrap().into_iter().filter(|route| route.gateway.is_some());
        for block in blocks.collect::<Vec<_>>() {
            socket.execute(&[route::delete(&block)]).unwrap();
            let start = Instant::now();
            wait_until("the route to be back", SOON, || {
                route::own(&mut socket, ipv4).unwrap().contains(&block)
            });
            times.push(start.elapsed());
        }
    }
    println!("deleted routes were back after {times:?}");
    assert_eq!(times.len(), 4);
    assert!(times.iter().all(|time| *time < HEALED), "{times:?}");
}

#[test]
fn what_others_delete_comes_back() {
    if !require() {
        return;
    }
    let world = world(lab!(), VXLAN);
    let member = &world.members[0];
    heals(member, "routes", &["ip", "route", "flush", "proto", "87"]);
    heals(member, "IPv6 routes", &["ip", "-6", "route", "flush", "proto", "87"]);
    heals(
        member,
        "forwarding entries",
        &["bridge", "fdb", "del", "02:00:00:00:00:02", "dev", "weft-vx", "dst", "192.0.2.2"],
    );
    heals(member, "neighbours", &["ip", "neighbour", "flush", "dev", "weft-vx", "nud", "all"]);
    heals(member, "the VXLAN device", &["ip", "link", "del", "weft-vx"]);
    heals(member, "the device of the node address", &["ip", "link", "del", "weft-node"]);
    heals(member, "a device that is down", &["ip", "link", "set", "weft-vx", "down"]);
    // On another node: the third harm to one object in a short time is answered later, as it should be.
    let other = &world.members[1];
    heals(other, "another MTU", &["ip", "link", "set", "weft-vx", "mtu", "1300"]);
    heals(other, "another MAC", &["ip", "link", "set", "weft-vx", "address", "02:00:00:00:00:99"]);
    heals(member, "all packet rules", &["nft", "flush", "ruleset"]);
    heals(member, "one rule", &["nft", "flush", "chain", "inet", "weft", "cluster-forward"]);
    heals(member, "the elements of a set", &["nft", "flush", "set", "inet", "weft", "cluster4"]);
    let report = member.settled();
    assert!(report.healed >= 10 && other.settled().healed >= 2, "{report:?}");
    // Nobody tells when a setting changes; the next look at everything sees it.
    member.node.set_sysctl("net.ipv4.ip_forward", "0");
    member.resync();
    wait_until("forwarding to be on again", SOON, || member.node.sysctl("net.ipv4.ip_forward") == "1");
    assert!(report.failures.is_empty(), "{report:?}");
}

/// The underlay's link goes and comes: the kernel drops IPv4 routes over it without an event.
#[test]
fn routes_come_back_with_their_link() {
    if !require() {
        return;
    }
    let world = world(lab!(), Backend::Routes);
    let member = &world.members[0];
    let link = member.last().unwrap().underlay[0].link.clone();
    let routes = || {
        String::from_utf8_lossy(&member.node.run(["ip", "route", "show", "proto", "87"]).stdout).into_owned()
    };
    let before = routes();
    member.node.run(["ip", "link", "set", &link, "down"]);
    wait_until("the data plane to see that there is no way", SOON, || {
        member
            .last()
            .is_some_and(|report| report.findings.iter().any(|finding| finding.code == "no-underlay"))
    });
    member.node.run(["ip", "link", "set", &link, "up"]);
    wait_until("the routes to be back", SOON, || routes() == before);
}

/// One remote event costs a constant number of changes, and the same order again none.
#[test]
fn one_peer_costs_its_own_objects_and_no_more() {
    if !require() {
        return;
    }
    let world = world(lab!(), VXLAN);
    let member = &world.members[0];
    let mut wanted = world.wanted(0, VXLAN, Direct::Never);
    wanted = many(&wanted, 200);
    wanted.cidrs = world.wanted(0, VXLAN, Direct::Never).cidrs;
    member.want(wanted.clone());
    let mut socket = member.node.enter(Socket::route).unwrap();
    let device = link::by_name(&mut socket, "weft-vx").unwrap().unwrap().index;
    let (mut routes, mut commits) =
        member.node.enter(|| (EventStream::route().unwrap(), EventStream::nftables().unwrap()));
    routes.follow_neighbours([device, 0]).unwrap();
    let mut heard = || {
        let mut counts = (0, 0);
        routes.drain(|_| counts.0 += 1).unwrap();
        commits.drain(|_| counts.1 += 1).unwrap();
        counts
    };
    heard();
    member.want(wanted.clone());
    assert_eq!(heard(), (0, 0), "the same order");
    let peer = Peer {
        published: vec!["198.51.100.9/24".parse().unwrap()],
        blocks: vec!["10.1.9.0/26".parse().unwrap()],
        node_addresses: vec![IpAddr::from([10, 1, 9, 1])],
        vtep_mac: Some(Mac([2, 0, 0, 2, 0, 9])),
    };
    let before = wanted.clone();
    wanted.peers.insert("new".into(), Arc::new(peer));
    member.want(wanted);
    assert_eq!(heard(), (3, 0), "neighbour, forwarding entry, route");
    member.want(before);
    // A neighbour first fails, then is gone.
    assert_eq!(heard(), (4, 0), "the same again, backwards");
}

/// With plain routes a node that moves changes a set of the packet rules, which has an element for each node: it is not
/// read back for that.
#[test]
fn a_node_that_moves_costs_the_same_in_a_cluster_of_any_size() {
    if !require() {
        return;
    }
    let mut world = World::new(lab!(), Families::V4);
    let few = world.wanted(0, Backend::Routes, Direct::Never);
    let member = &mut world.members[0];
    member.node.run(["ip", "address", "add", "10.200.0.1/16", "dev", "wire0"]);
    member.start();
    let hops = |member: &Member| {
        let listing = member.node.run(["nft", "list", "set", "inet", "weft", "cluster-via4"]);
        String::from_utf8_lossy(&listing.stdout).matches("10.200.").count()
    };
    let mut costs = Vec::new();
    for size in [20, 1_000] {
        let mut wanted = many(&few, size);
        let before = member.want(wanted.clone());
        assert_eq!(hops(member), usize::from(size));
        let mut moved = (*wanted.peers["n7"]).clone();
        moved.published = vec!["10.200.99.7/16".parse().unwrap()];
        wanted.peers.insert("n7".into(), Arc::new(moved));
        let after = member.want_changed(wanted, Changed::Peers(vec!["n7".into()]));
        costs.push((after.requests - before.requests, after.received - before.received));
        assert_eq!(hops(member), usize::from(size), "the old one is gone, the new one is there");
    }
    println!("requests and bytes of answers: {costs:?}");
    assert_eq!(costs[0], costs[1]);
}

/// Another MTU, another address of the underlay: noticed at once, all that depends on it follows.
#[test]
fn the_underlay_is_followed() {
    if !require() {
        return;
    }
    let world = world(lab!(), VXLAN);
    let member = &world.members[0];
    let link = member.last().unwrap().underlay[0].link.clone();
    let device = || {
        String::from_utf8_lossy(&member.node.run(["ip", "-d", "link", "show", "weft-vx"]).stdout).into_owned()
    };
    member.node.run(["ip", "link", "set", &link, "mtu", "1400"]);
    wait_until("the pods' MTU to follow", SOON, || {
        member.last().is_some_and(|report| report.pod_mtu == Some(1350))
    });
    member.settled();
    assert!(device().contains("mtu 1350"), "{}", device());
    let route = member.node.run(["ip", "route", "show", "10.1.2.0/26"]);
    assert!(String::from_utf8_lossy(&route.stdout).contains("mtu 1350"));
    // Another name, as udev may give one late: its addresses are still there.
    member.node.run(["ip", "link", "set", &link, "down"]);
    member.node.run(["ip", "link", "set", &link, "name", "lan0"]);
    member.node.run(["ip", "link", "set", "lan0", "up"]);
    let link = "lan0".to_owned();
    wait_until("the new name to be known", SOON, || {
        member.last().is_some_and(|report| {
            report.in_sync && report.underlay.first().is_some_and(|way| way.link == link)
        })
    });
    // Behind NAT from now on: no link has the published address, the default route leads out.
    member.node.run(["ip", "address", "del", "192.0.2.1/24", "dev", &link]);
    member.node.run(["ip", "address", "add", "192.0.2.77/24", "dev", &link]);
    member.node.run(["ip", "route", "replace", "default", "via", "192.0.2.254"]);
    wait_until("the source to go", SOON, || {
        member.last().is_some_and(|report| report.in_sync && report.underlay[0].source.is_none())
    });
    assert!(!device().contains("local 192.0.2.1"), "{}", device());
}

/// D4: whoever keeps deleting is answered ever more seldom, costs next to nothing, and is named.
#[test]
fn a_persistent_deleter_is_named_and_costs_little() {
    if !require() {
        return;
    }
    let world = world(lab!(), VXLAN);
    let member = &world.members[0];
    let script = "while :; do ip route del 10.1.2.0/26 2>/dev/null; sleep 0.1; done";
    let mut deleter = member.node.command("sh").args(["-c", script]).spawn().unwrap();
    let (start, before) = (Instant::now(), cpu(&member.node));
    let named = wait_for("the deleter to be named", SOON, || {
        let report = member.last()?;
        report.findings.into_iter().find(|finding| finding.code == "taken-away")
    });
    let share = (cpu(&member.node) - before).as_secs_f64() / start.elapsed().as_secs_f64();
    println!("against a deleter each 100 ms: {:.1} % of a CPU; {}", share * 100.0, named.text);
    deleter.kill().unwrap();
    deleter.wait().unwrap();
    assert!(named.text.contains("route 10.1.2.0/26"), "{named:?}");
    assert!(share < 0.05, "{share}");
    // Other objects are healed at once all the same.
    heals(member, "another route beside the war", &["ip", "route", "del", "10.1.3.0/26"]);
}

/// CPU time of a node's data plane: the thread of that name in its namespace.
fn cpu(node: &Node) -> Duration {
    let space = std::fs::metadata(node.netns_path()).unwrap().ino();
    let is_its = |task: &Path| {
        let own = std::fs::metadata(task.join("ns/net")).is_ok_and(|found| found.ino() == space);
        own && std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "data-plane")
    };
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let nanoseconds = tasks.filter(|task| is_its(task)).map(|task| {
        let stat = std::fs::read_to_string(task.join("schedstat")).unwrap();
        stat.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// Foreign routes, links, neighbours and tables are byte for byte the same before, beside and after.
#[test]
fn what_is_not_ours_is_never_touched() {
    if !require() {
        return;
    }
    let mut world = World::new(lab!(), Families::DUAL);
    let node = world.members[0].node.clone();
    for words in [
        &["ip", "link", "add", "weftlike", "type", "bridge"][..],
        // An address that is tentative now would not be later.
        &["ip", "link", "set", "weftlike", "addrgenmode", "none"],
        &["ip", "link", "set", "weftlike", "up"],
        &["ip", "address", "add", "10.77.0.1/24", "dev", "weftlike"],
        &["ip", "route", "add", "10.1.2.0/26", "via", "192.0.2.99", "metric", "9000", "proto", "static"],
        &["ip", "route", "add", "10.88.0.0/16", "via", "10.77.0.2", "proto", "bird"],
        &["ip", "-6", "route", "add", "unreachable", "fd00:1::/48", "metric", "77"],
        // Of our protocol, but of a pod: the plugin's.
        &["ip", "route", "add", "10.1.1.9", "dev", "weftlike", "proto", "87"],
        &[
            "nft",
            "add table inet other; add chain inet other forward { type filter hook forward priority 0; }",
        ],
        &["nft", "add rule inet other forward counter accept"],
    ] {
        node.run(words);
    }
    // That stays, like everything that others may rely on by now; with it the kernel makes anycast routes.
    node.set_sysctl("net.ipv4.ip_forward", "1");
    node.set_sysctl("net.ipv6.conf.all.forwarding", "1");
    let foreign = dump(&node);
    world.start(VXLAN, Direct::Never);
    let beside = dump(&node);
    for (name, text) in &foreign {
        for line in text.lines() {
            assert!(beside[name].contains(line.trim()), "{name}: lost or changed: {line}");
        }
    }
    world.members[0].stop();
    let removal = node.enter(DataPlane::remove_everything).unwrap();
    assert_eq!(removal.failures, Vec::<String>::new());
    assert_eq!(dump(&node), foreign);
    let again = node.enter(DataPlane::remove_everything).unwrap();
    assert_eq!(again.removed, Vec::<String>::new());
}

/// A foreign route in the very place of ours is not overwritten, and said.
#[test]
fn a_foreign_route_in_our_place_is_left_and_named() {
    if !require() {
        return;
    }
    let mut world = World::new(lab!(), Families::V4);
    let node = world.members[0].node.clone();
    node.run(["ip", "route", "add", "10.1.2.0/26", "via", "192.0.2.99", "metric", "8787", "proto", "static"]);
    let wanted = world.wanted(0, VXLAN, Direct::Never);
    world.members[0].start();
    world.members[0].send(wanted);
    let report =
        wait_for("a failure", SOON, || world.members[0].last().filter(|report| !report.failures.is_empty()));
    assert!(report.failures[0].contains("add route 10.1.2.0/26"), "{report:?}");
    assert!(report.failures[0].contains("a route that Weft did not make"), "{report:?}");
    let routes = node.run(["ip", "route", "show", "10.1.2.0/26"]);
    assert!(String::from_utf8_lossy(&routes.stdout).starts_with("10.1.2.0/26 via 192.0.2.99"));
    node.run(["ip", "route", "del", "10.1.2.0/26", "metric", "8787"]);
    world.members[0].settled();
}

/// From VXLAN to routes and back; a peer that comes, moves and goes; no removal without leave.
#[test]
fn backends_and_peers_change_under_way() {
    if !require() {
        return;
    }
    let world = world(lab!(), VXLAN);
    let member = &world.members[0];
    let route = |block: &str| {
        let output = member.node.run(["ip", "route", "show", block]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let has_device = || member.node.try_run(["ip", "link", "show", "weft-vx"]).status.success();
    member.want(world.wanted(0, Backend::Routes, Direct::Never));
    assert!(route("10.1.2.0/26").contains("via 192.0.2.2") && !has_device());
    member.want(world.wanted(0, VXLAN, Direct::Never));
    assert!(route("10.1.2.0/26").contains("dev weft-vx") && has_device());

    let mut fewer = world.wanted(0, VXLAN, Direct::Never);
    let peer = fewer.peers.remove("b").unwrap();
    fewer.may_remove = false;
    member.want(fewer.clone());
    assert!(route("10.1.2.0/26").contains("dev weft-vx"), "removed without leave");
    fewer.may_remove = true;
    member.want(fewer.clone());
    assert_eq!(route("10.1.2.0/26"), "");
    let moved = Peer { blocks: vec!["10.1.77.0/26".parse().unwrap()], ..(*peer).clone() };
    fewer.peers.insert("b".into(), Arc::new(moved));
    member.want(fewer);
    assert!(route("10.1.77.0/26").contains("dev weft-vx"));
    let other = Backend::Vxlan { vni: 8, port: 4790 };
    member.want(world.wanted(0, other, Direct::Never));
    let link = member.node.run(["ip", "-d", "link", "show", "weft-vx"]);
    assert!(String::from_utf8_lossy(&link.stdout).contains("vxlan id 8"));
}

/// F8: seen, said, and gone when it is.
#[test]
fn a_foreign_policy_of_drop_is_found() {
    if !require() {
        return;
    }
    let world = world(lab!(), Backend::Routes);
    let member = &world.members[0];
    member.node.run(["nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"]);
    let found = || {
        let report = member.last()?;
        report.findings.into_iter().find(|finding| finding.code == "foreign-forward-drop")
    };
    assert_eq!(wait_for("the chain to be found", SOON, found).subject, "ip filter FORWARD");
    member.node.run(["nft", "delete", "table", "ip", "filter"]);
    wait_until("the finding to go", SOON, || found().is_none());
}

fn many(wanted: &Wanted, count: u16) -> Wanted {
    let mut many = wanted.clone();
    many.cidrs = vec!["10.0.0.0/8".parse().unwrap()];
    for n in 0..count {
        let [high, low] = n.to_be_bytes();
        let peer = Peer {
            published: vec![format!("10.200.{}.{low}/16", 3 + high).parse().unwrap()],
            blocks: vec![format!("10.{}.{low}.0/26", 16 + high).parse().unwrap()],
            node_addresses: vec![IpAddr::from([10, 16 + high, low, 1])],
            vtep_mac: Some(Mac([2, 0, 0, 1, high, low])),
        };
        many.peers.insert(format!("n{n}").into(), Arc::new(peer));
    }
    many
}

/// Printed, not asserted: this machine does more than one thing.
#[test]
fn the_time_that_5000_peers_take() {
    if !require() {
        return;
    }
    let mut world = World::new(lab!(), Families::V4);
    let wanted = world.wanted(0, VXLAN, Direct::Never);
    let member = &mut world.members[0];
    member.node.run(["ip", "address", "add", "10.200.0.1/16", "dev", "wire0"]);
    member.start();
    member.want(wanted.clone());
    let all = many(&wanted, 5_000);
    let timed = |what: &str, member: &Member, wanted: Wanted| {
        let (start, before) = (Instant::now(), cpu(&member.node));
        let report = member.want(wanted);
        println!(
            "{what}: {:?} to the report, {} ms of changes, {:?} of CPU, {} objects",
            start.elapsed(),
            report.last_change_ms,
            cpu(&member.node) - before,
            report.objects
        );
    };
    timed("5,000 peers appear", member, all.clone());
    let mut one = all.clone();
    one.peers.remove("n77");
    timed("one of 5,000 goes", member, one);
    timed("one of 5,000 comes", member, all.clone());
    member.stop();
    let start = Instant::now();
    member.start();
    println!("a restart reads them in {:?}", start.elapsed());
    timed("and adopts them", member, all.clone());
    let start = Instant::now();
    member.node.run(["ip", "route", "flush", "proto", "87"]);
    println!("ip route flush proto 87 took {:?}", start.elapsed());
    wait_until("all to be back", SOON, || {
        let output = member.node.run(["ip", "route", "show", "proto", "87"]);
        output.stdout.iter().filter(|byte| **byte == b'\n').count() == 5_004
    });
    println!("and all were back {:?} after its start", start.elapsed());
    let routes = Wanted { backend: Backend::Routes, ..all };
    timed("changed to routes", member, routes.clone());
    let mut one = routes.clone();
    one.peers.remove("n77");
    timed("one of 5,000 goes", member, one);
    timed("one of 5,000 comes", member, routes);
}

/// The program that the test below kills: a data plane with an order from its environment.
#[test]
#[ignore = "only to be started, and killed, by the test below"]
fn a_data_plane_to_be_killed() {
    let wanted: Wanted = serde_json::from_str(&std::env::var(ORDER).unwrap()).unwrap();
    let plane = DataPlane::start(Setup::default(), |_| ()).unwrap();
    println!("{READY}");
    plane.want(Arc::new(wanted));
    loop {
        std::thread::park();
    }
}

const ORDER: &str = "WEFT_TEST_ORDER";
const READY: &str = "the data plane has its order";

/// SIGKILL at any moment leaves a state that the next start completes.
#[test]
fn whatever_a_killed_one_left_the_next_one_completes() {
    if !require() {
        return;
    }
    let mut world = World::new(lab!(), Families::DUAL);
    let orders = [world.wanted(0, VXLAN, Direct::Never), world.wanted(0, Backend::Routes, Direct::Never)];
    let node = world.members[0].node.clone();
    let mut expected = Vec::new();
    for order in &orders {
        world.members[0].start();
        world.members[0].want(order.clone());
        expected.push(comparable(&node));
        world.members[0].stop();
    }
    let start = Instant::now();
    for round in 0..16u64 {
        // The state of the other order, half taken over to this one.
        let next = &orders[(round % 2) as usize];
        let program = std::env::current_exe().unwrap();
        let mut command = node.command(program);
        command.args(["--exact", "a_data_plane_to_be_killed", "--ignored", "--nocapture"]);
        let mut child =
            command.env(ORDER, serde_json::to_string(next).unwrap()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains(READY)));
        std::thread::park_timeout(Duration::from_millis(round * 3));
        child.kill().unwrap();
        child.wait().unwrap();
        let last = &orders[((round / 2) % 2) as usize];
        world.members[0].start();
        world.members[0].want(last.clone());
        assert_eq!(comparable(&node), expected[((round / 2) % 2) as usize], "round {round}");
        world.members[0].stop();
    }
    println!("16 killed and completed in {:?}", start.elapsed());
}

/// What `nft` makes of our rules.
#[test]
fn the_rules_are_listed_as_they_are_meant() {
    if !require() {
        return;
    }
    let world = world(lab!(), Backend::Routes);
    let output = world.members[0].node.run(["nft", "-s", "list", "table", "inet", "weft"]);
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in [
        "elements = { 10.1.0.0/16 }",
        "elements = { fd00:1::/48 }",
        "elements = { 192.0.2.2 }",
        "elements = { 2001:db8::2 }",
        "elements = { \"wire0\" }",
        "type filter hook forward priority mangle; policy accept;",
        "tcp flags syn / syn,rst ip saddr @cluster4 tcp option maxseg size set rt mtu",
        "tcp flags syn / syn,rst ip6 daddr @cluster6 tcp option maxseg size set rt mtu",
        "ip daddr @cluster4 ip daddr != @cluster-unseen4 oifname @cluster-outside rt ip nexthop != @cluster-via4 counter drop",
        "ip6 daddr @cluster6 ip6 daddr != @cluster-unseen6 oifname @cluster-outside rt ip6 nexthop != @cluster-via6 counter drop",
        "icmp type redirect drop",
        "icmpv6 type nd-redirect drop",
        "ip saddr @cluster-masq4 ip daddr != @cluster4 ip daddr != @cluster-plain4 ip daddr != 224.0.0.0/4 masquerade fully-random",
        "ip6 saddr @cluster-masq6 ip6 daddr != @cluster6 ip6 daddr != @cluster-plain6 ip6 daddr != ff00::/8 masquerade fully-random",
    ] {
        assert!(listing.contains(line), "{line}\nis not in\n{listing}");
    }
    // The plugin's chain in the same table leaves ours alone, and the other way round.
    let mut socket = world.members[0].node.enter(|| Socket::open(Protocol::Netfilter)).unwrap();
    let range = Interval::new(IpAddr::from([10, 66, 0, 0]), IpAddr::from([10, 66, 0, 255])).unwrap();
    ensure_masquerade(&mut socket, &[Masquerade { sources: range, plain: Some(range) }]).unwrap();
    let both = comparable(&world.members[0].node);
    assert!(both["rules"].contains("10.66.0.0/24") && both["rules"].contains("cluster-forward"));
    heals(
        &world.members[0],
        "ours beside the plugin's",
        &["nft", "flush", "chain", "inet", "weft", "cluster-forward"],
    );
}
