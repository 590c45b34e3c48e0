//! What usage is rated again with: the books of each customer, and the periods it is billed in.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::RerateError;
use crate::domain::ids::{BookId, CustomerId};
use crate::domain::period::{BillingCalendar, Period};
use crate::rating::{PriceBook, SellBooks};
use crate::store::rating_data::CustomerEntry;
use crate::store::{StoreError, catalog, periods, prices, rating_data};

/// How often it is read again where prices change while it is read.
const READS_MAX: u32 = 5;

/// Books, assignments and periods, as of one version of the catalog.
pub(super) struct Catalog {
    version: i64,
    customers: HashMap<CustomerId, CustomerEntry>,
    books: HashMap<BookId, PriceBook>,
    calendars: HashMap<CustomerId, (Vec<Period>, BillingCalendar)>,
}

impl Catalog {
    pub(super) async fn load(connection: &mut PgConnection) -> Result<Self, RerateError> {
        for _ in 0..READS_MAX {
            let version = catalog::version(connection).await?;
            let customers = rating_data::customers(connection).await?;
            let loaded = prices::load_books(connection).await?;
            // A transaction that only reads has one snapshot; one that writes sees what others commit in between.
            if catalog::version(connection).await? != version {
                continue;
            }
            let mut books = HashMap::new();
            for (info, prices, aliases) in loaded {
                books.insert(info.id, PriceBook::new(info, prices, aliases)?);
            }
            let customers = customers.into_iter().map(|customer| (customer.id, customer)).collect();
            return Ok(Self { version, customers, books, calendars: HashMap::new() });
        }
        Err(RerateError::Moving)
    }

    pub(super) const fn version(&self) -> i64 {
        self.version
    }

    /// The cost book and the sell books of a customer at an instant.
    pub(super) fn books(
        &self,
        customer: CustomerId,
        at: DateTime<Utc>,
    ) -> Option<(&PriceBook, SellBooks<'_>)> {
        let assignment = self.customers.get(&customer)?.assignment(at)?;
        let override_book = match &assignment.override_book {
            Some(book) => Some(self.books.get(book)?),
            None => None,
        };
        let charge = SellBooks { override_book, sell: self.books.get(&assignment.sell_book)? };
        Some((self.books.get(&assignment.cost_book)?, charge))
    }

    /// The customer's external id.
    pub(super) fn name(&self, customer: CustomerId) -> &str {
        self.customers.get(&customer).map_or("", |customer| customer.external_id.as_str())
    }

    /// The billing period that holds an instant: the stored one, else what the customer's calendar says.
    pub(super) async fn period(
        &mut self,
        connection: &mut PgConnection,
        customer: CustomerId,
        at: DateTime<Utc>,
    ) -> Result<Period, RerateError> {
        let (stored, calendar) = match self.calendars.entry(customer) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(calendar(connection, customer).await?),
        };
        match stored.iter().find(|period| period.contains(at)) {
            Some(period) => Ok(*period),
            None => Ok(calendar.period_at(at)?),
        }
    }
}

async fn calendar(
    connection: &mut PgConnection,
    customer: CustomerId,
) -> Result<(Vec<Period>, BillingCalendar), RerateError> {
    let billed = periods::customer(connection, customer).await?.ok_or_else(|| StoreError::Inconsistent {
        table: "usage_events",
        column: "customer_id",
        detail: format!("there is no customer {customer}"),
    })?;
    let stored = periods::list(connection, customer).await?.into_iter().map(|period| period.period).collect();
    Ok((stored, billed.calendar()?))
}

/// Why usage of a customer without books has no price.
pub(super) fn unassigned(at: DateTime<Utc>) -> String {
    format!("no price books are assigned to the customer at {}", at.to_rfc3339())
}
