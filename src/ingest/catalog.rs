//! The catalog in memory: what events are resolved and rated with, as of one version.

use chrono::{DateTime, NaiveDate, Utc};
use foldhash::HashMap;

use crate::domain::ids::BookId;
use crate::rating::{PriceBook, SellBooks};
use crate::store::rating_data::{CustomerEntry, GatewayEntry};
use crate::store::{Database, catalog, partitions, prices, rating_data};

use super::IngestError;

/// One consistent snapshot of gateways, customers, assignments and prices.
#[derive(Debug)]
pub struct Catalog {
    /// The version it was read at.
    pub version: i64,
    /// Booking dates before this are archived.
    pub archived_through: Option<NaiveDate>,
    gateways: HashMap<String, GatewayEntry>,
    customers: HashMap<String, CustomerEntry>,
    books: HashMap<BookId, PriceBook>,
}

/// The books that rate a call.
#[derive(Debug, Clone, Copy)]
pub struct Books<'a> {
    /// What it costs us by.
    pub cost: &'a PriceBook,
    /// What the customer pays by.
    pub sell: SellBooks<'a>,
}

impl Catalog {
    /// Reads the catalog in one snapshot of the database.
    ///
    /// # Errors
    /// [`IngestError::Store`]; [`IngestError::Book`] where a stored book contradicts itself.
    pub async fn load(database: &Database) -> Result<Self, IngestError> {
        let mut tx = database.read_ingest().await?;
        let version = catalog::version(&mut tx).await?;
        let archived_through = partitions::archived_through(&mut tx).await?;
        let gateways = rating_data::gateways(&mut tx).await?;
        let customers = rating_data::customers(&mut tx).await?;
        let mut books = HashMap::default();
        for (info, prices, aliases) in prices::load_books(&mut tx).await? {
            books.insert(info.id, PriceBook::new(info, prices, aliases)?);
        }
        Ok(Self {
            version,
            archived_through,
            gateways: gateways.into_iter().map(|gateway| (gateway.name.clone(), gateway)).collect(),
            customers: customers
                .into_iter()
                .map(|customer| (customer.external_id.clone(), customer))
                .collect(),
            books,
        })
    }

    /// A gateway by name.
    pub fn gateway(&self, name: &str) -> Option<&GatewayEntry> {
        self.gateways.get(name)
    }

    /// A customer by external id.
    pub fn customer(&self, external_id: &str) -> Option<&CustomerEntry> {
        self.customers.get(external_id)
    }

    /// The books that rate a customer's call at an instant.
    pub fn books(&self, customer: &CustomerEntry, at: DateTime<Utc>) -> Option<Books<'_>> {
        let assignment = customer.assignment(at)?;
        let override_book = match &assignment.override_book {
            Some(book) => Some(self.books.get(book)?),
            None => None,
        };
        let charge = SellBooks { override_book, sell: self.books.get(&assignment.sell_book)? };
        Some(Books { cost: self.books.get(&assignment.cost_book)?, sell: charge })
    }
}
