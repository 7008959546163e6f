//! `weft-ipam`: the same allocator as a delegated IPAM plugin, for `bridge`, `macvlan`, `ipvlan` and other
//! projects' plugins. Without a link of its own an attachment lives as long as its namespace.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use weft_cni::args::CniArgs;
use weft_cni::conf::{NetConf, ValidAttachment};
use weft_cni::error::{Error, code};
use weft_cni::hostlocal::IpamConf;
use weft_cni::request::Environment;
use weft_cni::result::{AddResult, IpConfig, check_family_limit};
use weft_cni::run::{Call, Finished, Plugin};
use weft_ipam::ask::{NeedBlock, Weftd};
use weft_ipam::clock::{Deadline, OPERATION_LIMIT, boot_nanos};
use weft_ipam::foreign::Foreign;
use weft_ipam::{
    Attachment, Begun, Blocks, Hash, HostKernel, Kernel, Key, Owner, Phase, Pool, Ranges, Record, Source,
    State, Taking, collect, obtain, usage,
};

const ABOUT: &str = concat!(
    "weft-ipam ",
    env!("CARGO_PKG_VERSION"),
    ": Weft's address allocator as an IPAM plugin for other CNI plugins (\"ipam\": {\"type\": \"weft-ipam\", …})."
);
/// Runtimes hold locks while they wait for STATUS.
const STATUS_LIMIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        let _nobody_listens = io::stdout().write_all(weft_cni::panic_json(&info.to_string()).as_bytes());
    }));
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let environment = |name: &str| -> Option<OsString> { std::env::var_os(name) };
    let Ok(mut stdout) = weft_cni::run::unbuffered_stdout() else { return ExitCode::FAILURE };
    ExitCode::from(weft_cni::run(&mut Ipam, &environment, &mut io::stdin(), &mut stdout, &mut io::stderr()))
}

/// The plugin.
struct Ipam;

impl Plugin for Ipam {
    fn about(&self) -> String {
        ABOUT.to_owned()
    }

    fn add(&mut self, call: &Call<'_>) -> Result<AddResult, Error> {
        let conf = IpamConf::parse(call.conf, &call.attachment.args)?;
        let deadline = Deadline::after(call.started, OPERATION_LIMIT);
        let mut kernel = HostKernel::default();
        let state = State::open(&mut kernel, deadline)?;
        refuse_if_wiped(&state)?;
        let attachment = claim(&state, call, &mut kernel, deadline)?;
        match allocate(&attachment, call, &conf, &mut kernel, deadline) {
            Ok(result) => Ok(result),
            Err(error) => {
                end(attachment)?;
                Err(error)
            }
        }
    }

    fn undo_add(&mut self, call: &Call<'_>) {
        // Nobody is left to tell; a DEL or the collector finds what stays.
        let _unread = self.del(call);
    }

    fn check(&mut self, call: &Call<'_>) -> Result<(), Error> {
        let deadline = Deadline::after(call.started, OPERATION_LIMIT);
        let lost = |what: String| Err(Error::new(code::CHECK_FAILED, what));
        let Some(state) = State::open_existing(&mut HostKernel::default(), deadline)? else {
            return lost("there is no record of this attachment".to_owned());
        };
        let Some(attachment) = state.find(&key(call), deadline)? else {
            return lost("there is no record of this attachment".to_owned());
        };
        for taken in attachment.record()?.map(|record| record.addresses).unwrap_or_default() {
            if !attachment.holds(&taken.file)? {
                return lost(format!("the reservation of {} is lost", taken.address.addr()));
            }
        }
        Ok(())
    }

    fn del(&mut self, call: &Call<'_>) -> Result<(), Error> {
        let deadline = Deadline::after(call.started, OPERATION_LIMIT);
        if let Some(state) = State::open_existing(&mut HostKernel::default(), deadline)?
            && let Some(attachment) = state.find(&key(call), deadline)?
        {
            end(attachment)?;
        }
        let names = (call.attachment.container_id.as_str(), call.attachment.ifname.as_str());
        Foreign::of(call.conf).release(names.0, names.1)
    }

    fn gc(&mut self, conf: &NetConf, _env: &Environment, keep: &[ValidAttachment]) -> Result<(), Error> {
        let started = boot_nanos();
        let deadline = Deadline::after(Instant::now(), OPERATION_LIMIT);
        let Some(state) = State::open_existing(&mut HostKernel::default(), deadline)? else { return Ok(()) };
        let network = Hash::of(conf.name.as_str());
        for owner in state.owners()? {
            let kept = keep.iter().any(|valid| valid.covers(&owner.container_id, &owner.ifname));
            let Some(key) = owner.key().filter(|key| key.network == network && !kept) else { continue };
            deadline.check("everything was collected")?;
            let Some(attachment) = state.find_idle(&key)? else { continue };
            // A link of `weft` itself goes by that plugin's GC.
            let record = attachment.record()?;
            if record.is_none_or(|record| record.host.is_none() && record.created < started) {
                end(attachment)?;
            }
        }
        Ok(())
    }

    fn status(&mut self, conf: &NetConf, _env: &Environment) -> Result<(), Error> {
        let deadline = Deadline::after(Instant::now(), STATUS_LIMIT);
        available(conf, deadline)
            .map_err(|error| if error.code == code::INVALID_CONFIG { error } else { not_available(error) })
    }

    fn finished(&mut self, _what: &Finished<'_>) {}
}

fn allocate(
    attachment: &Attachment<'_>,
    call: &Call<'_>,
    conf: &IpamConf,
    kernel: &mut HostKernel,
    deadline: Deadline,
) -> Result<AddResult, Error> {
    let source = source(call.conf, conf);
    let check = |pools: &[Pool]| {
        let count = |v4| pools.iter().filter(|pool| pool.is_ipv4() == v4).count();
        check_family_limit(call.conf.version, count(true), count(false))
    };
    let netns = call.attachment.netns.clone().unwrap_or_default();
    let mut record = Record::begun(boot_nanos(), String::new(), netns);
    let foreign = Foreign::of(call.conf);
    let mut taking =
        Taking { kernel, foreign: &foreign, cooldown: conf.cooldown_seconds, avoid: &[], deadline };
    let asking = (call.conf.name.as_str(), &Weftd::default() as &dyn NeedBlock);
    obtain(attachment, &mut record, source.as_ref(), &mut taking, asking, check)?;
    record.phase = Phase::Done;
    if !attachment.write_and_verify(&record)? {
        return Err(Error::new(code::TRY_AGAIN, "the records under /run/weft were changed during this ADD"));
    }
    let ips = record.addresses.iter();
    Ok(AddResult {
        ips: ips.map(|t| IpConfig { address: t.address, gateway: t.gateway, interface: None }).collect(),
        routes: conf.routes.clone(),
        dns: conf.dns.clone().unwrap_or_default(),
        ..AddResult::default()
    })
}

fn claim<'s>(
    state: &'s State,
    call: &Call<'_>,
    kernel: &mut HostKernel,
    deadline: Deadline,
) -> Result<Attachment<'s>, Error> {
    let attachment = call.attachment;
    let names = (call.conf.name.as_str(), attachment.container_id.as_str(), attachment.ifname.as_str());
    let owner = Owner::new(names.0, names.1, names.2);
    loop {
        let existing = match state.begin(&owner, deadline)? {
            Begun::Fresh(attachment) => return Ok(attachment),
            Begun::Existing(existing) => existing,
        };
        if let Some(record) = existing.record()?.filter(|record| record.phase == Phase::Done)
            && kernel.is_alive(&record)?
        {
            let held: Vec<String> = record.addresses.iter().map(|taken| taken.address.to_string()).collect();
            return Err(Error::new(
                code::ALREADY_ATTACHED,
                format!(
                    "{} has been allocated to {}, duplicate allocation is not allowed",
                    held.join(", "),
                    owner.describe()
                ),
            ));
        }
        end(existing)?;
    }
}

fn end(attachment: Attachment<'_>) -> Result<(), Error> {
    let record = attachment.record()?;
    attachment.release_all(record.as_ref())?;
    attachment.end()
}

fn available(conf: &NetConf, deadline: Deadline) -> Result<(), Error> {
    let ipam = IpamConf::parse(conf, &CniArgs::default())?;
    let mut kernel = HostKernel::default();
    let state = State::open(&mut kernel, deadline)?;
    refuse_if_wiped(&state)?;
    state.try_writing()?;
    let foreign = Foreign::of(conf);
    for pool in source(conf, &ipam).pools(&state)? {
        let mut now = usage(&state, &pool, &foreign)?;
        if now.used >= now.total {
            // An ADD would collect before it gives up.
            collect(&state, &mut kernel, None, usize::MAX)?;
            now = usage(&state, &pool, &foreign)?;
        }
        if now.used >= now.total {
            let msg = format!("no IP addresses available in range set: {}", pool.describe());
            return Err(Error::new(code::NOT_AVAILABLE, msg)
                .with_details(format!("{} of {} addresses are in use", now.used, now.total)));
        }
    }
    Ok(())
}

fn not_available(error: Error) -> Error {
    Error { code: code::NOT_AVAILABLE, ..error }
}

/// Delegated addresses have no alias in the kernel: after a wipe nobody knows which are in use.
fn refuse_if_wiped(state: &State) -> Result<(), Error> {
    let Some(wiped) = state.wiped()? else { return Ok(()) };
    let file = wiped.file.display();
    Err(Error::new(code::TRY_AGAIN, "the records of this node were wiped while pods may have had addresses")
        .with_details(format!("once no pod with a weft-ipam address is left on this node, remove {file}")))
}

fn source(net: &NetConf, conf: &IpamConf) -> Box<dyn Source> {
    if conf.sets.is_empty() {
        Box::new(Blocks::new(conf.requested.clone()))
    } else {
        Box::new(Ranges::new(net.name.as_str(), conf.clone()))
    }
}

fn key(call: &Call<'_>) -> Key {
    let attachment = call.attachment;
    Key::of(call.conf.name.as_str(), attachment.container_id.as_str(), attachment.ifname.as_str())
}
