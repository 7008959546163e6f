//! What changes while a node runs: the password, and whether etcd has room.

use etcd_client::{AlarmAction, AlarmType};
use weftd::store::etcd::PasswordFile;

use super::*;

/// A file that holds nothing but the password.
fn bare(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn weft(password: &str) -> Option<Credentials> {
    Some(Credentials { user: "weft".to_owned(), password: password.to_owned() })
}

#[test]
fn a_password_that_is_changed_is_read_again_and_a_refusal_is_told_from_an_outage() {
    let Some(mut cluster) = Cluster::one() else { return };
    client::enable_authentication(&cluster, &[("weft", "first", true)]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "first").unwrap();
    let password_file = Some(PasswordFile { path: path.clone(), find: bare });
    let node = Node::new(Conf { credentials: weft("first"), password_file, ..cluster.conf() });
    node.follow(None);
    node.write(vec![put("n/a", "")]);
    node.wait_for_put("n/a");
    assert!(!node.has_new_login());

    // A call is refused; the watch, which etcd lets go on, is not given up for that.
    client::change_password(&cluster, "weft", "second");
    let refused =
        format!("store {}: log in: user weft or the password is wrong. Correct them", cluster.url(0));
    assert!(node.refusal().starts_with(&refused));
    fs::write(&path, "second").unwrap();
    assert!(node.has_new_login() && !node.has_new_login(), "said once");
    wait_until("the new password is used", PATIENCE, || node.read("n/a").is_ok());
    node.write(vec![put("n/b", "")]);
    node.wait_for_put("n/b");

    // The same when the connection has to be made anew: away for a moment, then refused, then followed again.
    client::change_password(&cluster, "weft", "third");
    cluster.kill(0);
    node.wait_for(|input| matches!(input, WatchInput::Lost(StoreError::Unavailable { .. })));
    cluster.start(0);
    let is_refused = |input: &WatchInput| match input {
        WatchInput::Lost(StoreError::Refused { reason }) => reason.starts_with(&refused),
        _ => false,
    };
    node.wait_for(is_refused);
    fs::write(&path, "third").unwrap();
    node.wait_for(|input| matches!(input, WatchInput::Connected { .. }));

    // A file that cannot be read is named where that matters.
    fs::remove_file(&path).unwrap();
    let why = node.refusal();
    assert!(
        why.contains("the password is that of the start") && why.contains("secret cannot be read"),
        "{why}"
    );
}

#[test]
fn a_certificate_that_etcd_does_not_take_is_a_refusal_for_the_follower_until_it_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let theirs = Authority::new(folder.path(), "theirs");
    let Some(cluster) = tls_member(&ours.issue("member", "127.0.0.1", false), &ours) else { return };
    let tls = |identity| Some(TlsFiles { ca: ours.file(), identity: Some(identity) });
    let good = Node::new(Conf { tls: tls(ours.issue("good", "good", false)), ..alone(&cluster.url(0)) });
    wait_until("the member answers", PATIENCE, || good.read("n/a").is_ok());

    for (authority, expired) in [(&theirs, false), (&ours, true)] {
        let node =
            Node::new(Conf { tls: tls(authority.issue("node", "node", expired)), ..alone(&cluster.url(0)) });
        node.follow(None);
        // Its alert may be lost once or twice; then it is a refusal all the same.
        let refused = |input: &WatchInput| match input {
            WatchInput::Lost(StoreError::Refused { reason }) => {
                reason.contains("accept this node's certificate") || reason.contains("has expired")
            }
            _ => false,
        };
        node.wait_for(refused);
        ours.issue("node", "node", false);
        node.wait_for(|input| matches!(input, WatchInput::Connected { .. }));
    }
}

#[test]
fn that_etcd_is_full_is_known_without_a_write_and_so_is_the_cure() {
    let Some(cluster) = Cluster::one() else { return };
    // Whoever may only use the prefix is told as well.
    client::enable_authentication(&cluster, &[("weft", "right", true)]);
    let timing = Timing { alarms: std::time::Duration::from_millis(200), ..timing() };
    let node = Node::new(Conf { credentials: weft("right"), timing, ..cluster.conf() });
    node.follow(None);
    node.wait_for(|input| *input == WatchInput::Full(None));
    let alarm = |action| {
        let alarm = async { client::root(&cluster).await.alarm(action, AlarmType::Nospace, None).await };
        runtime().block_on(alarm).unwrap();
    };
    alarm(AlarmAction::Activate);
    let reason = format!(
        "store {}: ask for alarms: etcd's database is full (alarm NOSPACE): it takes no more data. Compact and \
        defragment it, then: etcdctl alarm disarm. Enable --auto-compaction-retention",
        cluster.url(0)
    );
    node.wait_for(|input| *input == WatchInput::Full(Some(reason.clone())));
    alarm(AlarmAction::Deactivate);
    node.wait_for(|input| *input == WatchInput::Full(None));
}
