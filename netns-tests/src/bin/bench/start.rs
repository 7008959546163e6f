//! What a process costs before it does anything: `true`, and Weft's VERSION.

use std::path::Path;
use std::time::{Duration, Instant};

use netns_tests::{Inside, Node};

use crate::facts::Programs;
use crate::samples::Samples;
use crate::{Outcome, process};

const TRUE: &str = "/bin/true";

#[derive(Debug, Default)]
pub struct Start {
    pub true_: Samples,
    pub version: Samples,
}

/// Starts both in turn.
pub fn measure(node: &Node, programs: &Programs, count: usize) -> Outcome<Start> {
    let weft = programs.weft.dir.join("weft");
    node.enter(|| {
        let mut start = Start::default();
        for _ in 0..count {
            start.true_.push(run(Path::new(TRUE))?);
            start.version.push(run(&weft)?);
        }
        Ok(start)
    })
}

fn run(program: &Path) -> Outcome<Duration> {
    let start = Instant::now();
    let finished = process::run(program, &[], &[("CNI_COMMAND", "VERSION")], br#"{"cniVersion":"1.0.0"}"#)?;
    let took = start.elapsed();
    finished.expect(|| format!("VERSION of {}", program.display()))?;
    Ok(took)
}
