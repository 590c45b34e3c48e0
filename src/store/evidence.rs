//! One event as the ledger holds it: its rows, what corrected it, and what was received.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::StoreError;
use super::journal::payload;
use super::quantities::{Rare, conditions_of, quantities_of};
use super::rates::currency;
use crate::domain::event::{StatedCost, UsagePart};
use crate::domain::identity::{EventIdentity, EventKey};
use crate::domain::ids::{BatchId, CustomerId, PriceId};
use crate::domain::money::{Amount, Currency};

/// One row of an event: a usage part, an outcome, a corrected estimate taken back, or a side of a re-rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Position in the event; that of a reversal counts from 1000, that of a re-rate from 2000.
    pub part: i16,
    /// `usage`, `outcome` or `reversal`; `retraction` and `restatement` are a re-rate.
    pub kind: String,
    /// The part that a re-rate takes back or restates.
    pub restates: Option<i16>,
    /// Its batch.
    pub batch: BatchId,
    /// Sequence of its message in the stream.
    pub stream_seq: Option<i64>,
    /// Its position in the message.
    pub event_index: i32,
    /// Whom it bills.
    pub customer: CustomerId,
    /// The customer's external id.
    pub customer_external_id: String,
    /// Value date.
    pub occurred_at: DateTime<Utc>,
    /// Booking date.
    pub booked_on: NaiveDate,
    /// When it was recorded.
    pub recorded_at: DateTime<Utc>,
    /// The estimate that the event replaces.
    pub corrects: Option<EventKey>,
    /// What was priced; `None` for an outcome.
    pub usage: Option<UsagePart>,
    /// The task's id.
    pub task_id: Option<String>,
    /// The task's type.
    pub task_type: Option<String>,
    /// The task it is a part of.
    pub task_parent: Option<String>,
    /// How the task ended.
    pub outcome: Option<String>,
    /// Labels of the gateway.
    pub attributes: BTreeMap<String, String>,
    /// The call's own status.
    pub status: Option<String>,
    /// Whether the gateway estimated the usage.
    pub estimated: bool,
    /// How long the call took.
    pub latency_ms: Option<i64>,
    /// The price that gave the cost.
    pub cost_price: Option<PriceId>,
    /// The price that gave the charge.
    pub sell_price: Option<PriceId>,
    /// What the provider charges us.
    pub cost: Amount,
    /// What the customer pays.
    pub charge: Amount,
    /// Currency of the cost; `None` for an outcome, and where the scope hides cost prices.
    pub cost_currency: Option<Currency>,
    /// Currency of the charge; `None` for an outcome.
    pub charge_currency: Option<Currency>,
    /// Why it was re-rated; `None` where nobody said, and until the re-rate is posted.
    pub reason: Option<String>,
}

/// A row as stored.
struct RawRow {
    part: i16,
    kind: String,
    restates: Option<i16>,
    batch: BatchId,
    stream_seq: Option<i64>,
    event_index: i32,
    customer: CustomerId,
    external_id: String,
    occurred_at: DateTime<Utc>,
    booked_on: NaiveDate,
    recorded_at: DateTime<Utc>,
    corrects: Option<EventKey>,
    provider: Option<String>,
    model: Option<String>,
    platform: Option<String>,
    region: Option<String>,
    service_tier: Option<String>,
    processing: Option<String>,
    speed: Option<String>,
    task_id: Option<String>,
    task_type: Option<String>,
    task_parent: Option<String>,
    outcome: Option<String>,
    attributes: Option<Json<BTreeMap<String, String>>>,
    status: Option<String>,
    estimated: bool,
    latency_ms: Option<i64>,
    tier_input: i64,
    input: i64,
    cache_read: i64,
    cache_write_5m: i64,
    cache_write_1h: i64,
    output: i64,
    reasoning: i64,
    rare: Option<Rare>,
    cost_price: Option<PriceId>,
    sell_price: Option<PriceId>,
    cost: Amount,
    charge: Amount,
    cost_currency: Option<String>,
    charge_currency: Option<String>,
    stated_cost: Option<Amount>,
    stated_currency: Option<String>,
    reason: Option<String>,
}

impl TryFrom<RawRow> for EventRow {
    type Error = StoreError;

    fn try_from(row: RawRow) -> Result<Self, StoreError> {
        let currency_of = |code: Option<String>| code.as_deref().map(currency).transpose();
        let stated = row.stated_cost.zip(currency_of(row.stated_currency)?);
        let conditions = conditions_of!(row);
        let quantities = quantities_of!(row);
        let usage = row.provider.zip(row.model).map(|(provider, model)| UsagePart {
            provider: provider.into(),
            model: model.into(),
            conditions,
            quantities,
            tier_input: row.tier_input,
            stated_cost: stated.map(|(amount, currency)| StatedCost { amount, currency }),
        });
        Ok(Self {
            part: row.part,
            kind: row.kind,
            restates: row.restates,
            batch: row.batch,
            stream_seq: row.stream_seq,
            event_index: row.event_index,
            customer: row.customer,
            customer_external_id: row.external_id,
            occurred_at: row.occurred_at,
            booked_on: row.booked_on,
            recorded_at: row.recorded_at,
            corrects: row.corrects,
            usage,
            task_id: row.task_id,
            task_type: row.task_type,
            task_parent: row.task_parent,
            outcome: row.outcome,
            attributes: row.attributes.map(|Json(attributes)| attributes).unwrap_or_default(),
            status: row.status,
            estimated: row.estimated,
            latency_ms: row.latency_ms,
            cost_price: row.cost_price,
            sell_price: row.sell_price,
            cost: row.cost,
            charge: row.charge,
            cost_currency: currency_of(row.cost_currency)?,
            charge_currency: currency_of(row.charge_currency)?,
            reason: row.reason,
        })
    }
}

/// The rows of an event, in the order of their parts; none where the scope has no such event.
///
/// # Errors
/// [`StoreError`].
pub async fn rows(
    connection: &mut PgConnection,
    identity: &EventIdentity,
) -> Result<Vec<EventRow>, StoreError> {
    let rows = sqlx::query_as!(
        RawRow,
        r#"SELECT e.part, e.kind, e.restates, e.batch_id AS "batch: BatchId", e.stream_seq, e.event_index,
                  e.customer_id AS "customer: CustomerId", c.external_id, e.occurred_at, e.booked_on, b.recorded_at,
                  e.corrects_key AS "corrects: EventKey", e.provider, e.model, e.platform, e.region, e.service_tier,
                  e.processing, e.speed, e.task_id, e.task_type, e.task_parent, e.outcome,
                  e.attributes AS "attributes: Json<BTreeMap<String, String>>", e.status, e.estimated, e.latency_ms,
                  e.tier_input, e.input, e.cache_read, e.cache_write_5m, e.cache_write_1h, e.output, e.reasoning,
                  e.rare AS "rare: Rare", e.cost_price_id AS "cost_price: PriceId",
                  e.sell_price_id AS "sell_price: PriceId", e.cost AS "cost: Amount", e.charge AS "charge: Amount",
                  pb.currency AS "cost_currency?", sb.currency AS "charge_currency?",
                  e.stated_cost AS "stated_cost: Amount", e.stated_currency,
                  CASE WHEN e.restates IS NOT NULL THEN
                      -- The copy that posting makes: a customer reads its own.
                      (SELECT a.reason FROM adjustment_reasons a
                       WHERE a.customer_id = e.customer_id AND a.sell_price_id = e.sell_price_id
                         AND a.batch_id = e.batch_id LIMIT 1)
                  END AS reason
           FROM usage_events e
           JOIN customers c ON c.id = e.customer_id
           JOIN ingest_batches b ON b.id = e.batch_id
           LEFT JOIN prices p ON p.id = e.cost_price_id
           LEFT JOIN price_books pb ON pb.id = p.book_id
           LEFT JOIN prices s ON s.id = e.sell_price_id
           LEFT JOIN price_books sb ON sb.id = s.book_id
           WHERE e.event_key = $1 AND e.source = $2 AND e.id = $3
           ORDER BY e.part"#,
        identity.key() as EventKey,
        identity.source.as_str(),
        identity.id.as_str(),
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Identity of an event by its key, as far as the scope shows it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn identity(
    connection: &mut PgConnection,
    key: EventKey,
) -> Result<Option<EventIdentity>, StoreError> {
    let identity = sqlx::query_as!(
        EventIdentity,
        "SELECT source, id FROM usage_events WHERE event_key = $1 AND part = 0",
        key as EventKey
    )
    .fetch_optional(connection)
    .await?;
    Ok(identity)
}

/// The events that corrected an estimate, the first one first: the last of them stands.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn corrections(
    connection: &mut PgConnection,
    estimate: EventKey,
) -> Result<Vec<EventIdentity>, StoreError> {
    let events = sqlx::query_as!(
        EventIdentity,
        "SELECT e.source, e.id FROM corrections c JOIN usage_events e ON e.event_key = c.correcting_key AND e.part = 0
         WHERE c.original_key = $1 ORDER BY c.number",
        estimate as EventKey
    )
    .fetch_all(connection)
    .await?;
    Ok(events)
}

/// What an event was recorded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The message, or, where it was a rejection first, the event alone.
    pub bytes: Vec<u8>,
    /// Its `Content-Encoding`, where the bytes have it still.
    pub encoding: Option<String>,
    /// Position of the event in the bytes; `None` where they are the event alone.
    pub index: Option<usize>,
}

/// What an event was recorded from: its message in the batch, or the rejection that was tried again. Not in a customer's
/// scope; `None` where the evidence is not kept any more.
///
/// # Errors
/// [`StoreError`].
pub async fn received(
    connection: &mut PgConnection,
    row: &EventRow,
    id: &str,
) -> Result<Option<Received>, StoreError> {
    let Some(stream_seq) = row.stream_seq else { return Ok(None) };
    let stored =
        sqlx::query_scalar!("SELECT body FROM batch_payloads WHERE batch_id = $1", row.batch as BatchId)
            .fetch_optional(&mut *connection)
            .await?;
    if let Some(stored) = stored {
        let message = payload::message(&stored, stream_seq).map_err(|error| StoreError::Inconsistent {
            table: "batch_payloads",
            column: "body",
            detail: format!("that of batch {} cannot be read: {error}", row.batch),
        })?;
        let index = usize::try_from(row.event_index).ok();
        return Ok(message.map(|bytes| Received { bytes, encoding: None, index }));
    }
    let rejection = sqlx::query!(
        "SELECT raw, headers, event_index FROM rejections
         WHERE resolved_batch_id = $1 AND stream_seq = $2 AND event_index = $3
         ORDER BY event_id IS DISTINCT FROM $4 LIMIT 1",
        row.batch as BatchId,
        stream_seq,
        row.event_index,
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(rejection.map(|row| {
        let whole = row.event_index < 0;
        let header =
            row.headers.as_ref().and_then(|headers| headers.get("Content-Encoding")?.get(0)?.as_str());
        Received {
            bytes: row.raw,
            encoding: header.filter(|_| whole).map(str::to_owned),
            index: (!whole).then_some(0),
        }
    }))
}
