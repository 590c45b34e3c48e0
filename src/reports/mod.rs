//! Figures for people: usage, cost per task, margin, how one amount came about; and the proof that the ledger holds.
//!
//! Owns: the maths over the sums (percentiles, ratios, amounts per class), and what a finding of `verify` is.
//! Does not own: SQL (`store`), how figures are shown (`http`, `ui`), invoices (`invoicing`).
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
pub use cost_per_task::{
    CostPerTask, Distribution, TaskGroup, TypeSummary, Unattributed, cost_per_task, distribution, percentile,
};
pub use explain::{Correction, ExplainedPart, Explanation, Priced, Restated, Side, Total, explain};
pub use figures::{Figures, Ratio};
pub use fresh::fresh;
pub use quote::{Quote, QuoteBy, QuoteError, QuotedLine, QuotedPart, quote};
pub use usage::{Dimension, UnknownDimension, UsageQuery, UsageReport, UsageRow, usage};

use crate::domain::ids::PriceId;
use crate::domain::tokens::TokenClass;
use crate::store::StoreError;

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
    /// Amounts too large to add up.
    #[error("the amounts are too large to add up")]
    Overflow,
}
