//! A transaction: all of its messages take effect at one moment, or none does.

use super::uapi::*;
use super::{ANSWER_HEADER_LEN, message};
use crate::attributes::{self, Attributes};
use crate::error::{Error, Result};
use crate::socket::{Request, Socket};

/// Messages to commit together, in one `send`. That limits it to the socket's send buffer (208 KiB by default,
/// roughly 4,000 elements); more is refused with EMSGSIZE and changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    requests: Vec<Request>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Commits the batch. With a `generation`, only if nobody has changed any table of the network namespace since
    /// [`generation`] returned it: ERESTART otherwise.
    ///
    /// An error says in `index` which message was refused and in `reason` what it was, e.g. "new table"; the
    /// batch as a whole (EPERM, ERESTART) counts as message 0.
    pub fn commit(self, socket: &mut Socket, generation: Option<u32>) -> Result<()> {
        if self.requests.is_empty() {
            return Ok(());
        }
        let guard =
            generation.map_or_else(Attributes::new, |id| Attributes::new().number(NFNL_BATCH_GENID, id));
        let mut requests = vec![delimiter(NFNL_MSG_BATCH_BEGIN, &guard)];
        requests.extend(self.requests);
        requests.push(delimiter(NFNL_MSG_BATCH_END, &Attributes::new()));
        socket.execute_batch(&requests).map_err(|refused| named(refused, &requests))
    }
}

impl Extend<Request> for Batch {
    fn extend<T: IntoIterator<Item = Request>>(&mut self, requests: T) {
        self.requests.extend(requests);
    }
}

/// The number of the last committed transaction in the socket's network namespace.
pub fn generation(socket: &mut Socket) -> Result<u32> {
    let request = message(NFT_MSG_GETGEN, 0, 0, &Attributes::new());
    let answer = socket.get(&request, &[], |(_, body)| {
        Ok(attributes::number(body.get(ANSWER_HEADER_LEN..).unwrap_or_default(), NFTA_GEN_ID))
    })?;
    answer.flatten().ok_or_else(|| Error::malformed("no generation id"))
}

/// The number that the next transaction will have. The kernel skips 0.
pub fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

/// BATCH_BEGIN or BATCH_END: `struct nfgenmsg` with the subsystem as `res_id`, in network byte order.
fn delimiter(kind: u16, attributes: &Attributes) -> Request {
    let mut payload = vec![0, 0];
    payload.extend_from_slice(&NFNL_SUBSYS_NFTABLES.to_be_bytes());
    payload.extend_from_slice(attributes.as_bytes());
    Request { kind, flags: 0, payload }
}

/// Says what the refused message was: nf_tables itself gives a sentence for hardly any refusal.
fn named(refused: Error, requests: &[Request]) -> Error {
    let what = match requests.get(refused.index).map(|request| request.kind & 0xff) {
        Some(NFT_MSG_NEWTABLE) => "new table",
        Some(NFT_MSG_DELTABLE) => "delete table",
        Some(NFT_MSG_NEWCHAIN) => "new chain",
        Some(NFT_MSG_NEWRULE) => "new rule",
        Some(NFT_MSG_DELRULE) => "delete rules",
        Some(NFT_MSG_NEWSET) => "new set",
        Some(NFT_MSG_NEWSETELEM) => "new set elements",
        Some(NFT_MSG_DELSETELEM) => "delete set elements",
        _ => "whole batch",
    };
    let sentence = refused.reason.map_or_else(String::new, |reason| format!(": {reason}"));
    Error::refused(
        refused.errno,
        refused.index,
        Some(format!("nftables message {}, {what}{sentence}", refused.index)),
    )
}
