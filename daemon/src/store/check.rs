//! What every backend refuses before it is asked, so that none behaves differently.

use std::collections::BTreeSet;

use super::{Expect, Op, StoreError, Txn, Write, check_key};

/// etcd's default for the compares, and for the operations of one transaction.
pub const MAX_TXN_OPS: usize = 128;

/// Below etcd's default limit of a request, 1.5 MiB, with room for keys.
pub const MAX_TXN_BYTES: usize = 1 << 20;

/// Refuses what no store would do, or what would be written where nobody looks.
pub fn check_op(op: &Op) -> Result<(), StoreError> {
    match op {
        Op::Read(keys) => keys.iter().try_for_each(|key| check(key)),
        Op::List { prefix } => match prefix.trim_end_matches('/') {
            "" => Ok(()),
            inner => check(inner),
        },
        Op::Txn(txn) => check_txn(txn),
        Op::KeepSession(session) => {
            check(&session.key)?;
            session.compares.iter().try_for_each(|compare| check(&compare.key))?;
            check_size(session.value.len())
        }
        Op::EndSession | Op::Relist => Ok(()),
    }
}

fn check_txn(txn: &Txn) -> Result<(), StoreError> {
    let keys = txn.compares.iter().map(|compare| compare.key.as_str());
    keys.chain(txn.writes.iter().map(Write::key))
        .chain(txn.on_conflict_read.iter().map(String::as_str))
        .try_for_each(check)?;

    if let Some(compare) =
        txn.compares.iter().find(|compare| matches!(compare.expect, Expect::ModRevision(..1)))
    {
        return refuse(format!(
            "a transaction compares {} with no revision: what must be absent is said so",
            compare.key
        ));
    }
    let longest = txn.compares.len().max(txn.writes.len()).max(txn.on_conflict_read.len());
    if longest > MAX_TXN_OPS {
        return refuse(format!(
            "a transaction of {longest} operations: the store takes at most {MAX_TXN_OPS}"
        ));
    }
    let mut written = BTreeSet::new();
    if let Some(twice) = txn.writes.iter().find(|write| !written.insert(write.key())) {
        return refuse(format!("a transaction writes {} twice", twice.key()));
    }
    check_size(txn.writes.iter().map(size_of_value).sum())
}

fn size_of_value(write: &Write) -> usize {
    match write {
        Write::Put { value, .. } => value.len(),
        Write::Delete { .. } => 0,
    }
}

fn check_size(bytes: usize) -> Result<(), StoreError> {
    if bytes > MAX_TXN_BYTES {
        return refuse(format!("a transaction of {bytes} bytes: the store takes at most {MAX_TXN_BYTES}"));
    }
    Ok(())
}

fn check(key: &str) -> Result<(), StoreError> {
    check_key(key).map_err(|error| StoreError::Refused { reason: error.to_string() })
}

fn refuse(reason: String) -> Result<(), StoreError> {
    Err(StoreError::Refused { reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delete(key: String) -> Write {
        Write::Delete { key }
    }

    fn refusal(writes: Vec<Write>) -> String {
        check_op(&Op::Txn(Txn { writes, ..Txn::default() })).unwrap_err().to_string()
    }

    #[test]
    fn what_no_store_takes_is_refused_with_the_limit() {
        let many = (0..129).map(|n| delete(format!("b/{n}"))).collect();
        assert_eq!(refusal(many), "a transaction of 129 operations: the store takes at most 128");
        let twice = vec![delete("b/1".to_owned()), delete("b/1".to_owned())];
        assert_eq!(refusal(twice), "a transaction writes b/1 twice");
        let large = Write::Put { key: "n/a".to_owned(), value: vec![0; MAX_TXN_BYTES + 1], lease: None };
        assert_eq!(refusal(vec![large]), "a transaction of 1048577 bytes: the store takes at most 1048576");
    }
}
