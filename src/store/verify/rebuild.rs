//! Every sum against the journal folded again, row by row with its whole key.

use sqlx::PgConnection;

use super::Difference;
use crate::store::StoreError;

/// Rollups that are not what the posted journal gives: every column of every key, the booked period of late usage too.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn refolded_rollup_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"SELECT format('customer %s, booked to %s, %s of %s, hour %s, cost price %s, sell price %s, project %L, task type %L',
                         customer_id, booked_period, kind, service_period, hour, cost_price_id, sell_price_id, project,
                         task_type) AS "subject!",
                  format('journal %s', COALESCE(expected::text, 'nothing')) AS "expected!",
                  format('rollup %s', COALESCE(actual::text, 'none')) AS "actual!"
           FROM differing_rollups
           ORDER BY customer_id, booked_period, hour, cost_price_id, sell_price_id, project, task_type, kind LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Rows of days that are not the sum of the hours kept beside them.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn day_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"SELECT format('customer %s, booked to %s, %s of %s, day %s, cost price %s, sell price %s, project %L, task type %L',
                         customer_id, booked_period, kind, service_period, hour, cost_price_id, sell_price_id, project,
                         task_type) AS "subject!",
                  format('hours %s', COALESCE(expected::text, 'none')) AS "expected!",
                  format('day %s', COALESCE(actual::text, 'none')) AS "actual!"
           FROM differing_days
           ORDER BY customer_id, booked_period, hour, cost_price_id, sell_price_id, project, task_type, kind LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Tasks that are not what the posted journal gives: every column.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn refolded_task_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"SELECT format('customer %s, task %s', customer_id, task_id) AS "subject!",
                  format('journal %s', COALESCE(expected::text, 'nothing')) AS "expected!",
                  format('task %s', COALESCE(actual::text, 'none')) AS "actual!"
           FROM differing_tasks ORDER BY customer_id, task_id LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Reasons of adjustments that are not those of the posted re-rates.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn refolded_reason_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"SELECT format('customer %s, booked to %s, re-rate of batch %s', customer_id, booked_period, batch_id)
                      AS "subject!",
                  format('journal %s', COALESCE(expected::text, 'nothing')) AS "expected!",
                  format('reason %s', COALESCE(actual::text, 'none')) AS "actual!"
           FROM differing_reasons
           ORDER BY customer_id, booked_period, service_period, sell_price_id, batch_id LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
