//! `make bench`: ADD and DEL of whole plugin chains, Weft and the reference plugins side by side and in turn.
//!
//! Two clocks: *returned* is what a runtime waits for (start of the first plugin, end of its output, exit, and so
//! on through the chain); *all work done* lasts until no process that the operation started is left, however
//! detached. Nothing here decides what is good: verdicts are printed beside the numbers, and the exit status is 0
//! unless something broke. A trace left behind by Weft's DEL counts as broken.

mod burst;
mod chain;
mod chains;
mod facts;
mod floor;
mod growth;
mod options;
mod process;
mod report;
mod samples;
mod sequential;
mod start;
mod subject;
mod sys;
mod turns;
mod watchdog;
mod witness;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use netns_tests::{Lab, Node, Pod};

use crate::options::{Options, Section};
use crate::report::Report;

/// What may fail; the message is for a person.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        // The lab's helpers panic; the next run takes away what is left of this one.
        let message = info.payload_as_str().unwrap_or("panicked");
        say(&info.location().map_or_else(|| message.to_owned(), |at| format!("{message} ({at})")));
        std::process::exit(1);
    }));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        // The throw-away processes that do the bare kernel's work.
        Some((word, task)) if word == floor::ADD => floor::add(task),
        Some((word, task)) if word == floor::DEL => floor::del(task),
        _ => Options::parse(&arguments).and_then(|options| bench(&options)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody_listens = writeln!(io::stderr(), "bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Outcome<()> {
    if options.help {
        return Ok(io::stdout().write_all(options::HELP.as_bytes())?);
    }
    if !netns_tests::require() {
        return Err("this machine cannot run labs (see above)".into());
    }
    sys::adopt_orphans()?;
    watchdog::start();
    let report = measure(options)?;
    io::stdout().write_all(report.table().as_bytes())?;
    report.write_json(&options.json)?;
    say(&format!("written: {}", options.json.display()));
    Ok(())
}

fn measure(options: &Options) -> Outcome<Report> {
    let programs = facts::Programs::find()?;
    let mut report = Report::new(options, facts::machine(&programs)?);
    let mut meter = facts::Meter::start()?;
    // One lab: what a run makes goes with it, also when a section fails.
    let lab = Lab::new("bench");
    let host = lab.node("pods");
    let pods = make_pods(&host, options.pods_needed());

    if options.wants(Section::Start) {
        say("start of a process: true and weft VERSION");
        report.start = Some(start::measure(&host, &programs, options.effort.starts)?);
    }
    for spec in chains::wanted(options) {
        let mut subjects = spec.subjects(&lab, &programs, options)?;
        say(&format!("{}: {}", spec.name, chains::labels(&subjects)));
        for subject in &mut subjects {
            subject.settle_in(&pods)?;
        }
        let sequential = sequential::measure(&subjects, &pods, &options.effort)?;
        let bursts = burst::measure(&subjects, &pods, &options.effort)?;
        report.add_chain(&spec, &subjects, sequential, bursts);
    }
    if options.wants(Section::Growth) {
        report.growth = growth::measure(&lab, &programs, &pods, &options.effort, &mut meter)?;
    }
    report.facts.push(("others' work", meter.others()?));
    Ok(report)
}

/// Namespaces of pods, made before any clock runs and used by every chain in turn.
fn make_pods(node: &Node, count: usize) -> Vec<Pod> {
    (0..count).map(|number| node.pod(&number.to_string())).collect()
}

/// A word on progress; standard output is for the result.
fn say(line: &str) {
    let _nobody_listens = writeln!(io::stderr(), "bench: {line}");
}
