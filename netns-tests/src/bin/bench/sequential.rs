//! One operation at a time: the subjects take turns, pair by pair, in every order.

use std::time::{Duration, Instant};

use netns_tests::Pod;

use crate::options::Effort;
use crate::samples::Samples;
use crate::subject::{Attached, Subject, Timed, Work};
use crate::{Outcome, turns};

/// Before each timed operation: what the kernel puts off (link watch, address configuration, RCU callbacks) must
/// not be counted against the operation that happens to come next.
const REST: Duration = Duration::from_millis(3);

/// What was measured of one subject.
#[derive(Debug, Default)]
pub struct Sequential {
    pub add: Clocks,
    pub del: Clocks,
    /// Processor time of one ADD and its DEL.
    pub cpu: Samples,
    /// How often an address was taken again at once; Weft only.
    pub retaken: usize,
}

/// One verb, on both clocks.
#[derive(Debug, Default)]
pub struct Clocks {
    pub returned: Samples,
    pub settled: Samples,
    /// Each plugin of the chain, in the order of ADD.
    pub steps: Vec<Samples>,
}

/// Measures every subject; the results are in the subjects' order.
pub fn measure(subjects: &[Subject], pods: &[Pod], effort: &Effort) -> Outcome<Vec<Sequential>> {
    let mut all: Vec<Sequential> = subjects.iter().map(|_| Sequential::default()).collect();
    for (turn, pod) in pods.iter().take(effort.pairs).enumerate() {
        for which in turns::order(subjects.len(), turn) {
            if let (Some(subject), Some(result)) = (subjects.get(which), all.get_mut(which)) {
                pair(subject, pod, result)?;
            }
        }
    }
    for (subject, result) in subjects.iter().zip(&mut all) {
        for (pod, other) in pods.iter().zip(pods.iter().skip(1)).take(effort.retakes) {
            result.retaken += retake(subject, pod, other)?;
        }
    }
    Ok(all)
}

fn pair(subject: &Subject, pod: &Pod, result: &mut Sequential) -> Outcome<()> {
    let at = subject.attachment(pod);
    rest();
    let add = subject.timed(|| subject.add(&at), |_| Ok(()))?;
    result.add.note(&add, &add.value.steps);
    let attached = Attached { at, result: add.value.stdout };
    let trace = subject.observe(&attached)?;
    rest();
    let del = subject.timed(|| subject.del(&attached), |_| subject.assert_gone(trace.as_ref()))?;
    result.del.note(&del, &del.value.steps);
    result.cpu.push(add.cpu + del.cpu);
    Ok(())
}

/// Awake, because a runtime that calls a plugin has just been at work: a core that was asleep would be slower.
fn rest() {
    let start = Instant::now();
    while start.elapsed() < REST {
        std::thread::yield_now();
    }
}

/// Not timed: in the moment that DEL has returned, the sets of nf_tables are as before the ADD, and another pod
/// gets the very address.
fn retake(subject: &Subject, pod: &Pod, other: &Pod) -> Outcome<usize> {
    let (Some(witness), Work::Chain(_)) = (&subject.witness, &subject.work) else { return Ok(0) };
    let before = witness.elements();
    let attached = subject.on_node(|| subject.attach(subject.attachment(pod)))?;
    let trace = witness.observe(&attached)?;
    let mut at = subject.attachment(other);
    at.args = format!("IP={}", trace.address);
    let again = subject.on_node(|| {
        subject.detach(&attached)?;
        witness.assert_gone(&trace)?;
        subject.attach(at)
    })?;
    let found = witness.observe(&again)?;
    if found.address != trace.address {
        return Err(format!("asked for {} again, weft gave {}", trace.address, found.address).into());
    }
    let elements = subject.on_node(|| {
        subject.detach(&again)?;
        Ok(witness.elements())
    })?;
    witness.assert_gone(&found)?;
    let changed: Vec<&String> = elements.symmetric_difference(&before).collect();
    if !changed.is_empty() {
        return Err(format!("when weft's DEL had returned, sets of nf_tables differed: {changed:?}").into());
    }
    Ok(1)
}

impl Clocks {
    fn note<T>(&mut self, timed: &Timed<T>, steps: &[Duration]) {
        self.returned.push(timed.returned);
        self.settled.push(timed.settled);
        self.steps.resize(steps.len(), Samples::default());
        for (samples, step) in self.steps.iter_mut().zip(steps) {
            samples.push(*step);
        }
    }
}
