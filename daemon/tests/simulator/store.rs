//! The store that a simulated cluster speaks with: the model, or a real etcd (`real.rs`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use weftd::store::model::{self, Client, Faults, Model};
use weftd::store::{Listing, Op, Reply, Resume, StoreError, WatchInput, Write};

/// What the simulator does with a store. All of it is synchronous, and time is the simulator's.
pub trait Server {
    /// Somebody new who speaks with the store.
    fn client(&mut self) -> Client;
    /// What is wrong between this client and the store.
    fn faults(&mut self, client: Client) -> &mut Faults;
    /// The client's process ends.
    fn crash(&mut self, client: Client);
    fn call(&mut self, client: Client, op: Op, now: Duration) -> Result<Reply, StoreError>;
    /// Begins to follow; [`Server::poll`] gives what is reported.
    fn follow(&mut self, client: Client, resume: Option<Resume>);
    fn poll(&mut self, client: Client) -> Vec<WatchInput>;
    fn break_watch(&mut self, client: Client);
    /// Time has passed: sessions are renewed, leases end.
    fn tick(&mut self, now: Duration);
    fn revision(&self) -> i64;
    /// All that is there, for a test to look at.
    fn list(&self, prefix: &str) -> Listing;
    /// Writes as an operator does.
    fn write(&mut self, writes: Vec<Write>, now: Duration);
    fn compact(&mut self, revision: i64);
    fn backup(&mut self) -> Backup;
    fn restore(&mut self, backup: &Backup);
    /// Somebody else writes until the store is at this revision.
    fn drive_to(&mut self, revision: i64, now: Duration);
    /// For what only the model can do.
    fn as_model(&mut self) -> Option<&mut Model>;
}

/// A store as it was.
#[derive(Clone, Debug)]
pub enum Backup {
    Model(model::Backup),
    Etcd(Files),
}

/// The data folder of a member, and what else makes up the moment.
#[derive(Clone, Debug)]
pub struct Files {
    pub folder: PathBuf,
    pub leases: BTreeMap<u64, Lease>,
    pub followed: i64,
    pub deleted: bool,
    pub compacted: i64,
}

/// A lease of the store as the simulator's time has it.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    pub id: i64,
    pub life: Duration,
    pub ends: Duration,
}

impl Server for Model {
    fn client(&mut self) -> Client {
        Self::client(self)
    }

    fn faults(&mut self, client: Client) -> &mut Faults {
        Self::faults(self, client)
    }

    fn crash(&mut self, client: Client) {
        Self::crash(self, client);
    }

    fn call(&mut self, client: Client, op: Op, now: Duration) -> Result<Reply, StoreError> {
        Self::call(self, client, op, now)
    }

    fn follow(&mut self, client: Client, resume: Option<Resume>) {
        Self::follow(self, client, resume);
    }

    fn poll(&mut self, client: Client) -> Vec<WatchInput> {
        Self::poll(self, client)
    }

    fn break_watch(&mut self, client: Client) {
        Self::break_watch(self, client);
    }

    fn tick(&mut self, now: Duration) {
        Self::tick(self, now);
    }

    fn revision(&self) -> i64 {
        Self::revision(self)
    }

    fn list(&self, prefix: &str) -> Listing {
        Self::list(self, prefix)
    }

    fn write(&mut self, writes: Vec<Write>, now: Duration) {
        Self::write(self, writes, now);
    }

    fn compact(&mut self, revision: i64) {
        Self::compact(self, revision);
    }

    fn backup(&mut self) -> Backup {
        Backup::Model(Self::backup(self))
    }

    fn restore(&mut self, backup: &Backup) {
        let Backup::Model(backup) = backup else { panic!("a backup of another store") };
        Self::restore(self, backup);
    }

    fn drive_to(&mut self, revision: i64, now: Duration) {
        Self::drive_to(self, revision, now);
    }

    fn as_model(&mut self) -> Option<&mut Model> {
        Some(self)
    }
}
