//! The data plane as the daemon sees it: a thread that is given orders and sends reports.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;
use weft_overlay::wanted::Wanted;
use weft_overlay::{DataPlane, PlaneReport, Setup};

use super::notices::Notice;
use crate::conf::Conf;

/// The running data plane.
pub struct Plane {
    thread: DataPlane,
    reports: mpsc::UnboundedReceiver<PlaneReport>,
}

impl Plane {
    /// Starts it; nothing is changed before the first order.
    ///
    /// # Errors
    /// A sentence.
    pub fn start(conf: &Conf) -> Result<Self, String> {
        let (sender, reports) = mpsc::unbounded_channel();
        let setup = Setup { sysctl_root: conf.sysctl_root.clone() };
        let report = move |report| {
            // A daemon that ends hears nothing more.
            let _ending = sender.send(report);
        };
        let thread = DataPlane::start(setup, report).map_err(|error| error.to_string())?;
        Ok(Self { thread, reports })
    }

    /// What the kernel should have from now on.
    pub fn want(&self, wanted: Arc<Wanted>) {
        self.thread.want(wanted);
    }

    /// The next report; `None` once the thread has ended.
    pub async fn next_report(&mut self) -> Option<PlaneReport> {
        self.reports.recv().await
    }

    /// Whether its thread still runs.
    pub fn is_running(&self) -> bool {
        self.thread.is_running()
    }
}

/// Whether pods can be started: what this node needs for itself has been set. One peer that cannot be reached does not
/// keep it from that.
pub fn is_in_place(report: &PlaneReport) -> bool {
    report.in_sync || report.objects > 0
}

/// What people should know of it, with codes that begin with `plane-`.
pub fn notices(report: &PlaneReport) -> Vec<Notice> {
    let found = report.findings.iter().map(|finding| Notice {
        code: format!("plane-{}", finding.code),
        subject: finding.subject.clone(),
        sentence: finding.text.clone(),
        way_out: "See the data plane in `weftd status -o json`".to_owned(),
    });
    let failed = report.failures.iter().map(|failure| Notice {
        code: "plane-failure".to_owned(),
        // Each is one of its own.
        subject: failure.clone(),
        sentence: failure.clone(),
        way_out: "It is tried again, with growing pauses".to_owned(),
    });
    found.chain(failed).collect()
}

/// For the status document.
pub fn to_value(report: &PlaneReport) -> Value {
    serde_json::to_value(report).unwrap_or_default()
}

/// Removes everything of the data plane from this node.
///
/// # Errors
/// All that could not be removed.
pub fn remove() -> Result<bool, String> {
    let removal = DataPlane::remove_everything()
        .map_err(|error| format!("remove routes, links and packet rules: {error}"))?;
    if removal.failures.is_empty() { Ok(!removal.removed.is_empty()) } else { Err(removal.failures.join("; ")) }
}
