//! The program's loop: data path, configuration and time on one thread.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::control::{Client, Listener, Stays};
use crate::device::Device;
use crate::lane::Lane;
use crate::tun::Tun;
use crate::uapi::{Change, Request, answer};
use crate::udp::Udp;

/// How often sessions are looked at: an expired one must not be used, and a retry is due to the tenth of a second.
const TICK: Duration = Duration::from_millis(250);

const TUN: u64 = 0;
const SIGNALS: u64 = 1;
const LISTENER: u64 = 2;
const UDP_V4: u64 = 3;
const UDP_V6: u64 = 4;
/// And above: clients by their descriptors.
const CLIENTS: u64 = 16;

/// Runs the device until it is told to end (SIGTERM, SIGINT), or its interface is deleted.
///
/// # Errors
/// What cannot be had at the start, with its name; later only what ends the data path.
pub fn serve(interface: &str) -> io::Result<()> {
    let signals = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect::<SigSet>();
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let tun =
        Tun::make(interface).map_err(|error| about(&format!("make the interface {interface}"), &error))?;
    let listener =
        Listener::make(interface).map_err(|error| about("make the configuration socket", &error))?;
    let server = Server {
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        device: Device::default(),
        lane: Lane::new(tun),
        clients: HashMap::new(),
        port: 0,
        mark: 0,
    };
    tracing::info!(interface, "listening for configuration");
    server.run(&listener, &signals)
}

fn about(what: &str, error: &io::Error) -> io::Error {
    let hint = match error.raw_os_error() {
        Some(libc::ENOENT) => "; is there a /dev/net/tun? (modprobe tun, or mount it into the container)",
        Some(libc::EPERM | libc::EACCES) => "; this needs CAP_NET_ADMIN",
        Some(libc::EBUSY) => "; another program has it open",
        Some(libc::EINVAL) => "; a name has 1 to 15 bytes, and no interface of another kind may have it",
        _ => "",
    };
    io::Error::new(error.kind(), format!("{what}: {error}{hint}"))
}

struct Server {
    epoll: Epoll,
    device: Device,
    lane: Lane,
    clients: HashMap<u64, Client>,
    port: u16,
    mark: u32,
}

impl Server {
    fn run(mut self, listener: &Listener, signals: &SignalFd) -> io::Result<()> {
        watch(&self.epoll, self.lane.tun().as_fd(), TUN)?;
        watch(&self.epoll, signals.as_fd(), SIGNALS)?;
        watch(&self.epoll, listener.as_fd(), LISTENER)?;
        let mut next_tick = Instant::now();
        let mut events = [EpollEvent::empty(); 16];
        loop {
            // Without peers there is nothing to do by time.
            let wait = if self.device.has_peers() {
                next_tick.saturating_duration_since(Instant::now())
            } else {
                Duration::MAX
            };
            let wait = EpollTimeout::try_from(wait.saturating_add(Duration::from_millis(1)))
                .unwrap_or(EpollTimeout::NONE);
            let count = match self.epoll.wait(&mut events, wait) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            for event in events.get(..count).unwrap_or_default() {
                match event.data() {
                    TUN => self.lane.send_burst(&mut self.device)?,
                    UDP_V4 => self.lane.receive_burst(&mut self.device, true)?,
                    UDP_V6 => self.lane.receive_burst(&mut self.device, false)?,
                    SIGNALS => return Ok(()),
                    LISTENER => self.accept(listener),
                    client => self.serve(client),
                }
            }
            let now = Instant::now();
            if now >= next_tick {
                self.lane.tick(&mut self.device, now);
                next_tick = now + TICK;
            }
        }
    }

    fn accept(&mut self, listener: &Listener) {
        match listener.accept() {
            Ok(Some(client)) => {
                let token = CLIENTS + u64::from(client.as_fd().as_raw_fd().cast_unsigned());
                if watch(&self.epoll, client.as_fd(), token).is_ok() {
                    self.clients.insert(token, client);
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "accept a client of the configuration socket"),
        }
    }

    fn serve(&mut self, token: u64) {
        // Out of the map while it is served, as the answer needs the rest of the server.
        let Some(mut client) = self.clients.remove(&token) else { return };
        // A client that has gone is no longer watched: closing does that.
        if client.serve(|request| self.answer(request)) == Stays::Yes {
            self.clients.insert(token, client);
        }
    }

    fn answer(&mut self, request: &str) -> String {
        match Request::parse(request) {
            Ok(Request::Get) => {
                let mut state = self.device.state();
                (state.listen_port, state.fwmark) = (self.port, self.mark);
                state.to_answer()
            }
            Ok(Request::Set(changes)) => answer(self.change(&changes).err().map_or(0, |error| {
                tracing::error!(%error, "set the configuration");
                error.raw_os_error().unwrap_or(libc::EIO)
            })),
            Err(refusal) => {
                tracing::error!(line = refusal.line, why = refusal.why, "a request that is refused");
                answer(libc::EINVAL)
            }
        }
    }

    fn change(&mut self, changes: &[Change]) -> io::Result<()> {
        for change in changes {
            match change {
                Change::ListenPort(port) => self.bind(*port)?,
                Change::Fwmark(mark) => self.mark(*mark)?,
                Change::PrivateKey(_) | Change::ReplacePeers | Change::Peer(_) => {
                    self.device.change(change);
                    if self.port == 0 && matches!(change, Change::PrivateKey(Some(_))) {
                        self.bind(0)?;
                    }
                }
            }
        }
        // A handshake that keeps a peer reachable is due at once.
        self.lane.tick(&mut self.device, Instant::now());
        Ok(())
    }

    fn bind(&mut self, port: u16) -> io::Result<()> {
        if port != 0 && port == self.port {
            return Ok(());
        }
        let v4 = Udp::bind(true, port).map_err(|error| named(port, error))?;
        let bound = v4.port()?;
        let v6 = match Udp::bind(false, bound) {
            Ok(v6) => Some(v6),
            // A kernel without IPv6.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(named(bound, error)),
        };
        for socket in [Some(&v4), v6.as_ref()].into_iter().flatten() {
            socket.set_mark(self.mark)?;
        }
        watch(&self.epoll, v4.as_fd(), UDP_V4)?;
        if let Some(v6) = &v6 {
            watch(&self.epoll, v6.as_fd(), UDP_V6)?;
        }
        self.lane.set_sockets(Some(v4), v6);
        self.port = bound;
        Ok(())
    }

    fn mark(&mut self, mark: u32) -> io::Result<()> {
        self.lane.sockets().into_iter().flatten().try_for_each(|socket| socket.set_mark(mark))?;
        self.mark = mark;
        Ok(())
    }
}

fn named(port: u16, error: io::Error) -> io::Error {
    tracing::error!(port, %error, "bind the UDP port");
    error
}

fn watch(epoll: &Epoll, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
    Ok(epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
}
