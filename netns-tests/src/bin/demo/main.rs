//! `make demo`: pods of a private containerd get their addresses from `weft`, reach each other, their
//! gateway and a server outside the node, and leave nothing behind. In bridge mode and in veth mode.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people at a terminal")]

mod args;
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
