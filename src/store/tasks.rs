//! Tasks: their totals, their parts, their calls.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreError;
use super::quantities::{Rare, quantities_of};
use super::rates::currency;
use crate::domain::identity::EventKey;
use crate::domain::ids::CustomerId;
use crate::domain::money::{Amount, Currency};
use crate::domain::tokens::Quantities;

/// One task with its own totals, its parts' not among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its id, unique per customer.
    pub task_id: String,
    /// Its type.
    pub task_type: Option<String>,
    /// The task it is a part of.
    pub parent: Option<String>,
    /// When its first event happened.
    pub first_event_at: DateTime<Utc>,
    /// When its last event happened.
    pub last_event_at: DateTime<Utc>,
    /// Model calls.
    pub calls: i64,
    /// Units by class.
    pub quantities: Quantities,
    /// What providers charge us.
    pub cost: Amount,
    /// What the customer pays.
    pub charge: Amount,
    /// The models it used.
    pub models: Vec<String>,
    /// How it ended; `None` while open.
    pub outcome: Option<String>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Where its calls are.
    pub extent: Extent,
}

/// Where in the journal the rows of a task lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first batch.
    pub first_batch: i64,
    /// The last batch.
    pub last_batch: i64,
    /// The first booking date.
    pub first_booked_on: NaiveDate,
    /// The last booking date.
    pub last_booked_on: NaiveDate,
}

/// Which tasks to list.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Last event at or after.
    pub from: Option<DateTime<Utc>>,
    /// Last event before.
    pub to: Option<DateTime<Utc>>,
    /// Of this type only.
    pub task_type: Option<String>,
    /// With this outcome only; `open` for tasks without one.
    pub outcome: Option<String>,
    /// Parts of this task only.
    pub parent: Option<String>,
    /// After this one in the list: the last of the page before.
    pub after: Option<(DateTime<Utc>, String)>,
    /// How many at most.
    pub limit: i64,
}

/// A row as stored.
struct TaskRow {
    task_id: String,
    task_type: Option<String>,
    parent: Option<String>,
    first_event_at: DateTime<Utc>,
    last_event_at: DateTime<Utc>,
    calls: i64,
    input: i64,
    cache_read: i64,
    cache_write_5m: i64,
    cache_write_1h: i64,
    output: i64,
    reasoning: i64,
    rare: Option<Rare>,
    cost: Amount,
    charge: Amount,
    models: Vec<String>,
    outcome: Option<String>,
    ended_at: Option<DateTime<Utc>>,
    first_batch: i64,
    last_batch: i64,
    first_booked_on: NaiveDate,
    last_booked_on: NaiveDate,
}

impl From<TaskRow> for Task {
    fn from(row: TaskRow) -> Self {
        Self {
            task_id: row.task_id,
            task_type: row.task_type,
            parent: row.parent,
            first_event_at: row.first_event_at,
            last_event_at: row.last_event_at,
            calls: row.calls,
            quantities: quantities_of!(row),
            cost: row.cost,
            charge: row.charge,
            models: row.models,
            outcome: row.outcome,
            ended_at: row.ended_at,
            extent: Extent {
                first_batch: row.first_batch,
                last_batch: row.last_batch,
                first_booked_on: row.first_booked_on,
                last_booked_on: row.last_booked_on,
            },
        }
    }
}

/// Tasks of a customer, the one with the newest event first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    connection: &mut PgConnection,
    customer: CustomerId,
    filter: &TaskFilter,
) -> Result<Vec<Task>, StoreError> {
    let (after_at, after_id) = filter.after.clone().unzip();
    let rows = sqlx::query_as!(
        TaskRow,
        r#"SELECT task_id, task_type, parent, first_event_at, last_event_at, calls, input::bigint AS "input!",
                  cache_read::bigint AS "cache_read!", cache_write_5m::bigint AS "cache_write_5m!",
                  cache_write_1h::bigint AS "cache_write_1h!", output::bigint AS "output!",
                  reasoning::bigint AS "reasoning!", rare_units(rare) AS "rare: Rare", cost AS "cost: Amount",
                  charge AS "charge: Amount", models, outcome, ended_at, first_batch, last_batch, first_booked_on,
                  last_booked_on
           FROM tasks
           WHERE customer_id = $1
             AND ($2::timestamptz IS NULL OR last_event_at >= $2) AND ($3::timestamptz IS NULL OR last_event_at < $3)
             -- The same to the minute, which the index has.
             AND ($2::timestamptz IS NULL OR last_minute > $2 - interval '1 minute')
             AND ($3::timestamptz IS NULL OR last_minute < $3)
             AND ($4::text IS NULL OR task_type = $4)
             AND ($5::text IS NULL OR outcome = $5 OR ($5 = 'open' AND outcome IS NULL))
             AND ($6::text IS NULL OR parent = $6)
             AND ($7::timestamptz IS NULL OR (last_minute <= $7 AND (last_event_at, task_id) < ($7, $8)))
           ORDER BY last_minute DESC, last_event_at DESC, task_id DESC LIMIT $9"#,
        customer.0,
        filter.from,
        filter.to,
        filter.task_type,
        filter.outcome,
        filter.parent,
        after_at,
        after_id,
        filter.limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Task::from).collect())
}

/// One task of a customer.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn get(
    connection: &mut PgConnection,
    customer: CustomerId,
    task_id: &str,
) -> Result<Option<Task>, StoreError> {
    let row = sqlx::query_as!(
        TaskRow,
        r#"SELECT task_id, task_type, parent, first_event_at, last_event_at, calls, input::bigint AS "input!",
                  cache_read::bigint AS "cache_read!", cache_write_5m::bigint AS "cache_write_5m!",
                  cache_write_1h::bigint AS "cache_write_1h!", output::bigint AS "output!",
                  reasoning::bigint AS "reasoning!", rare_units(rare) AS "rare: Rare", cost AS "cost: Amount",
                  charge AS "charge: Amount", models, outcome, ended_at, first_batch, last_batch, first_booked_on,
                  last_booked_on
           FROM tasks WHERE customer_id = $1 AND task_id = $2"#,
        customer.0,
        task_id
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(Task::from))
}

/// Totals of a task with everything under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeTotals {
    /// Tasks, the task itself among them.
    pub tasks: i64,
    /// Model calls.
    pub calls: i64,
    /// What providers charge us.
    pub cost: Amount,
    /// What the customer pays.
    pub charge: Amount,
}

/// Totals of a task and of all tasks under it, each counted once also where parents form a circle.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn tree_totals(
    connection: &mut PgConnection,
    customer: CustomerId,
    task_id: &str,
) -> Result<TreeTotals, StoreError> {
    let totals = sqlx::query_as!(
        TreeTotals,
        r#"WITH RECURSIVE tree AS (
               SELECT $2::text AS task_id
               UNION
               SELECT t.task_id FROM tree JOIN tasks t ON t.customer_id = $1 AND t.parent = tree.task_id
           )
           SELECT count(*) AS "tasks!", COALESCE(sum(calls), 0)::bigint AS "calls!",
                  COALESCE(sum(cost), 0) AS "cost!: Amount", COALESCE(sum(charge), 0) AS "charge!: Amount"
           FROM tree JOIN tasks USING (task_id) WHERE customer_id = $1"#,
        customer.0,
        task_id
    )
    .fetch_one(connection)
    .await?;
    Ok(totals)
}

/// One row of the journal that belongs to a task: a usage part, a reversal of an estimate, or an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its event.
    pub event_key: EventKey,
    /// Its position in the event.
    pub part: i16,
    /// `usage`, `reversal` or `outcome`.
    pub kind: String,
    /// The event's source.
    pub source: String,
    /// The event's id.
    pub id: String,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// The provider.
    pub provider: Option<String>,
    /// The model as the provider reported it.
    pub model: Option<String>,
    /// The outcome, where it is one.
    pub outcome: Option<String>,
    /// The call's own status.
    pub status: Option<String>,
    /// Whether the gateway estimated it.
    pub estimated: bool,
    /// How long it took.
    pub latency_ms: Option<i64>,
    /// Units by class.
    pub quantities: Quantities,
    /// What the provider charges us.
    pub cost: Amount,
    /// What the customer pays.
    pub charge: Amount,
}

/// The position of a call in the list of its task.
pub type CallPosition = (DateTime<Utc>, Uuid, i16);

/// Calls of a task in the order they happened, from after a position on. Batches narrow the search: the journal has no
/// index by task.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn calls(
    connection: &mut PgConnection,
    customer: CustomerId,
    task: &Task,
    after: Option<CallPosition>,
    limit: i64,
) -> Result<Vec<Call>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT event_key AS "event_key: EventKey", part, kind, source, id, occurred_at, provider, model, outcome,
                  status, estimated, latency_ms, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning,
                  rare AS "rare: Rare", cost AS "cost: Amount", charge AS "charge: Amount"
           FROM usage_events
           WHERE customer_id = $1 AND task_id = $2 AND batch_id BETWEEN $3 AND $4 AND booked_on BETWEEN $5 AND $6
             AND ($7::timestamptz IS NULL OR (occurred_at, event_key, part) > ($7, $8::uuid, $9::smallint))
           ORDER BY occurred_at, event_key, part LIMIT $10"#,
        customer.0,
        task.task_id,
        task.extent.first_batch,
        task.extent.last_batch,
        task.extent.first_booked_on,
        task.extent.last_booked_on,
        after.map(|position| position.0),
        after.map(|position| position.1),
        after.map(|position| position.2),
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Call {
            event_key: row.event_key,
            part: row.part,
            kind: row.kind,
            source: row.source,
            id: row.id,
            occurred_at: row.occurred_at,
            provider: row.provider,
            model: row.model,
            outcome: row.outcome,
            status: row.status,
            estimated: row.estimated,
            latency_ms: row.latency_ms,
            quantities: quantities_of!(row),
            cost: row.cost,
            charge: row.charge,
        })
        .collect())
}

/// The currencies of a customer's cost and charge; the cost's is `None` where the scope hides cost books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Currencies {
    /// Of the cost.
    pub cost: Option<Currency>,
    /// Of the charge.
    pub charge: Currency,
}

/// The currencies that a customer is rated in, each with the time from when on, in order of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrencyHistory(Vec<(DateTime<Utc>, Currencies)>);

impl Currencies {
    /// Of a customer without books. It has no usage: its nothing is in dollars.
    pub const NONE: Self = Self { cost: None, charge: Currency::USD };
}

impl CurrencyHistory {
    /// Those at an instant; before the first assignment its.
    pub fn at(&self, at: DateTime<Utc>) -> Currencies {
        let begun = self.0.iter().rev().find(|(from, _)| *from <= at);
        begun.or(self.0.first()).map_or(Currencies::NONE, |(_, currencies)| *currencies)
    }
}

/// The currencies that a customer is rated in. A task's totals are one sum, in those of its first event; a customer stays
/// with one ([`super::customers::other_currency`]).
///
/// # Errors
/// [`StoreError`].
pub async fn currencies(
    connection: &mut PgConnection,
    customer: CustomerId,
) -> Result<CurrencyHistory, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT a.valid_from, s.currency AS "charge!", c.currency AS "cost?"
           FROM book_assignments a
           JOIN price_books s ON s.id = a.sell_book_id
           LEFT JOIN price_books c ON c.id = a.cost_book_id
           WHERE a.customer_id = $1 ORDER BY a.valid_from"#,
        customer.0
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let cost = row.cost.as_deref().map(currency).transpose()?;
            Ok((row.valid_from, Currencies { cost, charge: currency(&row.charge)? }))
        })
        .collect::<Result<_, StoreError>>()
        .map(CurrencyHistory)
}
