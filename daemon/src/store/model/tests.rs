use super::*;
use crate::store::{Compare, Expect, Ttl, WatchEvent};

const START: Duration = Duration::ZERO;

fn put(key: &str, value: &str) -> Write {
    Write::Put { key: key.to_owned(), value: value.as_bytes().to_vec(), lease: None }
}

fn create(key: &str) -> Op {
    let compares = vec![Compare { key: key.to_owned(), expect: Expect::Absent }];
    Op::Txn(Txn { compares, writes: vec![put(key, "1")], on_conflict_read: vec![key.to_owned()] })
}

fn session(ttl: u32) -> Op {
    let (key, value) = ("alive/a".to_owned(), Vec::new());
    Op::KeepSession(Session { key, value, ttl: Ttl(ttl), compares: Vec::new() })
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn an_unknown_outcome_is_applied_or_not_as_ordered() {
    let mut model = Model::new(1);
    let client = model.client();
    for (fault, applied) in [(TxnFault::Lost, 0), (TxnFault::NotSent, 0), (TxnFault::AnswerLost, 1)] {
        model.faults(client).next_txn = Some(fault);
        let failed = model.call(client, create("b/1"), START).unwrap_err();
        assert_eq!(matches!(failed, StoreError::UnknownOutcome { .. }), fault != TxnFault::NotSent);
        assert_eq!(model.list("b/").items.len(), applied, "{fault:?}");
    }
}

#[test]
fn stale_reads_answer_with_the_past() {
    let mut model = Model::new(1);
    let client = model.client();
    let before = model.write(vec![put("n/a", "old")], START);
    model.write(vec![put("n/a", "new")], START);
    model.faults(client).stale_at = Some(before);
    let read = model.call(client, Op::Read(vec!["n/a".to_owned()]), START).unwrap();
    let Reply::Read { revision, items } = read else { panic!("{read:?}") };
    assert_eq!((revision, items[0].1.as_ref().unwrap().value.as_slice()), (before, b"old".as_slice()));
}

#[test]
fn a_silent_watch_says_nothing_until_it_is_broken() {
    let mut model = Model::new(1);
    let client = model.client();
    model.follow(client, None);
    model.poll(client);
    model.faults(client).silent_watch = true;
    model.write(vec![put("n/a", "")], START);
    assert_eq!(model.poll(client), []);
    *model.faults(client) = Faults::default();
    model.break_watch(client);
    let inputs = model.poll(client);
    assert!(
        matches!(inputs[..], [WatchInput::Connected { .. }, WatchInput::Events { revision: 2, .. }]),
        "{inputs:?}"
    );
}

#[test]
fn a_partition_is_reported_once_and_ends_with_what_was_missed() {
    let mut model = Model::new(1);
    let client = model.client();
    model.follow(client, None);
    model.poll(client);
    model.faults(client).partitioned = true;
    assert_eq!(model.poll(client), [WatchInput::Lost(unavailable())]);
    assert_eq!(model.poll(client), []);
    let revision = model.write(vec![put("n/a", "")], START);
    model.faults(client).partitioned = false;
    assert!(matches!(&model.poll(client)[1], WatchInput::Events { events, .. } if matches!(
        &events[..], [WatchEvent::Put(kv)] if kv.mod_revision == revision)));
}

#[test]
fn a_restored_backup_is_noticed_by_its_revision_and_hidden_when_driven_past() {
    let mut model = Model::new(1);
    let client = model.client();
    model.follow(client, None);
    let backup = model.backup();
    let last_seen = model.write(vec![put("n/a", "")], START);
    model.poll(client);

    model.restore(&backup);
    assert_eq!(model.call(client, create("b/1"), START), Err(unavailable()));
    let inputs = model.poll(client);
    assert_eq!(inputs[1], WatchInput::HistoryRewritten { header_revision: 1, last_seen });
    assert!(matches!(&inputs[2], WatchInput::Snapshot(listing) if listing.items.is_empty()));

    model.drive_to(last_seen + 5, START);
    model.poll(client);
    model.restore(&backup);
    model.drive_to(last_seen + 9, START);
    assert!(matches!(model.poll(client)[..], [WatchInput::Connected { .. }]));
    model.call(client, Op::Relist, START).unwrap();
    assert!(matches!(model.poll(client)[..], [WatchInput::Snapshot(_)]));
}

#[test]
fn a_session_lives_while_its_holder_reaches_the_store_and_no_longer() {
    let mut model = Model::new(1);
    let client = model.client();
    model.call(client, session(30), START).unwrap();
    assert_eq!(model.next_timeout(), Some(seconds(10)));
    for now in (0..100).step_by(10) {
        model.tick(seconds(now));
    }
    assert_eq!(model.list("alive/").items.len(), 1);

    model.faults(client).partitioned = true;
    for now in (100..=120).step_by(10) {
        model.tick(seconds(now));
    }
    assert_eq!(model.list("alive/").items, []);
    assert!(matches!(model.poll(client)[..], [WatchInput::SessionLost { .. }]));
}

#[test]
fn the_session_of_a_crashed_client_ends() {
    let mut model = Model::new(1);
    let client = model.client();
    model.call(client, session(30), START).unwrap();
    model.crash(client);
    model.tick(seconds(29));
    assert_eq!(model.list("alive/").items.len(), 1);
    model.tick(seconds(30));
    assert_eq!(model.list("alive/").items, []);
    assert_eq!(model.poll(client), []);
}

#[test]
fn a_full_store_refuses_puts_and_takes_deletes() {
    let mut model = Model::new(1);
    let client = model.client();
    model.write(vec![put("b/1", "")], START);
    model.set_no_space(true);
    assert!(matches!(model.call(client, create("b/2"), START), Err(StoreError::NoSpace { .. })));
    let delete = Txn { writes: vec![Write::Delete { key: "b/1".to_owned() }], ..Txn::default() };
    model.call(client, Op::Txn(delete), START).unwrap();
    assert_eq!(model.list("").items, []);
}
