//! The TUN interface: packets of up to 64 kB in both directions, each behind an [`crate::offload`] header.
#![expect(unsafe_code, reason = "ioctls that no crate wraps")]

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// include/uapi/linux/if_tun.h
const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNGETIFF: u64 = 0x8004_54d2;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const OFFLOAD_CHECKSUM: u64 = 0x01;
const OFFLOAD_TSO: u64 = 0x02 | 0x04;
/// Linux 6.2.
const OFFLOAD_USO: u64 = 0x20 | 0x40;

/// `struct ifreq` with `ifr_flags`.
#[repr(C)]
struct Interface {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// `struct ifreq` with `ifr_mtu`.
#[repr(C)]
struct WithMtu {
    name: [u8; 16],
    mtu: libc::c_int,
    rest: [u8; 20],
}

/// An open TUN interface. It goes when this is dropped.
#[derive(Debug)]
pub struct Tun {
    file: File,
    /// To ask for the MTU with.
    asks: OwnedFd,
    /// The kernel hands UDP over in large packets, too.
    pub cuts_udp: bool,
}

impl Tun {
    /// Makes the interface.
    ///
    /// # Errors
    /// ENOENT without /dev/net/tun, EPERM without NET_ADMIN, EBUSY if somebody has it, EINVAL for a name that is none.
    pub fn make(name: &str) -> io::Result<Self> {
        let mut interface =
            Interface { name: [0; 16], flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
        let place = interface.name.get_mut(..name.len()).filter(|place| (1..16).contains(&place.len()));
        place.ok_or(Errno::EINVAL)?.copy_from_slice(name.as_bytes());
        let mut options = File::options();
        let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: the argument is a `struct ifreq` that lives across the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as libc::Ioctl, &raw const interface) })?;
        let offload = |bits: u64| {
            // SAFETY: the argument is a number.
            check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD as libc::Ioctl, bits) })
        };
        let cuts_udp = offload(OFFLOAD_CHECKSUM | OFFLOAD_TSO | OFFLOAD_USO).is_ok();
        if !cuts_udp {
            offload(OFFLOAD_CHECKSUM | OFFLOAD_TSO)?;
        }
        let asks = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { file, asks, cuts_udp })
    }

    /// The interface's MTU, whatever it is called now.
    ///
    /// # Errors
    /// EBADFD or ENODEV when it was deleted.
    pub fn mtu(&self) -> io::Result<usize> {
        let mut found = Interface { name: [0; 16], flags: 0, rest: [0; 22] };
        // SAFETY: the argument is a `struct ifreq` that lives across the call.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNGETIFF as libc::Ioctl, &raw mut found) })?;
        let mut asked = WithMtu { name: found.name, mtu: 0, rest: [0; 20] };
        // SAFETY: as above.
        check(unsafe {
            libc::ioctl(self.asks.as_raw_fd(), libc::SIOCGIFMTU as libc::Ioctl, &raw mut asked)
        })?;
        Ok(usize::try_from(asked.mtu).unwrap_or(0))
    }

    /// The next packet behind its header; `None` when there is none now.
    ///
    /// # Errors
    /// EBADFD when the interface was deleted.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The interface is down.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a packet, whose first piece is its header.
    ///
    /// # Errors
    /// EINVAL for a packet that the kernel does not take, EIO while the interface is down.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> nix::Result<()> {
        nix::sys::uio::writev(&self.file, pieces).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn check(outcome: libc::c_int) -> io::Result<()> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
