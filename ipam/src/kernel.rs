//! The node's real kernel, as the allocator sees it.

use std::net::IpAddr;
use std::path::Path;

use weft_cni::error::{Error, code};
use weft_netlink::link::{self, Link};
use weft_netlink::netns::{Netns, OpenError};
use weft_netlink::route::{self, Route};
use weft_netlink::{Protocol, Request, Socket, neigh, rules};

use crate::alias::Alias;
use crate::rebuild::{Kernel, Live};
use crate::record::{Bridge, Host, Record};

/// The kernel behind a route socket of the node's own namespace, opened when first needed.
#[derive(Debug, Default)]
pub struct HostKernel {
    socket: Option<Socket>,
    rules: Option<Socket>,
}

impl HostKernel {
    /// The route socket.
    ///
    /// # Errors
    /// Code 102 if the kernel gives none.
    pub fn socket(&mut self) -> Result<&mut Socket, Error> {
        match &mut self.socket {
            Some(socket) => Ok(socket),
            none => {
                Ok(none.insert(Socket::route().map_err(|error| refused("open a netlink socket", &error))?))
            }
        }
    }

    /// The netfilter socket, if something made it necessary. Closing the last copy of it waits for the kernel's
    /// clean-up, so a detached child that outlives us should hold one.
    pub fn rules_socket(&self) -> Option<&Socket> {
        self.rules.as_ref()
    }

    /// Removes the nf_tables elements that a record names. Opens no netfilter socket when there are none.
    ///
    /// # Errors
    /// Code 102 if the kernel refuses.
    pub fn remove_rules(&mut self, record: &Record, held: &[IpAddr]) -> Result<(), Error> {
        if !record.guarded && record.masqueraded.is_empty() {
            return Ok(());
        }
        let failed = |error: weft_netlink::Error| refused("remove the pod's packet rules", &error);
        let socket = match &mut self.rules {
            Some(socket) => socket,
            none => none.insert(Socket::open(Protocol::Netfilter).map_err(failed)?),
        };
        if let (true, Some(host), Ok(mac)) =
            (record.guarded, &record.host, record.pod_mac.parse::<link::Mac>())
        {
            rules::unguard_port(socket, host.index, mac.0).map_err(failed)?;
        }
        let single = record.masqueraded.iter().filter(|ip| held.contains(ip));
        for interval in single.filter_map(|ip| rules::Interval::new(*ip, *ip)) {
            rules::remove_masquerade_source(socket, interval).map_err(failed)?;
        }
        Ok(())
    }

    /// Leaves out of `held` what a live link other than `own`'s has by its alias. Only addresses that a delegate
    /// gave need it: it may have given them again since.
    ///
    /// # Errors
    /// Code 102 if the kernel refuses to list its links.
    pub fn leave_out_successors(&mut self, record: &Record, held: &mut Vec<IpAddr>) -> Result<(), Error> {
        if record.delegate.is_none() {
            return Ok(());
        }
        let own = record.host.as_ref().map(|host| host.name.clone()).unwrap_or_default();
        let others: Vec<Live> = self.live()?.into_iter().filter(|live| live.host.name != own).collect();
        held.retain(|ip| !others.iter().any(|live| live.alias.addresses.contains(ip)));
        Ok(())
    }

    /// The host end that a record names, if it is still the same link: by its index and its alias, or while the
    /// index was not written yet, by its name.
    ///
    /// # Errors
    /// Code 102 if the kernel refuses to tell.
    pub fn host_end(&mut self, host: &Host) -> Result<Option<Link>, Error> {
        let what = || format!("look up interface {}", host.name);
        let socket = self.socket()?;
        if host.index == 0 {
            return link::by_name(socket, &host.name).map_err(|error| refused(what(), &error));
        }
        let found = link::by_index(socket, host.index).map_err(|error| refused(what(), &error))?;
        Ok(found.filter(|link| link.alias.as_deref() == Some(&host.alias) || link.name == host.name))
    }
}

impl Kernel for HostKernel {
    fn live(&mut self) -> Result<Vec<Live>, Error> {
        let links = link::all(self.socket()?).map_err(|error| refused("list the interfaces", &error))?;
        let name_of =
            |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        let live = |link: &Link| {
            let text = link.alias.clone()?;
            let alias = Alias::parse(&text)?;
            let mac = link.mac.map_or_else(String::new, |mac| mac.to_string());
            let host = Host { name: link.name.clone(), index: link.index, mac, alias: text };
            let bridge = link.master.and_then(|index| Some(Bridge { name: name_of(index)?, index }));
            Some(Live { alias, host, bridge })
        };
        Ok(links.iter().filter_map(live).collect())
    }

    fn is_alive(&mut self, record: &Record) -> Result<bool, Error> {
        match &record.host {
            Some(host) => Ok(self.host_end(host)?.is_some()),
            None => Ok(namespace_may_live(&record.netns)),
        }
    }

    fn clean(&mut self, record: &Record, held: &[IpAddr]) -> Result<(), Error> {
        let mut held = held.to_vec();
        self.leave_out_successors(record, &mut held)?;
        self.remove_rules(record, &held)?;
        let Some(bridge) = &record.bridge else { return Ok(()) };
        remove_neighbours(self.socket()?, bridge.index, &held)?;
        if record.routed { remove_routes(self.socket()?, bridge.index, &held) } else { Ok(()) }
    }
}

/// Removes the neighbour entries of a pod's addresses on its bridge; absent ones and an absent bridge are fine.
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn remove_neighbours(socket: &mut Socket, bridge: u32, addresses: &[IpAddr]) -> Result<(), Error> {
    let absent = |_, errno| [libc::ENOENT, libc::ENODEV, libc::ENXIO, libc::EINVAL].contains(&errno);
    socket
        .execute_tolerating(&neighbour_removals(bridge, addresses), absent)
        .map_err(|error| refused("remove the pod's neighbour entries", &error))
}

/// The requests of [`remove_neighbours`].
pub fn neighbour_removals(bridge: u32, addresses: &[IpAddr]) -> Vec<Request> {
    addresses.iter().map(|ip| neigh::delete(bridge, *ip)).collect()
}

/// [`remove_neighbours`] where most likely they are gone already. Looking waits for nobody (since Linux 6.17),
/// removing for whoever deletes a link just now.
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn remove_remaining_neighbours(
    socket: &mut Socket,
    bridge: u32,
    addresses: &[IpAddr],
) -> Result<(), Error> {
    let mut remaining = addresses.to_vec();
    remaining.retain(|ip| !matches!(neigh::get(socket, bridge, *ip), Ok(None)));
    remove_neighbours(socket, bridge, &remaining)
}

/// Removes the node's routes to a cluster pod over its bridge; absent ones and an absent bridge are fine.
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn remove_routes(socket: &mut Socket, bridge: u32, addresses: &[IpAddr]) -> Result<(), Error> {
    let to_pod = |ip: &IpAddr| Route::on_link(*ip, if ip.is_ipv4() { 32 } else { 128 }, bridge);
    let requests: Vec<_> = addresses.iter().map(|ip| route::delete(&to_pod(ip))).collect();
    let absent = |_, errno| errno == libc::ESRCH || errno == libc::ENODEV;
    socket
        .execute_tolerating(&requests, absent)
        .map_err(|error| refused("remove the node's routes to the pod", &error))
}

/// A refusal of the kernel, as a CNI error.
pub fn refused(what: impl std::fmt::Display, error: &weft_netlink::Error) -> Error {
    Error::new(code::KERNEL, format!("{what}: {error}"))
}

/// A delegated address is garbage once its namespace is certainly gone. A path under /proc proves nothing: the
/// process may be gone while others keep the namespace.
fn namespace_may_live(path: &Path) -> bool {
    if path.as_os_str().is_empty() || path.starts_with("/proc") {
        return true;
    }
    match Netns::open(path) {
        Ok(_) => true,
        Err(OpenError::NotNamespace) => false,
        Err(OpenError::Open(error)) => error.kind() != std::io::ErrorKind::NotFound,
    }
}
