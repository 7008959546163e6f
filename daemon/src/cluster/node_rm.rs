//! `weftd node rm`, and a node's own farewell in `weftd uninstall`: a tombstone, never a deletion. Pure: the command
//! reads the keys, asks here, and does the transaction.

use std::time::SystemTime;

use weft_cni::ip::IfAddr;

use super::Refusal;
use super::blocks::block_key;
use super::memory::seconds;
use super::record::{
    BlockRecord, BlockState, FORMAT, Network, NodeRecord, NodeState, RemovedAt, SessionRecord, node_key,
    session_key,
};
use crate::mirror::use_key;
use crate::store::{CONFIG, Compare, Expect, KeyValue, Txn, Write};

/// How far a person goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Also a node whose session lives.
    pub force: bool,
    /// The machine is certainly gone: its blocks are free at once.
    pub destroyed: bool,
}

/// What has to be read first, in this order: the configuration, the record, the session; then, with the record, its blocks.
pub fn removal_reads(name: &str, record: Option<&KeyValue>) -> Vec<String> {
    let mut keys = vec![CONFIG.to_owned(), node_key(name), session_key(name)];
    if let Some(record) = record.and_then(|record| NodeRecord::parse(&record.key, &record.value).ok()) {
        keys.extend(record.blocks.iter().map(|held| block_key(&held.cidr)));
    }
    keys
}

/// The transaction that removes a node, from what [`removal_reads`] named, read at one revision. On a conflict: read again.
///
/// # Errors
/// Why it must not be removed, and the way out.
pub fn plan_removal(
    name: &str,
    read: &[(String, Option<KeyValue>)],
    removal: Removal,
    now: SystemTime,
) -> Result<Txn, Refusal> {
    let find = |key: &str| find(read, key);
    let refuse = |details: String| Refusal { sentence: format!("{name} was not removed"), details };
    let key = node_key(name);
    let stands = find(&key).ok_or_else(|| refuse(format!("there is no node {name}; see `weftd node ls`")))?;
    let record = NodeRecord::parse(&key, &stands.value).map_err(|error| refuse(error.to_string()))?;
    if record.state == NodeState::Removed && !removal.destroyed {
        return Err(refuse("it is removed already; with --destroyed its blocks are free at once".to_owned()));
    }
    let session = find(&session_key(name));
    if let (Some(session), false) = (session, removal.force) {
        return Err(refuse(alive(session)));
    }
    let network = find(CONFIG).and_then(|config| Network::parse(&config.value).ok()).unwrap_or_default();
    let at = seconds(now);
    let until = (!removal.destroyed).then_some(at.saturating_add(network.reissue_after));
    let mut txn = tombstone(&record, stands.mod_revision, RemovedAt { at, until, acknowledged: false });
    if !removal.force {
        txn.compares.push(Compare { key: session_key(name), expect: Expect::Absent });
    }
    give_up_blocks(&mut txn, &record, read, until);
    Ok(txn)
}

/// What a node that is taken down by itself has to tell the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// Nothing: there is no record, or it was told already.
    Nothing,
    /// The record is that of another machine, which has taken this name: it stays.
    Another {
        /// Where that one is.
        addresses: Vec<IfAddr>,
    },
    /// There is a record, and this machine does not know whether it is its own: it stays.
    Unproven,
    /// This.
    Write(Txn),
}

/// A tombstone with the node's own word that no pod of it lives and that it gives no addresses: its blocks are free at
/// once. Only for whoever has made sure of that; `instance` is this very machine's id, as far as it knows. What was read is as for [`plan_removal`].
///
/// # Errors
/// When the record cannot be read.
pub fn plan_farewell(
    name: &str,
    instance: Option<&str>,
    read: &[(String, Option<KeyValue>)],
    now: SystemTime,
) -> Result<Farewell, Refusal> {
    let key = node_key(name);
    let Some(stands) = find(read, &key) else { return Ok(Farewell::Nothing) };
    let record = NodeRecord::parse(&key, &stands.value).map_err(|error| Refusal {
        sentence: format!("{name} could not say that it has no pods left"),
        details: error.to_string(),
    })?;
    let removed = record.removed.as_ref().filter(|_| record.state == NodeState::Removed);
    if removed.is_some_and(|removed| removed.acknowledged) {
        return Ok(Farewell::Nothing);
    }
    match instance {
        None => return Ok(Farewell::Unproven),
        Some(instance) if record.instance != instance => {
            return Ok(Farewell::Another { addresses: record.addresses });
        }
        Some(_) => {}
    }
    let at = removed.map_or(seconds(now), |removed| removed.at);
    let mut txn = tombstone(&record, stands.mod_revision, RemovedAt { at, until: None, acknowledged: true });
    give_up_blocks(&mut txn, &record, read, None);
    Ok(Farewell::Write(txn))
}

fn find<'a>(read: &'a [(String, Option<KeyValue>)], key: &str) -> Option<&'a KeyValue> {
    read.iter().find(|(name, _)| name == key).and_then(|(_, value)| value.as_ref())
}

/// The blocks that are the node's by their own records: retired `until` then, or free at once.
fn give_up_blocks(
    txn: &mut Txn,
    record: &NodeRecord,
    read: &[(String, Option<KeyValue>)],
    until: Option<u64>,
) {
    for held in &record.blocks {
        let key = block_key(&held.cidr);
        let stands = find(read, &key);
        let ours = stands.and_then(|stands| BlockRecord::parse(&key, &stands.value).ok());
        let Some(ours) = ours.filter(|block| block.owner == record.name && block.instance == record.instance)
        else {
            continue;
        };
        let revision = stands.map_or(0, |stands| stands.mod_revision);
        txn.compares.push(Compare { key: key.clone(), expect: Expect::ModRevision(revision) });
        txn.writes.push(match until {
            None => Write::Delete { key },
            Some(_) => Write::Put {
                key,
                value: BlockRecord { format: FORMAT, state: BlockState::Retired, until, ..ours }.to_value(),
                lease: None,
            },
        });
    }
}

fn alive(session: &KeyValue) -> String {
    let from = SessionRecord::parse(&session.key, &session.value).ok();
    let at = from.and_then(|from| from.addresses.first().map(|address| format!(" at {}", address.addr())));
    format!(
        "its weftd is running{}. Stop it there first (`weftd uninstall` drains it), or give --force: its pods \
         then lose the network, and it is told as soon as it reads the store",
        at.unwrap_or_default()
    )
}

fn tombstone(record: &NodeRecord, mod_revision: i64, removed: RemovedAt) -> Txn {
    let again = record.state == NodeState::Removed;
    let tombstone = NodeRecord {
        epoch: record.epoch + u64::from(!again),
        serial: record.serial + u64::from(removed.acknowledged),
        state: NodeState::Removed,
        blocks: if removed.until.is_some() { record.blocks.clone() } else { Vec::new() },
        removed: Some(removed),
        ..record.clone()
    };
    let key = record.key();
    Txn {
        compares: vec![Compare { key: key.clone(), expect: Expect::ModRevision(mod_revision) }],
        writes: vec![
            Write::Put { key: key.clone(), value: tombstone.to_value(), lease: None },
            Write::Delete { key: use_key(&record.name) },
        ],
        on_conflict_read: vec![key],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::KeyValue;

    fn item(key: &str, value: &str) -> (String, Option<KeyValue>) {
        let (name, value) = (key.to_owned(), value.as_bytes().to_vec());
        let value = KeyValue { key: name.clone(), value, mod_revision: 7, create_revision: 1, lease: 0 };
        (name, Some(value))
    }

    const NODE: &str = r#"{"format":1,"name":"a","instance":"i","epoch":1,"serial":4,"state":"active","version":"",
        "addresses":["192.0.2.1/24"],"blocks":[{"cidr":"10.1.0.0/26","epoch":7},{"cidr":"10.1.1.0/26","epoch":8}],"session":"s"}"#;

    fn read(node: &str) -> Vec<(String, Option<KeyValue>)> {
        let block = |owner: &str, instance: &str| {
            format!(r#"{{"format":1,"owner":"{owner}","instance":"{instance}","epoch":7,"state":"held"}}"#)
        };
        // The second block is another's by its own record.
        vec![
            item("n/a", node),
            item("b/10.1.0.0-26", &block("a", "i")),
            item("b/10.1.1.0-26", &block("b", "j")),
        ]
    }

    fn farewell<'a>(node: &str, instance: impl Into<Option<&'a str>>) -> Farewell {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
        plan_farewell("a", instance.into(), &read(node), now).unwrap()
    }

    fn written(farewell: Farewell) -> (NodeRecord, Vec<String>) {
        let Farewell::Write(txn) = farewell else { panic!("{farewell:?}") };
        let keys = |key: &str| Compare { key: key.to_owned(), expect: Expect::ModRevision(7) };
        assert_eq!(txn.compares, [keys("n/a"), keys("b/10.1.0.0-26")]);
        let deleted = txn.writes.iter().filter(|write| matches!(write, Write::Delete { .. }));
        let deleted = deleted.map(|write| write.key().to_owned()).collect();
        let Write::Put { key, value, .. } = &txn.writes[0] else { panic!("{txn:?}") };
        (NodeRecord::parse(key, value).unwrap(), deleted)
    }

    #[test]
    fn a_node_that_leaves_acknowledges_by_itself_and_frees_what_is_its_own() {
        let (record, deleted) = written(farewell(NODE, "i"));
        let removed = RemovedAt { at: 1_800_000_000, until: None, acknowledged: true };
        assert_eq!((record.state, record.removed), (NodeState::Removed, Some(removed)));
        assert_eq!((record.epoch, record.serial, record.blocks), (2, 5, Vec::new()));
        assert_eq!(deleted, ["use/a", "b/10.1.0.0-26"]);
    }

    #[test]
    fn one_that_was_removed_before_adds_its_word_and_one_that_has_given_it_says_nothing() {
        let removed = NODE.replace("\"active\"", "\"removed\"");
        let with = |acknowledged: bool| {
            let more = format!(r#","removed":{{"at":5,"until":9,"acknowledged":{acknowledged}}}}}"#);
            removed.trim_end_matches('}').to_owned() + &more
        };
        let (record, deleted) = written(farewell(&with(false), "i"));
        assert_eq!(record.removed, Some(RemovedAt { at: 5, until: None, acknowledged: true }));
        assert_eq!((record.epoch, deleted.len()), (1, 2));
        assert_eq!(farewell(&with(true), "i"), Farewell::Nothing);
        assert_eq!(farewell(&with(true), None), Farewell::Nothing, "its identity went after its word");
    }

    #[test]
    fn the_record_of_another_machine_of_this_name_stays() {
        let addresses = vec!["192.0.2.1/24".parse().unwrap()];
        assert_eq!(farewell(NODE, "another"), Farewell::Another { addresses });
        let nothing = plan_farewell("b", None, &read(NODE), SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(nothing, Farewell::Nothing);
        assert_eq!(farewell(NODE, None), Farewell::Unproven);
    }
}
