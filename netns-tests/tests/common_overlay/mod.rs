//! Three nodes with a data plane each: `a` and `b` on one link, `c` behind a router. What each should do is written down
//! here; nothing comes from a store.
#![expect(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use netns_tests::{Inside, Lab, Node, Pod, wait_for, wait_until};
use weft_cni::ip::{IfAddr, Subnet};
use weft_netlink::link::Mac;
use weft_overlay::wanted::{Backend, Changed, Direct, Peer, ThisNode, Wanted};
use weft_overlay::{DataPlane, PlaneReport, Setup};

pub const SOON: Duration = Duration::from_secs(20);
pub const VXLAN: Backend = Backend::Vxlan { vni: 7, port: 4789 };

/// Which families pods and underlay speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    pub pods_v4: bool,
    pub pods_v6: bool,
    pub underlay_v4: bool,
    pub underlay_v6: bool,
}

impl Families {
    pub const DUAL: Self = Self { pods_v4: true, pods_v6: true, underlay_v4: true, underlay_v6: true };
    pub const V4: Self = Self { pods_v4: true, pods_v6: false, underlay_v4: true, underlay_v6: false };
    pub const V6: Self = Self { pods_v4: false, pods_v6: true, underlay_v4: false, underlay_v6: true };
}

/// A node with its plan of addresses.
pub struct Member {
    pub node: Node,
    pub number: u8,
    families: Families,
    plane: Option<DataPlane>,
    reports: Arc<Mutex<Vec<PlaneReport>>>,
}

pub struct World {
    pub lab: Lab,
    pub families: Families,
    pub router: Node,
    pub members: Vec<Member>,
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl World {
    pub fn new(lab: Lab, families: Families) -> Self {
        let router = lab.node("router");
        router.set_sysctl("net.ipv4.ip_forward", "1");
        router.set_sysctl("net.ipv6.conf.all.forwarding", "1");
        router.run(["ip", "link", "add", "lan", "type", "bridge"]);
        let mut members = Vec::new();
        for (number, name) in (1..).zip(["a", "b", "c"]) {
            let node = lab.node(name);
            let member = Member { node, number, families, plane: None, reports: Arc::default() };
            let own: Vec<String> = member.published().iter().map(ToString::to_string).collect();
            let own: Vec<&str> = own.iter().map(String::as_str).collect();
            let gateways: &[&str] =
                if number == 3 { &["198.51.100.254/24", "2001:db8:51::fe/64"] } else { &[] };
            let wire = lab.wire((&router, gateways), (&member.node, &own));
            if number < 3 {
                router.run(["ip", "link", "set", &wire.link, "master", "lan"]);
            }
            members.push(member);
        }
        router.set_sysctl("net.ipv6.conf.lan.accept_dad", "0");
        router.run(["ip", "link", "set", "lan", "up"]);
        router.run(["ip", "address", "add", "192.0.2.254/24", "dev", "lan"]);
        router.run(["ip", "address", "add", "2001:db8::fe/64", "dev", "lan", "nodad"]);
        for member in &members {
            let far = member.number == 3;
            let node = &member.node;
            if families.underlay_v4 {
                node.run([
                    "ip",
                    "route",
                    "add",
                    "default",
                    "via",
                    if far { "198.51.100.254" } else { "192.0.2.254" },
                ]);
            }
            if families.underlay_v6 {
                node.run([
                    "ip",
                    "-6",
                    "route",
                    "add",
                    "default",
                    "via",
                    if far { "2001:db8:51::fe" } else { "2001:db8::fe" },
                ]);
            }
        }
        Self { lab, families, router, members }
    }

    pub fn wanted(&self, of: usize, backend: Backend, direct: Direct) -> Wanted {
        let this = &self.members[of];
        let others = self.members.iter().filter(|other| other.number != this.number);
        let mut cidrs = Vec::new();
        cidrs.extend(self.families.pods_v4.then(|| "10.1.0.0/16".parse::<Subnet>().unwrap()));
        cidrs.extend(self.families.pods_v6.then(|| "fd00:1::/48".parse::<Subnet>().unwrap()));
        Wanted {
            cidrs,
            backend,
            direct,
            masquerade: true,
            no_masquerade: Vec::new(),
            mtu: None,
            this: ThisNode {
                name: this.node.name().into(),
                blocks: this.blocks(),
                node_addresses: this.node_addresses(),
                vtep_mac: this.mac(),
                published: this.published(),
            },
            peers: others.map(|other| (other.node.name().into(), Arc::new(other.peer()))).collect(),
            may_remove: true,
        }
    }

    /// Starts all data planes and waits until each has done what it should.
    pub fn start(&mut self, backend: Backend, direct: Direct) {
        for of in 0..self.members.len() {
            let wanted = self.wanted(of, backend, direct);
            self.members[of].start();
            self.members[of].want(wanted);
        }
    }
}

impl Member {
    pub fn published(&self) -> Vec<IfAddr> {
        let n = self.number;
        let (v4, v6) = match n {
            3 => ("198.51.100.3/24".to_owned(), "2001:db8:51::3/64".to_owned()),
            _ => (format!("192.0.2.{n}/24"), format!("2001:db8::{n}/64")),
        };
        let mut list = Vec::new();
        list.extend(self.families.underlay_v4.then(|| v4.parse::<IfAddr>().unwrap()));
        list.extend(self.families.underlay_v6.then(|| v6.parse::<IfAddr>().unwrap()));
        list
    }

    pub fn blocks(&self) -> Vec<Subnet> {
        let n = self.number;
        let mut list = Vec::new();
        list.extend(self.families.pods_v4.then(|| format!("10.1.{n}.0/26").parse::<Subnet>().unwrap()));
        list.extend(self.families.pods_v6.then(|| format!("fd00:1::{n}:0/122").parse::<Subnet>().unwrap()));
        list
    }

    pub fn node_addresses(&self) -> Vec<IpAddr> {
        let step = |block: &Subnet| {
            if block.is_ipv4() {
                format!("10.1.{}.1", self.number)
            } else {
                format!("fd00:1::{}:1", self.number)
            }
        };
        self.blocks().iter().map(|block| ip(&step(block))).collect()
    }

    pub fn pod_addresses(&self) -> Vec<IpAddr> {
        let step = |block: &Subnet| {
            if block.is_ipv4() {
                format!("10.1.{}.5", self.number)
            } else {
                format!("fd00:1::{}:5", self.number)
            }
        };
        self.blocks().iter().map(|block| ip(&step(block))).collect()
    }

    pub fn mac(&self) -> Mac {
        Mac([2, 0, 0, 0, 0, self.number])
    }

    pub fn peer(&self) -> Peer {
        Peer {
            published: self.published(),
            blocks: self.blocks(),
            node_addresses: self.node_addresses(),
            vtep_mac: Some(self.mac()),
        }
    }

    /// Starts the data plane, with nothing to do yet.
    pub fn start(&mut self) {
        let reports = self.reports.clone();
        let report = move |report| reports.lock().unwrap().push(report);
        let plane = self.node.enter(move || DataPlane::start(Setup::default(), report)).unwrap();
        self.reports.lock().unwrap().clear();
        self.plane = Some(plane);
    }

    /// Gives the order and waits until it is done.
    pub fn want(&self, wanted: Wanted) -> PlaneReport {
        self.want_changed(wanted, Changed::All)
    }

    /// The same, when it is known what is new.
    pub fn want_changed(&self, wanted: Wanted, changed: Changed) -> PlaneReport {
        let order = self.plane.as_ref().unwrap().want_changed(Arc::new(wanted), changed);
        wait_until("the order to be taken up", SOON, || {
            self.last().is_some_and(|report| report.order == order)
        });
        self.settled()
    }

    /// Gives the order.
    pub fn send(&self, wanted: Wanted) -> u64 {
        self.plane.as_ref().unwrap().want(Arc::new(wanted))
    }

    /// Makes it look at everything again.
    pub fn resync(&self) {
        self.plane.as_ref().unwrap().resync();
    }

    /// Waits until all is as it should be.
    pub fn settled(&self) -> PlaneReport {
        let what = format!("the data plane of {} to be in sync", self.node.name());
        wait_for(&what, SOON, || self.last().filter(|report| report.in_sync))
    }

    pub fn last(&self) -> Option<PlaneReport> {
        self.reports.lock().unwrap().last().cloned()
    }

    pub fn stop(&mut self) {
        self.plane = None;
    }

    /// A namespace with the member's pod addresses, as the plugin attaches it, but with an MTU of 1500.
    pub fn attach(&self, lab: &Lab) -> Pod {
        let pod = self.node.pod("pod");
        let addresses = self.pod_addresses();
        let host_bits = |ip: &IpAddr| if ip.is_ipv4() { format!("{ip}/32") } else { format!("{ip}/128") };
        let own: Vec<String> = addresses.iter().map(host_bits).collect();
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let wire = lab.wire((&self.node, &["169.254.1.1/32", "fe80::1/64"]), (&pod, &own));
        for (address, host) in addresses.iter().zip(&own) {
            self.node.run(["ip", "route", "add", host, "dev", &wire.link]);
            let gateway = if address.is_ipv4() { "169.254.1.1" } else { "fe80::1" };
            let family = if address.is_ipv4() { "-4" } else { "-6" };
            pod.run(["ip", family, "route", "add", "default", "via", gateway, "dev", &wire.link, "onlink"]);
        }
        pod
    }
}

/// Whether one echo request of exactly this many bytes, not to be fragmented, is answered.
pub fn ping_sized(from: &impl Inside, to: IpAddr, bytes: u32) -> bool {
    let payload = bytes - if to.is_ipv4() { 28 } else { 48 };
    let (to, payload) = (to.to_string(), payload.to_string());
    from.try_run(["ping", "-n", "-q", "-M", "do", "-c", "1", "-W", "2", "-s", &payload, &to]).status.success()
}

pub fn assert_pings(from: &impl Inside, to: IpAddr) {
    wait_until(&format!("{to} answers {}", from.try_run(["hostname"]).status), SOON, || from.ping(to, 1));
}

/// Everything the node's kernel has in routes, links, addresses, neighbours and rules, as text.
pub fn dump(node: &Node) -> BTreeMap<&'static str, String> {
    let commands: [(&str, &[&str]); 5] = [
        ("links", &["ip", "link", "show"]),
        ("addresses", &["ip", "address", "show"]),
        ("routes", &["ip", "route", "show", "table", "all"]),
        ("routes6", &["ip", "-6", "route", "show", "table", "all"]),
        ("rules", &["nft", "list", "ruleset"]),
    ];
    let text = |words: &[&str]| String::from_utf8_lossy(&node.run(words).stdout).into_owned();
    commands.into_iter().map(|(name, words)| (name, text(words))).collect()
}
