//! The UDP sockets: many datagrams in one system call, cut and joined by the kernel (UDP_SEGMENT, UDP_GRO; udp(7)).

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, getsockname, sendmsg,
    setsockopt, socket, sockopt,
};

/// What may wait in either direction: wireguard-go's, by which its losses went to none.
const ROOM: usize = 7 * 1024 * 1024;
/// The largest datagram, or train of them.
pub const LARGEST: usize = 65_535;
/// Trains that are received at once.
pub const TRAINS: usize = 8;
/// How long a send may wait for room.
const PATIENCE_MS: u16 = 5;

/// A socket of one family.
#[derive(Debug)]
pub struct Udp {
    fd: OwnedFd,
    /// The kernel cuts what is sent. It says no at the first attempt where the device cannot.
    cuts: Cell<bool>,
}

/// Datagrams of one size from one sender; the last may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Train {
    /// The sender.
    pub from: SocketAddr,
    /// Bytes in all.
    pub length: usize,
    /// Bytes of each.
    pub size: usize,
}

impl Udp {
    /// Binds to a port of all addresses of a family; 0 is any.
    ///
    /// # Errors
    /// EADDRINUSE when somebody has the port, EAFNOSUPPORT where the kernel has not the family.
    pub fn bind(v4: bool, port: u16) -> io::Result<Self> {
        let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(family, SockType::Datagram, flags, None)?;
        let address: SocketAddr = if v4 {
            SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into()
        } else {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
            SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into()
        };
        // Without NET_ADMIN it is what the system allows.
        let _smaller = setsockopt(&fd, sockopt::RcvBufForce, &ROOM);
        let _smaller = setsockopt(&fd, sockopt::SndBufForce, &ROOM);
        // Kernels before 5.0 join nothing.
        let _single = setsockopt(&fd, sockopt::UdpGroSegment, &true);
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(Self { fd, cuts: Cell::new(true) })
    }

    /// Marks what is sent from now on (SO_MARK).
    ///
    /// # Errors
    /// EPERM without NET_ADMIN.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        Ok(setsockopt(&self.fd, sockopt::Mark, &mark)?)
    }

    /// The port it is bound to.
    ///
    /// # Errors
    /// Never, as far as is known.
    pub fn port(&self) -> io::Result<u16> {
        let address: SockaddrStorage = getsockname(self.fd.as_raw_fd())?;
        let v4 = address.as_sockaddr_in().map(|v4| v4.port());
        Ok(v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.port())).unwrap_or(0))
    }

    /// Sends datagrams of `size` bytes each, of which the last may be shorter.
    ///
    /// # Errors
    /// ENOBUFS or EAGAIN when there is no room, ENETUNREACH and the like from the way there.
    pub fn send(&self, to: SocketAddr, datagrams: &[u8], size: usize) -> nix::Result<()> {
        if datagrams.len() <= size {
            return self.send_one(to, datagrams, &[]);
        }
        if let (true, Ok(segment)) = (self.cuts.get(), u16::try_from(size)) {
            match self.send_one(to, datagrams, &[ControlMessage::UdpGsoSegments(&segment)]) {
                // The device, or the way there, cannot: from now on one by one.
                Err(Errno::EIO | Errno::EINVAL) => self.cuts.set(false),
                outcome => return outcome,
            }
        }
        datagrams.chunks(size).try_for_each(|datagram| self.send_one(to, datagram, &[]))
    }

    fn send_one(&self, to: SocketAddr, bytes: &[u8], control: &[ControlMessage<'_>]) -> nix::Result<()> {
        let to = SockaddrStorage::from(to);
        let mut waited = false;
        loop {
            match sendmsg(self.fd.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), Some(&to))
            {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !waited => {
                    waited = true;
                    poll(
                        &mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)],
                        PollTimeout::from(PATIENCE_MS),
                    )?;
                }
                outcome => return outcome.map(drop),
            }
        }
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Room for [`TRAINS`] trains.
pub struct Inbox {
    buffers: Vec<Vec<u8>>,
    trains: Vec<Option<Train>>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { buffers: vec![vec![0; LARGEST]; TRAINS], trains: Vec::with_capacity(TRAINS) }
    }
}

impl Inbox {
    /// Receives what has come, at most [`TRAINS`] trains; whether there was anything.
    ///
    /// # Errors
    /// When the socket fails; ICMP errors of earlier sends are none.
    pub fn fill(&mut self, socket: &Udp) -> io::Result<bool> {
        self.trains.clear();
        match mmsg::receive(socket.fd.as_fd(), &mut self.buffers, |train| self.trains.push(train)) {
            Ok(()) => {}
            Err(
                Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH,
            ) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(!self.trains.is_empty())
    }

    /// The datagrams, each with its sender.
    pub fn datagrams(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        let trains = self.trains.iter().zip(&self.buffers);
        trains.filter_map(|(train, buffer)| Some((train.as_ref()?, buffer))).flat_map(|(train, buffer)| {
            let bytes = buffer.get(..train.length).unwrap_or_default();
            bytes.chunks(train.size.max(1)).map(|datagram| (train.from, datagram))
        })
    }
}

/// recvmmsg(2). nix has it, but forgets to give the kernel its control buffers again at the second call.
#[expect(unsafe_code, reason = "a system call with pointers in its argument")]
mod mmsg {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::ptr;

    use nix::errno::Errno;

    use super::{TRAINS, Train};

    /// Room for UDP_GRO's number, aligned as `struct cmsghdr` is.
    type Control = [u64; 4];

    /// Fills the buffers, as many as there are datagrams or trains of them, and tells of each.
    #[expect(clippy::cast_possible_truncation, reason = "sizes of small structures")]
    pub fn receive(
        socket: BorrowedFd<'_>,
        buffers: &mut [Vec<u8>],
        mut tell: impl FnMut(Option<Train>),
    ) -> nix::Result<()> {
        // SAFETY: all three are plain numbers and pointers, for which zero is a value.
        let (mut names, mut headers): ([libc::sockaddr_storage; TRAINS], [libc::mmsghdr; TRAINS]) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let mut controls = [Control::default(); TRAINS];
        let mut pieces = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; TRAINS];
        let mut count: libc::c_uint = 0;
        let places = headers.iter_mut().zip(&mut names).zip(&mut controls).zip(&mut pieces).zip(buffers);
        for ((((header, name), control), piece), buffer) in places {
            *piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            header.msg_hdr.msg_name = ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = size_of_val(name) as libc::socklen_t;
            header.msg_hdr.msg_iov = piece;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = size_of_val(control) as _;
            count += 1;
        }
        // SAFETY: `count` headers point at names, pieces, controls and buffers of their own, which live across the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        let received = Errno::result(received)?;
        for (header, name) in headers.iter().zip(&names).take(usize::try_from(received).unwrap_or(0)) {
            let length = header.msg_len as usize;
            // SAFETY: the kernel filled the header in, and its control buffer is still there.
            let size = unsafe { joined_size(&header.msg_hdr) }.unwrap_or(length);
            tell(address(name).map(|from| Train { from, length, size }));
        }
        Ok(())
    }

    /// # Safety
    /// The header is one that the kernel filled in.
    unsafe fn joined_size(header: &libc::msghdr) -> Option<usize> {
        // SAFETY: the macros walk through the control buffer that the kernel filled in.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(header);
            while let Some(control) = at.as_ref() {
                if (control.cmsg_level, control.cmsg_type) == (libc::SOL_UDP, libc::UDP_GRO) {
                    let size = libc::CMSG_DATA(at).cast::<libc::c_int>().read_unaligned();
                    return usize::try_from(size).ok().filter(|size| *size > 0);
                }
                at = libc::CMSG_NXTHDR(header, at);
            }
        }
        None
    }

    fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
        // SAFETY: the storage is large enough and aligned for either, and any bytes are a value of both.
        let (v4, v6) = unsafe {
            (
                &*ptr::from_ref(name).cast::<libc::sockaddr_in>(),
                &*ptr::from_ref(name).cast::<libc::sockaddr_in6>(),
            )
        };
        match i32::from(name.ss_family) {
            libc::AF_INET => {
                let ip = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}
