//! A TCP server that tells each caller the address it came from: the proof of masquerade.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// No peer of a lab is farther than a few microseconds; what has not answered by then never will.
const LIMIT: Duration = Duration::from_secs(2);

/// Listens until dropped. Made by [`Inside::listen`](crate::Inside::listen).
#[derive(Debug)]
pub struct Listener {
    socket: Arc<TcpListener>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub(crate) fn open(port: u16) -> io::Result<Self> {
        let socket = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port)))?;
        let socket = Arc::new(socket);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (socket, stop) = (socket.clone(), stop.clone());
            move || serve(&socket, &stop)
        });
        Ok(Self { socket, stop, thread: Some(thread) })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.socket.local_addr().map_or(0, |address| address.port())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the accept: on Linux it answers EINVAL once the listener is shut down.
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&*self.socket),
            nix::sys::socket::Shutdown::Both,
        );
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        if let Ok((mut caller, from)) = socket.accept() {
            let _ = caller.set_write_timeout(Some(LIMIT));
            let _ = caller.write_all(from.ip().to_canonical().to_string().as_bytes());
            let _ = caller.shutdown(Shutdown::Both);
        }
    }
}

/// Asks a listener which address it sees the calling thread's namespace as.
pub fn ask(server: SocketAddr) -> io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.parse().map_err(io::Error::other)
}
