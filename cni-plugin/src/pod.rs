//! The pod's side: its namespace, and what is set up in it.

use std::cell::RefCell;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use weft_cni::error::{Error, code};
use weft_cni::request::Attachment;
use weft_ipam::clock::Deadline;
use weft_ipam::refused;
use weft_netlink::addr::{self, NewAddress};
use weft_netlink::link::{self, Ipv4Setting, Mac};
use weft_netlink::netns::{Netns, OpenError};
use weft_netlink::route::{self, Route};
use weft_netlink::{Request, Socket, neigh};

use crate::addressing::{Plan, PodRoute};
use crate::{announce, sysctl};

/// The longest wait for duplicate address detection; the kernel needs about one second.
const DAD_LIMIT: Duration = Duration::from_secs(5);
const DAD_PAUSE: Duration = Duration::from_millis(20);
/// The longest wait for the kernel's work queue to make an IPv6 address usable.
const LOCAL_LIMIT: Duration = Duration::from_secs(1);
const LOCAL_PAUSE: Duration = Duration::from_micros(100);
const LOCAL_PAUSE_MAX: Duration = Duration::from_millis(2);
/// Who installed the routes in a pod: `RTPROT_STATIC`, as an administrator there would.
const STATIC: u8 = 4;

/// An open pod namespace.
#[derive(Debug)]
pub struct Pod {
    /// A route socket in it.
    pub socket: Socket,
    netns: Netns,
    home: Netns,
    announcer: Option<OwnedFd>,
}

/// What the pod end gets beside addresses and routes.
#[derive(Clone, Copy, Debug)]
pub struct PodEnd<'a> {
    /// Interface name.
    pub name: &'a str,
    /// MAC of whoever carries the gateways, if that is us.
    pub gateway_mac: Option<Mac>,
    /// Leave it down.
    pub down: bool,
    /// Wait for duplicate address detection.
    pub enable_dad: bool,
    /// The link can have IPv6.
    pub ipv6: bool,
}

impl Pod {
    /// Opens the namespace of an ADD or CHECK and proves that it is a pod's.
    ///
    /// # Errors
    /// Code 8 naming the path, when it leads to nothing, to no namespace, or to the node's own.
    pub fn open(attachment: &Attachment) -> Result<Self, Error> {
        let path = attachment.netns.as_deref().unwrap_or(Path::new(""));
        let invalid = |msg: String| Error::new(code::INVALID_NETNS, msg);
        let netns = Netns::open(path).map_err(|error| match error {
            OpenError::Open(source) => {
                invalid(format!("open the network namespace {}: {source}", path.display()))
            }
            OpenError::NotNamespace => invalid(format!("{} is no network namespace", path.display()))
                .with_details("it may be a plain file left behind when the namespace's mount was lost"),
        })?;
        let failed = |error: std::io::Error| Error::io("look at this process' own network namespace", &error);
        let home = Netns::own().map_err(failed)?;
        if !attachment.netns_override && netns.is_same(&home).map_err(failed)? {
            let msg = "plugin's netns and netns from CNI_NETNS should not be the same";
            return Err(invalid(msg.to_owned())
                .with_details(format!("{} is the node's own namespace", path.display())));
        }
        let socket = netns
            .run_from(&home, Socket::route)
            .map_err(|error| Error::io(format!("enter the network namespace {}", path.display()), &error))?
            .map_err(|error| refused("open a netlink socket in the pod", &error))?;
        Ok(Self { socket, netns, home, announcer: None })
    }

    /// The namespace itself.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Refuses to touch an interface that somebody else put there.
    ///
    /// # Errors
    /// Code 101.
    pub fn refuse_existing(&mut self, name: &str) -> Result<(), Error> {
        // Cheaper than asking for the link, and without the lock that all changes of links take.
        if self.socket.index_of(name).is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV)) {
            return Ok(());
        }
        let found = link::by_name(&mut self.socket, name)
            .map_err(|error| refused(format!("look for interface {name} in the pod"), &error))?;
        match found {
            None => Ok(()),
            Some(link) => Err(Error::new(
                code::INTERFACE_EXISTS,
                format!("the pod has an interface {name} that this plugin did not make"),
            )
            .with_details(format!(
                "it is a {}; give CNI_IFNAME another name, or remove it",
                link.kind.as_deref().unwrap_or("device")
            ))),
        }
    }

    /// Sets up the pod end. Returns the routes that were installed: a default route that the pod did not need is
    /// left out.
    ///
    /// # Errors
    /// Code 102 naming what the kernel refused.
    pub fn configure(
        &mut self,
        end: &PodEnd<'_>,
        plan: &Plan,
        deadline: Deadline,
    ) -> Result<(u32, Vec<PodRoute>), Error> {
        let index = self
            .socket
            .index_of(end.name)
            .map_err(|error| Error::io(format!("find {} in the pod", end.name), &error))?;
        let announcer = self.prepare(end, plan)?;
        let mut steps = Steps::default();
        steps.settings(index, !end.ipv6 || plan.has(false));
        if !end.down {
            steps.add(link::up(index), || format!("bring {} up", end.name));
        }
        for pod in &plan.addresses {
            steps.address(index, pod.address, pod.address.addr().is_ipv4() || !end.enable_dad);
        }
        for gateway in plan.gateways_off_link() {
            steps.gateway(index, gateway);
        }
        for route in &plan.routes {
            steps.route(index, route);
        }
        if let Some(mac) = end.gateway_mac {
            plan.addresses
                .iter()
                .filter_map(|pod| pod.gateway)
                .for_each(|ip| steps.neighbour(index, ip, mac));
        }
        let skipped = steps.run(&mut self.socket)?;
        if end.enable_dad && plan.has(false) {
            self.wait_for_dad(index, deadline)?;
        }
        self.announcer = announcer;
        Ok((index, plan.routes.iter().filter(|route| !skipped.contains(route)).cloned().collect()))
    }

    /// Visits the namespace: settings that only /proc/sys has, a socket to announce IPv6 addresses with.
    fn prepare(&self, end: &PodEnd<'_>, plan: &Plan) -> Result<Option<OwnedFd>, Error> {
        if !end.ipv6 {
            return Ok(None);
        }
        let visit = || -> Result<Option<OwnedFd>, Error> {
            set_ipv6(end, plan)?;
            let announcer = plan.has(false).then(announce::open).transpose();
            announcer.map_err(|error| Error::io("open an ICMPv6 socket in the pod", &error))
        };
        self.netns
            .run_from(&self.home, visit)
            .map_err(|error| Error::io("enter the pod's namespace", &error))?
    }

    /// Waits until the pod's IPv6 addresses take packets.
    ///
    /// # Errors
    /// Code 102 if the kernel refuses to tell.
    pub fn wait_for_addresses(&mut self, index: u32, plan: &Plan, deadline: Deadline) -> Result<(), Error> {
        wait_until_local(&mut self.socket, index, plan.ips().into_iter(), deadline)
    }

    /// Tells neighbours about the pod's addresses, once the host end passes frames. Nobody depends on it but those
    /// who remember the address' former holder, so a failure is no failure of the ADD.
    pub fn announce(&mut self, index: u32, plan: &Plan, mac: Mac) {
        let v4 = plan.ips().into_iter().filter(IpAddr::is_ipv4);
        let requests: Vec<Request> =
            v4.flat_map(|ip| [neigh::solicit(index, ip), neigh::delete(index, ip)]).collect();
        let _unheard = self.socket.execute(&requests);
        let Some(announcer) = &self.announcer else { return };
        for ip in plan.ips() {
            if let IpAddr::V6(v6) = ip {
                let _unheard = announce::advertise(announcer, index, v6, mac);
            }
        }
    }

    fn wait_for_dad(&mut self, index: u32, deadline: Deadline) -> Result<(), Error> {
        let started = Instant::now();
        loop {
            let addresses = addr::of_family(&mut self.socket, index, false)
                .map_err(|error| refused("read the pod's addresses", &error))?;
            if let Some(taken) = addresses.iter().find(|address| address.duplicate) {
                let msg = format!("duplicate address detection: {} is in use on this network", taken.addr);
                return Err(Error::new(code::KERNEL, msg));
            }
            if !addresses.iter().any(|address| address.tentative) {
                return Ok(());
            }
            deadline.check("duplicate address detection had ended")?;
            if started.elapsed() > DAD_LIMIT {
                return Err(Error::new(
                    code::TRY_AGAIN,
                    "duplicate address detection has not ended within 5 s",
                ));
            }
            std::thread::sleep(DAD_PAUSE);
        }
    }
}

/// Waits until packets to the IPv6 ones of these addresses are delivered; usually they are. After a second it is
/// left to the kernel: the address is there, and will work.
///
/// # Errors
/// Code 102 if the kernel refuses to tell.
pub fn wait_until_local(
    socket: &mut Socket,
    link: u32,
    addresses: impl Iterator<Item = IpAddr>,
    deadline: Deadline,
) -> Result<(), Error> {
    let until = Instant::now() + deadline.remaining().min(LOCAL_LIMIT);
    for ip in addresses.filter(IpAddr::is_ipv6) {
        let mut pause = LOCAL_PAUSE;
        let local = |socket: &mut Socket| {
            route::is_local(socket, ip, link)
                .map_err(|error| refused(format!("ask for the way to {ip}"), &error))
        };
        while !local(socket)? && Instant::now() < until {
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOCAL_PAUSE_MAX);
        }
    }
    Ok(())
}

fn set_ipv6(end: &PodEnd<'_>, plan: &Plan) -> Result<(), Error> {
    let set = |name: &str, value: &str| sysctl::write(&sysctl::device("ipv6", end.name, name), value);
    // A pod must not let its neighbours choose its routes (CVE-2020-10749).
    set("accept_ra", "0")?;
    if !plan.has(false) {
        return Ok(());
    }
    sysctl::ensure(&sysctl::device("ipv6", end.name, "disable_ipv6"), "0")?;
    set("keep_addr_on_down", "1")?;
    set("accept_dad", if end.enable_dad { "1" } else { "0" })?;
    if end.enable_dad {
        set("enhanced_dad", "1")?;
    }
    if plan.routed {
        set("accept_redirects", "0")?;
    }
    Ok(())
}

/// Requests with what each is about, for the error.
#[derive(Default)]
struct Steps<'a> {
    requests: Vec<Request>,
    about: Vec<Box<dyn Fn() -> String + 'a>>,
    optional: Vec<(usize, &'a PodRoute)>,
}

impl<'a> Steps<'a> {
    fn add(&mut self, request: Request, about: impl Fn() -> String + 'a) {
        self.requests.push(request);
        self.about.push(Box::new(about));
    }

    /// Gratuitous ARP whenever the link comes up again or its MAC changes; and no IPv6 link-local address in a pod
    /// without IPv6: what comes with it is flooded to all ports of the bridge.
    ///
    /// While the link is down the kernel tells nobody of these changes. It has no address yet either, so that it
    /// announces none when it comes up: the bridge port may not forward then, and [`Pod::announce`] would have to
    /// say it again, to all ports.
    fn settings(&mut self, index: u32, link_local: bool) {
        let request = link::set_device(index, &[(Ipv4Setting::ArpNotify, 1)], link_local);
        self.add(request, || "set up the pod's interface".to_owned());
    }

    fn address(&mut self, index: u32, address: weft_cni::ip::IfAddr, skip_dad: bool) {
        let new = NewAddress {
            link: index,
            addr: address.addr(),
            prefix_len: address.prefix_len(),
            skip_dad,
            no_prefix_route: false,
        };
        self.add(addr::add(&new), move || format!("give the pod the address {address}"));
    }

    /// IPv6 looks an `onlink` gateway up before it believes it, and would find the way through the pod's other
    /// interface on the same network.
    fn gateway(&mut self, index: u32, gateway: IpAddr) {
        let mut route = Route::on_link(gateway, 128, index);
        route.protocol = STATIC;
        self.add(route::append(&route), move || format!("give the pod the way to its gateway {gateway}"));
    }

    fn route(&mut self, index: u32, wanted: &'a PodRoute) {
        let route = kernel_route(index, wanted);
        let about = move || {
            let via = wanted.via.map_or_else(String::new, |gw| format!(" via {gw}"));
            format!("give the pod the route {}{via}", wanted.route.dst)
        };
        if wanted.unless_default {
            self.optional.push((self.requests.len(), wanted));
            self.add(route::add(&route), about);
        } else {
            self.add(route::append(&route), about);
        }
    }

    fn neighbour(&mut self, index: u32, gateway: IpAddr, mac: Mac) {
        self.add(neigh::replace(index, gateway, mac), move || format!("seed the pod's neighbour {gateway}"));
    }

    fn run(self, socket: &mut Socket) -> Result<Vec<&'a PodRoute>, Error> {
        let skipped = RefCell::new(Vec::new());
        let tolerate = |index: usize, errno: i32| {
            let route = self.optional.iter().find(|(at, _)| *at == index && errno == libc::EEXIST);
            skipped.borrow_mut().extend(route.map(|(_, route)| *route));
            route.is_some()
        };
        let outcome = socket.execute_tolerating(&self.requests, tolerate);
        match outcome {
            Ok(()) => Ok(skipped.into_inner()),
            Err(error) => {
                let about = self.about.get(error.index).map_or_else(String::new, |about| about());
                Err(refused(about, &error))
            }
        }
    }
}

/// A route of the plan as the kernel takes it.
pub fn kernel_route(index: u32, wanted: &PodRoute) -> Route {
    let from = &wanted.route;
    let mut route = Route::on_link(from.dst.addr(), from.dst.prefix_len(), index);
    route.gateway = wanted.via;
    route.onlink = wanted.onlink && wanted.via.is_some();
    route.scope = from.scope.and_then(|scope| u8::try_from(scope).ok());
    route.table = from.table.unwrap_or(route::MAIN);
    route.priority = from.priority;
    route.mtu = from.mtu;
    route.advmss = from.advmss;
    route.protocol = STATIC;
    route
}
