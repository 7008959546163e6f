//! `make demo`: a cluster of three nodes with a real etcd, a `weftd` and a private containerd on each. Pods reach each
//! other without NAT, then etcd and `weftd` are stopped, and pods still start, talk and stop.
//! With `--one-node`: pods of one containerd, no daemon; in bridge mode and in veth mode.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people at a terminal")]

mod args;
mod cluster;
mod reach;
mod stage;
mod table;

use std::process::ExitCode;

use args::Args;

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(problem) => return refuse(&problem),
    };
    if let Err(missing) = netns_tests::probe_containerd() {
        return refuse(&format!("this machine cannot run the demo: {missing}"));
    }
    if args.networks.is_empty() {
        return cluster(&args);
    }
    println!(
        "Weft demo. One node (a network namespace) with a private containerd, three pods, a server outside."
    );
    let mut failures = Vec::new();
    for network in &args.networks {
        let name = network.name();
        match std::panic::catch_unwind(|| stage::run(network, &args.bin_dirs)) {
            Ok(failed) => failures.extend(failed.into_iter().map(|failure| format!("{name}: {failure}"))),
            Err(_) => failures.push(format!("{name}: broke off; the reason is above")),
        }
    }
    conclude(&failures)
}

fn cluster(args: &Args) -> ExitCode {
    if !netns_tests::cluster::require_cluster() {
        return refuse("the cluster needs etcd and a built weftd; `make demo ARGS=--one-node` does without");
    }
    let failures = std::panic::catch_unwind(|| cluster::run(&args.bin_dirs));
    conclude(&failures.unwrap_or_else(|_| vec!["broke off; the reason is above".to_owned()]))
}

fn conclude(failures: &[String]) -> ExitCode {
    println!();
    if failures.is_empty() {
        println!("All of it held.");
        return ExitCode::SUCCESS;
    }
    for failure in failures {
        println!("FAILED  {failure}");
    }
    ExitCode::FAILURE
}

fn refuse(problem: &str) -> ExitCode {
    eprintln!("demo: {problem}");
    ExitCode::from(2)
}
