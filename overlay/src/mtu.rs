//! The MTU of a pod's interface: what the underlay carries, less what the backend puts in front of each packet.
//! Pure: the caller reads the underlay's MTU from the kernel.
//!
//! | bytes | [`Routes`](Backend::Routes) | [`Vxlan`](Backend::Vxlan) | [`WireGuard`](Backend::WireGuard) |
//! |---|---|---|---|
//! | outer IP header, IPv4 or IPv6 | – | 20 or 40 | 20 or 40 |
//! | UDP header | – | 8 | 8 |
//! | VXLAN header (RFC 7348 §5) | – | 8 | – |
//! | the pod packet's Ethernet header | – | 14 | – |
//! | WireGuard: type and reserved 4, receiver 4, counter 8 | – | – | 16 |
//! | WireGuard: Poly1305 tag | – | – | 16 |
//! | **together** | **0** | **50 or 70** | **60 or 80** |
//!
//! The underlay's own Ethernet header counts nowhere: an MTU is the size of an IP packet. The pod's counts with
//! VXLAN, which carries whole frames (untagged ones: Weft sends no VLAN tag through an overlay).
//!
//! WireGuard pads what it encrypts to a multiple of 16 bytes, but never past the MTU of its device. With the result
//! as that MTU, a padded packet is therefore at most as large as the largest unpadded one.

use std::error::Error;
use std::fmt;

/// Every IPv6 link must carry packets of this size (RFC 8200 §5); below it the kernel switches IPv6 off.
pub const MIN_WITH_IPV6: u32 = 1280;
/// Every IPv4 host must accept packets of this size (RFC 791 §3.1), and senders rely on it, DNS for one.
pub const MIN_IPV4_ONLY: u32 = 576;
/// The largest a veth device can have (`ETH_MAX_MTU`), and the largest IPv4 packet. Loopback alone offers more.
pub const MAX: u32 = 65_535;

const UDP_HEADER: u32 = 8;
const VXLAN_HEADER: u32 = 8;
const ETHERNET_HEADER: u32 = 14;
const WIREGUARD_HEADER: u32 = 16;
const POLY1305_TAG: u32 = 16;

/// What carries packets from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Nothing is added: nodes on one link route to each other.
    Routes,
    /// Frames in UDP (RFC 7348).
    Vxlan,
    /// Encrypted packets in UDP.
    WireGuard,
}

/// The IP version of the addresses by which nodes reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Whether pods speak IPv6: it decides how small their MTU may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pods {
    /// Pods have IPv4 addresses only.
    V4Only,
    /// Pods have IPv6 addresses, alone or beside IPv4 ones.
    WithV6,
}

/// The underlay's MTU leaves too little for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSmall {
    /// The MTU that the underlay has.
    pub underlay_mtu: u32,
    /// The MTU that it would need.
    pub needed: u32,
    /// The backend.
    pub backend: Backend,
    /// Whether it is IPv6 that needs so much.
    pub pods: Pods,
}

impl Backend {
    /// How many bytes a pod's packet grows by on its way over the underlay.
    pub const fn overhead(self, underlay: Underlay) -> u32 {
        match self {
            Self::Routes => 0,
            Self::Vxlan => underlay.header() + UDP_HEADER + VXLAN_HEADER + ETHERNET_HEADER,
            Self::WireGuard => underlay.header() + UDP_HEADER + WIREGUARD_HEADER + POLY1305_TAG,
        }
    }
}

impl Underlay {
    /// The IP header without options or extensions: neither backend sends any.
    const fn header(self) -> u32 {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

impl Pods {
    /// The smallest MTU these pods can live with.
    pub const fn minimum(self) -> u32 {
        match self {
            Self::V4Only => MIN_IPV4_ONLY,
            Self::WithV6 => MIN_WITH_IPV6,
        }
    }
}

/// The largest MTU of pods whose packets then fit into the underlay whole.
///
/// Dual-stack nodes may reach each other over either family: ask for each that is in use and take the smaller.
///
/// # Errors
/// When nothing usable is left: less than 1280 for pods with IPv6, less than 576 for others.
pub fn pod_mtu(underlay_mtu: u32, backend: Backend, underlay: Underlay, pods: Pods) -> Result<u32, TooSmall> {
    let overhead = backend.overhead(underlay);
    let mtu = underlay_mtu.min(MAX).saturating_sub(overhead);
    if mtu < pods.minimum() {
        return Err(TooSmall { underlay_mtu, needed: pods.minimum() + overhead, backend, pods });
    }
    Ok(mtu)
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Routes => "routes",
            Self::Vxlan => "vxlan",
            Self::WireGuard => "wireguard",
        })
    }
}

impl fmt::Display for TooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { underlay_mtu, needed, backend, pods } = self;
        let family = match pods {
            Pods::V4Only => "IPv4",
            Pods::WithV6 => "IPv6",
        };
        write!(f, "an underlay MTU of {underlay_mtu} is too small for {family} pods over {backend}: ")?;
        write!(f, "it must be at least {needed}")
    }
}

impl Error for TooSmall {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const BACKENDS: [Backend; 3] = [Backend::Routes, Backend::Vxlan, Backend::WireGuard];
    const UNDERLAYS: [Underlay; 2] = [Underlay::V4, Underlay::V6];
    const PODS: [Pods; 2] = [Pods::V4Only, Pods::WithV6];

    #[test]
    fn an_ethernet_underlay_gives_the_well_known_numbers() {
        for (backend, underlay, expected) in [
            (Backend::Routes, Underlay::V4, 1500),
            (Backend::Routes, Underlay::V6, 1500),
            (Backend::Vxlan, Underlay::V4, 1450),
            (Backend::Vxlan, Underlay::V6, 1430),
            (Backend::WireGuard, Underlay::V4, 1440),
            (Backend::WireGuard, Underlay::V6, 1420),
        ] {
            let mtu = pod_mtu(1500, backend, underlay, Pods::WithV6);
            assert_eq!(mtu, Ok(expected), "{backend} {underlay:?}");
        }
    }

    #[test]
    fn the_smallest_underlay_is_exactly_minimum_and_overhead() {
        for (pods, backend, underlay, smallest) in [
            (Pods::WithV6, Backend::WireGuard, Underlay::V6, 1360),
            (Pods::WithV6, Backend::Routes, Underlay::V6, 1280),
            (Pods::V4Only, Backend::Vxlan, Underlay::V4, 626),
        ] {
            assert_eq!(pod_mtu(smallest, backend, underlay, pods), Ok(pods.minimum()));
            let refused = pod_mtu(smallest - 1, backend, underlay, pods).unwrap_err();
            assert_eq!(refused, TooSmall { underlay_mtu: smallest - 1, needed: smallest, backend, pods });
        }
    }

    #[test]
    fn a_refusal_says_what_is_wrong_and_what_would_do() {
        let refused = pod_mtu(1280, Backend::WireGuard, Underlay::V6, Pods::WithV6).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "an underlay MTU of 1280 is too small for IPv6 pods over wireguard: it must be at least 1360"
        );
    }

    #[test]
    fn loopback_does_not_make_packets_that_nothing_else_carries() {
        assert_eq!(pod_mtu(65_536, Backend::Routes, Underlay::V4, Pods::WithV6), Ok(65_535));
    }

    fn anything() -> impl Strategy<Value = (u32, Backend, Underlay, Pods)> {
        let mtu = prop_oneof![0..10_000u32, any::<u32>()];
        (mtu, select(&BACKENDS[..]), select(&UNDERLAYS[..]), select(&PODS[..]))
    }

    /// The size on the underlay of a pod's packet of `size` bytes, written down a second time and from the
    /// protocols instead of the table: WireGuard pads to 16, but not past its device's MTU.
    fn on_the_underlay(size: u32, device_mtu: u32, backend: Backend, underlay: Underlay) -> u32 {
        let ip = if underlay == Underlay::V4 { 20 } else { 40 };
        match backend {
            Backend::Routes => size,
            Backend::Vxlan => ip + 8 + 8 + (14 + size),
            Backend::WireGuard => ip + 8 + (1 + 3 + 4 + 8) + size.next_multiple_of(16).min(device_mtu) + 16,
        }
    }

    proptest! {
        #[test]
        fn every_packet_fits_and_one_byte_more_would_not(
            (mtu, backend, underlay, pods) in anything(),
            some: u32,
        ) {
            if let Ok(pod) = pod_mtu(mtu, backend, underlay, pods) {
                let carried = mtu.min(MAX);
                prop_assert!(on_the_underlay(some % pod, pod, backend, underlay) <= carried);
                prop_assert_eq!(on_the_underlay(pod, pod, backend, underlay), carried);
                prop_assert!(on_the_underlay(pod + 1, pod + 1, backend, underlay) > carried);
            }
        }

        #[test]
        fn it_is_refused_exactly_when_too_little_is_left((mtu, backend, underlay, pods) in anything()) {
            match pod_mtu(mtu, backend, underlay, pods) {
                Ok(pod) => prop_assert!(pod >= pods.minimum() && pod <= MAX),
                Err(refused) => {
                    prop_assert!(mtu < refused.needed);
                    prop_assert_eq!(pod_mtu(refused.needed, backend, underlay, pods), Ok(pods.minimum()));
                }
            }
        }

        #[test]
        fn a_larger_underlay_never_gives_less(
            (mtu, backend, underlay, pods) in anything(),
            more in 0..10_000u32,
        ) {
            if let Ok(pod) = pod_mtu(mtu, backend, underlay, pods) {
                prop_assert!(pod_mtu(mtu.saturating_add(more), backend, underlay, pods).unwrap() >= pod);
            }
        }
    }
}
