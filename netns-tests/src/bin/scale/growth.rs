//! One real daemon in clusters of growing size: its start, its restart, and one event.

use std::time::{Duration, Instant};

use netns_tests::cluster::ClusterLab;

use crate::kernel::{self, Ear, Sign};
use crate::meter::{self, Requests, float, median};
use crate::options::Effort;
use crate::report::{Goal, Table};
use crate::world::{BLOCKS, Backend, Machine, World, address, block};
use crate::{Outcome, millis, say};

/// What a `weftd` of 5,000 peers may take (issue 3, point 7).
const MEMORY_MB: f64 = 60.0;
const SYNC_MS: f64 = 2000.0;
/// Events whose processor time is read together: less than that the accounts of the kernel do not tell well.
const BATCH: usize = 10;

pub fn measure(lab: &ClusterLab, effort: &Effort, tables: &mut Vec<Table>) -> Outcome<()> {
    for backend in [Backend::Vxlan, Backend::Routes] {
        let columns = effort.sizes.iter().map(|nodes| format!("{nodes} nodes")).collect();
        let title = format!("one weftd, backend {}, {BLOCKS} blocks a node, growing cluster", backend.name());
        let mut table = Table::new(&format!("growth-{}", backend.name()), &title, columns);
        for (column, nodes) in effort.sizes.iter().enumerate() {
            say(&format!("{} with {nodes} nodes", backend.name()));
            let world = World::write(&lab.etcd, "growth", backend, *nodes);
            let host = 30 + column + if backend == Backend::Routes { 100 } else { 0 };
            let machine = world.machine(lab, &format!("{}{nodes}", &backend.name()[..1]), host);
            let put = |label: &str, unit, value, goal| table.put(column, label, unit, value, goal);
            Run { lab, world: &world, machine: &machine, put }.all(effort)?;
            machine.weftd.kill();
        }
        tables.push(table);
    }
    Ok(())
}

struct Run<'a, P> {
    lab: &'a ClusterLab,
    world: &'a World,
    machine: &'a Machine,
    put: P,
}

impl<P: FnMut(&str, &'static str, f64, Goal)> Run<'_, P> {
    fn all(&mut self, effort: &Effort) -> Outcome<()> {
        self.start()?;
        self.events(effort.events)?;
        self.restart()
    }

    fn start(&mut self) -> Outcome<()> {
        let (machine, etcd) = (self.machine, &self.lab.etcd);
        let (requests, bytes) = (Requests::now(etcd), meter::received(&machine.node));
        let started = Instant::now();
        machine.weftd.start(&[]);
        let took = machine.wait_for(self.world.nodes, self.world.objects(), started)?;
        let cpu = meter::cpu(machine.pid());
        let found = kernel::count(&machine.node)?;
        if found != self.world.objects() {
            return Err(
                format!("weftd is in sync with {found} objects instead of {}", self.world.objects()).into()
            );
        }
        machine.wait_ready()?;
        kernel::wait_rest(&machine.node)?;
        let requests = Requests::now(etcd).since(&requests);
        let words: Vec<String> = requests.iter().map(|(method, count)| format!("{count} {method}")).collect();
        say(&format!("  requests at start: {}", words.join(", ")));
        (self.put)("start to all routes in the kernel", "ms", millis(took), Goal::AtMost(SYNC_MS));
        (self.put)("  processor time of it", "ms", millis(cpu), Goal::None);
        (self.put)(
            "  memory at its highest (VmHWM)",
            "MB",
            meter::memory(machine.pid(), "VmHWM"),
            Goal::AtMost(MEMORY_MB),
        );
        (self.put)(
            "  memory then (VmRSS)",
            "MB",
            meter::memory(machine.pid(), "VmRSS"),
            Goal::AtMost(MEMORY_MB),
        );
        (self.put)("  requests to etcd", "", meter::total(&requests), Goal::None);
        let bytes = meter::received(&machine.node) - bytes;
        (self.put)("  bytes received", "kB", float(bytes) / 1e3, Goal::None);
        (self.put)("  netlink requests", "", float(machine.requests()), Goal::None);
        Ok(())
    }

    /// A node gives a block back, or claims it again.
    fn events(&mut self, events: usize) -> Outcome<()> {
        let world = self.world;
        self.each("block", events, |number| {
            let (node, round) = (number % world.nodes, number / world.nodes);
            let blocks = if round.is_multiple_of(2) { BLOCKS - 1 } else { BLOCKS };
            let record = world.record(node, blocks, 0, 2 + round as u64);
            (record, Sign::Route(block(node, BLOCKS - 1).0.into()))
        })?;
        // A node moves with the blocks that it has by now.
        let has = |node: usize| {
            let times = events / world.nodes + usize::from(node < events % world.nodes);
            if times.is_multiple_of(2) { BLOCKS } else { BLOCKS - 1 }
        };
        self.each("move", events.div_ceil(5), |number| {
            let (node, round) = (number % world.nodes, number / world.nodes);
            let place = 1 + round % 3;
            let record = world.record(node, has(node), place, 1_000_000 + round as u64);
            (record, Sign::Way(address(node, place).into()))
        })?;
        let memory = meter::memory(self.machine.pid(), "VmHWM");
        (self.put)("memory after all events (VmHWM)", "MB", memory, Goal::AtMost(MEMORY_MB));
        Ok(())
    }

    /// Many events of one kind, each when the kernel has the one before.
    fn each(
        &mut self,
        kind: &str,
        events: usize,
        event: impl Fn(usize) -> ((String, String), Sign),
    ) -> Outcome<()> {
        let (machine, etcd) = (self.machine, &self.lab.etcd);
        let mut ears = [Ear::new(&machine.node)?];
        let (mut took, mut cpu, mut changes) = (Vec::new(), Vec::new(), 0);
        let (first, bytes) = (machine.requests(), meter::received(&machine.node));
        let numbers: Vec<usize> = (0..events).collect();
        for batch in numbers.chunks(BATCH) {
            let before = meter::cpu(machine.pid());
            for number in batch {
                let ((key, value), sign) = event(*number);
                let since = Instant::now();
                etcd.put(&key, &value);
                let (at, heard) = kernel::wait(&mut ears, sign, since)?;
                took.extend(at.into_iter().map(millis));
                changes += heard;
            }
            // What follows the last change in the kernel is a part of it.
            std::thread::sleep(Duration::from_millis(20));
            cpu.push(millis(meter::cpu(machine.pid()).saturating_sub(before)) / batch.len() as f64);
        }
        let (bytes, sent) = (meter::received(&machine.node) - bytes, machine.requests() - first);
        let per_event = |count: u64| float(count) / events as f64;
        let mut put =
            |what: &str, unit, value, goal| (self.put)(&format!("{kind}: {what}"), unit, value, goal);
        put("from etcd to the kernel", "ms", median(took), Goal::None);
        put("  processor time of weftd", "ms", median(cpu), Goal::Constant(0.5));
        put("  netlink requests", "", per_event(sent), Goal::Constant(1.0));
        put("  changes in the kernel", "", per_event(changes as u64), Goal::Constant(1.0));
        put("  bytes received", "B", per_event(bytes), Goal::Constant(100.0));
        Ok(())
    }

    /// Nothing has changed meanwhile.
    fn restart(&mut self) -> Outcome<()> {
        let (machine, etcd) = (self.machine, &self.lab.etcd);
        // All events have arrived: each was waited for.
        let objects = kernel::count(&machine.node)?;
        machine.weftd.stop();
        let mut ear = Ear::new(&machine.node)?;
        let (requests, bytes) = (Requests::now(etcd), meter::received(&machine.node));
        let started = Instant::now();
        machine.weftd.start(&[]);
        let took = machine.wait_for(self.world.nodes, objects, started)?;
        machine.wait_ready()?;
        let (changes, _) = ear.hear(Sign::Route([0, 0, 0, 0].into()))?;
        if kernel::count(&machine.node)? != objects {
            return Err("the kernel has other routes after a restart".into());
        }
        let requests = meter::total(&Requests::now(etcd).since(&requests));
        (self.put)("restart with nothing to change", "ms", millis(took), Goal::AtMost(SYNC_MS));
        (self.put)("  changes in the kernel at restart", "", changes as f64, Goal::AtMost(0.0));
        (self.put)("  requests to etcd at restart", "", requests, Goal::None);
        let bytes = meter::received(&machine.node) - bytes;
        (self.put)("  bytes received at restart", "kB", float(bytes) / 1e3, Goal::None);
        (self.put)(
            "  memory at restart (VmHWM)",
            "MB",
            meter::memory(machine.pid(), "VmHWM"),
            Goal::AtMost(MEMORY_MB),
        );
        Ok(())
    }
}
