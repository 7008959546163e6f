//! What runs inside the pods of the tests and the demo. One static file is the whole image.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool for people and tests")]

mod ping;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

const USAGE: &str = "usage: podtool pause | ping IP[%LINK] [COUNT] | serve PORT | get IP PORT | addr";
/// Peers are microseconds away; what has not answered by then never will.
const LIMIT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podtool {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> io::Result<()> {
    match words {
        [] | ["pause"] => pause(),
        ["ping", target] => ping::ping(host(target)?, 1),
        ["ping", target, count] => ping::ping(host(target)?, parse(count)?),
        ["serve", port] => serve(parse(port)?),
        ["get", ip, port] => get(SocketAddr::new(parse(ip)?, parse(port)?)),
        ["addr"] => addresses(),
        _ => Err(io::Error::other(USAGE)),
    }
}

/// Does nothing until told to stop.
fn pause() -> io::Result<()> {
    wait_for_the_end(&block_signals()?)
}

/// Blocks the signals that [`wait_for_the_end`] takes, for this thread and those it starts.
fn block_signals() -> io::Result<SigSet> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
    signals.thread_block()?;
    Ok(signals)
}

/// Waits for SIGTERM or SIGINT and reaps orphans meanwhile: the first process of a pod must.
fn wait_for_the_end(signals: &SigSet) -> io::Result<()> {
    while signals.wait()? == Signal::SIGCHLD {
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {
        }
    }
    Ok(())
}

/// Tells each caller the address it came from. Ends with SIGTERM.
fn serve(port: u16) -> io::Result<()> {
    let socket = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    let signals = block_signals()?;
    std::thread::spawn(move || {
        for (mut caller, from) in std::iter::from_fn(|| socket.accept().ok()) {
            // A caller that hangs up is no reason to stop serving the others.
            let _ = writeln!(caller, "{}", from.ip().to_canonical());
        }
    });
    wait_for_the_end(&signals)
}

fn get(server: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    print!("{answer}");
    Ok(())
}

fn addresses() -> io::Result<()> {
    for entry in nix::ifaddrs::getifaddrs()? {
        if let Some(ip) = entry.address.and_then(|address| ip(&address)) {
            println!("{} {ip}", entry.interface_name);
        }
    }
    Ok(())
}

fn ip(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
}

/// An address to ping; a link-local one needs its link: `fe80::1%eth0`.
fn host(word: &str) -> io::Result<SocketAddr> {
    match word.split_once('%') {
        Some((ip, link)) => {
            let scope = nix::net::if_::if_nametoindex(link)?;
            Ok(SocketAddrV6::new(parse(ip)?, 0, 0, scope).into())
        }
        None => Ok(SocketAddr::new(parse(word)?, 0)),
    }
}

fn parse<T: std::str::FromStr>(word: &str) -> io::Result<T> {
    word.parse().map_err(|_| io::Error::other(USAGE))
}
