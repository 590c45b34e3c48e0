//! The journal: recording a batch of events in one transaction.
//!
//! Owns: the look-up of identities, the binary COPY, corrections, rejections and the batch row.
//! Does not own: what is a duplicate or a conflict; the caller compares and decides.
//! Invariants: a writer holds [`JOURNAL_LOCK`] shared from before it reads the booking date until it commits, and the
//! switch of the date takes it exclusively, so of two copies of an event the later writer always sees the earlier one
//! or breaks a unique key and is tried again as a whole.

mod binary;
mod copy;
mod correction;
pub mod payload;
mod record;
mod rejection;
mod row;

pub use copy::copy_events;
pub use correction::{Correction, CorrectionTarget, correct, correction_target};
pub use record::{
    BatchRow, EPOCHS_PER_HOUR_MAX, FreshMark, Mark, Origin, RANGES_MAX, Recorded, forgive_repeats,
    insert_batch, insert_payload, mark_sequences,
};
pub use rejection::{
    DiscardedEvent, NOTHING, ReadEvent, Rejection, RejectionPosition, Span, Suspect, WHOLE_MESSAGE, bytes_of,
    copy_rejections, discarded, discarded_events, known_rejections,
};
pub use row::{JournalEvent, JournalPart};

use std::ops::Range;

use chrono::{DateTime, Days, NaiveDate, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreError;
use crate::domain::identity::{EventIdentity, EventKey};
use crate::domain::ids::BatchId;

/// Advisory lock of the booking date: shared by writers, exclusive for the switch.
pub const JOURNAL_LOCK: i64 = 0x77_61_79_01;

/// Milliseconds that keys lie apart at most to be looked for as a range.
const RANGE_MILLIS: u64 = 60_000;
/// A range that holds more than this part of as many rows as there are keys costs more than to look up each.
const IN_RANGE_SHARE: usize = 8;
/// Fewest keys worth a range.
const RANGE_KEYS_MIN: usize = 64;

/// How far back the look-up of identities goes from the day that the stream took a message: longer than the acceptance window
/// of 35 days, which is measured from there, so that no copy that is still acceptable can lie before it.
const DEDUP_HORIZON_DAYS: u64 = 62;

/// The first booking date that the look-up of identities covers for messages that the stream took on this day or later,
/// however long ago that is. Today's is as far as months are kept for it: what was booked before may be archived, and what
/// could have been is not recorded again.
pub fn dedup_horizon(received_on: NaiveDate) -> NaiveDate {
    received_on.checked_sub_days(Days::new(DEDUP_HORIZON_DAYS)).unwrap_or(NaiveDate::MIN)
}

/// The first day of which no message is compared any more with what was booked before `end`.
pub fn horizon_passes(end: NaiveDate) -> NaiveDate {
    end.checked_add_days(Days::new(DEDUP_HORIZON_DAYS)).unwrap_or(NaiveDate::MAX)
}

/// What a recording transaction needs to know first.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    /// The date that everything in this transaction is booked on.
    pub booked_on: NaiveDate,
    /// The catalog's version right now.
    pub catalog_version: i64,
    /// Whether finance has discarded something of the messages that were asked for.
    pub discarded: bool,
    /// Of what finance has discarded anywhere, when the oldest happened that is no older than the events of these messages ...
    pub discarded_from: Option<DateTime<Utc>>,
    /// ... and the newest that is no newer.
    pub discarded_to: Option<DateTime<Utc>>,
}

/// Takes the journal's lock and reads the booking date, for a transaction that records these messages; `None` where no date
/// was ever opened.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn open(
    connection: &mut PgConnection,
    messages: Option<Span>,
) -> Result<Option<Opening>, StoreError> {
    sqlx::query!("SELECT pg_advisory_xact_lock_shared($1)", JOURNAL_LOCK).fetch_one(&mut *connection).await?;
    let opening = sqlx::query_as!(
        Opening,
        // Ordered, so that however many rows the planner expects it uses the index of what is discarded.
        r#"SELECT booked_on, version AS "catalog_version",
                  (SELECT true FROM rejections
                   WHERE incarnation = $1 AND stream_seq BETWEEN $2 AND $3 AND resolution = 'discarded'
                   ORDER BY stream_seq LIMIT 1) IS NOT NULL AS "discarded!",
                  (SELECT event_time FROM rejections
                   WHERE event_time BETWEEN $4 AND $5 AND resolution = 'discarded'
                   ORDER BY event_time LIMIT 1) AS discarded_from,
                  (SELECT event_time FROM rejections
                   WHERE event_time BETWEEN $4 AND $5 AND resolution = 'discarded'
                   ORDER BY event_time DESC LIMIT 1) AS discarded_to
           FROM journal_clock, catalog_version"#,
        messages.and_then(|messages| messages.incarnation),
        messages.map(|messages| messages.first),
        messages.map(|messages| messages.last),
        messages.and_then(|messages| messages.oldest),
        messages.and_then(|messages| messages.newest)
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

/// The name of the partition that a booking date is in, as part of a statement; `None` where the journal has none. It stays
/// part of the journal until the transaction ends, which a concurrent detach waits for: rows of a detached one are in no sum
/// and on no invoice.
///
/// # Errors
/// [`StoreError::Database`].
pub(super) async fn partition(
    connection: &mut PgConnection,
    booked_on: NaiveDate,
) -> Result<Option<String>, StoreError> {
    sqlx::query!("LOCK TABLE ONLY usage_events IN ACCESS SHARE MODE").execute(&mut *connection).await?;
    let name = sqlx::query_scalar!(
        r#"SELECT c.oid::regclass::text AS "name!" FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent = 'usage_events'::regclass AND NOT i.inhdetachpending
             AND c.relname = 'usage_events_' || to_char($1::date, 'YYYY_MM')"#,
        booked_on
    )
    .fetch_optional(connection)
    .await?;
    Ok(name)
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
    /// The date it is booked on.
    pub booked_on: NaiveDate,
    /// Its batch.
    pub batch: BatchId,
    /// Where it stood in the stream; nowhere where it restates another.
    pub stream_seq: Option<i64>,
    /// Its position in its message.
    pub event_index: i32,
}

impl Existing {
    /// Whether an event with the same key has its identity.
    pub fn is_of(&self, identity: &EventIdentity) -> bool {
        self.source == identity.source && self.id == identity.id
    }

    /// Whether an event with the same key is a copy of it.
    pub fn is(&self, identity: &EventIdentity, content_hash: Uuid) -> bool {
        self.content_hash == content_hash && self.is_of(identity)
    }

    /// Whether it stood at this position of some life of the stream. Of a message that was rejected as a whole no position
    /// is known.
    pub fn stood_at(&self, position: RejectionPosition) -> bool {
        self.stream_seq == Some(position.stream_seq)
            && self.event_index == position.event_index
            && position.event_index >= 0
    }
}

/// Which of these recorded events, by their numbers, were recorded from the life of the stream that is asked for with them: one
/// that stood at the same position of the same life is the same event, whatever is read of it now.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn recorded_from(
    connection: &mut PgConnection,
    asked: &[(Uuid, &Existing)],
) -> Result<Vec<usize>, StoreError> {
    let lives: Vec<Uuid> = asked.iter().map(|(life, _)| *life).collect();
    let batches: Vec<i64> = asked.iter().map(|(_, row)| row.batch.0).collect();
    let sequences: Vec<i64> = asked.iter().map(|(_, row)| row.stream_seq.unwrap_or_default()).collect();
    let indexes: Vec<i32> = asked.iter().map(|(_, row)| row.event_index).collect();
    let recorded = sqlx::query_scalar!(
        r#"SELECT e.number - 1 AS "number!"
           FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::integer[]) WITH ORDINALITY
                AS e (life, batch_id, stream_seq, event_index, number)
           JOIN ingest_batches b ON b.id = e.batch_id
           WHERE b.incarnation = e.life
              -- It was a rejection first, which tells where it stood.
              OR b.incarnation IS NULL AND EXISTS (SELECT FROM rejections r
                  WHERE r.incarnation = e.life AND r.stream_seq = e.stream_seq AND r.event_index = e.event_index
                    AND r.resolved_batch_id = b.id)"#,
        &lives,
        &batches,
        &sequences,
        &indexes
    )
    .fetch_all(connection)
    .await?;
    Ok(recorded.into_iter().filter_map(|number| usize::try_from(number).ok()).collect())
}

/// How thoroughly the journal is looked through for events that it holds already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookUp {
    /// Every event is found.
    Whole,
    /// Events of about one time may be left out where they are booked on this date: adding one again breaks the journal's
    /// key, which holds within a date, and the transaction has to be tried again with the whole look-up. Cheaper by a
    /// descent of the index for each event where such ids lie between those of other batches, as they do in any traffic
    /// of several gateways.
    ExceptOn(NaiveDate),
}

/// Which of the keys exist already, in every partition from `horizon` on.
///
/// Keys with a time in front that lie near each other are looked for as a range: of new events it holds little else, so one
/// descent of each index serves them all. Where it holds more, and for all other keys, each is looked up by itself.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn existing(
    connection: &mut PgConnection,
    keys: &mut [Uuid],
    horizon: NaiveDate,
    look_up: LookUp,
) -> Result<Vec<Existing>, StoreError> {
    keys.sort_unstable();
    let near = near(keys);
    let [first, .., last] = keys[near.clone()] else { return each_of(connection, keys, horizon).await };
    // What the range tells of those that lie in it; nothing where each is looked up by itself after all.
    let in_range = match look_up {
        LookUp::ExceptOn(date) => {
            all_booked_on(connection, date, first, last, horizon, near.len()).await?.then(Vec::new)
        }
        LookUp::Whole => {
            let most = near.len() / IN_RANGE_SHARE;
            Some(between(connection, first, last, horizon, most + 1).await?)
                .filter(|found| found.len() <= most)
        }
    };
    let Some(mut found) = in_range else { return each_of(connection, keys, horizon).await };
    let apart = [&keys[..near.start], &keys[near.end..]].concat();
    found.extend(each_of(connection, &apart, horizon).await?);
    Ok(found)
}

/// Where the keys, which are sorted, lie near the one in the middle; empty where few of them do.
fn near(keys: &[Uuid]) -> Range<usize> {
    let millis = |key: &Uuid| u64::try_from(key.as_u128() >> 80).unwrap_or_default();
    let Some(middle) = keys.get(keys.len() / 2).map(millis) else { return 0..0 };
    let start = keys.partition_point(|key| millis(key) + RANGE_MILLIS < middle);
    let end = keys.partition_point(|key| millis(key) <= middle + RANGE_MILLIS);
    if end - start < RANGE_KEYS_MIN.max(keys.len() / 2) { 0..0 } else { start..end }
}

/// Whether what the range holds is all booked on the date; `false` too where it holds more than `most`, so that it costs
/// less than to look up as many keys.
async fn all_booked_on(
    connection: &mut PgConnection,
    date: NaiveDate,
    first: Uuid,
    last: Uuid,
    horizon: NaiveDate,
    most: usize,
) -> Result<bool, StoreError> {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let range = sqlx::query!(
        // Ordered, so that however many rows the planner expects it uses the indexes, which hold all that is asked for.
        r#"SELECT count(*) AS "events!", count(*) FILTER (WHERE booked_on <> $1) AS "otherwise!"
           FROM (SELECT booked_on FROM usage_events
                 WHERE event_key BETWEEN $2 AND $3 AND part = 0 AND booked_on >= $4
                 ORDER BY event_key LIMIT $5) held"#,
        date,
        first,
        last,
        horizon,
        most
    )
    .fetch_one(connection)
    .await?;
    Ok(range.events < most && range.otherwise == 0)
}

async fn between(
    connection: &mut PgConnection,
    first: Uuid,
    last: Uuid,
    horizon: NaiveDate,
    most: usize,
) -> Result<Vec<Existing>, StoreError> {
    let rows = sqlx::query_as!(
        Existing,
        // Ordered, so that however many rows the planner expects it uses the indexes.
        r#"SELECT event_key AS "key: EventKey", source, id, content_hash, booked_on,
                  batch_id AS "batch: BatchId", stream_seq, event_index
           FROM usage_events
           WHERE event_key BETWEEN $1 AND $2 AND part = 0 AND booked_on >= $3
           ORDER BY event_key LIMIT $4"#,
        first,
        last,
        horizon,
        i64::try_from(most).unwrap_or(i64::MAX)
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

async fn each_of(
    connection: &mut PgConnection,
    keys: &[Uuid],
    horizon: NaiveDate,
) -> Result<Vec<Existing>, StoreError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query_as!(
        Existing,
        r#"SELECT event_key AS "key: EventKey", source, id, content_hash, booked_on,
                  batch_id AS "batch: BatchId", stream_seq, event_index
           FROM usage_events
           WHERE event_key = ANY($1) AND part = 0 AND booked_on >= $2"#,
        keys,
        horizon
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(millis: u64, random: u64) -> Uuid {
        Uuid::from_u128((u128::from(millis) << 80) | u128::from(random))
    }

    #[test]
    fn keys_of_about_one_time_are_near() {
        let mut keys: Vec<Uuid> = (0..200).map(|number| key(1_000_000 + number * 100, number)).collect();
        assert_eq!(near(&keys), 0..200);
        keys.insert(0, key(0, 1));
        keys.push(key(u64::from(u32::MAX), 1));
        assert_eq!(near(&keys), 1..201, "one clock that is wrong does not spoil it");
    }

    #[test]
    fn few_keys_and_random_ones_are_not() {
        assert_eq!(near(&[]), 0..0);
        assert_eq!(near(&[key(5, 1)]), 0..0);
        let random: Vec<Uuid> = (0..1000).map(|number| key(number * 1_000_000_000, number)).collect();
        assert_eq!(near(&random), 0..0);
    }
}
