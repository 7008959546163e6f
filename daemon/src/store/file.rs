//! A static description of a cluster in one file, for demos, appliances and tests: read and followed, never written.
//!
//! JSON: `{"config": {…}, "nodes": {"a": {…}}}`, the values as they stand in etcd. Its revision is the file's time of
//! change, in milliseconds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};
use std::{fs, io};

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::check::check_op;
use super::{
    CONFIG, KeyValue, Listing, NODES, Op, Pending, Reply, Resume, Store, StoreError, WatchInput, check_key,
};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The store in this file.
#[derive(Clone, Debug)]
pub struct File {
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    config: Value,
    #[serde(default)]
    nodes: BTreeMap<String, Value>,
}

impl File {
    /// Nothing is read before the first call.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn perform(&self, op: Op) -> Result<Reply, StoreError> {
        check_op(&op)?;
        match op {
            Op::Read(keys) => {
                let Listing { revision, items } = self.read()?;
                let find = |key: String| {
                    let found = items.iter().find(|kv| kv.key == key).cloned();
                    (key, found)
                };
                Ok(Reply::Read { revision, items: keys.into_iter().map(find).collect() })
            }
            Op::List { prefix } => {
                let mut listing = self.read()?;
                listing.items.retain(|kv| kv.key.starts_with(&prefix));
                Ok(Reply::Listing(listing))
            }
            Op::Txn(_) | Op::KeepSession(_) => Err(StoreError::Refused {
                reason: format!(
                    "the store is the file {}, which is only read: change it there",
                    self.path.display()
                ),
            }),
            Op::EndSession | Op::Relist => Ok(Reply::Done),
        }
    }

    fn read(&self) -> Result<Listing, StoreError> {
        let revision = self.revision().map_err(|error| self.unreadable(&error))?;
        let text = fs::read_to_string(&self.path).map_err(|error| self.unreadable(&error))?;
        let items = parse(&text, revision).map_err(|problem| StoreError::Refused {
            reason: format!("the store's file {} is not as it should be: {problem}", self.path.display()),
        })?;
        Ok(Listing { revision, items })
    }

    fn revision(&self) -> io::Result<i64> {
        let changed = fs::metadata(&self.path)?.modified()?;
        let since = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn unreadable(&self, error: &io::Error) -> StoreError {
        StoreError::Unavailable { reason: format!("read the store's file {}: {error}", self.path.display()) }
    }

    async fn report(
        &self,
        events: &mpsc::Sender<WatchInput>,
    ) -> Result<(), mpsc::error::SendError<WatchInput>> {
        let mut last = None;
        let mut clock = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                () = events.closed() => return Ok(()),
                _ = clock.tick() => {}
            }
            let now = self.read();
            if last.as_ref() == Some(&now) {
                continue;
            }
            last = Some(now.clone());
            match now {
                Err(error) => events.send(WatchInput::Lost(error)).await?,
                Ok(listing) => {
                    let (endpoint, revision) = (self.path.display().to_string(), listing.revision);
                    events.send(WatchInput::Connected { endpoint, cluster: 0, revision }).await?;
                    events.send(WatchInput::Snapshot(listing)).await?;
                }
            }
        }
    }
}

impl Store for File {
    fn call(&self, op: Op) -> Pending<'_, Result<Reply, StoreError>> {
        Box::pin(async move { self.perform(op) })
    }

    fn follow(&self, _resume: Option<Resume>, events: mpsc::Sender<WatchInput>) -> Pending<'_, ()> {
        Box::pin(async move {
            // The receiver is gone, which ends the report as asked.
            let _ended = self.report(&events).await;
        })
    }
}

fn parse(text: &str, revision: i64) -> Result<Vec<KeyValue>, String> {
    let Description { config, nodes } = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let nodes = nodes.into_iter().map(|(name, record)| (format!("{NODES}{name}"), record));
    let all = std::iter::once((CONFIG.to_owned(), config)).chain(nodes);
    all.map(|(key, value)| {
        check_key(&key).map_err(|error| error.to_string())?;
        let value = value.to_string().into_bytes();
        Ok(KeyValue { key, value, mod_revision: revision, create_revision: revision, lease: 0 })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Txn, Write};

    fn file(text: &str) -> (tempfile::TempDir, File) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster.json");
        fs::write(&path, text).unwrap();
        (folder, File::new(path))
    }

    #[test]
    fn the_description_is_listed_as_a_store_is() {
        let (_folder, file) = file(r#"{"config": {"format": 1}, "nodes": {"a": {"epoch": 2}}}"#);
        let Reply::Listing(all) = file.perform(Op::List { prefix: String::new() }).unwrap() else { panic!() };
        let found: Vec<_> = all.items.iter().map(|kv| (kv.key.as_str(), kv.value.as_slice())).collect();
        assert_eq!(found, [("config", br#"{"format":1}"#.as_slice()), ("n/a", br#"{"epoch":2}"#)]);
    }

    #[test]
    fn a_write_is_refused_with_the_files_name() {
        let (_folder, file) = file(r#"{"config": {}}"#);
        let txn = Txn { writes: vec![Write::Delete { key: CONFIG.to_owned() }], ..Txn::default() };
        let refused = file.perform(Op::Txn(txn)).unwrap_err();
        let expected =
            format!("the store is the file {}, which is only read: change it there", file.path.display());
        assert_eq!(refused, StoreError::Refused { reason: expected });
    }

    #[test]
    fn a_bad_description_is_refused_with_the_place_of_the_fault() {
        let (_folder, file) = file(r#"{"config": {}, "node": {}}"#);
        let refused = file.perform(Op::List { prefix: String::new() }).unwrap_err();
        assert!(matches!(refused, StoreError::Refused { .. }));
        assert!(
            refused
                .to_string()
                .ends_with("unknown field `node`, expected `config` or `nodes` at line 1 column 21")
        );
    }

    #[tokio::test]
    async fn a_change_of_the_file_is_reported_whole() {
        let (_folder, file) = file(r#"{"config": {}}"#);
        let (sender, mut inputs) = mpsc::channel(8);
        let changed = async {
            assert!(matches!(inputs.recv().await, Some(WatchInput::Connected { .. })));
            assert!(matches!(inputs.recv().await, Some(WatchInput::Snapshot(all)) if all.items.len() == 1));
            fs::write(&file.path, r#"{"config": {}, "nodes": {"a": {}}}"#).unwrap();
            assert!(matches!(inputs.recv().await, Some(WatchInput::Connected { .. })));
            assert!(matches!(inputs.recv().await, Some(WatchInput::Snapshot(all)) if all.items.len() == 2));
        };
        tokio::select! { () = file.follow(None, sender) => panic!("ended"), () = changed => {} }
    }
}
