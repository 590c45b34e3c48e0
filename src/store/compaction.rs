//! Compaction: hours of days that are over are summed into one row per day, and their rows kept beside it.
//!
//! Rows of hours that a poster is at are passed over, so compaction never waits for posting; what posting adds to such a day
//! later is a row of its hour again, summed into the day in another round. Posting never touches the row of a day.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;

use super::{StoreError, periods};
use crate::domain::ids::CustomerId;

/// First half of the advisory lock of one customer's compaction; the second is the customer. Locks of two halves never
/// meet those of one number.
const COMPACTION_LOCK: i32 = 0x77_61_79;

/// A customer with hours to sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The customer.
    pub customer: CustomerId,
    /// Hours before this begin of a day of its zone.
    pub before: DateTime<Utc>,
}

/// Customers with hours of days that ended longer than `after` ago, each in its own zone.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn due(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    after: TimeDelta,
) -> Result<Vec<Due>, StoreError> {
    let ended_by = now.checked_sub_signed(after).unwrap_or(DateTime::UNIX_EPOCH);
    let due = sqlx::query_as!(
        Due,
        r#"SELECT c.id AS "customer: CustomerId", day.begins AS "before!"
           FROM customers c, LATERAL (SELECT local_day_start($1, c.time_zone) AS begins) AS day
           WHERE EXISTS (SELECT FROM usage_rollups r
                         WHERE r.customer_id = c.id AND NOT r.whole_day AND r.hour < day.begins)
           ORDER BY c.id"#,
        ended_by
    )
    .fetch_all(connection)
    .await?;
    Ok(due)
}

/// Sums up to `rows_max` hours of a customer into its days; returns how many, zero where none is left that nobody is at.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn sum_hours(connection: &mut PgConnection, due: Due, rows_max: i64) -> Result<i64, StoreError> {
    // As a poster: sums are not moved while a period is closed or sums are put right.
    periods::keep_open(connection).await?;
    let mine = sqlx::query_scalar!(
        r#"SELECT pg_try_advisory_xact_lock($1, hashint8($2)) AS "mine!""#,
        COMPACTION_LOCK,
        due.customer.0
    )
    .fetch_one(&mut *connection)
    .await?;
    if !mine {
        return Ok(0);
    }
    let summed = sqlx::query_scalar!(
        r#"WITH moved AS (
               DELETE FROM usage_rollups
               WHERE ctid = ANY(ARRAY(SELECT ctid FROM usage_rollups
                                      WHERE customer_id = $1 AND NOT whole_day AND hour < $2
                                      ORDER BY hour LIMIT $3 FOR UPDATE SKIP LOCKED))
               RETURNING *
           ), placed AS (
               -- A period may begin within a day where the calendar was changed.
               SELECT m.*, GREATEST(local_day_start(m.hour, c.time_zone), m.service_period) AS day
               FROM moved m JOIN customers c ON c.id = m.customer_id
           ), kept AS (
               INSERT INTO usage_hours AS h (customer_id, booked_period, service_period, day, hour, cost_price_id,
                   sell_price_id, project, task_type, kind, events, input, cache_read, cache_write_5m, cache_write_1h,
                   output, reasoning, rare, cost, charge)
               SELECT customer_id, booked_period, service_period, day, hour, cost_price_id, sell_price_id, project,
                      task_type, kind, events, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, rare,
                      cost, charge
               FROM placed
               ON CONFLICT (customer_id, booked_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
                            service_period)
               DO UPDATE SET events = h.events + EXCLUDED.events, input = h.input + EXCLUDED.input,
                   cache_read = h.cache_read + EXCLUDED.cache_read,
                   cache_write_5m = h.cache_write_5m + EXCLUDED.cache_write_5m,
                   cache_write_1h = h.cache_write_1h + EXCLUDED.cache_write_1h,
                   output = h.output + EXCLUDED.output, reasoning = h.reasoning + EXCLUDED.reasoning,
                   rare = rare_add(h.rare, EXCLUDED.rare), cost = h.cost + EXCLUDED.cost,
                   charge = h.charge + EXCLUDED.charge
           ), days AS (
               INSERT INTO usage_rollups AS r (customer_id, booked_period, service_period, hour, cost_price_id,
                   sell_price_id, project, task_type, kind, whole_day, events, input, cache_read, cache_write_5m,
                   cache_write_1h, output, reasoning, rare, cost, charge)
               SELECT customer_id, booked_period, service_period, day, cost_price_id, sell_price_id, project, task_type,
                      kind, true, sum(events), sum(input), sum(cache_read), sum(cache_write_5m), sum(cache_write_1h),
                      sum(output), sum(reasoning), rare_sum(rare) FILTER (WHERE rare IS NOT NULL), sum(cost),
                      sum(charge)
               FROM placed
               GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
               ON CONFLICT (customer_id, booked_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
                            whole_day, service_period)
               DO UPDATE SET events = r.events + EXCLUDED.events, input = r.input + EXCLUDED.input,
                   cache_read = r.cache_read + EXCLUDED.cache_read,
                   cache_write_5m = r.cache_write_5m + EXCLUDED.cache_write_5m,
                   cache_write_1h = r.cache_write_1h + EXCLUDED.cache_write_1h,
                   output = r.output + EXCLUDED.output, reasoning = r.reasoning + EXCLUDED.reasoning,
                   rare = rare_add(r.rare, EXCLUDED.rare), cost = r.cost + EXCLUDED.cost,
                   charge = r.charge + EXCLUDED.charge
           )
           SELECT count(*) AS "summed!" FROM moved"#,
        due.customer.0,
        due.before,
        rows_max
    )
    .fetch_one(connection)
    .await?;
    Ok(summed)
}
