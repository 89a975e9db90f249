//! The list of all cases. One that is missing from a tier, or altogether, shows here: a case in no
//! list is never used, which the compiler reports.

/// Makes the tests of a tier.
macro_rules! cases {
    ($tier:ident) => {
        // What only the other tier stands on is compiled, not used.
        const _: () = {
            use $crate::suite::Env;
            let _ = (Env::embedded, Env::real, Env::typed);
        };
        $crate::suite::cases::every_tier! { $tier
            [deciding] {
                c01_all_commit
                c02_all_rollback
                c03_check_commits
                c04_check_rolls_back
                c05_a_mix
                c07_local_fails_and_the_check_decides_at_once
                c09_commit_sent_twice
                c10_a_late_contradiction_is_a_conflict
            }
            [asking] {
                c17_nobody_there_for_long
                c18_only_its_own_group_and_application_are_asked
                c19_a_slow_check_holds_up_only_its_own_batch
                c19_one_that_hangs_or_panics_for_good_holds_up_no_other
                c20_open_halves_are_checked_in_parallel
            }
            [checking] {
                c12_no_check_before_its_time
                c15_only_real_attempts_count
                c15_without_a_listener_it_is_parked_and_resumed
            }
            [parking] {
                c16_parked_once_and_listed
                c16_resumed_committed_or_dropped_by_an_operator
            }
            [operating] {
                c11_a_late_commit_stays_parked_until_it_is_reopened
                c11_an_operator_cannot_contradict_the_fence
                operators_decide_while_the_service_is_down
                operators_skip_a_record_of_a_newer_format_only
                operators_skip_a_record_while_a_replica_stands_still
                operators_redeliver_what_was_delivered
            }
            [outage] {
                c06_prepare_fails_while_kafka_is_away
                c06_decisions_in_flight_while_kafka_goes_away
            }
            [several] {
                several_messages_share_their_decision
                several_messages_are_stored_all_or_dropped
                several_messages_named_by_the_caller_are_left_to_their_check
                several_messages_are_named_when_one_is_forced
                several_messages_take_several_places
            }
            [restart] {
                c22_dropped_without_shutdown
                c22_dropped_producer_ends
                c24_restart_with_open_halves
            }
            [borders] {
                c28_payload_at_the_limit
                c28_everything_arrives_byte_for_byte
                c31_order_of_commits_within_a_key
            }
            [garbage] {
                c30_garbage_is_passed_and_kept
                c30_a_newer_record_stops_its_partition_only
            }
            [fence] {
                c08_the_row_decides_not_the_call
                c14_fence_first_business_second
            }
            [race] {
                c13_check_races_the_local_transaction
            }
            [fence_table] {
                c14_table_fence_first_business_second
                c14_table_answers_are_what_became_of_it
                c14_table_a_running_transaction_is_unknown_alone
                c14_table_a_check_ends_within_its_budget
                c14_table_cleaned_away_is_unknown
                c14_table_emptied_tells_nothing
                c14_table_given_up_leaves_nothing_open
                c14_table_is_made_once
            }
            [fence_race] {
                c13_check_races_the_fence_table
            }
            [barrier] {
                c35_deducts_and_restores_meet_at_the_barrier
            }
            [consuming::delivering] {
                c34_the_same_message_100_times_has_one_effect
                c37_poison_in_500_costs_only_itself
                consuming_holds_still_and_goes_on
                consuming_forgets_by_age_and_by_key
                consuming_bounds_what_it_remembers_of_a_key
            }
            [consuming::retrying] {
                c36_the_levels_are_kept_then_a_dead_letter
                c36_a_retry_scheduled_before_a_restart_fires_after_it
                c36_a_key_keeps_its_order_through_retries
                c36_replicas_share_retries_and_each_has_one_effect
            }
            [consuming::replying] {
                c38_a_reply_not_confirmed_before_a_crash_is_sent
                c38_a_reply_of_a_retry_is_sent_after_a_crash
                c38_long_replies_keep_their_order_through_crashes
            }
            [services::crashes] {
                c22_killed_between_half_and_decision
                c22_killed_during_the_local_transaction
                c22_killed_after_a_decision
                c22_killed_after_a_rollback
                c22_killed_between_delivery_and_progress
                c22_stock_svc_killed_before_it_restores
            }
            [services::faults] {
                c40_the_last_piece_is_sold_once
                c41_a_failure_after_the_deduct_gives_the_stock_back
                c42_a_failed_order_insert_gives_the_stock_back
                c43_a_crash_after_the_deduct_gives_the_stock_back
                c44_a_lost_decision_leaves_the_order_and_drops_the_message
                c45_a_failed_price_lookup_deducts_nothing
                fault_deduct_refused
                fault_deduct_timeout
                fault_slow_local
                fault_crash_after_half
                fault_crash_after_order
            }
            [services::saga] {
                c39_ten_pieces_an_order_of_one_then_of_ten
                c40_saga_the_last_piece_is_sold_once
                saga_faults_have_their_answers
                saga_repeats_hear_the_first_answer
                saga_survives_the_death_of_either_service
                saga_stuck_orders_are_seen
                saga_report_is_rebuilt_from_the_topics
                saga_newer_events_are_dead_letters
            }
            [services::cancelling] {
                cancel_gives_the_stock_back_once
                cancel_many_times_at_once
                cancel_comes_before_the_stock_is_asked_for
                cancel_survives_the_death_of_order_svc
            }
            [services::repeats] {
                repeats_hear_the_first_answer
                repeats_wait_for_the_first
                repeats_after_the_client_hung_up
                repeats_after_a_crash_behind_the_order
                repeats_after_a_crash_before_the_order
                repeats_after_a_crash_and_its_check
            }
            [services::operators] {
                operators_see_and_settle_an_open_half
                operators_ask_for_a_check
                operators_resume_a_parked_half
                operators_settle_a_parked_half
                operators_force_what_nobody_can_tell
            }
            [services::cli] {
                cli_settles_while_the_service_is_down
                cli_exit_codes_tell_what_happened
                cli_migrates_and_says_what_it_does
                cli_watches_until_it_is_interrupted
            }
            [services::cli_acts] {
                cli_acts_do_what_their_names_say
                cli_skips_a_record_that_stops_its_partition
                cli_lists_foreign_records
                cli_lists_what_operators_did
                cli_tells_what_it_could_not_see
            }
            [services::documented] {
                documented_operators_commands
            }
            [services::dead_letters] {
                cli_settles_dead_letters
                dead_letters_of_order_svc_are_settled
            }
            [services::bad_input] {
                bad_input_is_refused_and_changes_nothing
                bad_input_without_faults_and_token
            }
            [services::console] {
                console_views_say_what_is
            }
            [services::contract] {
                contract_is_kept
            }
            [services::watching] {
                events_are_told_and_told_again
                events_have_bounds_and_do_not_hold_up_a_stop
            }
            [services::outages] {
                kafka_away_and_back
            }
            [services::measured] {
                measured_as_documented
            }
            [services::traced] {
                traced_from_the_request_to_the_restore
                traced_when_the_check_decides
                traced_when_the_body_had_left_memory
                traced_when_a_successor_decides
                traced_through_an_answer
                traced_when_an_operator_decides
                traced_when_an_operator_resumes
                traced_when_a_dead_letter_is_replayed
            }
            [services::logged] {
                logged_quietly_by_default
                logged_as_json_with_ids
            }
            [services::soak] {
                long_500_orders_of_all_flows_and_seven_kills_conserve_the_stock
                long_500_orders_of_all_flows_while_the_broker_is_killed
            }
        }
        $crate::suite::cases::embedded_tier! { $tier
            [services::cli_acts] {
                cli_shows_how_far_a_long_look_has_come
            }
            [services::measured::dashboard] {
                measured_dashboard_asks_for_what_exists
                measured_dashboard_is_whole
            }
            [services::measured] {
                measured_rules_ask_for_what_exists
                measured_as_operations_say
            }
            [services::documented] {
                documented_commands_are_known
                documented_evidence_exists
                documented_demonstration
                documented_traces
                documented_new_crate
            }
            [services::documented::composed] {
                documented_composed
                documented_try_compose
            }
            [services::launcher] {
                launcher_prints_three_lines_that_work
                launcher_ends_by_interrupt
                launcher_killed_leaves_no_process
            }
        }
        $crate::suite::cases::real_tier! { $tier
            [operating] {
                c11_every_replica_sees_and_settles_every_partition
                operators_reset_progress
            }
            [services::cli_acts] {
                cli_resets_progress_of_a_group_that_is_down
                cli_creates_the_topics_of_a_group
            }
            [targets] {
                c29_missing_target_is_refused
                c29_target_gone_parks_and_resumes
                c29_target_gone_for_a_moment_is_delivered_to
                c29_target_that_refuses_parks
                c29_one_of_500_is_refused
                c29_a_store_that_would_lose_messages_is_refused
            }
            [too_large] {
                c30_large_garbage_is_passed_and_told
                c30_a_large_half_waits_for_a_parked_topic_that_takes_it
            }
            [database_away] {
                c15_a_database_that_is_away_burns_no_attempts
            }
            [replicas] {
                topics_that_cannot_keep_the_promise_are_refused
                topics_are_created_with_the_configured_replicas
                topics_with_too_few_replicas_are_warned_of
            }
            [copies] {
                c22_copies_of_a_half_are_one_message
            }
            [hanging] {
                c23_progress_that_hangs_is_given_up
                c23_at_least_once_progress_that_hangs_is_told
            }
            [secure::logins] {
                secure_round_trip_over_every_listener
                secure_refused_logins_are_told
            }
            [secure::rights] {
                secure_each_missing_right_of_the_producer_is_told
                secure_each_missing_right_of_the_consumer_is_told
                secure_a_target_without_write_is_parked_and_holds_nothing_up
                secure_transactions_and_trimming_need_the_documented_rights
                secure_a_refused_trim_is_made_once_it_may_be
                secure_a_right_that_is_given_back_makes_ready_again
            }
            [secure::saga] {
                secure_each_missing_right_of_stock_svc_in_flow_b_is_told
                secure_each_missing_right_of_order_svc_in_flow_b_is_told
            }
            [long_log] {
                c24_long_a_long_log_comes_back
            }
            [journal] {
                operators_acts_outlive_the_stores_records
            }
            [bounds] {
                c32_trimming_never_removes_an_open_half
                c32_a_parked_message_keeps_its_history
                c33_long_memory_stays_within_the_budget
            }
            [soak] {
                c32_soak_long_the_store_stays_small
                soak_process
            }
            [race] {
                c13_on_the_embedded_broker_and_postgresql
                c13_on_kafka_and_sqlite
            }
            [outage] {
                c06_callers_of_a_broker_that_takes_nothing_wait_within_bounds
                c25_long_broker_restarts_under_load
                c25_long_broker_stalls_under_load
            }
            [slow] {
                c06_a_slow_broker_slows_callers
            }
            [another_log] {
                c26_expired_progress
                c26_progress_of_another_log_stops_its_partition
                c26_records_deleted_that_were_needed
                c26_store_made_anew
                c26_partitions_added
                c26_partitions_added_to_the_store_only
            }
            [rebalance] {
                c23_long_two_owners_fence_each_other
                c23_long_two_replicas_with_one_instance_id
                c27_long_replicas_come_and_go
                c27_long_with_trimming_and_a_small_budget
                c27_long_at_least_once_loses_nothing
                c27_long_scaled_up_and_down
            }
            [spare] {
                c27_more_replicas_than_partitions
            }
            [consuming::delivering] {
                c34_a_swallowed_failure_is_no_success
                c36_a_database_that_is_away_burns_no_attempts
                c38_long_members_come_and_go_in_the_middle_of_batches
                consuming_keys_run_at_once_and_keep_their_order
                consuming_long_a_long_handler_keeps_its_partitions
            }
            [services::soak] {
                long_500_orders_of_all_flows_while_all_are_killed
            }
            [consuming::confirming] {
                consuming_long_nothing_is_handled_far_beyond_what_is_confirmed
                consuming_long_what_the_coordinator_never_heard_of_has_one_effect
                consuming_long_whoever_dies_waiting_for_the_coordinator_is_followed
            }
            [consuming::sharing] {
                c36_a_replica_that_stands_still_keeps_no_message
                c36_an_attempt_says_how_long_it_may_be_silent
                c36_a_row_that_another_replica_holds_burns_no_attempt
                consuming_a_slow_retry_holds_up_no_later_one
                consuming_all_takes_partitions_that_are_added
                consuming_partitions_run_at_once_and_keep_their_order
                consuming_sees_nothing_of_an_aborted_transaction
            }
            [consuming::retrying] {
                c36_a_key_keeps_its_order_among_replicas_that_retry
            }
            [consuming::replaying] {
                c36_a_replay_that_ends_in_its_commit_has_one_effect
                c36_a_queued_dead_letter_in_hand_is_not_discarded
            }
            [consuming::replying] {
                c38_a_reply_that_is_refused_holds_nothing_up
                c38_replies_too_large_together_go_one_by_one
            }
            [consuming::killing] {
                c34_long_killed_20_times_in_50000_messages
                consuming_process
            }
            [services::saga] {
                saga_a_held_product_holds_up_its_own
            }
            [services::crashes] {
                c22_at_least_once_where_asked_for
                c22_killed_between_commit_and_its_report
            }
            [services::measured] {
                measured_rules_fire_and_stay_silent
            }
            [services::console] {
                console_tells_the_story_by_clicks
                console_settles_open_halves
                console_follows_the_saga_and_a_cancellation
                console_long_pages_through_10000_halves
                console_links_to_the_interface
            }
            [services::console::access] {
                console_controls_have_names_roles_and_edges
                console_announces_what_happens
            }
            [services::console::showing] {
                console_says_that_it_loads
                console_leaves_a_page_that_became_empty
                console_charts_say_what_the_service_says
                console_shows_markup_as_text
                console_nothing_moves_while_events_come
            }
            [services::console::times] {
                console_lanes_have_the_time_of_what_happened
            }
            [services::console::keyboard] {
                console_tells_the_story_by_keys
                console_keeps_the_focus
            }
            [services::console::returning] {
                console_comes_back_unheard
                console_tells_replicas_apart
            }
            [services::console::operating] {
                console_resumes_a_parked_half
                console_settles_dead_letters
                console_turns_red_when_the_stock_is_wrong
                console_lanes_say_what_is_known
                console_asks_in_vain_for_a_while
                console_hears_what_it_missed
                console_finds_what_nobody_tells
                console_late_answers_touch_no_other_dialog
                console_lists_while_events_keep_coming
            }
            [services::documented] {
                documented_bench
            }
            [services::documented::own] {
                documented_halfmsg_commands
            }
            [services::documented::tools] {
                documented_kafka_tools
            }
            [services::documented::compose] {
                documented_compose_reads_the_file
                documented_compose_takes_the_commands
            }
            [services::documented::granted] {
                documented_acls
            }
            [services::cancelling] {
                cancel_races_the_answer
            }
            [services::replicas] {
                c23_long_a_killed_replica_is_replaced
                c23_long_a_paused_replica_is_fenced
                c27_long_replicas_are_killed
                operators_see_every_half_at_either_replica
            }
            [fence_table] {
                c14_table_on_mariadb
            }
            [fence_race] {
                c13_fence_table_on_kafka_and_sqlite
                c13_fence_table_on_kafka_and_mariadb
            }
            [services::outages] {
                postgres_away_and_back
                kafka_away_while_the_database_is_away
            }
        }
        $crate::suite::cases::typed_tier! { $tier
            [services::documented] {
                documented_long_cargo_run
            }
            [services::documented::built] {
                documented_long_cargo_bench
            }
        }
        // It builds what the tests are built from only where these have the feature.
        #[cfg(feature = "tls")]
        $crate::suite::cases::typed_tier! { $tier
            [services::documented::built] {
                documented_long_cargo_build
            }
        }
    };
}

/// Cases for whichever tier it is.
macro_rules! every_tier {
    (typed $($path:tt { $($case:ident)* })*) => {
        $($( $crate::suite::cases::other_case! { $path $case } )*)*
    };
    ($tier:ident $($path:tt { $($case:ident)* })*) => {
        $($( $crate::suite::cases::one_case! { $tier $path $case } )*)*
    };
}

/// Cases that bring their own broker in their own process: once is enough.
macro_rules! embedded_tier {
    (embedded $($cases:tt)*) => {
        $crate::suite::cases::every_tier! { embedded $($cases)* }
    };
    ($other:ident $($path:tt { $($case:ident)* })*) => {
        $($( $crate::suite::cases::other_case! { $path $case } )*)*
    };
}

/// Cases that build what other tests run: they have a binary of their own, beside which none runs.
macro_rules! typed_tier {
    (typed $($path:tt { $($case:ident)* })*) => {
        $($( $crate::suite::cases::one_case! { typed $path $case } )*)*
    };
    ($other:ident $($path:tt { $($case:ident)* })*) => {
        $($( $crate::suite::cases::other_case! { $path $case } )*)*
    };
}

/// Cases that only the real tier can show.
macro_rules! real_tier {
    (real $($cases:tt)*) => {
        $crate::suite::cases::every_tier! { real $($cases)* }
    };
    ($other:ident $($path:tt { $($case:ident)* })*) => {
        $($( $crate::suite::cases::other_case! { $path $case } )*)*
    };
}

/// One case as a test.
macro_rules! one_case {
    ($tier:ident [$($path:tt)*] $case:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            $crate::suite::turns::in_turn(async {
                let env = $crate::suite::Env::$tier(stringify!($case)).await;
                $crate::suite::$($path)*::$case(env).await;
            })
            .await;
        }
    };
}

/// A case of the other tier: compiled, not run.
macro_rules! other_case {
    ([$($path:tt)*] $case:ident) => {
        const _: () = {
            let _ = $crate::suite::$($path)*::$case;
        };
    };
}

pub(crate) use {cases, embedded_tier, every_tier, one_case, other_case, real_tier, typed_tier};
