//! Sums put right: replaced by what the journal folded again gives, of customers of whom nothing final differs.
//!
//! The caller holds the close lock exclusively, so nothing is posted, closed or compacted meanwhile.

use sqlx::PgConnection;

use super::StoreError;
use super::verify::Difference;
use crate::domain::ids::CustomerId;

/// How many rows were replaced, added or removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Rollups.
    pub rollups: u64,
    /// Tasks.
    pub tasks: u64,
    /// Reasons of adjustments.
    pub reasons: u64,
}

impl Replaced {
    /// Whether everything was right already.
    pub const fn nothing(self) -> bool {
        self.rollups == 0 && self.tasks == 0 && self.reasons == 0
    }
}

/// What differs and is final.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Final {
    /// Whose it is. What differs beside it in open periods may be the other side of it.
    pub customers: Vec<CustomerId>,
    /// Of every such customer something.
    pub differences: Vec<Difference>,
}

/// What differs and is final: sums booked to a closed period, and outcomes that a closed period was charged by. About `limit`
/// differences, and at least one of each customer.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn final_differences(connection: &mut PgConnection, limit: i64) -> Result<Final, StoreError> {
    let rows = sqlx::query!(
        r#"WITH closed AS (
               SELECT customer_id, start_at AS period FROM billing_periods WHERE state = 'closed'
           ), differences (customer_id, subject, expected, actual) AS (
               SELECT d.customer_id, format('customer %s, booked to %s, hour %s, sell price %s', d.customer_id, d.booked_period,
                             d.hour, d.sell_price_id),
                      format('journal %s', COALESCE(d.expected::text, 'nothing')),
                      format('rollup %s', COALESCE(d.actual::text, 'none'))
               FROM differing_rollups d JOIN closed c ON c.customer_id = d.customer_id AND c.period = d.booked_period
               UNION ALL
               SELECT d.customer_id, format('customer %s, booked to %s, day %s, sell price %s', d.customer_id, d.booked_period, d.hour,
                             d.sell_price_id),
                      format('hours %s', COALESCE(d.expected::text, 'none')),
                      format('day %s', COALESCE(d.actual::text, 'none'))
               FROM differing_days d JOIN closed c ON c.customer_id = d.customer_id AND c.period = d.booked_period
               UNION ALL
               SELECT d.customer_id, format('customer %s, task %s: outcome', d.customer_id, d.task_id),
                      format('journal %s, booked to %s', COALESCE(d.expected ->> 'outcome', 'none'),
                             COALESCE(d.expected ->> 'outcome_period', 'no period')),
                      format('task %s, booked to %s', COALESCE(d.actual ->> 'outcome', 'none'),
                             COALESCE(d.actual ->> 'outcome_period', 'no period'))
               FROM differing_tasks d
               WHERE (d.expected ->> 'outcome', d.expected ->> 'ended_at', d.expected ->> 'outcome_period')
                     IS DISTINCT FROM (d.actual ->> 'outcome', d.actual ->> 'ended_at', d.actual ->> 'outcome_period')
                 AND EXISTS (SELECT FROM closed c WHERE c.customer_id = d.customer_id
                             AND c.period IN ((d.expected ->> 'outcome_period')::timestamptz,
                                              (d.actual ->> 'outcome_period')::timestamptz))
               UNION ALL
               SELECT d.customer_id,
                      format('customer %s, booked to %s, re-rate of batch %s', d.customer_id, d.booked_period, d.batch_id),
                      format('journal %s', COALESCE(d.expected::text, 'nothing')),
                      format('reason %s', COALESCE(d.actual::text, 'none'))
               FROM differing_reasons d JOIN closed c ON c.customer_id = d.customer_id AND c.period = d.booked_period
           ), numbered AS (
               SELECT *, row_number() OVER (PARTITION BY customer_id) AS of_customer, row_number() OVER () AS of_all
               FROM differences
           )
           SELECT customer_id AS "customer!: CustomerId", subject AS "subject!", expected AS "expected!", actual AS "actual!"
           FROM numbered WHERE of_all <= $1 OR of_customer = 1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    let mut found = Final::default();
    for row in rows {
        if !found.customers.contains(&row.customer) {
            found.customers.push(row.customer);
        }
        found.differences.push(Difference {
            subject: row.subject,
            expected: row.expected,
            actual: row.actual,
        });
    }
    Ok(found)
}

/// Replaces every row that differs by what the journal gives, except those of some customers. A period that usage is booked to
/// and that is not there makes this fail.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn replace(connection: &mut PgConnection, except: &[CustomerId]) -> Result<Replaced, StoreError> {
    let except: Vec<i64> = except.iter().map(|customer| customer.0).collect();
    Ok(Replaced {
        rollups: replace_rollups(connection, &except).await?,
        tasks: replace_tasks(connection, &except).await?,
        reasons: replace_reasons(connection, &except).await?,
    })
}

/// What differs still, except of some customers.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn left_differences(
    connection: &mut PgConnection,
    except: &[CustomerId],
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"SELECT format('customer %s, %s', customer_id, what) AS "subject!",
                  format('journal %s', COALESCE(expected::text, 'nothing')) AS "expected!",
                  COALESCE(actual::text, 'none') AS "actual!"
           FROM (SELECT customer_id, 'a rollup' AS what, expected, actual FROM differing_rollups
                 UNION ALL SELECT customer_id, 'a day', expected, actual FROM differing_days
                 UNION ALL SELECT customer_id, 'a task', expected, actual FROM differing_tasks
                 UNION ALL SELECT customer_id, 'a reason of an adjustment', expected, actual FROM differing_reasons) AS d
           WHERE customer_id <> ALL($1) LIMIT $2"#,
        &except.iter().map(|customer| customer.0).collect::<Vec<i64>>(),
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// First the rows that differ go, then those that are missing come, by the hour; compaction sums them again.
async fn replace_rollups(connection: &mut PgConnection, except: &[i64]) -> Result<u64, StoreError> {
    let differing = sqlx::query_scalar!(
        r#"SELECT (SELECT count(*) FROM differing_rollups WHERE customer_id <> ALL($1))
                  + (SELECT count(*) FROM differing_days WHERE customer_id <> ALL($1)) AS "count!""#,
        except
    )
    .fetch_one(&mut *connection)
    .await?;
    if differing == 0 {
        return Ok(0);
    }
    sqlx::query!(
        "DELETE FROM usage_rollups r USING differing_rollups d
         WHERE NOT r.whole_day AND d.customer_id <> ALL($1)
           AND (r.customer_id, r.booked_period, r.service_period, r.hour, r.cost_price_id, r.sell_price_id, r.project,
                r.task_type, r.kind)
             = (d.customer_id, d.booked_period, d.service_period, d.hour, d.cost_price_id, d.sell_price_id, d.project,
                d.task_type, d.kind)",
        except
    )
    .execute(&mut *connection)
    .await?;
    // What still differs is in the kept hours.
    sqlx::query!(
        "DELETE FROM usage_hours h USING differing_rollups d
         WHERE d.customer_id <> ALL($1)
           AND (h.customer_id, h.booked_period, h.service_period, h.hour, h.cost_price_id, h.sell_price_id, h.project,
                h.task_type, h.kind)
             = (d.customer_id, d.booked_period, d.service_period, d.hour, d.cost_price_id, d.sell_price_id, d.project,
                d.task_type, d.kind)",
        except
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO usage_rollups (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id,
             project, task_type, kind, events, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning,
             rare, cost, charge)
         SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
                f.events, f.input, f.cache_read, f.cache_write_5m, f.cache_write_1h, f.output, f.reasoning, f.rare,
                f.cost, f.charge
         FROM refolded_rollups f
         JOIN differing_rollups d USING (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id,
                                         project, task_type, kind)
         WHERE d.actual IS NULL AND customer_id <> ALL($1)",
        except
    )
    .execute(&mut *connection)
    .await?;
    replace_days(connection, except).await?;
    Ok(differing.unsigned_abs())
}

/// Makes the rows of days the sums of their hours again.
async fn replace_days(connection: &mut PgConnection, except: &[i64]) -> Result<(), StoreError> {
    sqlx::query!(
        "DELETE FROM usage_rollups r USING differing_days d
         WHERE r.whole_day AND d.customer_id <> ALL($1)
           AND (r.customer_id, r.booked_period, r.service_period, r.hour, r.cost_price_id, r.sell_price_id, r.project,
                r.task_type, r.kind)
             = (d.customer_id, d.booked_period, d.service_period, d.hour, d.cost_price_id, d.sell_price_id, d.project,
                d.task_type, d.kind)",
        except
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO usage_rollups (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id,
             project, task_type, kind, whole_day, events, input, cache_read, cache_write_5m, cache_write_1h, output,
             reasoning, rare, cost, charge)
         SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
                true, s.events, s.input, s.cache_read, s.cache_write_5m, s.cache_write_1h, s.output, s.reasoning, s.rare,
                s.cost, s.charge
         FROM summed_days s
         JOIN differing_days d USING (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id,
                                      project, task_type, kind)
         WHERE d.actual IS NULL AND customer_id <> ALL($1)",
        except
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn replace_tasks(connection: &mut PgConnection, except: &[i64]) -> Result<u64, StoreError> {
    let differing = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM differing_tasks WHERE customer_id <> ALL($1)"#,
        except
    )
    .fetch_one(&mut *connection)
    .await?;
    if differing == 0 {
        return Ok(0);
    }
    sqlx::query!(
        "DELETE FROM tasks t USING differing_tasks d
         WHERE t.customer_id = d.customer_id AND t.task_id = d.task_id AND d.customer_id <> ALL($1)",
        except
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO tasks (customer_id, task_id, task_type, parent, first_event_at, last_event_at, calls, input,
             cache_read, cache_write_5m, cache_write_1h, output, reasoning, rare, cost, charge, models, outcome,
             ended_at, outcome_period, first_batch, last_batch, first_booked_on, last_booked_on)
         SELECT f.customer_id, f.task_id, f.task_type, f.parent, f.first_event_at, f.last_event_at, f.calls, f.input,
                f.cache_read, f.cache_write_5m, f.cache_write_1h, f.output, f.reasoning, f.rare, f.cost, f.charge,
                f.models, f.outcome, f.ended_at, f.outcome_period, f.first_batch, f.last_batch, f.first_booked_on,
                f.last_booked_on
         FROM refolded_tasks f
         WHERE NOT EXISTS (SELECT FROM tasks t WHERE t.customer_id = f.customer_id AND t.task_id = f.task_id)
           AND f.customer_id <> ALL($1)",
        except
    )
    .execute(connection)
    .await?;
    Ok(differing.unsigned_abs())
}

async fn replace_reasons(connection: &mut PgConnection, except: &[i64]) -> Result<u64, StoreError> {
    let differing = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM differing_reasons WHERE customer_id <> ALL($1)"#,
        except
    )
    .fetch_one(&mut *connection)
    .await?;
    if differing == 0 {
        return Ok(0);
    }
    sqlx::query!(
        "DELETE FROM adjustment_reasons r USING differing_reasons d
         WHERE (r.customer_id, r.booked_period, r.service_period, r.sell_price_id, r.batch_id)
             = (d.customer_id, d.booked_period, d.service_period, d.sell_price_id, d.batch_id)
           AND d.customer_id <> ALL($1)",
        except
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO adjustment_reasons (customer_id, booked_period, service_period, sell_price_id, batch_id, booked_on,
             reason)
         SELECT customer_id, booked_period, service_period, sell_price_id, batch_id, booked_on, reason
         FROM refolded_reasons WHERE customer_id <> ALL($1) ON CONFLICT DO NOTHING",
        except
    )
    .execute(connection)
    .await?;
    Ok(differing.unsigned_abs())
}
