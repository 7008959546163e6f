//! Whether ADD gets slower with the number of pods, and of addresses that are taken. The bare kernel grows, too:
//! beside it stands what is ours.

mod fill;

use std::time::Duration;

use netns_tests::{Inside, Lab, Pod};

use crate::chain::Chain;
use crate::facts::{Meter, Programs};
use crate::options::Effort;
use crate::samples::Samples;
use crate::subject::{Attached, Role, Subject, Work};
use crate::{Outcome, burst, chains, say};

/// How many of the first and of the last pods are compared.
const SAMPLE: usize = 100;
/// How many DELs are timed at either end. Each waits for the kernel's barrier, so fewer.
const DELETIONS: usize = 50;

/// A thousand namespaces take some five seconds.
const CLEANUP_LIMIT: Duration = Duration::from_secs(60);

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
    pub add: Pair,
    pub del: Pair,
}

/// With few pods, and with many.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub few: f64,
    pub many: f64,
}

#[derive(Clone, Copy)]
struct Kind {
    key: &'static str,
    title: &'static str,
    veth: bool,
    bare: bool,
    taken: bool,
}

const KINDS: [Kind; 5] = [
    Kind { key: "veth", title: "veth mode", veth: true, bare: false, taken: false },
    Kind {
        key: "veth_taken",
        title: "veth mode, addresses of the /16 taken:",
        veth: true,
        bare: false,
        taken: true,
    },
    Kind { key: "veth_floor", title: "bare kernel, veth", veth: true, bare: true, taken: false },
    Kind { key: "bridge", title: "bridge mode", veth: false, bare: false, taken: false },
    Kind { key: "bridge_floor", title: "bare kernel, bridge", veth: false, bare: true, taken: false },
];

/// Measures all kinds, in turns. Those of which nothing is promised once only.
pub fn measure(
    lab: &Lab,
    programs: &Programs,
    pods: &[Pod],
    effort: &Effort,
    meter: &mut Meter,
) -> Outcome<Vec<Growth>> {
    let mut all = Vec::new();
    for kind in KINDS {
        let subject = kind.subject(lab, programs, pods, effort.growth_taken)?;
        let count = if kind.taken { format!(" {}", effort.growth_taken) } else { String::new() };
        let title = format!("{}{count}", kind.title);
        let growth = Growth { key: kind.key, title, promised: kind.veth && !kind.bare, runs: Vec::new() };
        all.push((subject, growth));
    }
    for number in 0..effort.growth_runs {
        say(&format!("growth to {} pods, run {}", effort.growth_pods, number + 1));
        let mut wanted: Vec<_> =
            all.iter_mut().filter(|(_, growth)| growth.promised || number == 0).collect();
        // Each time another one begins.
        let first = number % wanted.len().max(1);
        wanted.rotate_left(first);
        for (subject, growth) in wanted {
            growth.runs.push(run(subject, effort.growth_pods, meter)?);
        }
    }
    Ok(all.into_iter().map(|(_, growth)| growth).collect())
}

impl Kind {
    fn subject(self, lab: &Lab, programs: &Programs, pods: &[Pod], taken: usize) -> Outcome<Subject> {
        let node = lab.node(&format!("growth-{}", self.key));
        let conflist = chains::growing(self.veth);
        let (role, work) = if self.bare {
            (Role::Floor, Work::Floor(chains::floor(&node, !self.veth, false)?))
        } else {
            (Role::Weft, Work::Chain(Chain::new(&conflist, &programs.weft.dir)?))
        };
        let mut subject = Subject::new(self.title, role, node, work);
        subject.settle_in(pods)?;
        if self.taken {
            fill::take_addresses(&subject.node, &conflist, taken)?;
        }
        Ok(subject)
    }
}

/// One run, with namespaces of its own: the kernel's tables of namespaces, too, are empty for the first pod and
/// full for the last, as on a real node.
fn run(subject: &Subject, count: usize, meter: &mut Meter) -> Outcome<Run> {
    let own = Lab::new("growth");
    let home = own.node("pods");
    let mut added = Samples::default();
    let mut attached = Vec::new();
    for number in 0..count {
        let at = subject.attachment(&home.pod(&number.to_string()));
        let timed = subject.timed(|| subject.attach(at), |_| Ok(()))?;
        added.push(timed.returned);
        attached.push(timed.value);
    }
    let last = attached.split_off(attached.len().saturating_sub(DELETIONS));
    let many = delete(subject, &last)?.median();
    burst::detach_all(subject, attached.split_off(DELETIONS))?;
    let few = delete(subject, &attached)?.median();
    meter.leave_out(|| await_cleanup(own))?;
    let first = added.part(0, SAMPLE).median();
    let last = added.part(count - SAMPLE, count).median();
    Ok(Run { add: Pair { few: first, many: last }, del: Pair { few, many } })
}

/// Takes a run's namespaces away. They end behind the scenes, one batch after the other, which takes seconds of
/// processor time: waits for the end of one more.
fn await_cleanup(own: Lab) {
    drop(own);
    let lab = Lab::new("cleanup");
    let (node, sentinel) = (lab.node("cleanup"), lab.node("sentinel"));
    let pod = sentinel.pod("last");
    let wire = lab.wire((&node, &[]), (&pod, &[]));
    pod.destroy_netns();
    let is_gone = || !node.try_run(["ip", "link", "show", "dev", &wire.link]).status.success();
    netns_tests::wait_until("the kernel's clean-up of namespaces", CLEANUP_LIMIT, is_gone);
}

fn delete(subject: &Subject, attached: &[Attached]) -> Outcome<Samples> {
    attached.iter().map(|one| Ok(subject.timed(|| subject.detach(one), |()| Ok(()))?.returned)).collect()
}

impl Pair {
    pub fn growth(self) -> f64 {
        self.many / self.few
    }
}

impl Growth {
    /// Growth of ADD in the run that grew least. A disturbance of the first pods makes it smaller than it is.
    pub fn best_run(&self) -> f64 {
        self.runs.iter().map(|run| run.add.growth()).fold(f64::INFINITY, f64::min)
    }

    /// Growth of ADD from the best beginning of all runs to the best end: disturbances only ever add.
    pub fn undisturbed(&self) -> f64 {
        let best = |of: fn(&Run) -> f64| self.runs.iter().map(of).fold(f64::INFINITY, f64::min);
        Pair { few: best(|run| run.add.few), many: best(|run| run.add.many) }.growth()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_beginning_does_not_hide_growth() {
        let run = |few, many| Run { add: Pair { few, many }, del: Pair { few: 1.0, many: 1.0 } };
        let runs = vec![run(1.0, 2.0), run(4.0, 2.0)];
        let growth = Growth { key: "", title: String::new(), promised: true, runs };
        assert!((growth.best_run() - 0.5).abs() < 1e-9);
        assert!((growth.undisturbed() - 2.0).abs() < 1e-9);
    }
}
