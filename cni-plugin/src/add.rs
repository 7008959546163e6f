//! ADD. The order is the one that leaks least: validate, look, lock, write the intent, take addresses, make the
//! link, set it up, write "done", verify, answer. On any failure everything is taken back.

mod addresses;
mod answer;
mod pair;

use std::net::IpAddr;

use weft_cni::error::{Error, code};
use weft_cni::ip::IfAddr;
use weft_cni::result::AddResult;
use weft_cni::run::Call;
use weft_ipam::alias::Alias;
use weft_ipam::clock::{Deadline, boot_nanos};
use weft_ipam::{
    Attachment, Begun, Bridge, Hash, Host, HostKernel, Kernel, Owner, Phase, Pool, Record, State, refused,
};
use weft_netlink::link::{self as kernel_link, Link, Mac};
use weft_netlink::{Protocol, Socket, rules};

use crate::addressing::{Granted, Plan, PodRoute, plan};
use crate::conf::{Conf, Ipam, Mode};
use crate::pod::{Pod, PodEnd, wait_until_local};
use crate::veth::Claimed;
use crate::{bridge, del, link, masquerade, sysctl, veth};

/// How many addresses that prove to be a live pod's are put aside before giving up.
const CLAIM_ATTEMPTS: usize = 16;

/// Attaches a pod. `notes` collects what the log should say.
///
/// # Errors
/// Nothing is left behind on any of them.
pub fn add(
    call: &Call<'_>,
    conf: &Conf,
    deadline: Deadline,
    notes: &mut Vec<String>,
) -> Result<AddResult, Error> {
    let previous = call.conf.prev_result()?;
    let mut pod = Pod::open(call.attachment)?;
    let mut kernel = HostKernel::default();
    let state = State::open(&mut kernel, deadline)?;
    let attachment = claim(&state, call, &mut kernel, deadline)?;
    let mut job = Job {
        call,
        conf,
        deadline,
        pod: &mut pod,
        kernel,
        host_mac: link::host_mac(attachment.id()),
        attachment,
        notes,
        avoid: Vec::new(),
        new_gateways_on: None,
    };
    match job.run() {
        Ok(done) => Ok(done.into_result(call, conf, previous)),
        Err(error) => {
            let error = job.undo(error);
            Err(if state.is_current().unwrap_or(true) { error } else { wiped(&error) })
        }
    }
}

/// Whatever failed, it failed because the records went under it: a retry finds them rebuilt.
fn wiped(error: &Error) -> Error {
    Error::new(code::TRY_AGAIN, "the records under /run/weft were wiped during this ADD")
        .with_details(format!("what was done has been undone, try again ({error})"))
}

/// Locks the attachment. One that is there already is refused if it lives, and ended if it is dead.
fn claim<'s>(
    state: &'s State,
    call: &Call<'_>,
    kernel: &mut HostKernel,
    deadline: Deadline,
) -> Result<Attachment<'s>, Error> {
    let names =
        (call.conf.name.as_str(), call.attachment.container_id.as_str(), call.attachment.ifname.as_str());
    let owner = Owner::new(names.0, names.1, names.2);
    loop {
        let existing = match state.begin(&owner, deadline)? {
            Begun::Fresh(attachment) => return Ok(attachment),
            Begun::Existing(existing) => existing,
        };
        let record = existing.record()?;
        if let Some(record) = record.as_ref().filter(|record| record.phase == Phase::Done)
            && kernel.is_alive(record)?
        {
            return Err(already_attached(&owner, record));
        }
        // An ADD that was killed half-way, or a pod that vanished without DEL.
        let delegate = record.as_ref().and_then(|record| record.delegate.clone());
        del::tear_down(existing, record.as_ref(), kernel, deadline, || {
            del::delegate_del(delegate.as_deref(), call.conf, call.env, deadline)
        })?;
    }
}

fn already_attached(owner: &Owner, record: &Record) -> Error {
    let addresses: Vec<String> = record.addresses.iter().map(|taken| taken.address.to_string()).collect();
    Error::new(code::ALREADY_ATTACHED, format!("{} is attached already", owner.describe())).with_details(
        format!(
            "it has {} and keeps it; duplicate allocation is not allowed: run DEL before ADD",
            if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") }
        ),
    )
}

/// One ADD under way.
struct Job<'a, 's> {
    call: &'a Call<'a>,
    conf: &'a Conf,
    deadline: Deadline,
    pod: &'a mut Pod,
    kernel: HostKernel,
    attachment: Attachment<'s>,
    /// The host end's.
    host_mac: Mac,
    notes: &'a mut Vec<String>,
    avoid: Vec<IpAddr>,
    /// The device that this ADD put gateways on. They take packets only once it has a carrier.
    new_gateways_on: Option<u32>,
}

/// What a finished ADD reports.
struct Done {
    granted: Granted,
    plan: Plan,
    routes: Vec<PodRoute>,
    bridge: Option<Link>,
    gateway_link: Option<Link>,
    host: Link,
    pod_mac: Mac,
}

impl<'s> Job<'_, 's> {
    fn run(&mut self) -> Result<Done, Error> {
        let ifname = self.call.attachment.ifname.as_str();
        self.pod.refuse_existing(ifname)?;
        let bridge = match &self.conf.mode {
            Mode::Bridge(conf) => Some(bridge::ensure(self.kernel.socket()?, conf, self.conf.mtu)?),
            Mode::Veth => None,
        };
        let mut record = self.intent(bridge.as_ref());
        for _ in 0..CLAIM_ATTEMPTS {
            self.deadline.check("the pod's addresses were taken")?;
            let (granted, pools) = self.obtain_addresses(&mut record)?;
            let plan = plan(self.conf, &granted)?;
            self.check_families(&plan)?;
            match self.attach(&mut record, granted, plan, bridge.as_ref(), &pools)? {
                Ok(done) => return self.finish(&mut record, done),
                Err(claimed) => self.put_aside(&mut record, claimed)?,
            }
        }
        Err(Error::new(
            code::TRY_AGAIN,
            format!("{CLAIM_ATTEMPTS} addresses in a row belong to others in the kernel"),
        )
        .with_details("the records of this node are wrong; they are rebuilt by the next operation"))
    }

    fn intent(&self, bridge: Option<&Link>) -> Record {
        let netns = self.call.attachment.netns.clone().unwrap_or_default();
        let mut record = Record::begun(boot_nanos(), crate::plugin::calling_runtime().to_owned(), netns);
        let id = self.attachment.id();
        record.host = Some(Host {
            name: id.host_name(),
            index: 0,
            mac: self.host_mac.to_string(),
            alias: String::new(),
        });
        record.bridge = bridge.map(|link| Bridge { name: link.name.clone(), index: link.index });
        record
    }

    fn check_families(&self, plan: &Plan) -> Result<(), Error> {
        if let (true, false, Some(mtu)) = (plan.has(false), self.conf.link_has_ipv6(), self.conf.mtu)
            && sysctl::has_ipv6()
        {
            return Err(Error::config(format!("mtu {mtu} is too small for the network's IPv6 addresses"))
                .with_details("IPv6 needs 1280 at least (RFC 8200)"));
        }
        if plan.has(false) && !sysctl::has_ipv6_settings() {
            return Err(Error::config("the network gives IPv6 addresses, and this kernel has no IPv6").with_details(
                "it was booted with ipv6.disable=1: boot without it, or give the network IPv4 ranges only",
            ));
        }
        Ok(())
    }

    /// Makes the link and sets up both sides; or finds that an address is a live pod's.
    fn attach(
        &mut self,
        record: &mut Record,
        granted: Granted,
        plan: Plan,
        bridge: Option<&Link>,
        pools: &[Pool],
    ) -> Result<Result<Done, Claimed>, Error> {
        let id = self.attachment.id().clone();
        let ips = plan.ips();
        let pod_mac = self.conf.mac.unwrap_or_else(|| link::pod_mac(&id, &ips));
        let alias = self.alias(&granted, ips)?;
        let gateway_link = self.prepare_node(&plan, bridge)?;
        self.deadline.check("the pod's link was made")?;
        if let Err(claimed) = self.make_pair(&plan, bridge, pod_mac, &alias)? {
            return Ok(Err(claimed));
        }
        let host_name = id.host_name();
        let found = |socket: &mut Socket| {
            let found = kernel_link::by_name(socket, &host_name);
            let found = found.map_err(|error| refused(format!("look up {host_name}"), &error))?;
            found.ok_or_else(|| {
                Error::new(code::TRY_AGAIN, format!("{host_name} was removed while it was set up"))
            })
        };
        if self.attachment.state().is_crowded() {
            sysctl::use_private_procfs();
        }
        let mut host_mac = self.host_mac;
        if let Mode::Veth = self.conf.mode {
            let host = found(self.kernel.socket()?)?;
            host_mac = host.mac.unwrap_or(host_mac);
            if let Err(claimed) = veth::configure_host_end(self.kernel.socket()?, &host, &plan, pod_mac)? {
                return Ok(Err(claimed));
            }
            let carried = plan.gateways.iter().map(IfAddr::addr);
            wait_until_local(self.kernel.socket()?, host.index, carried, self.deadline)?;
        }
        let gateway_mac = match (&self.conf.mode, gateway_link.as_ref().or(bridge)) {
            (Mode::Veth, _) => Some(host_mac),
            (Mode::Bridge(_), Some(carrier)) if !plan.gateways.is_empty() => carrier.mac,
            (Mode::Bridge(_), _) => None,
        };
        let end = PodEnd {
            name: self.call.attachment.ifname.as_str(),
            gateway_mac,
            down: self.conf.disable_interface,
            enable_dad: self.conf.enable_dad,
            ipv6: self.conf.link_has_ipv6(),
        };
        let (index, routes) = self.pod.configure(&end, &plan, self.deadline)?;
        // Asking for the link also makes the kernel finish its change of state: frames pass from here on.
        let host = found(self.kernel.socket()?)?;
        if let Some(bridge) = bridge.filter(|bridge| !bridge.carrier)
            && let Err(claimed) =
                veth::claim_on_bridge(self.kernel.socket()?, bridge.index, &plan, pod_mac, &alias)?
        {
            return Ok(Err(claimed));
        }
        if let Some(carrier) = self.new_gateways_on.take() {
            let carried = plan.gateways.iter().map(IfAddr::addr);
            wait_until_local(self.kernel.socket()?, carrier, carried, self.deadline)?;
        }
        self.pod.wait_for_addresses(index, &plan, self.deadline)?;
        if bridge.is_some() {
            self.pod.announce(index, &plan, pod_mac);
        }
        record.host = Some(Host {
            name: host.name.clone(),
            index: host.index,
            mac: host.mac.unwrap_or(host_mac).to_string(),
            alias,
        });
        record.pod_mac = pod_mac.to_string();
        self.write_rules(record, &plan, pools, host.index, pod_mac)?;
        Ok(Ok(Done { granted, plan, routes, bridge: bridge.cloned(), gateway_link, host, pod_mac }))
    }

    fn alias(&self, granted: &Granted, addresses: Vec<IpAddr>) -> Result<String, Error> {
        let runtime = Hash::of(crate::plugin::calling_runtime());
        let alias = Alias {
            key: self.attachment.key().clone(),
            addresses,
            own_addresses: matches!(self.conf.ipam, Ipam::BuiltIn(_)),
            cluster: granted.cluster,
            runtime: runtime.as_str().get(..8).unwrap_or_default().to_owned(),
        };
        alias.to_text().ok_or_else(|| {
            Error::config(format!("{} addresses are too many for one attachment", alias.addresses.len()))
                .with_details(
                    "their list must fit into the link's alias (255 bytes); give the network fewer ranges",
                )
        })
    }

    fn write_rules(
        &mut self,
        record: &mut Record,
        plan: &Plan,
        pools: &[Pool],
        host: u32,
        pod_mac: Mac,
    ) -> Result<(), Error> {
        let guard = matches!(&self.conf.mode, Mode::Bridge(conf) if conf.spoof_guard);
        let wanted =
            if self.conf.ip_masq { masquerade::wanted(plan, pools) } else { masquerade::Wanted::default() };
        if guard || !wanted.single.is_empty() {
            // These go with the pod: the record must know of them first.
            record.guarded = guard;
            record.masqueraded.clone_from(&wanted.single);
            self.attachment.write(record)?;
        }
        if guard {
            let failed = |error: weft_netlink::Error| refused("write the spoof guard (nf_tables)", &error);
            let mut socket = Socket::open(Protocol::Netfilter).map_err(failed)?;
            rules::guard_port(&mut socket, host, pod_mac.0).map_err(failed)?;
        }
        if !wanted.rules.is_empty() {
            self.notes.extend(masquerade::ensure(self.attachment.state(), &wanted)?);
        }
        Ok(())
    }

    /// Writes "done", and makes sure that nobody wiped the records meanwhile.
    fn finish(&mut self, record: &mut Record, done: Done) -> Result<Done, Error> {
        record.phase = Phase::Done;
        if !self.attachment.write_and_verify(record)? {
            return Err(Error::new(
                code::TRY_AGAIN,
                "the records under /run/weft were changed during this ADD",
            )
            .with_details("somebody wiped the folder; what was done has been undone, try again"));
        }
        self.notes.extend(record.addresses.iter().map(|taken| format!("ip={}", taken.address)));
        Ok(done)
    }

    /// Takes everything back. What cannot be taken back is added to the error, and stays on record for DEL.
    fn undo(self, error: Error) -> Error {
        let Self { attachment, mut kernel, call, conf: _, .. } = self;
        // Long enough to clean up even when the operation's own time has run out.
        let grace = Deadline::after(std::time::Instant::now(), std::time::Duration::from_secs(3));
        let mut delegate_failed = None;
        let undone = attachment.record().and_then(|record| {
            let delegate = record.as_ref().and_then(|record| record.delegate.clone());
            del::tear_down(attachment, record.as_ref(), &mut kernel, grace, || {
                // A delegate that fails here often failed in ADD: our own part goes all the same.
                delegate_failed = del::delegate_del(delegate.as_deref(), call.conf, call.env, grace).err();
                Ok(())
            })
        });
        match undone.err().or(delegate_failed) {
            None => error,
            Some(second) => {
                let details = format!("{}; and cleaning up failed: {second}", error.details);
                error.with_details(details.trim_start_matches("; and ").to_owned())
            }
        }
    }
}
