//! The socket that plugins ask for another block, and `weftd status` for the status document. Frames are those of
//! `weft_ipam::ask`. A client that is slow, silent or talks nonsense holds up nobody but itself.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use weft_cni::error::{Error, code};
use weft_ipam::ask::{Family, MAX_FRAME, Op, Reply, Request, VERSION};

use crate::files;

/// How long a client may take to say what it wants, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often an asker hears that it is worked on.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);
/// No plugin waits longer: its own deadline is 25 s.
const LONGEST: Duration = Duration::from_secs(30);
/// A node has far fewer pods starting at once.
const CONNECTIONS: usize = 1024;

/// A question for the daemon.
#[derive(Debug)]
pub enum Asked {
    /// Grant another block.
    NeedBlock {
        /// For the log.
        network: String,
        /// Which families had nothing free.
        families: Vec<Family>,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<(), Error>>,
    },
    /// The status document, as JSON.
    Status {
        /// Where the answer goes.
        answer: oneshot::Sender<String>,
    },
    /// The rewritten store is right as it is.
    AcceptHistory {
        /// Where the status document that comes of it goes.
        answer: oneshot::Sender<String>,
    },
}

/// The socket, listening.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
}

impl Server {
    /// Listens at `path`, in a folder that only root may enter. A socket that a killed daemon left is replaced; the
    /// caller holds the lock that says that no other daemon runs.
    ///
    /// # Errors
    /// A sentence.
    pub fn bind(path: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("listen on {}: {error}", path.display());
        if let Some(folder) = path.parent() {
            files::private_folder(folder).map_err(failed)?;
        }
        files::remove(path).map_err(failed)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(files::PRIVATE)).map_err(failed)?;
        Ok(Self { listener })
    }

    /// Serves until it is dropped, and with it every connection.
    pub async fn serve(self, asked: mpsc::Sender<Asked>) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) if connections.len() < CONNECTIONS => {
                        connections.spawn(converse(stream, asked.clone()));
                    }
                    Ok(_) => tracing::warn!(connections = CONNECTIONS, "too many ask at once, one was turned away"),
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        // Out of descriptors: at once again would be a busy loop.
                        tokio::time::sleep(SIGN_OF_LIFE).await;
                    }
                },
                Some(ended) = connections.join_next() => {
                    if let Ok(Err(error)) = ended {
                        tracing::debug!(%error, "a client went away");
                    }
                }
            }
        }
    }
}

async fn converse(mut stream: UnixStream, asked: mpsc::Sender<Asked>) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    if peer.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {} asked", peer.uid())));
    }
    let request = timeout(PATIENCE, read_frame(&mut stream)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    match parse(&request) {
        Err(error) => send(&mut stream, &Reply::refused(&error)).await,
        Ok(Op::Status) => document(&mut stream, &asked, |answer| Asked::Status { answer }).await,
        Ok(Op::AcceptHistory) => {
            document(&mut stream, &asked, |answer| Asked::AcceptHistory { answer }).await
        }
        Ok(Op::NeedBlock { network, families }) => {
            let (answer, granted) = oneshot::channel();
            let _ending = asked.send(Asked::NeedBlock { network, families, answer }).await;
            need_block(&mut stream, granted).await
        }
    }
}

/// Asks for a status document and passes it on.
async fn document(
    stream: &mut UnixStream,
    asked: &mpsc::Sender<Asked>,
    question: impl FnOnce(oneshot::Sender<String>) -> Asked,
) -> io::Result<()> {
    let (answer, status) = oneshot::channel();
    // A daemon that ends answers nobody.
    let _ending = asked.send(question(answer)).await;
    match status.await {
        Ok(document) => write_frame(stream, document.as_bytes()).await,
        Err(_) => Ok(()),
    }
}

/// Says "wait" until there is an answer, or nobody listens any more.
async fn need_block(
    stream: &mut UnixStream,
    mut granted: oneshot::Receiver<Result<(), Error>>,
) -> io::Result<()> {
    let mut beat = interval(SIGN_OF_LIFE);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let deadline = tokio::time::sleep(LONGEST);
    tokio::pin!(deadline);
    let mut byte = [0];
    loop {
        tokio::select! {
            biased;
            answer = &mut granted => {
                let reply = match answer {
                    Ok(Ok(())) => Reply::granted(),
                    Ok(Err(error)) => Reply::refused(&error),
                    Err(_) => Reply::refused(&ends()),
                };
                return send(stream, &reply).await;
            }
            // The plugin gave up, or was killed.
            _closed = stream.read(&mut byte) => return Ok(()),
            () = &mut deadline => return Ok(()),
            _ = beat.tick() => send(stream, &Reply::wait()).await?,
        }
    }
}

fn ends() -> Error {
    Error::new(code::TRY_AGAIN, "weftd is ending")
        .with_details("it starts again by itself; so does the runtime's attempt")
}

fn parse(json: &[u8]) -> Result<Op, Error> {
    let request: Request = serde_json::from_slice(json).map_err(|error| {
        Error::new(code::TRY_AGAIN, format!("weftd does not understand the question: {error}"))
    })?;
    if request.v == VERSION {
        return Ok(request.op);
    }
    Err(Error::new(
        code::TRY_AGAIN,
        format!("weftd speaks version {VERSION} on its socket, the plugin version {}", request.v),
    )
    .with_details("`weftd install` installs the plugins that belong to this weftd"))
}

async fn send(stream: &mut UnixStream, reply: &impl Serialize) -> io::Result<()> {
    write_frame(stream, &serde_json::to_vec(reply)?).await
}

async fn write_frame(stream: &mut UnixStream, json: &[u8]) -> io::Result<()> {
    let length = u32::try_from(json.len()).ok().filter(|length| *length <= MAX_FRAME);
    let length = length.ok_or(io::ErrorKind::FileTooLarge)?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(json);
    timeout(PATIENCE, stream.write_all(&frame)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

async fn read_frame(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{length} bytes announced")));
    }
    // Not reserved at once: whoever announces a MiB has not sent it yet.
    let mut json = Vec::new();
    stream.take(length.into()).read_to_end(&mut json).await?;
    if json.len() as u64 == u64::from(length) { Ok(json) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Asks a running daemon for its status document, from a command.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` when none runs; `TimedOut` when one hangs.
pub async fn ask_status(path: &Path) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path).await?;
    send(&mut stream, &Request::new(Op::Status)).await?;
    timeout(PATIENCE, read_frame(&mut stream)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

#[cfg(test)]
mod tests;
