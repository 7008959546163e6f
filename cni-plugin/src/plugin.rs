//! The five verbs, each with its deadline and its log line.

use std::sync::OnceLock;
use std::time::Duration;

use weft_cni::conf::{NetConf, ValidAttachment};
use weft_cni::error::Error;
use weft_cni::request::{Command, Environment};
use weft_cni::result::AddResult;
use weft_cni::run::{Call, Finished, Plugin};
use weft_ipam::clock::{Deadline, OPERATION_LIMIT};

use crate::conf::Conf;
use crate::log::{Line, LogConf};
use crate::{add, check, del, gc, status};

/// Runtimes ask for STATUS every few seconds and hold locks meanwhile.
const STATUS_LIMIT: Duration = Duration::from_secs(1);

/// What a person sees who calls the program by hand.
pub const ABOUT: &str = concat!(
    "weft ",
    env!("CARGO_PKG_VERSION"),
    ": a CNI plugin that gives each pod one address and one veth, on a bridge or point to point.\n",
    "It is called by a container runtime; https://www.cni.dev says how. Log: /var/log/weft/weft.log"
);

/// The plugin.
#[derive(Debug, Default)]
pub struct Weft {
    log: LogConf,
    notes: Vec<String>,
}

impl Plugin for Weft {
    fn about(&self) -> String {
        ABOUT.to_owned()
    }

    fn add(&mut self, call: &Call<'_>) -> Result<AddResult, Error> {
        let conf = self.parse(call)?;
        add::add(call, &conf, deadline(call), &mut self.notes)
    }

    fn undo_add(&mut self, call: &Call<'_>) {
        let outcome = del::del(call, Deadline::after(std::time::Instant::now(), OPERATION_LIMIT));
        self.notes.push(match outcome {
            Ok(()) => "nobody read the answer; undone".to_owned(),
            Err(error) => format!("nobody read the answer; undoing failed: {error}"),
        });
    }

    fn check(&mut self, call: &Call<'_>) -> Result<(), Error> {
        let conf = self.parse(call)?;
        check::check(call, &conf, deadline(call))
    }

    fn del(&mut self, call: &Call<'_>) -> Result<(), Error> {
        self.log = LogConf::parse(&call.conf.object).unwrap_or_default();
        del::del(call, deadline(call))
    }

    fn gc(&mut self, conf: &NetConf, env: &Environment, keep: &[ValidAttachment]) -> Result<(), Error> {
        self.log = LogConf::parse(&conf.object).unwrap_or_default();
        gc::gc(conf, env, keep, from_now(OPERATION_LIMIT), &mut self.notes)
    }

    fn status(&mut self, conf: &NetConf, env: &Environment) -> Result<(), Error> {
        self.log = LogConf::parse(&conf.object).unwrap_or_default();
        status::status(conf, env, from_now(STATUS_LIMIT))
    }

    fn finished(&mut self, what: &Finished<'_>) {
        // A call that was refused for its name or its variables leaves no trace, not even a log file.
        if what.network.is_none() {
            return;
        }
        let note = self.notes.join(" ");
        self.log.write(&Line {
            command: what.command.map_or("unknown", Command::as_str),
            network: what.network.unwrap_or("-"),
            container: what.container.unwrap_or("-"),
            ifname: what.ifname.unwrap_or("-"),
            took: what.duration,
            note: &note,
            error: what.outcome.err(),
        });
    }
}

impl Weft {
    fn parse(&mut self, call: &Call<'_>) -> Result<Conf, Error> {
        // First, so that the refusal of another option is logged where one looks for it.
        self.log = LogConf::parse(&call.conf.object).unwrap_or_default();
        Conf::parse(call.conf, &call.attachment.args)
    }
}

fn deadline(call: &Call<'_>) -> Deadline {
    Deadline::after(call.started, OPERATION_LIMIT)
}

fn from_now(limit: Duration) -> Deadline {
    Deadline::after(std::time::Instant::now(), limit)
}

/// The program that called us. GC by one runtime must not end what another one on this node made.
pub fn calling_runtime() -> &'static str {
    static FOUND: OnceLock<String> = OnceLock::new();
    FOUND.get_or_init(|| {
        let path = format!("/proc/{}/exe", nix::unistd::getppid());
        let exe =
            std::fs::read_link(path).map_or_else(|_| String::new(), |exe| exe.to_string_lossy().into_owned());
        // An upgraded runtime is still the same runtime.
        exe.strip_suffix(" (deleted)").unwrap_or(&exe).to_owned()
    })
}
