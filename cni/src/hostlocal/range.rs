//! Ranges of addresses, and sets of them from which one address is taken.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::{Error, code};
use crate::ip::{IfAddr, Subnet};
use crate::object::Object;
use crate::route::gateway;

/// Some addresses of a subnet, with everything filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// The network; its prefix length goes with every address given.
    pub subnet: Subnet,
    /// The first address.
    pub start: IpAddr,
    /// The last address, included.
    pub end: IpAddr,
    /// The gateway: in the subnet, perhaps also between start and end, but never to be given away.
    pub gateway: IpAddr,
}

impl Range {
    /// Reads `subnet`, `rangeStart`, `rangeEnd` and `gateway`. Defaults: the subnet's first address after its
    /// own is gateway and start; its last, in IPv4 the one before broadcast, is the end.
    ///
    /// # Errors
    /// Code 7, with the messages of `host-local`; code 6 for wrong types.
    pub fn parse(object: &Object) -> Result<Self, Error> {
        let ip = |key| gateway(object, key, code::INVALID_CONFIG);
        Self::new(subnet(object)?, ip("rangeStart")?, ip("rangeEnd")?, ip("gateway")?)
    }

    /// A range with defaults for what is not given.
    ///
    /// # Errors
    /// Code 7 when the subnet is too small or an address does not fit.
    pub fn new(
        subnet: Subnet,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Self, Error> {
        if subnet.prefix_len() > width(&subnet) - 2 {
            return Err(Error::config(format!("Network {subnet} too small to allocate from")));
        }
        let second = with_bits(subnet.first(), bits(subnet.first()) + 1);
        let gateway = gateway.unwrap_or(second);
        if !subnet.contains(gateway) {
            return Err(Error::config(format!("gateway {gateway} not in network {subnet}")));
        }
        let broadcast = u128::from(subnet.is_ipv4());
        let last = with_bits(subnet.last(), bits(subnet.last()) - broadcast);
        let range = Self { subnet, start: start.unwrap_or(second), end: end.unwrap_or(last), gateway };
        range.check_bounds()?;
        Ok(range)
    }

    fn check_bounds(&self) -> Result<(), Error> {
        let Self { subnet, start, end, .. } = self;
        for ip in [start, end] {
            if ip.is_ipv4() != subnet.is_ipv4() {
                return Err(Error::config(format!("IP {ip} is not the same protocol as subnet {subnet}")));
            }
            if !subnet.contains(*ip) {
                return Err(Error::config(format!("{ip} not in network {subnet}")));
            }
        }
        if end < start {
            return Err(Error::config(format!("{end} is in network {subnet} but before start {start}")));
        }
        Ok(())
    }

    /// Whether `ip` is between start and end.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_ipv4() && self.start <= ip && ip <= self.end
    }

    /// Whether `ip` is the gateway, which is never given away.
    pub fn is_gateway(&self, ip: IpAddr) -> bool {
        ip == self.gateway
    }

    /// Whether this is a range of IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.start.is_ipv4()
    }

    /// How many addresses there are, the gateway included. Never 0; the whole of IPv6 counts one less.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> u128 {
        (bits(self.end) - bits(self.start)).saturating_add(1)
    }

    /// The address at `index`, counted from start; the end for any index beyond it.
    pub fn nth(&self, index: u128) -> IpAddr {
        let farthest = bits(self.end) - bits(self.start);
        with_bits(self.start, bits(self.start) + index.min(farthest))
    }

    /// The inverse of [`Range::nth`]; `None` for an address that is not in the range.
    pub fn index_of(&self, ip: IpAddr) -> Option<u128> {
        self.contains(ip).then(|| bits(ip) - bits(self.start))
    }

    /// `ip` with the prefix length of the subnet, as it goes into a result.
    pub fn with_prefix(&self, ip: IpAddr) -> Option<IfAddr> {
        IfAddr::new(ip, self.subnet.prefix_len()).ok().filter(|addr| addr.subnet() == self.subnet)
    }

    /// Whether the two share an address. Two parts of one subnet need not.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// Ranges of one family that do not overlap; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// A set of `ranges`.
    ///
    /// # Errors
    /// Code 7 when there is none, or they mix families, or overlap.
    pub fn new(ranges: Vec<Range>) -> Result<Self, Error> {
        let first = ranges.first().ok_or_else(|| Error::config("empty range set"))?;
        if ranges.iter().any(|range| range.is_ipv4() != first.is_ipv4()) {
            return Err(Error::config("mixed address families"));
        }
        for (index, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[index + 1..].iter().find(|other| range.overlaps(other)) {
                return Err(Error::config(format!("subnets {range} and {other} overlap")));
            }
        }
        Ok(Self(ranges))
    }

    /// The ranges, in the order in which they are used.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// The range that has `ip`.
    pub fn range_for(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// Whether one of the ranges has `ip`.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.range_for(ip).is_some()
    }

    /// Whether this is a set of IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.0.iter().all(Range::is_ipv4)
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|range| other.0.iter().any(|theirs| range.overlaps(theirs)))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(Range::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

/// Reads `subnet`, with `host-local`'s message for host bits, which people search the web for.
fn subnet(object: &Object) -> Result<Subnet, Error> {
    let missing = || Error::config(format!("{} is missing", object.path_of("subnet")));
    let given: IfAddr = object.parsed("subnet", code::INVALID_CONFIG)?.ok_or_else(missing)?;
    // An IPv4 network written as IPv6 would have an IPv6 subnet and IPv4 addresses.
    if given.addr().to_canonical() != given.addr() {
        return Err(Error::config("IPNet IP and Mask version mismatch").with_details(given.to_string()));
    }
    let subnet = given.subnet();
    if subnet.addr() == given.addr() {
        return Ok(subnet);
    }
    let (length, network) = (subnet.prefix_len(), subnet.addr());
    Err(Error::config(format!(
        "Network has host bits set. For a subnet mask of length {length} the network address is {network}"
    )))
}

fn width(subnet: &Subnet) -> u8 {
    if subnet.is_ipv4() { 32 } else { 128 }
}

/// The address as a number.
fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address of the same family with other bits; an IPv4 one keeps the low 32.
fn with_bits(family: IpAddr, bits: u128) -> IpAddr {
    match family {
        IpAddr::V4(_) => {
            let [.., a, b, c, d] = bits.to_be_bytes();
            Ipv4Addr::new(a, b, c, d).into()
        }
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}
