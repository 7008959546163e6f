//! Many real daemons and many more watches on one etcd.

use std::time::{Duration, Instant};

use netns_tests::cluster::{ClusterLab, Segment};

use crate::kernel::{self, Ear, Sign};
use crate::meter::{self, Requests, float, median};
use crate::options::Effort;
use crate::report::{Goal, Table};
use crate::watchers::Watchers;
use crate::world::{BLOCKS, Backend, Machine, World, block};
use crate::{Outcome, millis, say};

/// Host number of the first daemon.
const FIRST_HOST: usize = 180;

pub fn measure(lab: &ClusterLab, effort: &Effort) -> Outcome<Table> {
    let Effort { fanout_nodes: nodes, daemons, watches, .. } = *effort;
    say(&format!("{daemons} daemons and {watches} watches at once, {nodes} nodes"));
    let title =
        format!("{daemons} real weftd and {watches} watch streams at once, {nodes} simulated nodes, vxlan");
    let mut table = Table::new("fanout", &title, vec!["all".to_owned()]);
    let world = World::write(&lab.etcd, "fanout", Backend::Vxlan, nodes);
    let watching = lab.lab().node("watching");
    lab.wire.plug(lab.lab(), &watching, Segment::Near, FIRST_HOST - 1);
    let endpoint = lab.etcd.endpoints().pop().ok_or("etcd has no endpoint")?;
    let watchers = Watchers::start(&watching, &endpoint, &world.prefix, watches)?;
    let machines: Vec<Machine> =
        (0..daemons).map(|number| world.machine(lab, &format!("d{number}"), FIRST_HOST + number)).collect();

    let mut put = |label: &str, unit, value, goal| table.put(0, label, unit, value, goal);
    start(lab, &world, &machines, &mut put)?;
    events(lab, &world, &machines, &watchers, effort, &mut put)?;
    machines.iter().for_each(|machine| machine.weftd.kill());
    Ok(table)
}

fn start(
    lab: &ClusterLab,
    world: &World,
    machines: &[Machine],
    put: &mut impl FnMut(&str, &'static str, f64, Goal),
) -> Outcome<()> {
    let (requests, cpu) = (Requests::now(&lab.etcd), meter::cpu(lab.etcd.pid()));
    let bytes: Vec<u64> = machines.iter().map(|machine| meter::received(&machine.node)).collect();
    let started = Instant::now();
    machines.iter().for_each(|machine| machine.weftd.start(&[]));
    // Each has a block of its own, and all others' have come by events: one route, neighbour and entry for each.
    let (peers, objects) = (world.nodes + machines.len() - 1, world.objects() + 3 * (machines.len() - 1));
    let mut waiting: Vec<&Machine> = machines.iter().collect();
    while !waiting.is_empty() {
        waiting.retain(|machine| !machine.has(peers, objects));
        if started.elapsed() > Duration::from_secs(120) {
            let names: Vec<&str> = waiting.iter().map(|machine| machine.node.name()).collect();
            let status = waiting.first().and_then(|machine| machine.status()).unwrap_or_default();
            return Err(
                format!("{} of the daemons are not in sync: {names:?}\n{status:#}", waiting.len()).into()
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    put("start to all routes on every node", "ms", millis(started.elapsed()), Goal::None);
    let cpu = meter::cpu(lab.etcd.pid()).saturating_sub(cpu);
    put("  processor time of etcd", "ms", millis(cpu), Goal::None);
    let each = |count: f64| count / machines.len() as f64;
    let used: f64 = machines.iter().map(|machine| millis(meter::cpu(machine.pid()))).sum();
    put("  processor time of a daemon", "ms", each(used), Goal::None);
    let received =
        machines.iter().zip(bytes).map(|(machine, before)| meter::received(&machine.node) - before);
    put("  bytes received by a daemon", "kB", each(float(received.sum())) / 1e3, Goal::None);
    put(
        "  requests of a daemon",
        "",
        each(meter::total(&Requests::now(&lab.etcd).since(&requests))),
        Goal::None,
    );
    let memory = machines.iter().map(|machine| meter::memory(machine.pid(), "VmHWM"));
    put("  memory at its highest (VmHWM), largest", "MB", memory.fold(0.0, f64::max), Goal::AtMost(60.0));
    Ok(())
}

fn events(
    lab: &ClusterLab,
    world: &World,
    machines: &[Machine],
    watchers: &Watchers,
    effort: &Effort,
    put: &mut impl FnMut(&str, &'static str, f64, Goal),
) -> Outcome<()> {
    // The claims of the start have been heard by now; the daemons' second thoughts (a session, a spare block) too.
    std::thread::sleep(Duration::from_secs(2));
    let mut ears = machines.iter().map(|machine| Ear::new(&machine.node)).collect::<Outcome<Vec<_>>>()?;
    let heard_before = watchers.heard();
    let bytes: Vec<u64> = machines.iter().map(|machine| meter::received(&machine.node)).collect();
    let cpu = meter::cpu(lab.etcd.pid());
    let used =
        |machines: &[Machine]| machines.iter().map(|machine| millis(meter::cpu(machine.pid()))).sum::<f64>();
    let before = used(machines);
    let (mut middle, mut last) = (Vec::new(), Vec::new());
    for node in 0..effort.fanout_events {
        let (key, value) = world.record(node, BLOCKS - 1, 0, 2);
        let since = Instant::now();
        lab.etcd.put(&key, &value);
        let (took, _) = kernel::wait(&mut ears, Sign::Route(block(node, BLOCKS - 1).0.into()), since)?;
        let took: Vec<f64> = took.into_iter().map(millis).collect();
        last.push(took.iter().copied().fold(0.0, f64::max));
        middle.push(median(took));
    }
    watchers.wait_events(heard_before + effort.fanout_events * effort.watches)?;
    let per_event = |value: f64| value / effort.fanout_events as f64;
    let per_daemon = |value: f64| per_event(value) / machines.len() as f64;
    put("event: from etcd to half of the kernels", "ms", median(middle), Goal::None);
    put("event: from etcd to every kernel", "ms", median(last), Goal::None);
    let cpu = meter::cpu(lab.etcd.pid()).saturating_sub(cpu);
    put("  processor time of etcd, an event", "ms", per_event(millis(cpu)), Goal::None);
    put("  processor time of a daemon, an event", "ms", per_daemon(used(machines) - before), Goal::None);
    let received =
        machines.iter().zip(bytes).map(|(machine, before)| meter::received(&machine.node) - before);
    put("  bytes received by a daemon, an event", "B", per_daemon(float(received.sum())), Goal::None);
    Ok(())
}
