//! `make bench`, second part: what a cluster of up to 5,000 nodes costs one daemon and its store.
//!
//! The daemon, etcd and the kernel are real; most of the nodes are records that this program writes. Nothing here
//! decides what is good: verdicts are printed beside the numbers, and the exit status is 0 unless something broke.

mod fanout;
mod growth;
mod kernel;
mod meter;
mod options;
mod report;
mod small;
mod watchers;
mod world;

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::process::{Command, ExitCode};
use std::time::Duration;

use netns_tests::cluster::{ClusterLab, Layout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::options::{Options, Section};
use crate::report::Report;

/// What may fail; the message is for a person.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // A panic unwinds: the labs take everything away on its way out.
    match Options::parse(&arguments).and_then(|options| scale(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody_listens = writeln!(io::stderr(), "scale: {error}");
            ExitCode::FAILURE
        }
    }
}

fn scale(options: &Options) -> Outcome<()> {
    if options.help {
        return Ok(io::stdout().write_all(options::HELP.as_bytes())?);
    }
    if !netns_tests::cluster::require_cluster() {
        return Err("this machine cannot run clusters (see above)".into());
    }
    // Hundreds of connections; etcd inherits it.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut report = Report { facts: facts(), quick: options.quick, ..Report::default() };
    let busy = load();
    let measured = measure(options, &mut report);
    report
        .facts
        .push(("load", format!("{busy} before, {} after: more than 1 a core makes times longer", load())));
    io::stdout().write_all(report.text().as_bytes())?;
    report.write_json(&options.json)?;
    say(&format!("written: {}", options.json.display()));
    // What was measured before something broke is true all the same.
    measured
}

fn measure(options: &Options, report: &mut Report) -> Outcome<()> {
    if options.wants(Section::Growth) || options.wants(Section::Fanout) {
        let lab = ClusterLab::new("scale", &Layout { nodes: Vec::new(), ..Layout::default() });
        if options.wants(Section::Growth) {
            growth::measure(&lab, &options.effort, &mut report.tables)?;
        }
        if options.wants(Section::Fanout) {
            report.tables.push(fanout::measure(&lab, &options.effort)?);
        }
    }
    if options.wants(Section::Idle) || options.wants(Section::Pods) {
        report.tables.extend(small::measure(options)?);
    }
    Ok(())
}

/// What ran, and on what.
fn facts() -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let said = |program: &std::ffi::OsStr, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let weftd = netns_tests::weft_bin_dir().join("weftd");
    let size = fs::metadata(&weftd).map_or(0, |facts| facts.len() / 1000);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    vec![
        ("date", said("date".as_ref(), &["-u", "+%Y-%m-%dT%H:%M:%SZ"])),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("cores", cores.to_string()),
        ("weftd", format!("{} ({}), {size} kB", said(weftd.as_os_str(), &["--version"]), weftd.display())),
        ("etcd", said("etcd".as_ref(), &["--version"])),
    ]
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A word on progress; standard output is for the result.
fn say(line: &str) {
    let _nobody_listens = writeln!(io::stderr(), "scale: {line}");
}
