//! The operations, in etcd's terms.

use std::time::Duration;

use etcd_client::{Client, CompareOp, GetOptions, KvClient, PutOptions, TxnOp, TxnOpResponse, TxnResponse};

use super::connection::{Connection, Head, MAX_MESSAGE};
use super::failure::Kind;
use super::pool::{Failed, Pool, Repeat};
use crate::store::check::MAX_TXN_OPS;
use crate::store::{
    CONFIG, Compare, Expect, FOLLOWED_END, KeyValue, Listing, Prefix, Reply, StoreError, Ttl, Txn,
    TxnOutcome, Write, is_followed,
};

/// Keys of one page of a list.
const PAGE: i64 = 500;

/// A list has this many times the deadline of a call, for all of its pages.
const LIST_CALLS: u32 = 6;

/// A list whose revision was compacted away meanwhile is begun anew this often.
const LIST_ATTEMPTS: u32 = 3;

type Found = Vec<(String, Option<KeyValue>)>;
type Outcome<T> = Result<T, etcd_client::Error>;

impl Pool {
    /// [`crate::store::Op::Read`].
    pub async fn read(&self, keys: Vec<String>) -> Result<Reply, StoreError> {
        let read = |connection: Connection| read_on(kv_of(&connection.client), &self.conf.prefix, &keys);
        let before = self.seen();
        let (head, items) = self.attempt("read", Repeat::Safe, self.conf.timing.call, read).await?;
        self.believe(before, head)?;
        Ok(Reply::Read { revision: head.revision, items })
    }

    /// [`crate::store::Op::List`].
    pub async fn list(&self, under: String) -> Result<Listing, StoreError> {
        let first = self.conf.prefix.join(&under).into_bytes();
        let end = end_of_prefix(&first);
        let limit = self.conf.timing.call * LIST_CALLS;
        let list = |connection: Connection| list_on(connection.client, &self.conf.prefix, &first, &end);
        let mut attempts = 1..LIST_ATTEMPTS;
        loop {
            let before = self.seen();
            match self.attempt("list", Repeat::Safe, limit, list).await {
                Ok((head, items)) => {
                    self.believe(before, head)?;
                    return Ok(Listing { revision: head.revision, items });
                }
                Err(failed) if failed.kind() == Some(Kind::Compacted) && attempts.next().is_some() => {}
                Err(failed) => return Err(failed.into()),
            }
        }
    }

    /// [`crate::store::Op::Txn`].
    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let mut leases = Vec::with_capacity(txn.writes.len());
        for write in &txn.writes {
            leases.push(match write {
                Write::Put { lease: Some(ttl), .. } => self.grant(*ttl).await?,
                Write::Put { lease: None, .. } | Write::Delete { .. } => 0,
            });
        }
        let outcome = self.txn_leased(&txn, &leases).await;
        let refused = matches!(outcome, Err(StoreError::Refused { .. } | StoreError::NoSpace { .. }));
        if refused || matches!(outcome, Ok(TxnOutcome::Conflict { .. })) {
            for &lease in leases.iter().filter(|&&lease| lease != 0) {
                // What is not revoked ends by itself, and nothing hangs on it.
                let _ends_later = self.revoke(lease).await;
            }
        }
        outcome
    }

    /// A transaction whose writes have these leases, or none where it is 0.
    pub async fn txn_leased(&self, txn: &Txn, leases: &[i64]) -> Result<TxnOutcome, StoreError> {
        let send = |connection: Connection| txn_on(kv_of(&connection.client), &self.conf.prefix, txn, leases);
        let (head, outcome) = self.attempt("transaction", Repeat::Once, self.conf.timing.call, send).await?;
        self.saw(head);
        Ok(outcome)
    }

    /// A new lease. One that is lost ends by itself.
    pub async fn grant(&self, ttl: Ttl) -> Result<i64, StoreError> {
        let grant = |mut connection: Connection| async move {
            let lease = connection.client.lease_grant(ttl.0.into(), None).await?;
            Ok((Head::of(lease.header())?, lease.id()))
        };
        let before = self.seen();
        let (head, lease) = self.attempt("grant a lease", Repeat::Safe, self.conf.timing.call, grant).await?;
        self.believe(before, head)?;
        Ok(lease)
    }

    /// Ends a lease, and deletes its keys. One that has ended is no failure.
    pub async fn revoke(&self, lease: i64) -> Result<(), StoreError> {
        let revoke = |mut connection: Connection| async move {
            connection.client.lease_revoke(lease).await.map(|_| ())
        };
        match self.attempt("revoke a lease", Repeat::Safe, self.conf.timing.call, revoke).await {
            Err(failed) if failed.kind() != Some(Kind::NoLease) => Err(failed.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Renews a lease by its whole life. [`Kind::NoLease`] when it has ended.
    pub async fn renew(&self, lease: i64) -> Result<(), Failed> {
        let renew = |mut connection: Connection| async move {
            connection.client.lease_keep_alive(lease).await.map(|_| ())
        };
        self.attempt("renew the session", Repeat::Safe, self.conf.timing.call, renew).await
    }

    /// All that is followed, from this connection. The deadline is the caller's.
    pub async fn list_followed(&self, client: Client) -> Outcome<Listing> {
        let (first, end) = self.followed_range();
        let (head, mut items) = list_on(client, &self.conf.prefix, &first, &end).await?;
        items.retain(|kv| is_followed(&kv.key));
        Ok(Listing { revision: head.revision, items })
    }

    /// The deadline for [`Pool::list_followed`].
    pub fn list_limit(&self) -> Duration {
        self.conf.timing.call * LIST_CALLS
    }

    /// The range that is followed.
    pub fn followed_range(&self) -> (Vec<u8>, Vec<u8>) {
        (self.conf.prefix.join(CONFIG).into_bytes(), self.conf.prefix.join(FOLLOWED_END).into_bytes())
    }
}

/// As it stands in the store, if it is one of ours.
pub fn key_value(prefix: &Prefix, kv: &etcd_client::KeyValue) -> Option<KeyValue> {
    Some(KeyValue {
        key: prefix.strip(kv.key())?.to_owned(),
        value: kv.value().to_vec(),
        mod_revision: kv.mod_revision(),
        create_revision: kv.create_revision(),
        lease: kv.lease(),
    })
}

fn kv_of(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MAX_MESSAGE)
}

async fn read_on(mut client: KvClient, prefix: &Prefix, keys: &[String]) -> Outcome<(Head, Found)> {
    let (now, later) = keys.split_at(keys.len().min(MAX_TXN_OPS));
    let gets = |keys: &[String], revision| {
        let options = GetOptions::new().with_revision(revision);
        let ops: Vec<_> =
            keys.iter().map(|key| TxnOp::get(prefix.join(key), Some(options.clone()))).collect();
        etcd_client::Txn::new().and_then(ops)
    };
    let answer = client.txn(gets(now, 0)).await?;
    let head = Head::of(answer.header())?;
    let mut found = found_in(&answer, prefix, now);
    for keys in later.chunks(MAX_TXN_OPS) {
        let answer = client.txn(gets(keys, head.revision)).await?;
        found.extend(found_in(&answer, prefix, keys));
    }
    Ok((head, found))
}

fn found_in(answer: &TxnResponse, prefix: &Prefix, keys: &[String]) -> Found {
    let answers = answer.op_responses().into_iter().map(|response| match response {
        TxnOpResponse::Get(get) => get.kvs().first().and_then(|kv| key_value(prefix, kv)),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    });
    keys.iter().cloned().zip(answers).collect()
}

async fn list_on(
    client: Client,
    prefix: &Prefix,
    first: &[u8],
    end: &[u8],
) -> Outcome<(Head, Vec<KeyValue>)> {
    let mut client = kv_of(&client);
    let page = GetOptions::new().with_range(end).with_limit(PAGE);
    let mut answer = client.get(first, Some(page.clone())).await?;
    let head = Head::of(answer.header())?;
    let mut items = Vec::new();
    loop {
        items.extend(answer.kvs().iter().filter_map(|kv| key_value(prefix, kv)));
        let next = answer.kvs().last().map(|kv| [kv.key(), &[0]].concat());
        let Some(next) = next.filter(|_| answer.more()) else { return Ok((head, items)) };
        answer = client.get(next, Some(page.clone().with_revision(head.revision))).await?;
    }
}

async fn txn_on(
    mut client: KvClient,
    prefix: &Prefix,
    txn: &Txn,
    leases: &[i64],
) -> Outcome<(Head, TxnOutcome)> {
    let compares: Vec<_> = txn.compares.iter().map(|compare| comparison(prefix, compare)).collect();
    let writes: Vec<_> =
        txn.writes.iter().zip(leases).map(|(write, &lease)| operation(prefix, write, lease)).collect();
    let reads: Vec<_> = txn.on_conflict_read.iter().map(|key| TxnOp::get(prefix.join(key), None)).collect();
    let request = etcd_client::Txn::new().when(compares).and_then(writes).or_else(reads);
    let answer = client.txn(request).await?;
    let head = Head::of(answer.header())?;
    let revision = head.revision;
    let outcome = if answer.succeeded() {
        TxnOutcome::Committed { revision }
    } else {
        TxnOutcome::Conflict { revision, current: found_in(&answer, prefix, &txn.on_conflict_read) }
    };
    Ok((head, outcome))
}

fn comparison(prefix: &Prefix, compare: &Compare) -> etcd_client::Compare {
    let key = prefix.join(&compare.key);
    match compare.expect {
        Expect::Absent => etcd_client::Compare::create_revision(key, CompareOp::Equal, 0),
        Expect::Exists => etcd_client::Compare::create_revision(key, CompareOp::Greater, 0),
        Expect::ModRevision(revision) => etcd_client::Compare::mod_revision(key, CompareOp::Equal, revision),
    }
}

fn operation(prefix: &Prefix, write: &Write, lease: i64) -> TxnOp {
    match write {
        Write::Put { key, value, .. } => {
            TxnOp::put(prefix.join(key), value.clone(), Some(PutOptions::new().with_lease(lease)))
        }
        Write::Delete { key } => TxnOp::delete(prefix.join(key), None),
    }
}

/// The first key after all that begin with `prefix`, which ends with an ASCII character.
fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
