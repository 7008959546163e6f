//! The same traces against a real etcd. What the model says there is what etcd says, or the two part.

use std::io::Write as _;

use weftd::store::KeyValue;
use weftd::store::model::Model;

use super::random::Random;
use super::real::Live;
use super::store::Server;
use super::traces::run;
use super::world::World;

/// Steps of one trace: about half of what a trace on the model alone has.
const STEPS: u64 = 600;

/// One of each kind that once found something on the model alone, and what they found here.
const SEEDS: &[u64] = &[
    3,  // a transaction went to a restored store, by a connection that had mended itself and answered a read
    20, // as 3, with a claim
];

/// What stands in the store. A lease has another number there, and is there or not.
fn contents(world: &World) -> Vec<KeyValue> {
    let leased = |item: KeyValue| KeyValue { lease: i64::from(item.lease != 0), ..item };
    world.store.list("").items.into_iter().map(leased).collect()
}

fn world(store: Box<dyn Server>, seed: u64, gentle: bool) -> World {
    let mut world = World::over(store, seed);
    (world.gentle, world.loud) = (gentle, true);
    run(&mut world, STEPS);
    world
}

/// Runs a trace on both. All that happens on the way is the same, and so is what stands in the store in the end.
fn compare(seed: u64, gentle: bool) -> bool {
    let Some(etcd) = Live::start() else { return false };
    let etcd = world(Box::new(etcd), seed, gentle);
    let model = world(Box::new(Model::new(77)), seed, gentle);
    let parts = etcd.log.iter().zip(&model.log).position(|(one, other)| one != other);
    if let Some(step) = parts {
        let before = model.log[step.saturating_sub(20)..step].join("\n");
        let (etcd, model) = (&etcd.log[step], &model.log[step]);
        panic!(
            "seed {seed} (gentle: {gentle}): the stores part after\n{before}\n\netcd:  {etcd}\nmodel: {model}"
        );
    }
    assert_eq!(etcd.log.len(), model.log.len(), "seed {seed} (gentle: {gentle})");
    assert_eq!(contents(&etcd), contents(&model), "seed {seed} (gentle: {gentle})");
    assert_eq!(etcd.store.revision(), model.store.revision(), "seed {seed} (gentle: {gentle})");
    true
}

/// A seed that nobody chose, and more with `WEFT_LONG=1`; or the one of `WEFT_SIM_SEED` alone.
fn more_seeds() -> Vec<u64> {
    if let Ok(seed) = std::env::var("WEFT_SIM_SEED") {
        return vec![seed.parse().expect("WEFT_SIM_SEED is a number")];
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time after 1970");
    let by_chance = Random::new(u64::from(now.subsec_nanos())).below(1_000_000);
    // Past the capture of the test's output; nobody is left to be told if this fails.
    let _unheard =
        writeln!(std::io::stderr(), "simulator over etcd, chosen by chance: WEFT_SIM_SEED={by_chance}");
    let long = std::env::var_os("WEFT_LONG").is_some_and(|value| value == "1");
    std::iter::once(by_chance).chain(1000..1000 + u64::from(long) * 100).collect()
}

/// What a node's client was told and the node did not look at before it was cut off the client still knows when the
/// store is restored, unlike the model's. So a trace that nobody looked at is checked, and not compared.
#[test]
fn all_holds_over_a_real_etcd_whatever_happens() {
    for seed in more_seeds() {
        let Some(etcd) = Live::start() else { return };
        drop(world(Box::new(etcd), seed, false));
    }
}

#[test]
fn a_real_etcd_takes_these_traces_step_by_step_as_the_model_does() {
    // Ends at once where there is no etcd, which was said.
    let _all = SEEDS.iter().all(|seed| compare(*seed, false));
}

#[test]
fn without_faults_a_real_etcd_and_the_model_end_with_the_same_keys_and_values() {
    let _all = more_seeds().into_iter().all(|seed| compare(seed, true));
}
