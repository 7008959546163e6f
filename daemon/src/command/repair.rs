//! `weftd repair`: what only a person can decide, told to the running daemon.

use std::time::{Duration, Instant};

use weft_ipam::ask::{Op, Weftd};
use weft_ipam::clock::Deadline;

use super::{Failure, Verdict, print};

/// How long the daemon may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Tells it that a store that was restored, or written anew, is right as it is.
pub fn accept() -> Result<Verdict, Failure> {
    Weftd::default().ask(Op::AcceptHistory, Deadline::after(Instant::now(), LIMIT)).map_err(|error| {
        Failure::could_not_tell(format!(
            "weftd was not told: {error}. It must run for this; see `weftd status`"
        ))
    })?;
    print(
        "accepted: nodes that the store does not know are no longer reached from here. `weftd status` tells how it is\n",
    )?;
    Ok(Verdict::Fine)
}
