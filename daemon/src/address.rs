//! Which addresses this node has for others: those of the interface that the default route leaves by. When a change is
//! published, the machine decides. Pure; [`observe`] alone asks the kernel.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_cni::ip::IfAddr;
use weft_netlink::{Socket, addr, link, route};

use crate::conf::UnderlayConf;

/// One address of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// On which interface.
    pub interface: String,
    /// The address.
    pub addr: IfAddr,
    /// It will stay: no privacy address, not deprecated, no duplicate of another host's.
    pub stable: bool,
    /// IPv4: not the first of its subnet (a virtual address of keepalived, say).
    pub secondary: bool,
}

/// What the host has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAddresses {
    /// Of links that are not ours, in the kernel's order.
    pub addresses: Vec<HostAddress>,
    /// The interface of the best default route and its source address, IPv4.
    pub default_v4: Option<(String, Option<IpAddr>)>,
    /// The same, IPv6.
    pub default_v6: Option<(String, Option<IpAddr>)>,
}

/// Chooses what to publish: at most one address of each family. An address that is published already is kept as long
/// as it is a possible one.
///
/// # Errors
/// A sentence when there is none, or not the one that was asked for.
pub fn choose(
    asked: &UnderlayConf,
    host: &HostAddresses,
    published: &[IfAddr],
) -> Result<Vec<IfAddr>, String> {
    if !asked.addresses.is_empty() {
        return as_asked(&asked.addresses, host);
    }
    let chosen: Vec<IfAddr> = [true, false]
        .into_iter()
        .filter_map(|ipv4| {
            let (interface, source) = interface(asked, host, ipv4)?;
            best(host, &interface, ipv4, source, published)
        })
        .collect();
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    Err(match &asked.interface {
        Some(name) => format!("interface {name} has no address that could be published to other nodes (yet)"),
        None => "no default route leads to an interface with an address to publish to other nodes; \
                 give `interface` or `addresses`"
            .to_owned(),
    })
}

fn as_asked(addresses: &[IfAddr], host: &HostAddresses) -> Result<Vec<IfAddr>, String> {
    let is_there =
        |wanted: &&IfAddr| host.addresses.iter().any(|address| address.addr.addr() == wanted.addr());
    match addresses.iter().find(|wanted| !is_there(wanted)) {
        Some(missing) => {
            Err(format!("no interface of this node has the address {missing}, given in `addresses`"))
        }
        None => Ok(addresses.to_vec()),
    }
}

fn interface(asked: &UnderlayConf, host: &HostAddresses, ipv4: bool) -> Option<(String, Option<IpAddr>)> {
    if let Some(name) = &asked.interface {
        return Some((name.clone(), None));
    }
    let (own, other) =
        if ipv4 { (&host.default_v4, &host.default_v6) } else { (&host.default_v6, &host.default_v4) };
    // A family without a default route goes by the other's interface; without any, by the only one there is.
    own.clone().or_else(|| other.clone().map(|(name, _)| (name, None))).or_else(|| {
        let mut names: Vec<&String> = host.addresses.iter().map(|address| &address.interface).collect();
        names.dedup();
        match names.as_slice() {
            [only] => Some(((*only).clone(), None)),
            _ => None,
        }
    })
}

fn best(
    host: &HostAddresses,
    interface: &str,
    ipv4: bool,
    source: Option<IpAddr>,
    published: &[IfAddr],
) -> Option<IfAddr> {
    let possible = host.addresses.iter().filter(|address| {
        address.interface == interface
            && address.addr.is_ipv4() == ipv4
            && address.stable
            && !address.secondary
    });
    let is_host_prefix = |addr: &IfAddr| addr.prefix_len() == if ipv4 { 32 } else { 128 };
    possible
        .map(|address| address.addr)
        .min_by_key(|addr| (!published.contains(addr), Some(addr.addr()) != source, is_host_prefix(addr)))
}

/// Asks the kernel.
///
/// # Errors
/// A sentence when it does not answer.
pub fn observe(socket: &mut Socket) -> Result<HostAddresses, String> {
    let failed = |error: weft_netlink::Error| format!("read this node's addresses: {error}");
    let links = link::all(socket).map_err(failed)?;
    let foreign: BTreeMap<u32, String> = links
        .into_iter()
        .filter(|link| !crate::conf::load::is_ours(link) && link.up)
        .map(|link| (link.index, link.name))
        .collect();
    let mut host = HostAddresses::default();
    for address in addr::all(socket).map_err(failed)? {
        let Some(interface) = foreign.get(&address.link) else { continue };
        let Ok(ifaddr) = IfAddr::new(address.addr, address.prefix_len) else { continue };
        if crate::conf::load::is_local_only(&ifaddr) {
            continue;
        }
        let temporary = address.secondary && !ifaddr.is_ipv4();
        host.addresses.push(HostAddress {
            interface: interface.clone(),
            addr: ifaddr,
            // One that is still being checked for duplicates (at boot, for a second) is nearly always kept.
            stable: !temporary && !address.deprecated && !address.duplicate,
            secondary: address.secondary && ifaddr.is_ipv4(),
        });
    }
    for ipv4 in [true, false] {
        let routes = route::all(socket, ipv4).map_err(failed)?;
        let defaults = routes.into_iter().filter(|route| {
            route.destination.1 == 0 && route.table == route::MAIN && route.protocol != route::PROTOCOL
        });
        let best = defaults
            .filter_map(|route| {
                Some((route.priority.unwrap_or(0), foreign.get(&route.link)?.clone(), route.source))
            })
            .min_by_key(|(priority, _, _)| *priority);
        let best = best.map(|(_, name, source)| (name, source));
        if ipv4 { host.default_v4 = best } else { host.default_v6 = best }
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(interface: &str, addr: &str) -> HostAddress {
        HostAddress {
            interface: interface.to_owned(),
            addr: addr.parse().unwrap(),
            stable: true,
            secondary: false,
        }
    }

    fn default(name: &str) -> Option<(String, Option<IpAddr>)> {
        Some((name.to_owned(), None))
    }

    fn texts(chosen: Result<Vec<IfAddr>, String>) -> Vec<String> {
        chosen.unwrap().iter().map(ToString::to_string).collect()
    }

    fn host() -> HostAddresses {
        HostAddresses {
            addresses: vec![
                address("docker0", "172.17.0.1/16"),
                HostAddress { stable: false, ..address("eth0", "2001:db8::7777/64") },
                address("eth0", "10.0.0.5/24"),
                HostAddress { secondary: true, ..address("eth0", "10.0.0.100/24") },
                address("eth0", "2001:db8::5/64"),
                address("eth1", "192.168.0.5/16"),
            ],
            default_v4: default("eth0"),
            default_v6: default("eth0"),
        }
    }

    #[test]
    fn the_default_routes_interface_is_published_without_privacy_and_virtual_addresses() {
        assert_eq!(texts(choose(&UnderlayConf::default(), &host(), &[])), ["10.0.0.5/24", "2001:db8::5/64"]);
    }

    #[test]
    fn an_interface_can_be_asked_for() {
        let asked = UnderlayConf { interface: Some("eth1".to_owned()), addresses: Vec::new() };
        assert_eq!(texts(choose(&asked, &host(), &[])), ["192.168.0.5/16"]);
        let absent = UnderlayConf { interface: Some("eth7".to_owned()), addresses: Vec::new() };
        assert!(choose(&absent, &host(), &[]).unwrap_err().contains("interface eth7"));
    }

    #[test]
    fn addresses_that_are_asked_for_must_be_there() {
        let asked = |addr: &str| UnderlayConf { interface: None, addresses: vec![addr.parse().unwrap()] };
        assert_eq!(texts(choose(&asked("192.168.0.5/24"), &host(), &[])), ["192.168.0.5/24"]);
        let error = choose(&asked("192.168.0.6/24"), &host(), &[]).unwrap_err();
        assert_eq!(error, "no interface of this node has the address 192.168.0.6/24, given in `addresses`");
    }

    #[test]
    fn a_family_without_default_route_follows_the_other() {
        let one = HostAddresses { default_v6: None, ..host() };
        assert_eq!(texts(choose(&UnderlayConf::default(), &one, &[])), ["10.0.0.5/24", "2001:db8::5/64"]);
    }

    #[test]
    fn without_default_routes_only_a_single_interface_is_no_guess() {
        let none = HostAddresses { default_v4: None, default_v6: None, ..host() };
        assert!(choose(&UnderlayConf::default(), &none, &[]).unwrap_err().contains("give `interface`"));
        let single =
            HostAddresses { addresses: vec![address("eth0", "10.0.0.5/24")], ..HostAddresses::default() };
        assert_eq!(texts(choose(&UnderlayConf::default(), &single, &[])), ["10.0.0.5/24"]);
    }

    #[test]
    fn a_published_address_is_kept_when_another_comes_before_it() {
        let mut two = host();
        two.addresses.insert(0, address("eth0", "10.0.0.1/24"));
        let published = ["10.0.0.5/24".parse().unwrap()];
        assert_eq!(texts(choose(&UnderlayConf::default(), &two, &published))[0], "10.0.0.5/24");
        assert_eq!(texts(choose(&UnderlayConf::default(), &two, &[]))[0], "10.0.0.1/24");
    }

    #[test]
    fn the_source_of_the_default_route_beats_the_order() {
        let mut two = host();
        two.addresses.insert(0, address("eth0", "10.0.0.1/24"));
        two.default_v4 = Some(("eth0".to_owned(), Some("10.0.0.5".parse().unwrap())));
        assert_eq!(texts(choose(&UnderlayConf::default(), &two, &[]))[0], "10.0.0.5/24");
    }

    #[test]
    fn a_virtual_host_address_is_not_taken_for_the_nodes_own() {
        let mut vip = host();
        vip.addresses.insert(0, address("eth0", "10.0.0.200/32"));
        assert_eq!(texts(choose(&UnderlayConf::default(), &vip, &[]))[0], "10.0.0.5/24");
    }
}
