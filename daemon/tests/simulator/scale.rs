//! What an event costs, counted, and what 5,000 nodes cost one.

use std::time::Duration;

use weft_cni::ip::{IfAddr, Subnet};
use weft_overlay::wanted::Wanted;
use weftd::cluster::{
    Changed, FORMAT, HeldBlock, Input, Machine, Network, NodeRecord, NodeState, Output, claim_order, node_key,
};
use weftd::store::{CONFIG, KeyValue, Listing, WatchEvent, WatchInput};

use super::node::Node;
use super::random::Random;
use super::world::World;

#[test]
fn each_event_costs_every_other_node_one_change_and_no_request() {
    for nodes in [3_u64, 12] {
        let mut world = World::with_networks(1, &["10.1.0.0/20", "fd00::/116"]);
        for index in 0..nodes {
            world.add_node(&format!("n{index}"));
        }
        world.settle(60);
        let addresses = vec!["198.51.100.7/24".parse().expect("an address")];
        world.nodes[0].published.clone_from(&addresses);
        for node in &mut world.nodes {
            node.counted.clear();
        }
        world.nodes[0].handle(Input::Published(addresses), world.now);
        for _ in 0..7 {
            world.advance(Duration::from_secs(5));
            world.drain();
        }
        for node in world.nodes.iter().skip(1) {
            let count = |kind| node.counted.get(kind).copied().unwrap_or(0);
            assert_eq!(count("wanted"), 1, "{nodes} nodes, {}: {:?}", node.name, node.counted);
            assert!(count("store") <= 2, "only what time asks for: {:?}", node.counted);
        }
    }
}

fn network() -> Network {
    let cidrs = vec!["10.0.0.0/10".parse().expect("a network"), "fd00::/100".parse().expect("a network")];
    Network { cidrs, ..Network::default() }
}

fn put(index: usize, serial: u64, blocks: &[Subnet], mod_revision: i64) -> KeyValue {
    let name = format!("node-{index}.example.org");
    let address: IfAddr =
        format!("172.16.{}.{}/12", index / 250, index % 250 + 1).parse().expect("an address");
    let record = NodeRecord {
        format: FORMAT,
        name: name.as_str().into(),
        instance: format!("{index:032x}"),
        epoch: 1,
        serial,
        state: NodeState::Active,
        addresses: vec![address],
        blocks: blocks.iter().map(|cidr| HeldBlock { cidr: *cidr, epoch: 7 }).collect(),
        vtep_mac: Some(weftd::cluster::vtep_mac(&name)),
        version: "0.1.0".to_owned(),
        session: format!("{index:032x}"),
        recovered_at: 0,
        removed: None,
        unknown: serde_json::Map::new(),
    };
    let value = record.to_value();
    KeyValue { key: node_key(&name), value, mod_revision, create_revision: 1, lease: 0 }
}

/// The outputs of a machine about the data plane.
fn wanted(machine: &mut Machine) -> Vec<(std::sync::Arc<Wanted>, Changed)> {
    std::iter::from_fn(|| machine.poll())
        .filter_map(|output| {
            if let Output::Wanted { wanted, changed } = output { Some((wanted, changed)) } else { None }
        })
        .collect()
}

#[test]
fn five_thousand_nodes_are_listed_once_and_followed_one_by_one() {
    let mut world = World::new(1);
    let client = world.store.client();
    let mut node = Node::new("me", 9999, client);
    (node.init, node.booted_at) = (false, world.now);
    node.start(world.now, &mut Random::new(3), world.asked.clone());
    let now = node.now(world.now);
    let machine = node.daemon.as_mut().expect("it starts");
    let network = network();
    let (v4, v6) = (claim_order(&network, true, 0), claim_order(&network, false, 0));
    let blocks: Vec<[Subnet; 2]> = v4.zip(v6).take(10_000).map(|(v4, v6)| [v4, v6]).collect();
    let config = serde_json::to_vec(&network).expect("plain data");
    let config =
        KeyValue { key: CONFIG.to_owned(), value: config, mod_revision: 5, create_revision: 5, lease: 0 };
    let mut items = vec![config];
    items.extend((0..5000).map(|index| put(index, 1, &blocks[index * 2..index * 2 + 2].concat(), 9)));
    let connected = WatchInput::Connected { endpoint: "model".to_owned(), cluster: 1, revision: 9000 };
    machine.handle(Input::Watch(connected), now);
    machine.handle(Input::Watch(WatchInput::Snapshot(Listing { revision: 9000, items })), now);
    assert!(wanted(machine).is_empty(), "all routes would be written again with the first block");
    // The store answers nothing more.
    let (begun, mut now, mut all) = (now, now, Vec::new());
    while all.is_empty() {
        now = machine.next_timeout().expect("it does not wait for ever");
        machine.handle(Input::Tick, now);
        all = wanted(machine);
    }
    assert_eq!(now.boot, begun.boot + Duration::from_secs(5));
    assert_eq!((all.len(), all[0].0.peers.len()), (1, 5000));
    assert!(matches!(all[0].1, Changed::All));
    let event = WatchEvent::Put(put(4321, 2, &blocks[8642..8643].concat(), 9001));
    machine.handle(Input::Watch(WatchInput::Events { revision: 9001, events: vec![event] }), now);
    let one = wanted(machine);
    assert_eq!(one.len(), 1);
    assert_eq!(one[0].1, Changed::Peers(vec!["node-4321.example.org".into()]));
    let shared = |name: &str| std::sync::Arc::ptr_eq(&one[0].0.peers[name], &all[0].0.peers[name]);
    assert!(shared("node-17.example.org") && !shared("node-4321.example.org"));
    assert_eq!(one[0].0.peers["node-4321.example.org"].blocks.len(), 2);
}
