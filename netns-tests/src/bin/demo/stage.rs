//! One network on the stage: start, pods, who reaches whom, the end, what is left.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netns_tests::{Allow, CriPod, Inside, Lab, Node, Residue, Runtime, Server};

use crate::args::Network;
use crate::reach::Prober;
use crate::table;

const PODS: [&str; 3] = ["web", "api", "db"];

/// Shows one network and returns what did not hold.
pub fn run(network: &Network, bin_dirs: &[PathBuf]) -> Vec<String> {
    let started = Instant::now();
    println!("\n=== {}: {}, {}", network.name(), network.kind(), network.ranges().join(" and "));

    let lab = Lab::new(network.name());
    let node = lab.node("node");
    let _server = lab.outside(&node);
    let runtime = Runtime::start(&node, &network.0, bin_dirs);
    let before = Residue::take(&node);
    let pods = PODS.map(|name| runtime.run_pod(name));

    let mut prober = Prober { runtime: &runtime, failures: Vec::new() };
    show_pods(&pods, network, &mut prober.failures);
    show_matrix(&mut prober, &node, &pods);
    show_sources(&mut prober, &pods);
    let mut failures = prober.failures;
    remove(&runtime, &pods, &mut failures);
    show_residue(&node, &before, network, &pods, &mut failures);
    drop((runtime, node));
    drop(lab);
    println!("\n{} took {:.1} s", network.name(), started.elapsed().as_secs_f64());
    failures
}

fn show_pods(pods: &[CriPod], network: &Network, failures: &mut Vec<String>) {
    println!("\nThe pods, as the runtime sees them");
    let mut rows = vec![words(["pod", "IPv4", "IPv6", "CNI ADD took", "sandbox took"])];
    for pod in pods {
        let [v4, v6] = [Server::V4, Server::V6].map(|like| pod.ip_like(like));
        let show = |ip: Option<IpAddr>| ip.map_or("-".to_owned(), |ip| ip.to_string());
        let add = pod.network_setup.map_or("-".to_owned(), millis);
        rows.push(vec![pod.name.clone(), show(v4), show(v6), add, millis(pod.sandbox_setup)]);
        if pod.ips.len() != network.ranges().len() {
            failures.push(format!(
                "{} has {} addresses, not {}",
                pod.name,
                pod.ips.len(),
                network.ranges().len()
            ));
        }
    }
    table::print(&rows);
    println!(
        "  (CNI ADD as containerd waited for it: the plugin and containerd's own `loopback`, side by side)"
    );
}

fn show_matrix(prober: &mut Prober<'_>, node: &Node, pods: &[CriPod]) {
    println!("\nWho reaches whom: round trips in ms, IPv4 / IPv6");
    let heading = pods.iter().map(|pod| format!("to {}", pod.name));
    let heading =
        ["from".to_owned()].into_iter().chain(heading).chain(words(["to its gateway", "to the server"]));
    let mut rows = vec![heading.collect::<Vec<_>>()];
    for from in pods {
        let mut row = vec![from.name.clone()];
        for to in pods {
            let own = to.id == from.id;
            row.push(if own { "-".to_owned() } else { prober.echo(from, &to.name, &text(&to.ips)) });
        }
        row.push(prober.echo(from, "its gateway", &gateways(node, from)));
        let server = [Server::V4, Server::V6].into_iter().filter(|&ip| from.ip_like(ip).is_some());
        row.push(prober.echo(from, "the server", &text(&server.collect::<Vec<_>>())));
        rows.push(row);
    }
    table::print(&rows);
}

fn show_sources(prober: &mut Prober<'_>, pods: &[CriPod]) {
    println!("\nWhich source address they see (TCP): between pods the pod's own, outside the node's");
    let mut rows = vec![words(["client", "seen by", "as"])];
    for from in pods {
        for to in pods.iter().filter(|to| to.id != from.id) {
            rows.push(vec![from.name.clone(), to.name.clone(), prober.seen_by_pod(from, to)]);
        }
        rows.push(vec![from.name.clone(), "the server".to_owned(), prober.seen_outside(from)]);
    }
    table::print(&rows);
}

fn remove(runtime: &Runtime, pods: &[CriPod], failures: &mut Vec<String>) {
    let started = Instant::now();
    for pod in pods {
        if let Err(error) = runtime.stop_pod(pod).and_then(|()| runtime.remove_pod(pod)) {
            failures.push(format!("{} is not removed: {error}", pod.name));
        }
    }
    println!("\nStopped and removed {} pods in {}", pods.len(), millis(started.elapsed()));
}

/// Nothing of the pods may be left: no link, no address, no record, no packet rule, no process.
fn show_residue(
    node: &Node,
    before: &Residue,
    network: &Network,
    pods: &[CriPod],
    failures: &mut Vec<String>,
) {
    let stays = Allow::nothing().forwarding().table("inet weft").table("bridge weft").path("/var/lib/weft/");
    // An element of a whole range belongs to the network, not to a pod; those of pods are looked for below.
    let stays = stays.text("Element: inet weft");
    let stays = network.bridge().map_or(stays.clone(), |bridge| stays.link(bridge));
    let mut left = before.settle(node, &stays);
    let after = Residue::take(node).lines();
    let of_a_pod = |line: &&String| pods.iter().any(|pod| mentions(line, pod)) && !left.contains(*line);
    let more: Vec<String> = after.iter().filter(of_a_pod).cloned().collect();
    left.extend(more);

    let stays =
        after.iter().filter(|line| line.starts_with("Link: ")).filter_map(|line| line.split(' ').nth(1));
    println!("  links on the node: {}", stays.collect::<Vec<_>>().join(", "));
    if left.is_empty() {
        println!("  nothing of the pods is left: no link, address, route, packet rule, record or process");
    }
    failures.extend(left.into_iter().map(|line| format!("left behind: {line}")));
}

fn mentions(line: &str, pod: &CriPod) -> bool {
    let word = |ip: &IpAddr| {
        line.split(|c: char| !c.is_ascii_hexdigit() && c != '.' && c != ':')
            .any(|part| part.trim_matches(':') == ip.to_string())
    };
    line.contains(&pod.id) || pod.ips.iter().any(word)
}

/// The pod's default gateways, as its routes say; a link-local one with its link.
fn gateways(node: &Node, pod: &CriPod) -> Vec<String> {
    let netns = format!("--net={}", pod.netns.display());
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let routes = node.json(["nsenter", &netns, "ip", family, "-j", "route", "show", "default"]);
        let gateway = routes[0]["gateway"].as_str().map(str::to_owned);
        let scoped = |ip: String| if ip.starts_with("fe80:") { format!("{ip}%eth0") } else { ip };
        found.extend(gateway.map(scoped));
    }
    found
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn text(ips: &[IpAddr]) -> Vec<String> {
    ips.iter().map(ToString::to_string).collect()
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}
