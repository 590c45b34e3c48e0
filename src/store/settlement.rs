//! What the settlement of a billing period is made from, and the ledger of charged tasks.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;

use super::quantities::{Rare, quantities_of};
use super::rates::currency;
use super::{StoreError, ensure_affected};
use crate::domain::ids::{BookId, CustomerId, InvoiceId, PeriodPriceId, PriceId};
use crate::domain::money::{Amount, Currency, Rate};
use crate::domain::period::Period;
use crate::domain::settlement::{FinishedTask, HourOfUsage, PayingBooks, TaskCharge, TaskEntry};

/// Usage booked to a period, by hour, price and task type.
///
/// # Errors
/// [`StoreError`].
pub async fn hours_of_usage(
    connection: &mut PgConnection,
    customer: CustomerId,
    booked_period: DateTime<Utc>,
) -> Result<Vec<HourOfUsage>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT p.start_at, p.end_at, r.hour AS "hour!", r.sell_price_id AS "price!: PriceId",
                  r.task_type AS "task_type!",
                  sum(r.input)::bigint AS "input!", sum(r.cache_read)::bigint AS "cache_read!",
                  sum(r.cache_write_5m)::bigint AS "cache_write_5m!", sum(r.cache_write_1h)::bigint AS "cache_write_1h!",
                  sum(r.output)::bigint AS "output!", sum(r.reasoning)::bigint AS "reasoning!",
                  -- Most rows have none, and a call of it costs more than the rest of the row.
                  rare_units(rare_sum(r.rare) FILTER (WHERE r.rare IS NOT NULL)) AS "rare: Rare"
           FROM usage_by_hour r
           JOIN billing_periods p ON p.customer_id = r.customer_id AND p.start_at = r.service_period
           WHERE r.customer_id = $1 AND r.booked_period = $2
           GROUP BY 1, 2, 3, 4, 5
           ORDER BY 3, 4, 5"#,
        customer.0,
        booked_period
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| HourOfUsage {
            service: Period { start: row.start_at, end: row.end_at },
            hour: row.hour,
            price: row.price,
            task_type: row.task_type,
            quantities: quantities_of!(row),
        })
        .collect())
}

/// The books that a customer paid by, in order of time.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn paying_books(
    connection: &mut PgConnection,
    customer: CustomerId,
) -> Result<Vec<PayingBooks>, StoreError> {
    let books = sqlx::query_as!(
        PayingBooks,
        r#"SELECT valid_from, valid_to, override_book_id AS "override_book: BookId", sell_book_id AS "sell_book: BookId"
           FROM book_assignments WHERE customer_id = $1 ORDER BY valid_from"#,
        customer.0
    )
    .fetch_all(connection)
    .await?;
    Ok(books)
}

/// Tasks whose outcome is booked to a period, page by page: a customer may have millions of them, and each statement must end
/// in time.
#[derive(Debug)]
pub struct FinishedTasks {
    customer: CustomerId,
    booked_period: DateTime<Utc>,
    /// Whether they are looked at also where the customer was charged for no task yet.
    priced: bool,
    /// The last task of the page before; no task has an empty id.
    after: String,
}

impl FinishedTasks {
    /// Before the first page; none is looked at where no task is `priced` and none was charged before.
    pub const fn new(customer: CustomerId, booked_period: DateTime<Utc>, priced: bool) -> Self {
        Self { customer, booked_period, priced, after: String::new() }
    }

    /// The next ten thousand in order of their ids, `None` behind the last; `books` are those that the customer paid by.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn next_page(
        &mut self,
        connection: &mut PgConnection,
        books: &[PayingBooks],
    ) -> Result<Option<Vec<FinishedTask>>, StoreError> {
        let rows = sqlx::query_as!(
            TaskRow,
            // Whatever they are: where few of many are priced, a page of those would be looked for in all of them.
            r#"WITH page AS MATERIALIZED (
                   SELECT customer_id, task_id, task_type, outcome, ended_at FROM tasks
                   WHERE customer_id = $1 AND outcome_period = $2 AND task_id > $3
                     -- Most customers pay for no task: then none is looked at.
                     AND ($4 OR EXISTS (SELECT FROM task_charges WHERE customer_id = $1))
                   ORDER BY task_id LIMIT 10000
               )
               SELECT t.task_id AS "task_id!", t.task_type AS "task_type?", t.outcome AS "outcome!",
                      t.ended_at AS "ended_at!", p.start_at AS "start_at?", p.end_at AS "end_at?",
                      l.number AS "number?", l.period_price_id AS "price?: PeriodPriceId", l.amount AS "amount?: Rate",
                      l.outcome AS "charged_for?", pp.book_id AS "charged_book?: BookId", pp.name AS "name?",
                      b.currency AS "currency?"
               FROM page t
               LEFT JOIN billing_periods p ON p.customer_id = t.customer_id
                                          AND p.start_at <= t.ended_at AND t.ended_at < p.end_at
               LEFT JOIN LATERAL (SELECT number, period_price_id, amount, outcome FROM task_charges c
                                  WHERE c.customer_id = t.customer_id AND c.task_id = t.task_id
                                  ORDER BY c.number DESC LIMIT 1) AS l ON true
               LEFT JOIN period_prices pp ON pp.id = l.period_price_id
               LEFT JOIN price_books b ON b.id = pp.book_id
               ORDER BY t.task_id"#,
            self.customer.0,
            self.booked_period,
            self.after,
            self.priced
        )
        .fetch_all(connection)
        .await?;
        let Some(last) = rows.last() else { return Ok(None) };
        self.after.clone_from(&last.task_id);
        rows.into_iter().map(|row| row.finished(books)).collect::<Result<_, _>>().map(Some)
    }
}

/// A finished task with its last entry in the ledger of charges.
pub(super) struct TaskRow {
    pub task_id: String,
    pub task_type: Option<String>,
    pub outcome: String,
    pub ended_at: DateTime<Utc>,
    pub start_at: Option<DateTime<Utc>>,
    pub end_at: Option<DateTime<Utc>>,
    pub number: Option<i32>,
    pub price: Option<PeriodPriceId>,
    pub amount: Option<Rate>,
    pub charged_for: Option<String>,
    pub charged_book: Option<BookId>,
    pub name: Option<String>,
    pub currency: Option<String>,
}

impl TaskRow {
    /// As a customer with these books finished it.
    pub(super) fn finished(self, books: &[PayingBooks]) -> Result<FinishedTask, StoreError> {
        let last = match (
            self.number,
            self.price,
            self.amount,
            self.charged_for,
            self.charged_book,
            self.name,
            self.currency,
        ) {
            (Some(number), Some(price), Some(amount), Some(outcome), Some(book), Some(name), Some(code)) => {
                let outcome = outcome.parse().map_err(|error| unreadable("task_charges", &error))?;
                Some(TaskEntry { number, price, book, name, amount, currency: currency(&code)?, outcome })
            }
            _ => None,
        };
        let (Some(start), Some(end)) = (self.start_at, self.end_at) else {
            let detail = format!("task {} ended at {} in no billing period", self.task_id, self.ended_at);
            return Err(StoreError::Inconsistent { table: "tasks", column: "ended_at", detail });
        };
        let paying = PayingBooks::at(books, self.ended_at);
        Ok(FinishedTask {
            outcome: self.outcome.parse().map_err(|error| unreadable("tasks", &error))?,
            task: self.task_id,
            task_type: self.task_type,
            ended_at: self.ended_at,
            service: Period { start, end },
            books: paying
                .map(|books| books.override_book.into_iter().chain([books.sell_book]).collect())
                .unwrap_or_default(),
            last,
        })
    }
}

fn unreadable(table: &'static str, error: &dyn std::error::Error) -> StoreError {
    StoreError::Inconsistent { table, column: "outcome", detail: error.to_string() }
}

/// Writes what an invoice charges tasks, and credits them; of many tasks a page at a time.
///
/// # Errors
/// [`StoreError`]; the constraint `task_charges_pkey` where a task was charged meanwhile.
pub async fn insert_charges(
    connection: &mut PgConnection,
    invoice: InvoiceId,
    customer: CustomerId,
    charges: &[&TaskCharge],
) -> Result<(), StoreError> {
    let tasks: Vec<&str> = charges.iter().map(|charge| charge.task.as_str()).collect();
    let numbers: Vec<i32> = charges.iter().map(|charge| charge.entry.number).collect();
    let prices: Vec<i64> = charges.iter().map(|charge| charge.entry.price.0).collect();
    let quantities: Vec<i64> = charges.iter().map(|charge| charge.entry.quantity()).collect();
    let amounts: Vec<Rate> = charges.iter().map(|charge| charge.entry.amount).collect();
    let outcomes: Vec<&str> = charges.iter().map(|charge| charge.entry.outcome.as_str()).collect();
    let ends: Vec<DateTime<Utc>> = charges.iter().map(|charge| charge.ended_at).collect();
    let services: Vec<DateTime<Utc>> = charges.iter().map(|charge| charge.service.start).collect();
    let written = sqlx::query!(
        "INSERT INTO task_charges (customer_id, task_id, number, invoice_id, period_price_id, quantity, amount, outcome,
             ended_at, service_period)
         SELECT $1, c.task_id, c.number, $2, c.price, c.quantity, c.amount, c.outcome, c.ended_at, c.service
         FROM UNNEST($3::text[], $4::integer[], $5::bigint[], $6::bigint[], $7::numeric[], $8::text[],
                     $9::timestamptz[], $10::timestamptz[])
              AS c (task_id, number, price, quantity, amount, outcome, ended_at, service)",
        customer.0,
        invoice.0,
        &tasks as _,
        &numbers,
        &prices,
        &quantities,
        &amounts as _,
        &outcomes as _,
        &ends,
        &services
    )
    .execute(connection)
    .await?;
    ensure_affected("writing task charges", &written, charges.len() as u64)
}

/// A re-rate that is in the adjustments booked to a period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RerateReason {
    /// Start of the period in which the usage happened.
    pub service_period: DateTime<Utc>,
    /// The sell price that it was taken from, or put on.
    pub price: PriceId,
    /// When it was applied.
    pub booked_on: NaiveDate,
    /// Why, where somebody said.
    pub reason: Option<String>,
}

/// The re-rates in the adjustments booked to a period.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn rerate_reasons(
    connection: &mut PgConnection,
    customer: CustomerId,
    booked_period: DateTime<Utc>,
) -> Result<Vec<RerateReason>, StoreError> {
    let reasons = sqlx::query_as!(
        RerateReason,
        r#"SELECT DISTINCT service_period, sell_price_id AS "price: PriceId", booked_on, reason
           FROM adjustment_reasons WHERE customer_id = $1 AND booked_period = $2"#,
        customer.0,
        booked_period
    )
    .fetch_all(connection)
    .await?;
    Ok(reasons)
}

/// A charged or credited task of an invoice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChargedTask {
    /// The task.
    pub task: String,
    /// Its position among the entries of the task.
    pub number: i32,
    /// The outcome that decided it.
    pub outcome: String,
    /// When the task ended.
    pub ended_at: DateTime<Utc>,
    /// 1 for a charge, -1 for a credit.
    pub quantity: i16,
    /// Money for the task.
    pub rate: Amount,
    /// Quantity times rate.
    pub amount: Amount,
    /// The currency of the invoice.
    pub currency: Currency,
    /// The price.
    pub period_price: PeriodPriceId,
}

/// The tasks behind an invoice, in order of their ids, behind `after` (task and number), at most `limit`.
///
/// # Errors
/// [`StoreError`].
pub async fn charged_tasks(
    connection: &mut PgConnection,
    invoice: InvoiceId,
    after: Option<&(String, i32)>,
    limit: i64,
) -> Result<Vec<ChargedTask>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT c.task_id, c.number, c.outcome, c.ended_at, c.quantity, c.amount AS "rate: Amount",
                  c.quantity * c.amount AS "amount!: Amount", i.currency, c.period_price_id AS "price: PeriodPriceId"
           FROM task_charges c JOIN invoices i ON i.id = c.invoice_id
           WHERE c.invoice_id = $1 AND ($2::text IS NULL OR (c.task_id, c.number) > ($2, $3::integer))
           ORDER BY c.task_id, c.number LIMIT $4"#,
        invoice.0,
        after.map(|(task, _)| task.as_str()),
        after.map(|(_, number)| *number),
        limit
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(ChargedTask {
                task: row.task_id,
                number: row.number,
                outcome: row.outcome,
                ended_at: row.ended_at,
                quantity: row.quantity,
                rate: row.rate,
                amount: row.amount,
                currency: currency(&row.currency)?,
                period_price: row.price,
            })
        })
        .collect()
}
