//! The rollups and the task totals against the journal of posted batches, and what is archived of it.

use sqlx::PgConnection;

use super::Difference;
use crate::store::StoreError;

/// Rollups that are not the sum of the journal, per customer, cost price, sell price and kind.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn rollup_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH journal AS (
               SELECT customer_id, cost_price_id, sell_price_id, kind,
                      ARRAY[sum(input), sum(cache_read), sum(cache_write_5m), sum(cache_write_1h),
                            sum(output), sum(reasoning), sum(cost), sum(charge)] AS figures
               FROM (
                   SELECT e.customer_id, e.cost_price_id, e.sell_price_id,
                          CASE WHEN e.restates IS NULL THEN 'usage' ELSE 'adjustment' END AS kind,
                          sum(e.input) AS input, sum(e.cache_read) AS cache_read,
                          sum(e.cache_write_5m) AS cache_write_5m, sum(e.cache_write_1h) AS cache_write_1h,
                          sum(e.output) AS output, sum(e.reasoning) AS reasoning, sum(e.cost) AS cost,
                          sum(e.charge) AS charge
                   FROM posted_events e
                   WHERE e.kind <> 'outcome'
                   GROUP BY 1, 2, 3, 4
                   UNION ALL
                   SELECT customer_id, cost_price_id, sell_price_id, kind, input, cache_read, cache_write_5m,
                          cache_write_1h, output, reasoning, cost, charge
                   FROM archived_rollups
               ) AS parts
               GROUP BY 1, 2, 3, 4
           ), rolled AS (
               SELECT customer_id, cost_price_id, sell_price_id, kind,
                      ARRAY[sum(input), sum(cache_read), sum(cache_write_5m), sum(cache_write_1h),
                            sum(output), sum(reasoning), sum(cost), sum(charge)] AS figures
               FROM usage_rollups
               GROUP BY 1, 2, 3, 4
           )
           SELECT format('customer %s, cost price %s, sell price %s, %s: input, cache_read, cache_write_5m, '
                         || 'cache_write_1h, output, reasoning, cost, charge', customer_id, cost_price_id,
                         sell_price_id, kind) AS "subject!",
                  format('journal %s', COALESCE(j.figures::text, 'nothing')) AS "expected!",
                  format('rollups %s', COALESCE(r.figures::text, 'nothing')) AS "actual!"
           FROM journal j FULL JOIN rolled r USING (customer_id, cost_price_id, sell_price_id, kind)
           WHERE j.figures IS DISTINCT FROM r.figures
           ORDER BY customer_id, cost_price_id, sell_price_id, kind LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// As [`rollup_differences`], for the classes without a column.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn rare_rollup_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH journal AS (
               SELECT customer_id, cost_price_id, sell_price_id, kind, class, sum(quantity) AS quantity
               FROM (
                   SELECT e.customer_id, e.cost_price_id, e.sell_price_id,
                          CASE WHEN e.restates IS NULL THEN 'usage' ELSE 'adjustment' END AS kind, q.key AS class,
                          q.value::numeric AS quantity
                   FROM posted_events e, jsonb_each_text(e.rare) q
                   WHERE e.kind <> 'outcome'
                   UNION ALL
                   SELECT a.customer_id, a.cost_price_id, a.sell_price_id, a.kind, q.key, q.value::numeric
                   FROM archived_rollups a, jsonb_each_text(a.rare) q
               ) AS parts
               GROUP BY 1, 2, 3, 4, 5
           ), rolled AS (
               SELECT r.customer_id, r.cost_price_id, r.sell_price_id, r.kind, q.key AS class,
                      sum(q.value::numeric) AS quantity
               FROM usage_rollups r, jsonb_each_text(r.rare) q
               GROUP BY 1, 2, 3, 4, 5
           )
           SELECT format('customer %s, cost price %s, sell price %s, %s: %s', customer_id, cost_price_id, sell_price_id,
                         kind, class) AS "subject!",
                  format('journal %s', COALESCE(j.quantity, 0)) AS "expected!",
                  format('rollups %s', COALESCE(r.quantity, 0)) AS "actual!"
           FROM journal j FULL JOIN rolled r USING (customer_id, cost_price_id, sell_price_id, kind, class)
           WHERE COALESCE(j.quantity, 0) <> COALESCE(r.quantity, 0)
           ORDER BY customer_id, cost_price_id, sell_price_id, kind, class LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Tasks whose totals are not the sum of the journal.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn task_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH journal AS (
               SELECT customer_id, task_id, sum(input) AS input, sum(cache_read) AS cache_read,
                      sum(cache_write_5m) AS cache_write_5m, sum(cache_write_1h) AS cache_write_1h,
                      sum(output) AS output, sum(reasoning) AS reasoning, sum(cost) AS cost, sum(charge) AS charge
               FROM (
                   SELECT e.customer_id, e.task_id, sum(e.input) AS input, sum(e.cache_read) AS cache_read,
                          sum(e.cache_write_5m) AS cache_write_5m, sum(e.cache_write_1h) AS cache_write_1h,
                          sum(e.output) AS output, sum(e.reasoning) AS reasoning, sum(e.cost) AS cost,
                          sum(e.charge) AS charge
                   FROM posted_events e
                   WHERE e.task_id IS NOT NULL
                   GROUP BY 1, 2
                   UNION ALL
                   SELECT customer_id, task_id, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning,
                          cost, charge
                   FROM archived_tasks
               ) AS parts
               GROUP BY 1, 2
           )
           SELECT format('customer %s, task %s: input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, '
                         || 'cost, charge', customer_id, task_id) AS "subject!",
                  format('journal %s', ARRAY[j.input, j.cache_read, j.cache_write_5m, j.cache_write_1h, j.output,
                                             j.reasoning, j.cost, j.charge]) AS "expected!",
                  format('task %s', ARRAY[t.input, t.cache_read, t.cache_write_5m, t.cache_write_1h, t.output,
                                          t.reasoning, t.cost, t.charge]) AS "actual!"
           FROM journal j FULL JOIN tasks t USING (customer_id, task_id)
           WHERE (j.input, j.cache_read, j.cache_write_5m, j.cache_write_1h, j.output, j.reasoning, j.cost, j.charge)
                 IS DISTINCT FROM
                 (t.input, t.cache_read, t.cache_write_5m, t.cache_write_1h, t.output, t.reasoning, t.cost, t.charge)
           ORDER BY customer_id, task_id LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// As [`task_differences`], for the classes without a column.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn rare_task_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH journal AS (
               SELECT customer_id, task_id, class, sum(quantity) AS quantity
               FROM (
                   SELECT e.customer_id, e.task_id, q.key AS class, q.value::numeric AS quantity
                   FROM posted_events e, jsonb_each_text(e.rare) q
                   WHERE e.task_id IS NOT NULL
                   UNION ALL
                   SELECT a.customer_id, a.task_id, q.key, q.value::numeric
                   FROM archived_tasks a, jsonb_each_text(a.rare) q
               ) AS parts
               GROUP BY 1, 2, 3
           ), summed AS (
               SELECT t.customer_id, t.task_id, q.key AS class, q.value::numeric AS quantity
               FROM tasks t, jsonb_each_text(t.rare) q
           )
           SELECT format('customer %s, task %s: %s', customer_id, task_id, class) AS "subject!",
                  format('journal %s', COALESCE(j.quantity, 0)) AS "expected!",
                  format('task %s', COALESCE(s.quantity, 0)) AS "actual!"
           FROM journal j FULL JOIN summed s USING (customer_id, task_id, class)
           WHERE COALESCE(j.quantity, 0) <> COALESCE(s.quantity, 0)
           ORDER BY customer_id, task_id, class LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Tasks whose outcome is not the latest in the journal, or is booked to no period or to one before it ended.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn outcome_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH latest AS (
               SELECT DISTINCT ON (customer_id, task_id) customer_id, task_id, outcome, occurred_at
               FROM (
                   SELECT e.customer_id, e.task_id, e.outcome, e.occurred_at
                   FROM posted_events e
                   WHERE e.kind = 'outcome'
                   UNION ALL
                   SELECT customer_id, task_id, outcome, ended_at FROM archived_outcomes
               ) AS outcomes
               ORDER BY customer_id, task_id, occurred_at DESC, outcome
           ), kept AS (
               SELECT t.customer_id, t.task_id, t.outcome, t.ended_at, t.outcome_period,
                      EXISTS (SELECT FROM billing_periods own
                              JOIN billing_periods booked ON booked.customer_id = own.customer_id
                              WHERE own.customer_id = t.customer_id AND own.start_at <= t.ended_at
                                AND t.ended_at < own.end_at AND booked.start_at = t.outcome_period
                                AND booked.start_at >= own.start_at) AS booked
               FROM tasks t WHERE t.outcome IS NOT NULL OR t.ended_at IS NOT NULL OR t.outcome_period IS NOT NULL
           )
           SELECT format('customer %s, task %s: outcome', customer_id, task_id) AS "subject!",
                  format('journal %s', COALESCE(l.outcome || ' at ' || l.occurred_at, 'none')) AS "expected!",
                  format('task %s, booked to %s', COALESCE(k.outcome || ' at ' || k.ended_at, 'none'),
                         COALESCE(k.outcome_period::text, 'no period')) AS "actual!"
           FROM latest l FULL JOIN kept k USING (customer_id, task_id)
           WHERE (l.outcome, l.occurred_at) IS DISTINCT FROM (k.outcome, k.ended_at) OR k.booked IS NOT TRUE
           ORDER BY customer_id, task_id LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
