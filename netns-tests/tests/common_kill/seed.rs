//! The seed of what is chosen at random, and a way to print it past the test runner's capture.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// `WEFT_SEED`, or another each second.
pub fn seed() -> u64 {
    let given = std::env::var("WEFT_SEED").ok().map(|seed| seed.parse().unwrap());
    given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}

/// Prints a line.
pub fn say(line: &str) {
    let _nobody_listens = writeln!(std::io::stderr(), "{line}");
}
