//! Waiting for a state. The only place of the harness that sleeps.

use std::time::{Duration, Instant};

/// Polls `cond` until it is true. Panics, naming `what`, when `deadline` passes first.
pub fn wait_until(what: &str, deadline: Duration, mut cond: impl FnMut() -> bool) {
    wait_for(what, deadline, || cond().then_some(()));
}

/// Polls `probe` until it has a value. Panics, naming `what`, when `deadline` passes first.
pub fn wait_for<T>(what: &str, deadline: Duration, probe: impl FnMut() -> Option<T>) -> T {
    match poll(deadline, probe) {
        Some(value) => value,
        None => panic!("waited {deadline:?} in vain for: {what}"),
    }
}

/// Polls `probe` until it has a value or `deadline` passes. It is asked at least once.
pub(crate) fn poll<T>(deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
