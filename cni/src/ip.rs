//! Addresses and networks, strictly read: what a person mistyped must not become a network they did not mean.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// Why a text is no address or network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidIp(String);

impl fmt::Display for InvalidIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidIp {}

/// A network: its host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet(IpNetwork);

/// An address on an interface, with the prefix length of its network: host bits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfAddr(IpNetwork);

impl Subnet {
    /// The network `addr/prefix`.
    ///
    /// # Errors
    /// When the prefix is too long for the family, or host bits are set.
    pub fn new(addr: IpAddr, prefix: u8) -> Result<Self, InvalidIp> {
        let given = IfAddr::new(addr, prefix)?;
        let subnet = given.subnet();
        if subnet.addr() == addr {
            return Ok(subnet);
        }
        Err(InvalidIp(format!("{given} has host bits set; the network is {subnet}")))
    }

    /// The network's own address.
    pub fn addr(&self) -> IpAddr {
        self.0.ip()
    }

    /// How many leading bits are fixed.
    pub fn prefix_len(&self) -> u8 {
        self.0.prefix()
    }

    /// The lowest address, which is [`Subnet::addr`].
    pub fn first(&self) -> IpAddr {
        self.0.network()
    }

    /// The highest address, in IPv4 the broadcast address.
    pub fn last(&self) -> IpAddr {
        self.0.broadcast()
    }

    /// Whether `ip` is in the network; never for the other family.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(ip)
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first()) || other.contains(self.first())
    }

    /// Whether this is an IPv4 network.
    pub fn is_ipv4(&self) -> bool {
        self.0.is_ipv4()
    }
}

impl IfAddr {
    /// The address `addr` in a network of prefix length `prefix`.
    ///
    /// # Errors
    /// When the prefix is too long for the family.
    pub fn new(addr: IpAddr, prefix: u8) -> Result<Self, InvalidIp> {
        let network = IpNetwork::new(addr, prefix);
        network.map(Self).map_err(|_| InvalidIp(format!("the prefix length of {addr}/{prefix} is too large")))
    }

    /// The address alone, as `/32` or `/128`.
    pub fn host(addr: IpAddr) -> Self {
        Self(IpNetwork::from(addr))
    }

    /// The address.
    pub fn addr(&self) -> IpAddr {
        self.0.ip()
    }

    /// The prefix length of its network.
    pub fn prefix_len(&self) -> u8 {
        self.0.prefix()
    }

    /// The network it is in.
    pub fn subnet(&self) -> Subnet {
        let network = IpNetwork::new(self.0.network(), self.0.prefix());
        Subnet(network.unwrap_or(self.0)) // The prefix was valid already, so the alternative is never taken.
    }

    /// The same address as `/32` or `/128`.
    #[must_use]
    pub fn with_host_prefix(&self) -> Self {
        Self::host(self.addr())
    }

    /// Whether this is an IPv4 address.
    pub fn is_ipv4(&self) -> bool {
        self.0.is_ipv4()
    }
}

/// Reads an address; an IPv4 address written as IPv6 (`::ffff:10.0.0.1`) is the IPv4 address, as in Go.
///
/// # Errors
/// When the text is anything else, also with leading zeros, a zone, a prefix length or white space.
pub fn parse_ip(text: &str) -> Result<IpAddr, InvalidIp> {
    let ip: Result<IpAddr, _> = text.parse();
    ip.map(|ip| ip.to_canonical()).map_err(|_| InvalidIp(format!("{text:?} is not an IP address")))
}

impl FromStr for Subnet {
    type Err = InvalidIp;

    fn from_str(text: &str) -> Result<Self, InvalidIp> {
        let (addr, prefix) = split(text)?;
        Self::new(addr, prefix)
    }
}

impl FromStr for IfAddr {
    type Err = InvalidIp;

    fn from_str(text: &str) -> Result<Self, InvalidIp> {
        let (addr, prefix) = split(text)?;
        Self::new(addr, prefix)
    }
}

/// Reads `address/length`. ipnetwork's own parser would also take netmasks and a missing length.
fn split(text: &str) -> Result<(IpAddr, u8), InvalidIp> {
    let invalid = || InvalidIp(format!("{text:?} is not an address with prefix length, such as 10.1.0.0/16"));
    let (addr, prefix) = text.split_once('/').ok_or_else(invalid)?;
    // Rust's integer parser takes "+8" and "08".
    let plain =
        prefix.bytes().all(|byte| byte.is_ascii_digit()) && (prefix == "0" || !prefix.starts_with('0'));
    if !plain {
        return Err(invalid());
    }
    Ok((addr.parse().map_err(|_| invalid())?, prefix.parse().map_err(|_| invalid())?))
}

/// The text form of a newtype, for people and for serde.
macro_rules! text_form {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.0.ip(), self.0.prefix())
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidIp;

            fn try_from(text: String) -> Result<Self, InvalidIp> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}

text_form!(Subnet);
text_form!(IfAddr);

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_must_be_written_completely_and_exactly() {
        let bad = [
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/255.255.0.0",
            "010.0.0.0/8",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/33",
            "10.0.0.0/256",
            "10.0.0.0/8/8",
            " 10.0.0.0/8",
            "10.0.0.0/8 ",
            "10.0.0/8",
            "::/129",
            "fe80::1%eth0/64",
            "/8",
            "",
            "x/8",
        ];
        for text in bad {
            assert!(text.parse::<Subnet>().is_err(), "{text:?}");
            assert!(text.parse::<IfAddr>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn host_bits_are_an_error_in_a_network_and_kept_in_an_address() {
        let error = "10.244.0.17/16".parse::<Subnet>().unwrap_err();
        assert_eq!(error.to_string(), "10.244.0.17/16 has host bits set; the network is 10.244.0.0/16");
        assert!("2001:db8::1/64".parse::<Subnet>().is_err());
        let addr: IfAddr = "10.244.0.17/16".parse().unwrap();
        assert_eq!(addr.to_string(), "10.244.0.17/16");
        assert_eq!((addr.addr(), addr.prefix_len()), (ip("10.244.0.17"), 16));
        assert_eq!(addr.subnet(), "10.244.0.0/16".parse().unwrap());
        assert_eq!(addr.with_host_prefix().to_string(), "10.244.0.17/32");
        let v6: IfAddr = "2001:DB8::1/64".parse().unwrap();
        assert_eq!(v6.with_host_prefix().to_string(), "2001:db8::1/128");
    }

    #[test]
    fn first_and_last_hold_for_every_prefix_length() {
        for (text, first, last) in [
            ("10.1.2.0/24", "10.1.2.0", "10.1.2.255"),
            ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
            ("10.0.0.1/32", "10.0.0.1", "10.0.0.1"),
            ("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("2001:db8::/127", "2001:db8::", "2001:db8::1"),
        ] {
            let subnet: Subnet = text.parse().unwrap();
            assert_eq!((subnet.first(), subnet.last()), (ip(first), ip(last)), "{text}");
            assert!(subnet.contains(ip(first)) && subnet.contains(ip(last)), "{text}");
        }
    }

    #[test]
    fn families_never_contain_each_other() {
        let v4: Subnet = "0.0.0.0/0".parse().unwrap();
        let v6: Subnet = "::/0".parse().unwrap();
        assert!(!v4.contains(ip("::1")) && !v6.contains(ip("10.0.0.1")));
        assert!(!v4.overlaps(&v6) && !v6.overlaps(&v4));
        assert!(v4.is_ipv4() && !v6.is_ipv4());
    }

    #[test]
    fn overlap_is_symmetric() {
        for (a, b, expected) in [
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.0.0.0/24", "10.0.1.0/24", false),
            ("10.0.0.0/24", "10.0.0.0/24", true),
        ] {
            let (a, b): (Subnet, Subnet) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!((a.overlaps(&b), b.overlaps(&a)), (expected, expected), "{a} {b}");
        }
    }

    #[test]
    fn serde_goes_through_the_strict_text() {
        let subnet: Subnet = serde_json::from_str("\"10.0.0.0/8\"").unwrap();
        assert_eq!(serde_json::to_string(&subnet).unwrap(), "\"10.0.0.0/8\"");
        assert!(serde_json::from_str::<Subnet>("\"10.0.0.1/8\"").is_err());
        assert!(serde_json::from_str::<IfAddr>("\"10.0.0.1\"").is_err());
    }

    #[test]
    fn mapped_addresses_are_ipv4_and_sloppy_ones_are_refused() {
        assert_eq!(parse_ip("::ffff:10.0.0.1"), Ok(ip("10.0.0.1")));
        for text in ["", "10.0.0.01", "10.0.0", "10.0.0.1/8", "fe80::1%1", " ::1"] {
            assert!(parse_ip(text).is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_printed_address_and_network_reads_back(bits: u128, prefix in 0u8..=128) {
            let addr = IfAddr::new(IpAddr::from(bits.to_be_bytes()), prefix).unwrap();
            proptest::prop_assert_eq!(addr.to_string().parse(), Ok(addr));
            let subnet = addr.subnet();
            proptest::prop_assert_eq!(subnet.to_string().parse(), Ok(subnet));
            proptest::prop_assert!(subnet.contains(addr.addr()));
        }
    }
}
