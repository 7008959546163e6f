//! Raw Ethernet frames: seen on a link, and sent on it.

#![expect(unsafe_code, reason = "AF_PACKET addresses have no safe constructor; kept in this one file")]

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use netns_tests::Inside;

/// `ETH_P_ALL`.
const ALL: u16 = 3;

/// A packet socket on one link of a place.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    index: i32,
}

/// A frame that a [`Tap`] saw.
#[derive(Clone, Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
    /// Sent by this link, not received on it.
    pub outgoing: bool,
}

impl Tap {
    /// Opens it; from now on no frame is missed.
    pub fn open(place: &impl Inside, link: &str) -> Self {
        let index = super::link(place, link).unwrap()["ifindex"].as_i64().unwrap();
        let index = i32::try_from(index).unwrap();
        place.enter(|| Self::bound(index)).unwrap_or_else(|error| panic!("packet socket on {link}: {error}"))
    }

    fn bound(index: i32) -> io::Result<Self> {
        let address = address(index);
        // SAFETY: plain socket calls; the pointer and length describe `address`.
        unsafe {
            let fd =
                libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(ALL.to_be()));
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = OwnedFd::from_raw_fd(fd);
            if libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { fd, index })
        }
    }

    /// Sends a whole frame.
    pub fn send(&self, frame: &[u8]) {
        let address = address(self.index);
        // SAFETY: the pointers and lengths describe `frame` and `address`.
        let sent = unsafe {
            let to = (&raw const address).cast();
            libc::sendto(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, size())
        };
        assert_eq!(usize::try_from(sent), Ok(frame.len()), "{}", io::Error::last_os_error());
    }

    /// All frames seen since the last call.
    pub fn frames(&self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let mut bytes = vec![0; 2048];
            let mut from = address(0);
            let mut length = size();
            // SAFETY: the pointers and lengths describe `bytes`, `from` and `length`.
            let got = unsafe {
                let (buffer, from) = (bytes.as_mut_ptr().cast(), (&raw mut from).cast());
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    buffer,
                    bytes.len(),
                    libc::MSG_DONTWAIT,
                    from,
                    &raw mut length,
                )
            };
            let Ok(got) = usize::try_from(got) else { return frames };
            bytes.truncate(got);
            frames.push(Frame { bytes, outgoing: from.sll_pkttype == libc::PACKET_OUTGOING });
        }
    }
}

fn address(index: i32) -> libc::sockaddr_ll {
    // SAFETY: all-zero is a valid value of this plain C struct.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = ALL.to_be();
    address.sll_ifindex = index;
    address
}

fn size() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap()
}

impl Frame {
    fn is(&self, ethertype: u16) -> bool {
        self.bytes.get(12..14) == Some(&ethertype.to_be_bytes())
    }

    /// The MAC that a gratuitous ARP packet announces for `ip`.
    pub fn arp_announcement(&self, ip: std::net::Ipv4Addr) -> Option<String> {
        let octets = ip.octets();
        let of_itself = self.bytes.get(28..32) == Some(&octets) && self.bytes.get(38..42) == Some(&octets);
        (self.is(0x0806) && of_itself).then(|| mac_text(self.bytes.get(22..28).unwrap_or_default()))
    }

    /// The MAC that an unsolicited neighbour advertisement, overriding what was known, announces for `ip`.
    pub fn neighbour_advertisement(&self, ip: Ipv6Addr) -> Option<String> {
        const OVERRIDE_ALONE: u8 = 0x20;
        let at = |range| self.bytes.get(range).unwrap_or_default();
        let is_one = self.is(0x86dd) && at(20..21) == [58] && at(21..22) == [255] && at(54..55) == [136];
        let ours = at(58..59) == [OVERRIDE_ALONE] && at(62..78) == ip.octets() && at(78..80) == [2, 1];
        (is_one && ours).then(|| mac_text(at(80..86)))
    }
}

fn mac_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// A MAC as bytes.
pub fn mac_bytes(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A router advertisement to all nodes of the link: a default route for `lifetime` seconds.
pub fn router_advertisement(mac: &str, lifetime: u16) -> Vec<u8> {
    let source: Ipv6Addr = "fe80::99".parse().unwrap();
    let group: Ipv6Addr = "ff02::1".parse().unwrap();
    let mac = mac_bytes(mac);
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend(lifetime.to_be_bytes());
    message.extend([0; 8]);
    message.extend([1, 1]);
    message.extend(mac);
    let length = u16::try_from(message.len()).unwrap();
    let checksum = checksum(&[
        &source.octets(),
        &group.octets(),
        &u32::from(length).to_be_bytes(),
        &[0, 0, 0, 58],
        &message,
    ]);
    message.splice(2..4, checksum.to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend(mac);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([58, 255]);
    frame.extend(source.octets());
    frame.extend(group.octets());
    frame.extend(message);
    frame
}

/// The Internet checksum (RFC 1071) of parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}
