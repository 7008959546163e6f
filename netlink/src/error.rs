//! What the kernel answered when it refused a request.

use std::fmt;
use std::io;

/// A refused or failed netlink request.
#[derive(Debug)]
pub struct Error {
    /// The errno, e.g. `EEXIST`; 0 when the fault is not the kernel's answer.
    pub errno: i32,
    /// Which message of a batch was refused, counted from 0.
    pub index: usize,
    /// The kernel's own sentence (NLMSGERR_ATTR_MSG), if it gave one.
    pub reason: Option<String>,
    source: io::Error,
}

/// Result of a netlink request.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The kernel refused message `index` with `errno`.
    pub fn refused(errno: i32, index: usize, reason: Option<String>) -> Self {
        Self { errno, index, reason, source: io::Error::from_raw_os_error(errno) }
    }

    /// The socket itself failed.
    pub fn socket(source: io::Error) -> Self {
        Self { errno: source.raw_os_error().unwrap_or(0), index: 0, reason: None, source }
    }

    /// The kernel's answer could not be understood.
    pub fn malformed(what: &str) -> Self {
        let source = io::Error::new(io::ErrorKind::InvalidData, format!("unexpected netlink answer: {what}"));
        Self { errno: 0, index: 0, reason: None, source }
    }

    /// Whether the kernel answered with this errno.
    pub fn is(&self, errno: i32) -> bool {
        self.errno == errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{} ({reason})", self.source),
            None => self.source.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::socket(source)
    }
}
