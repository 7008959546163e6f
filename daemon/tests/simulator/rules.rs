//! One scenario for each rule of the cluster, named after it. The letters are those of the attacks it answers.

use std::time::Duration;

use weft_cni::ip::Subnet;
use weftd::cluster::{Code, Input, NodeRecord, NodeState, Removal};
use weftd::store::model::TxnFault;
use weftd::store::{Op, Write};

use super::checks::{liveness, members};
use super::node::Disk;
use super::world::World;

fn cluster(names: &[&str]) -> World {
    let mut world = World::new(1);
    for name in names {
        world.add_node(name);
    }
    world.settle(20);
    liveness(&world);
    world
}

fn record(world: &World, name: &str) -> NodeRecord {
    let key = format!("n/{name}");
    let items = world.store.list(&key).items;
    let item = items.iter().find(|item| item.key == key).expect("a record");
    NodeRecord::parse(&key, &item.value).expect("a readable record")
}

fn found(world: &World, index: usize, code: Code) -> Option<String> {
    let finding = world.nodes[index].findings.values().find(|finding| finding.code == code)?;
    Some(format!("{}. {}", finding.sentence, finding.way_out))
}

fn phase(world: &World, index: usize) -> &'static str {
    world.nodes[index].daemon.as_ref().map_or("down", |machine| machine.status().phase)
}

fn partition(world: &mut World, index: usize, cut: bool) {
    let client = world.nodes[index].client;
    world.store.faults(client).partitioned = cut;
}

fn granted(world: &World, index: usize) -> Vec<Subnet> {
    let folders = &world.nodes[index].folders;
    folders.iter().filter(|(_, folder)| folder.granted).map(|(block, _)| *block).collect()
}

#[test]
fn three_nodes_join_with_a_block_and_a_spare_of_each_family_and_reach_each_other() {
    let world = cluster(&["a", "b", "c"]);
    for node in &world.nodes {
        assert_eq!(node.folders.len(), 4, "{:?}", node.folders.keys());
        assert!(node.ready);
        assert_eq!(node.routes.len(), 8);
    }
}

#[test]
fn a_restart_that_changes_nothing_wants_nothing_else() {
    let mut world = cluster(&["a", "b"]);
    let before = world.nodes[0].wanted.clone().unwrap();
    let (stood, routes) = (record(&world, "a"), world.nodes[0].routes.clone());
    world.advance(Duration::from_secs(60));
    world.drain();
    world.crash(0);
    world.start(0);
    let first = world.nodes[0].daemon.as_mut().unwrap();
    let early = std::iter::from_fn(|| first.poll()).find_map(|output| {
        if let weftd::cluster::Output::Wanted { wanted, .. } = output { Some(wanted) } else { None }
    });
    let early = early.expect("wanted from the cached snapshot, before the store is asked");
    assert_eq!((&early.this, &early.peers), (&before.this, &before.peers));
    assert!(!early.may_remove, "a cached snapshot adds, it never removes [D1]");
    world.crash(0);
    world.start(0);
    world.settle(20);
    assert_eq!(*world.nodes[0].wanted.clone().unwrap(), *before);
    let again = record(&world, "a");
    assert_eq!((&again.blocks, &again.instance), (&stood.blocks, &stood.instance));
    assert_ne!(again.session, stood.session, "each start is a session");
    assert_eq!(world.nodes[0].routes, routes);
}

/// What the data plane was ordered since last asked, at each of these steps of a node's first start.
fn orders(world: &mut World, index: usize) -> u64 {
    let counted = &mut world.nodes[index].counted;
    counted.remove("wanted").unwrap_or(0)
}

#[test]
fn the_first_order_waits_for_the_first_block_and_brings_all_peers_with_it() {
    let mut world = cluster(&["a", "b"]);
    world.add_node("c");
    let mut last = 0;
    while orders(&mut world, 2) == 0 {
        last += 1;
        assert!(last < 1_000 && world.nodes[2].daemon.is_some());
        for step in [World::perform, World::serve, World::hear, World::follow] {
            step(&mut world, 2);
            if world.nodes[2].wanted.is_some() {
                break;
            }
        }
    }
    let first = world.nodes[2].wanted.clone().unwrap();
    assert_eq!((first.this.blocks.len(), first.this.node_addresses.len(), first.peers.len()), (2, 2, 2));
    assert!(first.may_remove);
    let address = first.this.node_addresses.clone();
    world.settle(30);
    liveness(&world);
    assert_eq!(world.nodes[2].wanted.as_ref().unwrap().this.node_addresses, address, "for good");
}

/// Whoever gets no block reaches the others all the same, and at once.
#[test]
fn the_first_order_waits_for_no_block_that_will_not_come() {
    // There is none.
    let mut world = World::with_networks(1, &["10.1.0.0/27"]);
    for name in ["a", "b"] {
        world.add_node(name);
        world.settle(20);
    }
    world.add_node("c");
    world.drain();
    assert_eq!(world.nodes[2].routes.len(), 2, "the pool is exhausted");
    assert!(world.nodes[2].wanted.as_ref().unwrap().this.blocks.is_empty());
    // The store goes away between the list and the claim, or takes nothing.
    for silent in [false, true] {
        let mut world = cluster(&["a", "b"]);
        world.add_node("c");
        for _ in 0..6 {
            world.perform(2);
            world.follow(2);
            world.hear(2);
        }
        assert!(world.nodes[2].wanted.is_none(), "it waits");
        if silent {
            world.nodes[2].requests.clear();
        } else {
            partition(&mut world, 2, true);
        }
        world.drain();
        assert_eq!(world.nodes[2].wanted.is_none(), silent, "nobody tells that no answer will come");
        world.advance(Duration::from_secs(5));
        world.drain();
        assert_eq!(world.nodes[2].routes.len(), 8, "silent: {silent}");
    }
}

#[test]
fn an_unknown_outcome_is_read_back_and_leaves_no_orphan() {
    for fault in [TxnFault::AnswerLost, TxnFault::Lost] {
        let mut world = World::new(1);
        world.add_node("a");
        for _ in 0..40 {
            for _ in 0..20 {
                world.perform(0);
                world.hear(0);
                world.follow(0);
            }
            let claim = matches!(world.nodes[0].requests.front(), Some(request) if matches!(&request.op, Op::Txn(txn)
                if txn.writes.iter().any(|write| write.key().starts_with("b/"))));
            if claim {
                world.serve_with(0, Some(fault));
                break;
            }
            world.serve(0);
        }
        assert_eq!(world.store.list("b/").items.is_empty(), fault == TxnFault::Lost);
        assert!(granted(&world, 0).is_empty(), "nothing is granted before it is known to be committed");
        world.settle(30);
        assert_eq!(world.store.list("b/").items.len(), 4);
        liveness(&world);
    }
}

#[test]
fn of_two_nodes_that_race_for_the_last_block_one_wins_and_the_other_says_what_to_do() {
    let mut world = World::with_networks(1, &["10.1.0.0/27"]);
    world.add_node("a");
    world.settle(20);
    assert_eq!(granted(&world, 0).len(), 1, "no spare is claimed when it would be one of the last");
    for name in ["b", "c"] {
        world.add_node(name);
    }
    world.settle(20);
    let with: Vec<usize> = (1..3).filter(|index| !granted(&world, *index).is_empty()).collect();
    assert_eq!(with.len(), 1);
    let without = 3 - with[0];
    let said = found(&world, without, Code::ClusterFull).expect("a finding");
    assert!(said.contains("2 of 2 IPv4 blocks are held") && said.contains("weftd config set"), "{said}");
    world.nodes[without].add_pod(1, world.now);
    world.drain();
    let answer = world.nodes[without].answers.get(&1).expect("an answer").clone().unwrap_err();
    assert!(answer.details.contains("no block is left"), "{answer}");
    // The way out works.
    let removed = world.nodes[with[0]].name.clone();
    world.power_off(with[0]);
    world.nodes[with[0]].destroyed = true;
    world.settle(60);
    world.remove(&removed, Removal { force: false, destroyed: true }).unwrap();
    world.settle(40);
    assert_eq!(granted(&world, without).len(), 1);
}

#[test]
fn a_need_is_answered_when_a_block_is_granted_and_the_surplus_goes_back_after_the_cool_down() {
    let mut world = cluster(&["a", "b"]);
    for pod in 0..40 {
        if !world.nodes[0].add_pod(pod, world.now) {
            world.drain();
            let id = world.nodes[0].next_need - 1;
            assert_eq!(world.nodes[0].answers.get(&id), Some(&Ok(())));
            assert!(world.nodes[0].add_pod(pod, world.now), "what was promised is there");
        }
    }
    world.settle(5);
    assert_eq!(granted(&world, 0).len(), 8, "three blocks are in use, one is spare, of each family");
    for pod in 0..40 {
        world.nodes[0].remove_pod(pod, world.now);
    }
    world.settle(100);
    assert_eq!(granted(&world, 0).len(), 8, "addresses rest first");
    let first = record(&world, "a").blocks[0];
    world.settle(60);
    assert_eq!(granted(&world, 0).len(), 4);
    assert_eq!(
        record(&world, "a").blocks[0],
        first,
        "the first block has the node's address and is never given back"
    );
    liveness(&world);
}

#[test]
fn a_node_with_another_address_keeps_its_blocks_and_publishes_it_once_it_has_held() {
    let mut world = cluster(&["a", "b"]);
    let before = record(&world, "a");
    let addresses = vec!["198.51.100.7/24".parse().unwrap()];
    world.nodes[0].published.clone_from(&addresses);
    world.nodes[0].handle(Input::Published(addresses.clone()), world.now);
    world.settle(25);
    assert_eq!(record(&world, "a").addresses, before.addresses, "DHCP may flap");
    world.settle(10);
    let after = record(&world, "a");
    assert_eq!(
        (&after.addresses, &after.blocks, &after.instance),
        (&addresses, &before.blocks, &before.instance)
    );
    assert_eq!(world.nodes[1].wanted.as_ref().unwrap().peers["a"].published, addresses);
}

#[test]
fn a_reboot_keeps_the_blocks_and_a_wiped_disk_never_inherits_them() {
    let mut world = cluster(&["a", "b"]);
    let before = record(&world, "a");
    world.power_off(0);
    world.nodes[0].power_on(world.now);
    world.start(0);
    world.settle(60);
    assert_eq!(record(&world, "a").blocks, before.blocks);
    world.power_off(0);
    world.nodes[0].disk = Disk::default();
    world.nodes[0].power_on(world.now);
    world.start(0);
    world.settle(60);
    let after = record(&world, "a");
    assert_ne!(after.instance, before.instance);
    assert_eq!(after.epoch, before.epoch + 1);
    assert!(before.blocks.iter().all(|held| !after.holds(&held.cidr)), "{:?}", after.blocks);
    assert!(!world.held_blocks().contains_key(&before.blocks[0].cidr), "they are retired");
}

#[test]
fn a_disk_wiped_under_running_pods_is_proved_by_what_the_boot_knows_or_refused() {
    let mut world = cluster(&["a"]);
    world.nodes[0].add_pod(1, world.now);
    let before = record(&world, "a");
    world.crash(0);
    world.nodes[0].disk = Disk::default();
    world.start(0);
    world.settle(10);
    let after = record(&world, "a");
    assert_eq!((&after.instance, &after.blocks), (&before.instance, &before.blocks));
    world.crash(0);
    world.nodes[0].disk = Disk::default();
    world.nodes[0].run_identity = None;
    world.start(0);
    let refused = world.nodes[0].exited.clone().expect("a refusal");
    assert!(refused.contains("does not start while pods run") && refused.contains("drain"), "{refused}");
}

#[test]
fn a_golden_image_gives_each_machine_an_identity_of_its_own() {
    let mut world = cluster(&["a"]);
    let client = world.store.client();
    let mut copy = super::node::Node::new("b", 5, client);
    copy.disk = world.nodes[0].disk.clone();
    copy.booted_at = world.now;
    world.nodes.push(copy);
    world.start(1);
    world.settle(20);
    assert_ne!(record(&world, "b").instance, record(&world, "a").instance);
    assert!(found(&world, 1, Code::Identity).unwrap().contains("another machine"));
    liveness(&world);
}

#[test]
fn a_clone_is_refused_with_the_others_address_while_the_other_lives() {
    let mut world = cluster(&["a", "b"]);
    let client = world.store.client();
    let mut clone = super::node::Node::new("a", 7, client);
    clone.machine_id.clone_from(&world.nodes[0].machine_id);
    (clone.disk, clone.boots) = (world.nodes[0].disk.clone(), 99);
    clone.booted_at = world.now;
    world.nodes.push(clone);
    world.start(2);
    world.settle(20);
    assert_eq!((phase(&world, 2), granted(&world, 2).len()), ("waiting", 0));
    world.settle(30);
    let sentence = world.nodes[2].exited.clone().expect("it does not run");
    assert!(sentence.contains("another machine runs as node a, at 192.0.2.1"), "{sentence}");
    assert_eq!(phase(&world, 0), "member");
}

#[test]
fn a_machine_whose_name_was_taken_while_it_was_cut_off_gives_no_more_and_names_the_other() {
    let mut world = cluster(&["a", "b"]);
    partition(&mut world, 0, true);
    world.settle(40);
    let client = world.store.client();
    let mut other = super::node::Node::new("a", 7, client);
    other.booted_at = world.now;
    world.nodes.push(other);
    world.start(2);
    world.settle(60);
    assert_eq!(phase(&world, 2), "member");
    partition(&mut world, 0, false);
    world.settle(20);
    assert_eq!((phase(&world, 0), granted(&world, 0).len()), ("superseded", 0));
    assert!(found(&world, 0, Code::Clone).unwrap().contains("192.0.2.8"));
    liveness(&world);
}

#[test]
fn removing_a_live_node_is_refused_without_force_with_its_address() {
    let mut world = cluster(&["a", "b"]);
    let refused = world.remove("a", Removal::default()).unwrap_err();
    assert!(refused.contains("weftd is running at 192.0.2.1") && refused.contains("--force"), "{refused}");
    assert!(world.remove("nobody", Removal::default()).unwrap_err().contains("no node nobody"));
}

#[test]
fn a_removed_node_keeps_its_pods_withdraws_its_routes_and_acknowledges_when_they_are_gone() {
    let mut world = cluster(&["a", "b"]);
    world.nodes[0].add_pod(1, world.now);
    let before = record(&world, "a");
    world.remove("a", Removal { force: true, destroyed: false }).unwrap();
    world.settle(10);
    assert_eq!(phase(&world, 0), "removed");
    assert!(granted(&world, 0).is_empty());
    assert_eq!(world.nodes[0].pods().len(), 1, "the pod keeps running");
    assert!(world.nodes[0].wanted.as_ref().unwrap().this.blocks.is_empty());
    assert!(world.nodes[1].routes.is_empty(), "a tombstone goes at once");
    let said = found(&world, 0, Code::Removed).unwrap();
    assert!(said.contains("was removed") && said.contains("/var/lib/weft"), "{said}");
    let blocks = |world: &World| world.store.list("b/").items.len();
    assert_eq!(blocks(&world), 8, "its blocks are kept from others");
    world.nodes[0].remove_pod(1, world.now);
    world.settle(10);
    let tombstone = record(&world, "a");
    assert_eq!((tombstone.state, tombstone.epoch), (NodeState::Removed, before.epoch + 1));
    assert!(tombstone.removed.unwrap().acknowledged);
    assert_eq!(blocks(&world), 4);
}

#[test]
fn a_removed_node_that_is_cut_off_stops_before_its_blocks_are_given_to_others_also_over_a_reboot() {
    for reboot in [false, true] {
        let mut world = World::with_networks(1, &["10.1.0.0/27"]);
        world.add_node("a");
        world.settle(20);
        world.add_node("b");
        world.settle(20);
        partition(&mut world, 0, true);
        world.settle(60);
        world.remove("a", Removal::default()).unwrap();
        let client = world.store.client();
        world.store.crash(client);
        world.add_node("c");
        world.settle(400);
        assert!(granted(&world, 2).is_empty(), "retired blocks are not given before their time");
        if reboot {
            world.power_off(0);
            world.nodes[0].power_on(world.now);
            world.start(0);
            world.settle(15);
            assert_eq!(granted(&world, 0).len(), 1, "within the time it may boot without the store");
        }
        world.settle(150);
        assert!(granted(&world, 0).is_empty(), "nine tenths of reissue_after are over");
        assert!(found(&world, 0, Code::StaleSnapshot).is_some());
        world.settle(200);
        assert_eq!(granted(&world, 2).len(), 1, "now it is given to another");
    }
}

#[test]
fn an_age_that_cannot_be_told_counts_as_too_old() {
    let mut world = cluster(&["a"]);
    partition(&mut world, 0, true);
    world.power_off(0);
    world.nodes[0].power_on(world.now);
    world.nodes[0].wall_offset = -1_800_000_000;
    world.start(0);
    world.settle(30);
    assert!(granted(&world, 0).is_empty());
    assert!(found(&world, 0, Code::StaleSnapshot).is_some());
}

#[test]
fn a_clock_that_jumps_forward_frees_no_retired_block() {
    let mut world = World::with_networks(1, &["10.1.0.0/27"]);
    for name in ["a", "b"] {
        world.add_node(name);
        world.settle(20);
    }
    world.power_off(0);
    world.settle(40);
    world.remove("a", Removal::default()).unwrap();
    world.add_node("c");
    world.settle(10);
    world.nodes[2].wall_offset = 30 * 24 * 3600;
    world.settle(100);
    assert!(granted(&world, 2).is_empty());
}

#[test]
fn a_key_that_vanished_without_a_tombstone_is_routed_for_ten_minutes_more() {
    let mut world = cluster(&["a", "b"]);
    world.power_off(0);
    world.store.write(vec![Write::Delete { key: "n/a".to_owned() }], world.now);
    world.settle(590);
    assert_eq!(world.nodes[1].routes.len(), 4);
    assert!(found(&world, 1, Code::Vanished).unwrap().contains("the record of a is gone"));
    world.settle(20);
    assert!(world.nodes[1].routes.is_empty());
}

#[test]
fn claims_that_a_restore_lost_are_asserted_again_and_nothing_is_removed_meanwhile() {
    for past in [false, true] {
        let mut world = cluster(&["a", "b"]);
        let backup = world.store.backup();
        for (index, pod) in [(0, 0), (1, 100)] {
            for pod in pod..pod + 40 {
                while !world.nodes[index].add_pod(pod, world.now) {
                    world.drain();
                }
            }
        }
        world.settle(5);
        world.add_node("c");
        world.settle(20);
        liveness(&world);
        let had: Vec<Vec<Subnet>> = (0..3).map(|index| granted(&world, index)).collect();
        let routes = world.nodes[0].routes.clone();
        world.restore(&backup, past);
        world.drain();
        for (index, had) in had.iter().enumerate() {
            assert!(found(&world, index, Code::HistoryRewritten).is_some(), "node {index}");
            assert!(had.iter().all(|block| world.nodes[index].folders.contains_key(block)));
        }
        assert_eq!(world.nodes[0].routes, routes, "nothing is removed");
        world.settle(10);
        for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
            let record = record(&world, name);
            assert!(
                had[index].iter().all(|block| record.holds(block)),
                "within ten seconds of the store's return"
            );
        }
        world.settle(100);
        assert!((0..3).all(|index| found(&world, index, Code::HistoryRewritten).is_none()));
        liveness(&world);
    }
}

#[test]
fn blocks_of_a_lost_history_are_kept_and_named_until_their_node_speaks_or_a_person_also_over_a_restart() {
    let mut world = cluster(&["a", "b"]);
    let backup = world.store.backup();
    for pod in 0..40 {
        while !world.nodes[0].add_pod(pod, world.now) {
            world.drain();
        }
    }
    world.settle(5);
    let blocks = granted(&world, 0);
    let routed =
        |world: &World| blocks.iter().filter(|block| world.nodes[1].routes.contains_key(block)).count();
    assert_eq!((blocks.len(), routed(&world)), (8, 8));
    world.power_off(0);
    world.restore(&backup, false);
    world.settle(120);
    for _ in 0..2 {
        assert_eq!(routed(&world), 8, "the store shows four of them");
        assert!(found(&world, 1, Code::HistoryRewritten).unwrap().contains("weftd repair --accept"));
        world.crash(1);
        world.start(1);
        world.settle(60);
    }
    for pod in 100..400 {
        world.nodes[1].add_pod(pod, world.now);
        world.drain();
    }
    assert!(granted(&world, 1).len() > 16, "it claims what is left");
    assert!(blocks.iter().all(|block| !granted(&world, 1).contains(block)), "and nothing that was another's");
    world.nodes[1].handle(Input::AcceptHistory, world.now);
    world.drain();
    assert_eq!((routed(&world), found(&world, 1, Code::HistoryRewritten)), (4, None));
}

/// What cannot be prevented: a node that never saw the lost claim takes the block before its owner is back.
#[test]
fn a_block_lost_by_a_restore_and_claimed_by_a_newcomer_stops_on_both_and_the_earlier_keeps_the_route() {
    let mut world = World::with_networks(1, &["10.1.0.0/27"]);
    world.add_node("w");
    world.settle(20);
    let backup = world.store.backup();
    world.add_node("z");
    world.settle(20);
    let block = granted(&world, 1)[0];
    world.nodes[1].add_pod_v4(1);
    partition(&mut world, 1, true);
    world.restore(&backup, true);
    world.power_off(0);
    world.add_node("n");
    world.settle(90);
    assert_eq!(granted(&world, 2), [block], "a newcomer cannot know");
    world.nodes[2].add_pod_v4(2);
    partition(&mut world, 1, false);
    world.settle(10);
    assert!(granted(&world, 1).is_empty() && granted(&world, 2).is_empty(), "both stop");
    assert!(found(&world, 1, Code::DoublyOwned).unwrap().contains("z and n both hold"));
    assert!(found(&world, 2, Code::LostBlock).unwrap().contains("z holds"));
    assert_eq!(
        world.nodes[2].routes.get(&block).map(|name| &**name),
        Some("z"),
        "the earlier claim keeps the route"
    );
    world.nodes[2].remove_pod(2, world.now);
    world.settle(10);
    assert_eq!(granted(&world, 1), [block], "the other has let go");
    assert!(found(&world, 1, Code::DoublyOwned).is_none());
}

#[test]
fn garbage_in_the_store_is_named_and_changes_nothing() {
    let mut world = cluster(&["a", "b", "c"]);
    let routes = world.nodes[0].routes.clone();
    for key in ["n/b", "n/x y", "n/zz", "config", "b/10.1.0.0-28", "b/what", "alive/b"] {
        let value = b"{\"format\": 1, \xff garbage".to_vec();
        world.store.write(vec![Write::Put { key: key.to_owned(), value, lease: None }], world.now);
    }
    let newer = br#"{"format":9,"name":"c"}"#.to_vec();
    world.store.write(vec![Write::Put { key: "n/c".to_owned(), value: newer, lease: None }], world.now);
    world.settle(700);
    assert_eq!(world.nodes[0].routes, routes);
    let said: Vec<String> =
        world.nodes[0].findings.values().map(|finding| finding.sentence.clone()).collect();
    for part in ["the value of n/b", "n/c in the store has format 9", "the value of config"] {
        assert!(said.iter().any(|sentence| sentence.contains(part)), "{part}: {said:?}");
    }
    assert_eq!(granted(&world, 0).len(), 4);
}

#[test]
fn a_node_that_disagrees_with_the_cluster_stops_with_every_difference_and_one_without_a_word_obeys() {
    let mut world = cluster(&["a"]);
    world.asked.masquerade = Some(false);
    world.asked.block_size_v4 = Some(26);
    world.add_node("b");
    world.settle(5);
    let sentence = world.nodes[1].exited.clone().expect("it does not run");
    for part in
        ["network.masquerade", "network.block_size_v4", "this node's file says 26, the cluster has 28"]
    {
        assert!(sentence.contains(part), "{sentence}");
    }
    let client = world.store.client();
    let mut silent = super::node::Node::new("c", 8, client);
    (silent.init, silent.booted_at) = (false, world.now);
    world.nodes.push(silent);
    world.start(2);
    world.settle(10);
    assert_eq!(members(&world).len(), 2);
}

#[test]
fn without_init_nobody_makes_a_cluster_and_the_way_out_is_said() {
    let mut world = World::new(1);
    let client = world.store.client();
    let mut node = super::node::Node::new("a", 0, client);
    (node.init, node.booted_at) = (false, world.now);
    world.nodes.push(node);
    world.start(0);
    world.settle(20);
    assert_eq!(world.store.list("").items, []);
    assert!(found(&world, 0, Code::NoConfig).unwrap().contains("weftd config init"));
    world.add_node("b");
    world.settle(20);
    assert_eq!(members(&world).len(), 2, "it goes on by itself");
}

#[test]
fn with_the_store_away_pods_start_as_long_as_addresses_are_free_and_then_it_is_said() {
    let mut world = cluster(&["a"]);
    partition(&mut world, 0, true);
    world.settle(300);
    let started = (0..33).filter(|pod| world.nodes[0].add_pod(*pod, world.now)).count();
    assert_eq!(started, 32);
    world.drain();
    let answer = world.nodes[0].answers.values().next().expect("an answer").clone().unwrap_err();
    assert!(answer.details.contains("the store cannot be reached"), "{answer}");
}

#[test]
fn a_full_store_is_said_and_claims_go_on_when_it_takes_data_again() {
    let mut world = cluster(&["a"]);
    world.store.as_model().expect("the model").set_no_space(true);
    for pod in 0..33 {
        world.nodes[0].add_pod(pod, world.now);
    }
    world.settle(5);
    assert!(found(&world, 0, Code::StoreFull).unwrap().contains("alarm disarm"));
    world.store.as_model().expect("the model").set_no_space(false);
    world.settle(90);
    assert!(found(&world, 0, Code::StoreFull).is_none());
    liveness(&world);
}

#[test]
fn blocks_left_over_from_a_record_deleted_by_hand_come_back_when_they_are_needed() {
    let mut world = World::with_networks(1, &["10.1.0.0/27"]);
    world.add_node("a");
    world.settle(20);
    world.power_off(0);
    world.nodes[0].destroyed = true;
    world.store.write(vec![Write::Delete { key: "n/a".to_owned() }], world.now);
    for name in ["b", "c"] {
        world.add_node(name);
    }
    world.settle(100);
    let served = |world: &World| (1..3).filter(|index| !granted(world, *index).is_empty()).count();
    assert_eq!(served(&world), 1);
    world.settle(800);
    assert_eq!(served(&world), 2);
}

#[test]
fn a_block_that_a_pod_takes_at_the_last_moment_stays() {
    // Also when the store answers before the folder is tried.
    for wait in [2, 5, 11] {
        for served_first in [false, true] {
            a_pod_takes_a_block_on_its_way_back(Duration::from_secs(wait), served_first);
        }
    }
}

fn a_pod_takes_a_block_on_its_way_back(wait: Duration, served_first: bool) {
    let mut world = cluster(&["a", "b"]);
    for pod in 0..20 {
        while !world.nodes[0].add_pod(pod, world.now) {
            world.drain();
        }
    }
    world.settle(5);
    let before = granted(&world, 0);
    for pod in 0..20 {
        world.nodes[0].remove_pod(pod, world.now);
    }
    world.settle(119);
    assert_eq!(granted(&world, 0), before);
    // They have rested, and the node sees it: what it decides now meets the pods.
    world.advance(wait);
    world.drain();
    world.observe(0);
    for (index, folder) in world.nodes[0].folders.values_mut().enumerate() {
        folder.taken.insert(0, 100 + index as u64);
    }
    while world.perform(0) {
        while world.serve(0) {
            world.hear(0);
        }
        if !served_first {
            world.hear(0);
        }
    }
    world.settle(10);
    assert!(before.iter().all(|block| granted(&world, 0).contains(block)));
    liveness(&world);
}
