//! The journal: recording a batch of events in one transaction.
//!
//! Owns: the look-up of identities, the binary COPY, corrections, rejections and the batch row.
//! Does not own: what is a duplicate or a conflict; the caller compares and decides.
//! Invariants: a writer holds [`JOURNAL_LOCK`] shared from before it reads the booking date until it commits, and the
//! switch of the date takes it exclusively, so of two copies of an event the later writer always sees the earlier one
//! or breaks a unique key and is tried again as a whole.

mod copy;
pub mod payload;
mod record;
mod row;

pub use copy::copy_events;
pub use record::{
    BatchRow, EPOCHS_PER_HOUR_MAX, FreshMark, Mark, Origin, RANGES_MAX, Recorded, Rejection,
    RejectionPosition, correction_target, forgive_repeats, insert_batch, insert_payload, insert_rejections,
    known_rejections, mark_sequences, reverse_estimate,
};
pub use row::{JournalEvent, JournalPart};

use chrono::{DateTime, Days, NaiveDate, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreError;
use crate::domain::identity::EventKey;
use crate::domain::ids::CustomerId;

/// Advisory lock of the booking date: shared by writers, exclusive for the switch.
pub const JOURNAL_LOCK: i64 = 0x77_61_79_01;

/// How far back the look-up of identities goes: longer than the acceptance window of 35 days plus the life of a message in
/// the stream, so that no copy that is still acceptable can lie before it.
const DEDUP_HORIZON_DAYS: u64 = 62;

/// The first booking date that the look-up of identities covers. What was booked before it may be archived.
pub fn dedup_horizon(booked_on: NaiveDate) -> NaiveDate {
    booked_on.checked_sub_days(Days::new(DEDUP_HORIZON_DAYS)).unwrap_or(NaiveDate::MIN)
}

/// What a recording transaction needs to know first.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    /// The date that everything in this transaction is booked on.
    pub booked_on: NaiveDate,
    /// The catalog's version right now.
    pub catalog_version: i64,
}

/// Takes the journal's lock and reads the booking date; `None` where no date was ever opened.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn open(connection: &mut PgConnection) -> Result<Option<Opening>, StoreError> {
    sqlx::query!("SELECT pg_advisory_xact_lock_shared($1)", JOURNAL_LOCK).fetch_one(&mut *connection).await?;
    let opening = sqlx::query_as!(
        Opening,
        r#"SELECT booked_on, version AS "catalog_version" FROM journal_clock, catalog_version"#
    )
    .fetch_optional(connection)
    .await?;
    Ok(opening)
}

/// The booking date that is open, without taking the journal's lock: it may be later by the time it is used, never
/// earlier. `None` where no date was ever opened.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn booking_date(connection: &mut PgConnection) -> Result<Option<NaiveDate>, StoreError> {
    Ok(sqlx::query_scalar!("SELECT booked_on FROM journal_clock").fetch_optional(connection).await?)
}

/// Moves the booking date forward (never back) and makes its partition; waits for every writer of the date before.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn switch_date(connection: &mut PgConnection, day: NaiveDate) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", JOURNAL_LOCK).fetch_one(&mut *connection).await?;
    sqlx::query!("SELECT open_booking_date($1)", day).fetch_one(connection).await?;
    Ok(())
}

/// What the journal already holds under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    /// The key.
    pub key: EventKey,
    /// The source it was recorded from.
    pub source: String,
    /// Its id.
    pub id: String,
    /// Hash of its billable content.
    pub content_hash: Uuid,
    /// Its customer.
    pub customer: CustomerId,
    /// Whether it is an estimate.
    pub estimated: bool,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
}

/// Which of the keys exist already, in every partition from `horizon` on.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn existing(
    connection: &mut PgConnection,
    keys: &[Uuid],
    horizon: NaiveDate,
) -> Result<Vec<Existing>, StoreError> {
    let rows = sqlx::query_as!(
        Existing,
        r#"SELECT event_key AS "key: EventKey", source, id, content_hash, customer_id AS "customer: CustomerId",
                  estimated, occurred_at
           FROM usage_events
           WHERE event_key = ANY($1) AND part = 0 AND booked_on >= $2"#,
        keys,
        horizon
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
