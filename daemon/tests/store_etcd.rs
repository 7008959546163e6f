//! What goes wrong between a node and etcd: certificates, users, members that die, freeze or are full; with the sentences.

#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test fails by a panic")]

#[path = "store_etcd/client.rs"]
mod client;
mod etcd_lab;
#[path = "store_etcd/login.rs"]
mod login;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use client::Node;
use etcd_lab::certificates::Authority;
use etcd_lab::{Cluster, PATIENCE, runtime, timing};
use netns_tests::wait_until;
use weftd::store::etcd::{Conf, Credentials, Endpoint, Timing, TlsFiles};
use weftd::store::{Op, Reply, Session, StoreError, Ttl, WatchInput, Write};

fn endpoint(url: &str) -> Endpoint {
    Endpoint::parse(url, false).unwrap()
}

fn alone(url: &str) -> Conf {
    Conf { timing: timing(), ..Conf::new(vec![endpoint(url)]) }
}

fn put(key: &str, value: &str) -> Write {
    Write::Put { key: key.to_owned(), value: value.as_bytes().to_vec(), lease: None }
}

/// A member with this certificate that asks clients for theirs.
fn tls_member(
    certificate: &(std::path::PathBuf, std::path::PathBuf),
    clients: &Authority,
) -> Option<Cluster> {
    let arg = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let (certificate, key) = certificate;
    let args = [
        arg("cert-file", certificate),
        arg("key-file", key),
        arg("trusted-ca-file", &clients.file()),
        "--client-cert-auth=true".to_owned(),
    ];
    Cluster::with(1, "https", &args)
}

#[test]
fn a_member_is_believed_by_its_certificate_and_asks_for_ours() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let theirs = Authority::new(folder.path(), "theirs");
    let Some(cluster) = tls_member(&ours.issue("member", "127.0.0.1", false), &ours) else { return };
    let url = cluster.url(0);
    let identity = ours.issue("node", "node", false);
    let with = |ca: &Authority, identity| {
        Node::new(Conf { tls: Some(TlsFiles { ca: ca.file(), identity }), ..alone(&url) })
    };

    let good = with(&ours, Some(identity.clone()));
    wait_until("the member answers", PATIENCE, || good.read("n/a").is_ok());
    good.write(vec![put("n/a", "")]);

    let unknown_ca = with(&theirs, Some(identity)).refusal();
    assert_eq!(
        unknown_ca,
        format!(
            "store {url}: set up TLS: its certificate is from a CA that the configured CA file \
        does not hold. Configure the CA of this etcd"
        )
    );
    let not_accepted = "it does not accept this node's certificate. Configure a client certificate from a CA it trusts, \
        not expired";
    for identity in [None, Some(theirs.issue("foreign", "node", false))] {
        let why = with(&ours, identity).refusal_or_break();
        assert!(
            why.starts_with(&format!("store {url}: set up TLS: it ")) && why.ends_with(not_accepted),
            "{why}"
        );
    }

    let plain = Node::new(alone(&url.replace("https", "http"))).read("n/a").unwrap_err().to_string();
    assert!(plain.ends_with("Does it want https://?"), "{plain}");
}

#[test]
fn a_member_for_another_host_or_an_expired_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let identity = ours.issue("node", "node", false);
    let refusal_by = |certificate| {
        let cluster = tls_member(&certificate, &ours)?;
        let tls = Some(TlsFiles { ca: ours.file(), identity: Some(identity.clone()) });
        Some(Node::new(Conf { tls, ..alone(&cluster.url(0)) }).refusal().split_once(": ")?.1.to_owned())
    };
    let Some(expired) = refusal_by(ours.issue("expired", "127.0.0.1", true)) else { return };
    assert_eq!(
        expired,
        "set up TLS: its certificate has expired. Renew it; if it has not, this node's clock is wrong"
    );
    let another = refusal_by(ours.issue("another", "etcd.example", false)).unwrap();
    assert_eq!(
        another,
        "set up TLS: its certificate is not for this host name, but for DnsName(\"etcd.example\"). \
        Use a name it is for, or issue another one"
    );
}

#[test]
fn certificates_that_are_replaced_are_used_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let theirs = Authority::new(folder.path(), "theirs");
    let Some(cluster) = tls_member(&ours.issue("member", "127.0.0.1", false), &ours) else { return };
    let identity = theirs.issue("node", "node", false);
    let node = Node::new(Conf {
        tls: Some(TlsFiles { ca: ours.file(), identity: Some(identity) }),
        ..alone(&cluster.url(0))
    });
    node.refusal_or_break();
    ours.issue("node", "node", false);
    wait_until("the new certificate is used", PATIENCE, || node.read("n/a").is_ok());
    fs::write(ours.file(), "").unwrap();
    wait_until("the new CA file is read", PATIENCE, || node.read("n/a").is_err());
    let why = node.refusal();
    assert!(
        why.ends_with(&format!(
            "prepare the connection: {} holds no CERTIFICATE in PEM format",
            ours.file().display()
        )),
        "{why}"
    );
}

#[test]
fn a_member_that_is_not_there_is_named_with_the_reason() {
    let refused = Node::new(Conf {
        endpoints: vec![endpoint("http://127.0.0.1:1"), endpoint("http://127.0.0.1:2")],
        ..alone("http://127.0.0.1:1")
    })
    .read("n/a")
    .unwrap_err();
    let why = "connect: connection refused. Nothing listens there: is etcd running, and is the port right?";
    let reason = format!(
        "none of 2 endpoints answered: store http://127.0.0.1:1: {why}; store http://127.0.0.1:2: {why}"
    );
    assert_eq!(refused, StoreError::Unavailable { reason });

    let unknown = Node::new(alone("http://no-such-host.invalid:2379")).read("n/a").unwrap_err();
    let reason =
        "store http://no-such-host.invalid:2379: connect: its name is not known. Check the name, and this \
        node's DNS or /etc/hosts"
            .to_owned();
    assert_eq!(unknown, StoreError::Unavailable { reason });

    let Some(cluster) = Cluster::one() else { return };
    let folder = tempfile::tempdir().unwrap();
    let tls = Some(TlsFiles { ca: Authority::new(folder.path(), "ours").file(), identity: None });
    let url = cluster.url(0).replace("http", "https");
    let refused = Node::new(Conf { tls, ..alone(&url) }).refusal();
    assert_eq!(
        refused,
        format!(
            "store {url}: set up TLS: it seems not to speak TLS. Use http:// for it, or switch TLS on there"
        )
    );
}

#[test]
fn a_user_needs_the_password_and_permission_for_the_prefix() {
    let Some(mut cluster) = Cluster::one() else { return };
    let url = cluster.url(0);
    let user = |user: &str, password: &str| {
        let credentials = Some(Credentials { user: user.to_owned(), password: password.to_owned() });
        Node::new(Conf { credentials, ..alone(&url) })
    };
    assert_eq!(
        user("weft", "right").refusal(),
        format!(
            "store {url}: log in: user weft is configured, but the store has \
        no authentication. Remove the user, or enable it there"
        )
    );

    client::enable_authentication(&cluster, &[("weft", "right", true), ("guest", "right", false)]);
    let good = user("weft", "right");
    good.write(vec![put("n/a", "")]);
    assert!(
        matches!(good.call(Op::List { prefix: String::new() }), Ok(Reply::Listing(all)) if all.items.len() == 1)
    );
    good.follow(None);
    assert!(matches!(good.next_input(), WatchInput::Connected { .. }));
    assert!(matches!(good.next_input(), WatchInput::Snapshot(all) if all.items.len() == 1));

    assert_eq!(
        user("weft", "wrong").refusal(),
        format!("store {url}: log in: user weft or the password is wrong. Correct them in the configuration")
    );
    assert_eq!(
        user("guest", "right").refusal(),
        format!(
            "store {url}: read: user guest has no permission for keys under \
        /weft/v1/. Grant it: etcdctl role grant-permission ROLE readwrite --prefix=true /weft/v1/"
        )
    );
    assert_eq!(
        Node::new(alone(&url)).refusal(),
        format!("store {url}: log in: the store asks for a user and a password, and none is configured")
    );

    // The member forgets the tokens it has given.
    cluster.kill(0);
    cluster.start(0);
    wait_until("the node has logged in again", PATIENCE, || good.read("n/a").is_ok());
    good.write(vec![put("n/b", "")]);
    good.wait_for_put("n/b");
}

fn is_no_space(error: &StoreError) -> bool {
    matches!(error, StoreError::NoSpace { .. })
}

#[test]
fn a_full_store_is_named_and_takes_deletes() {
    let Some(cluster) = Cluster::with(1, "http", &["--quota-backend-bytes=4000000".to_owned()]) else {
        return;
    };
    cluster.wait_until_it_answers();
    let node = Node::new(cluster.conf());
    let large = || vec![put("use/a", &"x".repeat(1 << 20))];
    let full = (0..100).find_map(|_| node.try_write(large()).err().filter(is_no_space)).unwrap();
    let reason = format!(
        "store {}: transaction: etcd's database is full (alarm NOSPACE): it takes no more data. Compact and \
        defragment it, then: etcdctl alarm disarm. Enable --auto-compaction-retention",
        cluster.url(0)
    );
    assert_eq!(full, StoreError::NoSpace { reason });
    node.write(vec![Write::Delete { key: "use/a".to_owned() }]);
}

/// The writer ends also when the reader panics.
struct Ending<'a>(&'a AtomicBool);
impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_list_of_many_pages_is_of_one_revision_while_others_write() {
    let Some(cluster) = Cluster::one() else { return };
    let node = Node::new(cluster.conf());
    let names: Vec<_> = (0..1200).map(|number| format!("n/{number:04}")).collect();
    for names in names.chunks(100) {
        node.write(names.iter().map(|name| put(name, "")).collect());
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let other = Node::new(cluster.conf());
            // One key moves: from the last page to the first, and back.
            let (first, last) = ("n/!", "n/0900");
            while !done.load(Ordering::Relaxed) {
                for (from, to) in [(last, first), (first, last)] {
                    other.write(vec![Write::Delete { key: from.to_owned() }, put(to, "")]);
                }
            }
        });
        let _ending = Ending(&done);
        let mut revisions: Vec<_> = (0..10)
            .map(|_| {
                let Ok(Reply::Listing(all)) = node.call(Op::List { prefix: "n/".to_owned() }) else {
                    panic!("no listing")
                };
                assert_eq!(all.items.len(), 1200);
                assert!(all.items.iter().all(|kv| kv.mod_revision <= all.revision));
                all.revision
            })
            .collect();
        revisions.dedup();
        assert!(revisions.len() > 1, "nobody wrote meanwhile");
    });
}

#[test]
fn a_transaction_without_an_answer_has_an_unknown_outcome_and_one_never_sent_has_not() {
    let Some(cluster) = Cluster::one() else { return };
    let node = Node::new(Conf { timing: Timing { fresh: PATIENCE, ..timing() }, ..cluster.conf() });
    node.write(vec![put("n/a", "1")]);
    cluster.freeze(0);
    let reason = |step: &str| {
        format!(
            "store {}: {step}: no answer within 3 s. The member may be overloaded, frozen or cut off \
        from the others",
            cluster.url(0)
        )
    };
    let unknown = node.try_write(vec![put("n/a", "2")]).unwrap_err();
    assert_eq!(unknown, StoreError::UnknownOutcome { reason: reason("transaction") });
    // That connection is no longer trusted: the next one is probed first.
    let not_sent = node.try_write(vec![put("n/a", "3")]).unwrap_err();
    assert_eq!(not_sent, StoreError::Unavailable { reason: reason("read") });
    cluster.thaw(0);
    wait_until("the member answers", PATIENCE, || node.read("n/a").is_ok());
    assert_ne!(node.read("n/a").unwrap().unwrap().value, b"3");
}

#[test]
fn a_frozen_member_is_noticed_by_the_watch_and_by_the_session() {
    let Some(cluster) = Cluster::one() else { return };
    let node = Node::new(cluster.conf());
    node.follow(None);
    node.wait_for(|input| matches!(input, WatchInput::Snapshot(_)));
    let session = Session { key: "alive/a".to_owned(), value: Vec::new(), ttl: Ttl(4), compares: Vec::new() };
    node.call(Op::KeepSession(session)).unwrap();
    cluster.freeze(0);
    let (mut silent, mut lost) = (None, None);
    while silent.is_none() || lost.is_none() {
        match node.next_input() {
            WatchInput::Lost(error) => silent = silent.or(Some(error.to_string())),
            WatchInput::SessionLost { reason, .. } => lost = Some(reason.to_string()),
            WatchInput::Events { .. } | WatchInput::Connected { .. } | WatchInput::Snapshot(_) => {}
            WatchInput::HistoryRewritten { .. } | WatchInput::Full(_) => panic!("rewritten, or full?"),
        }
    }
    let lost = lost.unwrap();
    assert!(lost.starts_with("the session was not renewed for 4 s and may have ended"), "{lost}");
    let silent = silent.unwrap();
    assert!(silent.contains(": no answer within 3 s. The member may be"), "{silent}");
    cluster.thaw(0);
    node.wait_for(|input| matches!(input, WatchInput::Connected { .. }));
}

#[test]
fn of_three_members_one_may_freeze_or_die_and_all_may_come_back() {
    let Some(mut cluster) = Cluster::with(3, "http", &[]) else { return };
    cluster.wait_until_it_answers();
    let node = Node::new(cluster.conf());
    node.follow(None);
    let index_of = |cluster: &Cluster, url: &str| (0..3).find(|&index| cluster.url(index) == url).unwrap();
    let endpoint = loop {
        if let WatchInput::Connected { endpoint, .. } = node.next_input() {
            break endpoint;
        }
    };

    // Frozen: the one that is followed.
    let frozen = index_of(&cluster, &endpoint);
    cluster.freeze(frozen);
    node.write(vec![put("n/a", "frozen")]);
    node.wait_for_put("n/a");
    cluster.thaw(frozen);

    // Killed: the leader.
    let leader = client::leader(&cluster);
    cluster.kill(leader);
    node.write(vec![put("n/b", "killed")]);
    node.wait_for_put("n/b");

    // Most are gone: the one that is left says so.
    let second = (leader + 1) % 3;
    cluster.kill(second);
    let left = Node::new(alone(&cluster.url((leader + 2) % 3)));
    let alone = "the member knows no leader: it is cut off from the others, or most members are down";
    wait_until("the last member says that it is alone", PATIENCE, || {
        left.read("n/a").is_err_and(|error| error.to_string().ends_with(alone))
    });

    // All are back.
    cluster.start(leader);
    cluster.start(second);
    node.write(vec![put("n/c", "back")]);
    node.wait_for_put("n/c");
    wait_until("all keys are there", PATIENCE, || {
        let all = node.call(Op::List { prefix: "n/".to_owned() });
        matches!(all, Ok(Reply::Listing(all)) if all.items.len() == 3)
    });
}

#[test]
fn nothing_is_asked_of_a_restored_store_before_its_follower_has_told() {
    let Some(mut cluster) = Cluster::one() else { return };
    let node = Node::new(cluster.conf());
    node.write(vec![put("n/a", "1")]);
    let backup = cluster.back_up(0);
    node.write(vec![put("n/a", "2")]);
    node.write(vec![put("n/a", "3")]);
    cluster.restore(0, &backup);
    let why = format!(
        "store {}: check its history: the store is at revision 2, and this node has seen 4: it was restored from \
        a backup. Nothing is asked of it before the node has dealt with that",
        cluster.url(0)
    );
    let refused = Err(StoreError::Unavailable { reason: why });
    wait_until("the restore is noticed", PATIENCE, || node.try_write(vec![put("n/a", "4")]) == refused);

    node.follow(None);
    node.wait_for(|input| *input == WatchInput::HistoryRewritten { header_revision: 2, last_seen: 4 });
    node.wait_for(|input| matches!(input, WatchInput::Snapshot(_)));
    assert_eq!(node.read("n/a").unwrap().unwrap().value, b"1");
}

#[test]
fn what_nobody_waits_for_ends() {
    let Some(cluster) = Cluster::one() else { return };
    let runtime = runtime();
    let store = weftd::store::etcd::Etcd::new(cluster.conf());
    runtime.block_on(async {
        let (sender, mut inputs) = tokio::sync::mpsc::channel(1);
        let reader = async {
            inputs.recv().await.unwrap();
            drop(inputs);
        };
        let both = async { tokio::join!(weftd::store::Store::follow(&store, None, sender), reader) };
        tokio::time::timeout(PATIENCE, both).await.expect("the follower goes on for nobody");
    });
}
