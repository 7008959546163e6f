//! Asking `weftd` for another block: the protocol on its Unix socket, and the plugin's side of it.
//!
//! A frame is a big-endian `u32` and that many bytes of JSON, at most [`MAX_FRAME`]. One request on a connection;
//! while the daemon works on it, it says `wait` each half second; then it answers. The plugin asks only when no
//! address is free, and never in DEL; a daemon that says nothing costs it [`SILENCE`].

mod client;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use weft_cni::error::{Error, code};

pub use client::{NeedBlock, SILENCE, Weftd, WithoutDaemon};

/// Where `weftd` listens: a folder that only root may enter.
pub const SOCKET: &str = "/run/weftd/weftd.sock";
/// The protocol's version, the `v` of every message.
pub const VERSION: u32 = 1;
/// The longest JSON text that either side sends or takes.
pub const MAX_FRAME: u32 = 1 << 20;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an IPv4 (`true`) or an IPv6 address.
    pub fn of(ipv4: bool) -> Self {
        if ipv4 { Self::V4 } else { Self::V6 }
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub v: u32,
    /// The question.
    #[serde(flatten)]
    pub op: Op,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Op {
    /// No granted address is free: grant another block. Answered by `ok` once one with a free address is there.
    NeedBlock {
        /// The network of the pod, for the daemon's log.
        network: String,
        /// Which families had nothing free; all of the cluster's when it is empty. A hint.
        #[serde(default)]
        families: Vec<Family>,
    },
    /// How the daemon is. The answer is the document of `weftd status -o json`.
    Status,
    /// A person says that a rewritten store is right as it is: nodes that it does not know are gone for good.
    AcceptHistory,
}

impl Request {
    /// A request of this version.
    pub fn new(op: Op) -> Self {
        Self { v: VERSION, op }
    }
}

/// What is answered to `need-block`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// [`VERSION`].
    pub v: u32,
    /// The daemon is alive and works on it: another message follows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wait: bool,
    /// The answer, in the last message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<bool>,
    /// A CNI error code, where the answer is no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u32>,
    /// What could not be done, and why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub msg: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Reply {
    /// A block with a free address is granted.
    pub fn granted() -> Self {
        Self { ok: Some(true), ..Self::empty() }
    }

    /// Still at it.
    pub fn wait() -> Self {
        Self { wait: true, ..Self::empty() }
    }

    /// There is no block to be had, for now.
    pub fn refused(error: &Error) -> Self {
        let Error { code, msg, details } = error.clone();
        Self { ok: Some(false), code: Some(code), msg, details, ..Self::empty() }
    }

    fn empty() -> Self {
        Self { v: VERSION, wait: false, ok: None, code: None, msg: String::new(), details: String::new() }
    }
}

/// Writes one frame.
///
/// # Errors
/// Those of the stream; `InvalidInput` when the message is longer than [`MAX_FRAME`].
pub fn write_frame(stream: &mut impl Write, json: &[u8]) -> io::Result<()> {
    let length = u32::try_from(json.len()).ok().filter(|length| *length <= MAX_FRAME).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {} bytes is too long", json.len()))
    })?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(json);
    stream.write_all(&frame)
}

/// Reads one frame; `None` when the other side closed the stream before one began.
///
/// # Errors
/// Those of the stream; `InvalidData` when the other side announces more than [`MAX_FRAME`].
pub fn read_frame(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let mut filled = 0;
    while let Some(rest) = length.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let length = u32::from_be_bytes(length);
    if length > MAX_FRAME {
        let msg = format!("it announces a message of {length} bytes; {MAX_FRAME} is the most there is");
        return Err(io::Error::new(io::ErrorKind::InvalidData, msg));
    }
    let mut json = vec![0; usize::try_from(length).unwrap_or(0)];
    stream.read_exact(&mut json).map(|()| Some(json))
}

/// Code 11: the daemon gave no answer that helps. Says what to do.
fn unanswered(socket: &Path, why: &str) -> Error {
    Error::new(code::TRY_AGAIN, "no granted address of this node is free, and weftd gave no other block")
        .with_details(format!(
            "{} {why}; `systemctl status weftd` and `weftd status` say more. Pods that run are not affected",
            socket.display()
        ))
}
