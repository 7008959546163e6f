//! Weft's packet rules in real kernels' hands: each test in a network namespace of its own, which ends with it.
//!
//! Needs root and the programs `ip` and `nft`. Skips loudly without them; fails instead with NETNS_TESTS=require.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, which may")]

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use weft_netlink::netns::Netns;
use weft_netlink::nft::{self, BaseChain, Batch, Expression, Family, Table};
use weft_netlink::rules::{
    ForwardChain, Interval, Masquerade, Tool, ensure_masquerade, forward_chains, guard_port,
    missing_masquerade, port_is_guarded, remove_masquerade_source, unguard_port,
};
use weft_netlink::{Protocol, Socket};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// What `nft list table inet weft` (1.0.6) says of one range of each family.
const MASQUERADE_LISTING: &str = r#"table inet weft {
	comment "weft rules 1"
	set masq4 {
		type ipv4_addr
		flags interval
		elements = { 10.7.0.0/24, 255.255.255.0/24 }
	}

	set plain4 {
		type ipv4_addr
		flags interval
		elements = { 10.0.0.0/8, 198.51.100.7 }
	}

	set masq6 {
		type ipv6_addr
		flags interval
		elements = { fd00:7::2-fd00:7::ff }
	}

	set plain6 {
		type ipv6_addr
		flags interval
		elements = { fd00::/16 }
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr @masq4 ip daddr != @plain4 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip6 saddr @masq6 ip6 daddr != @plain6 ip6 daddr != ff00::/8 masquerade fully-random
	}
}
"#;

/// What `nft list table bridge weft` says of one guarded port.
const GUARD_LISTING: &str = r#"table bridge weft {
	comment "weft rules 1"
	set guarded {
		type iface_index
		elements = { "lo" }
	}

	set mac {
		type iface_index . ether_addr
		elements = { "lo" . 02:00:00:00:00:01 }
	}

	chain prerouting {
		type filter hook prerouting priority dstnat; policy accept;
		iif @guarded iif . ether saddr != @mac drop
	}
}
"#;

#[test]
fn the_tables_are_listed_by_nft_as_they_are_meant() {
    in_fresh_namespace(|| {
        let socket = &mut netfilter();
        let wanted = [
            entry("10.7.0.0", "10.7.0.255", "10.0.0.0", "10.255.255.255"),
            entry("255.255.255.0", "255.255.255.255", "198.51.100.7", "198.51.100.7"),
            entry("fd00:7::2", "fd00:7::ff", "fd00::", "fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ];
        assert!(ensure_masquerade(socket, &wanted).unwrap());
        assert_eq!(run("nft list table inet weft"), MASQUERADE_LISTING);
        guard_port(socket, 1, MAC).unwrap();
        assert_eq!(run("nft list table bridge weft"), GUARD_LISTING);
        let json = run("nft -j list ruleset");
        for part in [
            r#""prio": 100"#,
            r#"{"prefix": {"addr": "10.7.0.0", "len": 24}}"#,
            r#"["iface_index", "ether_addr"]"#,
        ] {
            assert!(json.contains(part), "no {part} in {json}");
        }
        // nft itself accepts the listing and can go on from it.
        run("nft list ruleset > /dev/null; nft add element inet weft masq4 { 10.8.0.0/24 }");
        assert!(
            missing_masquerade(socket, &[entry("10.8.0.0", "10.8.0.255", "10.1.0.0", "10.2.0.0")])
                .unwrap()
                .is_empty()
        );
    });
}

#[test]
fn nothing_is_sent_when_everything_is_there() {
    in_fresh_namespace(|| {
        let socket = &mut netfilter();
        let wanted = [entry("10.7.0.0", "10.7.0.255", "10.0.0.0", "10.255.255.255")];
        assert!(!ensure_masquerade(socket, &[]).unwrap());
        assert_eq!(missing_masquerade(socket, &wanted).unwrap(), wanted);
        assert!(ensure_masquerade(socket, &wanted).unwrap());
        let generation = nft::generation(socket).unwrap();
        assert!(!ensure_masquerade(socket, &wanted).unwrap());
        assert_eq!(missing_masquerade(socket, &wanted).unwrap(), []);
        let inside = entry("10.7.0.9", "10.7.0.9", "10.7.0.0", "10.7.0.255");
        assert!(!ensure_masquerade(socket, &[inside]).unwrap());
        assert_eq!(nft::generation(socket).unwrap(), generation);
    });
}

#[test]
fn overlaps_become_their_union_and_foreign_elements_stay() {
    in_fresh_namespace(|| {
        let socket = &mut netfilter();
        for (first, last) in [("10.7.0.1", "10.7.0.1"), ("10.7.0.2", "10.7.0.2"), ("10.7.0.200", "10.7.1.9")]
        {
            ensure_masquerade(socket, &[entry(first, last, "10.0.0.0", "10.0.0.255")]).unwrap();
        }
        run("nft add element inet weft masq4 { 10.9.0.0/24, 10.7.1.10-10.7.1.20 }");
        ensure_masquerade(socket, &[entry("10.7.0.2", "10.7.0.255", "10.0.0.128", "10.0.1.9")]).unwrap();
        let listing = run("nft list set inet weft masq4");
        assert!(listing.contains("10.7.0.1"), "{listing}");
        let gone = interval("10.7.0.2", "10.7.1.9");
        remove_masquerade_source(socket, interval("10.7.0.2", "10.7.0.2")).unwrap();
        assert_eq!(run("nft list set inet weft masq4"), listing);
        remove_masquerade_source(socket, gone).unwrap();
        remove_masquerade_source(socket, gone).unwrap();
        assert_eq!(elements("masq4"), "10.7.0.1, 10.7.1.10-10.7.1.20, 10.9.0.0/24");
        assert_eq!(elements("plain4"), "10.0.0.0-10.0.1.9");
    });
}

#[test]
fn a_single_address_is_removed_and_its_neighbours_stay() {
    in_fresh_namespace(|| {
        let socket = &mut netfilter();
        let single = |address| entry(address, address, "fd00::", "fd00::ff");
        remove_masquerade_source(socket, interval("fd00::1", "fd00::1")).unwrap();
        ensure_masquerade(socket, &["fd00::1", "fd00::2", "fd00::3"].map(single)).unwrap();
        remove_masquerade_source(socket, interval("fd00::2", "fd00::2")).unwrap();
        assert_eq!(elements("masq6"), "fd00::1, fd00::3");
        assert_eq!(elements("masq4"), "");
    });
}

#[test]
fn many_creators_at_once_give_one_set_of_rules_and_all_intervals() {
    in_fresh_namespace(|| {
        for _ in 0..5 {
            run("nft flush ruleset");
            race(16, |racer, socket| {
                let (first, last) = (format!("10.{racer}.0.0"), format!("10.{racer}.0.255"));
                let own = entry(&first, &last, "10.0.0.0", "10.255.255.255");
                assert!(ensure_masquerade(socket, &[own]).unwrap());
                guard_port(socket, 100 + racer, MAC).unwrap();
            });
            all_racers_left_one_set_of_rules();
        }
    });
}

fn all_racers_left_one_set_of_rules() {
    let listing = run("nft list ruleset");
    assert_eq!(listing.matches("masquerade fully-random").count(), 2, "{listing}");
    assert_eq!(listing.matches(" drop").count(), 1, "{listing}");
    let all: Vec<_> = (0..16).map(|racer| format!("10.{racer}.0.0/24")).collect();
    assert_eq!(elements("masq4"), all.join(", "));
    assert_eq!(elements("plain4"), "10.0.0.0/8");
    for racer in 0..16 {
        assert!(port_is_guarded(&mut netfilter(), 100 + racer, MAC).unwrap());
    }
}

#[test]
fn racing_overlaps_lose_nothing() {
    in_fresh_namespace(|| {
        race(24, |racer, socket| {
            let (first, last) = (format!("10.7.{racer}.0"), format!("10.7.{}.9", racer + 1));
            ensure_masquerade(socket, &[entry(&first, &last, "10.0.0.0", "10.0.0.1")]).unwrap();
        });
        assert_eq!(elements("masq4"), "10.7.0.0-10.7.24.9");
    });
}

#[test]
fn a_writer_that_never_rests_does_not_starve_us() {
    in_fresh_namespace(|| {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let busy = thread::spawn(move || {
            let socket = &mut netfilter();
            while !stopped.load(Ordering::Relaxed) {
                let mut batch = Batch::new();
                batch.extend([Table { family: Family::Inet, name: "busy" }.create("busy", 0)]);
                batch.commit(socket, None).unwrap();
            }
        });
        for n in 0..20 {
            let address = format!("10.7.0.{n}");
            let own = entry(&address, &address, "10.0.0.0", "10.255.255.255");
            assert!(ensure_masquerade(&mut netfilter(), &[own]).unwrap());
            guard_port(&mut netfilter(), n, MAC).unwrap();
            remove_masquerade_source(&mut netfilter(), own.sources).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        busy.join().unwrap();
        assert_eq!(elements("masq4"), "");
    });
}

#[test]
fn a_foreign_flush_is_healed() {
    in_fresh_namespace(|| {
        let socket = &mut netfilter();
        let wanted = [entry("10.7.0.0", "10.7.0.255", "10.0.0.0", "10.255.255.255")];
        for damage in [
            "nft flush ruleset",
            "nft flush table inet weft; nft flush table bridge weft",
            "nft delete chain inet weft postrouting; nft delete chain bridge weft prerouting",
            "nft flush table inet weft; nft delete set inet weft plain6; nft flush set bridge weft mac",
            "nft add rule inet weft postrouting accept; nft add rule bridge weft prerouting accept",
        ] {
            ensure_masquerade(socket, &wanted).unwrap();
            guard_port(socket, 7, MAC).unwrap();
            let healthy = run("nft list ruleset");
            run(damage);
            assert_eq!(missing_masquerade(socket, &wanted).unwrap(), wanted, "{damage}");
            assert!(!port_is_guarded(socket, 7, MAC).unwrap(), "{damage}");
            assert!(ensure_masquerade(socket, &wanted).unwrap(), "{damage}");
            guard_port(socket, 7, MAC).unwrap();
            let mut healed: Vec<_> = run("nft list ruleset").lines().map(str::to_owned).collect();
            let mut healthy: Vec<_> = healthy.lines().map(str::to_owned).collect();
            healed.sort();
            healthy.sort();
            assert_eq!(healed, healthy, "{damage}");
        }
    });
}

#[test]
fn a_stale_generation_refuses_the_whole_batch() {
    in_fresh_namespace(|| {
        let socket = &mut netfilter();
        let table = Table { family: Family::Inet, name: "weft" };
        let batch = || {
            let mut batch = Batch::new();
            batch.extend([table.create("mine", 0)]);
            batch
        };
        let stale = nft::generation(socket).unwrap();
        run("nft add table ip other");
        let refused = batch().commit(socket, Some(stale)).unwrap_err();
        assert!(refused.is(libc::ERESTART), "{refused}");
        assert!(!table.exists(socket).unwrap());
        // The socket is in step afterwards.
        let current = nft::generation(socket).unwrap();
        assert_ne!(current, stale);
        batch().commit(socket, Some(current)).unwrap();
        assert!(table.exists(socket).unwrap());
    });
}

#[test]
fn the_second_creator_is_refused_whole() {
    in_fresh_namespace(|| {
        let socket = &mut netfilter();
        let table = Table { family: Family::Inet, name: "weft" };
        let chain = BaseChain { name: "forward", kind: "filter", hook: 2, priority: 0 };
        let mut create = || {
            let mut batch = Batch::new();
            batch.extend([table.create("mine", 0x200 /* NLM_F_EXCL */), table.create_chain(&chain)]);
            batch.extend([table.add_rule(chain.name, [Expression::drop()])]);
            batch.commit(socket, None)
        };
        create().unwrap();
        let refused = create().unwrap_err();
        assert_eq!((refused.errno, refused.index), (libc::EEXIST, 1));
        assert_eq!(table.count_rules(socket, chain.name).unwrap(), 1);
    });
}

#[test]
fn a_refusal_names_the_message_and_undoes_the_others() {
    in_fresh_namespace(|| {
        let socket = &mut netfilter();
        let table = Table { family: Family::Inet, name: "weft" };
        let mut batch = Batch::new();
        batch.extend([table.create("mine", 0), table.flush_chain("absent")]);
        let refused = batch.commit(socket, None).unwrap_err();
        assert_eq!((refused.errno, refused.index), (libc::ENOENT, 2));
        assert!(refused.to_string().contains("nftables message 2, delete rules"), "{refused}");
        assert!(!table.exists(socket).unwrap());
    });
}

#[test]
fn thousands_of_intervals_fit() {
    in_fresh_namespace(|| {
        let socket = &mut netfilter();
        let wanted: Vec<_> = (0..1500u16)
            .map(|n| (format!("fd00:{n:x}::1"), format!("fd00:{n:x}::9")))
            .map(|(first, last)| entry(&first, &last, "fd00::", "fd00::ff"))
            .collect();
        assert!(ensure_masquerade(socket, &wanted).unwrap());
        assert!(!ensure_masquerade(socket, &wanted).unwrap());
        let whole = entry("fd00::", "fd00:ffff::", "fd00::", "fd00::ff");
        assert!(ensure_masquerade(socket, &[whole]).unwrap());
        assert_eq!(elements("masq6"), "fd00::-fd00:ffff::");
    });
}

fn closed(socket: &mut Socket) -> Vec<String> {
    let mut closed: Vec<String> = forward_chains(socket)
        .unwrap()
        .iter()
        .filter(|chain| chain.is_closed())
        .map(ForwardChain::describe)
        .collect();
    closed.sort();
    closed
}

#[test]
fn a_foreign_policy_of_drop_is_named() {
    in_fresh_namespace(|| {
        let socket = &mut netfilter();
        assert!(closed(socket).is_empty());
        for (family, table, name, hook, policy) in [
            ("ip", "filter", "FORWARD", "forward", "drop"),
            ("inet", "fw", "routed", "forward", "drop"),
            ("inet", "fw", "local", "input", "drop"),
            ("ip6", "ok", "routed", "forward", "accept"),
            ("bridge", "br", "routed", "forward", "drop"),
        ] {
            run(&format!("nft add table {family} {table}; nft add chain {family} {table} plain
                 nft 'add chain {family} {table} {name} {{ type filter hook {hook} priority 0; policy {policy}; }}'"));
        }
        assert_eq!(closed(socket), ["inet fw routed", "ip filter FORWARD"]);
        // Whoever opens it for the pods says so in a comment, wherever in the table.
        run("nft add rule inet fw plain ip saddr 10.7.0.0/16 accept comment '\"pods of weft\"'");
        assert_eq!(closed(socket), ["ip filter FORWARD"]);
    });
}

/// The kernel itself is asked, without the program; and a table that is not there is not made by asking.
#[test]
fn a_legacy_policy_of_drop_is_named_and_rules_with_wefts_comment_are_counted() {
    if !has("iptables-legacy") || !has("ip6tables-legacy") {
        return;
    }
    in_fresh_namespace(|| {
        let socket = &mut netfilter();
        assert!(forward_chains(socket).unwrap().is_empty());
        let names = fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap();
        assert_eq!(names, "", "asking made a table");
        let legacy = |command: &str| {
            for program in ["iptables-legacy", "ip6tables-legacy"] {
                run(&format!("{program} -w 10 {command}"));
            }
        };
        legacy("-N OTHER");
        legacy("-A FORWARD -i eth7 -j OTHER");
        assert!(closed(socket).is_empty(), "the policy is ACCEPT");
        legacy("-P FORWARD DROP");
        legacy("-P INPUT ACCEPT");
        assert_eq!(
            closed(socket),
            ["ip filter FORWARD (legacy iptables)", "ip6 filter FORWARD (legacy iptables)"]
        );
        legacy("-I FORWARD -i cbr0 -m comment --comment weft-pod-network -j ACCEPT");
        legacy("-I FORWARD -o cbr0 -m comment --comment weft-pod-network -j ACCEPT");
        legacy("-I OTHER -o cbr0 -m comment --comment weft-pod-network -j ACCEPT");
        let found = forward_chains(socket).unwrap();
        let seen: Vec<_> = found.iter().map(|chain| (chain.family, chain.tool, chain.tagged)).collect();
        assert_eq!(seen, [("ip", Tool::IptablesLegacy, 2), ("ip6", Tool::IptablesLegacy, 2)]);
        assert!(closed(socket).is_empty());
        legacy("-P FORWARD ACCEPT");
        assert!(forward_chains(socket).unwrap().iter().all(|chain| !chain.drops && chain.tagged == 2));
    });
}

#[test]
fn rules_with_wefts_comment_are_counted_in_iptables_nft_chains() {
    if !has("iptables-nft") {
        return;
    }
    in_fresh_namespace(|| {
        let socket = &mut netfilter();
        run("iptables-nft -P FORWARD DROP");
        run("iptables-nft -N OTHER; iptables-nft -A FORWARD -j OTHER");
        run("iptables-nft -I FORWARD -s 10.7.0.0/16 -m comment --comment weft-pod-network -j ACCEPT");
        run("iptables-nft -I OTHER -s 10.7.0.0/16 -m comment --comment weft-pod-network -j ACCEPT");
        let found = forward_chains(socket).unwrap();
        let seen: Vec<_> = found.iter().map(|chain| (chain.tool, chain.drops, chain.tagged)).collect();
        assert_eq!(seen, [(Tool::IptablesNft, true, 1)]);
    });
}

/// Says loudly what is not there.
fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        println!("SKIPPED: there is no {program}");
    }
    there
}

#[test]
fn packets_leave_under_the_nodes_address_unless_they_go_to_plain_destinations() {
    in_fresh_namespace(|| {
        let home = Netns::own().unwrap();
        let (pod, outside) = (new_namespace(), new_namespace());
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        wire(&home, &pod, "p", ["10.7.0.1/24", "fd00:7::1/64"], ["10.7.0.2/24", "fd00:7::2/64"]);
        wire(&home, &outside, "o", ["192.0.2.1/24", "fd00:2::1/64"], ["192.0.2.2/24", "fd00:2::2/64"]);
        run("ip route add 198.51.100.0/24 via 192.0.2.2; ip route add fd00:51::/64 via fd00:2::2");
        pod.run_from(&home, || run("ip route add default via 10.7.0.1; ip route add default via fd00:7::1"))
            .unwrap();
        outside
            .run_from(&home, || {
                run(
                    "ip link set lo up; ip addr add 198.51.100.1/32 dev lo; ip addr add fd00:51::1/128 dev lo
                     ip route add default via 192.0.2.1; ip route add default via fd00:2::1",
                );
            })
            .unwrap();
        let seen_by = |server: &str| {
            let server: IpAddr = server.parse().unwrap();
            let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let receiver = outside.run_from(&home, || UdpSocket::bind((server, 0)).unwrap()).unwrap();
            let sender = pod.run_from(&home, || UdpSocket::bind(any).unwrap()).unwrap();
            source_of_packet(&sender, &receiver).unwrap().ip().to_string()
        };
        assert_eq!(seen_by("192.0.2.2"), "10.7.0.2");
        let wanted = [
            entry("10.7.0.0", "10.7.0.255", "198.51.100.0", "198.51.100.255"),
            entry("fd00:7::", "fd00:7::ffff", "fd00:51::", "fd00:51::ffff"),
        ];
        ensure_masquerade(&mut netfilter(), &wanted).unwrap();
        assert_eq!(seen_by("192.0.2.2"), "192.0.2.1");
        assert_eq!(seen_by("fd00:2::2"), "fd00:2::1");
        assert_eq!(seen_by("198.51.100.1"), "10.7.0.2");
        assert_eq!(seen_by("fd00:51::1"), "fd00:7::2");
        remove_masquerade_source(&mut netfilter(), wanted[0].sources).unwrap();
        assert_eq!(seen_by("192.0.2.2"), "10.7.0.2");
        assert_eq!(seen_by("fd00:2::2"), "fd00:2::1");

        // Traffic sees no gap while intervals are replaced by larger ones.
        ensure_masquerade(&mut netfilter(), &wanted).unwrap();
        let growing = thread::spawn(|| {
            let socket = &mut netfilter();
            for n in 0..200 {
                let grown =
                    entry("10.7.0.0", &format!("10.7.1.{n}"), "198.51.100.0", &format!("198.51.101.{n}"));
                assert!(ensure_masquerade(socket, &[grown]).unwrap());
                thread::sleep(Duration::from_millis(1));
            }
        });
        while !growing.is_finished() {
            assert_eq!(seen_by("192.0.2.2"), "192.0.2.1");
            assert_eq!(seen_by("198.51.100.1"), "10.7.0.2");
        }
        growing.join().unwrap();
    });
}

#[test]
fn a_guarded_port_passes_its_own_mac_only() {
    in_fresh_namespace(|| {
        let home = Netns::own().unwrap();
        let (pod, peer) = (new_namespace(), new_namespace());
        run("ip link add br0 type bridge; ip link set br0 up");
        wire(&home, &pod, "p", [], ["10.9.0.1/24"]);
        wire(&home, &peer, "q", [], ["10.9.0.2/24"]);
        run("ip link set p master br0; ip link set q master br0");
        let ifindex: u32 = run("ip -o link show p").split(':').next().unwrap().parse().unwrap();
        let peer_mac = peer
            .run_from(&home, || run("ip -o link show eth0 | sed 's/.*ether //; s/ .*//' | tr -d '\\n'"))
            .unwrap();
        let receiver = peer.run_from(&home, || UdpSocket::bind("10.9.0.2:0").unwrap()).unwrap();
        let passes_with = |mac: &str| {
            let sender = pod
                .run_from(&home, || {
                    run(&format!(
                        "ip link set eth0 address {mac}
                         ip neigh replace 10.9.0.2 lladdr {peer_mac} dev eth0 nud permanent"
                    ));
                    UdpSocket::bind("10.9.0.1:0").unwrap()
                })
                .unwrap();
            source_of_packet(&sender, &receiver).is_ok()
        };
        let (own, spoofed) = ("02:00:00:00:00:01", "02:00:00:00:00:66");
        let socket = &mut netfilter();
        unguard_port(socket, ifindex, MAC).unwrap();
        assert!(passes_with(spoofed));
        guard_port(socket, ifindex, MAC).unwrap();
        guard_port(socket, ifindex, MAC).unwrap();
        assert!(passes_with(own));
        assert!(!passes_with(spoofed));
        assert!(passes_with(own));
        assert!(port_is_guarded(socket, ifindex, MAC).unwrap());
        assert!(!port_is_guarded(socket, ifindex, [9; 6]).unwrap());
        run("nft flush set bridge weft mac");
        unguard_port(socket, ifindex, MAC).unwrap();
        unguard_port(socket, ifindex, MAC).unwrap();
        assert!(!port_is_guarded(socket, ifindex, MAC).unwrap());
        assert!(passes_with(spoofed));
    });
}

/// Runs `work` in so many threads, which start at one moment with their sockets open.
fn race(racers: u32, work: impl Fn(u32, &mut Socket) + Sync) {
    let start = Barrier::new(racers as usize);
    thread::scope(|scope| {
        for racer in 0..racers {
            let (start, work) = (&start, &work);
            scope.spawn(move || {
                let mut socket = netfilter();
                start.wait();
                work(racer, &mut socket);
            });
        }
    });
}

/// Sends until something arrives (the links need a moment to come up) and says whom it came from.
fn source_of_packet(sender: &UdpSocket, receiver: &UdpSocket) -> io::Result<SocketAddr> {
    receiver.set_read_timeout(Some(Duration::from_millis(40)))?;
    let mut outcome = Err(io::ErrorKind::TimedOut.into());
    for _ in 0..15 {
        let _unreachable_yet = sender.send_to(b"weft", receiver.local_addr()?);
        outcome = receiver.recv_from(&mut [0; 8]).map(|(_, source)| source);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// A veth pair: `name` here, `eth0` in `other`.
fn wire<const H: usize, const O: usize>(
    home: &Netns,
    other: &Netns,
    name: &str,
    here: [&str; H],
    there: [&str; O],
) {
    let path = format!("/proc/{}/fd/{}", std::process::id(), other.as_fd().as_raw_fd());
    run(&format!("ip link add {name} type veth peer name eth0 netns {path}"));
    let configure = |device: &str, addresses: &[&str]| {
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            run(&format!("ip addr add {address} dev {device} {nodad}"));
        }
        run(&format!("ip link set {device} up"));
    };
    configure(name, &here);
    other.run_from(home, || configure("eth0", &there)).unwrap();
}

/// A namespace that lives as long as the handle.
fn new_namespace() -> Netns {
    let born = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Netns::own().unwrap()
    });
    born.join().unwrap()
}

/// Runs `test` on a thread in a network namespace of its own.
fn in_fresh_namespace(test: impl FnOnce() + Send + 'static) {
    let missing = ["ip -V", "nft --version"].iter().find(|probe| {
        Command::new("sh").args(["-c", probe]).output().map_or(true, |output| !output.status.success())
    });
    let namespace = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join().unwrap();
    if let Some(reason) = missing
        .map(|probe| format!("`{probe}` fails"))
        .or(namespace.err().map(|errno| format!("no new network namespace: {errno}")))
    {
        assert!(std::env::var("NETNS_TESTS").as_deref() != Ok("require"), "{reason}");
        println!("SKIPPED: {reason}");
        return;
    }
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a shell script in the thread's namespace and returns what it printed.
fn run(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The elements of a set of `inet weft` in one line, as `nft` lists them.
fn elements(set: &str) -> String {
    let listing = run(&format!("nft list set inet weft {set}"));
    let list = listing.split_once("elements = {").map_or("", |(_, rest)| rest.split('}').next().unwrap());
    list.split(',').map(str::trim).collect::<Vec<_>>().join(", ")
}

fn netfilter() -> Socket {
    Socket::open(Protocol::Netfilter).unwrap()
}

fn interval(first: &str, last: &str) -> Interval {
    Interval::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
}

fn entry(first: &str, last: &str, plain_first: &str, plain_last: &str) -> Masquerade {
    Masquerade { sources: interval(first, last), plain: Some(interval(plain_first, plain_last)) }
}
