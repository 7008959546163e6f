//! The text protocol by which `wg(8)` configures a device in user space: one request, one answer, each ended by an
//! empty line (<https://www.wireguard.com/xplatform/>). Numbers of errors are negative errno values.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::allowed::Prefix;

/// A key, public or private, or a preshared one.
pub type Key = [u8; 32];

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `get=1`
    Get,
    /// `set=1`: all of it, in this order, or nothing.
    Set(Vec<Change>),
}

/// One step of a `set`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The device's key; `None` takes it away.
    PrivateKey(Option<Key>),
    /// The UDP port; 0 is any.
    ListenPort(u16),
    /// The mark of what is sent; 0 is none.
    Fwmark(u32),
    /// Removes all peers first.
    ReplacePeers,
    /// One peer's part.
    Peer(PeerChange),
}

/// What a `set` says of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerChange {
    /// Who it is.
    pub public_key: Key,
    /// Take it away.
    pub remove: bool,
    /// Only if it is there.
    pub update_only: bool,
    /// All zero: none.
    pub preshared_key: Option<Key>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Seconds; 0 is off.
    pub keepalive: Option<u16>,
    /// Takes the prefixes away that it has.
    pub replace_allowed: bool,
    /// Prefixes to give to it, or (`false`) to take from it.
    pub allowed: Vec<(Prefix, bool)>,
}

/// A line that is no part of the protocol: its place, what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Counted from 1.
    pub line: usize,
    /// The sentence for the log; it never holds a key.
    pub why: String,
}

impl Request {
    /// Reads the lines of a request, without the empty one.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
        match lines.next() {
            Some((_, "get=1")) => match lines.next() {
                None => Ok(Self::Get),
                Some((line, _)) => Err(refusal(line, "get=1 stands by itself")),
            },
            Some((_, "set=1")) => parse_set(lines).map(Self::Set),
            Some((line, _)) => Err(refusal(line, "a request begins with get=1 or set=1")),
            None => Err(refusal(1, "an empty request")),
        }
    }
}

fn parse_set<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Vec<Change>, Refusal> {
    let mut changes = Vec::new();
    let mut peer: Option<PeerChange> = None;
    for (line, text) in lines {
        let (key, value) = text.split_once('=').ok_or_else(|| refusal(line, "not key=value"))?;
        let wrong = |what: &str| refusal(line, &format!("{key}: {what}"));
        if key == "public_key" {
            changes.extend(peer.take().map(Change::Peer));
            let public_key = parse_key(value).ok_or_else(|| wrong("not 64 hexadecimal digits"))?;
            peer = Some(PeerChange { public_key, ..PeerChange::default() });
        } else if let Some(peer) = &mut peer {
            parse_peer(peer, key, value).map_err(|what| wrong(&what))?;
        } else {
            changes.push(parse_device(key, value).map_err(|what| wrong(&what))?);
        }
    }
    changes.extend(peer.map(Change::Peer));
    Ok(changes)
}

fn parse_device(key: &str, value: &str) -> Result<Change, String> {
    match key {
        "private_key" => {
            let key = parse_key(value).ok_or("not 64 hexadecimal digits")?;
            Ok(Change::PrivateKey((key != Key::default()).then_some(key)))
        }
        "listen_port" => number(value).map(Change::ListenPort),
        "fwmark" => number(value).map(Change::Fwmark),
        "replace_peers" => only_true(value).map(|()| Change::ReplacePeers),
        _ => Err("unknown here; a peer's keys come behind its public_key".to_owned()),
    }
}

fn parse_peer(peer: &mut PeerChange, key: &str, value: &str) -> Result<(), String> {
    match key {
        "remove" => only_true(value).map(|()| peer.remove = true),
        "update_only" => only_true(value).map(|()| peer.update_only = true),
        "preshared_key" => {
            peer.preshared_key = Some(parse_key(value).ok_or("not 64 hexadecimal digits")?);
            Ok(())
        }
        "endpoint" => {
            peer.endpoint = Some(parse_endpoint(value).ok_or("not IP:port or [IP]:port")?);
            Ok(())
        }
        "persistent_keepalive_interval" => {
            peer.keepalive = Some(number(value)?);
            Ok(())
        }
        "replace_allowed_ips" => {
            // What was said of it before in this request goes, too.
            peer.allowed.clear();
            only_true(value).map(|()| peer.replace_allowed = true)
        }
        "allowed_ip" => {
            let (text, give) = value.strip_prefix('-').map_or((value, true), |text| (text, false));
            peer.allowed.push((parse_prefix(text).ok_or("not IP/length")?, give));
            Ok(())
        }
        "protocol_version" if value == "1" => Ok(()),
        "protocol_version" => Err("only 1 is known".to_owned()),
        _ => Err("unknown".to_owned()),
    }
}

fn refusal(line: usize, why: &str) -> Refusal {
    Refusal { line, why: why.to_owned() }
}

fn number<N: std::str::FromStr>(value: &str) -> Result<N, String> {
    value.parse().map_err(|_| "not a number in its range".to_owned())
}

fn only_true(value: &str) -> Result<(), String> {
    if value == "true" { Ok(()) } else { Err("only \"true\" can be said".to_owned()) }
}

/// 64 hexadecimal digits.
pub fn parse_key(text: &str) -> Option<Key> {
    let mut key = Key::default();
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    // `from_str_radix` takes a sign.
    text.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(key)
}

/// An IPv6 address may name its interface by number (`[fe80::1%2]:51820`).
fn parse_endpoint(text: &str) -> Option<SocketAddr> {
    text.parse().ok()
}

fn parse_prefix(text: &str) -> Option<Prefix> {
    let (address, length) = text.split_once('/')?;
    Prefix::new(address.parse::<IpAddr>().ok()?, length.parse().ok()?)
}

/// A device, as an answer to `get` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// Its key.
    pub private_key: Option<Key>,
    /// The port it listens on.
    pub listen_port: u16,
    /// The mark of what it sends.
    pub fwmark: u32,
    /// Its peers.
    pub peers: Vec<PeerState>,
}

/// A peer, as an answer to `get` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// Who it is.
    pub public_key: Key,
    /// All zero if there is none.
    pub preshared_key: Key,
    /// Where it was last heard, or was said to be.
    pub endpoint: Option<SocketAddr>,
    /// Since 1970; zero if there was none.
    pub last_handshake: std::time::Duration,
    /// Bytes of packets, headers of the tunnel included.
    pub received: u64,
    /// See `received`.
    pub sent: u64,
    /// Seconds; 0 is off.
    pub keepalive: u16,
    /// Its prefixes.
    pub allowed: Vec<Prefix>,
}

impl DeviceState {
    /// The answer, its end included.
    pub fn to_answer(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{key}={value}");
        };
        if let Some(key) = &self.private_key {
            line("private_key", &Hex(key));
        }
        if self.listen_port != 0 {
            line("listen_port", &self.listen_port);
        }
        if self.fwmark != 0 {
            line("fwmark", &self.fwmark);
        }
        for peer in &self.peers {
            line("public_key", &Hex(&peer.public_key));
            line("preshared_key", &Hex(&peer.preshared_key));
            line("protocol_version", &1);
            if let Some(endpoint) = &peer.endpoint {
                line("endpoint", endpoint);
            }
            line("last_handshake_time_sec", &peer.last_handshake.as_secs());
            line("last_handshake_time_nsec", &peer.last_handshake.subsec_nanos());
            line("tx_bytes", &peer.sent);
            line("rx_bytes", &peer.received);
            line("persistent_keepalive_interval", &peer.keepalive);
            for prefix in &peer.allowed {
                line("allowed_ip", &format_args!("{}/{}", prefix.address(), prefix.length()));
            }
        }
        text.push_str(&answer(0));
        text
    }
}

/// The end of an answer: 0, or an errno.
pub fn answer(errno: i32) -> String {
    format!("errno={}\n\n", -errno.abs())
}

struct Hex<'a>(&'a Key);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

    #[test]
    fn the_example_of_the_protocols_page_is_understood() {
        let text = format!(
            "set=1\nprivate_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a\nfwmark=0\n\
             listen_port=12912\nreplace_peers=true\npublic_key={KEY}\npreshared_key={KEY}\n\
             replace_allowed_ips=true\nallowed_ip=192.168.4.4/32\nendpoint=[abcd:23::33%2]:51820\n\
             public_key={KEY}\nupdate_only=true\nremove=true\n"
        );
        let Request::Set(changes) = Request::parse(&text).unwrap() else { panic!("a set") };
        assert_eq!(changes.len(), 6);
        let Change::Peer(peer) = &changes[4] else { panic!("a peer") };
        assert_eq!(peer.endpoint.unwrap().to_string(), "[abcd:23::33%2]:51820");
        assert_eq!(peer.allowed.len(), 1);
        assert!(matches!(&changes[5], Change::Peer(peer) if peer.remove && peer.update_only));
    }

    #[test]
    fn each_wrong_line_is_named_and_no_key_is_repeated() {
        for (text, line) in [
            ("", 1),
            ("get=2", 1),
            ("get=1\nset=1", 2),
            ("set=1\nlisten_port=65536", 2),
            ("set=1\nlisten_port=-1", 2),
            ("set=1\nprivate_key=12", 2),
            ("set=1\nendpoint=1.2.3.4:5", 2),
            ("set=1\nreplace_peers=false", 2),
            ("set=1\nfwmark=1\nnonsense", 3),
        ] {
            assert_eq!(Request::parse(text).unwrap_err().line, line, "{text}");
        }
        for peer in [
            "allowed_ip=10.0.0.0/33",
            "allowed_ip=10.0.0.0",
            "endpoint=host:1",
            "remove=yes",
            "nonsense=1",
            "protocol_version=2",
            "persistent_keepalive_interval=65536",
            "preshared_key=+1",
        ] {
            let refusal = Request::parse(&format!("set=1\npublic_key={KEY}\n{peer}")).unwrap_err();
            assert_eq!(refusal.line, 3, "{peer}");
        }
        let refusal = Request::parse(&format!("set=1\nprivate_key={KEY}0")).unwrap_err();
        assert!(!refusal.why.contains(KEY), "{refusal:?}");
    }

    #[test]
    fn a_device_is_told_as_wg_wants_it() {
        let peer = PeerState {
            public_key: parse_key(KEY).unwrap(),
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            allowed: vec![Prefix::new("10.1.0.0".parse().unwrap(), 26).unwrap()],
            ..PeerState::default()
        };
        let state = DeviceState { listen_port: 7, peers: vec![peer], ..DeviceState::default() };
        let text = state.to_answer();
        assert!(text.starts_with(&format!("listen_port=7\npublic_key={KEY}\npreshared_key=0000")), "{text}");
        assert!(text.ends_with("allowed_ip=10.1.0.0/26\nerrno=0\n\n"), "{text}");
    }

    proptest! {
        #[test]
        fn no_request_is_a_panic(text in "(set=1\n|get=1\n)?([a-z_]{0,12}=?[-+0-9a-f./:%\\[\\]é]{0,70}\n){0,5}") {
            let _ = Request::parse(&text);
        }
    }
}
