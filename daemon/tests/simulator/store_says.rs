//! What a person is told about the store: away, refusing or full are three things, and each ends.

use std::time::Duration;

use weftd::cluster::{Code, Input};
use weftd::store::model::TxnFault;
use weftd::store::{Op, StoreError, WatchInput};

use super::world::World;

const ABOUT_THE_STORE: [Code; 3] = [Code::StoreAway, Code::StoreRefuses, Code::StoreFull];

/// A world of one member, told these; what it then finds about the store.
fn told(world: &mut World, inputs: impl IntoIterator<Item = WatchInput>) -> Vec<Code> {
    for input in inputs {
        world.nodes[0].handle(Input::Watch(input), world.now);
    }
    world.drain();
    let found = world.nodes[0].findings.keys().map(|(code, _)| *code);
    found.filter(|code| ABOUT_THE_STORE.contains(code)).collect()
}

fn settled() -> World {
    let mut world = World::new(1);
    world.add_node("a");
    world.settle(60);
    world
}

fn away() -> WatchInput {
    WatchInput::Lost(StoreError::Unavailable { reason: "down".to_owned() })
}

fn refused() -> WatchInput {
    WatchInput::Lost(StoreError::Refused { reason: "the password is wrong".to_owned() })
}

fn connected(world: &mut World) -> WatchInput {
    let store = world.store.as_model().expect("the model");
    let (cluster, revision) = (store.cluster(), store.revision());
    WatchInput::Connected { endpoint: "model".to_owned(), cluster, revision }
}

#[test]
fn a_store_is_away_or_refuses_and_never_both() {
    let mut world = settled();
    assert_eq!(told(&mut world, []), []);
    assert_eq!(told(&mut world, [away()]), [Code::StoreAway]);
    assert_eq!(told(&mut world, [refused()]), [Code::StoreRefuses]);
    let status = world.nodes[0].daemon.as_ref().unwrap().status();
    assert_eq!((status.store_away, status.store_refuses.as_deref()), (None, Some("the password is wrong")));
    let finding =
        world.nodes[0].findings.values().find(|finding| finding.code == Code::StoreRefuses).unwrap();
    assert_eq!(finding.sentence, "the store refuses this node: the password is wrong");
    assert_eq!(told(&mut world, [away()]), [Code::StoreAway]);
    let connected = connected(&mut world);
    assert_eq!(told(&mut world, [refused(), connected]), []);
}

/// The node does everything but ask the store; whether it then has something to ask, and whether that is a write.
fn next_request(world: &mut World) -> Option<bool> {
    while world.perform(0) || world.hear(0) {}
    world.nodes[0].requests.front().map(|request| matches!(request.op, Op::Txn(_)))
}

fn tell(world: &mut World, input: Input) {
    let now = world.now;
    world.nodes[0].handle(input, now);
}

fn is_refused(world: &World) -> bool {
    world.nodes[0].findings.keys().any(|(code, _)| *code == Code::StoreRefuses)
}

#[test]
fn a_refused_write_is_not_forgiven_for_a_read_and_is_tried_again_at_once_with_a_new_login() {
    let mut world = settled();
    // A new address is to be published.
    let addresses = vec!["198.51.100.7/24".parse().expect("an address")];
    world.nodes[0].published.clone_from(&addresses);
    tell(&mut world, Input::Published(addresses));
    while next_request(&mut world) != Some(true) {
        world.serve(0);
        world.advance(Duration::from_secs(1));
    }
    world.serve_with(0, Some(TxnFault::Refused));
    assert_eq!(next_request(&mut world), None, "it is not asked again and again");
    assert!(is_refused(&world));

    // The connection is another one, and can be read.
    let connected = connected(&mut world);
    tell(&mut world, Input::Watch(connected));
    assert_eq!(next_request(&mut world), Some(false));
    world.serve(0);
    assert_eq!(next_request(&mut world), Some(true));
    assert!(is_refused(&world), "that it can be read proves nothing");
    world.serve_with(0, Some(TxnFault::Refused));
    assert_eq!(next_request(&mut world), None);

    tell(&mut world, Input::NewLogin);
    assert_eq!(next_request(&mut world), Some(true));
    world.serve(0);
    next_request(&mut world);
    assert!(!is_refused(&world));
}

#[test]
fn a_full_store_is_found_once_by_its_own_word_and_over_by_it() {
    let mut world = settled();
    let full = |reason: &str| WatchInput::Full(Some(reason.to_owned()));
    assert_eq!(told(&mut world, [full("NOSPACE")]), [Code::StoreFull]);
    // The same again by another member is no news.
    assert_eq!(told(&mut world, [full("NOSPACE, says another")]), [Code::StoreFull]);
    let finding = world.nodes[0].findings.values().find(|finding| finding.code == Code::StoreFull).unwrap();
    assert_eq!(finding.sentence, "the store takes no more data: NOSPACE");
    assert!(finding.way_out.contains("etcdctl alarm disarm"), "{}", finding.way_out);
    assert_eq!(told(&mut world, [WatchInput::Full(None)]), []);
}
