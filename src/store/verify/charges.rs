//! What prices over a billing period put on invoices: the usage they are made of, and the ledger of charged tasks.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::Difference;
use crate::domain::ids::{BookId, CustomerId, PeriodPriceId, PriceId};
use crate::domain::money::Rate;
use crate::domain::period::Period;
use crate::domain::settlement::{FinishedTask, HourOfUsage, PayingBooks};
use crate::store::StoreError;
use crate::store::quantities::{Rare, quantities_of};
use crate::store::settlement::TaskRow;

/// The usage booked to a period by the hour, as it is.
///
/// # Errors
/// [`StoreError`].
pub async fn booked_usage(
    connection: &mut PgConnection,
    customer: CustomerId,
    booked_period: DateTime<Utc>,
) -> Result<Vec<HourOfUsage>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT r.service_period AS "service_period!", p.end_at, r.hour AS "hour!",
                  r.sell_price_id AS "price!: PriceId", r.task_type AS "task_type!",
                  r.input::bigint AS "input!", r.cache_read::bigint AS "cache_read!",
                  r.cache_write_5m::bigint AS "cache_write_5m!", r.cache_write_1h::bigint AS "cache_write_1h!",
                  r.output::bigint AS "output!", r.reasoning::bigint AS "reasoning!", rare_units(r.rare) AS "rare: Rare"
           FROM usage_by_hour r
           JOIN billing_periods p ON p.customer_id = r.customer_id AND p.start_at = r.service_period
           WHERE r.customer_id = $1 AND r.booked_period = $2"#,
        customer.0,
        booked_period
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| HourOfUsage {
            service: Period { start: row.service_period, end: row.end_at },
            hour: row.hour,
            price: row.price,
            task_type: row.task_type.clone(),
            quantities: quantities_of!(row),
        })
        .collect())
}

/// A closed period whose tasks may have been charged.
#[derive(Debug, Clone)]
pub struct ChargedPeriod {
    /// Whose.
    pub customer: CustomerId,
    /// Its start.
    pub start: DateTime<Utc>,
    /// The ids of the period prices that decided it, a JSON array ...
    pub period_prices: serde_json::Value,
    /// ... and the customer's books then.
    pub books: serde_json::Value,
}

/// The closed periods of customers who were charged for a task ever, and those with a task price: by the manifest of their
/// invoices, or by what was kept instead. Those without either are left out: they were closed by a release that kept nothing.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn charged_periods(connection: &mut PgConnection) -> Result<Vec<ChargedPeriod>, StoreError> {
    let periods = sqlx::query_as!(
        ChargedPeriod,
        r#"WITH closed AS (
               SELECT p.customer_id, p.start_at, COALESCE(i.manifest -> 'period_prices', p.settled_by -> 'period_prices') AS prices,
                      COALESCE(i.manifest -> 'books', p.settled_by -> 'books') AS books
               FROM billing_periods p
               LEFT JOIN LATERAL (SELECT manifest FROM invoices i
                                  WHERE i.customer_id = p.customer_id AND i.period_start = p.start_at
                                  ORDER BY i.number LIMIT 1) AS i ON true
               WHERE p.state = 'closed'
           )
           SELECT customer_id AS "customer: CustomerId", start_at AS start, prices AS "period_prices!", books AS "books!"
           FROM closed
           WHERE jsonb_typeof(prices) = 'array' AND books IS NOT NULL
             AND (EXISTS (SELECT FROM task_charges c WHERE c.customer_id = closed.customer_id)
                  OR EXISTS (SELECT FROM period_prices p WHERE p.kind = 'task' AND closed.prices @> to_jsonb(p.id)))
           ORDER BY customer_id, start_at"#
    )
    .fetch_all(connection)
    .await?;
    Ok(periods)
}

/// Tasks whose outcome is booked to a period, with their last charge or credit: ten thousand in order of their ids, behind
/// `after`. When they ended is what counts; as their service period they are given the one they are booked to.
///
/// # Errors
/// [`StoreError`].
pub async fn booked_tasks(
    connection: &mut PgConnection,
    customer: CustomerId,
    booked_period: DateTime<Utc>,
    books: &[PayingBooks],
    after: &str,
) -> Result<Vec<FinishedTask>, StoreError> {
    let rows = sqlx::query_as!(
        TaskRow,
        r#"SELECT t.task_id AS "task_id!", t.task_type AS "task_type?", t.outcome AS "outcome!", t.ended_at AS "ended_at!",
                  t.outcome_period AS "start_at?", t.outcome_period AS "end_at?", c.number AS "number?", c.period_price_id AS "price?: PeriodPriceId",
                  c.amount AS "amount?: Rate", c.outcome AS "charged_for?", p.book_id AS "charged_book?: BookId",
                  p.name AS "name?", b.currency AS "currency?"
           FROM (SELECT customer_id, task_id, task_type, outcome, ended_at, outcome_period FROM tasks
                 WHERE customer_id = $1 AND outcome_period = $2 AND task_id > $3
                 ORDER BY task_id LIMIT 10000) AS t
           LEFT JOIN task_charges c ON c.customer_id = t.customer_id AND c.task_id = t.task_id
                     AND c.number = (SELECT max(number) FROM task_charges l
                                     WHERE l.customer_id = t.customer_id AND l.task_id = t.task_id)
           LEFT JOIN period_prices p ON p.id = c.period_price_id
           LEFT JOIN price_books b ON b.id = p.book_id
           ORDER BY t.task_id"#,
        customer.0,
        booked_period,
        after
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| row.finished(books)).collect()
}

/// Task lines that are not the sum of the ledger of charges.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn task_line_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH ledger AS (
               SELECT invoice_id, customer_id, period_price_id, service_period, amount, quantity, sum(quantity) AS tasks
               FROM task_charges GROUP BY 1, 2, 3, 4, 5, 6
           ), lines AS (
               SELECT invoice_id, customer_id, period_price_id, service_start AS service_period, rate AS amount,
                      sign(quantity)::smallint AS quantity, sum(quantity) AS tasks
               FROM invoice_line_items WHERE kind = 'task' GROUP BY 1, 2, 3, 4, 5, 6
           )
           SELECT format('invoice %s, customer %s, period price %s, service period %s, tasks at %s', invoice_id,
                         customer_id, period_price_id, service_period, trim_scale(amount)) AS "subject!",
                  format('ledger of charges %s', COALESCE(e.tasks, 0)) AS "expected!",
                  format('invoice line %s', COALESCE(l.tasks, 0)) AS "actual!"
           FROM ledger e
           FULL JOIN lines l USING (invoice_id, customer_id, period_price_id, service_period, amount, quantity)
           WHERE e.tasks IS DISTINCT FROM l.tasks
           ORDER BY invoice_id, period_price_id, service_period, quantity LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Entries in the ledger of charges that cannot be: of a task whose outcome is not in the journal, at another amount than
/// the price's, a credit of something else than the charge before it, or a number left out.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn charge_differences(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<Difference>, StoreError> {
    let rows = sqlx::query_as!(
        Difference,
        r#"WITH checked AS (
               SELECT c.customer_id, c.task_id, c.number,
                      EXISTS (SELECT FROM usage_events e WHERE e.kind = 'outcome' AND e.customer_id = c.customer_id
                              AND e.task_id = c.task_id AND e.occurred_at = c.ended_at AND e.outcome = c.outcome)
                      OR EXISTS (SELECT FROM archived_outcomes o WHERE o.customer_id = c.customer_id
                                 AND o.task_id = c.task_id AND o.ended_at = c.ended_at AND o.outcome = c.outcome) AS ended,
                      c.amount = p.amount
                          AND (c.quantity < 0 OR p.outcome IS NULL OR p.outcome = c.outcome)
                          AND (c.quantity < 0 OR (p.valid_from <= c.ended_at
                               AND (p.valid_to IS NULL OR c.ended_at < p.valid_to))) AS priced,
                      c.number = 1 OR EXISTS (
                          SELECT FROM task_charges b WHERE b.customer_id = c.customer_id AND b.task_id = c.task_id
                          AND b.number = c.number - 1
                          AND (c.quantity > 0 OR (b.period_price_id = c.period_price_id AND b.amount = c.amount))) AS follows
               FROM task_charges c JOIN period_prices p ON p.id = c.period_price_id
           )
           SELECT format('customer %s, task %s, charge %s', customer_id, task_id, number) AS "subject!",
                  'an outcome in the journal, the amount of its price, the entry before it' AS "expected!",
                  concat_ws(', ', CASE WHEN NOT ended THEN 'no such outcome' END,
                            CASE WHEN NOT priced THEN 'another amount, end or time than the price has' END,
                            CASE WHEN NOT follows THEN 'does not follow the entry before' END) AS "actual!"
           FROM checked WHERE NOT (ended AND priced AND follows)
           ORDER BY customer_id, task_id, number LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
