//! Addresses for a pod of a cluster: from the granted blocks, and when nothing is free in them, by asking the
//! daemon for another block. Where an address is free nobody is asked.

use std::time::Duration;

use weft_cni::error::{Error, code};

use crate::ask::{Family, NeedBlock};
use crate::attachment::Attachment;
use crate::record::Record;
use crate::source::{Pool, Source};
use crate::take::{Attempt, Taking, attempt};

/// The pause before the second question; it grows up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Takes one address from each pool of `source`. A cluster's source that has none free makes the daemon grant more.
/// `check` may refuse the pools before anything is taken.
///
/// # Errors
/// As [`crate::take()`]; code 11 naming what to do when the daemon gives no answer, its own error when it refuses.
pub fn obtain(
    attachment: &Attachment<'_>,
    record: &mut Record,
    source: &dyn Source,
    taking: &mut Taking<'_>,
    asking: (&str, &dyn NeedBlock),
    check: impl Fn(&[Pool]) -> Result<(), Error>,
) -> Result<Vec<Pool>, Error> {
    let mut pause = Duration::ZERO;
    loop {
        let (error, families) = match once(attachment, record, source, taking, &check)? {
            Outcome::Taken(pools) => return Ok(pools),
            Outcome::Nothing { error, families } => (error, families),
        };
        if !source.is_cluster() {
            return Err(error);
        }
        // Half of a pod's addresses may be taken; nobody shall wait for us with them.
        attachment.release_all(Some(record))?;
        record.addresses.clear();
        // Not the first time: others were quicker with what was granted.
        std::thread::sleep(pause.min(taking.deadline.remaining()));
        pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        taking.deadline.check("an address was free")?;
        let (network, daemon) = asking;
        daemon.need_block(network, &families, taking.deadline).map_err(|refusal| both(&error, refusal))?;
    }
}

enum Outcome {
    Taken(Vec<Pool>),
    Nothing { error: Error, families: Vec<Family> },
}

fn once(
    attachment: &Attachment<'_>,
    record: &mut Record,
    source: &dyn Source,
    taking: &mut Taking<'_>,
    check: &impl Fn(&[Pool]) -> Result<(), Error>,
) -> Result<Outcome, Error> {
    let pools = match source.pools(attachment.state()) {
        // Nothing is granted, or not yet of each family.
        Err(error) if error.code == code::TRY_AGAIN => {
            return Ok(Outcome::Nothing { error, families: Vec::new() });
        }
        pools => pools?,
    };
    check(&pools)?;
    Ok(match attempt(attachment, record, &pools, taking)? {
        Attempt::Taken => Outcome::Taken(pools),
        Attempt::Exhausted { error, family } => Outcome::Nothing { error, families: vec![family] },
    })
}

/// What was missing here, and what the daemon said to it.
fn both(missing: &Error, refusal: Error) -> Error {
    let details = if refusal.details.is_empty() {
        refusal.msg
    } else {
        format!("{}: {}", refusal.msg, refusal.details)
    };
    let here = if missing.details.is_empty() { String::new() } else { format!(" ({})", missing.details) };
    Error::new(refusal.code, format!("{}{here}", missing.msg)).with_details(details)
}
