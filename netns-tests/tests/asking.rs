//! `weft` and `weft-ipam` in a cluster whose `weftd` is a stand-in: a real Unix socket at the real path, which grants
//! blocks as `weftd` would, or misbehaves. When is it asked, what does a pod get, what does it cost.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

mod common_node;

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common_node::{Case, addresses, links, with};
use netns_tests::{Allow, Cni, Inside, Node, Residue, lab, require, weft_bin_dir};
use serde_json::{Value, json};
use weft_ipam::ask::{Op, Reply, Request, SOCKET, read_frame, write_frame};
use weft_ipam::clock::Deadline;
use weft_ipam::{HostKernel, Reservation, State};

fn weft(node: &Node) -> Cni {
    node.cni(weft_bin_dir(), "weft")
}

/// Runs `work` while a stand-in for `weftd` answers each connection by `answer`, on a thread of its own.
fn with_stand_in<T>(node: &Node, answer: impl Fn(UnixStream) + Sync, work: impl FnOnce() -> T) -> T {
    let listener = node.enter(|| {
        let _none = std::fs::remove_file(SOCKET);
        UnixListener::bind(SOCKET).unwrap()
    });
    listener.set_nonblocking(true).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (stop, answer) = (&stop, &answer);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        scope.spawn(move || answer(stream));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        // The stand-in ends also when an assertion fails.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(stop);
        work()
    })
}

fn request(stream: &mut UnixStream) -> Option<Op> {
    let frame = read_frame(stream).ok()??;
    Some(serde_json::from_slice::<Request>(&frame).unwrap().op)
}

fn say(stream: &mut UnixStream, reply: &Reply) {
    // The plugin may have been killed, or lost its patience.
    let _unheard = write_frame(stream, &serde_json::to_vec(reply).unwrap());
}

fn with_state<T: Send>(node: &Node, work: impl FnOnce(&State, Deadline) -> T + Send) -> T {
    node.enter(|| {
        let deadline = Deadline::after(Instant::now(), Duration::from_secs(20));
        work(&State::open(&mut HostKernel::default(), deadline).unwrap(), deadline)
    })
}

fn grant(node: &Node, block: &str) {
    with_state(node, |state, deadline| state.grant(&block.parse().unwrap(), deadline).unwrap());
}

/// Both plugins: the daemon is asked for the first pod, and then not before its block is used up; DEL and STATUS
/// never ask; with the daemon gone pods start as long as an address is free.
#[test]
fn the_daemon_is_asked_only_when_no_address_is_free() {
    if !require() {
        return;
    }
    let lab = lab!();
    for (kind, mode) in [("weft", "bridge"), ("weft", "veth"), ("weft-ipam", "")] {
        let node = lab.node(&format!("{kind}{mode}"));
        let plugin = node.cni(weft_bin_dir(), kind);
        let mut conf =
            json!({"cniVersion": "1.1.0", "name": "net", "type": kind, "ipam": {"type": "weft-ipam"}});
        if kind == "weft" {
            conf["mode"] = json!(mode);
        }
        let asked = AtomicUsize::new(0);
        let answer = |mut stream: UnixStream| {
            let Some(Op::NeedBlock { network, .. }) = request(&mut stream) else { return };
            assert_eq!(network, "net");
            let n = asked.fetch_add(1, Ordering::Relaxed);
            grant(&node, &format!("10.9.0.{}/30", 4 * n));
            say(&mut stream, &Reply::granted());
        };
        let pods: Vec<_> = (0..6).map(|n| node.pod(&format!("p{n}"))).collect();
        with_stand_in(&node, answer, || {
            assert_eq!(plugin.status(&conf).error().code, 50, "nothing is granted, and STATUS does not ask");
            assert_eq!(asked.load(Ordering::Relaxed), 0);
            for (pod, expected) in pods.iter().zip([1, 1, 1, 1, 2]) {
                plugin.add(pod, &conf).result();
                assert_eq!(asked.load(Ordering::Relaxed), expected, "{kind} {mode}");
            }
            plugin.status(&conf).ok_empty();
        });
        plugin.status(&conf).ok_empty();
        plugin.add(&pods[5], &conf).result();
        for pod in &pods {
            plugin.del(pod, &conf).ok_empty();
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2, "DEL never asks");
    }
}

/// Two seconds of silence are what a hung daemon costs; absent, refusing or talking nonsense it costs nothing. All
/// is code 11 with the way out, and nothing of the pod stays.
#[test]
fn a_daemon_that_does_not_help_costs_two_seconds_at_most() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let conf = Case { veth: false, v4: true, v6: false }.cluster_conf();
    let refuse = |expected: &str, least: u64, most: u64| {
        let pod = node.pod("a");
        let before = Residue::take(&node);
        let started = Instant::now();
        let error = weft(&node).add(&pod, &conf).error();
        let took = started.elapsed();
        assert_eq!(error.code, 11, "{error:?}");
        assert!(error.msg.contains("no block of addresses"), "{error:?}");
        assert!(error.details.contains(expected), "{error:?}");
        assert!(
            took >= Duration::from_secs(least) && took < Duration::from_secs(most),
            "{took:?}: {error:?}"
        );
        assert_eq!(links(&pod), ["lo"]);
        let bridge = Allow::nothing().processes().link("cbr0").path("/var/lib/weft/").text("weftd.sock");
        before.assert_same(&Residue::take(&node), &bridge);
    };
    refuse("weftd is not running", 0, 2);
    let hang = |mut stream: UnixStream| {
        request(&mut stream);
        let _until_it_gives_up = read_frame(&mut stream);
    };
    with_stand_in(&node, hang, || refuse("no sign of life", 1, 8));
    let garble = |mut stream: UnixStream| {
        request(&mut stream);
        let _unheard = write_frame(&mut stream, b"\xff{");
    };
    with_stand_in(&node, garble, || refuse("nonsense", 0, 2));
    let no = weft_cni::error::Error::new(11, "the cluster has no free block").with_details("add a cidr");
    let refused = |mut stream: UnixStream| {
        request(&mut stream);
        say(&mut stream, &Reply::refused(&no));
    };
    with_stand_in(&node, refused, || refuse("the cluster has no free block: add a cidr", 0, 2));
}

/// Point 6: forty pods at once on a block of eight addresses; the daemon needs 50 ms for each further block, and
/// says so meanwhile. All start, none is given twice, none from outside a granted block.
#[test]
fn a_burst_of_pods_waits_for_blocks_and_every_address_is_granted_and_unique() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::dual() {
        let node = lab.node(&case.name());
        let conf = case.cluster_conf();
        let next = Mutex::new(0);
        let free = || {
            with_state(&node, |state, _| {
                let taken = |block: &weft_cni::ip::Subnet| {
                    let name = block.to_string().replace('/', "-");
                    std::fs::read_dir(state.path().join("block").join(name)).map_or(0, Iterator::count)
                };
                state.granted().unwrap().iter().filter(|block| block.is_ipv4() && taken(block) < 8).count()
            })
        };
        let answer = |mut stream: UnixStream| {
            request(&mut stream);
            say(&mut stream, &Reply::wait());
            let mut next = next.lock().unwrap();
            if free() == 0 {
                thread::sleep(Duration::from_millis(50));
                grant(&node, &format!("10.9.{next}.0/29"));
                grant(&node, &format!("fd00:9:{next}::/125"));
                *next += 1;
            }
            drop(next);
            say(&mut stream, &Reply::granted());
        };
        with_state(&node, |state, _| {
            state.expect_families(&[weft_ipam::ask::Family::V4, weft_ipam::ask::Family::V6]).unwrap();
        });
        let pods: Vec<_> = (0..40).map(|n| node.pod(&format!("p{n}"))).collect();
        let mut given: Vec<_> = with_stand_in(&node, answer, || {
            thread::scope(|scope| {
                let adds: Vec<_> =
                    pods.iter().map(|pod| scope.spawn(|| weft(&node).add(pod, &conf).result())).collect();
                adds.into_iter().flat_map(|add| addresses(&add.join().unwrap())).collect()
            })
        });
        let count = given.len();
        assert_eq!(count, 80, "both families each");
        given.sort();
        given.dedup();
        assert_eq!(given.len(), count, "an address was given twice");
        let granted = with_state(&node, |state, _| state.granted().unwrap());
        assert!(given.iter().all(|ip| granted.iter().any(|block| block.contains(*ip))));
    }
}

/// F3, F4: the node's own packets to its pods come from the node address where the node has it, in both modes; where
/// it is reserved and on no link yet, from the gateway. No pod ever gets it.
#[test]
fn the_node_talks_to_its_pods_from_the_node_address() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let conf = case.cluster_conf();
        let blocks = case.pick("10.9.0.0/29", "fd00:9::/125");
        for block in &blocks {
            let block = block.parse().unwrap();
            with_state(&node, |state, deadline| {
                state.grant_with(&block, &[Reservation::node_address(&block)], deadline).unwrap();
            });
        }
        let source = |ip: std::net::IpAddr| -> Value {
            node.json(["ip", "-j", "route", "get", &ip.to_string()])[0]["prefsrc"].clone()
        };
        let early = weft(&node).add(&node.pod("early"), &conf).result();
        for ip in addresses(&early) {
            let gateway = if ip.is_ipv4() { "169.254.1.1" } else { "fe80::1" };
            assert_eq!(source(ip), gateway, "{case:?}: the node address is on no link yet");
        }
        for (address, nodad) in case.pick(("10.9.0.0/32", "noprefixroute"), ("fd00:9::/128", "nodad")) {
            node.run(["ip", "address", "add", address, "dev", "lo", nodad]);
        }
        let expected = |ip: std::net::IpAddr| if ip.is_ipv4() { "10.9.0.0" } else { "fd00:9::" };
        let mut given = addresses(&early);
        for n in 0..6 {
            let pod = node.pod(&format!("p{n}"));
            let result = weft(&node).add(&pod, &conf).result();
            for ip in addresses(&result) {
                assert_eq!(source(ip), expected(ip), "{case:?}");
                assert!(node.ping(ip, 1), "{case:?}: the node reaches {ip}");
                assert!(pod.ping(expected(ip).parse().unwrap(), 1), "{case:?}: the pod reaches its node");
            }
            given.extend(addresses(&result));
        }
        assert!(!given.iter().any(|ip| ip.to_string() == expected(*ip)), "{case:?}: {given:?}");
        let full = weft(&node).add(&node.pod("late"), &conf).error();
        assert_eq!(full.code, 11, "{full:?}");
    }
}

/// §3: a static address in a cluster comes from a block of the node or is refused by its name, daemon or not.
#[test]
fn a_static_address_outside_the_nodes_blocks_is_refused_by_name() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let conf = Case { veth: true, v4: true, v6: false }.cluster_conf();
    grant(&node, "10.9.0.0/26");
    let ask = |ip: &str| with(&conf, &json!({"runtimeConfig": {"ips": [ip]}}));
    let never = |_: UnixStream| panic!("another block would not have it either");
    with_stand_in(&node, never, || {
        let error = weft(&node).add(&node.pod("a"), &ask("10.9.0.64")).error();
        assert_eq!(error.code, 7, "{error:?}");
        assert!(error.msg.contains("10.9.0.64") && error.details.contains("10.9.0.0/26"), "{error:?}");
        weft(&node).add(&node.pod("b"), &ask("10.9.0.63")).result();
    });
}
