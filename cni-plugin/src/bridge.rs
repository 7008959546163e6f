//! The bridge of bridge mode: found or made, never taken from somebody else.

use std::net::IpAddr;

use weft_cni::error::{Error, code};
use weft_cni::ip::IfAddr;
use weft_ipam::{Hash, refused};
use weft_netlink::addr::{self, Address, NewAddress};
use weft_netlink::link::{self, Link, Mac, NewBridge, Vlans};
use weft_netlink::{Request, Socket};

use crate::addressing::cidr;
use crate::conf::BridgeConf;
use crate::sysctl;

/// What the reference plugin makes where the configuration names no bridge.
const REFERENCE_BRIDGE: &str = "cni0";
/// Says whose bridge it is; a later `weftd uninstall` removes what carries it.
const ALIAS: &str = "weft1 bridge";

/// The most ports that a bridge can have (`BR_MAX_PORTS` less the one that is never given).
pub const MAX_PORTS: usize = 1023;

/// Says that the bridge has them all.
pub fn full() -> Error {
    Error::new(code::TRY_AGAIN, "the bridge has all the 1,023 ports that a bridge can have")
        .with_details("stop pods, use \"mode\": \"veth\" (no such limit), or another bridge")
}

/// The bridge, made if there is none, up, and with the options that concern the bridge as a whole.
///
/// # Errors
/// Code 7 if the name belongs to a device of another kind, 102 if the kernel refuses.
pub fn ensure(socket: &mut Socket, conf: &BridgeConf, mtu: Option<u32>) -> Result<Link, Error> {
    let name = &conf.name;
    let failed = |error: weft_netlink::Error| refused(format!("look up bridge {name}"), &error);
    let found = match find(socket, conf)? {
        Some(found) => found,
        None => {
            create(socket, conf, mtu)?;
            link::by_name(socket, name).map_err(failed)?.ok_or_else(|| {
                Error::new(code::TRY_AGAIN, format!("bridge {name} was removed just after it had been made"))
            })?
        }
    };
    let name = &found.name;
    if found.kind.as_deref() != Some("bridge") {
        let kind = found.kind.as_deref().unwrap_or("physical device");
        return Err(Error::config(format!("{name} already exists but is not a bridge")).with_details(
            format!("it is a {kind}; give the network another \"bridge\" name, or remove the device"),
        ));
    }
    apply_options(socket, conf, &found)?;
    Ok(found)
}

/// The bridge if there is one. A configuration that names none means ours, or where only the reference plugin's
/// default bridge exists, that one: its pods and these are on one network.
///
/// # Errors
/// Code 102 if the kernel refuses to tell.
pub fn find(socket: &mut Socket, conf: &BridgeConf) -> Result<Option<Link>, Error> {
    let mut look = |name: &str| {
        link::by_name(socket, name).map_err(|error| refused(format!("look up bridge {name}"), &error))
    };
    match look(&conf.name)? {
        None if !conf.named => {
            Ok(look(REFERENCE_BRIDGE)?.filter(|link| link.kind.as_deref() == Some("bridge")))
        }
        found => Ok(found),
    }
}

fn create(socket: &mut Socket, conf: &BridgeConf, mtu: Option<u32>) -> Result<(), Error> {
    let bridge = NewBridge {
        name: &conf.name,
        mac: stable_mac(&conf.name),
        mtu,
        vlan_filtering: conf.vlan.is_used(),
        nf_call: true,
    };
    let requests = |bridge: &NewBridge<'_>| {
        let alias = link::configure_by_name(&conf.name, ALIAS);
        [link::create_bridge(bridge), alias, link::up_by_name(&conf.name)]
    };
    // Others make the same bridge at the same time: theirs is as good.
    let raced = |index, errno| index == 0 && errno == libc::EEXIST;
    match socket.execute_tolerating(&requests(&bridge), raced) {
        // A kernel without bridge netfilter knows no such attributes.
        Err(error) if error.index == 0 && (error.is(libc::EINVAL) || error.is(libc::EOPNOTSUPP)) => {
            let plain = NewBridge { nf_call: false, ..bridge };
            socket.execute_tolerating(&requests(&plain), raced)
        }
        outcome => outcome,
    }
    .map_err(|error| refused(format!("make bridge {}", conf.name), &error))
}

/// Random enough to differ between nodes, the same after each reboot.
fn stable_mac(name: &str) -> Mac {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let cookie = weft_netlink::netns::own_cookie().ok().flatten().unwrap_or_default();
    crate::link::mac_from(&Hash::of(&format!("bridge {name} {machine} {cookie}")), 0x0e)
}

fn apply_options(socket: &mut Socket, conf: &BridgeConf, bridge: &Link) -> Result<(), Error> {
    let mut requests = Vec::new();
    if conf.promiscuous && !bridge.promiscuous {
        requests.push(link::promiscuous(bridge.index));
    }
    if conf.vlan.is_used() && !bridge.vlan_filtering {
        requests.push(link::enable_vlan_filtering(bridge.index));
    }
    if !bridge.up {
        requests.push(link::up(bridge.index));
    }
    if bridge.alias.as_deref() != Some(ALIAS) && !has_pinned_mac(&bridge.name) {
        // Set to itself, it no longer follows the lowest port: pods know their gateway by it.
        requests.extend(bridge.mac.map(|mac| link::set_mac(bridge.index, mac)));
    }
    socket.execute(&requests).map_err(|error| refused(format!("set up bridge {}", conf.name), &error))
}

/// Whether somebody set the MAC (`NET_ADDR_SET`). Netlink does not tell, so where /sys does not either it is left
/// alone: setting it on each ADD would flush the bridge's neighbours.
fn has_pinned_mac(bridge: &str) -> bool {
    let kind = std::fs::read_to_string(format!("/sys/class/net/{bridge}/addr_assign_type"));
    kind.map_or(true, |kind| kind.trim() == "3")
}

/// Puts the gateways on `device`. IPv4 suffers one subnet only, unless `force` replaces it; IPv6 subnets may
/// stand beside each other as long as they do not overlap. Says whether one had to be added.
///
/// # Errors
/// Code 7 naming the address that is in the way, 102 if the kernel refuses.
pub fn ensure_gateways(
    socket: &mut Socket,
    device: &Link,
    gateways: &[IfAddr],
    force: bool,
) -> Result<bool, Error> {
    let name = &device.name;
    let failed = |error: weft_netlink::Error| refused(format!("read the addresses of {name}"), &error);
    let mut present = Vec::new();
    for v4 in [true, false] {
        if gateways.iter().any(|gateway| gateway.addr().is_ipv4() == v4) {
            present.extend(addr::of_family(socket, device.index, v4).map_err(failed)?);
        }
    }
    let missing: Vec<&IfAddr> =
        gateways.iter().filter(|gateway| !present.iter().any(|address| same(address, gateway))).collect();
    if missing.is_empty() {
        return Ok(false);
    }
    refuse_elsewhere(socket, device, &missing)?;
    let mut requests = Vec::new();
    for gateway in &missing {
        for other in present.iter().filter(|address| conflicts(address, gateway, gateways)) {
            if !force {
                return Err(in_the_way(name, other, gateway));
            }
            requests.push(addr::delete(device.index, other.addr, other.prefix_len));
        }
    }
    requests.extend(missing.iter().map(|gateway| add_gateway(device.index, gateway)));
    add_addresses(socket, name, &requests)?;
    Ok(true)
}

/// A gateway on two devices would cut off the pods of one of them: the node has one route to their subnet.
fn refuse_elsewhere(socket: &mut Socket, device: &Link, gateways: &[&IfAddr]) -> Result<(), Error> {
    let failed = |error: weft_netlink::Error| refused("read the node's addresses", &error);
    let all = addr::all(socket).map_err(failed)?;
    let elsewhere = all.iter().find(|address| {
        let wanted = gateways.iter().any(|gateway| gateway.addr() == address.addr);
        wanted && address.link != device.index && !is_link_local(address.addr)
    });
    let Some(Address { link: index, addr, .. }) = elsewhere else { return Ok(()) };
    let holder = link::by_index(socket, *index).map_err(failed)?.map_or_else(String::new, |link| link.name);
    Err(Error::config(format!("the gateway {addr} is an address of {holder} already")).with_details(format!(
        "name that bridge (\"bridge\": {holder:?}), or give the network another subnet"
    )))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn same(address: &Address, wanted: &IfAddr) -> bool {
    address.addr == wanted.addr() && address.prefix_len == wanted.prefix_len()
}

/// Whether `address` cannot stay beside `gateway`. Other gateways of the same network are wanted, not in the way.
fn conflicts(address: &Address, gateway: &IfAddr, wanted: &[IfAddr]) -> bool {
    if address.addr.is_ipv4() != gateway.addr().is_ipv4() || wanted.iter().any(|other| same(address, other)) {
        return false;
    }
    match address.addr {
        // A link-local gateway of cluster pods lives beside anything.
        IpAddr::V4(v4) => !v4.is_link_local() && gateway.prefix_len() < 32,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => false,
        IpAddr::V6(_) => {
            let theirs = cidr(address.addr, address.prefix_len).subnet();
            theirs.overlaps(&gateway.subnet())
        }
    }
}

fn in_the_way(name: &str, other: &Address, gateway: &IfAddr) -> Error {
    Error::config(format!("{name:?} already has an IP address different from {gateway}")).with_details(format!(
        "it has {}/{}; remove that address, give the network another bridge, or set \"forceAddress\": true",
        other.addr, other.prefix_len
    ))
}

/// Adds addresses to a device of the node. One that is there already (a race with another ADD) is fine, and a
/// device on which IPv6 is switched off is switched on, that device only.
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn add_addresses(socket: &mut Socket, device: &str, requests: &[Request]) -> Result<(), Error> {
    let there = |_, errno| errno == libc::EEXIST || errno == libc::EADDRNOTAVAIL;
    let outcome = match socket.execute_tolerating(requests, there) {
        Err(error) if error.is(libc::EACCES) => {
            sysctl::write(&sysctl::device("ipv6", device, "disable_ipv6"), "0")?;
            socket.execute_tolerating(requests, there)
        }
        outcome => outcome,
    };
    outcome.map_err(|error| refused(format!("put the gateway on {device}"), &error))
}

/// The request that puts a gateway on a device.
pub fn add_gateway(device: u32, gateway: &IfAddr) -> Request {
    addr::add(&NewAddress {
        link: device,
        addr: gateway.addr(),
        prefix_len: gateway.prefix_len(),
        skip_dad: true,
        no_prefix_route: false,
    })
}

/// With a VLAN the gateway does not live on the bridge but on a port of that VLAN: one end of a veth pair whose
/// other end is `<bridge>.<vlan>`. Found or made.
///
/// # Errors
/// Code 7 if the name would be longer than the kernel allows, 102 if the kernel refuses.
pub fn ensure_vlan_gateway(
    socket: &mut Socket,
    bridge: &Link,
    vlan: u16,
    mtu: Option<u32>,
) -> Result<Link, Error> {
    let name = format!("{}.{vlan}", bridge.name);
    if weft_cni::names::IfName::parse(&name).is_err() {
        return Err(Error::config(format!("{name:?} would be the gateway's interface: more than 15 bytes"))
            .with_details("give the bridge a shorter name"));
    }
    let failed = |error: weft_netlink::Error| refused(format!("set up the gateway interface {name}"), &error);
    if link::by_name(socket, &name).map_err(failed)?.is_none() {
        let port = format!("veth{}", Hash::of(&name).as_str().get(..11).unwrap_or_default());
        let mac = stable_mac(&name);
        let requests = [
            link::create_local_veth(&port, &name, mac, bridge.index, mtu),
            link::up_by_name(&port),
            link::up_by_name(&name),
        ];
        socket
            .execute_tolerating(&requests, |index, errno| index == 0 && errno == libc::EEXIST)
            .map_err(failed)?;
        if let Some(port) = link::by_name(socket, &port).map_err(failed)? {
            let vlans = Vlans { first: vlan, last: vlan, access: true, on_bridge: false };
            socket.execute(&[link::add_vlans(port.index, vlans)]).map_err(failed)?;
        }
    }
    let found = link::by_name(socket, &name).map_err(failed)?;
    found
        .ok_or_else(|| Error::new(code::TRY_AGAIN, format!("{name} was removed just after it had been made")))
}

/// Cluster pods are routed to each other over the bridge they share: without this the node would tell them to
/// talk directly, past its rules (design §3).
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn forbid_redirects(bridge: &str) -> Result<(), Error> {
    for device in ["all", bridge] {
        sysctl::ensure(&sysctl::device("ipv4", device, "send_redirects"), "0")?;
    }
    Ok(())
}
