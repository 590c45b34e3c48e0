//! Corrections: what stands for an estimate is taken back by the event that takes its place.
//!
//! Of several corrections of one estimate the last one stands, in whatever order they are recorded: one that is delivered
//! again, read again or tried again must not take a later one back. Which one is later says the gateway's own count, where
//! both have a number of one epoch: what a gateway publishes late, or again, comes later in the stream than it was sent.
//! Otherwise their places in the stream say it. Places are compared within a life of the stream; across lives, and where a
//! place is not known, the one that is recorded last stands. Where corrections of two counts, or of one and of none, lie
//! between each other, no order agrees with all of this, and the order in which they are recorded may decide.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::{StoreError, rerate};
use super::row::JournalEvent;
use crate::domain::event::SequenceMark;
use crate::domain::identity::EventKey;
use crate::domain::ids::{BatchId, CustomerId, GatewayId};

/// An event that corrects another.
#[derive(Debug, Clone, Copy)]
pub struct Correction<'e> {
    /// The estimate that it names.
    pub original: EventKey,
    /// The life of the stream that its place counts in.
    pub life: Option<Uuid>,
    /// Its place in its gateway's own count.
    pub mark: Option<&'e SequenceMark>,
    /// The event.
    pub event: &'e JournalEvent,
    /// When its estimate has happened at the latest: before it was sent, whatever it has waited for since. What happened later
    /// under the same id is another event.
    pub estimate_by: DateTime<Utc>,
}

/// The estimate that a correction is for, as the journal holds it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CorrectionTarget {
    /// The estimate's key.
    pub original: EventKey,
    /// Its customer.
    pub customer: CustomerId,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// Whether it is an estimate that a correction may name: an estimate, and no correction itself.
    pub estimated: bool,
    /// The event that stands for it: itself, or the latest correction.
    pub standing: EventKey,
    /// The date that one is booked on: an id may stand for two events that lie further apart than copies are looked for.
    pub standing_booked_on: NaiveDate,
    /// Whether that one is usage. Earlier releases let the end of a task correct an estimate: it took it back, and there is
    /// nothing of it to take back.
    pub standing_is_usage: bool,
    /// The number of the last correction of an event of this key; 0 before the first.
    pub corrections: i32,
    /// Whether a correction of it is recorded, by another batch, that is later than the one that asks.
    pub superseded: bool,
}

/// Looks up the estimate of a correction by key, in every partition; of several events with this key the newest, whose
/// corrections are those that were recorded with it or after it. `batch`: the one that asks, where it has a number yet.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn correction_target(
    connection: &mut PgConnection,
    correction: &Correction<'_>,
    batch: Option<BatchId>,
) -> Result<Option<CorrectionTarget>, StoreError> {
    let target = sqlx::query_as!(
        CorrectionTarget,
        r#"SELECT e.event_key AS "original: EventKey", e.customer_id AS "customer: CustomerId", e.occurred_at,
                  e.estimated AND e.corrects_key IS NULL AS "estimated!",
                  COALESCE(latest.correcting_key, e.event_key) AS "standing!: EventKey",
                  COALESCE(latest.booked_on, e.booked_on) AS "standing_booked_on!",
                  COALESCE(latest.kind, e.kind) = 'usage' AS "standing_is_usage!",
                  COALESCE((SELECT max(number) FROM corrections WHERE original_key = e.event_key), 0) AS "corrections!",
                  -- Of one count the last one is the latest: no other is recorded after a later one.
                  COALESCE((SELECT c.sequence > $7
                            FROM corrections c JOIN usage_events n ON n.event_key = c.correcting_key
                            WHERE $6::text IS NOT NULL AND c.original_key = e.event_key AND c.epoch = $6
                              AND n.gateway_id = $5 AND n.part = 0 AND n.corrects_key = e.event_key
                              AND n.booked_on >= e.booked_on AND n.batch_id >= e.batch_id
                              AND n.batch_id IS DISTINCT FROM $8
                            ORDER BY c.number DESC LIMIT 1), false)
                  -- So it is of one life, as far as the places in it decide.
                  OR COALESCE((SELECT (n.stream_seq, n.event_index) > ($2, $3)
                                   AND (c.epoch = $6 AND c.sequence < $7 AND n.gateway_id = $5) IS NOT TRUE
                            FROM corrections c JOIN usage_events n ON n.event_key = c.correcting_key
                            JOIN ingest_batches b ON b.id = n.batch_id
                            WHERE c.original_key = e.event_key AND n.part = 0 AND n.corrects_key = e.event_key
                              AND n.booked_on >= e.booked_on AND n.batch_id >= e.batch_id
                              AND n.batch_id IS DISTINCT FROM $8
                              AND (b.incarnation = $4
                                   -- It was a rejection first, which tells where it stood.
                                   OR b.incarnation IS NULL AND EXISTS (SELECT FROM rejections r
                                       WHERE r.incarnation = $4 AND r.stream_seq = n.stream_seq
                                         AND r.event_index = n.event_index AND r.resolved_batch_id = b.id))
                            ORDER BY c.number DESC LIMIT 1), false) AS "superseded!"
           FROM usage_events e
           LEFT JOIN LATERAL (SELECT c.correcting_key, n.booked_on, n.kind
                              FROM corrections c JOIN usage_events n ON n.event_key = c.correcting_key
                              WHERE c.original_key = e.event_key AND n.part = 0 AND n.corrects_key = e.event_key
                                AND n.booked_on >= e.booked_on AND n.batch_id >= e.batch_id
                              ORDER BY c.number DESC, n.booked_on DESC LIMIT 1) AS latest ON true
           WHERE e.event_key = $1 AND e.part = 0
           ORDER BY e.booked_on DESC LIMIT 1"#,
        correction.original as EventKey,
        correction.event.stream_seq,
        correction.event.event_index,
        correction.life,
        correction.event.gateway as GatewayId,
        correction.mark.map(|mark| mark.epoch.as_str()),
        correction.mark.map(|mark| mark.number),
        batch as Option<BatchId>
    )
    .fetch_optional(connection)
    .await?;
    Ok(target)
}

/// Takes back what stands for the estimates that recorded events correct; those of one estimate come one after the other, in
/// the order in which they are to stand. It is looked up again: an earlier correction in the same batch may stand by now.
///
/// # Errors
/// [`StoreError::StandsOtherwise`] where it is no estimate of the event's customer, or a later correction stands for it, or it
/// happened after the event was sent: the event must not be recorded then; [`StoreError::Database`]; a unique violation means that another correction of the same
/// estimate came in between.
pub async fn correct(
    connection: &mut PgConnection,
    batch: BatchId,
    corrections: &[Correction<'_>],
) -> Result<(), StoreError> {
    for correction in corrections {
        // Only what others have recorded meanwhile is in its way: those of its own batch are in their order.
        let target = correction_target(connection, correction, Some(batch)).await?;
        let may_correct = |target: &CorrectionTarget| {
            target.estimated
                && target.customer == correction.event.customer
                && !target.superseded
                && target.occurred_at <= correction.estimate_by
        };
        let Some(target) = target.filter(may_correct) else {
            return Err(StoreError::StandsOtherwise(correction.original));
        };
        reverse_estimate(connection, target, correction, batch).await?;
    }
    Ok(())
}

/// Takes back what stands for an estimate, row by row, under the identity of the event that corrects it. Of a part that was
/// re-rated, that is its newest restatement.
async fn reverse_estimate(
    connection: &mut PgConnection,
    target: CorrectionTarget,
    correction: &Correction<'_>,
    batch: BatchId,
) -> Result<(), StoreError> {
    let correcting = correction.event.key;
    rerate::keep_standing(connection).await?;
    sqlx::query!(
        "INSERT INTO corrections (original_key, number, correcting_key, epoch, sequence) VALUES ($1, $2, $3, $4, $5)",
        target.original as EventKey,
        target.corrections + 1,
        correcting as EventKey,
        correction.mark.map(|mark| mark.epoch.as_str()),
        correction.mark.map(|mark| mark.number)
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
                              AND newest.occurred_at = o.occurred_at AND newest.event_index = o.event_index
                              AND newest.stream_seq IS NOT DISTINCT FROM o.stream_seq
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
    if taken_back.rows_affected() == 0 && target.standing_is_usage {
        // What the correction says would be billed beside what it corrects.
        return Err(StoreError::StandsOtherwise(target.original));
    }
    Ok(())
}
