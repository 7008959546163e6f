//! Operations of commands on the store, with sentences for people.

use std::sync::Arc;

use crate::cluster::Network;
use crate::command::Failure;
use crate::conf::Conf;
use crate::store::{CONFIG, KeyValue, Listing, Op, Reply, Store, StoreError, Txn, TxnOutcome};

/// The store of a configuration.
pub fn open(conf: &Conf) -> Result<Arc<dyn Store>, Failure> {
    crate::store_of::open(conf).map_err(Failure::refused)
}

/// Reads keys at one revision, in the order asked.
pub async fn read(store: &dyn Store, keys: Vec<String>) -> Result<Vec<(String, Option<KeyValue>)>, Failure> {
    match store.call(Op::Read(keys)).await {
        Ok(Reply::Read { items, .. }) => Ok(items),
        other => Err(unexpected(other)),
    }
}

/// Lists keys at one revision.
pub async fn list(store: &dyn Store, prefix: &str) -> Result<Listing, Failure> {
    match store.call(Op::List { prefix: prefix.to_owned() }).await {
        Ok(Reply::Listing(listing)) => Ok(listing),
        other => Err(unexpected(other)),
    }
}

/// Does a transaction; `false` if something changed since it was planned.
pub async fn commit(store: &dyn Store, txn: Txn) -> Result<bool, Failure> {
    match store.call(Op::Txn(txn)).await {
        Ok(Reply::Txn(TxnOutcome::Committed { .. })) => Ok(true),
        Ok(Reply::Txn(TxnOutcome::Conflict { .. })) => Ok(false),
        other => Err(unexpected(other)),
    }
}

/// The cluster's configuration with its revision; `None` if there is none yet.
pub async fn network(store: &dyn Store) -> Result<Option<(Network, i64)>, Failure> {
    let items = read(store, vec![CONFIG.to_owned()]).await?;
    let Some(found) = items.into_iter().next().and_then(|(_, value)| value) else { return Ok(None) };
    let network = Network::parse(&found.value)
        .map_err(|garbage| Failure::refused(format!("{garbage}. {}", garbage.way_out())))?;
    Ok(Some((network, found.mod_revision)))
}

fn unexpected(answer: Result<Reply, StoreError>) -> Failure {
    match answer {
        Err(error) => Failure::could_not_tell(format!("the store: {error}")),
        Ok(reply) => {
            Failure::could_not_tell(format!("the store gave an answer to another question: {reply:?}"))
        }
    }
}
