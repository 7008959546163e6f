//! `weft-wg` as a device: configured by `wg(8)`, beside `wireguard-go`, which nobody here wrote.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]
#![expect(clippy::print_stderr, reason = "what was not run is said aloud")]

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use netns_tests::cluster::transfer;
use netns_tests::{Inside, Lab, Node, lab, require, wait_until, weft_bin_dir};

const LINK: &str = "wg0";
const LIMIT: Duration = Duration::from_secs(5);
const SOCKET: &str = "/run/wireguard/wg0.sock";

/// Which program makes the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Ours,
    WireguardGo,
}

/// One end: a node whose tunnel addresses are 10.99.0.`number` and fd99::`number`.
struct End {
    node: Node,
    number: u8,
    device: Option<Child>,
    public: String,
}

impl End {
    fn new(lab: &Lab, name: &str, number: u8) -> Self {
        let node = lab.node(name);
        node.mount_tmpfs("/run/wireguard");
        Self { node, number, device: None, public: String::new() }
    }

    fn start(&mut self, program: Program) {
        let mut command = match program {
            Program::Ours => self.node.command(weft_bin_dir().join("weft-wg")),
            Program::WireguardGo => {
                let mut command = self.node.command("wireguard-go");
                command.env("WG_PROCESS_FOREGROUND", "1");
                command
            }
        };
        self.device = Some(command.arg(LINK).stderr(Stdio::piped()).spawn().unwrap());
        wait_until("the device answers", LIMIT, || self.node.try_run(["wg", "show", LINK]).status.success());
        let private = text(&self.node, &["wg", "genkey"]);
        self.node.enter(|| std::fs::write("/run/wireguard/key", &private).unwrap());
        self.node.run(["wg", "set", LINK, "private-key", "/run/wireguard/key", "listen-port", "51820"]);
        self.public = text(&self.node, &["wg", "show", LINK, "public-key"]);
        for address in [format!("10.99.0.{}/24", self.number), format!("fd99::{}/64", self.number)] {
            self.node.run(["ip", "address", "add", &address, "dev", LINK, "nodad"]);
        }
        self.node.run(["ip", "link", "set", LINK, "mtu", "1420", "up"]);
    }

    fn v4(&self) -> IpAddr {
        IpAddr::from([10, 99, 0, self.number])
    }

    fn v6(&self) -> IpAddr {
        format!("fd99::{}", self.number).parse().unwrap()
    }

    fn know(&self, other: &Self, more: &[&str]) {
        let allowed = format!("{}/32,{}/128", other.v4(), other.v6());
        let mut words = vec!["wg", "set", LINK, "peer", &other.public, "allowed-ips", &allowed];
        words.extend(more);
        self.node.run(words);
    }

    fn stop(&mut self) {
        let mut device = self.device.take().unwrap();
        device.kill().unwrap();
        device.wait().unwrap();
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(mut device) = self.device.take() {
            let _ended_already = device.kill();
            let _reaped = device.wait();
        }
    }
}

fn text(node: &Node, words: &[&str]) -> String {
    String::from_utf8(node.run(words).stdout).unwrap().trim().to_owned()
}

/// Two ends on one wire, 192.0.2.1 and 192.0.2.2, fd02::1 and fd02::2.
fn ends(lab: &Lab) -> (End, End) {
    let (a, b) = (End::new(lab, "a", 1), End::new(lab, "b", 2));
    lab.wire((&a.node, &["192.0.2.1/24", "fd02::1/64"]), (&b.node, &["192.0.2.2/24", "fd02::2/64"]));
    (a, b)
}

fn has(program: Program) -> bool {
    let found = program == Program::Ours || netns_tests::has_command("wireguard-go");
    assert!(
        found || std::env::var_os("NETNS_TESTS").is_none_or(|mode| mode != "require"),
        "NETNS_TESTS=require, but wireguard-go is not installed"
    );
    if !found {
        eprintln!("NOT RUN beside wireguard-go: it is not installed");
    }
    found
}

fn reach_each_other(programs: (Program, Program), endpoint: &str) {
    if !require() || !has(programs.0) || !has(programs.1) {
        return;
    }
    let lab = Lab::new(&format!("wg-{programs:?}-{}", endpoint.len()));
    let (mut a, mut b) = ends(&lab);
    a.start(programs.0);
    b.start(programs.1);
    let preshared = text(&a.node, &["wg", "genpsk"]);
    for end in [&a, &b] {
        end.node.enter(|| std::fs::write("/run/wireguard/psk", &preshared).unwrap());
    }
    a.know(&b, &["endpoint", endpoint, "preshared-key", "/run/wireguard/psk"]);
    // B learns where A is.
    b.know(&a, &["preshared-key", "/run/wireguard/psk"]);
    for ip in [b.v4(), b.v6()] {
        assert!(a.node.ping(ip, 3), "{programs:?}: {ip} from a");
    }
    for ip in [a.v4(), a.v6()] {
        assert!(b.node.ping(ip, 3), "{programs:?}: {ip} from b");
    }
    transfer(&a.node, &b.node, b.v4(), 64 << 20).unwrap();
    transfer(&b.node, &a.node, a.v6(), 64 << 20).unwrap();
    let seen = text(&b.node, &["wg", "show", LINK, "endpoints"]);
    assert!(seen.contains("51820"), "{seen}");
}

#[test]
fn two_of_ours_reach_each_other_over_ipv4() {
    reach_each_other((Program::Ours, Program::Ours), "192.0.2.2:51820");
}

#[test]
fn two_of_ours_reach_each_other_over_ipv6() {
    reach_each_other((Program::Ours, Program::Ours), "[fd02::2]:51820");
}

#[test]
fn ours_reaches_wireguard_go_over_ipv4() {
    reach_each_other((Program::Ours, Program::WireguardGo), "192.0.2.2:51820");
}

#[test]
fn wireguard_go_reaches_ours_over_ipv6() {
    reach_each_other((Program::WireguardGo, Program::Ours), "[fd02::2]:51820");
}

#[test]
fn a_peer_that_moves_is_followed() {
    if !require() || !has(Program::WireguardGo) {
        return;
    }
    let lab = lab!();
    let (mut a, mut b) = ends(&lab);
    a.start(Program::Ours);
    b.start(Program::WireguardGo);
    a.know(&b, &["endpoint", "192.0.2.2:51820"]);
    b.know(&a, &["endpoint", "192.0.2.1:51820"]);
    assert!(a.node.ping(b.v4(), 3));
    b.node.run(["wg", "set", LINK, "listen-port", "51999"]);
    assert!(b.node.ping(a.v4(), 3));
    let endpoints = text(&a.node, &["wg", "show", LINK, "endpoints"]);
    assert!(endpoints.ends_with("192.0.2.2:51999"), "{endpoints}");
    assert!(a.node.ping(b.v4(), 3));
}

#[test]
fn wg_sets_and_shows_every_field() {
    if !require() {
        return;
    }
    let lab = lab!();
    let (mut a, mut b) = ends(&lab);
    a.start(Program::Ours);
    b.start(Program::Ours);
    b.know(&a, &[]);
    a.know(&b, &["endpoint", "192.0.2.2:51820", "persistent-keepalive", "25"]);
    a.node.run(["wg", "set", LINK, "fwmark", "0x51"]);
    // Nobody sends anything: the keepalive alone makes the session.
    wait_until("the first handshake", LIMIT, || {
        !text(&a.node, &["wg", "show", LINK, "latest-handshakes"]).ends_with("\t0")
    });
    let dump = text(&a.node, &["wg", "show", LINK, "dump"]);
    let lines: Vec<Vec<&str>> = dump.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines[0][1..], [a.public.as_str(), "51820", "0x51"]);
    let [public, preshared, endpoint, allowed, _, received, sent, keepalive] = lines[1][..] else {
        panic!("{dump}")
    };
    assert_eq!((public, preshared, endpoint), (b.public.as_str(), "(none)", "192.0.2.2:51820"));
    assert_eq!((allowed, keepalive), ("10.99.0.2/32,fd99::2/128", "25"));
    let bytes = |text: &str| text.parse::<u64>().unwrap();
    assert!(bytes(received) >= 92 && bytes(sent) >= 148, "{dump}");

    // What `wg showconf` writes, `wg setconf` and `wg syncconf` take, and nothing changes by it.
    let conf = text(&a.node, &["wg", "showconf", LINK]);
    a.node.enter(|| std::fs::write("/run/wireguard/conf", format!("{conf}\n")).unwrap());
    for verb in ["syncconf", "setconf"] {
        a.node.run(["wg", verb, LINK, "/run/wireguard/conf"]);
        assert_eq!(text(&a.node, &["wg", "showconf", LINK]), conf, "{verb}");
    }
    a.node.run(["wg", "set", LINK, "peer", &b.public, "allowed-ips", "10.0.0.0/8"]);
    assert!(text(&a.node, &["wg", "show", LINK, "allowed-ips"]).ends_with("\t10.0.0.0/8"));
    a.node.run(["wg", "set", LINK, "peer", &b.public, "remove"]);
    assert_eq!(text(&a.node, &["wg", "show", LINK, "peers"]), "");
    a.node.run(["wg", "set", LINK, "private-key", "/dev/null"]);
    assert_eq!(text(&a.node, &["wg", "show", LINK, "public-key"]), "(none)");
}

#[test]
fn a_device_that_ends_takes_all_with_it() {
    if !require() {
        return;
    }
    let lab = lab!();
    let mut a = End::new(&lab, "a", 1);
    let gone = |a: &End| !a.node.enter(|| Path::new("/sys/class/net/wg0").exists());
    a.start(Program::Ours);
    let pid = a.device.as_ref().unwrap().id().to_string();
    a.node.run(["kill", &pid]);
    assert!(a.device.take().unwrap().wait().unwrap().success());
    assert!(gone(&a) && !a.node.enter(|| Path::new(SOCKET).exists()));
    // A killed one leaves its socket file, which the next replaces.
    a.start(Program::Ours);
    a.stop();
    wait_until("the interface is gone", LIMIT, || gone(&a));
    a.start(Program::Ours);
}

/// Starts a second device and returns what it says before it ends.
fn refused(node: &Node, words: &[&str]) -> String {
    let program = weft_bin_dir().join("weft-wg");
    let mut command = node.command(words.first().copied().unwrap_or(program.to_str().unwrap()));
    if let Some((_, rest)) = words.split_first() {
        command.args(rest).arg(&program);
    }
    let output = command.arg(LINK).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_cannot_be_is_said_in_a_sentence() {
    if !require() {
        return;
    }
    let lab = lab!();
    let mut a = End::new(&lab, "a", 1);
    let unprivileged = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"];
    let said = refused(&a.node, &unprivileged);
    assert!(said.contains("make the interface wg0") && said.contains("CAP_NET_ADMIN"), "{said}");
    a.start(Program::Ours);
    let said = refused(&a.node, &[]);
    assert!(
        said.contains("make the interface wg0") && said.contains("another program has it open"),
        "{said}"
    );

    // A port that somebody has: wg says so, and the device keeps the one it had.
    let taken = a.node.enter(|| std::net::UdpSocket::bind("0.0.0.0:4711").unwrap());
    let output = a.node.try_run(["wg", "set", LINK, "listen-port", "4711"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("Address already in use"), "{output:?}");
    assert_eq!(text(&a.node, &["wg", "show", LINK, "listen-port"]), "51820");
    drop(taken);

    for (request, errno) in [("nonsense\n\n", -22), ("set=1\nlisten_port=70000\n\n", -22), ("get=1\n\n", 0)] {
        let answer = ask(&a.node, request);
        assert!(answer.ends_with(&format!("errno={errno}\n\n")), "{request}: {answer}");
    }
    assert_eq!(text(&a.node, &["wg", "show", LINK, "listen-port"]), "51820");
}

fn ask(node: &Node, request: &str) -> String {
    node.enter(|| {
        let mut stream = UnixStream::connect(SOCKET).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let (mut answer, mut buffer) = (String::new(), [0; 4096]);
        while !answer.ends_with("\n\n") {
            let length = stream.read(&mut buffer).unwrap();
            assert_ne!(length, 0, "no answer: {answer}");
            answer.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        answer
    })
}
