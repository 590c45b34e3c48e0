//! The other rows of a recording transaction: its batch, corrections and sequence marks.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::posting::Unposted;
use super::super::{StoreError, ensure_affected, rerate};
use super::row::JournalEvent;
use crate::domain::identity::EventKey;
use crate::domain::ids::{BatchId, CustomerId, GatewayId};

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
}

/// Adds places in the gateways' own counts to what was seen of them.
///
/// What a faulty gateway can make of it is bounded: of epochs beyond [`EPOCHS_PER_HOUR_MAX`], and of numbers that would
/// leave more than [`RANGES_MAX`] ranges, only how many they are is kept. Two writers at once may each go up to the
/// bound of epochs. Returns whether a fresh event's number was there before: then [`forgive_repeats`] looks why.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn mark_sequences(connection: &mut PgConnection, marks: &[Mark<'_>]) -> Result<bool, StoreError> {
    if marks.is_empty() {
        return Ok(false);
    }
    let gateways: Vec<i32> = marks.iter().map(|mark| mark.gateway.0).collect();
    let epochs: Vec<&str> = marks.iter().map(|mark| mark.epoch).collect();
    let numbers: Vec<i64> = marks.iter().map(|mark| mark.number).collect();
    let fresh: Vec<bool> = marks.iter().map(|mark| mark.fresh).collect();
    let told = sqlx::query!(
        r#"WITH given AS (
               SELECT gateway_id, epoch, range_agg(int8range(number, number, '[]')) AS seen, count(*) AS events,
                      COALESCE(array_agg(number) FILTER (WHERE fresh), '{}') AS fresh
               FROM unnest($1::integer[], $2::text[], $3::bigint[], $4::boolean[])
                    AS mark (gateway_id, epoch, number, fresh)
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
               SET seen = s.seen + EXCLUDED.seen, seen_at = clock_timestamp(), repeated = s.repeated + EXCLUDED.repeated
           ), flooded AS (
               INSERT INTO gateway_floods AS f (gateway_id, events, epoch)
               SELECT gateway_id, sum(events)::bigint, max(epoch) FROM placed WHERE NOT followed
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
        RANGES_MAX
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

/// The estimate that a correction is for, as the journal holds it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CorrectionTarget {
    /// The estimate's key.
    pub original: EventKey,
    /// Its customer.
    pub customer: CustomerId,
    /// Whether it is an estimate that a correction may name: an estimate, and no correction itself.
    pub estimated: bool,
    /// The event that stands for it: itself, or the latest correction.
    pub standing: EventKey,
    /// The date that one is booked on: an id may stand for two events that lie further apart than copies are looked for.
    pub standing_booked_on: NaiveDate,
    /// The number of the last correction of an event of this key; 0 before the first.
    pub corrections: i32,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
}

/// Looks up an estimate by key, in every partition; of several events with this key the newest, whose corrections are those
/// that were recorded with it or after it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn correction_target(
    connection: &mut PgConnection,
    original: EventKey,
) -> Result<Option<CorrectionTarget>, StoreError> {
    let target = sqlx::query_as!(
        CorrectionTarget,
        r#"SELECT e.event_key AS "original: EventKey", e.customer_id AS "customer: CustomerId", e.estimated AND e.corrects_key IS NULL AS "estimated!",
                  COALESCE(latest.correcting_key, e.event_key) AS "standing!: EventKey",
                  COALESCE(latest.booked_on, e.booked_on) AS "standing_booked_on!",
                  COALESCE((SELECT max(number) FROM corrections WHERE original_key = e.event_key), 0) AS "corrections!",
                  e.occurred_at
           FROM usage_events e
           LEFT JOIN LATERAL (SELECT c.correcting_key, n.booked_on
                              FROM corrections c JOIN usage_events n ON n.event_key = c.correcting_key
                              WHERE c.original_key = e.event_key AND n.part = 0 AND n.corrects_key = e.event_key
                                AND n.booked_on >= e.booked_on AND n.batch_id >= e.batch_id
                              ORDER BY c.number DESC, n.booked_on DESC LIMIT 1) AS latest ON true
           WHERE e.event_key = $1 AND e.part = 0
           ORDER BY e.booked_on DESC LIMIT 1"#,
        original as EventKey
    )
    .fetch_optional(connection)
    .await?;
    Ok(target)
}

/// Takes back what stands for the estimate that a recorded event corrects. It is looked up again: an earlier correction in
/// the same batch may stand for it by now.
///
/// # Errors
/// [`StoreError::RowsAffected`] where it is no estimate of the event's customer: the event must not be recorded then;
/// [`StoreError::Database`]; a unique violation means that another correction of the same estimate came in between.
pub async fn correct(
    connection: &mut PgConnection,
    batch: BatchId,
    original: EventKey,
    event: &JournalEvent,
) -> Result<(), StoreError> {
    let target = correction_target(connection, original).await?;
    let Some(target) = target.filter(|target| target.estimated && target.customer == event.customer) else {
        return Err(StoreError::RowsAffected { what: "correcting an estimate", expected: 1, actual: 0 });
    };
    reverse_estimate(connection, target, event.key, batch).await
}

/// Takes back what stands for an estimate, row by row, under the identity of the event that corrects it. Of a part that was
/// re-rated, that is its newest restatement.
async fn reverse_estimate(
    connection: &mut PgConnection,
    target: CorrectionTarget,
    correcting: EventKey,
    batch: BatchId,
) -> Result<(), StoreError> {
    rerate::keep_standing(connection).await?;
    sqlx::query!(
        "INSERT INTO corrections (original_key, number, correcting_key) VALUES ($1, $2, $3)",
        target.original as EventKey,
        target.corrections + 1,
        correcting as EventKey
    )
    .execute(&mut *connection)
    .await?;
    let taken_back = sqlx::query!(
        "INSERT INTO usage_events (booked_on, event_key, part, kind, batch_id, stream_seq, event_index, customer_id,
             gateway_id, occurred_at, source, id, content_hash, corrects_key, provider, model, platform, region,
             service_tier, processing, speed, task_id, task_type, task_parent, project, attributes, status, estimated,
             tier_input, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, rare, cost_price_id,
             sell_price_id, cost, charge)
         SELECT n.booked_on, n.event_key, (1000 + o.part)::smallint, 'reversal', n.batch_id, n.stream_seq, n.event_index,
             o.customer_id, n.gateway_id, o.occurred_at, n.source, n.id, n.content_hash, $1, o.provider, o.model,
             o.platform, o.region, o.service_tier, o.processing, o.speed, o.task_id, o.task_type, o.task_parent,
             o.project, o.attributes, o.status, o.estimated, o.tier_input, -o.input, -o.cache_read, -o.cache_write_5m,
             -o.cache_write_1h, -o.output, -o.reasoning,
             (SELECT jsonb_object_agg(key, -value::numeric)
              FROM jsonb_each_text(CASE WHEN r.part IS NULL THEN o.rare ELSE r.rare END)),
             COALESCE(r.cost_price_id, o.cost_price_id), COALESCE(r.sell_price_id, o.sell_price_id),
             -COALESCE(r.cost, o.cost), -COALESCE(r.charge, o.charge)
         FROM usage_events n, usage_events o
         LEFT JOIN LATERAL (SELECT part, rare, cost_price_id, sell_price_id, cost, charge FROM usage_events newest
                            WHERE newest.event_key = o.event_key AND newest.restates = o.part
                              AND newest.kind = 'restatement' AND newest.booked_on >= o.booked_on
                              AND newest.occurred_at = o.occurred_at
                            ORDER BY newest.part DESC LIMIT 1) AS r ON true
         WHERE n.event_key = $2 AND n.part = 0 AND n.batch_id = $3 AND o.event_key = $4 AND o.booked_on = $5
           AND o.kind = 'usage'",
        target.original as EventKey,
        correcting as EventKey,
        batch as BatchId,
        target.standing as EventKey,
        target.standing_booked_on
    )
    .execute(connection)
    .await?;
    if taken_back.rows_affected() == 0 {
        // What the correction says would be billed beside what it corrects.
        return Err(StoreError::RowsAffected { what: "taking back an estimate", expected: 1, actual: 0 });
    }
    Ok(())
}
