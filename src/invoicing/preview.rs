//! The draft of an invoice, computed by the function that finalizes it.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::InvoicingError;
use super::lines::{Basis, Document, LinesError, documents};
use crate::domain::ids::{BookId, CustomerId, PriceId};
use crate::domain::period::Period;
use crate::domain::price::period_price::{PeriodPrice, Scheme, TaskUsage};
use crate::domain::settlement::PayingBooks;
use crate::rating::settlement::{TaskLines, charge_tasks, settle_usage};
use crate::store::invoices::{self, tallies};
use crate::store::periods::{self, BilledCustomer, StoredPeriod};
use crate::store::settlement::{self, FinishedTasks};
use crate::store::{period_prices, rates};

/// A period as it would be invoiced now.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Whom it would bill.
    pub customer: BilledCustomer,
    /// The billing period.
    pub period: Period,
    /// When the period was closed or passed over; its invoices are final then and this draft equals them.
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
    // A closed period is what it was: prices and outcomes may have come since.
    let documents = match stored.closed_at {
        None => compute(connection, customer, stored.period).await?.documents,
        Some(_) => finalized(connection, customer, stored.period).await?,
    };
    Ok(Draft { customer: billed, period: stored.period, closed_at: stored.closed_at, documents, as_of })
}

/// The period that holds an instant: the stored one, else what the customer's calendar says. One before the first that was
/// ever closed counts as closed by that: it has no invoice, its usage came late and was booked to a later period.
pub(super) async fn period_holding(
    connection: &mut PgConnection,
    customer: &BilledCustomer,
    at: DateTime<Utc>,
) -> Result<StoredPeriod, InvoicingError> {
    let mut stored = match periods::holding(connection, customer.id, at).await? {
        Some(stored) => stored,
        None => StoredPeriod { period: customer.calendar()?.period_at(at)?, closed_at: None },
    };
    if stored.closed_at.is_none() && customer.closed_through.is_some_and(|closed| stored.period.end <= closed)
    {
        stored.closed_at = Some(periods::first_closed_at(connection, customer.id).await?);
    }
    Ok(stored)
}

/// The invoices of a closed period, as documents.
async fn finalized(
    connection: &mut PgConnection,
    customer: CustomerId,
    period: Period,
) -> Result<Vec<Document>, InvoicingError> {
    let mut documents = Vec::new();
    for id in invoices::of_period(connection, customer, period.start).await? {
        if let Some(stored) = invoices::get(connection, id).await? {
            documents.push(Document::from(stored.invoice));
        }
    }
    documents.sort_by_key(|document| document.currency);
    Ok(documents)
}

/// An open period, computed.
pub(super) struct Computed {
    /// One per currency.
    pub documents: Vec<Document>,
    /// How many charges and credits of tasks are behind the task lines.
    pub charges: u64,
    /// The period prices that were looked at.
    pub prices: Vec<PeriodPrice>,
    /// The books that decided which of them apply; none where there is no period price.
    pub books: Vec<PayingBooks>,
}

/// Computes an open period from the sums as this connection sees them.
pub(super) async fn compute(
    connection: &mut PgConnection,
    customer: CustomerId,
    period: Period,
) -> Result<Computed, InvoicingError> {
    let tallies = tallies(connection, customer, period.start).await?;
    let mut stamped: Vec<PriceId> = tallies.iter().map(|tally| tally.price).collect();
    stamped.sort_unstable();
    stamped.dedup();
    let terms = rates::by_price(connection, &stamped).await?;
    let reasons = if tallies.iter().any(|tally| tally.adjustment) {
        settlement::rerate_reasons(connection, customer, period.start).await?
    } else {
        Vec::new()
    };
    let basis = Basis { tallies, terms, reasons, ..Basis::default() };
    settle(connection, customer, period, basis).await
}

/// Adds what prices over the period make of it, and computes the documents.
async fn settle(
    connection: &mut PgConnection,
    customer: CustomerId,
    period: Period,
    mut basis: Basis,
) -> Result<Computed, InvoicingError> {
    let mut books = settlement::paying_books(connection, customer).await?;
    let mut with_prices: Vec<BookId> = basis.terms.values().map(|terms| terms.book).collect();
    with_prices
        .extend(books.iter().flat_map(|books| books.override_book.into_iter().chain([books.sell_book])));
    let mut prices = period_prices::standing(connection, &with_prices).await?;
    prices.retain(|price| price.draft.valid_from < period.end);
    let (mut tasks_count, mut usage_counts) = (false, false);
    for price in &prices {
        match &price.draft.scheme {
            Scheme::Task { usage, .. } => {
                tasks_count = true;
                usage_counts |= *usage == TaskUsage::Included;
            }
            Scheme::Graduated(_) | Scheme::Volume(_) | Scheme::Package { .. } => usage_counts = true,
        }
    }
    // By the hour it is many rows: read only where a price counts them.
    if usage_counts {
        let hours = settlement::hours_of_usage(connection, customer, period.start).await?;
        basis.settled =
            settle_usage(period, &hours, &basis.terms, &prices, &books).map_err(LinesError::from)?;
    }
    let (mut charges, mut lines) = (0, TaskLines::default());
    let mut tasks = FinishedTasks::new(customer, period.start, tasks_count);
    while let Some(page) = tasks.next_page(connection, &books).await? {
        let of_page = charge_tasks(&page, &prices);
        charges += of_page.len() as u64;
        lines.add(&of_page).map_err(LinesError::from)?;
    }
    basis.settled.extend(lines.into_lines());
    if prices.is_empty() {
        books.clear();
    }
    Ok(Computed { documents: documents(period, &basis)?, charges, prices, books })
}
