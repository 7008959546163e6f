//! The one error type of a plugin: what the CNI error object on stdout carries.

use std::fmt::{self, Display};
use std::io;

use serde_json::{Map, Value};

/// Error codes: those of the CNI specification, then Weft's own from 100.
pub mod code {
    /// The configuration's `cniVersion` is not one we speak, or does not have the verb.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field has a value that is not supported; the message has key and value.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container does not exist, so nothing needs cleaning up. Never use it once anything was made.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A `CNI_…` variable is missing or wrong; the message names it.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO_FAILURE: u32 = 5;
    /// Something is not the JSON it should be.
    pub const DECODE_FAILURE: u32 = 6;
    /// The configuration is JSON, but makes no sense.
    pub const INVALID_CONFIG: u32 = 7;
    /// `CNI_NETNS` is not a network namespace, or is the plugin's own.
    pub const INVALID_NETNS: u32 = 8;
    /// A transient condition; the same call may succeed later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: an ADD cannot be served now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: an ADD cannot be served, and existing containers may have lost connectivity.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// This attachment exists already.
    pub const ALREADY_ATTACHED: u32 = 100;
    /// The container has an interface of that name, made by someone else.
    pub const INTERFACE_EXISTS: u32 = 101;
    /// The kernel refused a change.
    pub const KERNEL: u32 = 102;
    /// CHECK found a difference.
    pub const CHECK_FAILED: u32 = 103;
    /// The allocator refused, and trying again will not help.
    pub const IPAM: u32 = 104;
    /// A defect of ours.
    pub const INTERNAL: u32 = 199;
}

/// A failure as the runtime and the person behind it see it.
///
/// Runtimes show nothing but `msg` and `details`, so everything a user needs must be in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// One of [`code`], or a delegate's own.
    pub code: u32,
    /// One short sentence.
    pub msg: String,
    /// More of it; may be empty.
    pub details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same error with other details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Code 2, whose message must contain key and value (SPEC, "Error codes").
    pub fn unsupported(key: &str, value: impl Display) -> Self {
        Self::new(code::UNSUPPORTED_FIELD, format!("unsupported value of {key}: {value}"))
    }

    /// Code 7: the configuration makes no sense.
    pub fn config(msg: impl Into<String>) -> Self {
        Self::new(code::INVALID_CONFIG, msg)
    }

    /// Code 6: not the JSON it should be.
    pub fn decode(msg: impl Into<String>) -> Self {
        Self::new(code::DECODE_FAILURE, msg)
    }

    /// Code 4: a variable is missing or wrong.
    pub fn environment(msg: impl Into<String>) -> Self {
        Self::new(code::INVALID_ENVIRONMENT, msg)
    }

    /// Code 5, worded `what: source`.
    pub fn io(what: impl Display, source: &io::Error) -> Self {
        Self::new(code::IO_FAILURE, format!("{what}: {source}"))
    }

    /// The same error, its message preceded by what was being done.
    #[must_use]
    pub fn context(mut self, prefix: impl Display) -> Self {
        self.msg = format!("{prefix}: {}", self.msg);
        self
    }

    /// The error object for stdout. It has `cniVersion`, as the specification asks (the Go library omits it).
    pub fn to_json(&self, version: &str) -> String {
        let mut object = Map::new();
        object.insert("cniVersion".into(), version.into());
        object.insert("code".into(), self.code.into());
        object.insert("msg".into(), self.msg.as_str().into());
        if !self.details.is_empty() {
            object.insert("details".into(), self.details.as_str().into());
        }
        Value::Object(object).to_string()
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_version_and_omits_empty_details() {
        let bare = Error::config("bad \"mtu\"");
        assert_eq!(bare.to_json("0.4.0"), r#"{"cniVersion":"0.4.0","code":7,"msg":"bad \"mtu\""}"#);
        let full = bare.with_details("why");
        assert_eq!(
            full.to_json("1.1.0"),
            r#"{"cniVersion":"1.1.0","code":7,"msg":"bad \"mtu\"","details":"why"}"#
        );
    }

    #[test]
    fn display_joins_message_and_details() {
        assert_eq!(Error::config("a").to_string(), "a");
        assert_eq!(Error::config("a").with_details("b").to_string(), "a: b");
    }

    #[test]
    fn an_unsupported_field_names_key_and_value() {
        let error = Error::unsupported("vlan", 7);
        assert_eq!((error.code, error.msg.as_str()), (2, "unsupported value of vlan: 7"));
    }

    #[test]
    fn context_goes_in_front_and_keeps_the_code() {
        let source = io::Error::from_raw_os_error(libc::ENOSPC);
        let error = Error::io("write record", &source).context("ADD");
        assert_eq!(error.code, code::IO_FAILURE);
        assert_eq!(error.msg, "ADD: write record: No space left on device (os error 28)");
    }
}
