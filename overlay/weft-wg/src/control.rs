//! The socket by which `wg(8)` and others configure the device: `/var/run/wireguard/<interface>.sock`.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where all implementations have their sockets.
pub const FOLDER: &str = "/var/run/wireguard";
/// A device of 5,000 peers is configured with less than 2 MB.
const LARGEST_REQUEST: usize = 16 * 1024 * 1024;
/// How long an answer may wait for its reader: the data path stands still meanwhile.
const PATIENCE: Duration = Duration::from_millis(200);

/// The listening socket. Its file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Makes the socket, for root alone. A file that nobody listens behind is replaced.
    ///
    /// # Errors
    /// AddrInUse if somebody does.
    pub fn make(interface: &str) -> io::Result<Self> {
        let path = Path::new(FOLDER).join(format!("{interface}.sock"));
        fs::create_dir_all(FOLDER)?;
        if UnixStream::connect(&path).is_ok() {
            let error = format!("somebody serves {} already", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, error));
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path })
    }

    /// The next client, if one waits.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn accept(&self) -> io::Result<Option<Client>> {
        match self.socket.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(Client { stream, pending: Vec::new() }))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.path);
    }
}

/// Somebody who asks.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    pending: Vec<u8>,
}

/// Whether a client is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    /// It may ask more.
    Yes,
    /// It has gone, or was sent away.
    No,
}

impl Client {
    /// Reads what has come and answers each request that is complete.
    pub fn serve(&mut self, mut answer: impl FnMut(&str) -> String) -> Stays {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Stays::No,
                Ok(length) => self.pending.extend(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Stays::No,
            }
            if self.pending.len() > LARGEST_REQUEST {
                return Stays::No;
            }
        }
        while let Some(end) = self.pending.windows(2).position(|two| two == b"\n\n") {
            let rest = self.pending.split_off(end + 2);
            let request = std::mem::replace(&mut self.pending, rest);
            let reply = answer(&String::from_utf8_lossy(request.get(..end).unwrap_or_default()));
            if self.reply(reply.as_bytes()).is_err() {
                return Stays::No;
            }
        }
        Stays::Yes
    }

    fn reply(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_write_timeout(Some(PATIENCE))?;
        self.stream.write_all(bytes)?;
        self.stream.set_nonblocking(true)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
