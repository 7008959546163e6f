//! When a silent watch is asked for a sign of life, and when it is given up. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// How long a watch has been silent.
#[derive(Debug)]
pub struct Idle {
    limit: Duration,
    sign_of_life: Duration,
    heard: Instant,
    asked: Option<Instant>,
}

/// What is to be done about a silent watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It is not silent for so long.
    Nothing,
    /// Ask for a sign of life.
    Ask,
    /// It gave none.
    GiveUp,
}

impl Idle {
    /// A watch that begins now.
    pub fn new(now: Instant, limit: Duration, sign_of_life: Duration) -> Self {
        Self { limit, sign_of_life, heard: now, asked: None }
    }

    /// Something came.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.asked = None;
    }

    /// When to [`Idle::check`].
    pub fn due(&self) -> Instant {
        self.asked.map_or(self.heard + self.limit, |asked| asked + self.sign_of_life)
    }

    /// What is to be done. The time for an answer begins when this says to ask: this process may have been
    /// stopped itself, which must not count against the store.
    pub fn check(&mut self, now: Instant) -> Due {
        if now < self.due() {
            Due::Nothing
        } else if self.asked.is_some() {
            Due::GiveUp
        } else {
            self.asked = Some(now);
            Due::Ask
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);
    const SIGN: Duration = Duration::from_secs(5);

    #[test]
    fn a_silent_watch_is_asked_then_given_up() {
        let start = Instant::now();
        let mut idle = Idle::new(start, LIMIT, SIGN);
        assert_eq!(idle.check(start + LIMIT / 2), Due::Nothing);
        assert_eq!(idle.check(start + LIMIT), Due::Ask);
        assert_eq!(idle.check(start + LIMIT + SIGN / 2), Due::Nothing);
        assert_eq!(idle.check(start + LIMIT + SIGN), Due::GiveUp);
    }

    #[test]
    fn a_sign_of_life_begins_the_wait_anew() {
        let start = Instant::now();
        let mut idle = Idle::new(start, LIMIT, SIGN);
        idle.check(start + LIMIT);
        idle.heard(start + LIMIT + SIGN / 2);
        assert_eq!(idle.due(), start + LIMIT * 2 + SIGN / 2);
    }

    #[test]
    fn a_process_that_was_stopped_itself_asks_before_it_gives_up() {
        let start = Instant::now();
        let mut idle = Idle::new(start, LIMIT, SIGN);
        assert_eq!(idle.check(start + LIMIT * 100), Due::Ask);
    }
}
