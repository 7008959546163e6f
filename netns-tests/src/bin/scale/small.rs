//! Three nodes with nothing to do, and pods that cost the store nothing.

use std::time::Duration;

use netns_tests::Pod;
use netns_tests::cluster::{ClusterLab, Layout, Network, Process, chain};

use crate::meter::{self, Requests};
use crate::options::{Effort, Options, Section};
use crate::report::{Goal, Table};
use crate::{Outcome, say};

/// What a daemon of three nodes may take (issue 3, point 7).
const MEMORY_MB: f64 = 10.0;
const CPU_PERCENT: f64 = 0.1;
/// Requests that come whether there are pods or not: the session and the watch are kept alive.
const KEPT_ALIVE: [&str; 2] = ["LeaseKeepAlive", "Watch"];

pub fn measure(options: &Options) -> Outcome<Vec<Table>> {
    let lab = ClusterLab::new("scale3", &Layout::default().flat());
    lab.start_all(&Network::default());
    let mut tables = Vec::new();
    if options.wants(Section::Idle) {
        tables.push(idle(&lab, &options.effort));
    }
    if options.wants(Section::Pods) {
        tables.push(pods(&lab, &options.effort)?);
    }
    Ok(tables)
}

fn idle(lab: &ClusterLab, effort: &Effort) -> Table {
    say(&format!("three nodes idle for {:?}", effort.idle));
    let title = format!("three real nodes, dual stack, vxlan, idle for {} s", effort.idle.as_secs());
    let mut table = Table::new("idle", &title, lab.nodes.iter().map(|node| node.name().to_owned()).collect());
    let pids: Vec<u32> = lab.nodes.iter().map(|node| node.weftd().inspect(Process::pid)).collect();
    // What follows a start is no idling.
    std::thread::sleep(Duration::from_secs(3));
    let before: Vec<Duration> = pids.iter().map(|pid| meter::cpu(*pid)).collect();
    std::thread::sleep(effort.idle);
    for (column, (pid, before)) in pids.iter().zip(before).enumerate() {
        let used = meter::cpu(*pid).saturating_sub(before).as_secs_f64() / effort.idle.as_secs_f64() * 100.0;
        table.put(column, "processor", "%", used, Goal::AtMost(CPU_PERCENT));
        table.put(column, "memory (VmRSS)", "MB", meter::memory(*pid, "VmRSS"), Goal::AtMost(MEMORY_MB));
        table.put(column, "  of it its own (RssAnon)", "MB", meter::memory(*pid, "RssAnon"), Goal::None);
        table.put(column, "  at its highest (VmHWM)", "MB", meter::memory(*pid, "VmHWM"), Goal::None);
    }
    table
}

fn pods(lab: &ClusterLab, effort: &Effort) -> Outcome<Table> {
    say(&format!("{} pods inside a granted block", effort.pods));
    let title = format!("{} pods started and stopped by the plugin inside a granted block", effort.pods);
    let mut table = Table::new("pods", &title, vec!["all".to_owned()]);
    let node = &lab.nodes.first().ok_or("no node")?.node;
    let pods: Vec<Pod> = (0..effort.pods).map(|number| node.pod(&number.to_string())).collect();
    let chain = chain(node)?;
    let before = Requests::now(&lab.etcd);
    for pod in &pods {
        chain.add(pod).map_err(|failure| failure.to_string())?;
    }
    for pod in &pods {
        chain.del(pod).map_err(|failure| failure.to_string())?;
    }
    let mut requests = Requests::now(&lab.etcd).since(&before);
    requests.retain(|method, _| !KEPT_ALIVE.contains(&method.as_str()));
    let per_pod = meter::total(&requests) / effort.pods as f64;
    table.put(0, "requests to etcd of all nodes, a pod", "", per_pod, Goal::AtMost(0.0));
    Ok(table)
}
