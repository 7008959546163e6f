//! How far a follower has come, and what it reports: pure, so that real stores and the model follow by the same rules.

use std::collections::BTreeSet;

use super::{Listing, Resume, StoreError, WatchEvent, WatchInput, is_followed};

/// How to go on after a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing usable is known: list all, then watch.
    List,
    /// Watch from this revision on. It may have been reported in part.
    Watch {
        /// The first revision to watch.
        from: i64,
    },
}

/// What a follower has reported so far.
#[derive(Clone, Debug, Default)]
pub struct Position {
    cluster: Option<u64>,
    /// The highest revision that the store was seen at.
    seen: i64,
    /// All of this revision and of those before was reported; `None`: a listing is needed.
    complete: Option<i64>,
    /// The revision that events were last seen of: more of its events may come, as large ones are split.
    partial: i64,
    reported: BTreeSet<String>,
    /// What was last said about the outage, if there is one.
    lost: Option<StoreError>,
}

impl Position {
    /// Where a follower begins that may have a snapshot of an earlier run.
    pub fn new(resume: Option<Resume>) -> Self {
        let Some(Resume { revision, cluster }) = resume else { return Self::default() };
        // The events of that revision itself come once more: the earlier run may have had only some of them.
        Self { cluster: Some(cluster), seen: revision, complete: Some(revision - 1), ..Self::default() }
    }

    /// Somebody else of this node has seen the store at this revision.
    pub fn saw(&mut self, cluster: u64, revision: i64) {
        if *self.cluster.get_or_insert(cluster) == cluster {
            self.seen = self.seen.max(revision);
        }
    }

    /// A connection stands. `revision` must come from a linearizable read of this connection, as a member
    /// that lags behind shows an old one otherwise.
    pub fn connected(&mut self, endpoint: String, cluster: u64, revision: i64) -> Vec<WatchInput> {
        self.lost = None;
        let mut inputs = vec![WatchInput::Connected { endpoint, cluster, revision }];
        if self.is_rewritten(cluster, revision) {
            inputs.push(WatchInput::HistoryRewritten { header_revision: revision, last_seen: self.seen });
            self.forget();
            self.seen = 0;
        }
        self.cluster = Some(cluster);
        self.seen = self.seen.max(revision);
        inputs
    }

    /// Whether this is not the store that was seen before, or it is not as far as it was.
    pub fn is_rewritten(&self, cluster: u64, revision: i64) -> bool {
        revision < self.seen || self.cluster.is_some_and(|known| known != cluster)
    }

    /// The identity of the store, 0 before the first connection.
    pub fn cluster(&self) -> u64 {
        self.cluster.unwrap_or_default()
    }

    /// How to go on.
    pub fn start(&self) -> Start {
        match self.complete {
            None => Start::List,
            // The revision after the complete one was perhaps reported in part; what was is skipped by its key.
            Some(complete) => Start::Watch { from: complete + 1 },
        }
    }

    /// Everything was listed.
    pub fn listed(&mut self, listing: Listing) -> WatchInput {
        self.forget();
        self.complete = Some(listing.revision);
        self.seen = self.seen.max(listing.revision);
        WatchInput::Snapshot(listing)
    }

    /// What was reported is not to be built upon: the store no longer has what would follow, or somebody says so.
    pub fn relist(&mut self) {
        self.forget();
    }

    /// Events came, in the order of their revisions.
    pub fn events(&mut self, events: Vec<WatchEvent>) -> Option<WatchInput> {
        let fresh: Vec<_> = events.into_iter().filter(|event| self.is_fresh(event)).collect();
        let revision = self.partial;
        (!fresh.is_empty()).then_some(WatchInput::Events { revision, events: fresh })
    }

    /// The store says that nothing but what it sent happened up to this revision.
    pub fn progress(&mut self, revision: i64) -> Option<WatchInput> {
        let complete = self.complete.as_mut()?;
        *complete = (*complete).max(revision);
        self.seen = self.seen.max(revision);
        Some(WatchInput::Events { revision, events: vec![WatchEvent::Progress { revision }] })
    }

    /// The store lives, which says nothing about what it has sent.
    pub fn alive(&self) -> Option<WatchInput> {
        let revision = self.complete?;
        Some(WatchInput::Events { revision, events: vec![WatchEvent::Progress { revision }] })
    }

    /// The connection broke, or could not be made. Reported once an outage, as its reasons come and go; and when the
    /// store begins or ceases to refuse this node, or does so for another reason: these a person has to do with.
    pub fn failed(&mut self, error: StoreError) -> Option<WatchInput> {
        let refused = |error: &StoreError| matches!(error, StoreError::Refused { .. });
        let known = self.lost.as_ref().is_some_and(|said| match (refused(said), refused(&error)) {
            (true, true) => *said == error,
            (said, now) => said == now,
        });
        if known {
            return None;
        }
        self.lost = Some(error.clone());
        Some(WatchInput::Lost(error))
    }

    fn is_fresh(&mut self, event: &WatchEvent) -> bool {
        let (key, revision) = match event {
            WatchEvent::Put(kv) => (&kv.key, kv.mod_revision),
            WatchEvent::Delete { key, revision } => (key, *revision),
            WatchEvent::Progress { .. } => return false,
        };
        if revision > self.partial {
            self.complete = self.complete.max(Some(self.partial).filter(|&before| before > 0));
            self.partial = revision;
            self.reported.clear();
            self.seen = self.seen.max(revision);
        }
        let known = self.complete.is_some_and(|complete| revision <= complete) || revision < self.partial;
        !known && is_followed(key) && self.reported.insert(key.clone())
    }

    fn forget(&mut self) {
        self.complete = None;
        self.partial = 0;
        self.reported.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::KeyValue;

    fn put(key: &str, revision: i64) -> WatchEvent {
        let (key, value) = (key.to_owned(), Vec::new());
        WatchEvent::Put(KeyValue { key, value, mod_revision: revision, create_revision: revision, lease: 0 })
    }

    fn connected_at(revision: i64, resume: Option<Resume>) -> (Position, Vec<WatchInput>) {
        let mut position = Position::new(resume);
        let inputs = position.connected("e".to_owned(), 7, revision);
        (position, inputs)
    }

    fn last_is_rewritten(inputs: &[WatchInput]) -> bool {
        matches!(inputs.last(), Some(WatchInput::HistoryRewritten { .. }))
    }

    #[test]
    fn without_a_snapshot_everything_is_listed_then_watched() {
        let (mut position, _) = connected_at(10, None);
        assert_eq!(position.start(), Start::List);
        position.listed(Listing { revision: 10, items: Vec::new() });
        assert_eq!(position.start(), Start::Watch { from: 11 });
    }

    #[test]
    fn a_cached_snapshot_is_continued_unless_its_store_is_another_or_older() {
        let resume = Some(Resume { revision: 8, cluster: 7 });
        let (position, inputs) = connected_at(10, resume);
        assert_eq!((position.start(), inputs.len()), (Start::Watch { from: 8 }, 1));

        let (position, inputs) = connected_at(7, resume);
        assert_eq!(position.start(), Start::List);
        assert_eq!(inputs[1], WatchInput::HistoryRewritten { header_revision: 7, last_seen: 8 });

        let (position, inputs) = connected_at(10, Some(Resume { revision: 8, cluster: 6 }));
        assert_eq!(position.start(), Start::List);
        assert!(last_is_rewritten(&inputs));
    }

    #[test]
    fn a_rewritten_store_is_named_once() {
        let (mut position, _) = connected_at(7, Some(Resume { revision: 8, cluster: 7 }));
        position.listed(Listing { revision: 7, items: Vec::new() });
        assert!(!last_is_rewritten(&position.connected("e".to_owned(), 7, 7)));
    }

    #[test]
    fn what_others_of_this_node_have_seen_counts_too() {
        let mut position = Position::new(None);
        position.saw(7, 12);
        assert!(last_is_rewritten(&position.connected("e".to_owned(), 7, 11)));
    }

    #[test]
    fn a_revision_reported_in_part_is_asked_for_again_and_its_known_events_are_skipped() {
        let (mut position, _) = connected_at(10, Some(Resume { revision: 10, cluster: 7 }));
        assert_eq!(position.start(), Start::Watch { from: 10 });
        position.events(vec![put("n/a", 11), put("n/a", 12)]);
        assert_eq!(position.start(), Start::Watch { from: 12 });
        let more = position.events(vec![put("n/a", 12), put("n/b", 12)]);
        assert_eq!(more, Some(WatchInput::Events { revision: 12, events: vec![put("n/b", 12)] }));
        position.progress(20);
        assert_eq!(position.start(), Start::Watch { from: 21 });
    }

    #[test]
    fn what_is_not_followed_is_not_reported() {
        let (mut position, _) = connected_at(10, Some(Resume { revision: 10, cluster: 7 }));
        assert_eq!(position.events(vec![put("d", 11)]), None);
    }

    #[test]
    fn an_outage_is_said_once() {
        let (mut position, _) = connected_at(10, None);
        let error = StoreError::Unavailable { reason: "x".to_owned() };
        assert!(position.failed(error.clone()).is_some());
        assert!(position.failed(error.clone()).is_none());
        position.connected("e".to_owned(), 7, 10);
        assert!(position.failed(error).is_some());
    }

    #[test]
    fn a_refusal_is_said_when_it_begins_when_its_reason_changes_and_when_it_ends() {
        let (mut position, _) = connected_at(10, None);
        let away = |reason: &str| StoreError::Unavailable { reason: reason.to_owned() };
        let refused = |reason: &str| StoreError::Refused { reason: reason.to_owned() };
        let errors =
            [away("x"), away("y"), refused("x"), refused("x"), refused("y"), away("x"), refused("y")];
        let said = errors.map(|error| position.failed(error).is_some());
        assert_eq!(said, [true, false, true, false, true, true, true]);
    }
}
