//! Rows of the journal as posting counts them.

use chrono::{DateTime, NaiveDate, Utc};
use futures_util::TryStreamExt;
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

/// Hands each row of a slice's batches over, in no order, with its batch and booking date.
///
/// # Errors
/// [`StoreError::Database`], also where a newer version wrote a kind or an outcome that this one does not know; what `take`
/// fails with.
pub async fn each_row<E: From<StoreError>>(
    connection: &mut PgConnection,
    slice: &Slice,
    mut take: impl FnMut(BatchId, NaiveDate, &Row<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut rows = sqlx::query!(
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
    .fetch(connection);
    while let Some(row) = rows.try_next().await.map_err(StoreError::from)? {
        let outcome = row.outcome.as_deref().map(str::parse).transpose();
        let outcome = outcome.map_err(|error| StoreError::from(sqlx::Error::Decode(Box::new(error))))?;
        let counted = Row {
            kind: RowKind::of(&row.kind)?,
            part: row.part,
            customer: row.customer,
            occurred_at: row.occurred_at,
            cost_price: row.cost_price,
            sell_price: row.sell_price,
            project: row.project.as_deref(),
            task: row.task_id.as_deref(),
            task_type: row.task_type.as_deref(),
            parent: row.task_parent.as_deref(),
            model: row.model.as_deref(),
            outcome,
            quantities: &quantities_of!(row),
            cost: row.cost,
            charge: row.charge,
        };
        take(row.batch, row.booked_on, &counted)?;
    }
    Ok(())
}
