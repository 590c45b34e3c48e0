//! Posting: folding recorded batches into rollups and tasks, each batch exactly once.
//!
//! A batch is marked posted in the transaction that folds it, so a crash anywhere leaves it either folded or not.
//! Posters hold the close lock shared: a period is never closed while a batch is half-way into it.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;

use super::periods::CLOSE_LOCK;
use super::{StoreError, ensure_affected, journal};
use crate::domain::ids::{BatchId, CustomerId};

/// Ids between two batches of a slice that may be none of its own: of other posters, or of transactions that are not
/// over. Each row is compared with all of them.
const HOLES_MAX: i64 = 100;

/// Batches that one posting transaction folds together. Their rows are found by the range of their ids without the holes,
/// because the block range index is read once for a range, but once per id for a list of ids.
#[derive(Debug, Clone, Default)]
pub struct Slice {
    /// The batches, in order.
    pub batches: Vec<BatchId>,
    /// Their booking dates: limits the fold to the partitions that hold them.
    pub dates: Vec<NaiveDate>,
    /// Rows they added to the journal.
    pub rows: i64,
    /// Whether one of them is of a re-rate.
    pub rerated: bool,
}

impl Slice {
    /// Whether there are few holes enough with this batch as the next one.
    fn reaches(&self, next: BatchId) -> bool {
        let batches = i64::try_from(self.batches.len()).unwrap_or(i64::MAX);
        self.batches.first().is_none_or(|first| next.0 - first.0 - batches <= HOLES_MAX)
    }

    /// Ids between the first and the last batch that are none of them.
    fn holes(&self) -> Vec<i64> {
        self.batches.windows(2).flat_map(|pair| pair[0].0 + 1..pair[1].0).collect()
    }

    fn first(&self) -> i64 {
        self.batches.first().map_or(0, |batch| batch.0)
    }

    fn last(&self) -> i64 {
        self.batches.last().map_or(0, |batch| batch.0)
    }
}

/// Brings the block range index of the batches up to date, and what the planner knows of it. The server does so once a
/// minute at best, and until then every fold would read everything that was recorded since.
///
/// # Errors
/// [`StoreError::Database`], with SQLSTATE 55P03 where a vacuum or another poster is at it.
pub async fn summarize(connection: &mut PgConnection) -> Result<(), StoreError> {
    // A longer wait would make an automatic vacuum give way, again and again.
    sqlx::query!("SET LOCAL lock_timeout = '1ms'").execute(&mut *connection).await?;
    sqlx::query!("SELECT summarize_journal_batches()").fetch_one(&mut *connection).await?;
    sqlx::query!("SELECT refresh_journal_statistics()").fetch_one(connection).await?;
    Ok(())
}

/// What is recorded and not posted yet.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    /// Rows of the journal, as far as they are counted.
    pub rows: i64,
    /// Age of the oldest batch in milliseconds.
    pub oldest_ms: i64,
    /// Age of the newest one.
    pub newest_ms: i64,
    /// How long what the newest one holds had waited in the stream.
    pub behind_ms: i64,
}

/// Counts what waits to be posted; `None` where nothing does.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn waiting(connection: &mut PgConnection) -> Result<Option<Waiting>, StoreError> {
    let waiting = sqlx::query_as!(
        Waiting,
        r#"WITH next AS (
               SELECT id, rows, recorded_at, last_published_at FROM ingest_batches
               WHERE posted_at IS NULL ORDER BY id LIMIT 2000
           ), ages AS (
               SELECT sum(rows)::bigint AS rows, min(recorded_at) AS oldest, max(recorded_at) AS newest,
                      -- Of a replay or a re-rate there is no publishing, and nothing waits behind it.
                      (SELECT recorded_at - last_published_at FROM next ORDER BY id DESC LIMIT 1) AS behind
               FROM next
           )
           SELECT rows AS "rows!", (extract(epoch FROM clock_timestamp() - oldest) * 1000)::bigint AS "oldest_ms!",
                  (extract(epoch FROM clock_timestamp() - newest) * 1000)::bigint AS "newest_ms!",
                  COALESCE(extract(epoch FROM behind) * 1000, 0)::bigint AS "behind_ms!"
           FROM ages WHERE rows IS NOT NULL"#
    )
    .fetch_optional(connection)
    .await?;
    Ok(waiting)
}

/// Waits for whoever holds the first batch that is not posted; returns whether it is still not posted then.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn await_first(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let left = sqlx::query_scalar!(
        r#"SELECT true AS "left!" FROM ingest_batches WHERE posted_at IS NULL ORDER BY id LIMIT 1 FOR UPDATE"#
    )
    .fetch_optional(connection)
    .await?;
    Ok(left.is_some())
}

/// Takes the close lock shared and locks the next batches to post, up to about `rows_max` rows; batches that another
/// poster holds are passed over. Empty where there is nothing to do.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn next_slice(connection: &mut PgConnection, rows_max: i64) -> Result<Slice, StoreError> {
    sqlx::query!("SELECT pg_advisory_xact_lock_shared($1)", CLOSE_LOCK).fetch_one(&mut *connection).await?;
    // A slice is sorted and hashed in memory: some 75 MB for 300,000 rows.
    sqlx::query!("SET LOCAL work_mem = '96MB'").execute(&mut *connection).await?;
    let rows = sqlx::query!(
        r#"SELECT id AS "id: BatchId", rows, booked_on, origin = 'rerate' AS "rerated!" FROM ingest_batches
           WHERE posted_at IS NULL ORDER BY id LIMIT 2000 FOR UPDATE SKIP LOCKED"#
    )
    .fetch_all(connection)
    .await?;
    let mut slice = Slice::default();
    for row in rows {
        if slice.rows > 0 && slice.rows + i64::from(row.rows) > rows_max || !slice.reaches(row.id) {
            break;
        }
        slice.rows += i64::from(row.rows);
        slice.rerated |= row.rerated;
        slice.batches.push(row.id);
        if !slice.dates.contains(&row.booked_on) {
            slice.dates.push(row.booked_on);
        }
    }
    Ok(slice)
}

/// Refuses a slice with rows in a partition that is not part of the journal: they cannot be seen, and folding what can be
/// would lose them. Asked before and after the fold: a concurrent detach may have begun in between.
///
/// # Errors
/// [`StoreError::NoPartition`]; [`StoreError::Database`].
pub async fn require_partitions(connection: &mut PgConnection, slice: &Slice) -> Result<(), StoreError> {
    for day in &slice.dates {
        if journal::partition(connection, *day).await?.is_none() {
            return Err(StoreError::NoPartition(*day));
        }
    }
    Ok(())
}

/// A customer's day with usage that lies in no billing period yet.
#[derive(Debug, Clone)]
pub struct MissingPeriod {
    /// The customer.
    pub customer: CustomerId,
    /// The customer's zone.
    pub time_zone: String,
    /// The day its periods start on.
    pub anchor_day: i16,
    /// An instant that no period holds.
    pub at: DateTime<Utc>,
}

/// Usage in the slice that lies in no billing period yet: one instant per customer and hour of its
/// zone: in some zones a period starts within a UTC hour.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn missing_periods(
    connection: &mut PgConnection,
    slice: &Slice,
) -> Result<Vec<MissingPeriod>, StoreError> {
    let rows = sqlx::query_as!(
        MissingPeriod,
        r#"SELECT e.customer_id AS "customer: CustomerId", c.time_zone, c.anchor_day, min(e.occurred_at) AS "at!"
           FROM usage_events e
           JOIN customers c ON c.id = e.customer_id
           WHERE e.batch_id BETWEEN $1 AND $2 AND e.batch_id <> ALL($3) AND e.booked_on = ANY($4)
             AND NOT EXISTS (SELECT 1 FROM billing_periods p
                             WHERE p.customer_id = e.customer_id
                               AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at)
           GROUP BY e.customer_id, c.time_zone, c.anchor_day, date_trunc('hour', e.occurred_at, c.time_zone)"#,
        slice.first(),
        slice.last(),
        &slice.holes(),
        &slice.dates
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Folds the slice into the hourly rollups. Keys are taken in order, so that posters never wait for each other in a
/// circle. Usage that lies in no billing period has no `service_period`, which the table refuses.
///
/// # Errors
/// [`StoreError::Database`]; a not-null violation where [`missing_periods`] have to be made first.
pub async fn fold_rollups(connection: &mut PgConnection, slice: &Slice) -> Result<u64, StoreError> {
    let result = sqlx::query!(
        "INSERT INTO usage_rollups AS r
             (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
              events, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, rare, cost, charge)
         -- By quarters of an hour first, of which zone and period are looked up once instead of per row: the offset of
         -- every zone has been whole quarters of an hour since 1972, so hours and periods begin between two of them.
         WITH quarters AS (
             SELECT e.customer_id, date_bin('15 minutes', e.occurred_at, '2000-01-01T00:00:00Z') AS quarter,
                    e.cost_price_id, e.sell_price_id, e.project, e.task_type,
                    e.kind IN ('retraction', 'restatement') AS restated,
                    -- A call counts once however many parts it has; 1000 reverses the first part of an estimate.
                    SUM(CASE e.part WHEN 0 THEN 1 WHEN 1000 THEN -1 ELSE 0 END) AS events,
                    SUM(e.input) AS input, SUM(e.cache_read) AS cache_read, SUM(e.cache_write_5m) AS cache_write_5m,
                    SUM(e.cache_write_1h) AS cache_write_1h, SUM(e.output) AS output, SUM(e.reasoning) AS reasoning,
                    -- The filter spares most rows a call of the function, which is dear.
                    rare_sum(e.rare) FILTER (WHERE e.rare IS NOT NULL) AS rare,
                    SUM(e.cost) AS cost, SUM(e.charge) AS charge
             FROM usage_events e
             WHERE e.batch_id BETWEEN $1 AND $2 AND e.batch_id <> ALL($3) AND e.booked_on = ANY($4) AND e.kind <> 'outcome'
             GROUP BY 1, 2, 3, 4, 5, 6, 7
         )
         SELECT q.customer_id,
                -- Usage of a period that is closed already is late: it is billed in the first open one.
                GREATEST(p.start_at, COALESCE(c.closed_through, p.start_at)),
                p.start_at,
                -- Aligned to the customer's zone, so that a period starts between two hours in every zone.
                date_trunc('hour', q.quarter, c.time_zone),
                q.cost_price_id, q.sell_price_id, COALESCE(q.project, ''), COALESCE(q.task_type, ''),
                -- A re-rate gets invoice lines of its own.
                CASE WHEN q.restated THEN 'adjustment' ELSE 'usage' END,
                SUM(q.events), SUM(q.input), SUM(q.cache_read), SUM(q.cache_write_5m), SUM(q.cache_write_1h),
                SUM(q.output), SUM(q.reasoning), rare_sum(q.rare) FILTER (WHERE q.rare IS NOT NULL), SUM(q.cost),
                SUM(q.charge)
         FROM quarters q
         JOIN customers c ON c.id = q.customer_id
         LEFT JOIN billing_periods p ON p.customer_id = q.customer_id
                                    AND p.start_at <= q.quarter AND q.quarter < p.end_at
         GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
         ORDER BY 1, 2, 4, 5, 6, 7, 8, 9, 3
         ON CONFLICT (customer_id, booked_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
                      whole_day, service_period)
         DO UPDATE SET events = r.events + EXCLUDED.events, input = r.input + EXCLUDED.input,
             cache_read = r.cache_read + EXCLUDED.cache_read,
             cache_write_5m = r.cache_write_5m + EXCLUDED.cache_write_5m,
             cache_write_1h = r.cache_write_1h + EXCLUDED.cache_write_1h,
             output = r.output + EXCLUDED.output, reasoning = r.reasoning + EXCLUDED.reasoning,
             rare = CASE WHEN EXCLUDED.rare IS NULL THEN r.rare ELSE rare_add(r.rare, EXCLUDED.rare) END,
             cost = r.cost + EXCLUDED.cost, charge = r.charge + EXCLUDED.charge",
        slice.first(),
        slice.last(),
        &slice.holes(),
        &slice.dates
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

/// Folds the slice into the task totals, outcomes included.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn fold_tasks(connection: &mut PgConnection, slice: &Slice) -> Result<u64, StoreError> {
    let result = sqlx::query!(
        "INSERT INTO tasks AS t
             (customer_id, task_id, task_type, parent, first_event_at, last_event_at, calls, input, cache_read,
              cache_write_5m, cache_write_1h, output, reasoning, rare, cost, charge, models, outcome, ended_at,
              outcome_period, first_batch, last_batch, first_booked_on, last_booked_on)
         SELECT e.customer_id, e.task_id, MIN(e.task_type), MIN(e.task_parent), MIN(e.occurred_at), MAX(e.occurred_at),
                SUM(CASE WHEN e.kind = 'outcome' THEN 0 WHEN e.part = 0 THEN 1 WHEN e.part = 1000 THEN -1 ELSE 0 END),
                SUM(e.input), SUM(e.cache_read), SUM(e.cache_write_5m), SUM(e.cache_write_1h), SUM(e.output),
                SUM(e.reasoning), rare_sum(e.rare) FILTER (WHERE e.rare IS NOT NULL), SUM(e.cost), SUM(e.charge),
                COALESCE(ARRAY_AGG(DISTINCT e.model) FILTER (WHERE e.kind = 'usage'), '{}'),
                -- The latest outcome stands; of two at one instant the first in the alphabet, whatever came first.
                (ARRAY_AGG(e.outcome ORDER BY e.occurred_at DESC, e.outcome) FILTER (WHERE e.kind = 'outcome'))[1],
                MAX(e.occurred_at) FILTER (WHERE e.kind = 'outcome'),
                -- The period it is booked to, by the same rule as usage; looked up for outcomes only.
                (ARRAY_AGG((SELECT GREATEST(p.start_at, COALESCE(c.closed_through, p.start_at))
                            FROM billing_periods p JOIN customers c ON c.id = p.customer_id
                            WHERE p.customer_id = e.customer_id
                              AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at)
                           ORDER BY e.occurred_at DESC, e.outcome) FILTER (WHERE e.kind = 'outcome'))[1],
                MIN(e.batch_id), MAX(e.batch_id), MIN(e.booked_on), MAX(e.booked_on)
         FROM usage_events e
         WHERE e.batch_id BETWEEN $1 AND $2 AND e.batch_id <> ALL($3) AND e.booked_on = ANY($4) AND e.task_id IS NOT NULL
         GROUP BY e.customer_id, e.task_id
         ORDER BY e.customer_id, e.task_id
         ON CONFLICT (customer_id, task_id)
         DO UPDATE SET task_type = LEAST(t.task_type, EXCLUDED.task_type), parent = LEAST(t.parent, EXCLUDED.parent),
             first_event_at = LEAST(t.first_event_at, EXCLUDED.first_event_at),
             last_event_at = GREATEST(t.last_event_at, EXCLUDED.last_event_at),
             calls = t.calls + EXCLUDED.calls, input = t.input + EXCLUDED.input,
             cache_read = t.cache_read + EXCLUDED.cache_read,
             cache_write_5m = t.cache_write_5m + EXCLUDED.cache_write_5m,
             cache_write_1h = t.cache_write_1h + EXCLUDED.cache_write_1h,
             output = t.output + EXCLUDED.output, reasoning = t.reasoning + EXCLUDED.reasoning,
             rare = CASE WHEN EXCLUDED.rare IS NULL THEN t.rare ELSE rare_add(t.rare, EXCLUDED.rare) END,
             cost = t.cost + EXCLUDED.cost, charge = t.charge + EXCLUDED.charge,
             models = CASE WHEN t.models @> EXCLUDED.models THEN t.models
                           ELSE ARRAY(SELECT DISTINCT unnest(t.models || EXCLUDED.models) ORDER BY 1) END,
             outcome = CASE WHEN EXCLUDED.ended_at > t.ended_at OR t.ended_at IS NULL
                            THEN COALESCE(EXCLUDED.outcome, t.outcome)
                            WHEN EXCLUDED.ended_at = t.ended_at THEN LEAST(t.outcome, EXCLUDED.outcome)
                            ELSE t.outcome END,
             outcome_period = CASE WHEN EXCLUDED.ended_at > t.ended_at OR t.ended_at IS NULL
                                     OR (EXCLUDED.ended_at = t.ended_at AND EXCLUDED.outcome < t.outcome)
                                   THEN COALESCE(EXCLUDED.outcome_period, t.outcome_period)
                                   ELSE t.outcome_period END,
             ended_at = GREATEST(t.ended_at, EXCLUDED.ended_at),
             first_batch = LEAST(t.first_batch, EXCLUDED.first_batch),
             last_batch = GREATEST(t.last_batch, EXCLUDED.last_batch),
             first_booked_on = LEAST(t.first_booked_on, EXCLUDED.first_booked_on),
             last_booked_on = GREATEST(t.last_booked_on, EXCLUDED.last_booked_on)",
        slice.first(),
        slice.last(),
        &slice.holes(),
        &slice.dates
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

/// Keeps which re-rates are in the adjustments that the slice adds to a period, for the lines that say why.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn fold_reasons(connection: &mut PgConnection, slice: &Slice) -> Result<(), StoreError> {
    if !slice.rerated {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO adjustment_reasons (customer_id, booked_period, service_period, sell_price_id, batch_id, booked_on,
             reason)
         SELECT DISTINCT e.customer_id, GREATEST(p.start_at, COALESCE(c.closed_through, p.start_at)), p.start_at,
                e.sell_price_id, e.batch_id, e.booked_on, r.reason
         FROM usage_events e
         JOIN rerates r ON r.batch_id = e.batch_id
         JOIN customers c ON c.id = e.customer_id
         JOIN billing_periods p ON p.customer_id = e.customer_id
                               AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at
         WHERE e.batch_id BETWEEN $1 AND $2 AND e.batch_id <> ALL($3) AND e.booked_on = ANY($4) AND e.restates IS NOT NULL
         ON CONFLICT DO NOTHING",
        slice.first(),
        slice.last(),
        &slice.holes(),
        &slice.dates
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Marks the slice posted.
///
/// # Errors
/// [`StoreError::RowsAffected`] where one of its batches was posted already, which the locks make impossible.
pub async fn mark_posted(connection: &mut PgConnection, slice: &Slice) -> Result<(), StoreError> {
    let result = sqlx::query!(
        // How many periods were closed before says for ever which period its late usage was booked to.
        "UPDATE ingest_batches SET posted_at = now(),
             posted_closing = (SELECT COALESCE(max(closing), 0) FROM billing_periods)
         WHERE id = ANY($1) AND posted_at IS NULL",
        &ids(slice)
    )
    .execute(connection)
    .await?;
    ensure_affected("marking batches as posted", &result, slice.batches.len() as u64)
}

fn ids(slice: &Slice) -> Vec<i64> {
    slice.batches.iter().map(|batch| batch.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_knows_the_ids_between_its_batches_and_ends_where_they_are_many() {
        let mut slice = Slice::default();
        for next in [7, 8, 11] {
            assert!(slice.reaches(BatchId(next)));
            slice.batches.push(BatchId(next));
        }
        assert_eq!((slice.first(), slice.last(), slice.holes().as_slice()), (7, 11, [9, 10].as_slice()));
        assert!(!slice.reaches(BatchId(11 + HOLES_MAX)), "{HOLES_MAX} with the two of before are too many");
        assert!(!slice.reaches(BatchId(i64::MAX)));
        assert_eq!(slice.holes(), [9, 10], "what is not reached leaves no holes");
        assert!(slice.reaches(BatchId(11 + HOLES_MAX - 1)));
    }
}
