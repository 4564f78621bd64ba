//! The catalog on both engines: every story runs on SQLite and on a real Postgres.

#[macro_use]
#[path = "../support/database.rs"]
mod database;

mod deletion;
mod jobs;
mod schema;
mod support;
mod tenants;

on_both_engines! {
    crate::jobs::a_document_goes_through_its_job => a_document_goes_through_its_job,
    crate::jobs::a_superseded_claim_changes_nothing => a_superseded_claim_changes_nothing,
    crate::jobs::one_key_makes_one_job => one_key_makes_one_job,
    crate::jobs::claims_are_never_shared => claims_are_never_shared,
    crate::jobs::a_claim_that_nobody_renews_is_anothers_when_its_lease_ends => a_claim_that_nobody_renews_is_anothers_when_its_lease_ends,
    crate::jobs::the_larger_priority_goes_first_then_the_older_job => the_larger_priority_goes_first_then_the_older_job,
    crate::jobs::uploads_are_listed_newest_first_and_by_title => uploads_are_listed_newest_first_and_by_title,
    crate::jobs::pages_are_in_the_order_of_bytes => pages_are_in_the_order_of_bytes,
    crate::jobs::a_nul_in_a_cursor_or_name_finds_nothing => a_nul_in_a_cursor_or_name_finds_nothing,
    crate::jobs::odd_texts_come_back => odd_texts_come_back,
    crate::jobs::uploads_and_ends_of_one_document_never_deadlock => uploads_and_ends_of_one_document_never_deadlock,
    crate::jobs::a_document_is_locked_by_one_at_a_time => a_document_is_locked_by_one_at_a_time,
    crate::deletion::a_deletion_takes_rows_texts_jobs_stages_and_bytes => a_deletion_takes_rows_texts_jobs_stages_and_bytes,
    crate::deletion::a_collections_deletion_takes_everything_of_it => a_collections_deletion_takes_everything_of_it,
    crate::deletion::deletions_uploads_and_ends_never_deadlock => deletions_uploads_and_ends_never_deadlock,
    crate::tenants::keys_are_found_by_their_hash_and_end => keys_are_found_by_their_hash_and_end,
    crate::tenants::a_tenants_bytes_are_bounded_and_counted => a_tenants_bytes_are_bounded_and_counted,
    crate::tenants::aliases_and_the_audit_log_keep_what_they_are_told => aliases_and_the_audit_log_keep_what_they_are_told,
    crate::tenants::what_is_old_is_forgotten_and_nothing_else => what_is_old_is_forgotten_and_nothing_else,
    crate::schema::data_of_the_first_schema_is_brought_along => data_of_the_first_schema_is_brought_along,
    crate::schema::a_task_that_failed_is_not_taken_for_done => a_task_that_failed_is_not_taken_for_done,
    crate::jobs::a_tenant_cannot_fill_the_queue_for_all => a_tenant_cannot_fill_the_queue_for_all,
    crate::schema::opening_again_keeps_what_is_there => opening_again_keeps_what_is_there,
    crate::schema::upkeep_counts_anew_and_takes_turns => upkeep_counts_anew_and_takes_turns,
    crate::schema::usage_adds_up => usage_adds_up,
}
