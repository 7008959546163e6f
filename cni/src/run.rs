//! From a started process to its exit code: reads the call, dispatches the verb, prints the answer.
//!
//! The rules are those of the Go library's `skel`, with its known defects left out: the error object has
//! `cniVersion`, and an ADD whose result cannot be delivered is undone.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::conf::{self, NetConf, ValidAttachment};
use crate::error::{Error, code};
use crate::names::NetworkName;
use crate::request::{Attachment, Command, Environment, Lookup};
use crate::result::AddResult;
use crate::version::Version;

/// One ADD, CHECK or DEL.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// What it is about.
    pub attachment: &'a Attachment,
    /// How the network is configured now; on DEL that may be other than on ADD.
    pub conf: &'a NetConf,
    /// The variables, for delegates.
    pub env: &'a Environment,
    /// When the process began, which is what deadlines count from.
    pub started: Instant,
}

/// What became of a call, for a log line.
#[derive(Debug)]
pub struct Finished<'a> {
    /// The verb; `None` if `CNI_COMMAND` was unknown.
    pub command: Option<Command>,
    /// The network, if the call got that far.
    pub network: Option<&'a str>,
    /// The container, if the verb has one and it was valid.
    pub container: Option<&'a str>,
    /// The interface, likewise.
    pub ifname: Option<&'a str>,
    /// What was answered.
    pub outcome: Result<(), &'a Error>,
    /// How long it took.
    pub duration: Duration,
}

/// A plugin: one function per verb. All are called with a valid name, version and attachment only.
pub trait Plugin {
    /// Text for stderr when there is no `CNI_COMMAND`: a person called.
    fn about(&self) -> String;
    /// Attaches. On an error nothing may be left behind.
    ///
    /// # Errors
    /// What the runtime shall see; so for every verb.
    fn add(&mut self, call: &Call<'_>) -> Result<AddResult, Error>;
    /// Undoes a successful ADD whose result could not be delivered: the runtime takes it as failed, and may
    /// never call DEL.
    fn undo_add(&mut self, call: &Call<'_>);
    /// Verifies, and changes nothing.
    ///
    /// # Errors
    /// Every difference found.
    fn check(&mut self, call: &Call<'_>) -> Result<(), Error>;
    /// Detaches. Whatever is missing already is fine.
    ///
    /// # Errors
    /// Only when trying again can help: runtimes do try again, for ever.
    fn del(&mut self, call: &Call<'_>) -> Result<(), Error>;
    /// Removes the attachments of this network that `keep` does not cover.
    ///
    /// # Errors
    /// All that went wrong, after everything was tried.
    fn gc(&mut self, conf: &NetConf, env: &Environment, keep: &[ValidAttachment]) -> Result<(), Error>;
    /// Tells whether an ADD could succeed now.
    ///
    /// # Errors
    /// Code 50 or 51 when not.
    fn status(&mut self, conf: &NetConf, env: &Environment) -> Result<(), Error>;
    /// Called once at the end of every call but VERSION, also of one that was refused. For logging only.
    fn finished(&mut self, what: &Finished<'_>);
}

/// Serves one call and returns the exit code: 0, or 1 after an error object was printed.
pub fn run(
    plugin: &mut impl Plugin,
    env: &dyn Fn(&str) -> Option<OsString>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    let started = Instant::now();
    let Some(word) = env("CNI_COMMAND").filter(|word| !word.is_empty()) else {
        let versions = Version::ALL.map(Version::as_str).join(", ");
        // Nobody is left to tell when stderr is gone.
        let _ = writeln!(stderr, "{}\nCNI protocol versions supported: {versions}", plugin.about());
        return 0;
    };
    let command = word.to_str().and_then(Command::parse);
    if command == Some(Command::Version) {
        return answer_version(stdout);
    }
    let mut session = Session::new(env, started);
    let outcome = match command {
        Some(command) => session.serve(plugin, command, stdin, stdout),
        None => Err(Error::environment(format!("unknown CNI_COMMAND: {}", word.to_string_lossy())).into()),
    };
    let outcome = session.report(outcome, stdout, stderr);
    plugin.finished(&session.finished(command, outcome.as_ref().map(|&()| ())));
    u8::from(outcome.is_err())
}

/// The error object for a panic: for the panic hook of a binary, which has to print it before it aborts.
pub fn panic_json(msg: &str) -> String {
    Error::new(code::INTERNAL, format!("internal error: {msg}")).to_json(Version::LATEST.as_str())
}

/// Stdout without a buffer. Rust's own reports success for a closed descriptor, and splits writes at newlines.
///
/// # Errors
/// When the descriptor cannot be duplicated.
pub fn unbuffered_stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// Never reads stdin, which a runtime may leave open.
fn answer_version(stdout: &mut dyn Write) -> u8 {
    let versions = Version::ALL.map(Version::as_str);
    let answer = json!({ "cniVersion": Version::LATEST.as_str(), "supportedVersions": versions });
    u8::from(print(&answer, stdout).is_err())
}

/// Writes the whole answer at once.
fn print(answer: &impl fmt::Display, stdout: &mut dyn Write) -> io::Result<()> {
    stdout.write_all(format!("{answer}\n").as_bytes())?;
    stdout.flush()
}

/// How a call failed, and whether an error object can still be printed.
enum Failure {
    Reported(Error),
    /// Stdout itself is broken; a part of a result may have gone out already.
    StdoutBroken(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Reported(error)
    }
}

/// What is known of the call so far.
struct Session {
    env: Environment,
    started: Instant,
    /// The version in which errors are printed: the configuration's, once it is known to be one of ours.
    version: Version,
    network: Option<NetworkName>,
    attachment: Option<Attachment>,
}

impl Session {
    fn new(env: Lookup<'_>, started: Instant) -> Self {
        let env = Environment::read(env);
        Self { env, started, version: Version::LATEST, network: None, attachment: None }
    }

    fn serve(
        &mut self,
        plugin: &mut impl Plugin,
        command: Command,
        stdin: &mut dyn Read,
        stdout: &mut dyn Write,
    ) -> Result<(), Failure> {
        if command.has_attachment() {
            self.attachment = Some(Attachment::read(command, &self.env)?);
        }
        let conf = self.read_conf(command, stdin)?;
        self.network = Some(conf.name.clone());
        self.dispatch(plugin, command, &conf, stdout)
    }

    fn read_conf(&mut self, command: Command, stdin: &mut dyn Read) -> Result<NetConf, Error> {
        let raw = conf::read(stdin)?;
        let object = conf::decode(&raw)?;
        let version = object.string("cniVersion").ok().map(|text| Version::parse(&text.unwrap_or_default()));
        self.version = version.flatten().unwrap_or(Version::LATEST);
        NetConf::for_command(object, raw, command)
    }

    fn dispatch(
        &self,
        plugin: &mut impl Plugin,
        command: Command,
        conf: &NetConf,
        stdout: &mut dyn Write,
    ) -> Result<(), Failure> {
        let env = &self.env;
        let Some(attachment) = &self.attachment else {
            return match command {
                Command::Gc => Ok(plugin.gc(conf, env, &conf.valid_attachments()?)?),
                Command::Status => Ok(plugin.status(conf, env)?),
                Command::Add | Command::Check | Command::Del | Command::Version => Ok(()), // Not without one.
            };
        };
        let call = Call { attachment, conf, env, started: self.started };
        match command {
            Command::Add => add(plugin, &call, stdout),
            Command::Check => Ok(plugin.check(&call)?),
            Command::Del => Ok(plugin.del(&call)?),
            Command::Gc | Command::Status | Command::Version => Ok(()), // They have no attachment.
        }
    }

    /// Prints the error object; where stdout is broken, the text goes to stderr.
    fn report(
        &self,
        outcome: Result<(), Failure>,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<(), Error> {
        let (error, printed) = match outcome {
            Ok(()) => return Ok(()),
            Err(Failure::Reported(error)) => {
                let printed = print(&error.to_json(self.version.as_str()), stdout).is_ok();
                (error, printed)
            }
            Err(Failure::StdoutBroken(error)) => (error, false),
        };
        if !printed {
            // With stderr gone too, the exit code is all that is left.
            let _ = writeln!(stderr, "{error}");
        }
        Err(error)
    }

    fn finished<'a>(&'a self, command: Option<Command>, outcome: Result<(), &'a Error>) -> Finished<'a> {
        let attachment = self.attachment.as_ref();
        Finished {
            command,
            network: self.network.as_ref().map(NetworkName::as_str),
            container: attachment.map(|attachment| attachment.container_id.as_str()),
            ifname: attachment.map(|attachment| attachment.ifname.as_str()),
            outcome,
            duration: self.started.elapsed(),
        }
    }
}

fn add(plugin: &mut impl Plugin, call: &Call<'_>, stdout: &mut dyn Write) -> Result<(), Failure> {
    let result = plugin.add(call)?;
    let delivered = match result.to_value(call.conf.version) {
        Ok(value) => print(&value, stdout)
            .map_err(|source| Failure::StdoutBroken(Error::io("write the result to stdout", &source))),
        Err(error) => Err(Failure::Reported(error)),
    };
    if delivered.is_err() {
        plugin.undo_add(call);
    }
    delivered
}

#[cfg(test)]
mod tests;
