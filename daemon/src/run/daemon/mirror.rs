//! Tells the store which addresses are in use; see [`crate::mirror`].

use std::sync::Arc;
use std::time::SystemTime;

use super::{Daemon, Event, now};
use crate::conf::StoreKind;
use crate::mirror::{Blocks, PERIOD, Pace, UseRecord, use_key};
use crate::run::local::Local;
use crate::store::{Op, Reply, Store, StoreError, TxnOutcome};

/// What is known of the own key.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    pace: Pace,
    /// What it says; `None` before it was read or written.
    said: Option<Blocks>,
}

impl Daemon {
    /// Something of what is in use changed.
    pub(super) fn note_use(&mut self) {
        self.mirror.pace.note(now().boot);
    }

    /// Writes if it is time to. Only a node that takes part may: a clone would write over the other's key.
    pub(super) fn mirror_use(&mut self) {
        if !self.ready || self.conf.store.kind != StoreKind::Etcd || !self.mirror.pace.begin(now().boot) {
            return;
        }
        let (store, name) = (self.store.clone(), self.conf.node.to_string());
        let (said, events) = (self.mirror.said.clone(), self.events.0.clone());
        self.tasks.spawn(async move {
            let result = write(store, &name, said).await;
            let _ending = events.send(Event::UseMirrored(result)).await;
        });
    }

    /// Nobody is told of a failure: whatever keeps the store from answering is told already, and the next minute tries again.
    pub(super) fn use_mirrored(&mut self, result: Result<Option<Blocks>, String>) {
        self.mirror.pace.done(now().boot, matches!(result, Ok(Some(_))));
        match result {
            Ok(Some(blocks)) => self.mirror.said = Some(blocks),
            Ok(None) => tracing::debug!("addresses in use: they were told less than a minute ago"),
            Err(sentence) => tracing::debug!("tell the store which addresses are in use: {sentence}"),
        }
    }
}

/// What the key says now; `None` if it must wait, because this node's former weftd wrote it just now.
async fn write(store: Arc<dyn Store>, name: &str, said: Option<Blocks>) -> Result<Option<Blocks>, String> {
    let listed = tokio::task::spawn_blocking(Local::addresses).await;
    let blocks = listed.map_err(|error| error.to_string())??;
    let failed = |error: StoreError| error.to_string();
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let said = match said {
        Some(said) => Some(said),
        None => {
            let reply = store.call(Op::Read(vec![use_key(name)])).await.map_err(failed)?;
            let Reply::Read { items, .. } = reply else { return Err(format!("the store answers {reply:?}")) };
            let found = items.into_iter().next().and_then(|(_, value)| UseRecord::parse(&value?.value));
            if found.as_ref().is_some_and(|found| found.blocks != blocks && is_fresh(found.at, at)) {
                return Ok(None);
            }
            found.map(|found| found.blocks)
        }
    };
    if said.as_ref() == Some(&blocks) {
        return Ok(Some(blocks));
    }
    let record = UseRecord::new(at, blocks);
    let reply = store.call(Op::Txn(record.write(name))).await.map_err(failed)?;
    if matches!(reply, Reply::Txn(TxnOutcome::Committed { .. })) {
        Ok(Some(record.blocks))
    } else {
        Err("the store has no record of this node".to_owned())
    }
}

/// A clock that was set back makes nothing wait for long.
fn is_fresh(written: u64, now: u64) -> bool {
    now.checked_sub(written).is_some_and(|age| age < PERIOD.as_secs())
}
