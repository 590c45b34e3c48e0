//! Rows of the journal as posting counts them.

use chrono::{DateTime, NaiveDate, Utc};
use futures_util::{TryStream, TryStreamExt};
use sqlx::PgConnection;

use super::super::StoreError;
use super::super::quantities::{Rare, quantities_of};
use super::Slice;
use crate::domain::event::Outcome;
use crate::domain::ids::{BatchId, CustomerId, PriceId};
use crate::domain::money::Amount;
use crate::domain::tokens::Quantities;

/// What a row of the journal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// A part of a call.
    Usage,
    /// The end of a task.
    Outcome,
    /// Takes an estimate back.
    Reversal,
    /// Half of a re-rate: takes back what stands, or states it anew.
    Restated,
}

impl RowKind {
    fn of(name: &str) -> Result<Self, StoreError> {
        match name {
            "usage" => Ok(Self::Usage),
            "outcome" => Ok(Self::Outcome),
            "reversal" => Ok(Self::Reversal),
            "retraction" | "restatement" => Ok(Self::Restated),
            other => Err(StoreError::Database(sqlx::Error::Decode(
                format!("the journal has rows of a kind that this version does not know: {other}").into(),
            ))),
        }
    }
}

/// Part number of the reversal of an estimate's first part.
const FIRST_REVERSAL: i16 = 1000;

/// A row of the journal, as far as it counts in sums.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// What it is.
    pub kind: RowKind,
    /// Its number among the rows of its event.
    pub part: i16,
    /// Whose usage.
    pub customer: CustomerId,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// The price of its cost; an outcome has none.
    pub cost_price: Option<PriceId>,
    /// The price of its charge.
    pub sell_price: Option<PriceId>,
    /// Attribute `project`.
    pub project: Option<&'a str>,
    /// Its task ...
    pub task: Option<&'a str>,
    /// ... the task's type ...
    pub task_type: Option<&'a str>,
    /// ... and what the task is a part of.
    pub parent: Option<&'a str>,
    /// The model as reported.
    pub model: Option<&'a str>,
    /// How its task ended.
    pub outcome: Option<Outcome>,
    /// Disjoint quantities.
    pub quantities: &'a Quantities,
    /// What the provider charges us, exact.
    pub cost: Amount,
    /// What the customer pays, exact.
    pub charge: Amount,
}

impl Row<'_> {
    /// Calls that the row stands for: one counts once however many parts it has, and a corrected estimate no more.
    pub const fn calls(&self) -> i8 {
        match (self.kind, self.part) {
            (RowKind::Outcome, _) => 0,
            (_, 0) => 1,
            (_, FIRST_REVERSAL) => -1,
            _ => 0,
        }
    }
}

/// A row of the journal and the batch that it came with.
#[derive(Debug)]
pub struct JournalRow {
    /// The batch.
    pub batch: BatchId,
    /// Its booking date.
    pub booked_on: NaiveDate,
    kind: String,
    part: i16,
    customer: CustomerId,
    occurred_at: DateTime<Utc>,
    cost_price: Option<PriceId>,
    sell_price: Option<PriceId>,
    project: Option<String>,
    task: Option<String>,
    task_type: Option<String>,
    parent: Option<String>,
    model: Option<String>,
    outcome: Option<String>,
    quantities: Quantities,
    cost: Amount,
    charge: Amount,
}

impl JournalRow {
    /// What of it counts.
    ///
    /// # Errors
    /// [`StoreError::Database`] where a newer version wrote a kind or an outcome that this one does not know.
    pub fn row(&self) -> Result<Row<'_>, StoreError> {
        let outcome = self.outcome.as_deref().map(str::parse).transpose();
        Ok(Row {
            kind: RowKind::of(&self.kind)?,
            part: self.part,
            customer: self.customer,
            occurred_at: self.occurred_at,
            cost_price: self.cost_price,
            sell_price: self.sell_price,
            project: self.project.as_deref(),
            task: self.task.as_deref(),
            task_type: self.task_type.as_deref(),
            parent: self.parent.as_deref(),
            model: self.model.as_deref(),
            outcome: outcome.map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            quantities: &self.quantities,
            cost: self.cost,
            charge: self.charge,
        })
    }
}

/// The rows of a slice's batches, in no order.
pub fn rows<'a>(
    connection: &'a mut PgConnection,
    slice: &'a Slice,
) -> impl TryStream<Ok = JournalRow, Error = StoreError> + Unpin + 'a {
    sqlx::query!(
        r#"SELECT e.batch_id AS "batch: BatchId", e.booked_on, e.kind, e.part, e.customer_id AS "customer: CustomerId",
                  e.occurred_at, e.cost_price_id AS "cost_price: PriceId", e.sell_price_id AS "sell_price: PriceId",
                  e.project, e.task_id, e.task_type, e.task_parent, e.model, e.outcome, e.input, e.cache_read,
                  e.cache_write_5m, e.cache_write_1h, e.output, e.reasoning, e.rare AS "rare: Rare",
                  e.cost AS "cost: Amount", e.charge AS "charge: Amount"
           FROM usage_events e
           WHERE e.batch_id BETWEEN $1 AND $2 AND e.batch_id <> ALL($3) AND e.booked_on = ANY($4)"#,
        slice.first(),
        slice.last(),
        &slice.holes(),
        &slice.dates
    )
    .fetch(connection)
    .map_err(StoreError::from)
    .map_ok(|row| JournalRow {
        batch: row.batch,
        booked_on: row.booked_on,
        kind: row.kind,
        part: row.part,
        customer: row.customer,
        occurred_at: row.occurred_at,
        cost_price: row.cost_price,
        sell_price: row.sell_price,
        project: row.project,
        task: row.task_id,
        task_type: row.task_type,
        parent: row.task_parent,
        model: row.model,
        outcome: row.outcome,
        quantities: quantities_of!(row),
        cost: row.cost,
        charge: row.charge,
    })
}
