//! The stores that are held to the contract.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::CompactionOptions;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use weftd::store::etcd::{Conf, Etcd, Timing};
use weftd::store::model::{Backup, Client, Model};
use weftd::store::{Op, Reply, Resume, Store, StoreError, WatchInput, Write};

use crate::etcd_lab::{Cluster, PATIENCE, runtime, timing};

/// A store with one client, and what a scenario does to it from outside.
pub trait Subject {
    fn call(&mut self, op: Op) -> Result<Reply, StoreError>;
    /// Begins to follow; a former follower ends.
    fn follow(&mut self, resume: Option<Resume>);
    /// What the follower reports next.
    fn next_input(&mut self) -> WatchInput;
    /// Whether the follower has anything to report; waits a little where time is real.
    fn is_silent(&mut self) -> bool;
    /// Lets time pass: at least this.
    fn pass(&mut self, time: Duration);
    fn compact(&mut self, revision: i64);
    /// Ends all leases, as when they were not renewed.
    fn end_leases(&mut self);
    fn back_up(&mut self);
    fn restore(&mut self);
    /// Another client writes, unaware of what this one has seen.
    fn write_from_elsewhere(&mut self, writes: Vec<Write>);
}

pub struct ModelSubject {
    model: Model,
    client: Client,
    now: Duration,
    waiting: Vec<WatchInput>,
    backup: Option<Backup>,
}

impl ModelSubject {
    pub fn new() -> Self {
        let mut model = Model::new(7);
        let client = model.client();
        Self { model, client, now: Duration::ZERO, waiting: Vec::new(), backup: None }
    }
}

impl Subject for ModelSubject {
    fn call(&mut self, op: Op) -> Result<Reply, StoreError> {
        self.model.call(self.client, op, self.now)
    }

    fn follow(&mut self, resume: Option<Resume>) {
        self.waiting.clear();
        self.model.follow(self.client, resume);
    }

    fn next_input(&mut self) -> WatchInput {
        let end = self.now + PATIENCE;
        while self.waiting.is_empty() {
            self.waiting = self.model.poll(self.client);
            self.pass(Duration::from_millis(100));
            assert!(self.now < end, "nothing is reported");
        }
        self.waiting.remove(0)
    }

    fn is_silent(&mut self) -> bool {
        self.waiting.extend(self.model.poll(self.client));
        self.waiting.is_empty()
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.model.next_timeout().filter(|&next| next <= end) {
            self.model.tick(next.max(self.now));
            self.now = next.max(self.now);
        }
        self.now = end;
        self.model.tick(end);
    }

    fn compact(&mut self, revision: i64) {
        self.model.compact(revision);
    }

    fn end_leases(&mut self) {
        self.model.end_leases();
    }

    fn back_up(&mut self) {
        self.backup = Some(self.model.backup());
    }

    fn restore(&mut self) {
        self.model.restore(&self.backup.take().unwrap());
    }

    fn write_from_elsewhere(&mut self, writes: Vec<Write>) {
        self.model.write(writes, self.now);
    }
}

pub struct EtcdSubject {
    runtime: Runtime,
    store: Arc<Etcd>,
    inputs: Option<(mpsc::Receiver<WatchInput>, JoinHandle<()>)>,
    backup: Option<PathBuf>,
    cluster: Cluster,
}

impl EtcdSubject {
    pub fn new() -> Option<Self> {
        let cluster = Cluster::one()?;
        // Nothing here is to run into a deadline, on however busy a machine.
        let timing = Timing { call: PATIENCE, ..timing() };
        let store = Arc::new(Etcd::new(Conf { timing, ..cluster.conf() }));
        Some(Self { runtime: runtime(), store, inputs: None, backup: None, cluster })
    }

    fn admin(&self) -> etcd_client::Client {
        self.runtime.block_on(self.cluster.admin(0))
    }
}

impl Subject for EtcdSubject {
    fn call(&mut self, op: Op) -> Result<Reply, StoreError> {
        self.runtime.block_on(self.store.call(op))
    }

    fn follow(&mut self, resume: Option<Resume>) {
        let (sender, receiver) = mpsc::channel(64);
        let store = self.store.clone();
        let task = self.runtime.spawn(async move { store.follow(resume, sender).await });
        if let Some((_, former)) = self.inputs.replace((receiver, task)) {
            former.abort();
        }
    }

    fn next_input(&mut self) -> WatchInput {
        let (inputs, _) = self.inputs.as_mut().unwrap();
        let end = Instant::now() + PATIENCE;
        loop {
            let input = self
                .runtime
                .block_on(async { timeout(PATIENCE, inputs.recv()).await })
                .expect("nothing is reported")
                .unwrap();
            // Neither an outage nor a sign of life is of this contract; they come when a machine is slow.
            let is_noise = match &input {
                WatchInput::Lost(_) => true,
                WatchInput::Events { events, .. } => events.iter().all(is_progress),
                _ => false,
            };
            if !is_noise {
                return input;
            }
            assert!(Instant::now() < end, "nothing is reported but {input:?}");
        }
    }

    fn is_silent(&mut self) -> bool {
        let (inputs, _) = self.inputs.as_mut().unwrap();
        let quiet = Duration::from_millis(300);
        loop {
            match self.runtime.block_on(async { timeout(quiet, inputs.recv()).await }) {
                Err(_) => return true,
                Ok(Some(WatchInput::Events { events, .. })) if events.iter().all(is_progress) => {}
                Ok(_) => return false,
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    fn compact(&mut self, revision: i64) {
        let mut admin = self.admin();
        let options = CompactionOptions::new().with_physical();
        self.runtime.block_on(admin.compact(revision, Some(options))).unwrap();
    }

    fn end_leases(&mut self) {
        let mut admin = self.admin();
        self.runtime.block_on(async {
            for lease in admin.leases().await.unwrap().leases() {
                admin.lease_revoke(lease.id()).await.unwrap();
            }
        });
    }

    fn back_up(&mut self) {
        self.backup = Some(self.cluster.back_up(0));
        self.cluster.wait_until_it_answers();
    }

    fn restore(&mut self) {
        self.cluster.restore(0, &self.backup.take().unwrap());
        self.cluster.wait_until_it_answers();
    }

    fn write_from_elsewhere(&mut self, writes: Vec<Write>) {
        let txn = weftd::store::Txn { writes, ..Default::default() };
        // On a runtime of its own: the follower notices nothing before it is asked.
        runtime().block_on(Etcd::new(self.cluster.conf()).call(Op::Txn(txn))).unwrap();
    }
}

fn is_progress(event: &weftd::store::WatchEvent) -> bool {
    matches!(event, weftd::store::WatchEvent::Progress { .. })
}
