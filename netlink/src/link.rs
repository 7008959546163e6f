//! Links: veth pairs, bridges, and what is set on them. Each function names the `ip link` command it equals.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::str::FromStr;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecBridge, AfSpecInet, AfSpecInet6, AfSpecUnspec, BridgeVlanInfo, BridgeVlanInfoFlags, In6AddrGenMode,
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan,
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};

use serde::{Deserialize, Serialize};

use crate::attributes::{address, find, native, text};
use crate::error::Result;
use crate::socket::{Request, Socket};

/// Message types (include/uapi/linux/rtnetlink.h).
const RTM_NEWLINK: u16 = 16;
/// `RTM_DELLINK`.
pub const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
/// Attributes of links (include/uapi/linux/if_link.h).
mod ifla {
    pub const ADDRESS: u16 = 1;
    pub const IFNAME: u16 = 3;
    pub const MTU: u16 = 4;
    pub const LINK: u16 = 5;
    pub const MASTER: u16 = 10;
    pub const OPERSTATE: u16 = 16;
    pub const LINKINFO: u16 = 18;
    pub const IFALIAS: u16 = 20;
    pub const CARRIER: u16 = 33;
    pub const INFO_KIND: u16 = 1;
    pub const INFO_DATA: u16 = 2;
    pub const INFO_SLAVE_DATA: u16 = 5;
    pub const BR_VLAN_FILTERING: u16 = 7;
    pub const VXLAN_ID: u16 = 1;
    pub const VXLAN_LOCAL: u16 = 4;
    pub const VXLAN_LEARNING: u16 = 7;
    pub const VXLAN_PORT: u16 = 15;
    pub const VXLAN_LOCAL6: u16 = 17;
    pub const BRPORT_MODE: u16 = 4;
    pub const BRPORT_ISOLATED: u16 = 33;
}
/// `struct ifinfomsg`.
const HEADER_LEN: usize = 16;
/// `IF_OPER_UNKNOWN` and `IF_OPER_UP` (include/uapi/linux/if.h).
const OPERATIONAL: [u8; 2] = [0, 6];
/// `RTNLGRP_LINK`: the multicast group that hears of every link that comes, changes or goes.
pub const RTNLGRP_LINK: i32 = 1;
/// For each direction.
const ONE_QUEUE: [LinkAttribute; 2] = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
/// `IFLA_INET_CONF` inside `IFLA_AF_SPEC`/`AF_INET`.
const IFLA_INET_CONF: u16 = 1;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, octet) in self.0.iter().enumerate() {
            let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or_default();
            if at > 0 {
                f.write_char(':')?;
            }
            f.write_char(digit(octet >> 4))?;
            f.write_char(digit(octet & 0xf))?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let bad =
            || format!("{text:?} is no Ethernet address (want six hexadecimal pairs: 02:42:ac:11:00:02)");
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let pair = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            let part = parts.next().filter(pair).ok_or_else(bad)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        let multicast = octets[0] & 1 == 1;
        if parts.next().is_some() || multicast || octets == [0; 6] { Err(bad()) } else { Ok(Self(octets)) }
    }
}

/// A link as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique in its namespace.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// The driver kind, e.g. `veth` or `bridge`; `None` for physical devices and `lo`.
    pub kind: Option<String>,
    /// Hardware address, if it is an Ethernet one.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Index of the other end (veth), in that end's namespace.
    pub peer: Option<u32>,
    /// `ip link set … alias`.
    pub alias: Option<String>,
    /// Administratively up.
    pub up: bool,
    /// In promiscuous mode because somebody asked for it.
    pub promiscuous: bool,
    /// A signal, or for a bridge a port that passes frames.
    pub carrier: bool,
    /// RFC 2863: up, or a device that does not say.
    pub operational: bool,
    /// Bridge port: sends a frame back where it came from.
    pub hairpin: bool,
    /// Bridge port: talks to non-isolated ports only.
    pub isolated: bool,
    /// Bridge: has VLAN filtering on.
    pub vlan_filtering: bool,
    /// VXLAN: its settings.
    pub vxlan: Option<Vxlan>,
}

/// Settings of a VXLAN device that cannot be changed while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Source address of what it sends.
    pub local: Option<IpAddr>,
    /// Learns from frames behind which node a MAC is.
    pub learning: bool,
}

impl Link {
    /// Reads an RTM_NEWLINK message. By hand: whatever a new kernel adds to it must not stop us.
    fn parse(kind: u16, body: &[u8]) -> Option<Self> {
        let attributes = body.get(HEADER_LEN..).filter(|_| kind == RTM_NEWLINK)?;
        let word = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
        let flags = LinkFlags::from_bits_retain(word(8)?);
        let info = find(attributes, ifla::LINKINFO).unwrap_or_default();
        let data = find(info, ifla::INFO_DATA).unwrap_or_default();
        let port = find(info, ifla::INFO_SLAVE_DATA).unwrap_or_default();
        let kind = text(info, ifla::INFO_KIND);
        let is_on = |list, attribute| find(list, attribute).is_some_and(|value| value.first() == Some(&1));
        let state = find(attributes, ifla::OPERSTATE).and_then(|value| value.first());
        Some(Self {
            index: word(4)?,
            name: text(attributes, ifla::IFNAME)?,
            mac: find(attributes, ifla::ADDRESS).and_then(|bytes| bytes.try_into().ok()).map(Mac),
            mtu: native(attributes, ifla::MTU).unwrap_or(0),
            master: native(attributes, ifla::MASTER),
            peer: native(attributes, ifla::LINK),
            alias: text(attributes, ifla::IFALIAS),
            up: flags.contains(LinkFlags::Up),
            promiscuous: flags.contains(LinkFlags::Promisc),
            carrier: is_on(attributes, ifla::CARRIER),
            operational: state.is_some_and(|state| OPERATIONAL.contains(state)),
            hairpin: is_on(port, ifla::BRPORT_MODE),
            isolated: is_on(port, ifla::BRPORT_ISOLATED),
            vlan_filtering: kind.as_deref() == Some("bridge") && is_on(data, ifla::BR_VLAN_FILTERING),
            vxlan: (kind.as_deref() == Some("vxlan")).then(|| Vxlan::parse(data)),
            kind,
        })
    }
}

impl Vxlan {
    fn parse(data: &[u8]) -> Self {
        let port = find(data, ifla::VXLAN_PORT).and_then(|bytes| bytes.try_into().ok());
        Self {
            vni: native(data, ifla::VXLAN_ID).unwrap_or(0),
            port: port.map_or(0, u16::from_be_bytes),
            local: address(data, ifla::VXLAN_LOCAL).or_else(|| address(data, ifla::VXLAN_LOCAL6)),
            learning: find(data, ifla::VXLAN_LEARNING).is_some_and(|value| value.first() == Some(&1)),
        }
    }
}

/// What an event says of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there, like this.
    Present(Box<Link>),
    /// It is gone: its index.
    Gone(u32),
}

/// What an event says; `None` for an event about anything else, also a bridge's about its port.
pub fn parse_event(kind: u16, body: &[u8]) -> Option<Change> {
    let plain = i32::from(*body.first()?) == libc::AF_UNSPEC;
    match kind {
        RTM_NEWLINK if plain => Some(Change::Present(Box::new(Link::parse(kind, body)?))),
        RTM_DELLINK if plain => Some(Change::Gone(u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?))),
        _ => None,
    }
}

/// `ip link show dev NAME`; `None` if there is none.
pub fn by_name(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    let attributes = vec![LinkAttribute::IfName(name.to_owned()), no_statistics()];
    get(socket, message(0, attributes))
}

/// `ip link show`, by index; `None` if there is none.
pub fn by_index(socket: &mut Socket, index: u32) -> Result<Option<Link>> {
    get(socket, message(index, vec![no_statistics()]))
}

fn get(socket: &mut Socket, message: LinkMessage) -> Result<Option<Link>> {
    let request = Request::new(RTM_GETLINK, &message, 0);
    let found = socket.get(&request, &[libc::ENODEV], |(kind, body)| Ok(Link::parse(kind, body)))?;
    Ok(found.flatten())
}

/// `ip link show`: every link of the namespace.
pub fn all(socket: &mut Socket) -> Result<Vec<Link>> {
    let request = Request::new(RTM_GETLINK, &message(0, vec![no_statistics()]), 0);
    socket.dump(&request, |(kind, body)| Ok(Link::parse(kind, body)))
}

/// `ip link show master BRIDGE`: how many ports a bridge has.
pub fn count_ports(socket: &mut Socket, bridge: u32) -> Result<usize> {
    let filter = vec![LinkAttribute::Controller(bridge), no_statistics()];
    let request = Request::new(RTM_GETLINK, &message(0, filter), 0);
    let links = socket.dump(&request, |(kind, body)| Ok(Link::parse(kind, body)))?;
    Ok(links.iter().filter(|link| link.master == Some(bridge)).count())
}

fn no_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// What a new bridge gets.
#[derive(Clone, Debug)]
pub struct NewBridge<'a> {
    /// Interface name.
    pub name: &'a str,
    /// A MAC of its own, so that it does not follow its lowest port.
    pub mac: Mac,
    /// `None` leaves it to the kernel.
    pub mtu: Option<u32>,
    /// Sort frames by VLAN.
    pub vlan_filtering: bool,
    /// Give bridged packets to iptables and nftables, so that Services between its own pods work.
    pub nf_call: bool,
}

/// `ip link add NAME address MAC type bridge …`; EEXIST if the name is taken.
pub fn create_bridge(bridge: &NewBridge<'_>) -> Request {
    let mut data = Vec::new();
    if bridge.vlan_filtering {
        data.push(InfoBridge::VlanFiltering(true));
    }
    if bridge.nf_call {
        data.extend([InfoBridge::NfCallIpTables(true), InfoBridge::NfCallIp6Tables(true)]);
    }
    let mut attributes = vec![
        LinkAttribute::IfName(bridge.name.to_owned()),
        LinkAttribute::Address(bridge.mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(data)),
        ]),
    ];
    attributes.extend(bridge.mtu.map(LinkAttribute::Mtu));
    new_link(message(0, attributes), NLM_F_CREATE | NLM_F_EXCL)
}

/// `ip link add NAME address MAC mtu MTU type vxlan id VNI dstport PORT local IP nolearning`; EEXIST if the name is
/// taken. The MAC at creation, or udev gives it another one later.
pub fn create_vxlan(name: &str, mac: Mac, mtu: u32, vxlan: &Vxlan) -> Request {
    let mut data = vec![
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Learning(vxlan.learning),
        // Over IPv6 too, zero checksums are not for us.
        InfoVxlan::UDPCsum(true),
    ];
    data.extend(vxlan.local.map(|local| match local {
        IpAddr::V4(v4) => InfoVxlan::Local(v4),
        IpAddr::V6(v6) => InfoVxlan::Local6(v6),
    }));
    let attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
    ];
    new_link(message(0, attributes), NLM_F_CREATE | NLM_F_EXCL)
}

/// `ip link add NAME type dummy`; EOPNOTSUPP where the kernel has none.
pub fn create_dummy(name: &str) -> Request {
    let attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]),
    ];
    new_link(message(0, attributes), NLM_F_CREATE | NLM_F_EXCL)
}

/// `ip link set mtu N`, by index.
pub fn set_mtu(index: u32, mtu: u32) -> Request {
    set_link(message(index, vec![LinkAttribute::Mtu(mtu)]))
}

/// A veth pair to make: the host end here, the pod end born in the pod's namespace.
#[derive(Clone, Debug)]
pub struct NewVeth<'a> {
    /// Name of the host end.
    pub host_name: &'a str,
    /// MAC of the host end.
    pub host_mac: Mac,
    /// Name of the pod end.
    pub pod_name: &'a str,
    /// MAC of the pod end.
    pub pod_mac: Mac,
    /// The pod's network namespace.
    pub pod_netns: BorrowedFd<'a>,
    /// MTU of both ends; `None` leaves it to the kernel.
    pub mtu: Option<u32>,
    /// The bridge that the host end becomes a port of.
    pub master: Option<u32>,
}

/// `ip link add HOST numtxqueues 1 numrxqueues 1 type veth peer name POD … netns …`, both ends down.
///
/// One queue an end: the kernel would make one for each possible CPU, with its memory and its objects under /sys,
/// and a veth without XDP uses none but the first.
///
/// The kernel refuses a peer that is up and ignores alias and port flags here: they follow in
/// [`configure_host_end`].
pub fn create_veth(veth: &NewVeth<'_>) -> Request {
    let mut peer = vec![
        LinkAttribute::IfName(veth.pod_name.to_owned()),
        LinkAttribute::Address(veth.pod_mac.0.to_vec()),
        LinkAttribute::NetNsFd(veth.pod_netns.as_raw_fd()),
    ];
    peer.extend(ONE_QUEUE);
    peer.extend(veth.mtu.map(LinkAttribute::Mtu));
    let data = InfoData::Veth(InfoVeth::Peer(message(0, peer)));
    let mut attributes = vec![
        LinkAttribute::IfName(veth.host_name.to_owned()),
        LinkAttribute::Address(veth.host_mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]),
    ];
    attributes.extend(ONE_QUEUE);
    attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
    attributes.extend(veth.master.map(LinkAttribute::Controller));
    new_link(message(0, attributes), NLM_F_CREATE | NLM_F_EXCL)
}

/// `ip link add A type veth peer name B`, both ends here; `a_master` makes A a port.
pub fn create_local_veth(a: &str, b: &str, b_mac: Mac, a_master: u32, mtu: Option<u32>) -> Request {
    let mut peer = vec![LinkAttribute::IfName(b.to_owned()), LinkAttribute::Address(b_mac.0.to_vec())];
    peer.extend(mtu.map(LinkAttribute::Mtu));
    let data = InfoData::Veth(InfoVeth::Peer(message(0, peer)));
    let mut attributes = vec![
        LinkAttribute::IfName(a.to_owned()),
        LinkAttribute::Controller(a_master),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]),
    ];
    attributes.extend(mtu.map(LinkAttribute::Mtu));
    new_link(message(0, attributes), NLM_F_CREATE | NLM_F_EXCL)
}

/// Flags of a bridge port that differ from the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortFlags {
    /// `bridge link set … hairpin on`.
    pub hairpin: bool,
    /// `bridge link set … isolated on`.
    pub isolated: bool,
}

/// The second message of the pair: alias and port flags, by name, in the same `send` as [`create_veth`], so that
/// no crash can leave a host end without its alias.
///
/// `ipv6`: the kernel has IPv6; the host end then gets no link-local address, which would be flooded to all ports.
pub fn configure_host_end(name: &str, alias: &str, port: Option<PortFlags>, ipv6: bool) -> Request {
    let mut attributes =
        vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::IfAlias(alias.to_owned())];
    if ipv6 {
        attributes.push(LinkAttribute::AfSpecUnspec(vec![no_link_local()]));
    }
    if let Some(flags) = port.filter(|flags| *flags != PortFlags::default()) {
        attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(flags.hairpin),
                InfoBridgePort::Isolated(flags.isolated),
            ])),
        ]));
    }
    new_link(message(0, attributes), 0)
}

/// IPv4 device settings by number (`IPV4_DEVCONF_*`, include/uapi/linux/ip.h), sparing a visit to /proc/sys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Ipv4Setting {
    /// `forwarding`.
    Forwarding = 1,
    /// `send_redirects`.
    SendRedirects = 6,
    /// `rp_filter`.
    ReversePathFilter = 8,
    /// `arp_notify`: gratuitous ARP when the link comes up.
    ArpNotify = 22,
}

/// Device settings: IPv4 ones, and whether the kernel makes an IPv6 link-local address. Must precede [`up`]: in
/// one message the kernel would bring the link up first.
pub fn set_device(index: u32, ipv4: &[(Ipv4Setting, u32)], link_local: bool) -> Request {
    let mut families = Vec::new();
    if !ipv4.is_empty() {
        let mut conf = Vec::new();
        for (setting, value) in ipv4 {
            conf.extend_from_slice(&8u16.to_ne_bytes());
            conf.extend_from_slice(&(*setting as u16).to_ne_bytes());
            conf.extend_from_slice(&value.to_ne_bytes());
        }
        families.push(AfSpecUnspec::Inet(vec![AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF, conf))]));
    }
    if !link_local {
        families.push(no_link_local());
    }
    set_link(message(index, vec![LinkAttribute::AfSpecUnspec(families)]))
}

fn no_link_local() -> AfSpecUnspec {
    AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])
}

/// `ip link set up`, by index.
pub fn up(index: u32) -> Request {
    set_flags(message(index, Vec::new()), LinkFlags::Up)
}

/// `ip link set NAME up`.
pub fn up_by_name(name: &str) -> Request {
    set_flags(message(0, vec![LinkAttribute::IfName(name.to_owned())]), LinkFlags::Up)
}

/// `ip link set promisc on`, by index.
pub fn promiscuous(index: u32) -> Request {
    set_flags(message(index, Vec::new()), LinkFlags::Promisc)
}

fn set_flags(mut message: LinkMessage, flags: LinkFlags) -> Request {
    message.header.flags = flags;
    message.header.change_mask = flags;
    set_link(message)
}

/// `ip link set address MAC`, by index. On a link that is up with `arp_notify` it also announces its addresses.
pub fn set_mac(index: u32, mac: Mac) -> Request {
    set_link(message(index, vec![LinkAttribute::Address(mac.0.to_vec())]))
}

/// `ip link set type bridge vlan_filtering 1`, by index.
pub fn enable_vlan_filtering(index: u32) -> Request {
    let data = InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)]);
    let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)];
    new_link(message(index, vec![LinkAttribute::LinkInfo(info)]), 0)
}

/// VLANs of a bridge port (or, with `on_bridge`, of the bridge itself).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlans {
    /// First VLAN id.
    pub first: u16,
    /// Last VLAN id; equal to `first` for one VLAN.
    pub last: u16,
    /// Untagged traffic belongs to it, both ways (`pvid untagged`).
    pub access: bool,
    /// `bridge vlan add … self`.
    pub on_bridge: bool,
}

/// `bridge vlan add dev … vid FIRST-LAST [pvid untagged] [self]`.
pub fn add_vlans(index: u32, vlans: Vlans) -> Request {
    set_link(vlan_message(index, vlans))
}

/// `bridge vlan del dev … vid FIRST-LAST`.
pub fn remove_vlans(index: u32, vlans: Vlans) -> Request {
    Request::new(RTM_DELLINK, &vlan_message(index, vlans), 0)
}

fn vlan_message(index: u32, vlans: Vlans) -> LinkMessage {
    let mut flags = BridgeVlanInfoFlags::empty();
    if vlans.access {
        flags |= BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
    }
    let entry = |vid, extra| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags: flags | extra, vid });
    let entries = if vlans.first == vlans.last {
        vec![entry(vlans.first, BridgeVlanInfoFlags::empty())]
    } else {
        vec![
            entry(vlans.first, BridgeVlanInfoFlags::RangeBegin),
            entry(vlans.last, BridgeVlanInfoFlags::RangeEnd),
        ]
    };
    let mut spec = Vec::new();
    if vlans.on_bridge {
        // BRIDGE_FLAGS_SELF (include/uapi/linux/if_bridge.h): the device itself, not its role as a port.
        spec.push(AfSpecBridge::Other(DefaultNla::new(0, 2u16.to_ne_bytes().to_vec())));
    }
    spec.extend(entries);
    let mut message = message(index, vec![LinkAttribute::AfSpecBridge(spec)]);
    message.header.interface_family = AddressFamily::Bridge;
    message
}

/// `ip link del`, by index. The caller waits for the kernel's RCU barrier, some 15 ms.
pub fn delete(index: u32) -> Request {
    Request::new(RTM_DELLINK, &message(index, Vec::new()), 0)
}

fn message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn new_link(message: LinkMessage, flags: u16) -> Request {
    Request::new(RTM_NEWLINK, &message, flags)
}

fn set_link(message: LinkMessage) -> Request {
    Request::new(RTM_SETLINK, &message, 0)
}

/// `ip link set NAME alias TEXT`.
pub fn configure_by_name(name: &str, alias: &str) -> Request {
    let attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::IfAlias(alias.to_owned())];
    set_link(message(0, attributes))
}
