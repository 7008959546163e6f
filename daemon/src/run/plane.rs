//! The data plane as the daemon sees it: a thread that is given orders and sends reports.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;
use weft_overlay::wanted::{Changed, Wanted};
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

    /// What the kernel should have from now on, and what of it is new.
    pub fn want(&self, wanted: Arc<Wanted>, changed: Changed) {
        self.thread.want_changed(wanted, changed);
    }

    /// Reads everything again.
    pub fn resync(&self) {
        self.thread.resync();
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

/// How many notices of one kind are shown: a fault that concerns every node is one fault.
const AT_MOST: usize = 10;

/// What people should know of it, with codes that begin with `plane-`: one notice for each kind and subject.
pub fn notices(report: &PlaneReport) -> Vec<Notice> {
    let found =
        report.findings.iter().map(|finding| (finding.code, finding.subject.as_str(), finding.text.as_str()));
    let failed = report.failures.iter().map(|failure| ("failure", failure.as_str(), failure.as_str()));
    let mut by_code: BTreeMap<&str, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for (code, subject, text) in found.chain(failed) {
        by_code.entry(code).or_default().entry(subject).or_default().push(text);
    }
    by_code.iter().flat_map(|(code, subjects)| of_one_code(code, subjects)).collect()
}

fn of_one_code(code: &str, subjects: &BTreeMap<&str, Vec<&str>>) -> Vec<Notice> {
    let notice = |subject: &str, sentence: String| Notice {
        code: format!("plane-{code}"),
        subject: subject.to_owned(),
        sentence,
        way_out: String::new(),
    };
    let more = |count: usize| if count == 0 { String::new() } else { format!(" (and {count} more like it)") };
    let mut shown: Vec<Notice> = subjects
        .iter()
        .take(AT_MOST)
        .filter_map(|(subject, texts)| {
            let (first, rest) = texts.split_first()?;
            Some(notice(subject, format!("{first}{}", more(rest.len()))))
        })
        .collect();
    let hidden = subjects.len().saturating_sub(AT_MOST);
    if hidden > 0 {
        shown.push(notice(
            "",
            format!("{hidden} more like those about {}", subjects.keys().next().unwrap_or(&"")),
        ));
    }
    shown
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
    if removal.failures.is_empty() {
        Ok(!removal.removed.is_empty())
    } else {
        Err(removal.failures.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use weft_overlay::finding::Finding;

    use super::*;

    #[test]
    fn a_fault_that_concerns_every_node_is_shown_for_some() {
        let finding = |n: usize, text: &str| Finding {
            code: "no-route",
            subject: format!("n{n:02}"),
            text: text.to_owned(),
        };
        let findings = (0..30).flat_map(|n| [finding(n, "block a"), finding(n, "block b")]).collect();
        let shown = notices(&PlaneReport {
            findings,
            failures: vec!["add x: no".to_owned()],
            ..PlaneReport::default()
        });
        assert_eq!(shown.len(), 1 + AT_MOST + 1);
        assert_eq!((shown[0].code.as_str(), shown[0].sentence.as_str()), ("plane-failure", "add x: no"));
        assert_eq!(
            (shown[1].subject.as_str(), shown[1].sentence.as_str()),
            ("n00", "block a (and 1 more like it)")
        );
        assert_eq!(shown[AT_MOST + 1].sentence, "20 more like those about n00");
    }
}
