//! Persistent keepalives. `Tunn` has them, but its own stop for ever once a peer was away for 90 seconds.

use std::time::{Duration, Instant};

/// Pauses between attempts to reach a peer that does not answer.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// One peer's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keepalive {
    seconds: u16,
    /// When something was last sent, and how many bytes had been by then.
    last: Option<(Instant, u64)>,
    retry: Option<(Instant, Duration)>,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// An empty packet.
    Keepalive,
    /// There is no session: a new handshake.
    Handshake,
}

impl Keepalive {
    /// Seconds of silence after which an empty packet is sent; 0 is never. From off to on, one is sent at once.
    pub fn set(&mut self, seconds: u16) {
        *self = Self { seconds, ..Self::default() };
    }

    /// See [`Keepalive::set`].
    pub fn seconds(&self) -> u16 {
        self.seconds
    }

    /// What is due now. `sent`: all bytes that were ever sent to the peer.
    pub fn due(&mut self, now: Instant, session: bool, sent: u64) -> Due {
        if self.seconds == 0 {
            return Due::Nothing;
        }
        if !session {
            return self.attempt(now);
        }
        self.retry = None;
        let silent = match self.last {
            Some((_, before)) if before != sent => {
                self.last = Some((now, sent));
                return Due::Nothing;
            }
            Some((since, _)) => now.duration_since(since) >= Duration::from_secs(self.seconds.into()),
            None => true,
        };
        if silent {
            self.last = Some((now, sent));
            return Due::Keepalive;
        }
        Due::Nothing
    }

    fn attempt(&mut self, now: Instant) -> Due {
        let pause = match self.retry {
            Some((next, _)) if now < next => return Due::Nothing,
            Some((_, pause)) => (pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        self.retry = Some((now + pause, pause));
        Due::Handshake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        keepalive: &mut Keepalive,
        start: Instant,
        seconds: std::ops::Range<u64>,
        session: bool,
        sent: u64,
    ) -> Vec<(u64, Due)> {
        let due =
            seconds.map(|second| (second, keepalive.due(start + Duration::from_secs(second), session, sent)));
        due.filter(|(_, due)| *due != Due::Nothing).collect()
    }

    #[test]
    fn silence_is_broken_at_the_interval_and_traffic_puts_it_off() {
        let start = Instant::now();
        let mut keepalive = Keepalive::default();
        assert_eq!(run(&mut keepalive, start, 0..100, true, 0), []);
        keepalive.set(25);
        let due = run(&mut keepalive, start, 0..60, true, 0);
        assert_eq!(due, [(0, Due::Keepalive), (25, Due::Keepalive), (50, Due::Keepalive)]);
        assert_eq!(run(&mut keepalive, start, 60..90, true, 5), [(85, Due::Keepalive)]);
    }

    #[test]
    fn a_peer_that_is_away_is_tried_again_and_again_ever_more_seldom() {
        let start = Instant::now();
        let mut keepalive = Keepalive::default();
        keepalive.set(25);
        let tried: Vec<u64> =
            run(&mut keepalive, start, 0..300, false, 0).iter().map(|(at, _)| *at).collect();
        assert_eq!(tried, [0, 5, 15, 35, 75, 135, 195, 255]);
        assert_eq!(run(&mut keepalive, start, 300..301, true, 1), [(300, Due::Keepalive)]);
    }
}
