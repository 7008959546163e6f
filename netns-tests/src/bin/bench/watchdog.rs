//! Ends a run that hangs. A plugin's child that the kernel never lets go would be waited for without end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::say;

/// Longer than any operation may take, rebuilt state and a busy machine included.
const LIMIT: u64 = 90;

/// Grows whenever something has ended.
static STEPS: AtomicU64 = AtomicU64::new(0);

/// Says that the run goes on.
pub fn step() {
    STEPS.fetch_add(1, Ordering::Relaxed);
}

/// Watches until the process ends.
pub fn start() {
    std::thread::spawn(|| {
        let mut seen = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let steps = STEPS.load(Ordering::Relaxed);
            if steps != seen.0 {
                seen = (steps, Instant::now());
            } else if seen.1.elapsed().as_secs() >= LIMIT {
                say(&format!("nothing has ended for {LIMIT} s: a plugin or a child of one hangs"));
                std::process::exit(1);
            }
        }
    });
}
