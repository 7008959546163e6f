//! A node as the store sees it, and what an operator does to a store.

use std::cell::RefCell;
use std::sync::Arc;

use etcd_client::{Permission, PermissionType};
use netns_tests::wait_for;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use weftd::store::etcd::{Conf, Etcd};
use weftd::store::{
    KeyValue, Op, Reply, Resume, Store, StoreError, Txn, TxnOutcome, WatchEvent, WatchInput, Write,
};

use crate::etcd_lab::{Cluster, PATIENCE, runtime};

/// One client of a store, with a runtime of its own.
pub struct Node {
    runtime: Runtime,
    store: Arc<Etcd>,
    inputs: RefCell<Option<mpsc::Receiver<WatchInput>>>,
}

impl Node {
    pub fn new(conf: Conf) -> Self {
        conf.check().unwrap();
        Self { runtime: runtime(), store: Arc::new(Etcd::new(conf)), inputs: RefCell::new(None) }
    }

    pub fn call(&self, op: Op) -> Result<Reply, StoreError> {
        self.runtime.block_on(self.store.call(op))
    }

    pub fn read(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let Reply::Read { items, .. } = self.call(Op::Read(vec![key.to_owned()]))? else {
            panic!("another answer")
        };
        Ok(items.into_iter().next().unwrap().1)
    }

    /// Writes are the same each time, so that a test may repeat them.
    pub fn try_write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        match self.call(Op::Txn(Txn { writes, ..Txn::default() }))? {
            Reply::Txn(TxnOutcome::Committed { .. }) => Ok(()),
            other => panic!("{other:?}"),
        }
    }

    /// Writes as soon as the store can, whatever it says before.
    pub fn write(&self, writes: Vec<Write>) {
        wait_for("a write is done", PATIENCE, || self.try_write(writes.clone()).ok());
    }

    /// Why a read is refused, once somebody is there who answers.
    pub fn refusal(&self) -> String {
        wait_for("a refusal", PATIENCE, || match self.read("n/a") {
            Err(StoreError::Refused { reason }) => Some(reason),
            Err(StoreError::Unavailable { .. }) => None,
            other => panic!("{other:?}"),
        })
    }

    /// Why a read is refused, or why the store cannot be reached: a member's alert is seen or lost as time has it.
    pub fn refusal_or_break(&self) -> String {
        wait_for("a refusal", PATIENCE, || match self.read("n/a") {
            Err(StoreError::Refused { reason }) => Some(reason),
            Err(StoreError::Unavailable { reason }) if !reason.contains("connection refused") => Some(reason),
            Err(StoreError::Unavailable { .. }) => None,
            other => panic!("{other:?}"),
        })
    }

    pub fn has_new_login(&self) -> bool {
        self.store.has_new_login()
    }

    pub fn follow(&self, resume: Option<Resume>) {
        let (sender, receiver) = mpsc::channel(64);
        let store = self.store.clone();
        self.runtime.spawn(async move { store.follow(resume, sender).await });
        self.inputs.replace(Some(receiver));
    }

    pub fn next_input(&self) -> WatchInput {
        let mut inputs = self.inputs.borrow_mut();
        let next = async { timeout(PATIENCE, inputs.as_mut().unwrap().recv()).await };
        self.runtime.block_on(next).expect("nothing is reported").unwrap()
    }

    pub fn wait_for(&self, is_it: impl Fn(&WatchInput) -> bool) {
        while !is_it(&self.next_input()) {}
    }

    /// Waits until the follower knows of this key.
    pub fn wait_for_put(&self, key: &str) {
        let is_it = |kv: &KeyValue| kv.key == key;
        self.wait_for(|input| match input {
            WatchInput::Snapshot(all) => all.items.iter().any(is_it),
            WatchInput::Events { events, .. } => events.iter().any(|event| match event {
                WatchEvent::Put(kv) => is_it(kv),
                WatchEvent::Delete { .. } | WatchEvent::Progress { .. } => false,
            }),
            _ => false,
        });
    }
}

/// Adds these users (name, password, whether the prefix is theirs), and switches authentication on.
pub fn enable_authentication(cluster: &Cluster, users: &[(&str, &str, bool)]) {
    runtime().block_on(async {
        let mut admin = cluster.admin(0).await;
        admin.role_add("root").await.unwrap();
        admin.role_add("weft").await.unwrap();
        let prefix = Permission::new(PermissionType::Readwrite, "/weft/v1/").with_prefix();
        admin.role_grant_permission("weft", prefix).await.unwrap();
        admin.user_add("root", "root", None).await.unwrap();
        admin.user_grant_role("root", "root").await.unwrap();
        for (name, password, allowed) in users {
            admin.user_add(*name, *password, None).await.unwrap();
            if *allowed {
                admin.user_grant_role(*name, "weft").await.unwrap();
            }
        }
        admin.auth_enable().await.unwrap();
    });
}

/// The client of etcd itself, once it wants to know who asks.
pub async fn root(cluster: &Cluster) -> etcd_client::Client {
    let options = etcd_client::ConnectOptions::new().with_user("root", "root");
    etcd_client::Client::connect([cluster.url(0)], Some(options)).await.unwrap()
}

/// Another password for a user; what was logged in with the old one is void.
pub fn change_password(cluster: &Cluster, user: &str, password: &str) {
    let change = async { root(cluster).await.user_change_password(user, password).await };
    runtime().block_on(change).unwrap();
}

/// The member that leads now.
pub fn leader(cluster: &Cluster) -> usize {
    wait_for("a leader", PATIENCE, || {
        runtime().block_on(async {
            for index in 0..3 {
                let Ok(status) = cluster.admin(index).await.status().await else { continue };
                let own = status.header().map(etcd_client::ResponseHeader::member_id);
                if own == Some(status.leader()) {
                    return Some(index);
                }
            }
            None
        })
    })
}
