//! A cluster of records in a store, and one real `weftd` beside them.

use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use netns_tests::cluster::{ClusterLab, Etcd, Network, Segment, Weftd, WeftdConf};
use netns_tests::{Inside, Node};
use serde_json::{Value, json};
use weft_ipam::ask;

use crate::Outcome;

/// Pods of all nodes: room for far more than 5,000 nodes.
const PODS: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
const PODS_LENGTH: u8 = 10;
/// The simulated nodes' own network; each has a host number in it.
const NODES: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 0);
/// Addresses of a block.
const BLOCK: u32 = 64;
/// Blocks of each simulated node.
pub const BLOCKS: usize = 2;

/// How nodes are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Vxlan,
    Routes,
}

impl Backend {
    pub fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Routes => "routes",
        }
    }

    fn json(self) -> Value {
        match self {
            Self::Vxlan => json!({"kind": "vxlan", "vni": 1, "port": 4789}),
            Self::Routes => json!({"kind": "routes"}),
        }
    }
}

/// The records of a cluster under a prefix of its own.
#[derive(Clone, Debug)]
pub struct World {
    pub prefix: String,
    pub backend: Backend,
    pub nodes: usize,
}

impl World {
    /// Writes `config`, and of each simulated node its own record and those of its blocks.
    /// No two worlds have the same purpose, backend and size.
    pub fn write(etcd: &Etcd, purpose: &str, backend: Backend, nodes: usize) -> Self {
        let world = Self { prefix: format!("/{purpose}-{}-{nodes}/v1/", backend.name()), backend, nodes };
        let mut items = Vec::with_capacity(1 + nodes * (1 + BLOCKS));
        for node in 0..nodes {
            items.push(world.record(node, BLOCKS, 0, 1));
            for number in 0..BLOCKS {
                let (address, _) = block(node, number);
                let value = json!({"format": 1, "owner": name(node), "instance": instance(node), "epoch": 1, "state": "held"});
                items.push((format!("{}b/{address}-26", world.prefix), value.to_string()));
            }
        }
        let config =
            json!({"format": 1, "cidrs": [format!("{PODS}/{PODS_LENGTH}")], "backend": backend.json()});
        items.push((format!("{}config", world.prefix), config.to_string()));
        etcd.put_all(&items);
        world
    }

    /// The record of a node with so many blocks, at one of its places.
    pub fn record(&self, node: usize, blocks: usize, place: usize, serial: u64) -> (String, String) {
        let held = (0..blocks).map(|number| json!({"cidr": block(node, number).1, "epoch": 1}));
        let mac = u32::try_from(node).unwrap_or(0).to_be_bytes();
        let record = json!({
            "format": 1, "name": name(node), "instance": instance(node), "epoch": 1, "serial": serial,
            "state": "active", "addresses": [format!("{}/16", address(node, place))],
            "blocks": held.collect::<Vec<_>>(),
            "vtep_mac": format!("02:77:{:02x}:{:02x}:{:02x}:{:02x}", mac[0], mac[1], mac[2], mac[3]),
            "version": "0.1.0", "session": format!("{:032x}", node + 1), "recovered_at": 0,
        });
        (format!("{}n/{}", self.prefix, name(node)), record.to_string())
    }

    /// Objects of the simulated nodes in a kernel: routes, and for VXLAN a neighbour and a forwarding entry each.
    pub fn objects(&self) -> usize {
        match self.backend {
            Backend::Vxlan => self.nodes * (BLOCKS + 2),
            Backend::Routes => self.nodes * BLOCKS,
        }
    }

    /// A fresh machine on the wire, host number `host`, with a `weftd` that is not started yet.
    pub fn machine(&self, lab: &ClusterLab, name: &str, host: usize) -> Machine {
        let node = lab.lab().node(name);
        node.set_machine_id(&format!("{:032x}", 0x5ca1_e000_u64 << 16 | host as u64));
        lab.wire.plug(lab.lab(), &node, Segment::Near, host);
        if self.backend == Backend::Routes {
            // Next hops must be on a link.
            let address = Ipv4Addr::from(u32::from(NODES) + u32::try_from(host).unwrap_or(0));
            node.run(["ip", "address", "add", &format!("{address}/16"), "dev", "eth0"]);
        }
        let mut conf = WeftdConf::new(name, &lab.etcd, &Network::default());
        conf.network = None;
        conf.top.push("interface = \"eth0\"".to_owned());
        conf.store.push(format!("prefix = {:?}", self.prefix));
        let weftd = Weftd::new(&node, &lab.lab().scratch(""), conf);
        Machine { node, weftd }
    }
}

/// A node with a real daemon.
#[derive(Debug)]
pub struct Machine {
    pub node: Node,
    pub weftd: Weftd,
}

impl Machine {
    pub fn pid(&self) -> u32 {
        self.weftd.inspect(netns_tests::cluster::Process::pid)
    }

    /// The status document, by one connection to the daemon's socket: no process is started for it.
    pub fn status(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(self.node.path(ask::SOCKET)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let request = serde_json::to_vec(&ask::Request::new(ask::Op::Status)).ok()?;
        ask::write_frame(&mut stream, &request).ok()?;
        serde_json::from_slice(&ask::read_frame(&mut stream).ok()??).ok()
    }

    /// Whether the daemon knows so many peers and the kernel has so many objects of them.
    pub fn has(&self, peers: usize, objects: usize) -> bool {
        self.status().is_some_and(|status| {
            let plane = &status["data_plane"];
            status["peers"] == peers
                && plane["in_sync"] == true
                && plane["objects"].as_u64() >= Some(objects as u64)
        })
    }

    /// Waits until [`Machine::has`]; how long that took from `since`.
    pub fn wait_for(&self, peers: usize, objects: usize, since: Instant) -> Outcome<Duration> {
        let limit = Duration::from_secs(60);
        loop {
            if self.has(peers, objects) {
                return Ok(since.elapsed());
            }
            if since.elapsed() > limit || !self.weftd.is_running() {
                let status = self.status().unwrap_or_default();
                return Err(format!(
                    "{} does not have {peers} peers and {objects} objects:\n{status:#}\n{}",
                    self.node.name(),
                    self.weftd.log()
                )
                .into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Netlink requests that the daemon's data plane has sent since its start.
    pub fn requests(&self) -> u64 {
        self.status().and_then(|status| status["data_plane"]["requests"].as_u64()).unwrap_or(0)
    }

    /// Waits until pods can start: its own block is granted.
    pub fn wait_ready(&self) -> Outcome<()> {
        let since = Instant::now();
        while !self.status().is_some_and(|status| status["ready"] == true) {
            if since.elapsed() > Duration::from_secs(40) {
                let status = self.status().unwrap_or_default();
                return Err(
                    format!("{} is not ready:\n{status:#}\n{}", self.node.name(), self.weftd.log()).into()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// A block of a simulated node: its address, and with the length.
pub fn block(node: usize, number: usize) -> (Ipv4Addr, String) {
    let index = u32::try_from(node * BLOCKS + number).unwrap_or(0);
    let address = Ipv4Addr::from(u32::from(PODS) + index * BLOCK);
    (address, format!("{address}/26"))
}

/// A simulated node's own address at one of four places: past those of real ones.
pub fn address(node: usize, place: usize) -> Ipv4Addr {
    let host = 0x100 + node + place * 0x4000;
    Ipv4Addr::from(u32::from(NODES) + u32::try_from(host).unwrap_or(0))
}

fn name(node: usize) -> String {
    format!("worker-{node:05}.cluster.example")
}

fn instance(node: usize) -> String {
    format!("{:032x}", 0x00c0_ffee_0000_0000_u64 + node as u64)
}
