//! Foreign FORWARD chains that drop: kept open for the pods, if the configuration says so; see [`crate::forward`].

use tokio::time::{Duration, Instant};

use super::{Daemon, Event};
use crate::forward;
use crate::run::aside::aside;

/// Against somebody who takes the rules away again and again.
const PAUSE: Duration = Duration::from_secs(5);
/// After a failure.
const LONG_PAUSE: Duration = Duration::from_secs(60);

/// When it was last done.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    busy: bool,
    not_before: Option<Instant>,
}

impl Daemon {
    /// Looks at what the data plane saw; what is to be done is done on a thread of its own.
    pub(super) fn mind_foreign(&mut self) {
        let (Some(report), Some(wanted)) = (&self.report, &self.wanted) else { return };
        let (mode, cidrs, chains) = (self.conf.foreign_forward, &wanted.cidrs, &report.foreign_forward);
        if !forward::is_due(mode, cidrs, chains) {
            return self.notices.clear(CODE, "");
        }
        if self.foreign.busy || self.foreign.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.foreign.busy = true;
        let (cidrs, chains, events) = (cidrs.clone(), chains.clone(), self.events.0.clone());
        self.tasks.spawn(async move {
            let result = aside("foreign-forward", move || forward::apply(mode, &cidrs, &chains)).await;
            let _ending = events.send(Event::ForeignMinded(result)).await;
        });
    }

    pub(super) fn foreign_minded(&mut self, result: Result<usize, String>) {
        let pause = if result.is_ok() { PAUSE } else { LONG_PAUSE };
        self.foreign = Foreign { busy: false, not_before: Some(Instant::now() + pause) };
        if let Ok(rules) = result {
            tracing::info!(rules, mode = ?self.conf.foreign_forward, "changed Weft's rules in foreign FORWARD chains");
        }
        self.notices.set(
            CODE,
            result.map(drop),
            "It is tried again each minute; or set foreign_forward = \"report\" and accept the pods' networks there yourself",
        );
        // The legacy iptables tell nobody that they changed.
        self.plane.resync();
    }
}

const CODE: &str = "foreign-forward";
