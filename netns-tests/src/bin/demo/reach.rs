//! Who reaches whom: echo requests and TCP connections from inside the pods, through the CRI.

use std::net::IpAddr;

use netns_tests::{CriPod, Runtime, Server};

/// The port on which the server outside tells callers the address it sees.
const SERVER_PORT: u16 = 7777;

/// Asks on behalf of pods and remembers what did not hold.
pub struct Prober<'a> {
    pub runtime: &'a Runtime,
    pub failures: Vec<String>,
}

impl Prober<'_> {
    /// One cell of the matrix: the round trips to each address of a target.
    pub fn echo(&mut self, from: &CriPod, name: &str, targets: &[String]) -> String {
        if targets.is_empty() {
            return self.failed(format!("{} knows no address of {name}", from.name));
        }
        let times: Vec<_> = targets.iter().map(|target| self.round_trip(from, name, target)).collect();
        times.join(" / ")
    }

    fn round_trip(&mut self, from: &CriPod, name: &str, target: &str) -> String {
        let output = self.runtime.exec(from, ["/podtool", "ping", target, "2"]);
        let time = output
            .stdout
            .lines()
            .filter_map(|line| line.split("time=").nth(1)?.strip_suffix(" ms"))
            .next_back();
        match time {
            Some(time) if output.code == 0 => time.to_owned(),
            _ => self.failed(format!(
                "{} does not reach {name} at {target}: {}",
                from.name,
                output.stderr.trim()
            )),
        }
    }

    /// The source addresses that `target`'s addresses see; each must be the `expected` one of its family.
    pub fn seen(
        &mut self,
        from: &CriPod,
        target: (&str, &[IpAddr], u16),
        expected: [Option<IpAddr>; 2],
    ) -> String {
        let (name, ips, port) = target;
        let mut cells = Vec::new();
        for &ip in ips {
            let wanted = expected[usize::from(ip.is_ipv6())];
            let output = self.runtime.exec(from, ["/podtool", "get", &ip.to_string(), &port.to_string()]);
            let seen: Option<IpAddr> = output.stdout.trim().parse().ok();
            cells.push(match seen {
                Some(seen) if Some(seen) == wanted => seen.to_string(),
                Some(seen) => {
                    self.failed(format!("{name} at {ip} saw {} as {seen}, not as {wanted:?}", from.name))
                }
                None => self.failed(format!(
                    "{} gets nothing from {name} at {ip}: {}",
                    from.name,
                    output.stderr.trim()
                )),
            });
        }
        cells.join("  ")
    }

    /// [`Prober::seen`] by the server outside, which must see the node: it knows no way back to pods.
    pub fn seen_outside(&mut self, from: &CriPod) -> String {
        let ips: Vec<IpAddr> =
            [Server::V4, Server::V6].into_iter().filter(|&ip| from.ip_like(ip).is_some()).collect();
        self.seen(from, ("the server", &ips, SERVER_PORT), [Some(Server::NODE_V4), Some(Server::NODE_V6)])
    }

    /// [`Prober::seen`] by another pod, which must see the pod's own address: there is no NAT between pods.
    pub fn seen_by_pod(&mut self, from: &CriPod, to: &CriPod) -> String {
        let own = [Server::V4, Server::V6].map(|like| from.ip_like(like));
        self.seen(from, (&to.name, &to.ips, CriPod::PORT), own)
    }

    fn failed(&mut self, what: String) -> String {
        self.failures.push(what);
        "NO".to_owned()
    }
}
