//! The floor: the kernel's own work for a pod, done by a process that does nothing else. No configuration is read,
//! no record written, nothing checked: what a plugin takes longer than this is its own affair.
//!
//! The process is this program again, with other arguments, started as every plugin is.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use weft_netlink::addr::{self, NewAddress};
use weft_netlink::link::{self, Ipv4Setting, Mac, NewVeth, PortFlags};
use weft_netlink::netns::Netns;
use weft_netlink::route::{self, Route};
use weft_netlink::{Deletion, Hearing, Socket, Word, neigh};

use crate::chain::{Attachment, Done, IFNAME};
use crate::{Outcome, process, sys};

/// First argument of the process that attaches a pod.
pub const ADD: &str = "floor-add";
/// First argument of the process that detaches one.
pub const DEL: &str = "floor-del";
/// Longer than any deletion takes.
const GONE_LIMIT: Duration = Duration::from_secs(5);
/// The pods' network is a /16, as the chains' is.
const PREFIX: u8 = 16;

/// Where the floor attaches its pods.
#[derive(Debug)]
pub struct Floor {
    program: PathBuf,
    gateway: String,
    /// Index of the bridge; 0 for veth mode.
    bridge: String,
    hairpin: String,
}

impl Floor {
    pub fn new(gateway: &str, bridge: Option<u32>, hairpin: bool) -> Outcome<Self> {
        Ok(Self {
            program: std::env::current_exe()?,
            gateway: gateway.to_owned(),
            bridge: bridge.unwrap_or(0).to_string(),
            hairpin: u8::from(hairpin).to_string(),
        })
    }

    /// Starts the process for [`ADD`] or [`DEL`] and waits as for a plugin.
    pub fn run(&self, word: &str, at: &Attachment) -> Outcome<Done> {
        let number = u32::try_from(at.number % 60_000)?;
        let address = (Ipv4Addr::new(10, 10, 1, 0).to_bits() + number).to_string();
        let name = format!("floor{}", at.number);
        let netns = at.netns.to_string_lossy();
        let arguments = [word, &netns, &name, &address, &self.gateway, &self.bridge, &self.hairpin];
        let finished = process::run::<&str>(&self.program, &arguments, &[], b"")?;
        finished.expect(|| format!("{word} for {}", at.netns.display()))?;
        Ok(Done::default())
    }
}

/// What the process was told.
struct Task<'a> {
    netns: &'a Path,
    host_name: &'a str,
    address: Ipv4Addr,
    gateway: IpAddr,
    bridge: Option<u32>,
    hairpin: bool,
}

impl<'a> Task<'a> {
    fn parse(words: &'a [String]) -> Outcome<Self> {
        let [netns, host_name, address, gateway, bridge, hairpin] = words else {
            return Err("the floor's arguments are this program's own affair".into());
        };
        Ok(Self {
            netns: Path::new(netns),
            host_name,
            address: Ipv4Addr::from_bits(address.parse()?),
            gateway: gateway.parse()?,
            bridge: Some(bridge.parse()?).filter(|index| *index != 0),
            hairpin: hairpin == "1",
        })
    }

    fn ip(&self) -> IpAddr {
        self.address.into()
    }

    fn pod_mac(&self) -> Mac {
        let [a, b, c, d] = self.address.octets();
        Mac([0x0a, 0x58, a, b, c, d])
    }

    fn host_mac(&self) -> Mac {
        let [a, b, c, d] = self.address.octets();
        Mac([0xfe, 0x58, a, b, c, d])
    }
}

/// The process of one ADD.
pub fn add(words: &[String]) -> Outcome<()> {
    let task = Task::parse(words)?;
    let home = Netns::own()?;
    let pod = Netns::open(task.netns).map_err(|error| format!("{}: {error:?}", task.netns.display()))?;
    let mut host = Socket::route()?;
    let mut requests = Vec::new();
    if let Some(bridge) = task.bridge {
        requests.push(neigh::add(bridge, task.ip(), task.pod_mac()));
    }
    requests.push(link::create_veth(&NewVeth {
        host_name: task.host_name,
        host_mac: task.host_mac(),
        pod_name: IFNAME,
        pod_mac: task.pod_mac(),
        pod_netns: pod.as_fd(),
        mtu: None,
        master: task.bridge,
    }));
    let port = task.bridge.map(|_| PortFlags { hairpin: task.hairpin, isolated: false });
    requests.push(link::configure_host_end(task.host_name, "floor", port, true));
    requests.push(link::up_by_name(task.host_name));
    host.execute(&requests)?;
    if task.bridge.is_none() {
        configure_host_end(&mut host, &task)?;
    }
    let mut inside = pod.run_from(&home, Socket::route)??;
    configure_pod_end(&mut inside, &task)
}

fn configure_host_end(host: &mut Socket, task: &Task<'_>) -> Outcome<()> {
    let index = link::by_name(host, task.host_name)?.ok_or("the host end is gone")?.index;
    let gateway = address(index, task.gateway, 32);
    let route = Route { source: Some(task.gateway), ..Route::on_link(task.ip(), 32, index) };
    Ok(host.execute(&[gateway, route::add(&route), neigh::replace(index, task.ip(), task.pod_mac())])?)
}

fn configure_pod_end(inside: &mut Socket, task: &Task<'_>) -> Outcome<()> {
    let index = link::by_name(inside, IFNAME)?.ok_or("the pod end is gone")?.index;
    let veth = task.bridge.is_none();
    let default = Route::on_link(Ipv4Addr::UNSPECIFIED.into(), 0, index).via(task.gateway);
    let mut requests = vec![
        link::set_device(index, &[(Ipv4Setting::ArpNotify, 1)], false),
        address(index, task.ip(), if veth { 32 } else { PREFIX }),
        link::up(index),
        route::add(&Route { onlink: veth, ..default }),
    ];
    if veth {
        requests.push(neigh::replace(index, task.gateway, task.host_mac()));
    }
    Ok(inside.execute(&requests)?)
}

fn address(link: u32, ip: IpAddr, prefix_len: u8) -> weft_netlink::Request {
    addr::add(&NewAddress { link, addr: ip, prefix_len, skip_dad: true, no_prefix_route: false })
}

/// The process of one DEL: the link is gone when it returns, the kernel's barrier is a detached child's to wait for.
pub fn del(words: &[String]) -> Outcome<()> {
    let task = Task::parse(words)?;
    let mut host = Socket::route()?;
    let index = link::by_name(&mut host, task.host_name)?.ok_or("the host end is gone")?.index;
    let deletion = Deletion::prepare(index, &[], Hearing::of_this_kernel())?;
    sys::send_from_detached_child(deletion.sender(), deletion.packet())?;
    if deletion.wait(GONE_LIMIT)? != Word::Gone {
        return Err("nothing was heard of the deletion".into());
    }
    if let Some(bridge) = task.bridge {
        host.execute(&[neigh::delete(bridge, task.ip())])?;
    }
    Ok(())
}
