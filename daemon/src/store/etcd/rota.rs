//! Which endpoint is asked next, and when one that failed is asked again. Pure.

use std::time::Duration;

/// The endpoints by their index, and how they did.
#[derive(Debug)]
pub struct Rota {
    members: Vec<Member>,
    current: usize,
    first_pause: Duration,
    longest_pause: Duration,
}

#[derive(Clone, Debug, Default)]
struct Member {
    failures: u32,
    paused_until: Duration,
}

impl Rota {
    /// All are fine; `first` is asked first.
    pub fn new(members: usize, first: usize, first_pause: Duration, longest_pause: Duration) -> Self {
        let current = first.checked_rem(members).unwrap_or(0);
        Self { members: vec![Member::default(); members], current, first_pause, longest_pause }
    }

    /// Whom to ask, in this order: from the current one on, without those that pause. If all do, the one whose pause ends first:
    /// an asker is to hear why it fails, and etcd is not to be hammered.
    pub fn order(&self, now: Duration) -> Vec<usize> {
        let count = self.members.len();
        let all = (0..count).map(|step| (self.current + step) % count);
        let ready: Vec<_> = all.clone().filter(|&index| self.pause_of(index) <= now).collect();
        if ready.is_empty() {
            all.min_by_key(|&index| self.pause_of(index)).into_iter().collect()
        } else {
            ready
        }
    }

    /// It answered: it stays the first to be asked.
    pub fn succeeded(&mut self, index: usize) {
        self.current = index;
        if let Some(member) = self.members.get_mut(index) {
            *member = Member::default();
        }
    }

    /// It did not answer, or badly: it pauses. `jitter` in 0..=1 spreads a fleet.
    pub fn failed(&mut self, index: usize, now: Duration, jitter: f64) {
        let count = self.members.len();
        let Some(member) = self.members.get_mut(index) else { return };
        let doubled = self.first_pause.saturating_mul(1 << member.failures.min(16));
        let pause = doubled.min(self.longest_pause).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        member.failures = member.failures.saturating_add(1);
        member.paused_until = now + pause;
        if index == self.current {
            self.current = (index + 1) % count;
        }
    }

    /// How long until somebody may be asked.
    pub fn wait(&self, now: Duration) -> Duration {
        let first = self.members.iter().map(|member| member.paused_until).min();
        first.unwrap_or_default().saturating_sub(now)
    }

    fn pause_of(&self, index: usize) -> Duration {
        self.members.get(index).map_or(Duration::ZERO, |member| member.paused_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn rota(members: usize, first: usize) -> Rota {
        Rota::new(members, first, Duration::from_millis(250), Duration::from_secs(10))
    }

    #[test]
    fn the_order_begins_with_the_first_and_goes_round() {
        assert_eq!(rota(3, 7).order(NOW), [1, 2, 0]);
    }

    #[test]
    fn one_that_failed_is_left_out_until_its_pause_ends() {
        let mut rota = rota(3, 0);
        rota.failed(0, NOW, 1.0);
        assert_eq!(rota.order(NOW), [1, 2]);
        assert_eq!(rota.order(NOW + Duration::from_millis(250)), [1, 2, 0]);
    }

    #[test]
    fn when_all_pause_only_the_next_to_be_ready_is_asked() {
        let mut rota = rota(3, 0);
        rota.failed(0, NOW, 1.0);
        rota.failed(1, NOW, 0.0);
        rota.failed(2, NOW, 1.0);
        assert_eq!(rota.order(NOW), [1]);
        assert_eq!(rota.wait(NOW), Duration::from_millis(125));
    }

    #[test]
    fn the_pause_doubles_to_its_limit_and_success_ends_it() {
        let mut rota = rota(1, 0);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            rota.failed(0, NOW, 1.0);
            pauses.push(rota.wait(NOW).as_millis());
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        rota.succeeded(0);
        assert_eq!(rota.wait(NOW), Duration::ZERO);
    }

    #[test]
    fn the_one_that_answered_stays_the_first() {
        let mut rota = rota(3, 0);
        rota.failed(0, NOW, 1.0);
        rota.succeeded(2);
        assert_eq!(rota.order(NOW + Duration::from_secs(60)), [2, 0, 1]);
    }
}
