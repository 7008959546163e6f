//! What is measured: a chain of plugins or the bare kernel, on a node of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use netns_tests::{Inside, Node, Pod};

use crate::chain::{Attachment, Chain, Done};
use crate::floor::Floor;
use crate::witness::{Trace, Witness};
use crate::{Outcome, process};

/// ADD and DEL pairs before any clock runs: programs and libraries are in the page cache, tables and sysctls made.
const WARM_UP: usize = 3;

/// Which column a subject's figures belong into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Reference,
    Weft,
    Floor,
}

/// What a subject does.
#[derive(Debug)]
pub enum Work {
    Chain(Chain),
    Floor(Floor),
}

/// Something to measure.
#[derive(Debug)]
pub struct Subject {
    pub label: String,
    pub role: Role,
    pub node: Node,
    pub work: Work,
    /// Looks for traces; only Weft's are asked for, and only once it has settled in.
    pub witness: Option<Witness>,
    serial: AtomicUsize,
}

/// A pod that is attached, with what DEL needs.
#[derive(Clone, Debug)]
pub struct Attached {
    pub at: Attachment,
    pub result: Vec<u8>,
}

/// One operation on both clocks.
#[derive(Debug)]
pub struct Timed<T> {
    pub value: T,
    /// Until the last process of the chain had returned.
    pub returned: Duration,
    /// Until no process was left.
    pub settled: Duration,
    /// Processor time of all of them.
    pub cpu: Duration,
}

impl Subject {
    pub fn new(label: &str, role: Role, node: Node, work: Work) -> Self {
        Self { label: label.to_owned(), role, node, work, witness: None, serial: AtomicUsize::new(1) }
    }

    /// Attaches a pod for good, so that a bridge never loses its last port, and warms up.
    pub fn settle_in(&mut self, pods: &[Pod]) -> Outcome<()> {
        let resident = self.node.pod("resident");
        self.on_node(|| self.add(&self.attachment(&resident)))?;
        if let (Role::Weft, Work::Chain(chain)) = (self.role, &self.work) {
            self.witness = Some(Witness::new(&self.node, &chain.network)?);
        }
        for pod in pods.iter().take(WARM_UP) {
            let attached = self.on_node(|| self.attach(self.attachment(pod)))?;
            let trace = self.observe(&attached)?;
            self.on_node(|| {
                self.detach(&attached)?;
                self.assert_gone(trace.as_ref())
            })?;
        }
        Ok(())
    }

    /// What an ADD made; `None` for those who are not looked after.
    pub fn observe(&self, attached: &Attached) -> Outcome<Option<Trace>> {
        self.witness.as_ref().map(|witness| witness.observe(attached)).transpose()
    }

    /// That nothing of it is left.
    pub fn assert_gone(&self, trace: Option<&Trace>) -> Outcome<()> {
        match (&self.witness, trace) {
            (Some(witness), Some(trace)) => witness.assert_gone(trace),
            _ => Ok(()),
        }
    }

    /// A fresh attachment of a pod: a container id that was never used.
    pub fn attachment(&self, pod: &Pod) -> Attachment {
        let number = self.serial.fetch_add(1, Ordering::Relaxed);
        Attachment {
            container_id: format!("{number:064x}"),
            netns: pod.netns_path().to_owned(),
            number,
            args: String::new(),
        }
    }

    /// Only on a thread that lives on the node; see [`Subject::on_node`].
    pub fn add(&self, at: &Attachment) -> Outcome<Done> {
        match &self.work {
            Work::Chain(chain) => chain.add(at),
            Work::Floor(floor) => floor.run(crate::floor::ADD, at),
        }
    }

    /// As [`Subject::add`].
    pub fn del(&self, attached: &Attached) -> Outcome<Done> {
        match &self.work {
            Work::Chain(chain) => chain.del(&attached.at, &attached.result),
            Work::Floor(floor) => floor.run(crate::floor::DEL, &attached.at),
        }
    }

    /// ADD, keeping what DEL needs.
    pub fn attach(&self, at: Attachment) -> Outcome<Attached> {
        let result = self.add(&at)?.stdout;
        Ok(Attached { at, result })
    }

    /// DEL, whatever it says.
    pub fn detach(&self, attached: &Attached) -> Outcome<()> {
        self.del(attached).map(drop)
    }

    /// Does something on a thread in the node's namespaces, and waits until no process is left of it.
    pub fn on_node<T: Send>(&self, work: impl FnOnce() -> Outcome<T> + Send) -> Outcome<T> {
        self.node.enter(|| {
            let value = work()?;
            process::settle()?;
            Ok(value)
        })
    }

    /// Measures one operation. `at_return` looks at the node in the moment that the operation has returned.
    pub fn timed<T: Send>(
        &self,
        operation: impl FnOnce() -> Outcome<T> + Send,
        at_return: impl FnOnce(&T) -> Outcome<()> + Send,
    ) -> Outcome<Timed<T>> {
        self.node.enter(|| {
            let cpu = process::cpu_spent()?;
            let start = Instant::now();
            let value = operation()?;
            let returned = start.elapsed();
            at_return(&value)?;
            // What took no longer than the operation itself was not slowed by our look at the node.
            let settled = if process::settle()? { start.elapsed() } else { returned };
            Ok(Timed { value, returned, settled, cpu: process::cpu_spent()?.saturating_sub(cpu) })
        })
    }
}
