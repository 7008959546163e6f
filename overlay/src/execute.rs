//! Carries a plan out: every operation is attempted, many in one send, and each failure comes with the kernel's sentence.
//! The one file that knows which errnos mean "as wanted already".

use weft_netlink::link::{self, Ipv4Setting, Mac, NewBridge};
use weft_netlink::route::{self, Route};
use weft_netlink::{Error, Request, Socket, addr, fdb, neigh};

use crate::objects::{Device, Hop, Key, LinkKind, LinkSpec, Object};
use crate::observed::Observed;
use crate::plan::Op;

/// Requests in one send: their errors must fit into the socket's receive buffer.
const BATCH: usize = 256;
/// A bridge without ports sends nothing, but must have a MAC that does not change.
const HOLDER_MAC: Mac = Mac([0x02, b'w', b'e', b'f', b't', 0]);
/// Absent already.
const GONE: [i32; 4] = [libc::ESRCH, libc::ENOENT, libc::ENODEV, libc::EADDRNOTAVAIL];
/// Loose: while a peer's record is new here and old there, packets take one device there and another one back.
const RP_FILTER_LOOSE: u32 = 2;

/// An operation that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What about.
    pub key: Key,
    /// What was attempted and what the kernel said.
    pub text: String,
    /// What it stands on vanished meanwhile: look again and decide anew, instead of waiting.
    pub overtaken: bool,
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Keys of the operations that took effect.
    pub done: Vec<Key>,
    /// Those that did not.
    pub failed: Vec<Failure>,
}

/// Carries out operations in their order. `refresh` is called after each send: it brings the events of what was done
/// into what is observed, from which the indexes of new links are taken.
pub fn execute(
    socket: &mut Socket,
    ops: &[Op],
    observed: &mut Observed,
    mut refresh: impl FnMut(&mut Observed),
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut pending = Vec::new();
    for op in ops {
        if !matches!(op.key(), Key::Link(_)) {
            match request(op, observed) {
                Ok(request) => pending.push((op, request)),
                Err(text) => outcome.fail(op, &text, true),
            }
            if pending.len() < BATCH {
                continue;
            }
        }
        flush(socket, &mut pending, &mut outcome);
        if matches!(op.key(), Key::Link(_)) {
            match change_link(socket, op, observed) {
                Ok(()) => outcome.done.push(op.key().clone()),
                Err(error) => outcome.fail(op, &error.to_string(), is_overtaken(&error)),
            }
        }
        refresh(observed);
    }
    flush(socket, &mut pending, &mut outcome);
    refresh(observed);
    outcome
}

fn flush(socket: &mut Socket, pending: &mut Vec<(&Op, Request)>, outcome: &mut Outcome) {
    let requests: Vec<_> = pending.iter().map(|(_, request)| request.clone()).collect();
    let results = match socket.execute_each(&requests) {
        Ok(results) => results,
        Err(error) => {
            for (op, _) in pending.drain(..) {
                outcome.fail(op, &error.to_string(), false);
            }
            return;
        }
    };
    for ((op, request), result) in pending.drain(..).zip(results) {
        match result.or_else(|error| second_try(socket, op, &request, error)) {
            Ok(()) => outcome.done.push(op.key().clone()),
            Err(error) => outcome.fail(op, &sentence(op, &error), is_overtaken(&error)),
        }
    }
}

/// Removing what is gone is no failure. A route that cannot be replaced in one step is taken away first: IPv6 refuses
/// a next hop that the very route to be replaced leads over another link.
fn second_try(socket: &mut Socket, op: &Op, request: &Request, error: Error) -> Result<(), Error> {
    match op {
        Op::Remove { .. } if GONE.contains(&error.errno) => Ok(()),
        Op::Put { key: Key::Address(..), .. } if error.is(libc::EEXIST) => Ok(()),
        Op::Put { key: Key::Route { to, metric }, replaces: Some(_), .. } if error.is(libc::EINVAL) => {
            let mut old = Route::on_link(to.addr(), to.prefix_len(), 0);
            old.priority = Some(*metric);
            socket.execute_tolerating(&[route::delete_by_prefix(&old), request.clone()], |index, errno| {
                index == 0 && GONE.contains(&errno)
            })
        }
        Op::Put { .. } | Op::Remove { .. } => Err(error),
    }
}

/// The link went away, or down, between look and deed.
fn is_overtaken(error: &Error) -> bool {
    [libc::ENODEV, libc::ENETDOWN].contains(&error.errno)
}

fn sentence(op: &Op, error: &Error) -> String {
    if error.is(libc::EEXIST) && matches!(op.key(), Key::Route { .. } | Key::Unreachable { .. }) {
        return format!("{error}: a route that Weft did not make is in its place");
    }
    error.to_string()
}

impl Outcome {
    fn fail(&mut self, op: &Op, text: &str, overtaken: bool) {
        let verb = match op {
            Op::Put { replaces: None, .. } => "add",
            Op::Put { .. } => "change",
            Op::Remove { .. } => "remove",
        };
        let text = format!("{verb} {}: {text}", op.key());
        self.failed.push(Failure { key: op.key().clone(), text, overtaken });
    }
}

fn request(op: &Op, observed: &Observed) -> Result<Request, String> {
    let on = |device: Device| observed.index(device).ok_or_else(|| format!("there is no link {device}"));
    let (key, object, put) = match op {
        Op::Put { key, object, .. } => (key, object, true),
        Op::Remove { key, object } => (key, object, false),
    };
    match (key, object) {
        (Key::Unreachable { to, metric }, _) => {
            let route = Route::unreachable(to.addr(), to.prefix_len(), *metric);
            Ok(if put { route::add(&route) } else { route::delete(&route) })
        }
        (Key::Address(device, ip), _) => {
            let (link, prefix_len) = (on(*device)?, if ip.is_ipv4() { 32 } else { 128 });
            let new = addr::NewAddress { link, addr: *ip, prefix_len, skip_dad: true, no_prefix_route: true };
            Ok(if put { addr::add(&new) } else { addr::delete(link, *ip, prefix_len) })
        }
        (Key::Neighbour(device, ip), Object::Mac(mac)) => {
            let entry = neigh::Permanent { link: on(*device)?, ip: *ip, mac: *mac };
            Ok(if put { neigh::replace_permanent(&entry) } else { neigh::delete(entry.link, *ip) })
        }
        (Key::Forward(device, mac), Object::Remote(remote)) => {
            let entry = fdb::Entry { link: on(*device)?, mac: *mac, remote: *remote };
            Ok(if put { fdb::replace(&entry) } else { fdb::delete(&entry) })
        }
        (Key::Route { to, metric }, Object::Hop(hop)) => {
            let link = observed.index_of(&hop.link);
            let link = link.ok_or_else(|| format!("there is no link {}", hop.link))?;
            let route = block_route(to.addr(), to.prefix_len(), *metric, hop, link);
            Ok(match op {
                Op::Remove { .. } => route::delete(&route),
                Op::Put { replaces: Some(_), .. } => route::replace(&route),
                Op::Put { replaces: None, .. } => route::add(&route),
            })
        }
        _ => Err("no request exists for this".to_owned()),
    }
}

fn block_route(to: std::net::IpAddr, prefix_len: u8, metric: u32, hop: &Hop, link: u32) -> Route {
    let mut route = Route::on_link(to, prefix_len, link).via(hop.via);
    route.priority = Some(metric);
    route.onlink = true;
    route.source = hop.source;
    route.mtu = hop.mtu;
    route
}

fn change_link(socket: &mut Socket, op: &Op, observed: &Observed) -> Result<(), Error> {
    let Key::Link(device) = op.key() else { return Ok(()) };
    let index = observed.index(*device);
    match op {
        Op::Remove { .. } => remove_link(socket, index),
        Op::Put { object: Object::Link(spec), replaces, .. } => match (replaces, index) {
            (Some(Object::Link(old)), Some(index)) if can_change(old, spec) => {
                socket.execute(&adjust(index, old, spec))
            }
            _ => {
                remove_link(socket, index)?;
                create_link(socket, *device, spec)
            }
        },
        Op::Put { .. } => Ok(()),
    }
}

fn remove_link(socket: &mut Socket, index: Option<u32>) -> Result<(), Error> {
    let requests: Vec<_> = index.map(link::delete).into_iter().collect();
    socket.execute_tolerating(&requests, |_, errno| GONE.contains(&errno))
}

/// Whether the one becomes the other without being made anew.
fn can_change(old: &LinkSpec, new: &LinkSpec) -> bool {
    match (&old.kind, &new.kind) {
        (LinkKind::Holder, LinkKind::Holder) => true,
        (LinkKind::Vxlan { settings: old, .. }, LinkKind::Vxlan { settings: new, .. }) => old == new,
        _ => false,
    }
}

fn adjust(index: u32, old: &LinkSpec, new: &LinkSpec) -> Vec<Request> {
    let mut requests = Vec::new();
    if let (LinkKind::Vxlan { mac: old_mac, mtu: old_mtu, .. }, LinkKind::Vxlan { mac, mtu, .. }) =
        (&old.kind, &new.kind)
    {
        requests.extend((old_mac != mac).then(|| link::set_mac(index, *mac)));
        requests.extend((old_mtu != mtu).then(|| link::set_mtu(index, *mtu)));
    }
    requests.extend((new.up && !old.up).then(|| link::up(index)));
    requests
}

fn create_link(socket: &mut Socket, device: Device, spec: &LinkSpec) -> Result<(), Error> {
    let name = device.name();
    match &spec.kind {
        LinkKind::Vxlan { mac, mtu, settings } => {
            socket.execute(&[link::create_vxlan(name, *mac, *mtu, settings)])?;
        }
        LinkKind::Holder | LinkKind::Other(_) => create_holder(socket, name)?,
    }
    let Some(made) = link::by_name(socket, name)? else { return Ok(()) };
    let settings = [(Ipv4Setting::ReversePathFilter, RP_FILTER_LOOSE), (Ipv4Setting::SendRedirects, 0)];
    socket.execute(&[link::set_device(made.index, &settings, true)])?;
    // Neither solicits nor answers anybody by itself. Without IPv6 in the kernel there is nothing to set.
    socket.execute_tolerating(&[link::set_device(made.index, &[], false)], |_, _| true)?;
    socket.execute(&[link::up(made.index)])
}

/// A dummy device; where the kernel has none, a bridge without ports.
fn create_holder(socket: &mut Socket, name: &str) -> Result<(), Error> {
    match socket.execute(&[link::create_dummy(name)]) {
        Err(error) if error.is(libc::EOPNOTSUPP) => {
            let mac = HOLDER_MAC;
            let bridge = NewBridge { name, mac, mtu: None, vlan_filtering: false, nf_call: false };
            socket.execute(&[link::create_bridge(&bridge)])
        }
        made => made,
    }
}
