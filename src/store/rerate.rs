//! Re-rating: what stands of recorded usage, and the rows that restate it.
//!
//! What stands for a usage part is its newest restatement, or the part itself where it was never re-rated; a part that a
//! correction reversed does not stand at all. Whoever changes what stands holds [`STANDING_LOCK`]: a re-rate exclusively,
//! a correction shared, each from before it reads until it commits. So no two of them take back the same amount.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::journal::JOURNAL_LOCK;
use super::quantities::{Rare, conditions_of, quantities_of};
use super::{StoreError, ensure_affected, rates};
use crate::domain::event::UsagePart;
use crate::domain::identity::{EventIdentity, EventKey};
use crate::domain::ids::{BatchId, CustomerId, PriceId};
use crate::domain::money::Amount;
use crate::domain::price::{Stamp, Stamps};

/// Advisory lock of what stands. It is taken after the journal's, never before.
const STANDING_LOCK: i64 = 0x77_61_79_03;
/// Advisory lock of re-rates. It is taken before the journal's, never after.
pub const RERATE_LOCK: i64 = 0x77_61_79_06;
/// Events may lie ahead of the clock by minutes, so one may happen on the day after the date it is booked on.
const AHEAD_MAX: TimeDelta = TimeDelta::days(1);

/// Keeps re-rates out until the transaction ends.
///
/// # Errors
/// [`StoreError::Database`], retryable where a re-rate held the lock for too long.
pub(super) async fn keep_standing(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_advisory_xact_lock_shared($1)", STANDING_LOCK).fetch_one(connection).await?;
    Ok(())
}

/// Keeps corrections and other re-rates out until the transaction ends. The caller holds the journal's lock.
///
/// # Errors
/// As `keep_standing`.
pub async fn change_standing(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", STANDING_LOCK).fetch_one(connection).await?;
    Ok(())
}

/// Keeps other re-rates out until the transaction ends; `false` where another one held the lock for two seconds, and the
/// transaction has failed.
///
/// One that restates holds the journal's lock until it commits. Another must not wait for that in [`wait_for_writers`]:
/// whoever records would wait behind it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn lock(connection: &mut PgConnection) -> Result<bool, StoreError> {
    waited(connection, async |connection| {
        sqlx::query!("SELECT pg_advisory_xact_lock($1)", RERATE_LOCK).fetch_one(connection).await.map(drop)
    })
    .await
}

/// Waits until every recording transaction that runs now has ended: those that begin later rate with the prices that
/// stand now. They begin when this has ended, so it gives up where one takes longer than two seconds: `false`, and the
/// transaction has failed. The caller holds the lock of [`lock`].
///
/// # Errors
/// [`StoreError::Database`].
pub async fn wait_for_writers(connection: &mut PgConnection) -> Result<bool, StoreError> {
    waited(connection, async |connection| {
        // One statement, so that no lock of the session is left behind where it is cancelled.
        sqlx::query!("SELECT pg_advisory_lock($1), pg_advisory_unlock($1)", JOURNAL_LOCK)
            .fetch_one(connection)
            .await
            .map(drop)
    })
    .await
}

/// Takes a lock that is waited for two seconds; `false` where that was too short.
async fn waited(
    connection: &mut PgConnection,
    take: impl AsyncFnOnce(&mut PgConnection) -> Result<(), sqlx::Error>,
) -> Result<bool, StoreError> {
    sqlx::query!("SET LOCAL lock_timeout = '2s'").execute(&mut *connection).await?;
    match take(&mut *connection).await.map_err(StoreError::from) {
        Ok(()) => {}
        Err(error) if error.lock_timed_out() => return Ok(false),
        Err(error) => return Err(error),
    }
    sqlx::query!("SET LOCAL lock_timeout TO DEFAULT").execute(connection).await?;
    Ok(true)
}

/// Which recorded usage to look at.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Usage that happened at or after.
    pub from: DateTime<Utc>,
    /// Usage that happened before.
    pub to: DateTime<Utc>,
    /// Of this customer only.
    pub customer: Option<CustomerId>,
    /// Of this provider only.
    pub provider: Option<String>,
    /// Of this model only, as the call or the price names it; `None` is any.
    pub model: Option<String>,
    /// Of models whose names begin so; `None` is any.
    pub model_prefix: Option<String>,
}

/// Consecutive batches that are looked at together.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// They come after this one ...
    after: BatchId,
    /// ... and this is the last of them: the next chunk comes after it.
    pub last: BatchId,
    /// The rows that they added to the journal.
    pub rows: i64,
    dates: Vec<NaiveDate>,
    events: Option<Vec<Uuid>>,
}

impl Chunk {
    /// These events of it only.
    #[must_use]
    pub fn of(self, events: impl Iterator<Item = EventKey>) -> Self {
        Self { events: Some(events.map(|key| key.0).collect()), ..self }
    }
}

/// The newest batch there is.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn newest_batch(connection: &mut PgConnection) -> Result<Option<BatchId>, StoreError> {
    let id = sqlx::query_scalar!("SELECT max(id) FROM ingest_batches").fetch_one(connection).await?;
    Ok(id.map(BatchId))
}

/// The next batches after one that may hold usage from `from` on, up to about `rows_max` rows; `None` where none is left.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn next_chunk(
    connection: &mut PgConnection,
    from: DateTime<Utc>,
    after: BatchId,
    through: BatchId,
    rows_max: i64,
) -> Result<Option<Chunk>, StoreError> {
    let booked_from = from.checked_sub_signed(AHEAD_MAX).map_or(NaiveDate::MIN, |from| from.date_naive());
    let rows = sqlx::query!(
        r#"SELECT id AS "id: BatchId", rows, booked_on FROM ingest_batches
           WHERE id > $1 AND id <= $2 AND booked_on >= $3 AND rows > 0 AND origin <> 'rerate' ORDER BY id LIMIT 2000"#,
        after.0,
        through.0,
        booked_from
    )
    .fetch_all(connection)
    .await?;
    let mut chunk = Chunk { after, last: after, rows: 0, dates: Vec::new(), events: None };
    for row in rows {
        if chunk.rows > 0 && chunk.rows + i64::from(row.rows) > rows_max {
            break;
        }
        chunk.rows += i64::from(row.rows);
        chunk.last = row.id;
        if !chunk.dates.contains(&row.booked_on) {
            chunk.dates.push(row.booked_on);
        }
    }
    Ok((chunk.last > after).then_some(chunk))
}

/// A recorded usage part that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandingPart {
    /// Its event.
    pub key: EventKey,
    /// The date that it is booked on: an id may stand for two events that lie further apart than copies are looked for.
    pub booked_on: NaiveDate,
    /// Its position in the event.
    pub part: i16,
    /// The event as its gateway knows it.
    pub identity: EventIdentity,
    /// Whom it bills.
    pub customer: CustomerId,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// What was used.
    pub usage: UsagePart,
    /// The provider as the sell price names it.
    pub provider: String,
    /// The model as the sell price names it.
    pub model: String,
    /// What it comes to.
    pub stamps: Stamps,
}

impl StandingPart {
    /// Which event it is of.
    pub const fn event(&self) -> (EventKey, NaiveDate) {
        (self.key, self.booked_on)
    }
}

/// A part as stored.
struct RawPart {
    key: EventKey,
    booked_on: NaiveDate,
    part: i16,
    source: String,
    id: String,
    customer: CustomerId,
    occurred_at: DateTime<Utc>,
    reported_provider: String,
    reported_model: String,
    platform: Option<String>,
    region: Option<String>,
    service_tier: Option<String>,
    processing: Option<String>,
    speed: Option<String>,
    tier_input: i64,
    input: i64,
    cache_read: i64,
    cache_write_5m: i64,
    cache_write_1h: i64,
    output: i64,
    reasoning: i64,
    rare: Option<Rare>,
    provider: String,
    model: String,
    cost_price: PriceId,
    cost: Amount,
    cost_currency: String,
    sell_price: PriceId,
    charge: Amount,
    charge_currency: String,
}

impl TryFrom<RawPart> for StandingPart {
    type Error = StoreError;

    fn try_from(row: RawPart) -> Result<Self, StoreError> {
        let stamp = |price, amount, currency: &str| {
            Ok::<_, StoreError>(Stamp { price, amount, currency: rates::currency(currency)? })
        };
        let stamps = Stamps {
            cost: stamp(row.cost_price, row.cost, &row.cost_currency)?,
            charge: stamp(row.sell_price, row.charge, &row.charge_currency)?,
        };
        Ok(Self {
            key: row.key,
            booked_on: row.booked_on,
            part: row.part,
            identity: EventIdentity { source: row.source.into(), id: row.id.into() },
            customer: row.customer,
            occurred_at: row.occurred_at,
            usage: UsagePart {
                provider: row.reported_provider.into(),
                model: row.reported_model.into(),
                conditions: conditions_of!(row),
                quantities: quantities_of!(row),
                tier_input: row.tier_input,
                stated_cost: None,
            },
            provider: row.provider,
            model: row.model,
            stamps,
        })
    }
}

/// The usage parts of a chunk that stand and that the filter lets through, by event and part.
///
/// An id may be used again long after. A restatement is of the event that it has the time and the place from; a correction is of
/// the newest event with the key of the estimate when it was recorded.
///
/// # Errors
/// [`StoreError`].
pub async fn standing(
    connection: &mut PgConnection,
    filter: &Filter,
    chunk: &Chunk,
) -> Result<Vec<StandingPart>, StoreError> {
    let rows = sqlx::query_as!(
        RawPart,
        r#"SELECT u.event_key AS "key: EventKey", u.booked_on, u.part, u.source, u.id,
                  u.customer_id AS "customer: CustomerId", u.occurred_at, u.provider AS "reported_provider!",
                  u.model AS "reported_model!", u.platform, u.region, u.service_tier, u.processing, u.speed, u.tier_input, u.input, u.cache_read, u.cache_write_5m,
                  u.cache_write_1h, u.output, u.reasoning,
                  CASE WHEN r.part IS NULL THEN u.rare ELSE r.rare END AS "rare: Rare", s.provider, s.model,
                  c.id AS "cost_price: PriceId", COALESCE(r.cost, u.cost) AS "cost!: Amount",
                  cb.currency AS cost_currency, s.id AS "sell_price: PriceId",
                  COALESCE(r.charge, u.charge) AS "charge!: Amount", sb.currency AS charge_currency
           FROM usage_events u
           LEFT JOIN LATERAL (SELECT part, rare, cost_price_id, sell_price_id, cost, charge FROM usage_events newest
                              WHERE newest.event_key = u.event_key AND newest.restates = u.part
                                AND newest.kind = 'restatement' AND newest.booked_on >= u.booked_on
                                AND newest.occurred_at = u.occurred_at AND newest.event_index = u.event_index
                                AND newest.stream_seq IS NOT DISTINCT FROM u.stream_seq
                              ORDER BY newest.part DESC LIMIT 1) AS r ON true
           JOIN prices c ON c.id = COALESCE(r.cost_price_id, u.cost_price_id)
           JOIN price_books cb ON cb.id = c.book_id
           JOIN prices s ON s.id = COALESCE(r.sell_price_id, u.sell_price_id)
           JOIN price_books sb ON sb.id = s.book_id
           WHERE u.batch_id > $1 AND u.batch_id <= $2 AND u.booked_on = ANY($3) AND u.kind = 'usage'
             AND u.occurred_at >= $4 AND u.occurred_at < $5
             AND ($6::bigint IS NULL OR u.customer_id = $6) AND ($7::text IS NULL OR u.provider = $7)
             AND ($8::text IS NULL OR u.model = $8 OR s.model = $8)
             AND ($9::text IS NULL OR starts_with(u.model, $9) OR starts_with(s.model, $9))
             AND ($10::uuid[] IS NULL OR u.event_key = ANY($10))
             -- Only estimates are corrected; an event that corrects one stands while no later event corrects it again.
             AND NOT (u.estimated AND EXISTS (
                 SELECT 1 FROM corrections k
                 JOIN usage_events n ON n.event_key = k.correcting_key AND n.part = 0 AND n.corrects_key = u.event_key
                                    AND n.booked_on >= u.booked_on AND n.batch_id >= u.batch_id
                 WHERE k.original_key = u.event_key
                   AND NOT EXISTS (SELECT 1 FROM usage_events again
                                   WHERE again.event_key = u.event_key AND again.part = 0
                                     AND again.booked_on >= u.booked_on AND again.batch_id > u.batch_id
                                     AND again.batch_id <= n.batch_id)))
             AND NOT (u.corrects_key IS NOT NULL AND EXISTS (
                 SELECT 1 FROM corrections mine
                 JOIN corrections later ON later.original_key = mine.original_key AND later.number > mine.number
                 JOIN usage_events n ON n.event_key = later.correcting_key AND n.part = 0
                                    AND n.corrects_key = u.corrects_key AND n.booked_on >= u.booked_on
                                    AND n.batch_id >= u.batch_id
                 WHERE mine.original_key = u.corrects_key AND mine.correcting_key = u.event_key
                   AND (n.event_key, n.booked_on) <> (u.event_key, u.booked_on)
                   AND NOT EXISTS (SELECT 1 FROM usage_events again
                                   WHERE again.event_key = u.corrects_key AND again.part = 0
                                     AND again.booked_on >= u.booked_on AND again.batch_id > u.batch_id
                                     AND again.batch_id <= n.batch_id)))
           ORDER BY u.event_key, u.booked_on, u.part"#,
        chunk.after.0,
        chunk.last.0,
        &chunk.dates,
        filter.from,
        filter.to,
        filter.customer.map(|customer| customer.0),
        filter.provider,
        filter.model,
        filter.model_prefix,
        chunk.events.as_deref()
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// What a usage part is to stand at from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restatement {
    /// Its event.
    pub key: EventKey,
    /// The date that the event is booked on.
    pub booked_on: NaiveDate,
    /// Its position in the event.
    pub part: i16,
    /// The prices and what they give.
    pub stamps: Stamps,
    /// Whether it is counted as one request from now on; everything else that was used stays as it is.
    pub own_request: bool,
}

/// Rows that a restatement adds to the journal.
pub const ROWS_PER_RESTATEMENT: usize = 2;

/// Takes back what stands for each part and restates it, as rows of the batch. The caller has held the lock of
/// [`change_standing`] since before it read what stands.
///
/// # Errors
/// [`StoreError::RowsAffected`] where a part is none; [`StoreError::Database`].
pub async fn restate(
    connection: &mut PgConnection,
    batch: BatchId,
    booked_on: NaiveDate,
    restatements: &[Restatement],
) -> Result<(), StoreError> {
    let keys: Vec<Uuid> = restatements.iter().map(|restatement| restatement.key.0).collect();
    let dates: Vec<NaiveDate> = restatements.iter().map(|restatement| restatement.booked_on).collect();
    let parts: Vec<i16> = restatements.iter().map(|restatement| restatement.part).collect();
    let own_requests: Vec<bool> = restatements.iter().map(|restatement| restatement.own_request).collect();
    let stamps = |side: fn(&Stamps) -> Stamp| -> (Vec<i64>, Vec<Amount>) {
        restatements
            .iter()
            .map(|restatement| side(&restatement.stamps))
            .map(|s| (s.price.0, s.amount))
            .unzip()
    };
    let (cost_prices, costs) = stamps(|stamps| stamps.cost);
    let (sell_prices, charges) = stamps(|stamps| stamps.charge);
    let result = sqlx::query!(
        r#"WITH changed AS (
             SELECT c.*,
                    -- Numbers of the pair: 2000 and 2001 for the first part that is ever re-rated, counting up.
                    GREATEST(1999, (SELECT max(e.part) FROM usage_events e WHERE e.event_key = c.event_key))
                    + 2 * row_number() OVER (PARTITION BY c.event_key ORDER BY c.booked_on, c.part) AS second
             FROM UNNEST($3::uuid[], $4::date[], $5::smallint[], $6::bigint[], $7::bigint[], $8::numeric[], $9::numeric[],
                         $10::boolean[])
                  AS c (event_key, booked_on, part, cost_price_id, sell_price_id, cost, charge, own_request)
         ), standing AS (
             SELECT u.event_key, u.booked_on, u.part, COALESCE(r.cost_price_id, u.cost_price_id) AS cost_price_id,
                    COALESCE(r.sell_price_id, u.sell_price_id) AS sell_price_id, COALESCE(r.cost, u.cost) AS cost,
                    COALESCE(r.charge, u.charge) AS charge, CASE WHEN r.part IS NULL THEN u.rare ELSE r.rare END AS rare
             FROM changed c
             JOIN usage_events u ON u.event_key = c.event_key AND u.booked_on = c.booked_on AND u.part = c.part
                                AND u.kind = 'usage'
             LEFT JOIN LATERAL (SELECT part, cost_price_id, sell_price_id, cost, charge, rare FROM usage_events newest
                                WHERE newest.event_key = u.event_key AND newest.restates = u.part
                                  AND newest.kind = 'restatement' AND newest.booked_on >= u.booked_on
                                  AND newest.occurred_at = u.occurred_at AND newest.event_index = u.event_index
                                  AND newest.stream_seq IS NOT DISTINCT FROM u.stream_seq
                                ORDER BY newest.part DESC LIMIT 1) AS r ON true
         ), sides AS (
             SELECT s.event_key, s.booked_on, s.part, c.second - 1 AS number, 'retraction' AS kind, -1 AS sign,
                    s.cost_price_id, s.sell_price_id, -s.cost AS cost, -s.charge AS charge, s.rare
             FROM changed c JOIN standing s USING (event_key, booked_on, part)
             UNION ALL
             SELECT c.event_key, c.booked_on, c.part, c.second, 'restatement', 1, c.cost_price_id, c.sell_price_id, c.cost,
                    c.charge,
                    CASE WHEN c.own_request THEN COALESCE(s.rare, '{}') || '{"request": 1}' ELSE s.rare END
             FROM changed c JOIN standing s USING (event_key, booked_on, part)
         )
         INSERT INTO usage_events (booked_on, event_key, part, kind, restates, batch_id, stream_seq, event_index,
             customer_id, gateway_id, occurred_at, source, id, content_hash, provider, model, platform, region,
             service_tier, processing, speed, task_id, task_type, task_parent, project, attributes, status, estimated,
             tier_input, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, rare, cost_price_id,
             sell_price_id, cost, charge)
         SELECT $2, u.event_key, s.number::smallint, s.kind, u.part, $1, u.stream_seq, u.event_index,
             u.customer_id, u.gateway_id, u.occurred_at, u.source, u.id, u.content_hash, u.provider, u.model, u.platform,
             u.region, u.service_tier, u.processing, u.speed, u.task_id, u.task_type, u.task_parent, u.project,
             u.attributes, u.status, u.estimated, u.tier_input, s.sign * u.input, s.sign * u.cache_read,
             s.sign * u.cache_write_5m, s.sign * u.cache_write_1h, s.sign * u.output, s.sign * u.reasoning,
             (SELECT jsonb_object_agg(key, s.sign * value::numeric) FROM jsonb_each_text(s.rare)),
             s.cost_price_id, s.sell_price_id, s.cost, s.charge
         FROM sides s
         JOIN usage_events u ON u.event_key = s.event_key AND u.booked_on = s.booked_on AND u.part = s.part
                            AND u.kind = 'usage'"#,
        batch as BatchId,
        booked_on,
        &keys,
        &dates,
        &parts,
        &cost_prices,
        &sell_prices,
        &costs as _,
        &charges as _,
        &own_requests
    )
    .execute(connection)
    .await?;
    ensure_affected("restating usage", &result, (restatements.len() * ROWS_PER_RESTATEMENT) as u64)
}

/// Keeps why the re-rate of a batch was made.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn keep_reason(
    connection: &mut PgConnection,
    batch: BatchId,
    reason: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query!("INSERT INTO rerates (batch_id, reason) VALUES ($1, $2)", batch.0, reason)
        .execute(connection)
        .await?;
    Ok(())
}
