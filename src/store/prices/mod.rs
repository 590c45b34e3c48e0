//! Price books, prices and model aliases.
//!
//! Owns: their tables; publishing in one transaction, down to the prices that markup books derive; reading them as of any
//! date; changing the factors of markup books.
//! Does not own: what a price must look like and what publishing does to others (`domain::price`), rating.
//! Invariants: rows are added or superseded, never changed; every change bumps the catalog and leaves an audit row; a
//! derived price stands only as long as the cost price it was made from, and those of one cost price cover just its validity.

mod books;
mod markups;
mod publish;
mod read;
mod write;

pub use books::{
    Book, LoadedBook, NewBook, books, create_book, find_book, list_books, load_book, load_books,
    load_candidates, open_cost_book,
};
pub use markups::{MarkupChange, MarkupEffect, MarkupRow, NewMarkup, change_markup, markup_history};
pub use publish::{
    Closed, Publication, PublishedPrice, RateChange, Status, close, close_alias, publish, publish_fitting,
};
pub use read::{PriceCursor, PriceFilter, StoredPrice, ending, get, list};

use chrono::{DateTime, Utc};

use super::StoreError;
use crate::domain::ids::PriceId;
use crate::domain::price::quotation::PriceFault;

/// Why a price book or a price was not changed; nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum PricesError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Prices that are wrong in themselves or collide with others.
    #[error("{} of the prices cannot be published: {}", .0.len(), .0.iter().map(PriceFault::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<PriceFault>),
    /// A field of a price book or of a request about a price.
    #[error("{field}: {detail}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong and what to do.
        detail: String,
    },
    /// No book of this name.
    #[error("there is no price book `{0}`")]
    UnknownBook(String),
    /// A book of this name is there already.
    #[error("there is a price book `{0}` already")]
    BookExists(String),
    /// Its prices are published, not derived.
    #[error("`{0}` marks up no cost book: publish its prices instead")]
    NoMarkupBook(String),
    /// The book has factors from that instant on already.
    #[error(
        "`{book}` has other factors from {at} on already; what is announced cannot be edited, only followed"
    )]
    MarkupExists {
        /// The book.
        book: String,
        /// When they start.
        at: DateTime<Utc>,
    },
    /// No price of this id.
    #[error("there is no price {0}")]
    UnknownPrice(PriceId),
    /// The price cannot be closed like that.
    #[error("price {id} {detail}")]
    NotClosable {
        /// The price.
        id: PriceId,
        /// Why not.
        detail: String,
    },
}

impl From<sqlx::Error> for PricesError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}
