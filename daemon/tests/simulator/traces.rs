//! Random traces, each reproducible from its seed: `WEFT_SIM_SEED=17 cargo test -p weftd --test simulator traces`.
//! More of them: `WEFT_SIM_TRACES=5000`.

use super::checks;
use super::world::World;

/// Traces of a normal run.
const TRACES: u64 = 25;

/// Steps of one trace.
const STEPS: u64 = 1200;

/// Seeds that once found something, each with what it was.
const REGRESSIONS: &[u64] = &[
    9,   // a removed node whose tombstone a restore had lost wrote on what it no longer had, for ever
    10,  // a refused clone left its grants to the plugin when its daemon ended
    15,  // a node that had to assert itself asked for its own keys again and again instead
    30,  // as 10, with a reverted disk
    62, // a removed node noticed a rewritten store at each look; a block was asserted and retired in one transaction
    102, // two clones that both boot without the store
];

fn trace(seed: u64) {
    run(&mut World::new(seed), STEPS);
}

/// One trace of about this many steps, then quiet, then all must be well.
pub fn run(world: &mut World, steps: u64) {
    for name in ["a", "b", "c"] {
        world.add_node(name);
    }
    let steps = steps / 2 + world.random.below(steps);
    for _ in 0..steps {
        world.step();
    }
    world.quiet();
    checks::liveness(world);
    let writes = world.store.revision();
    world.rest(100);
    let idle = world.store.revision() - writes;
    if idle > 0 {
        world.fail(&format!("{idle} writes though nothing happens"));
    }
}

#[test]
fn traces_of_a_normal_run() {
    if let Ok(seed) = std::env::var("WEFT_SIM_SEED") {
        return trace(seed.parse().expect("WEFT_SIM_SEED is a number"));
    }
    let traces =
        std::env::var("WEFT_SIM_TRACES").ok().map_or(TRACES, |traces| traces.parse().expect("a number"));
    let first = std::env::var("WEFT_SIM_FIRST").ok().map_or(1, |first| first.parse().expect("a number"));
    for seed in first..first + traces {
        trace(seed);
    }
}

#[test]
fn seeds_that_once_found_something() {
    for seed in REGRESSIONS {
        trace(*seed);
    }
}
