//! What a plugin answered, and the assertions that every runtime makes about it.

use std::process::ExitStatus;
use std::time::Duration;

use serde_json::Value;

/// How a call ended.
#[derive(Clone)]
pub struct Outcome {
    /// The program's exit status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// From its start to its exit.
    pub exited: Duration,
    /// From its start until exit and the end of both outputs: what a runtime waits for.
    pub elapsed: Duration,
}

/// The error object of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// The error code.
    pub code: u64,
    /// The sentence for people.
    pub msg: String,
    /// More of it; may be empty.
    pub details: String,
}

impl Outcome {
    /// The result of a call that must have succeeded with one JSON object.
    #[track_caller]
    pub fn result(&self) -> Value {
        assert!(self.status.success(), "the plugin failed: {self}");
        self.object()
    }

    /// The error of a call that must have failed with one JSON error object on standard output.
    #[track_caller]
    pub fn error(&self) -> CniError {
        assert!(self.status.code().is_some_and(|code| code != 0), "the plugin should have failed: {self}");
        let object = self.object();
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        assert!(!text("cniVersion").is_empty(), "an error without cniVersion: {self}");
        assert!(!text("msg").is_empty(), "an error without msg: {self}");
        let code = object["code"].as_u64().unwrap_or_else(|| panic!("an error without code: {self}"));
        CniError { code, msg: text("msg"), details: text("details") }
    }

    /// Asserts success without output, as DEL, CHECK, GC and STATUS owe it.
    #[track_caller]
    pub fn ok_empty(&self) {
        assert!(self.status.success() && self.stdout.is_empty(), "should succeed in silence: {self}");
    }

    #[track_caller]
    fn object(&self) -> Value {
        match serde_json::from_slice(&self.stdout) {
            Ok(object @ Value::Object(_)) => object,
            other => panic!("not one JSON object on stdout ({other:?}): {self}"),
        }
    }
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout);
        let stderr = String::from_utf8_lossy(&self.stderr);
        write!(f, "{} after {:?}\nstdout: {stdout}\nstderr: {stderr}", self.status, self.elapsed)
    }
}
