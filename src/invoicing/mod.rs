//! Closing billing periods and turning their sums into invoices.
//!
//! Owns: the lines of an invoice, the preview, the closing of a period, the manifest, the re-rate of recorded usage.
//! Does not own: which period usage is booked to (posting decides, design section 6); SQL (`store`); rounding
//! (`domain::money`); what prices over the period change (`rating::settlement`).
//! Invariants: preview and invoice come from one function; the exact usage lines add up to the exact charges of the
//! ledger or there is no invoice; a task is charged once, in the transaction of the invoice that charges it; a period
//! is closed once, in order, and has one invoice per currency; a period with nothing to bill is closed without an invoice,
//! so no number is spent on an empty document; a finalized invoice never changes.

mod close;
mod lines;
mod preview;
pub mod rerate;

use chrono::{DateTime, Utc};

use crate::domain::ids::CustomerId;
use crate::domain::period::{CalendarError, Period};
use crate::store::StoreError;

pub use close::{Closed, DEFAULT_GRACE, Request, Turn, close_and_finalize, close_due, close_within};
pub use lines::{Basis, Document, LinesError, documents};
pub use preview::{Draft, preview};

/// Why there is no preview or no invoice.
#[derive(Debug, thiserror::Error)]
pub enum InvoicingError {
    /// The database did not do as asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such customer in this scope.
    #[error("there is no such customer")]
    UnknownCustomer(CustomerId),
    /// An instant that the calendar cannot compute a period for.
    #[error(transparent)]
    Calendar(#[from] CalendarError),
    /// The period runs, or its grace time does.
    #[error("the period that ends at {} can be closed from {possible_from} on", period.end)]
    TooEarly {
        /// The period.
        period: Period,
        /// Its end plus the grace time.
        possible_from: DateTime<Utc>,
    },
    /// The period has ended by this program's clock and not by the database's: one of them is wrong, and closing is final.
    #[error(
        "the period that ends at {} is not over by the database's own clock; set the clocks of this host and of the database right",
        period.end
    )]
    NotOver {
        /// The period.
        period: Period,
    },
    /// Periods are closed in order, because late usage is booked to the first open one.
    #[error("close the period that starts at {} first; periods are closed in order", next.start)]
    OutOfOrder {
        /// The one to close first.
        next: Period,
    },
    /// No usage of the customer can be in the period, and none is in an earlier one.
    #[error("the customer begins at {beginning}; name a period that ends after it")]
    BeforeBeginning {
        /// When it was made, or the first price books rate it, whichever is earlier.
        beginning: DateTime<Utc>,
    },
    /// Usage recorded before the call is not in the sums yet.
    #[error("{batches} recorded batches are not posted yet; try again in a moment")]
    NotPosted {
        /// How many.
        batches: i64,
    },
    /// The sums do not give an invoice that could be trusted.
    #[error(transparent)]
    Lines(#[from] LinesError),
}

impl InvoicingError {
    /// Whether the same call may succeed a moment later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::NotPosted { .. } => true,
            Self::Store(error) => error.retryable(),
            Self::UnknownCustomer(_)
            | Self::Calendar(_)
            | Self::TooEarly { .. }
            | Self::NotOver { .. }
            | Self::OutOfOrder { .. }
            | Self::BeforeBeginning { .. }
            | Self::Lines(_) => false,
        }
    }
}
