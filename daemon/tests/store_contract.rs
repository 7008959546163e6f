//! What every store must do: the same scenarios over the model, which the simulator runs on, and over a real etcd.

#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test fails by a panic")]

mod etcd_lab;
#[path = "store_contract/scenarios.rs"]
mod scenarios;
#[path = "store_contract/subjects.rs"]
mod subjects;

/// One test a scenario and store.
macro_rules! contract {
    ($($scenario:ident)*) => {
        mod model {
            $(#[test] fn $scenario() {
                crate::scenarios::$scenario(&mut crate::subjects::ModelSubject::new());
            })*
        }
        mod etcd {
            $(#[test] fn $scenario() {
                if let Some(mut subject) = crate::subjects::EtcdSubject::new() {
                    crate::scenarios::$scenario(&mut subject);
                }
            })*
        }
    };
}

contract! {
    compares_hold_all_or_nothing_is_written
    writes_of_a_transaction_share_one_revision
    a_conflict_reads_back_what_is_there
    deleting_what_is_absent_changes_nothing
    many_keys_are_listed_and_read_in_order_at_one_revision
    a_value_is_taken_up_to_the_limit_and_refused_beyond
    what_is_followed_is_reported_in_order_and_the_rest_is_not
    following_goes_on_from_where_an_earlier_run_was
    what_was_compacted_is_listed_again
    a_leased_key_vanishes_and_its_follower_is_told
    a_put_without_lease_takes_a_key_off_its_lease
    a_session_outlives_its_lease_until_it_is_ended
    another_session_replaces_the_former
    a_session_that_may_not_be_is_not_kept
    a_session_whose_lease_ended_is_lost
    a_restored_store_is_noticed_by_its_lower_revision
    a_restored_store_that_was_driven_on_says_only_that_it_was_connected_anew
}
