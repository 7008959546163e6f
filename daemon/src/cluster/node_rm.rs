//! `weftd node rm`: a tombstone, never a deletion. Pure: the command reads the keys, asks here, and does the transaction.

use std::time::SystemTime;

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
    let find = |key: &str| read.iter().find(|(name, _)| name == key).and_then(|(_, value)| value.as_ref());
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
    let mut txn = tombstone(&record, stands.mod_revision, at, until);
    if !removal.force {
        txn.compares.push(Compare { key: session_key(name), expect: Expect::Absent });
    }
    for held in &record.blocks {
        let key = block_key(&held.cidr);
        let stands = find(&key);
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
    Ok(txn)
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

fn tombstone(record: &NodeRecord, mod_revision: i64, at: u64, until: Option<u64>) -> Txn {
    let again = record.state == NodeState::Removed;
    let tombstone = NodeRecord {
        epoch: record.epoch + u64::from(!again),
        state: NodeState::Removed,
        blocks: if until.is_some() { record.blocks.clone() } else { Vec::new() },
        removed: Some(RemovedAt { at, until, acknowledged: false }),
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
