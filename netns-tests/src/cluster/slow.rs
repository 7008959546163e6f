//! A TCP relay that lets everything wait: a store far away, on kernels without netem.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::ClusterLab;
use super::underlay::{Segment, bare};
use crate::inside::Inside;

/// Host number of the relay.
const HOST: usize = 21;

/// A relay in front of the first etcd member. It ends with the lab's process.
#[derive(Debug)]
pub struct SlowLink {
    /// What to give to `weftd` instead of the member's own.
    pub endpoint: String,
}

impl SlowLink {
    /// Each direction takes half of `delay`.
    pub fn start(lab: &ClusterLab, delay: Duration) -> Self {
        let place = bare(lab.lab(), "relay");
        lab.wire.plug(lab.lab(), &place, Segment::Near, HOST);
        let address = lab.wire.address(Segment::Near, HOST);
        let local: SocketAddr = format!("{address}:2379").parse().expect("an IPv4 underlay");
        let listener = place.enter(|| TcpListener::bind(local)).expect("listen in the relay");
        let member: SocketAddr =
            lab.etcd.endpoints()[0].trim_start_matches("http://").parse().expect("a member");
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = place.enter(|| TcpStream::connect(member)) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    relay(from, to, delay / 2);
                }
            }
        });
        Self { endpoint: format!("http://{local}") }
    }
}

fn relay(mut from: TcpStream, to: TcpStream, delay: Duration) {
    let (sender, receiver): (Sender<(Instant, Vec<u8>)>, _) = channel();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if sender.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || deliver(&receiver, to));
}

fn deliver(receiver: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    while let Ok((due, bytes)) = receiver.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _gone_already = to.shutdown(Shutdown::Both);
}
