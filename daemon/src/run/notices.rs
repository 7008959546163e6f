//! What a person should know at this moment, from the machine, the data plane and the daemon itself: raised once,
//! logged once, cleared once.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cluster::FindingChange;

/// One thing to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// Stable, for programs.
    pub code: String,
    /// What it is about; empty if there can be only one.
    pub subject: String,
    /// What is the matter.
    pub sentence: String,
    /// What to do.
    pub way_out: String,
}

/// All there is to know.
#[derive(Debug, Default)]
pub struct Notices(BTreeMap<(String, String), Notice>);

impl Notices {
    /// Something is the matter, or says something else now.
    pub fn raise(&mut self, notice: Notice) {
        let key = (notice.code.clone(), notice.subject.clone());
        if self.0.get(&key) == Some(&notice) {
            return;
        }
        let Notice { code, subject, sentence, way_out } = &notice;
        match way_out.as_str() {
            "" => tracing::warn!(%code, %subject, "{sentence}"),
            _ => tracing::warn!(%code, %subject, %way_out, "{sentence}"),
        }
        self.0.insert(key, notice);
    }

    /// It is over, if it ever was.
    pub fn clear(&mut self, code: &str, subject: &str) {
        if self.0.remove(&(code.to_owned(), subject.to_owned())).is_some() {
            tracing::info!(code, subject, "over");
        }
    }

    /// Raises the sentence or clears it: for a fault of the daemon's own that comes and goes.
    pub fn set(&mut self, code: &str, outcome: Result<(), String>, way_out: &str) {
        match outcome {
            Ok(()) => self.clear(code, ""),
            Err(sentence) => self.raise(Notice {
                code: code.to_owned(),
                subject: String::new(),
                sentence,
                way_out: way_out.to_owned(),
            }),
        }
    }

    /// What the machine said.
    pub fn change(&mut self, change: FindingChange) {
        match change {
            FindingChange::Raised(finding) => self.raise(Notice {
                code: finding.code.to_string(),
                subject: finding.subject,
                sentence: finding.sentence,
                way_out: finding.way_out,
            }),
            FindingChange::Cleared { code, subject } => self.clear(code.as_str(), &subject),
        }
    }

    /// Makes the notices whose code begins with `prefix` be exactly these.
    pub fn replace(&mut self, prefix: &str, notices: Vec<Notice>) {
        let gone: Vec<(String, String)> = self
            .0
            .keys()
            .filter(|(code, subject)| {
                code.starts_with(prefix)
                    && !notices.iter().any(|notice| (&notice.code, &notice.subject) == (code, subject))
            })
            .cloned()
            .collect();
        for (code, subject) in gone {
            self.clear(&code, &subject);
        }
        for notice in notices {
            self.raise(notice);
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Notice> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(code: &str, subject: &str) -> Notice {
        let text = |text: &str| text.to_owned();
        Notice { code: text(code), subject: text(subject), sentence: text("s"), way_out: text("w") }
    }

    #[test]
    fn what_one_source_reports_replaces_what_it_reported_before_and_nothing_else() {
        let mut notices = Notices::default();
        notices.raise(notice("store-away", ""));
        notices.replace("plane-", vec![notice("plane-a", "x"), notice("plane-b", "")]);
        notices.replace("plane-", vec![notice("plane-b", "")]);
        let codes: Vec<&str> = notices.all().map(|notice| notice.code.as_str()).collect();
        assert_eq!(codes, ["plane-b", "store-away"]);
        notices.clear("plane-b", "");
        assert_eq!(notices.all().count(), 1);
    }

    #[test]
    fn a_fault_of_the_daemon_comes_and_goes() {
        let mut notices = Notices::default();
        notices.set("conflist", Err("no".to_owned()), "do");
        assert_eq!(notices.all().count(), 1);
        notices.set("conflist", Ok(()), "do");
        assert_eq!(notices.all().count(), 0);
    }
}
