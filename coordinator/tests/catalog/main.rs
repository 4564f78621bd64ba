//! The catalog on both engines: every story runs on SQLite and on a real Postgres.

#[macro_use]
#[path = "../support/database.rs"]
mod database;

mod jobs;
mod schema;
mod support;

on_both_engines! {
    crate::jobs::a_document_goes_through_its_job => a_document_goes_through_its_job,
    crate::jobs::a_superseded_claim_changes_nothing => a_superseded_claim_changes_nothing,
    crate::jobs::one_key_makes_one_job => one_key_makes_one_job,
    crate::jobs::claims_are_never_shared => claims_are_never_shared,
    crate::jobs::pages_are_in_the_order_of_bytes => pages_are_in_the_order_of_bytes,
    crate::jobs::odd_texts_come_back => odd_texts_come_back,
    crate::jobs::uploads_and_ends_of_one_document_never_deadlock => uploads_and_ends_of_one_document_never_deadlock,
    crate::jobs::a_document_is_locked_by_one_at_a_time => a_document_is_locked_by_one_at_a_time,
    crate::jobs::a_tenant_cannot_fill_the_queue_for_all => a_tenant_cannot_fill_the_queue_for_all,
    crate::schema::opening_again_keeps_what_is_there => opening_again_keeps_what_is_there,
    crate::schema::upkeep_counts_anew_and_takes_turns => upkeep_counts_anew_and_takes_turns,
    crate::schema::usage_adds_up => usage_adds_up,
}
