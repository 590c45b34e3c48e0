//! The other rows of a recording transaction: its batch and its sequence marks.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::posting::Unposted;
use super::super::{StoreError, ensure_affected};
use crate::domain::ids::{BatchId, GatewayId};

/// Epochs that a gateway may open within an hour: a fleet that starts anew opens one each, once.
pub const EPOCHS_PER_HOUR_MAX: i64 = 500;
/// Ranges that are kept of one epoch's numbers, and so holes: the row is rewritten with every batch.
pub const RANGES_MAX: i64 = 2_000;

/// Where the events of a batch came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Messages delivered by the stream, in the given life of it.
    Stream(Uuid),
    /// Sequences read again from the stream, in the given life of it.
    Repair(Uuid),
    /// Rejections tried again.
    Replay,
    /// Recorded usage restated at other prices.
    Rerate,
}

impl Origin {
    /// The name in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stream(_) => "stream",
            Self::Repair(_) => "repair",
            Self::Replay => "replay",
            Self::Rerate => "rerate",
        }
    }

    /// The life of the stream that sequences count in.
    pub const fn incarnation(self) -> Option<Uuid> {
        match self {
            Self::Stream(incarnation) | Self::Repair(incarnation) => Some(incarnation),
            Self::Replay | Self::Rerate => None,
        }
    }
}

/// How the events of a batch ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Newly in the journal.
    pub recorded: i32,
    /// Known already, with the same content (or rejected already).
    pub duplicates: i32,
    /// Stored as rejections.
    pub rejected: i32,
}

/// The row of one recording transaction.
#[derive(Debug, Clone)]
pub struct BatchRow {
    /// Where its events came from.
    pub origin: Origin,
    /// Stream sequences of its messages, sorted, without repeats.
    pub sequences: Vec<i64>,
    /// When the stream took the last of them.
    pub last_published_at: Option<DateTime<Utc>>,
    /// How its events ended.
    pub outcome: Recorded,
    /// Rows it adds to the journal, reversals of estimates aside.
    pub rows: i32,
    /// The date it is booked on.
    pub booked_on: NaiveDate,
}

/// Writes the batch row; returns how it stands there until it is posted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn insert_batch(connection: &mut PgConnection, batch: &BatchRow) -> Result<Unposted, StoreError> {
    let Recorded { recorded, duplicates, rejected } = batch.outcome;
    let written = sqlx::query_as!(
        Unposted,
        r#"INSERT INTO ingest_batches
               (origin, incarnation, sequences, messages, events, recorded, duplicates, rejected, rows, booked_on,
                last_published_at)
           SELECT $1, $2, COALESCE(range_agg(int8range(sequence, sequence, '[]')), '{}'), $4, $5, $6, $7, $8, $9, $10, $11
           FROM unnest($3::bigint[]) AS sequence
           RETURNING id AS "id: BatchId", recorded_at, rows"#,
        batch.origin.as_str(),
        batch.origin.incarnation(),
        &batch.sequences,
        i32::try_from(batch.sequences.len()).unwrap_or(i32::MAX),
        recorded + duplicates + rejected,
        recorded,
        duplicates,
        rejected,
        batch.rows,
        batch.booked_on,
        batch.last_published_at,
    )
    .fetch_one(connection)
    .await?;
    Ok(written)
}

/// Keeps what the batch received, compressed.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn insert_payload(
    connection: &mut PgConnection,
    batch: BatchId,
    body: &[u8],
) -> Result<(), StoreError> {
    let result =
        sqlx::query!("INSERT INTO batch_payloads (batch_id, body) VALUES ($1, $2)", batch as BatchId, body)
            .execute(connection)
            .await?;
    ensure_affected("the payload of a batch", &result, 1)
}

/// One event's place in its gateway's own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark<'a> {
    /// Whose count.
    pub gateway: GatewayId,
    /// The count's epoch.
    pub epoch: &'a str,
    /// The event's number in it.
    pub number: i64,
    /// Whether the event arrived for the first time: then the number must be new as well.
    pub fresh: bool,
    /// Whether the place was given here before, when the event was rejected.
    pub counted: bool,
}

/// Adds places in the gateways' own counts to what was seen of them.
///
/// What a faulty gateway can make of it is bounded: of epochs beyond [`EPOCHS_PER_HOUR_MAX`], and of numbers that would
/// leave more than [`RANGES_MAX`] ranges, only how many they are is kept. Two writers at once may each go up to the
/// bound of epochs. `heard`: whether the gateways were heard of with them, now. Returns whether a fresh event's number was there
/// before: then [`forgive_repeats`] looks why.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn mark_sequences(
    connection: &mut PgConnection,
    marks: &[Mark<'_>],
    heard: bool,
) -> Result<bool, StoreError> {
    if marks.is_empty() {
        return Ok(false);
    }
    let gateways: Vec<i32> = marks.iter().map(|mark| mark.gateway.0).collect();
    let epochs: Vec<&str> = marks.iter().map(|mark| mark.epoch).collect();
    let numbers: Vec<i64> = marks.iter().map(|mark| mark.number).collect();
    let fresh: Vec<bool> = marks.iter().map(|mark| mark.fresh).collect();
    let counted: Vec<bool> = marks.iter().map(|mark| mark.counted).collect();
    let told = sqlx::query!(
        r#"WITH given AS (
               SELECT gateway_id, epoch, range_agg(int8range(number, number, '[]')) AS seen,
                      count(*) FILTER (WHERE NOT counted) AS events,
                      COALESCE(array_agg(number) FILTER (WHERE fresh), '{}') AS fresh
               FROM unnest($1::integer[], $2::text[], $3::bigint[], $4::boolean[], $7::boolean[])
                    AS mark (gateway_id, epoch, number, fresh, counted)
               GROUP BY gateway_id, epoch
           ), known AS (
               -- In the one order that all writers take these rows in, and as they stand once they are taken.
               SELECT s.* FROM gateway_sequences s JOIN given USING (gateway_id, epoch)
               ORDER BY s.gateway_id, s.epoch FOR UPDATE OF s
           ), opened AS (
               SELECT gateway_id, count(*) AS epochs FROM gateway_sequences
               WHERE gateway_id = ANY($1) AND first_seen_at > now() - interval '1 hour' GROUP BY gateway_id
           ), placed AS (
               SELECT gateway_id, given.epoch, given.events, given.seen,
                      -- Of epochs that are not known, in their order, as many are followed as the hour has left.
                      (known.epoch IS NOT NULL OR COALESCE(opened.epochs, 0) + count(*)
                           FILTER (WHERE known.epoch IS NULL) OVER (PARTITION BY gateway_id ORDER BY given.epoch) <= $5)
                      AND (SELECT count(*) FROM unnest(given.seen + COALESCE(known.seen, '{}')))
                          <= GREATEST($6, (SELECT count(*) FROM unnest(known.seen))) AS followed,
                      -- A number was there before, or is there twice: the events are others, or they would be copies.
                      cardinality(given.fresh) - (SELECT count(DISTINCT number) FROM unnest(given.fresh) AS number
                          WHERE known.seen IS NULL OR NOT number <@ known.seen) AS repeated
               FROM given LEFT JOIN known USING (gateway_id, epoch) LEFT JOIN opened USING (gateway_id)
           ), kept AS (
               INSERT INTO gateway_sequences AS s (gateway_id, epoch, seen, repeated)
               SELECT gateway_id, epoch, seen, repeated FROM placed WHERE followed ORDER BY gateway_id, epoch
               ON CONFLICT (gateway_id, epoch) DO UPDATE
               SET seen = s.seen + EXCLUDED.seen, seen_at = CASE WHEN $8 THEN clock_timestamp() ELSE s.seen_at END,
                   repeated = s.repeated + EXCLUDED.repeated
           ), flooded AS (
               INSERT INTO gateway_floods AS f (gateway_id, events, epoch)
               SELECT gateway_id, sum(events)::bigint, max(epoch) FROM placed WHERE NOT followed AND events > 0
               GROUP BY gateway_id ORDER BY gateway_id
               ON CONFLICT (gateway_id) DO UPDATE
               SET events = f.events + EXCLUDED.events, epoch = EXCLUDED.epoch, last_at = EXCLUDED.last_at
               RETURNING gateway_id, epoch, events
           )
           SELECT gateway_id AS "gateway_id!", epoch AS "epoch!", events AS "events!", false AS "repeated!" FROM flooded
           UNION ALL
           SELECT gateway_id, epoch, repeated, true FROM placed WHERE followed AND repeated > 0"#,
        &gateways,
        &epochs as _,
        &numbers,
        &fresh,
        EPOCHS_PER_HOUR_MAX,
        RANGES_MAX,
        &counted,
        heard
    )
    .fetch_all(connection)
    .await?;
    for flood in told.iter().filter(|told| !told.repeated) {
        tracing::warn!(
            gateway = flood.gateway_id,
            epoch = flood.epoch,
            events = flood.events,
            "a gateway opens too many epochs or leaves too many holes; its events are recorded, its count is not followed"
        );
    }
    Ok(told.iter().any(|told| told.repeated))
}

/// An event that took its place in its gateway's count for the first time.
#[derive(Debug, Clone, Copy)]
pub struct FreshMark<'a> {
    /// Whose count.
    pub gateway: GatewayId,
    /// The count's epoch.
    pub epoch: &'a str,
    /// The event's source ...
    pub source: &'a str,
    /// ... and id.
    pub id: &'a str,
}

/// Takes those out of the repeated numbers whose event was rejected in another batch, and took its number there.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn forgive_repeats(
    connection: &mut PgConnection,
    batch: BatchId,
    fresh: &[FreshMark<'_>],
) -> Result<(), StoreError> {
    let gateways: Vec<i32> = fresh.iter().map(|mark| mark.gateway.0).collect();
    let epochs: Vec<&str> = fresh.iter().map(|mark| mark.epoch).collect();
    let sources: Vec<&str> = fresh.iter().map(|mark| mark.source).collect();
    let ids: Vec<&str> = fresh.iter().map(|mark| mark.id).collect();
    sqlx::query!(
        "UPDATE gateway_sequences s SET repeated = GREATEST(0, s.repeated - again.events)
         FROM (
             SELECT gateway_id, epoch, count(*) AS events
             FROM unnest($2::integer[], $3::text[], $4::text[], $5::text[]) AS mark (gateway_id, epoch, source, id)
             WHERE EXISTS (SELECT FROM rejections r
                 WHERE r.event_id = mark.id AND r.event_source = mark.source AND r.batch_id <> $1)
             GROUP BY gateway_id, epoch
         ) AS again
         WHERE s.gateway_id = again.gateway_id AND s.epoch = again.epoch",
        batch.0,
        &gateways,
        &epochs as _,
        &sources as _,
        &ids as _
    )
    .execute(connection)
    .await?;
    Ok(())
}
