//! The plugin's side: one blocking conversation, no thread, no runtime.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use weft_cni::error::{Error, code};

use super::{Family, Op, Reply, Request, SOCKET, VERSION, read_frame, unanswered, write_frame};
use crate::clock::Deadline;

/// The longest time without a sign of life.
pub const SILENCE: Duration = Duration::from_secs(2);

/// Whoever can grant another block.
pub trait NeedBlock {
    /// Asks for a block with a free address and waits until there is one.
    ///
    /// # Errors
    /// Code 11 when nobody answered in time; the daemon's own when it refused.
    fn need_block(&self, network: &str, families: &[Family], deadline: Deadline) -> Result<(), Error>;
}

/// `weftd`, behind its socket.
#[derive(Clone, Debug)]
pub struct Weftd {
    socket: PathBuf,
    silence: Duration,
}

impl Default for Weftd {
    fn default() -> Self {
        Self::at(Path::new(SOCKET))
    }
}

impl Weftd {
    /// At another socket than [`SOCKET`].
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), silence: SILENCE }
    }

    /// Sends one request and returns the answer as text, for what is no `need-block`.
    ///
    /// # Errors
    /// Code 11 when nobody answered in time.
    pub fn ask(&self, op: Op, deadline: Deadline) -> Result<Vec<u8>, Error> {
        let mut talk = self.begin(op, deadline)?;
        loop {
            let frame = talk.next()?;
            // What cannot be parsed as a reply is the document that was asked for.
            if !serde_json::from_slice::<Reply>(&frame).is_ok_and(|reply| reply.wait) {
                return Ok(frame);
            }
        }
    }

    fn begin(&self, op: Op, deadline: Deadline) -> Result<Talk<'_>, Error> {
        let fail =
            |what: &str, error: &io::Error| unanswered(&self.socket, &format!("{what}: {}", word(error)));
        let stream = connect(&self.socket, self.silence.min(deadline.remaining()))
            .map_err(|error| fail("does not let us in", &error))?;
        let mut talk = Talk { weftd: self, stream: Timed { stream, until: Instant::now() }, deadline };
        let json = serde_json::to_vec(&Request::new(op)).unwrap_or_default();
        talk.rewind();
        write_frame(&mut talk.stream, &json).map_err(|error| fail("takes no request", &error))?;
        Ok(talk)
    }
}

impl NeedBlock for Weftd {
    fn need_block(&self, network: &str, families: &[Family], deadline: Deadline) -> Result<(), Error> {
        let op = Op::NeedBlock { network: network.to_owned(), families: families.to_vec() };
        let mut talk = self.begin(op, deadline)?;
        loop {
            let frame = talk.next()?;
            let reply = match serde_json::from_slice::<Reply>(&frame) {
                Ok(reply) if reply.v == VERSION => reply,
                Ok(reply) => {
                    let why = format!("speaks version {} of the protocol, weft speaks {VERSION}", reply.v);
                    return Err(unanswered(&self.socket, &why));
                }
                Err(error) => return Err(unanswered(&self.socket, &format!("answers nonsense ({error})"))),
            };
            match reply.ok {
                Some(true) => return Ok(()),
                Some(false) => {
                    let code = reply.code.unwrap_or(code::TRY_AGAIN);
                    return Err(Error::new(code, reply.msg).with_details(reply.details));
                }
                None if reply.wait => {}
                None => return Err(unanswered(&self.socket, "answers neither yes nor no")),
            }
        }
    }
}

/// Nobody to ask, for tests.
#[derive(Clone, Copy, Debug)]
pub struct WithoutDaemon;

impl NeedBlock for WithoutDaemon {
    fn need_block(&self, _network: &str, _families: &[Family], _deadline: Deadline) -> Result<(), Error> {
        Err(Error::new(code::TRY_AGAIN, "there is no daemon to ask"))
    }
}

/// A conversation under way.
struct Talk<'a> {
    weftd: &'a Weftd,
    stream: Timed,
    deadline: Deadline,
}

impl Talk<'_> {
    /// Each frame has its own time, whole: a daemon that dribbles is as good as a silent one.
    fn rewind(&mut self) {
        self.stream.until = Instant::now() + self.weftd.silence.min(self.deadline.remaining());
    }

    fn next(&mut self) -> Result<Vec<u8>, Error> {
        self.rewind();
        let why = match read_frame(&mut self.stream) {
            Ok(Some(frame)) => return Ok(frame),
            Ok(None) => "closed the connection without an answer".to_owned(),
            Err(error) if is_timeout(&error) && self.deadline.remaining().is_zero() => {
                "is still working on it, and our own time is up".to_owned()
            }
            Err(error) if is_timeout(&error) => {
                format!("has given no sign of life for {} s", self.weftd.silence.as_secs_f32())
            }
            Err(error) => format!("cannot be read: {error}"),
        };
        Err(unanswered(&self.weftd.socket, &why))
    }
}

/// A stream whose reads and writes all end by one moment.
struct Timed {
    stream: UnixStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// connect(2) waits while the other side's queue is full, as a stopped process' is; the send timeout ends that wait.
fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let fd: OwnedFd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = i64::try_from(limit.as_micros()).unwrap_or(i64::MAX).max(1);
    socket::setsockopt(&fd, sockopt::SendTimeout, &TimeVal::microseconds(limit))?;
    socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// What a person can do something with.
fn word(error: &io::Error) -> String {
    let kind = error.kind();
    if kind == io::ErrorKind::NotFound {
        "there is no such socket, so weftd is not running".to_owned()
    } else if kind == io::ErrorKind::ConnectionRefused {
        "nobody listens, so weftd is not running".to_owned()
    } else if is_timeout(error) {
        "weftd is stopped or hangs".to_owned()
    } else {
        error.to_string()
    }
}
