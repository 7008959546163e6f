//! How soon an object that keeps vanishing, or that the kernel keeps refusing, is tried again. Pure: time is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::objects::Key;

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// So often in a row an object is put back at once: twice by two people is no war.
const AT_ONCE: u32 = 2;
/// From so many on, somebody is named.
const WAR: u32 = 4;
/// After so long in peace (and no less than twice the last pause) an object is put back at once again: the issue wants
/// each of many deletions healed within a second, as long as they do not follow each other at once.
const CALM: Duration = Duration::from_secs(1);
/// After so long in peace (and no less than twice the last pause) all is forgotten, and nobody is named any more.
const PEACE: Duration = Duration::from_secs(30);

/// What a process is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// By its program: "ip (process 7)".
    Known(String),
    /// It ended before anybody could look, or the kernel does not tell which it is.
    Vague(String),
}

impl Name {
    /// For people.
    pub fn text(&self) -> &str {
        match self {
            Self::Known(text) | Self::Vague(text) => text,
        }
    }

    /// What is remembered after this one, if `before` was: a program's name says more than a number.
    #[must_use]
    pub fn after(self, before: Option<Self>) -> Self {
        match (self, before) {
            (Self::Vague(_), Some(Self::Known(known))) => Self::Known(known),
            (now, _) => now,
        }
    }
}

/// Objects that gave trouble lately. Empty in good times.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    troubles: BTreeMap<Key, Trouble>,
}

#[derive(Clone, Debug)]
struct Trouble {
    /// In a row, for the pause.
    strikes: u32,
    /// Since the last peace, for naming.
    losses: u32,
    last: Instant,
    not_before: Instant,
    by: Option<Name>,
}

impl Backoff {
    /// The object was taken away or changed by somebody else, whose name may be known. Says whether that is new: several
    /// events for one loss count once.
    pub fn lost(&mut self, key: &Key, by: Option<Name>, now: Instant) {
        self.strike(key, by, now, AT_ONCE);
    }

    /// The kernel refused it.
    pub fn refused(&mut self, key: &Key, now: Instant) {
        self.strike(key, None, now, 0);
    }

    fn strike(&mut self, key: &Key, by: Option<Name>, now: Instant, at_once: u32) {
        let fresh = || Trouble { strikes: 0, losses: 0, last: now, not_before: now, by: None };
        let trouble = self.troubles.entry(key.clone()).or_insert_with(fresh);
        // Still waiting to put it back: what vanishes meanwhile is the same trouble.
        if now < trouble.not_before {
            return;
        }
        let last_pause = trouble.not_before - trouble.last;
        if now > trouble.not_before + CALM.max(2 * last_pause) {
            trouble.strikes = 0;
        }
        trouble.strikes += 1;
        trouble.losses += 1;
        trouble.last = now;
        trouble.not_before = now + pause(trouble.strikes.saturating_sub(at_once));
        // A deleter that is started anew for each deletion has mostly ended when it is looked at: one name that was caught
        // says more than the number of the last one.
        let before = trouble.by.take();
        trouble.by = match by {
            Some(name) => Some(name.after(before)),
            None => before,
        };
    }

    /// Whether it may be tried now.
    pub fn allows(&self, key: &Key, now: Instant) -> bool {
        self.troubles.get(key).is_none_or(|trouble| now >= trouble.not_before)
    }

    /// Whether it was lost lately: putting it back is healing.
    pub fn is_troubled(&self, key: &Key) -> bool {
        self.troubles.contains_key(key)
    }

    /// When the next of them may be tried.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.troubles.values().map(|trouble| trouble.not_before).filter(|at| *at > now).min()
    }

    /// Forgets what has been in peace for long enough.
    pub fn forget(&mut self, now: Instant) {
        self.troubles.retain(|_, trouble| {
            let pause = trouble.not_before - trouble.last;
            now < trouble.not_before + PEACE.max(2 * pause)
        });
    }

    /// Objects that somebody keeps taking away, with the name if it is known.
    pub fn wars(&self) -> impl Iterator<Item = (&Key, Option<&Name>)> {
        let wars = self.troubles.iter().filter(|(_, trouble)| trouble.losses >= WAR);
        wars.map(|(key, trouble)| (key, trouble.by.as_ref()))
    }
}

fn pause(strikes: u32) -> Duration {
    match strikes.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST.saturating_mul(1 << doublings.min(6)).min(LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::route("10.1.0.0/24".parse().unwrap())
    }

    fn dhclient() -> Name {
        Name::Known("dhclient (process 7)".to_owned())
    }

    #[test]
    fn a_name_that_was_caught_once_stays_until_another_one_is() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        let ended = || Some(Name::Vague("process 9, which has ended".to_owned()));
        let other = Name::Known("ip (process 8)".to_owned());
        let deaths = [ended(), Some(dhclient()), ended(), None, ended(), Some(other.clone())];
        let named: Vec<_> = deaths
            .into_iter()
            .zip(0..)
            .map(|(by, round)| {
                backoff.lost(&key(), by, start + Duration::from_secs(3 * round));
                backoff.wars().next().and_then(|(_, by)| by.cloned())
            })
            .collect();
        assert_eq!(named[3..], [Some(dhclient()), Some(dhclient()), Some(other)]);
    }

    /// Somebody deletes it each 100 ms for ten minutes: it is put back at once, then ever more seldom.
    #[test]
    fn a_persistent_deleter_is_answered_ever_more_seldom_and_named() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        let (mut healed, mut present) = (Vec::new(), true);
        for tick in 0..6_000 {
            let now = start + Duration::from_millis(100) * tick;
            if present {
                backoff.lost(&key(), Some(dhclient()), now);
            }
            present = backoff.allows(&key(), now);
            if present {
                healed.push(now - start);
            }
        }
        assert_eq!(healed.first(), Some(&Duration::ZERO));
        assert!(healed.len() < 20, "{healed:?}");
        assert_eq!(backoff.wars().collect::<Vec<_>>(), [(&key(), Some(&dhclient()))]);
        let pauses: Vec<_> = backoff.next(start + Duration::from_secs(599)).into_iter().collect();
        assert!(pauses.iter().all(|at| *at <= start + Duration::from_secs(660)));
    }

    #[test]
    fn two_losses_are_healed_at_once_and_peace_makes_it_forget() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        for seconds in [0, 1] {
            let now = start + Duration::from_secs(seconds);
            backoff.lost(&key(), None, now);
            assert!(backoff.allows(&key(), now));
        }
        backoff.forget(start + Duration::from_secs(5));
        assert!(backoff.is_troubled(&key()));
        backoff.forget(start + Duration::from_secs(60));
        assert!(!backoff.is_troubled(&key()));
    }

    #[test]
    fn what_the_kernel_refuses_is_tried_after_one_second_then_two() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        backoff.refused(&key(), start);
        assert!(!backoff.allows(&key(), start + Duration::from_millis(999)));
        assert_eq!(backoff.next(start), Some(start + Duration::from_secs(1)));
        let again = start + Duration::from_secs(1);
        backoff.refused(&key(), again);
        assert!(!backoff.allows(&key(), again + Duration::from_millis(1_999)));
        assert!(backoff.allows(&key(), again + Duration::from_secs(2)));
    }

    #[test]
    fn deletions_with_some_time_in_between_are_healed_at_once_each_time_and_still_named() {
        let mut backoff = Backoff::default();
        let start = Instant::now();
        for round in 0..20 {
            let now = start + Duration::from_secs(3 * round);
            backoff.forget(now);
            backoff.lost(&key(), Some(dhclient()), now);
            assert!(backoff.allows(&key(), now), "round {round}");
        }
        assert_eq!(backoff.wars().count(), 1);
    }
}
