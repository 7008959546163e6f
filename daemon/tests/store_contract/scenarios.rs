//! The contract.

use std::time::Duration;

use weftd::store::{
    Compare, Expect, KeyValue, Listing, Op, Reply, Resume, Session, StoreError, Ttl, Txn, TxnOutcome,
    WatchEvent, WatchInput, Write,
};

use crate::subjects::Subject;

const LIMIT: usize = 1 << 20;

fn put(key: &str, value: &str) -> Write {
    Write::Put { key: key.to_owned(), value: value.as_bytes().to_vec(), lease: None }
}

fn put_leased(key: &str, ttl: u32) -> Write {
    Write::Put { key: key.to_owned(), value: Vec::new(), lease: Some(Ttl(ttl)) }
}

fn delete(key: &str) -> Write {
    Write::Delete { key: key.to_owned() }
}

fn compare(key: &str, expect: Expect) -> Compare {
    Compare { key: key.to_owned(), expect }
}

fn txn(store: &mut dyn Subject, compares: Vec<Compare>, writes: Vec<Write>, read: &[&str]) -> TxnOutcome {
    let on_conflict_read = read.iter().map(|&key| key.to_owned()).collect();
    let Reply::Txn(outcome) = store.call(Op::Txn(Txn { compares, writes, on_conflict_read })).unwrap() else {
        panic!("another answer")
    };
    outcome
}

fn write(store: &mut dyn Subject, writes: Vec<Write>) -> i64 {
    let TxnOutcome::Committed { revision } = txn(store, Vec::new(), writes, &[]) else {
        panic!("a conflict")
    };
    revision
}

fn read(store: &mut dyn Subject, key: &str) -> Option<KeyValue> {
    let Reply::Read { items, .. } = store.call(Op::Read(vec![key.to_owned()])).unwrap() else { panic!() };
    items.into_iter().next().unwrap().1
}

fn list(store: &mut dyn Subject, prefix: &str) -> Listing {
    let Reply::Listing(listing) = store.call(Op::List { prefix: prefix.to_owned() }).unwrap() else {
        panic!()
    };
    listing
}

fn keys(listing: &Listing) -> Vec<&str> {
    listing.items.iter().map(|kv| kv.key.as_str()).collect()
}

fn session(key: &str, ttl: u32, compares: Vec<Compare>) -> Op {
    Op::KeepSession(Session { key: key.to_owned(), value: b"me".to_vec(), ttl: Ttl(ttl), compares })
}

/// Begins to follow; returns the identity, and the first snapshot.
fn follow(store: &mut dyn Subject) -> (u64, Listing) {
    store.follow(None);
    let WatchInput::Connected { cluster, .. } = store.next_input() else { panic!("not connected first") };
    let WatchInput::Snapshot(listing) = store.next_input() else { panic!("no snapshot") };
    (cluster, listing)
}

/// The next events, as short texts, until there are this many.
fn events(store: &mut dyn Subject, count: usize) -> Vec<String> {
    let mut found = Vec::new();
    while found.len() < count {
        let WatchInput::Events { events, .. } = store.next_input() else {
            panic!("no events; so far {found:?}")
        };
        found.extend(events.iter().filter_map(|event| match event {
            WatchEvent::Put(kv) => Some(format!("+{}", kv.key)),
            WatchEvent::Delete { key, .. } => Some(format!("-{key}")),
            WatchEvent::Progress { .. } => None,
        }));
    }
    found
}

fn wait_until_gone(store: &mut dyn Subject, key: &str) {
    for _ in 0..600 {
        if read(store, key).is_none() {
            return;
        }
        store.pass(Duration::from_millis(50));
    }
    panic!("{key} is still there");
}

pub fn compares_hold_all_or_nothing_is_written(store: &mut dyn Subject) {
    let revision = write(store, vec![put("n/a", "1")]);
    let there = compare("n/a", Expect::Exists);
    let cases = [
        (compare("n/a", Expect::Exists), true),
        (compare("n/b", Expect::Exists), false),
        (compare("n/a", Expect::Absent), false),
        (compare("n/b", Expect::Absent), true),
        (compare("n/a", Expect::ModRevision(revision)), true),
        (compare("n/a", Expect::ModRevision(revision + 1)), false),
        (compare("n/b", Expect::ModRevision(revision)), false),
    ];
    for (number, (one, holds)) in cases.into_iter().enumerate() {
        let key = format!("b/{number}");
        let outcome = txn(store, vec![there.clone(), one.clone()], vec![put(&key, "")], &[]);
        assert_eq!(matches!(outcome, TxnOutcome::Committed { .. }), holds, "{one:?}");
        assert_eq!(read(store, &key).is_some(), holds, "{one:?}");
    }
}

pub fn writes_of_a_transaction_share_one_revision(store: &mut dyn Subject) {
    let created = write(store, vec![put("n/a", "1"), put("n/b", "1")]);
    let changed = write(store, vec![put("n/a", "2"), delete("n/b"), put("b/1", "")]);
    assert_eq!(changed, created + 1);
    let all = list(store, "");
    let found: Vec<_> =
        all.items.iter().map(|kv| (kv.key.as_str(), kv.mod_revision, kv.create_revision)).collect();
    assert_eq!(found, [("b/1", changed, changed), ("n/a", changed, created)]);
    assert_eq!(all.revision, changed);
}

pub fn a_conflict_reads_back_what_is_there(store: &mut dyn Subject) {
    let revision = write(store, vec![put("b/1", "theirs")]);
    let absent = compare("b/1", Expect::Absent);
    let outcome = txn(store, vec![absent], vec![put("b/1", "ours")], &["b/2", "b/1"]);
    let theirs = KeyValue {
        key: "b/1".to_owned(),
        value: b"theirs".to_vec(),
        mod_revision: revision,
        create_revision: revision,
        lease: 0,
    };
    let current = vec![("b/2".to_owned(), None), ("b/1".to_owned(), Some(theirs))];
    assert_eq!(outcome, TxnOutcome::Conflict { revision, current });
}

pub fn deleting_what_is_absent_changes_nothing(store: &mut dyn Subject) {
    let revision = write(store, vec![put("n/a", "1")]);
    assert_eq!(write(store, vec![delete("n/b")]), revision);
}

pub fn many_keys_are_listed_and_read_in_order_at_one_revision(store: &mut dyn Subject) {
    let names: Vec<_> = (0..1200).map(|number| format!("n/{number:04}")).collect();
    let mut revision = 0;
    for names in names.chunks(100) {
        revision = write(store, names.iter().map(|name| put(name, name)).collect());
    }
    write(store, vec![put("o", ""), put("m", "")]);
    let all = list(store, "n/");
    assert_eq!((keys(&all), all.revision), (names.iter().map(String::as_str).collect(), revision + 1));

    let asked: Vec<_> = names.iter().rev().take(300).chain([&"n/none".to_owned()]).cloned().collect();
    let Reply::Read { items, .. } = store.call(Op::Read(asked.clone())).unwrap() else { panic!() };
    assert_eq!(items.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), asked);
    let (last, found) = items.split_last().unwrap();
    assert!(last.1.is_none() && found.iter().all(|(key, kv)| kv.as_ref().is_some_and(|kv| kv.key == *key)));
}

pub fn a_value_is_taken_up_to_the_limit_and_refused_beyond(store: &mut dyn Subject) {
    let large = |size: usize| Write::Put { key: "use/a".to_owned(), value: vec![b'x'; size], lease: None };
    write(store, vec![large(LIMIT)]);
    assert_eq!(read(store, "use/a").unwrap().value.len(), LIMIT);
    let refused = store.call(Op::Txn(Txn { writes: vec![large(LIMIT + 1)], ..Txn::default() })).unwrap_err();
    let reason = "a transaction of 1048577 bytes: the store takes at most 1048576".to_owned();
    assert_eq!(refused, StoreError::Refused { reason });
}

pub fn what_is_followed_is_reported_in_order_and_the_rest_is_not(store: &mut dyn Subject) {
    write(store, vec![put("config", "1"), put("n/a", "1"), put("b/1", "1"), put("alive/a", "1")]);
    let (_, snapshot) = follow(store);
    assert_eq!(keys(&snapshot), ["config", "n/a"]);
    write(store, vec![put("b/2", ""), put("use/a", ""), put("n/b", "")]);
    write(store, vec![delete("n/a"), delete("b/1")]);
    write(store, vec![put("config", "2")]);
    assert_eq!(events(store, 3), ["+n/b", "-n/a", "+config"]);
    assert!(store.is_silent());
}

pub fn following_goes_on_from_where_an_earlier_run_was(store: &mut dyn Subject) {
    write(store, vec![put("n/a", "1")]);
    let (cluster, snapshot) = follow(store);
    write(store, vec![put("n/b", "1")]);
    write(store, vec![delete("n/a")]);
    store.follow(Some(Resume { revision: snapshot.revision, cluster }));
    assert!(matches!(store.next_input(), WatchInput::Connected { .. }));
    // The last one that was known may come once more.
    let mut found = events(store, 2);
    if found[0] == "+n/a" {
        found.remove(0);
    }
    while found.len() < 2 {
        found.extend(events(store, 1));
    }
    assert_eq!(found, ["+n/b", "-n/a"]);
}

pub fn what_was_compacted_is_listed_again(store: &mut dyn Subject) {
    write(store, vec![put("n/a", "1")]);
    let (cluster, snapshot) = follow(store);
    write(store, vec![delete("n/a")]);
    for _ in 0..5 {
        write(store, vec![put("n/b", "1")]);
    }
    let revision = list(store, "").revision;
    store.compact(revision);
    store.follow(Some(Resume { revision: snapshot.revision, cluster }));
    assert!(matches!(store.next_input(), WatchInput::Connected { .. }));
    let WatchInput::Snapshot(listing) = store.next_input() else { panic!("no snapshot") };
    assert_eq!((keys(&listing), listing.revision), (vec!["n/b"], revision));
}

pub fn a_leased_key_vanishes_and_its_follower_is_told(store: &mut dyn Subject) {
    follow(store);
    write(store, vec![put_leased("n/a", 2), put_leased("b/1", 2), put("b/2", "")]);
    assert_ne!(read(store, "b/1").unwrap().lease, 0);
    assert_eq!(events(store, 2), ["+n/a", "-n/a"]);
    wait_until_gone(store, "b/1");
    assert_eq!(keys(&list(store, "")), ["b/2"]);
}

pub fn a_put_without_lease_takes_a_key_off_its_lease(store: &mut dyn Subject) {
    write(store, vec![put_leased("b/1", 2)]);
    write(store, vec![put("b/1", ""), put_leased("b/2", 2)]);
    assert_eq!(read(store, "b/1").unwrap().lease, 0);
    wait_until_gone(store, "b/2");
    store.end_leases();
    assert_eq!(keys(&list(store, "")), ["b/1"]);
}

pub fn a_session_outlives_its_lease_until_it_is_ended(store: &mut dyn Subject) {
    store.call(session("alive/a", 3, Vec::new())).unwrap();
    // A key under a lease like the session's, that nobody renews, tells when the first life is over; then one more.
    for key in ["b/1", "b/2"] {
        write(store, vec![put_leased(key, 3)]);
        wait_until_gone(store, key);
    }
    assert_eq!(read(store, "alive/a").unwrap().value, b"me");
    assert_eq!(store.call(Op::EndSession), Ok(Reply::Done));
    assert_eq!(read(store, "alive/a"), None);
    assert_eq!(store.call(Op::EndSession), Ok(Reply::Done));
}

pub fn another_session_replaces_the_former(store: &mut dyn Subject) {
    store.call(session("alive/a", 60, Vec::new())).unwrap();
    let former = read(store, "alive/a").unwrap().lease;
    store.call(session("alive/a", 60, Vec::new())).unwrap();
    let lease = read(store, "alive/a").unwrap().lease;
    assert!(lease != former && lease != 0);
    store.call(session("alive/b", 60, Vec::new())).unwrap();
    assert_eq!(keys(&list(store, "alive/")), ["alive/b"]);
}

pub fn a_session_that_may_not_be_is_not_kept(store: &mut dyn Subject) {
    write(store, vec![put("alive/a", "other")]);
    let refused = store.call(session("alive/a", 60, vec![compare("alive/a", Expect::Absent)])).unwrap();
    let Reply::Txn(TxnOutcome::Conflict { current, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(current[0].1.as_ref().unwrap().value, b"other");
    assert_eq!(store.call(Op::EndSession), Ok(Reply::Done));
    assert_eq!(read(store, "alive/a").unwrap().value, b"other");
}

pub fn a_session_whose_lease_ended_is_lost(store: &mut dyn Subject) {
    follow(store);
    store.call(session("alive/a", 3, Vec::new())).unwrap();
    store.end_leases();
    assert_eq!(read(store, "alive/a"), None);
    let lost = store.next_input();
    assert!(matches!(&lost, WatchInput::SessionLost { key, .. } if key == "alive/a"), "{lost:?}");
    store.call(session("alive/a", 60, Vec::new())).unwrap();
    assert!(read(store, "alive/a").is_some());
}

pub fn a_restored_store_is_noticed_by_its_lower_revision(store: &mut dyn Subject) {
    write(store, vec![put("n/a", "1")]);
    store.back_up();
    follow(store);
    let last_seen = write(store, vec![put("n/b", "1"), put("b/1", "")]);
    events(store, 1);
    store.restore();
    assert!(
        matches!(store.next_input(), WatchInput::Connected { revision, .. } if revision == last_seen - 1)
    );
    let rewritten = WatchInput::HistoryRewritten { header_revision: last_seen - 1, last_seen };
    assert_eq!(store.next_input(), rewritten);
    let WatchInput::Snapshot(listing) = store.next_input() else { panic!("no snapshot") };
    assert_eq!(keys(&listing), ["n/a"]);
    assert_eq!(write(store, vec![put("n/c", "1")]), last_seen);
    assert_eq!(events(store, 1), ["+n/c"]);
}

pub fn a_restored_store_that_was_driven_on_says_only_that_it_was_connected_anew(store: &mut dyn Subject) {
    write(store, vec![put("n/a", "1")]);
    store.back_up();
    let (identity, _) = follow(store);
    let last_seen = write(store, vec![put("n/b", "1")]);
    events(store, 1);
    store.restore();
    for _ in 0..3 {
        store.write_from_elsewhere(vec![put("use/x", "")]);
    }
    let WatchInput::Connected { cluster, revision, .. } = store.next_input() else {
        panic!("not connected first")
    };
    assert_eq!((cluster, revision), (identity, last_seen + 2));
    assert!(store.is_silent(), "the revision alone tells nothing");
    store.call(Op::Relist).unwrap();
    let WatchInput::Snapshot(listing) = store.next_input() else { panic!("no snapshot") };
    assert_eq!(keys(&listing), ["n/a"]);
}
