//! One scenario for each rule.

use super::world::World;

#[test]
fn three_nodes_join_and_reach_each_other() {
    let mut world = World::new(1);
    for name in ["a", "b", "c"] {
        world.add_node(name);
    }
    world.settle(20);
    super::checks::liveness(&world);
    for node in &world.nodes {
        assert_eq!(node.folders.len(), 4, "a block and a spare of each family: {:?}", node.folders.keys());
        assert!(node.ready);
    }
}
