//! Collecting garbage: attachments whose host end is gone and that nobody works on. Their DEL never came.

use weft_cni::error::Error;

use crate::attachment::Attachment;
use crate::key::AttachmentId;
use crate::rebuild::Kernel;
use crate::record::Owner;
use crate::state::State;

/// An attachment that was collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collected {
    /// Whose it was.
    pub owner: Owner,
}

/// Ends up to `limit` looked-at attachments that are garbage; never the one called `except`.
///
/// # Errors
/// Code 5 on a disk fault, 102 if the kernel refuses to tell what lives.
pub fn collect(
    state: &State,
    kernel: &mut dyn Kernel,
    except: Option<&AttachmentId>,
    limit: usize,
) -> Result<Vec<Collected>, Error> {
    let mut owners = state.owners()?;
    if owners.len() > limit {
        // Another part each time: everybody's turn comes.
        let first = usize::try_from(crate::clock::boot_nanos() / 1000).unwrap_or(0) % owners.len();
        owners.rotate_left(first);
        owners.truncate(limit);
    }
    let mut collected = Vec::new();
    for owner in owners {
        let Some(key) = owner.key().filter(|key| Some(&key.id()) != except) else { continue };
        // Cheap look first: most attachments live.
        if let Some(record) = state.peek(&key)?
            && kernel.is_alive(&record)?
        {
            continue;
        }
        let Some(attachment) = state.find_idle(&key)? else { continue };
        if end_if_dead(attachment, kernel)? {
            collected.push(Collected { owner });
        }
    }
    Ok(collected)
}

/// Under the lock the question is asked again: the first answer may be old.
fn end_if_dead(attachment: Attachment<'_>, kernel: &mut dyn Kernel) -> Result<bool, Error> {
    let record = attachment.record()?;
    if let Some(record) = &record {
        if kernel.is_alive(record)? {
            return Ok(false);
        }
        kernel.clean(record, &attachment.held(record)?)?;
    }
    attachment.release_all(record.as_ref())?;
    attachment.end()?;
    Ok(true)
}
