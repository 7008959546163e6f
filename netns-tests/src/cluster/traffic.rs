//! Traffic between pods that knows what was lost: echo requests each millisecond, a TCP connection that must not
//! break, a transfer whose bytes must arrive, and the largest packet that passes.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};

use crate::inside::Inside;

/// What has not been answered by then was lost.
const LATE: Duration = Duration::from_millis(1500);
/// Room for replies while this process does not run: other tests share its cores.
const BUFFER: usize = 16 << 20;

/// Sends echo requests until it is told to finish.
#[derive(Debug)]
pub struct Prober {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Instant>>,
    receiver: JoinHandle<BTreeMap<u64, Instant>>,
}

/// What became of the echo requests.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    /// How many were sent.
    pub sent: usize,
    /// How many were never answered.
    pub lost: usize,
    /// The longest time in which nothing that was sent was answered.
    pub outage: Duration,
}

impl Prober {
    /// Sends one each millisecond from `from` to `to`.
    pub fn start(from: &impl Inside, to: IpAddr) -> Self {
        Self::each(from, to, Duration::from_millis(1))
    }

    /// Sends one each `interval`.
    pub fn each(from: &impl Inside, to: IpAddr, interval: Duration) -> Self {
        // Lets this process use an ICMP socket of that namespace whose replies the kernel sorts by socket.
        from.set_sysctl("net.ipv4.ping_group_range", "0 2147483647");
        let socket = from.enter(|| open(to)).unwrap_or_else(|error| panic!("open an ICMP socket: {error}"));
        let listening = socket.try_clone().expect("a second descriptor");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let sender = thread::spawn(move || send(&socket, to, interval, &stopped));
        let stopped = stop.clone();
        let receiver = thread::spawn(move || receive(&listening, to, &stopped));
        Self { stop, sender, receiver }
    }

    /// Stops several at once; their reports in order.
    pub fn finish_all(probers: Vec<Self>) -> Vec<ProbeReport> {
        probers.iter().for_each(|prober| prober.stop.store(true, Ordering::Release));
        probers.into_iter().map(Self::finish).collect()
    }

    /// Stops, waits for late replies, and says what was lost.
    pub fn finish(self) -> ProbeReport {
        self.stop.store(true, Ordering::Release);
        let sent = self.sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let answered = self.receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        report(&sent, &answered)
    }
}

impl ProbeReport {
    /// Panics unless every request was answered, and enough were sent for that to mean something.
    #[track_caller]
    pub fn assert_nothing_lost(&self, what: &str) {
        assert!(self.sent >= 100, "{what}: only {} requests were sent", self.sent);
        assert_eq!(self.lost, 0, "{what}: {self:?}");
    }
}

fn report(sent: &[Instant], answered: &BTreeMap<u64, Instant>) -> ProbeReport {
    let mut outage = Duration::ZERO;
    let mut lost = 0;
    let mut since: Option<Instant> = None;
    for (sequence, at) in (0u64..).zip(sent) {
        if answered.contains_key(&sequence) {
            since = None;
        } else {
            lost += 1;
            outage = outage.max(at.saturating_duration_since(*since.get_or_insert(*at)));
        }
    }
    ProbeReport { sent: sent.len(), lost, outage }
}

fn open(to: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&fd, sockopt::SndBufForce, &BUFFER)?;
    // Only send() and recv() are used on it, which do not care that it is no UDP socket.
    let socket = UdpSocket::from(fd);
    socket.connect(SocketAddr::new(to, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    Ok(socket)
}

fn send(socket: &UdpSocket, to: IpAddr, interval: Duration, stop: &AtomicBool) -> Vec<Instant> {
    let mut sent = Vec::new();
    let mut packet = [0; 16];
    packet[0] = if to.is_ipv4() { 8 } else { 128 };
    while !stop.load(Ordering::Acquire) {
        let sequence = sent.len() as u64;
        packet[6..8].copy_from_slice(&sequence.to_be_bytes()[6..]);
        packet[8..].copy_from_slice(&sequence.to_be_bytes());
        sent.push(Instant::now());
        // A route that is missing at this moment is a lost packet like any other.
        let _counted_as_lost = socket.send(&packet);
        thread::sleep(interval);
    }
    sent
}

fn receive(socket: &UdpSocket, to: IpAddr, stop: &AtomicBool) -> BTreeMap<u64, Instant> {
    let kind = if to.is_ipv4() { 0 } else { 129 };
    let mut answered = BTreeMap::new();
    let mut last_chance: Option<Instant> = None;
    let mut buffer = [0; 64];
    loop {
        match socket.recv(&mut buffer) {
            Ok(16) if buffer[0] == kind => {
                let sequence = buffer[8..16].try_into().map(u64::from_be_bytes).unwrap_or(u64::MAX);
                answered.insert(sequence, Instant::now());
            }
            Ok(_) => {}
            // Silence, or an ICMP error that belongs to a lost request. Once stopped, silence ends the wait early
            // only when it has lasted.
            Err(_) => {}
        }
        if stop.load(Ordering::Acquire) {
            let since = *last_chance.get_or_insert_with(Instant::now);
            if since.elapsed() > LATE {
                return answered;
            }
        }
    }
}

/// A TCP connection on which small messages go to and fro.
#[derive(Debug)]
pub struct Flow {
    stop: Arc<AtomicBool>,
    client: JoinHandle<io::Result<FlowReport>>,
}

/// What became of a [`Flow`] that did not break.
#[derive(Clone, Debug)]
pub struct FlowReport {
    /// How many messages went to and fro.
    pub rounds: u64,
    /// The longest time that one took.
    pub slowest: Duration,
}

impl Flow {
    /// Connects `from` to `ip`, an address of `to`.
    pub fn start(from: &impl Inside, to: &impl Inside, ip: IpAddr) -> Self {
        let (listener, port) = listen(to);
        thread::spawn(move || {
            // Ends with the connection.
            if let Ok((mut stream, _)) = listener.accept() {
                let mut buffer = [0; 8];
                while stream.read_exact(&mut buffer).and_then(|()| stream.write_all(&buffer)).is_ok() {}
            }
        });
        let stream =
            from.enter(|| TcpStream::connect_timeout(&SocketAddr::new(ip, port), Duration::from_secs(10)));
        let stream = stream.unwrap_or_else(|error| panic!("connect to {ip}: {error}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        Self { stop, client: thread::spawn(move || talk(stream, &stopped)) }
    }

    /// Ends it; an error if it broke, or an answer took longer than a minute.
    pub fn finish(self) -> io::Result<FlowReport> {
        self.stop.store(true, Ordering::Release);
        self.client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn talk(mut stream: TcpStream, stop: &AtomicBool) -> io::Result<FlowReport> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut report = FlowReport { rounds: 0, slowest: Duration::ZERO };
    while !stop.load(Ordering::Acquire) {
        let sent = Instant::now();
        let message = report.rounds.to_be_bytes();
        stream.write_all(&message)?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer)?;
        if answer != message {
            return Err(io::Error::other("another message came back"));
        }
        report.rounds += 1;
        report.slowest = report.slowest.max(sent.elapsed());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(report)
}

/// Sends `bytes` bytes over TCP from `from` to `ip`, an address of `to`, and compares each of them.
pub fn transfer(from: &impl Inside, to: &impl Inside, ip: IpAddr, bytes: u64) -> io::Result<()> {
    let (listener, port) = listen(to);
    let reader = thread::spawn(move || -> io::Result<u64> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut block = vec![0; BLOCK];
        let mut seen = 0;
        for number in 0.. {
            let length = read_block(&mut stream, &mut block)?;
            if block[..length] != pattern(number)[..length] {
                return Err(io::Error::other(format!("block {number} arrived damaged")));
            }
            seen += length as u64;
            if length < BLOCK {
                break;
            }
        }
        Ok(seen)
    });
    let mut stream =
        from.enter(|| TcpStream::connect_timeout(&SocketAddr::new(ip, port), Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    let mut left = bytes;
    for number in 0.. {
        let length = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        if length == 0 {
            break;
        }
        stream.write_all(&pattern(number)[..length])?;
        left -= length as u64;
    }
    drop(stream);
    let seen = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    if seen == bytes { Ok(()) } else { Err(io::Error::other(format!("{seen} of {bytes} bytes arrived"))) }
}

const BLOCK: usize = 1 << 18;

/// Each block begins otherwise, so that a lost or doubled one shows.
fn pattern(number: u64) -> Vec<u8> {
    let seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    seed.to_le_bytes().repeat(BLOCK / 8)
}

/// Fills the block, or what is left of the stream.
fn read_block(stream: &mut TcpStream, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match stream.read(&mut block[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

fn listen(place: &impl Inside) -> (TcpListener, u16) {
    let listener = place.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)));
    let listener = listener.unwrap_or_else(|error| panic!("listen: {error}"));
    let port = listener.local_addr().map_or(0, |address| address.port());
    (listener, port)
}

/// Whether `size` bytes is the largest IP packet that gets there and back unfragmented.
///
/// # Errors
/// What is wrong: it does not pass, or one byte more passes too.
pub fn is_largest(from: &impl Inside, to: IpAddr, size: u32) -> Result<(), String> {
    // One may be lost, or find a neighbour that is not known yet; three are not.
    if !(0..3).any(|_| df_passes(from, to, size)) {
        return Err(format!("{size} bytes do not pass to {to}"));
    }
    if df_passes(from, to, size + 1) { Err(format!("{size} bytes are not the most to {to}")) } else { Ok(()) }
}

/// Whether an IP packet of exactly `size` bytes that must not be fragmented gets there and back.
pub fn df_passes(from: &impl Inside, to: IpAddr, size: u32) -> bool {
    // IPv4 or IPv6 header, and that of the echo request.
    let payload = size - if to.is_ipv4() { 28 } else { 48 };
    let (payload, to) = (payload.to_string(), to.to_string());
    from.try_run(["ping", "-n", "-q", "-c", "1", "-W", "1", "-M", "do", "-s", &payload, &to]).status.success()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_the_lost_and_measures_the_longest_outage() {
        let start = Instant::now();
        let sent: Vec<Instant> = (0..10).map(|n| start + Duration::from_millis(10 * n)).collect();
        let answered = [0, 1, 2, 6, 8, 9].map(|n| (n, start)).into();
        let report = report(&sent, &answered);
        assert_eq!((report.sent, report.lost), (10, 4));
        assert_eq!(
            report.outage,
            Duration::from_millis(20),
            "from the third lost request's first to its last"
        );
    }

    #[test]
    fn blocks_differ_in_their_first_bytes() {
        assert_ne!(pattern(0)[..8], pattern(1)[..8]);
    }
}
