//! The cost-per-task report's sums and percentiles.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::StoreError;
use super::rates::currency;
use super::tasks::Currencies;
use crate::domain::ids::CustomerId;
use crate::domain::money::{Amount, Currency};

/// Which tasks to report on.
#[derive(Debug, Clone, Default)]
pub struct TaskScope {
    /// Of this customer only.
    pub customer: Option<CustomerId>,
    /// Last event at or after.
    pub from: DateTime<Utc>,
    /// Last event before.
    pub to: DateTime<Utc>,
    /// Of this type only.
    pub task_type: Option<String>,
    /// Whether a task stands for itself and everything under it, and tasks under another are not listed.
    pub nested: bool,
}

/// All tasks of one type and outcome in one currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskTotals {
    /// The type; `None` for tasks that name none.
    pub task_type: Option<String>,
    /// How they ended; `None` for open ones.
    pub outcome: Option<String>,
    /// Currency of the cost; `None` where the scope hides cost books, or the customer has none.
    pub cost_currency: Option<Currency>,
    /// Currency of the charge.
    pub currency: Currency,
    /// Tasks.
    pub tasks: i64,
    /// Model calls of them all.
    pub calls: i64,
    /// What they cost.
    pub cost: Spread,
    /// What is charged for them.
    pub charge: Spread,
}

/// How the exact totals of single tasks are spread. A percentile is the total of an actual task, the smallest that so many of a
/// hundred tasks do not exceed (nearest rank): the one at position `ceil(percent x n / 100)`, counted from 1, of the ascending
/// totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// Sum of all.
    pub total: Amount,
    /// The median.
    pub p50: Amount,
    /// The 90th percentile.
    pub p90: Amount,
    /// The 99th percentile.
    pub p99: Amount,
    /// The largest.
    pub max: Amount,
}

/// Totals as summed.
struct RawTotals {
    task_type: Option<String>,
    outcome: Option<String>,
    cost_currency: Option<String>,
    currency: String,
    tasks: i64,
    calls: i64,
    cost: Amount,
    cost_p50: Amount,
    cost_p90: Amount,
    cost_p99: Amount,
    cost_max: Amount,
    charge: Amount,
    charge_p50: Amount,
    charge_p90: Amount,
    charge_p99: Amount,
    charge_max: Amount,
}

impl TryFrom<RawTotals> for TaskTotals {
    type Error = StoreError;

    fn try_from(row: RawTotals) -> Result<Self, StoreError> {
        Ok(Self {
            task_type: row.task_type,
            outcome: row.outcome,
            cost_currency: row.cost_currency.as_deref().map(currency).transpose()?,
            currency: currency(&row.currency)?,
            tasks: row.tasks,
            calls: row.calls,
            cost: Spread {
                total: row.cost,
                p50: row.cost_p50,
                p90: row.cost_p90,
                p99: row.cost_p99,
                max: row.cost_max,
            },
            charge: Spread {
                total: row.charge,
                p50: row.charge_p50,
                p90: row.charge_p90,
                p99: row.charge_p99,
                max: row.charge_max,
            },
        })
    }
}

/// Sums up the tasks that the first part of the statement calls `counted`, by type and outcome.
macro_rules! totals_of {
    ($counted:literal, $scope:expr, $limit:expr) => {
        sqlx::query_as!(
            RawTotals,
            $counted
                + r#", currencies AS (
               -- Each until the next, and the first from ever, so that every task has them.
               SELECT a.customer_id, s.currency, c.currency AS cost_currency,
                      CASE WHEN lag(a.id) OVER in_time IS NULL THEN '-infinity' ELSE a.valid_from END AS from_at,
                      COALESCE(lead(a.valid_from) OVER in_time, 'infinity') AS to_at
               FROM book_assignments a
               JOIN price_books s ON s.id = a.sell_book_id
               LEFT JOIN price_books c ON c.id = a.cost_book_id
               WINDOW in_time AS (PARTITION BY a.customer_id ORDER BY a.valid_from)
           ), grouped AS (
               SELECT t.task_type, t.outcome, x.cost_currency, COALESCE(x.currency, $5) AS currency, count(*) AS tasks,
                      sum(t.calls)::bigint AS calls, sum(t.cost) AS cost, max(t.cost) AS cost_max,
                      sum(t.charge) AS charge, max(t.charge) AS charge_max,
                      -- Exact, although the fractions are floating point: a fraction of a count that is a whole number comes
                      -- out as that, and any other is a hundredth away from one.
                      percentile_disc(ARRAY[0.5, 0.9, 0.99]::float8[]) WITHIN GROUP (ORDER BY t.cost) AS costs,
                      percentile_disc(ARRAY[0.5, 0.9, 0.99]::float8[]) WITHIN GROUP (ORDER BY t.charge) AS charges
               FROM counted t
               LEFT JOIN currencies x ON x.customer_id = t.customer_id
                                     AND t.first_event_at >= x.from_at AND t.first_event_at < x.to_at
               GROUP BY 1, 2, 3, 4
           )
           SELECT task_type, outcome, cost_currency AS "cost_currency?", currency AS "currency!", tasks AS "tasks!",
                  calls AS "calls!", cost AS "cost!: Amount", costs[1] AS "cost_p50!: Amount",
                  costs[2] AS "cost_p90!: Amount", costs[3] AS "cost_p99!: Amount", cost_max AS "cost_max!: Amount",
                  charge AS "charge!: Amount", charges[1] AS "charge_p50!: Amount",
                  charges[2] AS "charge_p90!: Amount", charges[3] AS "charge_p99!: Amount",
                  charge_max AS "charge_max!: Amount"
           FROM grouped
           ORDER BY 1 NULLS LAST, 2 NULLS LAST, 3, 4
           LIMIT $6"#,
            $scope.customer.map(|customer| customer.0),
            $scope.from,
            $scope.to,
            $scope.task_type,
            Currencies::NONE.charge.as_str(),
            $limit
        )
    };
}

/// Exact totals of all tasks whose last event lies in the interval, by type and outcome, at most `limit` rows. The tasks
/// themselves, of which there are millions, stay in the database.
///
/// Nested, a task under another is counted with its root; a task whose parent was never seen is a root, and tasks whose
/// parents form a circle stand each for itself, so that nothing is counted twice or dropped.
///
/// A task's money is in the currency that its customer was rated in when its first event happened; a customer stays with
/// one ([`super::customers::other_currency`]). Without books it is that of [`Currencies::NONE`].
///
/// # Errors
/// [`StoreError`].
pub async fn task_totals(
    connection: &mut PgConnection,
    scope: &TaskScope,
    limit: i64,
) -> Result<Vec<TaskTotals>, StoreError> {
    // Every task is sorted twice.
    sqlx::query!("SET LOCAL work_mem = '64MB'").execute(&mut *connection).await?;
    let rows = if scope.nested {
        nested_totals(connection, scope, limit).await?
    } else {
        single_totals(connection, scope, limit).await?
    };
    rows.into_iter().map(TryInto::try_into).collect()
}

async fn single_totals(
    connection: &mut PgConnection,
    scope: &TaskScope,
    limit: i64,
) -> Result<Vec<RawTotals>, StoreError> {
    let rows = totals_of!(
        r#"WITH counted AS (
               SELECT customer_id, task_type, outcome, first_event_at, calls, cost, charge
               FROM tasks
               WHERE ($1::bigint IS NULL OR customer_id = $1) AND last_event_at >= $2 AND last_event_at < $3
                 -- The same to the minute, which the index has.
                 AND last_minute > $2 - interval '1 minute' AND last_minute < $3
                 AND ($4::text IS NULL OR task_type = $4)
           )"#,
        scope,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

async fn nested_totals(
    connection: &mut PgConnection,
    scope: &TaskScope,
    limit: i64,
) -> Result<Vec<RawTotals>, StoreError> {
    let rows = totals_of!(
        r#"WITH RECURSIVE named AS (
               -- What names a parent, which most tasks do not.
               SELECT t.customer_id, t.task_id, t.task_type, t.parent, t.outcome, t.first_event_at, t.calls, t.cost,
                      t.charge,
                      EXISTS (SELECT FROM tasks p
                              WHERE p.customer_id = t.customer_id AND p.task_id = t.parent) AS has_parent
               FROM tasks t
               WHERE ($1::bigint IS NULL OR t.customer_id = $1) AND t.last_event_at >= $2 AND t.last_event_at < $3
                 AND t.last_minute > $2 - interval '1 minute' AND t.last_minute < $3
                 AND ($4::text IS NULL OR t.task_type = $4) AND t.parent IS NOT NULL
           ), up AS (
               -- UNION, not UNION ALL: a circle of parents comes to its end. Each parent by itself, by the key: how many there
               -- are is not known beforehand, and a join would read all tasks once per generation.
               SELECT customer_id, task_id AS start, task_id, parent FROM named WHERE has_parent
               UNION
               SELECT p.customer_id, up.start, p.task_id, p.parent
               FROM up CROSS JOIN LATERAL (SELECT * FROM tasks p
                                           WHERE p.customer_id = up.customer_id AND p.task_id = up.parent LIMIT 1) p
           ), under_root AS (
               SELECT up.customer_id, up.start AS task_id
               FROM up
               WHERE up.task_id <> up.start
                 AND CASE WHEN up.parent IS NOT NULL
                          THEN NOT EXISTS (SELECT FROM tasks p WHERE p.customer_id = up.customer_id AND p.task_id = up.parent)
                          ELSE true END
           ), roots AS NOT MATERIALIZED (
               SELECT customer_id, task_id, task_type, outcome, first_event_at, calls, cost, charge, false AS has_parent
               FROM tasks
               WHERE ($1::bigint IS NULL OR customer_id = $1) AND last_event_at >= $2 AND last_event_at < $3
                 AND last_minute > $2 - interval '1 minute' AND last_minute < $3
                 AND ($4::text IS NULL OR task_type = $4) AND parent IS NULL
               UNION ALL
               SELECT n.customer_id, n.task_id, n.task_type, n.outcome, n.first_event_at, n.calls, n.cost, n.charge,
                      n.has_parent
               FROM named n LEFT JOIN under_root u USING (customer_id, task_id)
               WHERE u.task_id IS NULL
           ), down AS (
               SELECT t.customer_id, r.task_id AS root, t.task_id
               FROM tasks t JOIN roots r ON r.customer_id = t.customer_id AND r.task_id = t.parent
               WHERE t.parent IS NOT NULL AND NOT r.has_parent
               UNION
               SELECT t.customer_id, down.root, t.task_id
               FROM down JOIN tasks t ON t.customer_id = down.customer_id AND t.parent = down.task_id
           ), below AS (
               SELECT d.customer_id, d.root, sum(t.calls) AS calls, sum(t.cost) AS cost, sum(t.charge) AS charge
               FROM down d JOIN tasks t ON t.customer_id = d.customer_id AND t.task_id = d.task_id
               GROUP BY d.customer_id, d.root
           ), counted AS (
               SELECT r.customer_id, r.task_type, r.outcome, r.first_event_at, r.calls + COALESCE(b.calls, 0) AS calls,
                      r.cost + COALESCE(b.cost, 0) AS cost, r.charge + COALESCE(b.charge, 0) AS charge
               FROM roots r LEFT JOIN below b ON b.customer_id = r.customer_id AND b.root = r.task_id
           )"#,
        scope,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
