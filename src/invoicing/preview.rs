//! The draft of an invoice, computed by the function that finalizes it.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::InvoicingError;
use super::lines::{Document, documents};
use crate::domain::ids::{CustomerId, PriceId};
use crate::domain::period::Period;
use crate::store::invoices::tallies;
use crate::store::periods::{self, BilledCustomer, StoredPeriod};
use crate::store::rates;

/// A period as it would be invoiced now.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Whom it would bill.
    pub customer: BilledCustomer,
    /// The billing period.
    pub period: Period,
    /// When the period was closed; its invoices are final then and this draft equals them.
    pub closed_at: Option<DateTime<Utc>>,
    /// One per currency; none where nothing was used.
    pub documents: Vec<Document>,
    /// Everything recorded up to then is in it.
    pub as_of: DateTime<Utc>,
}

/// Computes the draft of the period that holds `at`, from the caller's snapshot and in its scope.
///
/// # Errors
/// [`InvoicingError`]; [`InvoicingError::UnknownCustomer`] where the scope hides the customer.
pub async fn preview(
    connection: &mut PgConnection,
    customer: CustomerId,
    at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Draft, InvoicingError> {
    let billed =
        periods::customer(connection, customer).await?.ok_or(InvoicingError::UnknownCustomer(customer))?;
    let as_of = periods::posted_through(connection, now).await?;
    let stored = period_holding(connection, &billed, at).await?;
    let documents = compute(connection, customer, stored.period).await?;
    Ok(Draft { customer: billed, period: stored.period, closed_at: stored.closed_at, documents, as_of })
}

/// The period that holds an instant: the stored one, else what the customer's calendar says.
pub(super) async fn period_holding(
    connection: &mut PgConnection,
    customer: &BilledCustomer,
    at: DateTime<Utc>,
) -> Result<StoredPeriod, InvoicingError> {
    match periods::holding(connection, customer.id, at).await? {
        Some(stored) => Ok(stored),
        None => Ok(StoredPeriod { period: customer.calendar()?.period_at(at)?, closed_at: None }),
    }
}

/// The documents of a period from the sums as this connection sees them.
pub(super) async fn compute(
    connection: &mut PgConnection,
    customer: CustomerId,
    period: Period,
) -> Result<Vec<Document>, InvoicingError> {
    let sums = tallies(connection, customer, period.start).await?;
    let mut prices: Vec<PriceId> = sums.iter().map(|tally| tally.price).collect();
    prices.sort_unstable();
    prices.dedup();
    let terms = rates::by_price(connection, &prices).await?;
    Ok(documents(period, &sums, &terms)?)
}
