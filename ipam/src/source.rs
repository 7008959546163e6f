//! Where addresses come from: the ranges of the configuration (standalone), or the blocks that `weftd` was granted
//! (cluster), read from folders so that the plugin needs no daemon.

use std::fs;
use std::io;
use std::net::IpAddr;

use weft_cni::error::{Error, code};
use weft_cni::hostlocal::{IpamConf, Range};
use weft_cni::ip::{IfAddr, Subnet};

use crate::ask::Family;
use crate::attachment::make_pool;
use crate::key::Hash;
use crate::state::State;

/// A run of addresses whose files lie in one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The folder, relative to the state folder.
    pub folder: String,
    /// The hint file in `slot/`.
    pub slot: String,
    /// The subnet it lies in.
    pub subnet: Subnet,
    /// The first address that may be given.
    pub first: IpAddr,
    /// The last address that may be given.
    pub last: IpAddr,
    /// The gateway, never given.
    pub gateway: Option<IpAddr>,
    /// Pods get a /32 or /128 (cluster) instead of the subnet's length.
    pub host_prefix: bool,
}

impl Segment {
    /// Number of addresses from first to last.
    pub fn len(&self) -> u128 {
        to_bits(self.last).saturating_sub(to_bits(self.first)).saturating_add(1)
    }

    /// Never: a segment has at least one address.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The address at `index`; `None` behind the last.
    pub fn nth(&self, index: u64) -> Option<IpAddr> {
        (u128::from(index) < self.len()).then(|| plus(self.first, index))
    }

    /// Where an address stands; `None` if it is not in the segment.
    pub fn index_of(&self, ip: IpAddr) -> Option<u128> {
        let inside = ip.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&ip);
        inside.then(|| to_bits(ip) - to_bits(self.first))
    }

    /// The file that says that `ip` is taken, relative to the state folder.
    pub fn file(&self, ip: IpAddr) -> String {
        format!("{}/{ip}", self.folder)
    }

    /// The pod's address with the prefix length it gets.
    pub fn with_prefix(&self, ip: IpAddr) -> IfAddr {
        let host = IfAddr::host(ip);
        if self.host_prefix { host } else { IfAddr::new(ip, self.subnet.prefix_len()).unwrap_or(host) }
    }

    /// How many addresses can be given at most.
    pub fn capacity(&self) -> u128 {
        let gateway_inside = self.gateway.is_some_and(|gateway| self.index_of(gateway).is_some());
        self.len() - u128::from(gateway_inside)
    }
}

/// What one address of an attachment is taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// In order of preference.
    pub segments: Vec<Segment>,
    /// The address that was asked for by name.
    pub requested: Option<IpAddr>,
}

impl Pool {
    /// For messages: the ranges.
    pub fn describe(&self) -> String {
        let ranges: Vec<String> =
            self.segments.iter().map(|segment| format!("{}-{}", segment.first, segment.last)).collect();
        ranges.join(", ")
    }

    /// Its family.
    pub fn is_ipv4(&self) -> bool {
        self.segments.iter().any(|segment| segment.first.is_ipv4())
    }

    fn contains(&self, ip: IpAddr) -> bool {
        self.segments.iter().any(|segment| segment.index_of(ip).is_some())
    }
}

/// How full something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Addresses that are taken.
    pub used: u128,
    /// Addresses that could be given.
    pub total: u128,
}

/// Where addresses come from.
pub trait Source {
    /// One pool for each address that an attachment gets.
    ///
    /// # Errors
    /// Code 11 when nothing was granted, 7 when a requested address lies elsewhere, 5 on a disk fault.
    fn pools(&self, state: &State) -> Result<Vec<Pool>, Error>;

    /// The addresses belong to the cluster, not to the configuration.
    fn is_cluster(&self) -> bool;
}

/// Standalone: the ranges of the network's configuration.
#[derive(Clone, Debug)]
pub struct Ranges {
    network: String,
    conf: IpamConf,
}

impl Ranges {
    /// The ranges of `network`.
    pub fn new(network: &str, conf: IpamConf) -> Self {
        Self { network: network.to_owned(), conf }
    }
}

impl Source for Ranges {
    fn pools(&self, state: &State) -> Result<Vec<Pool>, Error> {
        let folder = pool_folder(&Hash::of(&self.network));
        if !state.at(&folder).exists() {
            make_pool(state, &self.network, &folder)?;
        }
        let pool = |ranges: &[Range]| Pool {
            segments: ranges.iter().map(|range| segment_of(&folder, range)).collect(),
            requested: None,
        };
        let mut pools: Vec<Pool> = self.conf.sets.iter().map(|set| pool(set.ranges())).collect();
        assign(&mut pools, &self.conf.requested)?;
        Ok(pools)
    }

    fn is_cluster(&self) -> bool {
        false
    }
}

/// Cluster: the blocks in `block/`, one address for each family that has one.
#[derive(Clone, Debug)]
pub struct Blocks {
    requested: Vec<IpAddr>,
}

impl Blocks {
    /// With the addresses that were asked for by name.
    pub fn new(requested: Vec<IpAddr>) -> Self {
        Self { requested }
    }
}

impl Source for Blocks {
    fn pools(&self, state: &State) -> Result<Vec<Pool>, Error> {
        let mut blocks = granted(state)?;
        blocks.retain(|block| !state.is_quarantined(&block.subnet));
        if blocks.is_empty() {
            return Err(no_grant(state));
        }
        // The fullest first, so that the others empty and can be returned.
        blocks.sort_by_cached_key(|block| (std::cmp::Reverse(entries(state, &block.folder)), block.first));
        let (v4, v6): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| block.first.is_ipv4());
        let expected = state.expected_families();
        if let Some(missing) = [(&v4, Family::V4), (&v6, Family::V6)]
            .into_iter()
            .find_map(|(blocks, family)| (blocks.is_empty() && expected.contains(&family)).then_some(family))
        {
            return Err(half_a_grant(missing));
        }
        let pools = [v4, v6].into_iter().filter(|segments| !segments.is_empty());
        let mut pools: Vec<Pool> = pools.map(|segments| Pool { segments, requested: None }).collect();
        assign(&mut pools, &self.requested).map_err(|error| elsewhere(error, &pools))?;
        Ok(pools)
    }

    fn is_cluster(&self) -> bool {
        true
    }
}

/// The blocks that were granted, as segments.
pub(crate) fn granted(state: &State) -> Result<Vec<Segment>, Error> {
    let list =
        fs::read_dir(state.at("block")).map_err(|error| state.io("list the granted blocks in", &error))?;
    Ok(list.flatten().filter_map(|entry| block_segment(entry.file_name().to_str()?)).collect())
}

/// The block folder that an address belongs into; `None` when its block is not granted (yet).
pub(crate) fn block_folder_of(state: &State, ip: IpAddr) -> Result<Option<String>, Error> {
    Ok(granted(state)?.into_iter().find(|block| block.index_of(ip).is_some()).map(|block| block.folder))
}

/// `10.1.2.0-26` is the folder of the block 10.1.2.0/26.
pub(crate) fn block_name(block: &Subnet) -> String {
    block.to_string().replace('/', "-")
}

/// The block of a folder's name; `None` if it is none, such as one that is hidden.
pub(crate) fn block_segment(name: &str) -> Option<Segment> {
    let (address, length) = name.rsplit_once('-')?;
    let subnet: Subnet = format!("{address}/{length}").parse().ok()?;
    Some(Segment {
        folder: format!("block/{name}"),
        slot: name.to_owned(),
        subnet,
        first: subnet.first(),
        last: subnet.last(),
        gateway: None,
        host_prefix: true,
    })
}

/// The folder of a standalone network's addresses. One for all its ranges: a changed range must still see what
/// was given from the former one.
pub(crate) fn pool_folder(network: &Hash) -> String {
    format!("pool/{network}")
}

fn segment_of(folder: &str, range: &Range) -> Segment {
    let network = folder.rsplit('/').next().unwrap_or_default();
    Segment {
        folder: folder.to_owned(),
        slot: format!("{network}-{}-{}", range.start, range.end),
        subnet: range.subnet,
        first: range.start,
        last: range.end,
        gateway: Some(range.gateway),
        host_prefix: false,
    }
}

fn assign(pools: &mut [Pool], requested: &[IpAddr]) -> Result<(), Error> {
    for &ip in requested {
        let free_pool = pools.iter_mut().find(|pool| pool.requested.is_none() && pool.contains(ip));
        match free_pool {
            Some(pool) => pool.requested = Some(ip),
            None => {
                let ranges: Vec<String> = pools.iter().map(Pool::describe).collect();
                return Err(Error::config(format!("failed to allocate all requested IPs: {ip}"))
                    .with_details(format!(
                        "it lies in none of the ranges ({}) that still give an address",
                        ranges.join("; ")
                    )));
            }
        }
    }
    Ok(())
}

/// A static address in a cluster: only from what this node was granted.
fn elsewhere(error: Error, pools: &[Pool]) -> Error {
    let blocks: Vec<String> =
        pools.iter().flat_map(|pool| &pool.segments).map(|block| block.subnet.to_string()).collect();
    error.with_details(format!(
        "in a cluster a pod can ask only for an address of a block of its node ({}); weftd grants them, so leave \
         the address out, or pin the pod to the node whose block has it",
        blocks.join(", ")
    ))
}

/// Both families or none: a pod must not start with half of its addresses.
fn half_a_grant(missing: Family) -> Error {
    let family = if missing == Family::V4 { "IPv4" } else { "IPv6" };
    Error::new(code::TRY_AGAIN, format!("no {family} block of addresses has been granted to this node"))
        .with_details("the cluster has both families, and a pod gets both or none: is weftd running?")
}

fn entries(state: &State, folder: &str) -> usize {
    fs::read_dir(state.at(folder)).map_or(0, Iterator::count)
}

fn no_grant(state: &State) -> Error {
    Error::new(code::TRY_AGAIN, "no block of addresses has been granted to this node").with_details(format!(
        "the configuration names no ranges, so weftd must grant blocks in {}: is weftd running? \
         For a node without weftd, give ipam.ranges; for a link without addresses, \"ipam\": {{}}",
        state.at("block").display()
    ))
}

/// Files of addresses in a folder: the truth about what is taken. A missing folder holds nothing.
pub(crate) fn taken_in(state: &State, folder: &str) -> io::Result<std::collections::BTreeSet<IpAddr>> {
    match fs::read_dir(state.at(folder)) {
        Ok(entries) => {
            Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Default::default()),
        Err(error) => Err(error),
    }
}

fn to_bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn plus(ip: IpAddr, n: u64) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let low = u32::try_from(n).unwrap_or(u32::MAX);
            IpAddr::V4(v4.to_bits().saturating_add(low).into())
        }
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().saturating_add(n.into()).into()),
    }
}
