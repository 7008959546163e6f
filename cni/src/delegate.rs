//! Running another CNI plugin, such as `host-local` or `dhcp`, as the specification's "delegation" says.

mod process;

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{Error, code};
use crate::object::{Object, shorten};
use crate::request::{Command, Environment};
use crate::result::AddResult;
use process::{Exited, Failure};

/// How much of an unreadable answer is shown.
const EXCERPT: usize = 200;
/// What the DEL after a failed ADD may take, even when the ADD used up all the time there was.
const UNDO_LIMIT: Duration = Duration::from_secs(3);

/// A plugin that was found and can be run.
#[derive(Clone, Debug)]
pub struct Delegate {
    kind: String,
    path: PathBuf,
    allow_empty: bool,
}

impl Delegate {
    /// Looks for the plugin `kind` in the folders of `CNI_PATH`, in order.
    ///
    /// # Errors
    /// Code 7 when `kind` could lead out of those folders (CVE-2021-20206), before anything is looked at; or
    /// when none of them has it, naming them.
    pub fn find(kind: &str, path: &[PathBuf]) -> Result<Self, Error> {
        if matches!(kind, "" | "." | "..") || kind.contains(['/', '\0']) {
            return Err(Error::config(format!("invalid plugin type {kind:?}: it must be a plain file name")));
        }
        let found = path.iter().map(|folder| folder.join(kind)).find(|file| file.is_file());
        let path = found.ok_or_else(|| missing(kind, path))?;
        Ok(Self { kind: kind.to_owned(), path, allow_empty: false })
    }

    /// Accepts an ADD result without addresses; an IPAM plugin's must have some.
    #[must_use]
    pub fn allow_empty(mut self) -> Self {
        self.allow_empty = true;
        self
    }

    /// The file that will be run.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs one verb with our own variables and the whole configuration. `Some` is what an ADD (or VERSION)
    /// printed. A plugin that does not know GC or STATUS has nothing to do there: that is success.
    ///
    /// At `deadline` the plugin and its whole process group are killed.
    ///
    /// # Errors
    /// The plugin's own error with its code; code 11 at the deadline; code 5 when it cannot be run; code 6 for
    /// an answer that is not what it should be; code 104 when it dies without one.
    pub fn run(
        &self,
        command: Command,
        env: &Environment,
        conf: &[u8],
        deadline: Instant,
    ) -> Result<Option<Value>, Error> {
        let started = Instant::now();
        let exited = process::run(&self.path, command, env, conf, deadline);
        let exited = exited.map_err(|failure| self.not_run(failure, command, deadline - started))?;
        if !exited.status.success() {
            let error = self.failure(&exited, command);
            return if lacks_verb(command, &error) { Ok(None) } else { Err(error) };
        }
        match command {
            Command::Add => self.add_answer(&exited.output).map(Some),
            Command::Version => self.json(&exited.output).map(Some),
            Command::Del | Command::Check | Command::Gc | Command::Status => Ok(None),
        }
    }

    /// Runs ADD and reads the result. After a failure it runs DEL once, since a plugin that failed or was
    /// killed may have reserved something; what that DEL says is not of interest.
    ///
    /// # Errors
    /// As [`Delegate::run`], and as [`AddResult::parse`] for a result that has the wrong shape.
    pub fn add(&self, env: &Environment, conf: &[u8], deadline: Instant) -> Result<AddResult, Error> {
        let answer = self.run(Command::Add, env, conf, deadline);
        let result = answer.and_then(|answer| self.parse(&answer.unwrap_or_default()));
        if result.is_err() {
            let limit = deadline.max(Instant::now() + UNDO_LIMIT);
            let _ = self.run(Command::Del, env, conf, limit);
        }
        result
    }

    fn parse(&self, answer: &Value) -> Result<AddResult, Error> {
        if answer.is_null() {
            return Ok(AddResult::default());
        }
        AddResult::parse(answer).map_err(|error| error.context(self))
    }

    fn add_answer(&self, output: &[u8]) -> Result<Value, Error> {
        // libcni takes nothing, and a literal null, for an empty result.
        let answer = if output.trim_ascii().is_empty() { Value::Null } else { self.json(output)? };
        let has_address = !self.parse(&answer)?.ips.is_empty();
        if has_address || self.allow_empty {
            return Ok(answer);
        }
        Err(Error::new(code::IPAM, "IPAM plugin returned missing IP config").with_details(self.to_string()))
    }

    fn json(&self, output: &[u8]) -> Result<Value, Error> {
        serde_json::from_slice(output).map_err(|problem| {
            Error::decode(format!("{self} printed no CNI result: {problem}")).with_details(excerpt(output))
        })
    }

    /// The error of a plugin that exited with one.
    fn failure(&self, exited: &Exited, command: Command) -> Error {
        if let Some(error) = self.own_error(&exited.output) {
            return error;
        }
        let how = describe(exited.status);
        let msg = format!("{self} failed on {command}: {how} and no error object on stdout");
        Error::new(code::IPAM, msg).with_details(excerpt(&exited.output))
    }

    fn own_error(&self, output: &[u8]) -> Option<Error> {
        let value = serde_json::from_slice(output).ok()?;
        let object = Object::from_value("", &value).ok()?;
        let code = object.u32("code").ok()?.filter(|&code| code != 0)?;
        let msg = object.text("msg").ok()??;
        let details = match object.text("details").ok()? {
            Some(details) => format!("{self}: {details}"),
            None => self.to_string(),
        };
        Some(Error::new(code, msg).with_details(details))
    }

    fn not_run(&self, failure: Failure, command: Command, limit: Duration) -> Error {
        match failure {
            Failure::Start(source) => Error::io(format!("run {}", self.path.display()), &source),
            Failure::Talk(source) => Error::io(format!("talk to {self}"), &source),
            Failure::TooMuch => {
                Error::decode(format!("{self} printed more than {} MiB", process::MAX_OUTPUT >> 20))
            }
            Failure::Deadline => Error::new(
                code::TRY_AGAIN,
                format!("{self} did not finish {command} within {:.1} s and was killed", limit.as_secs_f64()),
            ),
        }
    }
}

impl fmt::Display for Delegate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plugin {:?}", self.kind)
    }
}

fn missing(kind: &str, path: &[PathBuf]) -> Error {
    let folders: Vec<String> = path.iter().map(|folder| folder.display().to_string()).collect();
    Error::config(format!("failed to find plugin {kind:?} in path [{}]", folders.join(" ")))
}

/// Binaries made with a CNI library before 1.2 answer so to the verbs of 1.1.0.
fn lacks_verb(command: Command, error: &Error) -> bool {
    matches!(command, Command::Gc | Command::Status)
        && error.code == code::INVALID_ENVIRONMENT
        && error.msg == format!("unknown CNI_COMMAND: {command}")
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "unknown exit status".to_owned(),
    }
}

fn excerpt(output: &[u8]) -> String {
    if output.is_empty() {
        return "stdout was empty".to_owned();
    }
    // Four bytes a character are enough; the rest of 16 MiB needs no conversion.
    let head = &output[..output.len().min(EXCERPT * 4 + 4)];
    format!("stdout began with {:?}", shorten(&String::from_utf8_lossy(head), EXCERPT))
}

#[cfg(test)]
mod tests;
