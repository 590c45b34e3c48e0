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
    let rows = sqlx::query_as!(
        RawTotals,
        r#"WITH RECURSIVE chosen AS (
               SELECT t.customer_id, t.task_id, t.task_type, t.parent, t.outcome, t.first_event_at,
                      p.task_id IS NOT NULL AS has_parent
               FROM tasks t
               LEFT JOIN tasks p ON $5 AND p.customer_id = t.customer_id AND p.task_id = t.parent
               WHERE ($1::bigint IS NULL OR t.customer_id = $1) AND t.last_event_at >= $2 AND t.last_event_at < $3
                 -- The same to the minute, which the index has.
                 AND t.last_minute > $2 - interval '1 minute' AND t.last_minute < $3
                 AND ($4::text IS NULL OR t.task_type = $4)
           ), up AS (
               -- UNION, not UNION ALL: a circle of parents comes to its end.
               SELECT customer_id, task_id AS start, task_id, parent FROM chosen WHERE has_parent
               UNION
               SELECT p.customer_id, up.start, p.task_id, p.parent
               FROM up JOIN tasks p ON p.customer_id = up.customer_id AND p.task_id = up.parent
           ), under_root AS (
               SELECT DISTINCT up.customer_id, up.start AS task_id
               FROM up LEFT JOIN tasks p ON p.customer_id = up.customer_id AND p.task_id = up.parent
               WHERE up.task_id <> up.start AND p.task_id IS NULL
           ), counted AS (
               SELECT c.* FROM chosen c LEFT JOIN under_root u USING (customer_id, task_id) WHERE u.task_id IS NULL
           ), down AS (
               SELECT customer_id, task_id AS root, task_id, NOT has_parent AS descends FROM counted
               UNION
               SELECT t.customer_id, down.root, t.task_id, true
               FROM down JOIN tasks t ON t.customer_id = down.customer_id AND t.parent = down.task_id
               WHERE $5 AND down.descends
           ), totals AS (
               SELECT d.customer_id, d.root, sum(t.calls) AS calls, sum(t.cost) AS cost, sum(t.charge) AS charge
               FROM down d JOIN tasks t ON t.customer_id = d.customer_id AND t.task_id = d.task_id
               GROUP BY d.customer_id, d.root
           ), currencies AS (
               -- Each until the next, and the first from ever, so that every task has them.
               SELECT a.customer_id, s.currency, c.currency AS cost_currency,
                      CASE WHEN lag(a.id) OVER in_time IS NULL THEN '-infinity' ELSE a.valid_from END AS from_at,
                      COALESCE(lead(a.valid_from) OVER in_time, 'infinity') AS to_at
               FROM book_assignments a
               JOIN price_books s ON s.id = a.sell_book_id
               LEFT JOIN price_books c ON c.id = a.cost_book_id
               WINDOW in_time AS (PARTITION BY a.customer_id ORDER BY a.valid_from)
           ), priced AS (
               SELECT c.task_type, c.outcome, x.cost_currency, COALESCE(x.currency, $6) AS currency, totals.calls,
                      totals.cost, totals.charge
               FROM counted c
               JOIN totals ON totals.customer_id = c.customer_id AND totals.root = c.task_id
               LEFT JOIN currencies x ON x.customer_id = c.customer_id
                                     AND c.first_event_at >= x.from_at AND c.first_event_at < x.to_at
           ), ranked AS (
               SELECT priced.*, count(*) OVER same AS tasks, row_number() OVER (same ORDER BY cost) AS cost_rank,
                      row_number() OVER (same ORDER BY charge) AS charge_rank
               FROM priced WINDOW same AS (PARTITION BY task_type, outcome, cost_currency, currency)
           )
           SELECT task_type, outcome, cost_currency AS "cost_currency?", currency AS "currency!", count(*) AS "tasks!",
                  sum(calls)::bigint AS "calls!", sum(cost) AS "cost!: Amount",
                  max(cost) FILTER (WHERE cost_rank = (50 * tasks + 99) / 100) AS "cost_p50!: Amount",
                  max(cost) FILTER (WHERE cost_rank = (90 * tasks + 99) / 100) AS "cost_p90!: Amount",
                  max(cost) FILTER (WHERE cost_rank = (99 * tasks + 99) / 100) AS "cost_p99!: Amount",
                  max(cost) AS "cost_max!: Amount", sum(charge) AS "charge!: Amount",
                  max(charge) FILTER (WHERE charge_rank = (50 * tasks + 99) / 100) AS "charge_p50!: Amount",
                  max(charge) FILTER (WHERE charge_rank = (90 * tasks + 99) / 100) AS "charge_p90!: Amount",
                  max(charge) FILTER (WHERE charge_rank = (99 * tasks + 99) / 100) AS "charge_p99!: Amount",
                  max(charge) AS "charge_max!: Amount"
           FROM ranked
           GROUP BY 1, 2, 3, 4
           ORDER BY 1 NULLS LAST, 2 NULLS LAST, 3, 4
           LIMIT $7"#,
        scope.customer.map(|customer| customer.0),
        scope.from,
        scope.to,
        scope.task_type,
        scope.nested,
        Currencies::NONE.charge.as_str(),
        limit
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}
