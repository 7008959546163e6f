//! A child process with a deadline: feeds stdin, reads stdout up to a limit, kills the group when it is time.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::request::{Command, Environment, VARIABLES};
use crate::sys::pidfd_open;

/// How much a plugin may print.
pub(super) const MAX_OUTPUT: usize = 16 << 20;
/// How long a binary that is just being replaced is waited for (libcni waits 5 s).
const BUSY_LIMIT: Duration = Duration::from_secs(1);
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How often to look for the exit where there is no pidfd.
const LOOK: Duration = Duration::from_millis(5);
/// How long a killed process may take to go; one in an uninterruptible wait is left to init.
const REAP_LIMIT: Duration = Duration::from_secs(1);

/// A plugin that ended by itself.
pub(super) struct Exited {
    pub(super) status: ExitStatus,
    pub(super) output: Vec<u8>,
}

/// Why a plugin did not end by itself.
pub(super) enum Failure {
    Start(io::Error),
    Talk(io::Error),
    TooMuch,
    Deadline,
}

/// Runs `path` to its end.
pub(super) fn run(
    path: &Path,
    command: Command,
    env: &Environment,
    input: &[u8],
    deadline: Instant,
) -> Result<Exited, Failure> {
    if Instant::now() >= deadline {
        return Err(Failure::Deadline);
    }
    let child = spawn(path, command, env, deadline).map_err(Failure::Start)?;
    let mut running = Running::new(child, input).map_err(Failure::Talk)?;
    let status = running.finish(deadline)?;
    Ok(Exited { status, output: std::mem::take(&mut running.output) })
}

fn spawn(path: &Path, command: Command, env: &Environment, deadline: Instant) -> io::Result<Child> {
    let mut process = Process::new(path);
    process.env("CNI_COMMAND", command.as_str());
    for name in VARIABLES {
        match env.var(name) {
            Some(value) => process.env(name, value),
            None => process.env_remove(name),
        };
    }
    // A group of its own, so that a helper that it starts dies with it at the deadline.
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).process_group(0);
    let give_up = deadline.min(Instant::now() + BUSY_LIMIT);
    loop {
        match process.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < give_up => {
                std::thread::sleep(BUSY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// A child that is killed with its group unless it was seen to exit.
struct Running<'a> {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    exit: Option<OwnedFd>,
    input: &'a [u8],
    output: Vec<u8>,
    status: Option<ExitStatus>,
}

impl<'a> Running<'a> {
    fn new(mut child: Child, input: &'a [u8]) -> io::Result<Self> {
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let exit = pidfd_open(child.id()).ok();
        let running = Self { child, stdin, stdout, exit, input, output: Vec::new(), status: None };
        // Only once `running` exists, whose drop kills the child.
        running.stdin.as_ref().map(set_nonblocking).transpose()?;
        running.stdout.as_ref().map(set_nonblocking).transpose()?;
        Ok(running)
    }

    /// Waits for the exit of the child itself. Whoever else keeps its stdout open is not waited for: a helper
    /// left in the background is the plugin's own affair.
    fn finish(&mut self, deadline: Instant) -> Result<ExitStatus, Failure> {
        loop {
            self.status = self.child.try_wait().map_err(Failure::Talk)?;
            self.feed().map_err(Failure::Talk)?;
            self.drain()?;
            if let Some(status) = self.status {
                return Ok(status);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::Deadline);
            }
            self.wait(left).map_err(Failure::Talk)?;
        }
    }

    fn feed(&mut self) -> io::Result<()> {
        while let Some(stdin) = &mut self.stdin {
            if self.input.is_empty() {
                self.stdin = None; // End of file for the plugin.
                return Ok(());
            }
            match stdin.write(self.input) {
                Ok(written) => self.input = &self.input[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It does not care for the rest of its configuration.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => self.stdin = None,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Failure> {
        let mut chunk = [0; 16 << 10];
        while let Some(stdout) = &mut self.stdout {
            match stdout.read(&mut chunk) {
                Ok(0) => self.stdout = None,
                Ok(length) => self.output.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Talk(error)),
            }
            if self.output.len() > MAX_OUTPUT {
                return Err(Failure::TooMuch);
            }
        }
        Ok(())
    }

    /// Sleeps until there is something to do.
    fn wait(&self, left: Duration) -> io::Result<()> {
        let mut fds = Vec::with_capacity(3);
        fds.extend(self.stdin.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)));
        fds.extend(self.stdout.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.exit.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        let longest = if self.exit.is_some() { left } else { left.min(LOOK) };
        match poll(&mut fds, poll_timeout(longest)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Kills the group. As long as the child was not reaped, its number cannot belong to anyone else.
    fn kill(&mut self) {
        let Ok(group) = i32::try_from(self.child.id()) else { return };
        // It may have ended meanwhile; then there is nothing to kill.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        let give_up = Instant::now() + REAP_LIMIT;
        while let Ok(None) = self.child.try_wait()
            && Instant::now() < give_up
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.kill();
        }
    }
}

/// Rounded up, so that a wait for less than a millisecond does not spin.
fn poll_timeout(duration: Duration) -> PollTimeout {
    let millis = duration.as_micros().div_ceil(1000);
    i32::try_from(millis)
        .ok()
        .and_then(|millis| PollTimeout::try_from(millis).ok())
        .unwrap_or(PollTimeout::MAX)
}

fn set_nonblocking(pipe: &impl AsFd) -> io::Result<()> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}
