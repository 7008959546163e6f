//! STATUS answers one question: can an ADD succeed now, from this node's own state? Not: is the store well, is
//! the daemon well.

use weft_cni::args::CniArgs;
use weft_cni::conf::NetConf;
use weft_cni::delegate::Delegate;
use weft_cni::error::{Error, code};
use weft_cni::hostlocal::IpamConf;
use weft_cni::request::{Command, Environment};
use weft_ipam::clock::Deadline;
use weft_ipam::foreign::Foreign;
use weft_ipam::{Blocks, HostKernel, Ranges, Source, State, collect, refused, usage};
use weft_netlink::link;

use crate::bridge;
use crate::conf::{BridgeConf, Conf, Ipam, Mode};

/// Whether an ADD can succeed now.
///
/// # Errors
/// Code 50 when it cannot: nothing granted, or all addresses in use.
pub fn status(net: &NetConf, env: &Environment, deadline: Deadline) -> Result<(), Error> {
    let conf = Conf::parse(net, &CniArgs::default())?;
    if let (Mode::Bridge(bridge), false) = (&conf.mode, conf.exhausted_is_ok) {
        refuse_full(bridge)?;
    }
    match &conf.ipam {
        Ipam::None => Ok(()),
        Ipam::Delegated(kind) => {
            let delegate = Delegate::find(kind, &env.path)?;
            delegate.run(Command::Status, env, &net.raw, deadline.instant()).map(drop)
        }
        Ipam::BuiltIn(ipam) => built_in(net, &conf, ipam, deadline).map_err(unavailable),
    }
}

fn refuse_full(conf: &BridgeConf) -> Result<(), Error> {
    let mut kernel = HostKernel::default();
    let Some(found) = bridge::find(kernel.socket()?, conf)? else { return Ok(()) };
    let ports = link::count_ports(kernel.socket()?, found.index)
        .map_err(|error| refused(format!("count the ports of {}", found.name), &error))?;
    if ports < bridge::MAX_PORTS {
        return Ok(());
    }
    Err(Error { code: code::NOT_AVAILABLE, ..bridge::full() })
}

fn built_in(net: &NetConf, conf: &Conf, ipam: &IpamConf, deadline: Deadline) -> Result<(), Error> {
    let mut kernel = HostKernel::default();
    let state = State::open(&mut kernel, deadline)?;
    state.try_writing()?;
    let network = net.name.as_str();
    let source: Box<dyn Source> = if ipam.sets.is_empty() {
        Box::new(Blocks::new(Vec::new()))
    } else {
        Box::new(Ranges::new(network, ipam.clone()))
    };
    let foreign = Foreign::of(net);
    for pool in source.pools(&state)? {
        let mut now = usage(&state, &pool, &foreign)?;
        if now.used >= now.total {
            // An ADD would collect before it gives up.
            collect(&state, &mut kernel, None, usize::MAX)?;
            now = usage(&state, &pool, &foreign)?;
        }
        if now.used >= now.total && !conf.exhausted_is_ok {
            let msg = format!("no IP addresses available in range set: {}", pool.describe());
            return Err(Error::new(code::NOT_AVAILABLE, msg)
                .with_details(format!("{} of {} addresses are in use", now.used, now.total)));
        }
    }
    Ok(())
}

/// "Try again later" is "not available" here; a broken configuration stays what it is.
fn unavailable(error: Error) -> Error {
    if error.code == code::INVALID_CONFIG { error } else { Error { code: code::NOT_AVAILABLE, ..error } }
}
