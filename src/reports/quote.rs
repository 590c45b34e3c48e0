//! What a call would cost, class by class: the sum that rating makes, shown.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;

use crate::domain::event::UsagePart;
use crate::domain::ids::PriceId;
use crate::domain::money::{Amount, Currency};
use crate::domain::price::rate_source;
use crate::domain::tokens::TokenClass;
use crate::rating::{BookError, PriceBook, SellBooks, Unpriced};
use crate::store::StoreError;
use crate::store::customers::{self, ChargingBooks};
use crate::store::prices::{self, StoredPrice};

/// What a call costs in one price book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// The exact amount.
    pub amount: Amount,
    /// Its currency, and that of every amount in it.
    pub currency: Currency,
    /// One per usage part.
    pub parts: Vec<QuotedPart>,
}

/// What one usage part costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotedPart {
    /// The model that was priced: the price's name for it.
    pub model: String,
    /// The price that applies.
    pub price: PriceId,
    /// The name of its book.
    pub book: String,
    /// The whole prompt, which a context tier is compared with.
    pub tier_input: i64,
    /// One per token class and per fee that was used.
    pub lines: Vec<QuotedLine>,
    /// What the price's rates were multiplied with when it was published.
    pub multiplier: Decimal,
    /// The sum of the lines.
    pub amount: Amount,
}

/// One class of a usage part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotedLine {
    /// The class.
    pub class: TokenClass,
    /// The class whose rate it takes, where it has none of its own.
    pub inherited_from: Option<TokenClass>,
    /// How much was used.
    pub quantity: i64,
    /// Money per `per` units.
    pub rate: Amount,
    /// Units that the rate is for.
    pub per: i64,
    /// Rate times quantity, exact.
    pub amount: Amount,
}

/// Why there is no quote.
#[derive(Debug, thiserror::Error)]
pub enum QuoteError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No book of this name, or one that the caller may not see.
    #[error("there is no price book `{0}`")]
    UnknownBook(String),
    /// No customer of this external id, or one that the caller may not see.
    #[error("there is no customer `{0}`")]
    UnknownCustomer(String),
    /// The customer has no books then.
    #[error("no price books are assigned to the customer at {0}")]
    Unassigned(DateTime<Utc>),
    /// The stored book contradicts itself.
    #[error(transparent)]
    Book(#[from] BookError),
    /// A usage part has no price.
    #[error("{reason}")]
    Unpriced {
        /// Its position.
        part: usize,
        /// Why not.
        reason: Unpriced,
    },
    /// The amounts do not fit.
    #[error("the amount is out of range")]
    Overflow,
}

/// By which prices a call is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuoteBy<'a> {
    /// Those of the book of this name.
    Book(&'a str),
    /// Those that charge the customer with this external id at the time of the call.
    Customer(&'a str),
}

/// What usage costs at a time, by the prices that stand.
///
/// # Errors
/// [`QuoteError`].
pub async fn quote(
    connection: &mut PgConnection,
    by: QuoteBy<'_>,
    at: DateTime<Utc>,
    parts: &[UsagePart],
) -> Result<Quote, QuoteError> {
    let (sell, override_book) = match by {
        QuoteBy::Book(name) => (load(connection, name).await?, None),
        QuoteBy::Customer(name) => charging(connection, name, at).await?,
    };
    let books = SellBooks { override_book: override_book.as_ref(), sell: &sell };
    let mut quoted = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let unpriced = |reason| QuoteError::Unpriced { part: index, reason };
        let rated = books.rate(part, at).map_err(unpriced)?;
        let price = prices::get(connection, rated.price).await?.ok_or_else(|| StoreError::Inconsistent {
            table: "prices",
            column: "id",
            detail: format!("price {} is gone", rated.price),
        })?;
        let counted = UsagePart { quantities: rated.counted(part.quantities), ..part.clone() };
        let lines = lines(&counted, &price).ok_or(QuoteError::Overflow)?;
        quoted.push(QuotedPart {
            model: price.draft.model,
            price: rated.price,
            book: price.book.name,
            tier_input: part.tier_input,
            lines,
            multiplier: price.draft.multiplier,
            amount: rated.amount,
        });
    }
    let amount = Amount::checked_sum(quoted.iter().map(|part| part.amount)).ok_or(QuoteError::Overflow)?;
    Ok(Quote { amount, currency: books.currency(), parts: quoted })
}

async fn load(connection: &mut PgConnection, book: &str) -> Result<PriceBook, QuoteError> {
    let loaded = prices::load_book(connection, book).await?;
    let (info, standing, aliases) = loaded.ok_or_else(|| QuoteError::UnknownBook(book.to_owned()))?;
    Ok(PriceBook::new(info, standing, aliases)?)
}

/// The sell book of a customer at an instant, and its override book.
async fn charging(
    connection: &mut PgConnection,
    external_id: &str,
    at: DateTime<Utc>,
) -> Result<(PriceBook, Option<PriceBook>), QuoteError> {
    let customer = customers::by_external_id(connection, external_id).await?;
    let customer = customer.ok_or_else(|| QuoteError::UnknownCustomer(external_id.to_owned()))?;
    let charging = customers::charging_books(connection, customer.id, at).await?;
    let ChargingBooks { sell, override_book } = charging.ok_or(QuoteError::Unassigned(at))?;
    let own = match override_book {
        Some(own) => Some(load(connection, &own.name).await?),
        None => None,
    };
    Ok((load(connection, &sell.name).await?, own))
}

/// Rate times quantity for every class that was used, but for requests where the price has no fee for them; `None` where
/// a rate is missing or an amount does not fit.
pub(super) fn lines(part: &UsagePart, price: &StoredPrice) -> Option<Vec<QuotedLine>> {
    let own = &price.draft.rates;
    let charged = |(class, _): &(TokenClass, i64)| *class != TokenClass::Request || own.contains_key(class);
    part.quantities
        .non_zero()
        .filter(charged)
        .map(|(class, quantity)| {
            let source = rate_source(own, class)?;
            let rate = own.get(&source)?.rate;
            let per = if class.is_fee() { 1 } else { price.draft.per };
            Some(QuotedLine {
                class,
                inherited_from: (source != class).then_some(source),
                quantity,
                rate: rate.times(per)?,
                per,
                amount: rate.times(quantity)?,
            })
        })
        .collect()
}
