//! Sixteen operations at once: how many in a second, and how long the slowest wait when ADD and DEL mix.

use std::collections::VecDeque;
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netns_tests::{Inside, Pod};

use crate::chain::Attachment;
use crate::options::Effort;
use crate::samples::Samples;
use crate::subject::{Attached, Subject};
use crate::{Outcome, process, turns};

/// Before each round: the kernel is to be done with what it put off in the one before.
const REST: Duration = Duration::from_millis(50);
/// How many at once.
pub const WORKERS: usize = 16;

/// What was measured of one subject.
#[derive(Debug, Default)]
pub struct Bursts {
    pub add: Phase,
    pub del: Phase,
    /// As many ADDs as DELs, alternating.
    pub mixed: Phase,
}

/// All rounds of one kind.
#[derive(Debug, Default)]
pub struct Phase {
    /// Each operation, from its own start to its return.
    pub latencies: Samples,
    /// All rounds together, until the last operation had returned.
    returned: Duration,
    /// All rounds together, until no process was left.
    settled: Duration,
}

enum Job {
    Add(Attachment),
    Del(Attached),
}

/// An operation that has returned.
struct Served {
    begin: Instant,
    end: Instant,
    attached: Option<Attached>,
}

/// Measures every subject, in turns; the results are in the subjects' order.
pub fn measure(subjects: &[Subject], pods: &[Pod], effort: &Effort) -> Outcome<Vec<Bursts>> {
    let mut all: Vec<Bursts> = subjects.iter().map(|_| Bursts::default()).collect();
    for turn in 0..effort.burst_rounds {
        for which in turns::order(subjects.len(), turn) {
            if let (Some(subject), Some(bursts)) = (subjects.get(which), all.get_mut(which)) {
                round(subject, pods, effort.burst_pods, bursts)?;
            }
        }
    }
    Ok(all)
}

fn round(subject: &Subject, pods: &[Pod], count: usize, bursts: &mut Bursts) -> Outcome<()> {
    let before = subject.witness.as_ref().map(|witness| witness.inventory()).transpose()?;
    let unchanged = || match (&subject.witness, &before) {
        (Some(witness), Some(before)) => {
            let after = witness.inventory()?;
            let left: Vec<&String> = after.symmetric_difference(before).collect();
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("when weft's last DEL had returned: {left:?}").into())
            }
        }
        _ => Ok(()),
    };
    let nothing = || Ok(());
    let (first, second) = pods.get(..count).ok_or("too few pods")?.split_at(count / 2);
    let adds = |pods: &[Pod]| pods.iter().map(|pod| Job::Add(subject.attachment(pod))).collect::<Vec<_>>();

    let attached = bursts.add.run(subject, adds(pods.get(..count).unwrap_or_default()), nothing)?;
    bursts.del.run(subject, attached.into_iter().map(Job::Del).collect(), unchanged)?;

    let standing = Phase::default().run(subject, adds(first), nothing)?;
    let dels = standing.into_iter().map(Job::Del);
    let alternating = adds(second).into_iter().zip(dels).flat_map(|(add, del)| [add, del]).collect();
    let attached = bursts.mixed.run(subject, alternating, nothing)?;
    Phase::default().run(subject, attached.into_iter().map(Job::Del).collect(), unchanged)?;
    Ok(())
}

impl Phase {
    /// Does all jobs and adds what they took. `at_return` is called when the last one has returned.
    fn run<'a>(
        &mut self,
        subject: &Subject,
        jobs: Vec<Job>,
        at_return: impl FnOnce() -> Outcome<()> + Send + 'a,
    ) -> Outcome<Vec<Attached>> {
        std::thread::sleep(REST);
        let (served, settled) = subject.node.enter(|| -> Outcome<_> {
            let served = serve(subject, jobs)?;
            at_return()?;
            let some_left = process::settle()?;
            Ok((served, some_left.then(Instant::now)))
        })?;
        let begin = served.iter().map(|served| served.begin).min().ok_or("no jobs")?;
        let end = served.iter().map(|served| served.end).max().ok_or("no jobs")?;
        self.returned += end - begin;
        self.settled += settled.unwrap_or(end) - begin;
        self.latencies.extend(&served.iter().map(|served| served.end - served.begin).collect());
        Ok(served.into_iter().filter_map(|served| served.attached).collect())
    }

    /// Operations in a second, until the last had returned.
    pub fn rate_returned(&self) -> f64 {
        self.rate(self.returned)
    }

    /// Operations in a second, until no process was left.
    pub fn rate_settled(&self) -> f64 {
        self.rate(self.settled)
    }

    #[expect(clippy::cast_precision_loss, reason = "a few thousand operations")]
    fn rate(&self, duration: Duration) -> f64 {
        self.latencies.count() as f64 / duration.as_secs_f64()
    }
}

/// On a thread of the node: its workers inherit its place.
fn serve(subject: &Subject, jobs: Vec<Job>) -> Outcome<Vec<Served>> {
    let queue = Mutex::new(VecDeque::from(jobs));
    let start = Barrier::new(WORKERS);
    let work = || {
        let mut served = Vec::new();
        start.wait();
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(job) = job else { return Ok(served) };
            let begin = Instant::now();
            let attached = match job {
                Job::Add(at) => Some(subject.attach(at)?),
                Job::Del(attached) => subject.detach(&attached).map(|()| None)?,
            };
            served.push(Served { begin, end: Instant::now(), attached });
        }
    };
    let served: Vec<Outcome<Vec<Served>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(served) => served,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        workers.into_iter().map(join).collect()
    });
    let served: Outcome<Vec<_>> = served.into_iter().collect();
    Ok(served?.into_iter().flatten().collect())
}

/// Attaches or detaches many pods without a clock.
pub fn detach_all(subject: &Subject, attached: Vec<Attached>) -> Outcome<()> {
    Phase::default().run(subject, attached.into_iter().map(Job::Del).collect(), || Ok(()))?;
    Ok(())
}
