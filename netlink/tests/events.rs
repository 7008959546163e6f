//! Event streams in a real kernel's hands: what passes their filters, who is named, and what a flood does.
//!
//! Needs root. Skips loudly without; fails instead with NETNS_TESTS=require.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, which may")]

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use weft_netlink::link::{self, Mac, NewBridge, Vxlan};
use weft_netlink::neigh::Permanent;
use weft_netlink::route::{self, Route};
use weft_netlink::{Drained, EventStream, Protocol, Request, Socket, fdb, neigh, nft};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn in_fresh_namespace(test: impl FnOnce() + Send) {
    let outcome = thread::scope(|scope| {
        let isolated = scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                assert!(std::env::var_os("NETNS_TESTS").is_none(), "no new network namespace: {error}");
                return println!("SKIPPED: no new network namespace: {error}");
            }
            test();
        });
        isolated.join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A link that is up, by index.
fn bridge(socket: &mut Socket, name: &str) -> u32 {
    let new = NewBridge { name, mac: MAC, mtu: None, vlan_filtering: false, nf_call: false };
    socket.execute(&[link::create_bridge(&new), link::up_by_name(name)]).unwrap();
    link::by_name(socket, name).unwrap().unwrap().index
}

fn vxlan(socket: &mut Socket, name: &str, vni: u32) -> u32 {
    let settings = Vxlan { vni, port: 4789, local: None, learning: false };
    socket.execute(&[link::create_vxlan(name, MAC, 1400, &settings), link::up_by_name(name)]).unwrap();
    let made = link::by_name(socket, name).unwrap().unwrap();
    assert_eq!((made.mac, made.mtu, made.vxlan), (Some(MAC), 1400, Some(settings)));
    made.index
}

fn routes_heard(stream: &mut EventStream) -> Vec<(u8, u8, bool, u32)> {
    let mut heard = Vec::new();
    let drained = stream.drain(|event| {
        if let Some((routes, present)) = route::parse_event(event.kind, event.body) {
            let of = |route: &Route| (route.protocol, route.destination.1, present, event.port_id);
            heard.extend(routes.iter().map(of));
        }
    });
    assert_eq!(drained.unwrap(), Drained::Complete);
    heard
}

#[test]
fn only_own_and_default_routes_are_heard_of_with_the_one_who_did_it() {
    in_fresh_namespace(|| {
        let socket = &mut Socket::route().unwrap();
        let link = bridge(socket, "br0");
        let mut stream = EventStream::route().unwrap();
        let own = Route::on_link(ip("10.1.0.0"), 16, link);
        let foreign = Route { protocol: 4, ..Route::on_link(ip("10.2.0.0"), 16, link) };
        let default = Route { protocol: 4, ..Route::on_link(ip("0.0.0.0"), 0, link) };
        let refusing = Route::unreachable(ip("fd00::"), 16, 77);
        let all = [&own, &foreign, &default, &refusing].map(route::add);
        socket.execute(&all).unwrap();
        socket.execute(&[route::delete(&own)]).unwrap();
        let port = socket.port_id().unwrap();
        let expected =
            [(87, 16, true, port), (4, 0, true, port), (87, 16, true, port), (87, 16, false, port)];
        assert_eq!(routes_heard(&mut stream), expected);
        assert_eq!(route::own(socket, false).unwrap().len(), 1);
        assert!(route::all(socket, false).unwrap().iter().all(|route| !route.unreachable));
        assert_eq!(route::defaults(socket, true).unwrap().len(), 1);
    });
}

#[test]
fn neighbours_and_forwarding_entries_are_heard_of_the_links_that_are_followed() {
    in_fresh_namespace(|| {
        let socket = &mut Socket::route().unwrap();
        let (ours, other) = (vxlan(socket, "vx1", 1), vxlan(socket, "vx2", 2));
        let mut stream = EventStream::route().unwrap();
        stream.follow_neighbours([ours, 0]).unwrap();
        let entry = |link| fdb::Entry { link, mac: MAC, remote: ip("192.0.2.9") };
        let neighbour = |link| Permanent { link, ip: ip("10.1.0.9"), mac: MAC };
        for link in [ours, other] {
            socket
                .execute(&[neigh::replace_permanent(&neighbour(link)), fdb::replace(&entry(link))])
                .unwrap();
        }
        let moved = fdb::Entry { remote: ip("192.0.2.10"), ..entry(ours) };
        socket
            .execute(&[fdb::replace(&moved), fdb::delete(&moved), neigh::delete(ours, ip("10.1.0.9"))])
            .unwrap();
        let (mut entries, mut neighbours) = (Vec::new(), Vec::new());
        stream
            .drain(|event| {
                entries.extend(fdb::parse_event(event.kind, event.body));
                neighbours.extend(neigh::parse_event(event.kind, event.body));
            })
            .unwrap();
        assert_eq!(entries, [(entry(ours), true), (moved, true), (moved, false)]);
        assert_eq!(neighbours.first(), Some(&neigh::Change::Permanent(neighbour(ours))));
        assert_eq!(neighbours.last(), Some(&neigh::Change::Gone(ours, ip("10.1.0.9"))));
        assert_eq!(fdb::of_link(socket, other).unwrap(), [entry(other)]);
        assert_eq!(fdb::of_link(socket, ours).unwrap(), []);
        assert_eq!(neigh::permanent_of_link(socket, other).unwrap(), [neighbour(other)]);
        let flood = |remote| fdb::Entry { link: ours, mac: Mac([0; 6]), remote: ip(remote) };
        socket.execute(&[fdb::append(&flood("192.0.2.1")), fdb::append(&flood("192.0.2.2"))]).unwrap();
        assert_eq!(fdb::of_link(socket, ours).unwrap().len(), 2);
    });
}

#[test]
fn each_request_of_a_batch_has_its_own_outcome() {
    in_fresh_namespace(|| {
        let socket = &mut Socket::route().unwrap();
        let link = bridge(socket, "br0");
        let good = Route::on_link(ip("10.1.0.0"), 16, link);
        let bad = Route::on_link(ip("10.2.0.0"), 16, link + 77);
        let outcomes = socket.execute_each(&[&good, &bad, &good].map(route::add)).unwrap();
        let errors: Vec<_> =
            outcomes.iter().map(|outcome| outcome.as_ref().map_err(|error| error.errno)).collect();
        assert_eq!(errors, [Ok(&()), Err(libc::ENODEV), Err(libc::EEXIST)]);
        assert!(socket.execute_each(&[]).unwrap().is_empty());
    });
}

/// Whoever has other things to do reads some and comes back for the rest.
#[test]
fn not_more_is_read_than_was_asked_for() {
    in_fresh_namespace(|| {
        let socket = &mut Socket::route().unwrap();
        let link = bridge(socket, "br0");
        let mut stream = EventStream::route().unwrap();
        let one = Route::on_link(ip("10.1.0.0"), 16, link);
        socket.execute(&[route::add(&one), route::delete(&one), route::add(&one)]).unwrap();
        let mut heard = 0;
        assert_eq!(stream.drain_some(2, |_| heard += 1).unwrap(), Drained::More);
        assert_eq!(heard, 2);
        assert_eq!(routes_heard(&mut stream).len(), 1);
    });
}

/// What nobody reads is lost at some point, and that is told; what comes later is heard again.
#[test]
fn a_flood_is_told_as_lost_and_the_stream_goes_on() {
    in_fresh_namespace(|| {
        let socket = &mut Socket::route().unwrap();
        let link = bridge(socket, "br0");
        let mut stream = EventStream::route().unwrap();
        let one = Route::on_link(ip("10.1.0.0"), 16, link);
        let both: Vec<Request> =
            [route::add(&one), route::delete(&one)].into_iter().cycle().take(500).collect();
        for _ in 0..200 {
            socket.execute(&both).unwrap();
        }
        assert_eq!(stream.drain(|_| ()).unwrap(), Drained::Lost);
        socket.execute(&[route::add(&one)]).unwrap();
        assert_eq!(routes_heard(&mut stream).len(), 1);
        assert!(stream.as_fd().try_clone_to_owned().is_ok());
    });
}

#[test]
fn each_transaction_is_heard_of_with_its_thread() {
    in_fresh_namespace(|| {
        let mut stream = EventStream::nftables().unwrap();
        let socket = &mut Socket::open(Protocol::Netfilter).unwrap();
        let table = nft::Table { family: nft::Family::Inet, name: "t" };
        for request in [table.create("a test", 0), table.delete()] {
            let mut batch = nft::Batch::new();
            batch.extend([request]);
            batch.commit(socket, None).unwrap();
        }
        let mut commits = Vec::new();
        stream.drain(|event| commits.extend(nft::parse_event(event.kind, event.body))).unwrap();
        let own = std::fs::read_link("/proc/thread-self").unwrap();
        let own: u32 = own.file_name().unwrap().to_str().unwrap().parse().unwrap();
        assert_eq!(commits.iter().map(|commit| commit.process).collect::<Vec<_>>(), [own, own]);
        assert_eq!(nft::generation(socket).unwrap(), commits.last().unwrap().generation);
    });
}
