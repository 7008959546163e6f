//! Whether ADD gets slower with the number of pods, and of addresses that are taken.

mod fill;

use netns_tests::{Lab, Pod};

use crate::chain::Chain;
use crate::facts::Programs;
use crate::options::Effort;
use crate::samples::Samples;
use crate::subject::{Attached, Role, Subject, Work};
use crate::{Outcome, burst, chains, say};

/// How many of the first and of the last pods are compared.
const SAMPLE: usize = 100;
/// How many DELs are timed at either end. Each waits for the kernel's barrier, so fewer.
const DELETIONS: usize = 50;

/// Several runs of one kind.
#[derive(Debug)]
pub struct Growth {
    pub key: &'static str,
    pub title: String,
    /// The project promises that this kind does not grow.
    pub promised: bool,
    pub runs: Vec<Run>,
}

/// Medians in milliseconds, with few and with many pods on the node.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub add: (f64, f64),
    pub del: (f64, f64),
}

/// Measures all kinds, in turn.
pub fn measure(lab: &Lab, programs: &Programs, pods: &[Pod], effort: &Effort) -> Outcome<Vec<Growth>> {
    let taken = effort.growth_taken;
    let kinds = [
        ("veth", "veth mode".to_owned(), true, true),
        ("veth-taken", format!("veth mode, {taken} addresses of the /16 taken"), true, true),
        ("bridge", "bridge mode".to_owned(), false, false),
    ];
    let mut all = Vec::new();
    let mut subjects = Vec::new();
    for (key, title, veth, promised) in kinds {
        let conflist = chains::growing(veth);
        let node = lab.node(&format!("growth-{key}"));
        let work = Work::Chain(Chain::new(&conflist, &programs.weft.dir)?);
        let mut subject = Subject::new(&programs.weft.label, Role::Weft, node, work);
        subject.settle_in(pods)?;
        if key == "veth-taken" {
            fill::take_addresses(&subject.node, &conflist, taken)?;
        }
        subjects.push(subject);
        all.push(Growth { key, title, promised, runs: Vec::new() });
    }
    for number in 1..=effort.growth_runs {
        for (subject, growth) in subjects.iter().zip(&mut all) {
            say(&format!("growth to {} pods, run {number}: {}", effort.growth_pods, growth.title));
            growth.runs.push(run(subject, pods.get(..effort.growth_pods).ok_or("too few pods")?)?);
        }
    }
    Ok(all)
}

fn run(subject: &Subject, pods: &[Pod]) -> Outcome<Run> {
    let mut added = Samples::default();
    let mut attached = Vec::new();
    for pod in pods {
        let at = subject.attachment(pod);
        let timed = subject.timed(|| subject.attach(at), |_| Ok(()))?;
        added.push(timed.returned);
        attached.push(timed.value);
    }
    let last = attached.split_off(attached.len().saturating_sub(DELETIONS));
    let many = delete(subject, &last)?;
    burst::detach_all(subject, attached.split_off(DELETIONS))?;
    let few = delete(subject, &attached)?;
    let last = added.part(pods.len() - SAMPLE, pods.len()).median();
    Ok(Run { add: (added.part(0, SAMPLE).median(), last), del: (few.median(), many.median()) })
}

fn delete(subject: &Subject, attached: &[Attached]) -> Outcome<Samples> {
    attached.iter().map(|one| Ok(subject.timed(|| subject.detach(one), |()| Ok(()))?.returned)).collect()
}

impl Growth {
    /// The run that grew least: noise only adds.
    pub fn best(&self) -> Option<Run> {
        let growth = |run: &Run| run.add.1 / run.add.0;
        self.runs.iter().copied().min_by(|a, b| growth(a).total_cmp(&growth(b)))
    }
}
