//! The cluster on the stage: etcd, three nodes (one behind a router), pods, who reaches whom; then without etcd and
//! `weftd`; then nothing is left.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netns_tests::cluster::{ClusterLab, Layout, Network};
use netns_tests::{CriPod, Inside, Runtime};

use crate::table;

/// A pod and the runtime that it lives in.
struct Placed {
    node: usize,
    pod: CriPod,
}

/// What is on the stage.
struct Stage {
    runtimes: Vec<Runtime>,
    lab: ClusterLab,
    failures: Vec<String>,
}

/// Shows the cluster and returns what did not hold.
pub fn run(bin_dirs: &[PathBuf]) -> Vec<String> {
    println!(
        "Weft demo. A real etcd, three nodes (network namespaces), each with weftd and a private containerd."
    );
    let started = Instant::now();
    let lab = ClusterLab::new("demo", &Layout::default());
    println!("\n=== The cluster");
    for node in &lab.nodes {
        println!("  node {}  {}", node.name(), node.addresses.join(", "));
    }
    println!("  a and b are on one subnet; c is behind a router. etcd: {}", lab.etcd.endpoints().join(", "));
    let network = Network::default().direct();
    lab.start_all(&network);
    println!("  weftd is ready on all of them after {}", millis(started.elapsed()));
    show_nodes(&lab);
    let runtimes = lab.nodes.iter().map(|node| {
        let conflist = node.weftd().conflist().expect("weftd is ready");
        Runtime::start(&node.node, &conflist, bin_dirs)
    });
    let mut stage = Stage { runtimes: runtimes.collect(), lab, failures: Vec::new() };
    let mut pods = stage.start(&["web", "db"]);
    stage.show_pods(&pods);
    stage.show_matrix(&pods);
    stage.without_etcd_and_weftd(&mut pods);
    stage.remove(&pods);
    stage.uninstall();
    let Stage { runtimes, lab, failures } = stage;
    drop(runtimes);
    drop(lab);
    println!("\nThe cluster took {:.1} s", started.elapsed().as_secs_f64());
    failures
}

fn show_nodes(lab: &ClusterLab) {
    println!("\n=== weftd node ls");
    for line in String::from_utf8_lossy(&lab.nodes[0].weftd().command(&["node", "ls"]).stdout).lines() {
        println!("  {line}");
    }
}

impl Stage {
    fn start(&mut self, names: &[&str]) -> Vec<Placed> {
        let mut pods = Vec::new();
        for (node, runtime) in self.runtimes.iter().enumerate() {
            for name in names {
                let name = format!("{name}-{}", self.lab.nodes[node].name());
                match runtime.try_run_pod(&name) {
                    Ok(pod) => pods.push(Placed { node, pod }),
                    Err(error) => self.failures.push(format!("{name} does not start: {error}")),
                }
            }
        }
        pods
    }

    fn show_pods(&mut self, pods: &[Placed]) {
        println!("\n=== The pods, as their runtimes see them");
        let mut rows = vec![words(["pod", "node", "addresses", "CNI ADD took"])];
        for Placed { node, pod } in pods {
            if pod.ips.len() != 2 {
                self.failures.push(format!("{} has {} addresses, not two", pod.name, pod.ips.len()));
            }
            let add = pod.network_setup.map_or("-".to_owned(), millis);
            rows.push(vec![pod.name.clone(), self.lab.nodes[*node].name().to_owned(), text(&pod.ips), add]);
        }
        table::print(&rows);
    }

    fn show_matrix(&mut self, pods: &[Placed]) {
        println!(
            "\n=== Who reaches whom: round trips in ms, IPv4 / IPv6; by TCP each must see the other's own address"
        );
        let heading = ["from \\ to".to_owned()].into_iter().chain(pods.iter().map(|to| to.pod.name.clone()));
        let mut rows = vec![heading.collect::<Vec<_>>()];
        let mut seen = 0;
        for from in pods {
            let mut row = vec![from.pod.name.clone()];
            for to in pods {
                let own = to.pod.id == from.pod.id;
                row.push(if own { "-".to_owned() } else { self.cell(from, to, &mut seen) });
            }
            rows.push(row);
        }
        table::print(&rows);
        println!("  {seen} connections, each seen under the pod's own address: no NAT between pods");
    }

    /// Round trips to each address of a pod; counts connections that came from the right address.
    fn cell(&mut self, from: &Placed, to: &Placed, seen: &mut usize) -> String {
        let mut times = Vec::new();
        for ip in &to.pod.ips {
            let runtime = &self.runtimes[from.node];
            let ping = runtime.exec(&from.pod, ["/podtool", "ping", &ip.to_string(), "2"]);
            let time = ping
                .stdout
                .lines()
                .filter_map(|line| line.split("time=").nth(1)?.strip_suffix(" ms"))
                .next_back();
            match time {
                Some(time) if ping.code == 0 => times.push(time.to_owned()),
                _ => times
                    .push(self.failed(format!("{} does not reach {} at {ip}", from.pod.name, to.pod.name))),
            }
            let runtime = &self.runtimes[from.node];
            let get =
                runtime.exec(&from.pod, ["/podtool", "get", &ip.to_string(), &CriPod::PORT.to_string()]);
            let found: Option<IpAddr> = get.stdout.trim().parse().ok();
            if found.is_some() && found == from.pod.ip_like(*ip) {
                *seen += 1;
            } else {
                self.failed(format!("{} sees {} as {found:?} at {ip}", to.pod.name, from.pod.name));
            }
        }
        times.join(" / ")
    }

    fn without_etcd_and_weftd(&mut self, pods: &mut Vec<Placed>) {
        println!("\n=== etcd and weftd are stopped; a pod more on each node");
        self.lab.etcd.stop_all();
        for node in &self.lab.nodes {
            node.weftd().stop();
        }
        let young = self.start(&["new"]);
        if young.len() != self.runtimes.len() {
            return;
        }
        self.show_pods(&young);
        let old = std::mem::take(pods);
        let all: Vec<Placed> = old.into_iter().chain(young).collect();
        self.show_matrix(&all);
        for Placed { node, pod } in all.iter().filter(|placed| placed.pod.name.starts_with("new")) {
            self.end(*node, pod);
        }
        pods.extend(all.into_iter().filter(|placed| !placed.pod.name.starts_with("new")));
        println!("  and they stopped again, without etcd and weftd");
    }

    fn remove(&mut self, pods: &[Placed]) {
        let started = Instant::now();
        for Placed { node, pod } in pods {
            self.end(*node, pod);
        }
        println!("\n=== Stopped and removed {} pods in {}", pods.len(), millis(started.elapsed()));
    }

    fn end(&mut self, node: usize, pod: &CriPod) {
        let runtime = &self.runtimes[node];
        if let Err(error) = runtime.stop_pod(pod).and_then(|()| runtime.remove_pod(pod)) {
            self.failures.push(format!("{} is not removed: {error}", pod.name));
        }
    }

    /// etcd comes back, and each node leaves the cluster: nothing of Weft may stay.
    fn uninstall(&mut self) {
        println!("\n=== etcd is back; weftd uninstall on each node");
        self.lab.etcd.start_all();
        let mut left = Vec::new();
        for node in &self.lab.nodes {
            let output = node.weftd().command(&["uninstall"]);
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                left.push(format!("uninstall on {}: {}", node.name(), said.trim()));
            }
            left.extend(
                remains(node).into_iter().map(|what| format!("left behind on {}: {what}", node.name())),
            );
        }
        if left.is_empty() {
            println!("  no link, route, packet rule or configuration of Weft is left on any node");
        }
        self.failures.extend(left);
    }

    fn failed(&mut self, what: String) -> String {
        self.failures.push(what);
        "NO".to_owned()
    }
}

/// What of Weft a node still has.
fn remains(node: &netns_tests::cluster::ClusterNode) -> Vec<String> {
    let lines = |words: &[&str]| -> Vec<String> {
        let output = node.run(words);
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    };
    let links = lines(&["ip", "-o", "link", "show"]).into_iter().filter(|line| line.contains("weft"));
    let mut left: Vec<String> = links.collect();
    left.extend(lines(&["ip", "-4", "route", "show", "table", "all", "proto", "87"]));
    left.extend(lines(&["ip", "-6", "route", "show", "table", "all", "proto", "87"]));
    left.extend(lines(&["nft", "list", "tables"]).into_iter().filter(|line| line.contains("weft")));
    left.extend(node.weftd().conflist().map(|_| "the conflist".to_owned()));
    left
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn text(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join("  ")
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}
