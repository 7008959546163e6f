//! Starting a process as cheaply as the system can, for all subjects alike.
//!
//! No namespace is entered between fork and exec: the *calling thread* lives in the node already, and the child
//! inherits its place. So [`Command`] has no hook to run and uses `posix_spawn` (vfork: nothing of this process is
//! copied). Standard input is a pipe that is filled before the start; both outputs are read to their end, as Go's
//! `exec.Cmd` does, and then the exit is waited for.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

use crate::{Outcome, sys, watchdog};

/// Where the reference plugins look for `iptables`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a pipe holds without a reader.
const PIPE_CAPACITY: usize = 64 * 1024;

/// A process that has ended, with all it said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs `program` to its end in the calling thread's namespaces.
pub fn run<V: AsRef<OsStr>>(
    program: &Path,
    arguments: &[&str],
    environment: &[(&str, V)],
    stdin: &[u8],
) -> io::Result<Finished> {
    if stdin.len() > PIPE_CAPACITY {
        return Err(io::Error::other("a configuration larger than a pipe"));
    }
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(stdin)?;
    drop(writer);
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH);
    command.envs(environment.iter().map(|(key, value)| (key, value)));
    command.stdin(reader).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let stdout = to_end(child.stdout.take())?;
    let stderr = to_end(child.stderr.take())?;
    let status = child.wait()?;
    watchdog::step();
    Ok(Finished { status, stdout, stderr })
}

fn to_end(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

impl Finished {
    /// The output of a process that must have succeeded.
    pub fn expect(self, what: impl FnOnce() -> String) -> Outcome<Vec<u8>> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (stdout, stderr) = (text(&self.stdout), text(&self.stderr));
        Err(format!("{}: {}\nstdout: {stdout}\nstderr: {stderr}", what(), self.status).into())
    }
}

/// Waits until no process that we started, or that those started, is left; whether there was one. Nobody else may
/// be waiting for one.
pub fn settle() -> io::Result<bool> {
    let mut any = false;
    while sys::reap_one()? {
        watchdog::step();
        any = true;
    }
    Ok(any)
}

/// Processor time, user and system, of all processes that have ended and been waited for: theirs and ours.
pub fn cpu_spent() -> Outcome<Duration> {
    cpu_of(UsageWho::RUSAGE_CHILDREN)
}

/// Processor time, user and system.
pub fn cpu_of(whom: UsageWho) -> Outcome<Duration> {
    let usage = getrusage(whom)?;
    let both = [usage.user_time(), usage.system_time()];
    let micros: i64 = both.iter().map(|time| time.tv_sec() * 1_000_000 + time.tv_usec()).sum();
    Ok(Duration::from_micros(micros.unsigned_abs()))
}
