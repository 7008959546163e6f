//! Real watch streams without a daemon: what 500 other nodes would be to etcd. The few messages of etcd's gRPC
//! interface that they need are written out here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use netns_tests::{Inside, Node};
use prost::Message;
use tokio::runtime::Builder;
use tokio_stream::StreamExt as _;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::Outcome;

#[derive(Clone, PartialEq, Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(bool, tag = "4")]
    progress_notify: bool,
}

#[derive(Clone, PartialEq, Message)]
struct WatchResponse {
    #[prost(bool, tag = "3")]
    created: bool,
    /// Not looked into: only their number counts.
    #[prost(bytes = "vec", repeated, tag = "11")]
    events: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Counts {
    stop: AtomicBool,
    created: AtomicUsize,
    events: AtomicUsize,
}

/// Watches that run, each over a connection of its own.
#[derive(Debug)]
pub struct Watchers {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<Outcome<()>>>,
}

impl Watchers {
    /// Opens them from a machine, and waits until etcd has accepted all.
    pub fn start(node: &Node, endpoint: &str, prefix: &str, count: usize) -> Outcome<Self> {
        let counts = Arc::new(Counts::default());
        let (node, endpoint, prefix, shared) =
            (node.clone(), endpoint.to_owned(), prefix.to_owned(), counts.clone());
        let thread = std::thread::spawn(move || node.enter(|| run(&endpoint, &prefix, count, &shared)));
        let watchers = Self { counts, thread: Some(thread) };
        watchers
            .wait(|counts| counts.created.load(Ordering::Relaxed) >= count, "watches that etcd accepts")?;
        Ok(watchers)
    }

    /// Events that all of them together have had.
    pub fn heard(&self) -> usize {
        self.counts.events.load(Ordering::Relaxed)
    }

    /// Waits until all together have had so many events.
    pub fn wait_events(&self, events: usize) -> Outcome<()> {
        self.wait(|counts| counts.events.load(Ordering::Relaxed) >= events, "events of the watches")
    }

    fn wait(&self, done: impl Fn(&Counts) -> bool, what: &str) -> Outcome<()> {
        let since = Instant::now();
        while !done(&self.counts) {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if ended || since.elapsed() > Duration::from_secs(30) {
                return Err(format!("waited in vain for {what}: {:?}", self.counts).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _it_said_why = thread.join();
        }
    }
}

fn run(endpoint: &str, prefix: &str, count: usize, counts: &Arc<Counts>) -> Outcome<()> {
    // This thread alone is in the machine's network.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?;
    runtime.block_on(async {
        for _ in 0..count {
            tokio::spawn(watch(endpoint.clone(), prefix.to_owned(), counts.clone()));
        }
        while !counts.stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    Ok(())
}

async fn watch(endpoint: Endpoint, prefix: String, counts: Arc<Counts>) -> Outcome<()> {
    let mut grpc = Grpc::new(endpoint.connect().await?);
    grpc.ready().await?;
    let (key, range_end) = (format!("{prefix}config").into_bytes(), format!("{prefix}n0").into_bytes());
    let create = WatchCreateRequest { key, range_end, progress_notify: true };
    // Never ends: a client that has nothing more to say hangs up.
    let requests = tokio_stream::iter([WatchRequest { create: Some(create) }]).chain(tokio_stream::pending());
    let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
    let mut answers = grpc.streaming(Request::new(requests), path, codec).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        counts.created.fetch_add(usize::from(answer.created), Ordering::Relaxed);
        counts.events.fetch_add(answer.events.len(), Ordering::Relaxed);
    }
    Ok(())
}
