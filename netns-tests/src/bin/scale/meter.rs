//! Readings: of a process by the kernel's accounts, of a link by its counters, of etcd by its metrics.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use netns_tests::Inside;
use netns_tests::cluster::Etcd;

/// Processor time that a process has used, in nanoseconds' precision where the kernel has it.
pub fn cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// A line of `/proc/PID/status` that is in KiB, as MB of 1,000,000 bytes.
pub fn memory(pid: u32, line: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kib = found.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) * 1024.0 / 1e6
}

/// Bytes that came in by the link to the other nodes, headers included.
pub fn received(place: &impl Inside) -> u64 {
    let text = place.enter(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap_or_default();
    let found = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
    found.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Requests that etcd was sent, by method.
#[derive(Debug)]
pub struct Requests(BTreeMap<String, f64>);

impl Requests {
    pub fn now(etcd: &Etcd) -> Self {
        let started =
            etcd.metrics().into_iter().filter(|(name, _)| name.starts_with("grpc_server_started_total"));
        let method = |name: &str| Some(name.split("grpc_method=\"").nth(1)?.split('"').next()?.to_owned());
        Self(started.filter_map(|(name, count)| Some((method(&name)?, count))).collect())
    }

    /// Those since `before`.
    pub fn since(&self, before: &Self) -> BTreeMap<String, f64> {
        let more = |(method, count): (&String, &f64)| {
            let more = count - before.0.get(method).unwrap_or(&0.0);
            (more > 0.0).then(|| (method.clone(), more))
        };
        self.0.iter().filter_map(more).collect()
    }
}

/// All of them together.
pub fn total(requests: &BTreeMap<String, f64>) -> f64 {
    requests.values().fold(0.0, |sum, count| sum + count)
}

/// The middle one; NaN of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people: 2^52 is far away")]
pub fn float(count: u64) -> f64 {
    count as f64
}
