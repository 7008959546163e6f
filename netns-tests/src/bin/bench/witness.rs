//! The other process that looks at the node: whether ADD made what it should, and whether DEL left nothing of it,
//! in the moment that it returned.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use netns_tests::{Inside, Node};
use serde_json::Value;
use weft_ipam::{Key, Record};
use weft_netlink::{Socket, link, neigh, route};

use crate::Outcome;
use crate::chain::IFNAME;
use crate::subject::Attached;

/// Looks at one node of Weft's.
#[derive(Debug)]
pub struct Witness {
    node: Node,
    network: String,
    state: PathBuf,
    socket: Mutex<Socket>,
}

/// What an attachment consists of, as found after its ADD.
#[derive(Clone, Debug)]
pub struct Trace {
    pub address: IpAddr,
    host_name: String,
    host_index: u32,
    bridge: Option<u32>,
    /// Owner file and record.
    records: [PathBuf; 2],
    /// The file that says that the address is taken.
    address_file: PathBuf,
}

impl Witness {
    /// After the first ADD, so that there is a state folder to look into.
    pub fn new(node: &Node, network: &str) -> Outcome<Self> {
        let ready = |path: &PathBuf| path.join("ready").exists();
        let state = entries(&node.path("/run/weft"))?.into_iter().find(ready);
        let state = state.ok_or("weft made no state folder in /run/weft")?;
        let socket = node.enter(Socket::route)?;
        Ok(Self { node: node.clone(), network: network.to_owned(), state, socket: Mutex::new(socket) })
    }

    /// Finds everything that an ADD must have made; otherwise nothing would prove that a DEL removed it.
    pub fn observe(&self, attached: &Attached) -> Outcome<Trace> {
        let container = &attached.at.container_id;
        let missing = |what: &str| format!("after weft's ADD for {container} there is no {what}");
        let result: Value = serde_json::from_slice(&attached.result)?;
        let address = result["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
        let address: IpAddr = address.ok_or_else(|| missing("address in the result"))?.parse()?;
        let id = Key::of(&self.network, container, IFNAME).id();
        let records = ["owner", "record"].map(|folder| self.state.join(folder).join(id.as_str()));
        let record: Record = serde_json::from_slice(&fs::read(&records[1]).map_err(|_| missing("record"))?)?;
        let host_name = id.host_name();
        let mut socket = self.socket();
        let host = link::by_name(&mut socket, &host_name)?.ok_or_else(|| missing("host end"))?;
        let bridge = record.bridge.as_ref().map(|bridge| bridge.index);
        match bridge {
            Some(index) if neigh::get(&mut socket, index, address)?.is_none() => {
                return Err(missing("neighbour entry on the bridge").into());
            }
            None if !has_route(&mut socket, address)? => return Err(missing("route of the node").into()),
            Some(_) | None => {}
        }
        let file = record.addresses.first().ok_or_else(|| missing("address in the record"))?.file.clone();
        let trace = Trace {
            address,
            host_name,
            host_index: host.index,
            bridge,
            records,
            address_file: self.state.join(file),
        };
        if let Some(path) = trace.files().find(|path| !path.exists()) {
            return Err(missing(&path.display().to_string()).into());
        }
        Ok(trace)
    }

    /// Finds nothing of what [`Witness::observe`] found, and that the address can be taken again.
    pub fn assert_gone(&self, trace: &Trace) -> Outcome<()> {
        let left =
            |what: &str| format!("when weft's DEL for {} had returned, {what} was left", trace.address);
        let mut socket = self.socket();
        let by_name = link::by_name(&mut socket, &trace.host_name)?;
        if by_name.is_some() || link::by_index(&mut socket, trace.host_index)?.is_some() {
            return Err(left("the link").into());
        }
        if has_route(&mut socket, trace.address)? {
            return Err(left("the route").into());
        }
        if let Some(bridge) = trace.bridge
            && neigh::get(&mut socket, bridge, trace.address)?.is_some()
        {
            return Err(left("the neighbour entry").into());
        }
        if let Some(path) = trace.files().find(|path| path.exists()) {
            return Err(left(&path.display().to_string()).into());
        }
        // As an ADD takes it: by exclusive creation.
        File::create_new(&trace.address_file).map_err(|error| left(&format!("no free address ({error})")))?;
        Ok(fs::remove_file(&trace.address_file)?)
    }

    /// Every trace of any attachment but the elements of sets: pods' links, records, addresses that are taken.
    pub fn inventory(&self) -> Outcome<BTreeSet<String>> {
        let links = link::all(&mut self.socket())?;
        let veths = links.into_iter().filter(|link| link.kind.as_deref() == Some("veth"));
        let mut all: BTreeSet<String> = veths.map(|link| link.name).collect();
        let pools = entries(&self.state.join("pool"))?;
        for folder in ["owner", "record"].map(|name| self.state.join(name)).into_iter().chain(pools) {
            all.extend(entries(&folder)?.into_iter().map(|path| path.display().to_string()));
        }
        Ok(all)
    }

    /// Every element of every set and map of nf_tables.
    pub fn elements(&self) -> BTreeSet<String> {
        let ruleset = self.node.json(["nft", "-j", "list", "ruleset"]);
        let objects = ruleset["nftables"].as_array().into_iter().flatten();
        let sets = objects.filter_map(|object| object.get("set").or_else(|| object.get("map")));
        let elements = |set: &Value| {
            let name = format!("{} {} {}", set["family"], set["table"], set["name"]);
            let list = set["elem"].as_array().cloned().unwrap_or_default();
            list.into_iter().map(move |element| format!("{name} {element}")).collect::<Vec<_>>()
        };
        sets.flat_map(elements).collect()
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trace {
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.records.iter().chain([&self.address_file])
    }
}

fn has_route(socket: &mut Socket, ip: IpAddr) -> Outcome<bool> {
    let own = (ip, if ip.is_ipv4() { 32 } else { 128 });
    Ok(route::all(socket, ip.is_ipv4())?.iter().any(|route| route.destination == own))
}

fn entries(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let list = fs::read_dir(folder).map_err(|error| format!("list {}: {error}", folder.display()))?;
    Ok(list.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}
