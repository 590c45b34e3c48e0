//! Figures for people: usage, cost per task, margin, how one amount came about; and the proof that the ledger holds.
//!
//! Owns: the maths over the sums (means, ratios, amounts per class), and what a finding of `verify` is.
//! Does not own: SQL (`store`), how figures are shown (`http`), invoices (`invoicing`).
//! Invariants: every figure of a report comes from one snapshot and carries `as_of`, the time up to which everything
//! recorded is in it; amounts are exact, only means and ratios are rounded; in a customer's scope nothing carries a
//! cost; amounts of two currencies are never added.

mod considered;
mod cost_per_task;
mod explain;
mod figures;
mod fresh;
mod quote;
mod settlement;
mod usage;
pub mod verify;

pub use considered::{Considered, Override, OverrideOutcome, Reason};
pub use cost_per_task::{CostPerTask, Distribution, TaskGroup, TypeSummary, Unattributed, cost_per_task};
pub use explain::{Correction, ExplainedPart, Explanation, Priced, Restated, Side, Total, explain};
pub use figures::{Figures, Ratio};
pub use fresh::fresh;
pub use quote::{Quote, QuoteBy, QuoteError, QuotedLine, QuotedPart, quote};
pub use usage::{Dimension, UnknownDimension, UsageQuery, UsageReport, UsageRow, usage};

use crate::domain::ids::PriceId;
use crate::domain::tokens::TokenClass;
use crate::store::StoreError;

/// Most rows of a report: a month of 600 customers by day. They are all in memory at once, a kilobyte each, in the process that
/// records too.
pub const ROWS_MAX: usize = 20_000;
/// The same, with one more that tells whether there are more.
const ROWS_FETCHED: i64 = 20_001;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The database did not do as asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Usage is stamped with a price that has no rate for what was used.
    #[error("price {price} has no rate for {class} that usage is booked on; run `waybill verify`")]
    NoRate {
        /// The price.
        price: PriceId,
        /// The class.
        class: TokenClass,
    },
    /// More rows than a report may have.
    #[error("the report has more than {ROWS_MAX} rows")]
    TooManyRows,
    /// Amounts too large to add up.
    #[error("the amounts are too large to add up")]
    Overflow,
}

/// What was fetched with the limit [`ROWS_FETCHED`], unless it is more than a report may have.
fn bounded<T>(rows: Vec<T>) -> Result<Vec<T>, ReportError> {
    if rows.len() > ROWS_MAX { Err(ReportError::TooManyRows) } else { Ok(rows) }
}
