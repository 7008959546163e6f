//! Time within a boot. The wall clock jumps; the boot clock does not, and it counts suspended time.

use std::time::{Duration, Instant};

use weft_cni::error::{Error, code};

/// Seconds since boot, suspended time included (CLOCK_BOOTTIME).
pub fn boot_seconds() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map_or(0, |time| u64::try_from(time.tv_sec()).unwrap_or(0))
}

/// Nanoseconds since boot, suspended time included (CLOCK_BOOTTIME).
pub fn boot_nanos() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec()).unwrap_or(0))
    })
}

/// How long one operation may take; shorter than any runtime's own limit, so that it can still undo its work.
pub const OPERATION_LIMIT: Duration = Duration::from_secs(25);

/// The moment at which an operation gives up.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// `limit` after `start`.
    pub fn after(start: Instant, limit: Duration) -> Self {
        Self(start + limit)
    }

    /// The moment itself.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// What is left; zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Code 11 once the moment has passed. Called between steps; a call stuck in the kernel cannot be ended.
    pub fn check(self, step: &str) -> Result<(), Error> {
        if self.remaining().is_zero() {
            let msg =
                format!("gave up before {step}: the limit of {} s has passed", OPERATION_LIMIT.as_secs());
            return Err(
                Error::new(code::TRY_AGAIN, msg).with_details("what was done has been undone; try again")
            );
        }
        Ok(())
    }
}
