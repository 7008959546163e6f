//! What the kernel has: read once, then kept up to date from its events. Of others' things only what leads to other
//! nodes; what we did not make we do not see, hence never touch.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_cni::ip::{IfAddr, Subnet};
use weft_netlink::link::{self, Link};
use weft_netlink::route::{self, MAIN, PROTOCOL, Route};
use weft_netlink::{Event, Result, Socket, addr, fdb, neigh};

use crate::dirty::Dirty;
use crate::objects::{Device, Hop, Key, LinkKind, LinkSpec, Object, Objects};
use crate::underlay::{Facts, LinkFact};

/// What the kernel has.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Our objects.
    pub objects: Objects,
    /// What leads to other nodes.
    pub facts: Facts,
    /// Indexes of links, by name.
    indexes: BTreeMap<Arc<str>, u32>,
    /// Links that routes of ours lead over, by name: when one goes down, the kernel drops those without a word.
    carriers: BTreeSet<Arc<str>>,
    /// What changed with the last event.
    touched: Dirty,
}

/// What an event did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Objects that are gone or are not what they were, with the port of who did it (0: the kernel, or unknown).
    pub lost: Vec<(Key, u32)>,
    /// More may have changed than events tell: read everything again.
    pub resync: bool,
    /// What of ours changed.
    pub touched: Dirty,
    /// Something that leads to other nodes may have changed.
    pub facts: bool,
}

impl Observed {
    /// Reads the links alone.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn read_links(socket: &mut Socket) -> Result<Self> {
        // Of a list nobody wants to know what is new.
        let mut observed = Self { touched: Dirty::All, ..Self::default() };
        for link in link::all(socket)? {
            observed.put_link(&link);
        }
        Ok(observed)
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn read(socket: &mut Socket) -> Result<Self> {
        let mut observed = Self::read_links(socket)?;
        for address in addr::all(socket)? {
            observed.put_address(&address, true);
        }
        for ipv4 in [true, false] {
            for route in route::own(socket, ipv4)? {
                observed.put_route(&route);
            }
            observed
                .facts
                .defaults
                .extend(route::defaults(socket, ipv4)?.iter().map(|route| (route.link, ipv4)));
        }
        for index in observed.carrier_indexes().into_iter().filter(|index| *index != 0) {
            for entry in neigh::permanent_of_link(socket, index)? {
                observed.put_neighbour(neigh::Change::Permanent(entry));
            }
            for entry in fdb::of_link(socket, index)? {
                observed.put_forward(&entry, true);
            }
        }
        Ok(observed)
    }

    /// The index of a device of ours.
    pub fn index(&self, device: Device) -> Option<u32> {
        self.index_of(device.name())
    }

    /// The index of a link.
    pub fn index_of(&self, name: &str) -> Option<u32> {
        self.indexes.get(name).copied()
    }

    /// The indexes of the devices that have neighbours and forwarding entries of ours; 0 for one that is not there.
    pub fn carrier_indexes(&self) -> [u32; 2] {
        [Device::Vxlan, Device::Vxlan6].map(|device| self.index(device).unwrap_or(0))
    }

    /// Brings one event in.
    pub fn apply(&mut self, event: &Event<'_>) -> Effect {
        let mut effect = Effect::default();
        let by = event.port_id;
        self.touched = Dirty::default();
        if let Some(change) = link::parse_event(event.kind, event.body) {
            effect.facts = true;
            self.apply_link(change, by, &mut effect);
        } else if let Some((address, present)) = addr::parse_event(event.kind, event.body) {
            effect.facts = true;
            effect.resync |= !present && self.is_carrier(address.link);
            let lost = self.put_address(&address, present);
            effect.lost.extend(lost.map(|key| (key, by)));
        } else if let Some((routes, present)) = route::parse_event(event.kind, event.body) {
            self.apply_routes(&routes, present, by, &mut effect);
        } else if let Some(change) = neigh::parse_event(event.kind, event.body) {
            effect.lost.extend(self.put_neighbour(change).map(|key| (key, by)));
        } else if let Some((entry, present)) = fdb::parse_event(event.kind, event.body) {
            effect.lost.extend(self.put_forward(&entry, present).map(|key| (key, by)));
        }
        effect.touched = std::mem::take(&mut self.touched);
        effect
    }

    fn apply_link(&mut self, change: link::Change, by: u32, effect: &mut Effect) {
        let (index, now) = match change {
            link::Change::Present(link) => (link.index, Some(link)),
            link::Change::Gone(index) => (index, None),
        };
        let before = self.facts.links.get(&index);
        let renamed = before.zip(now.as_ref()).is_some_and(|(before, now)| *before.name != *now.name);
        let went_down = before.is_some_and(|before| before.up) && now.as_ref().is_none_or(|now| !now.up);
        // The kernel drops the IPv4 routes and the neighbours of a link that goes down, and tells nobody. What is on a
        // link of a new name is told by nobody either.
        effect.resync |= renamed || (went_down && self.is_carrier(index));
        let lost = match now {
            Some(link) => self.put_link(&link),
            None => self.drop_link(index),
        };
        effect.lost.extend(lost.map(|key| (key, by)));
    }

    fn apply_routes(&mut self, routes: &[Route], present: bool, by: u32, effect: &mut Effect) {
        for route in routes {
            if route.is_default() && route.table == MAIN && !route.unreachable {
                let default = (route.link, route.destination.0.is_ipv4());
                if present {
                    self.facts.defaults.insert(default);
                } else {
                    self.facts.defaults.remove(&default);
                }
                effect.facts = true;
            }
            let lost = if present { self.put_route(route) } else { self.drop_route(route) };
            effect.lost.extend(lost.map(|key| (key, by)));
        }
    }

    fn is_carrier(&self, index: u32) -> bool {
        let link = self.facts.links.get(&index);
        link.is_some_and(|link| Device::by_name(&link.name).is_some() || self.carriers.contains(&link.name))
    }

    fn put_link(&mut self, link: &Link) -> Option<Key> {
        let name: Arc<str> = link.name.as_str().into();
        // Renamed: what it was is gone.
        let renamed = self.facts.links.get(&link.index).is_some_and(|before| before.name != name);
        let lost = renamed.then(|| self.drop_link(link.index)).flatten();
        self.indexes.insert(name.clone(), link.index);
        self.facts.links.insert(link.index, LinkFact { name, mtu: link.mtu, up: link.up });
        let Some(device) = Device::by_name(&link.name) else { return lost };
        let object = Object::Link(LinkSpec { up: link.up, kind: link_kind(device, link) });
        self.put(Key::Link(device), object).or(lost)
    }

    fn drop_link(&mut self, index: u32) -> Option<Key> {
        let link = self.facts.links.remove(&index)?;
        if self.indexes.get(&link.name) == Some(&index) {
            self.indexes.remove(&link.name);
        }
        self.facts.defaults.retain(|(on, _)| *on != index);
        self.facts.addresses.retain(|(on, _)| *on != index);
        let device = Device::by_name(&link.name)?;
        self.touched = Dirty::All;
        self.objects.retain(|key, object| {
            let over = matches!(object, Object::Hop(hop) if *hop.link == *device.name());
            key.device() != Some(device) && !over
        });
        self.take(Key::Link(device))
    }

    fn put_address(&mut self, address: &addr::Address, present: bool) -> Option<Key> {
        let full = IfAddr::new(address.addr, address.prefix_len).ok()?;
        let link = self.facts.links.get(&address.link)?;
        let Some(device) = Device::by_name(&link.name) else {
            if present {
                self.facts.addresses.insert((address.link, full));
            } else {
                self.facts.addresses.remove(&(address.link, full));
            }
            return None;
        };
        // The kernel's own link-local address is not ours.
        if matches!(address.addr, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return None;
        }
        let key = Key::Address(device, address.addr);
        if present { self.put(key, Object::Plain) } else { self.take(key) }
    }

    fn put_route(&mut self, route: &Route) -> Option<Key> {
        let (key, object) = self.own_route(route)?;
        if let Object::Hop(hop) = &object {
            self.carriers.insert(hop.link.clone());
        }
        self.put(key, object)
    }

    fn drop_route(&mut self, route: &Route) -> Option<Key> {
        let (key, _) = self.own_route(route)?;
        self.take(key)
    }

    /// A route of ours: of our protocol, and refusing or by way of somebody. Routes to pods have our protocol too, but
    /// no next hop: they are the plugin's. Of several next hops the last one seen counts, so that an added one shows.
    fn own_route(&self, route: &Route) -> Option<(Key, Object)> {
        if route.protocol != PROTOCOL || route.table != MAIN {
            return None;
        }
        let (ip, prefix_len) = route.destination;
        let to = Subnet::new(ip, prefix_len).ok()?;
        let metric = route.priority.unwrap_or(0);
        if route.unreachable {
            return Some((Key::Unreachable { to, metric }, Object::Plain));
        }
        let link = self.facts.links.get(&route.link).map_or_else(|| "?".into(), |link| link.name.clone());
        let hop = Hop { via: route.gateway?, link, source: route.source, mtu: route.mtu };
        Some((Key::Route { to, metric }, Object::Hop(hop)))
    }

    fn put_neighbour(&mut self, change: neigh::Change) -> Option<Key> {
        let (index, ip, mac) = match change {
            neigh::Change::Permanent(entry) => (entry.link, entry.ip, Some(entry.mac)),
            neigh::Change::Gone(link, ip) => (link, ip, None),
        };
        let key = Key::Neighbour(self.device_at(index)?, ip);
        match mac {
            Some(mac) => self.put(key, Object::Mac(mac)),
            None => self.take(key),
        }
    }

    fn put_forward(&mut self, entry: &fdb::Entry, present: bool) -> Option<Key> {
        let key = Key::Forward(self.device_at(entry.link)?, entry.mac);
        if present { self.put(key, Object::Remote(entry.remote)) } else { self.take(key) }
    }

    fn device_at(&self, index: u32) -> Option<Device> {
        Device::by_name(&self.facts.links.get(&index)?.name)
    }

    /// The key, if it held something else before.
    fn put(&mut self, key: Key, object: Object) -> Option<Key> {
        let before = self.objects.get(&key);
        let (new, same) = (before.is_none(), before == Some(&object));
        if same {
            return None;
        }
        self.touched.add(&key);
        self.objects.insert(key.clone(), object);
        (!new).then_some(key)
    }

    /// The key, if there was such an object.
    fn take(&mut self, key: Key) -> Option<Key> {
        self.objects.remove(&key)?;
        self.touched.add(&key);
        Some(key)
    }
}

fn link_kind(device: Device, link: &Link) -> LinkKind {
    match (device, link.kind.as_deref(), link.vxlan, link.mac) {
        (Device::Node, Some("dummy" | "bridge"), _, _) => LinkKind::Holder,
        (Device::Vxlan | Device::Vxlan6, _, Some(settings), Some(mac)) => {
            LinkKind::Vxlan { mac, mtu: link.mtu, settings }
        }
        _ => LinkKind::Other(link.kind.clone().unwrap_or_else(|| "physical".to_owned())),
    }
}

/// Keys that are in `before` and are missing or different in `now`.
pub fn missing<'a>(before: &'a Objects, now: &'a Objects) -> impl Iterator<Item = &'a Key> {
    before.iter().filter(|(key, object)| now.get(*key) != Some(object)).map(|(key, _)| key)
}
