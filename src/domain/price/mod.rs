//! Prices and price books.
//!
//! Owns: what a price is and what it asks of a call ([`conditions`]), reading one as it is quoted ([`quotation`]),
//! what publishing does to the prices that stand ([`publication`]), prices made from cost prices ([`markup`],
//! [`dated_markup`]), prices over a whole billing period ([`period_price`]).
//! Does not own: choosing the price of a call (`rating`), keeping prices (`store::prices`).
//! Invariants: of prices that stand, at most one of a book, provider, model, conditions and origin matches any instant,
//! and no two of equal specificity match one call.

pub mod conditions;
pub mod dated_markup;
pub mod markup;
pub mod period_price;
pub mod publication;
pub mod quotation;
pub mod succession;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::event::text_enum;
use super::ids::{BookId, PriceId};
use super::money::{Amount, Currency, Rate};
use super::tokens::{CLASS_COUNT, TokenClass};

text_enum! {
    /// Which side of the margin a book is on.
    BookKind, UnknownBookKind, "price book kind" {
        /// What providers charge us.
        Cost = "cost",
        /// What customers pay.
        Sell = "sell",
    }
}

/// A named, append-only set of prices in one currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookInfo {
    /// Its key.
    pub id: BookId,
    /// Its name, unique.
    pub name: String,
    /// Cost or sell.
    pub kind: BookKind,
    /// The currency of every price in it.
    pub currency: Currency,
}

/// A price and the exact amount that it gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The price.
    pub price: PriceId,
    /// The amount.
    pub amount: Amount,
    /// The currency of the price's book.
    pub currency: Currency,
}

/// Both sides of a usage part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamps {
    /// What the provider charges us.
    pub cost: Stamp,
    /// What the customer pays.
    pub charge: Stamp,
}

/// What a call must look like for a price to apply.
///
/// `service_tier`, `processing` and `speed` must equal the call's, and a price without them is for the standard call
/// only: these always change the price, so a priority call without a priority price is unpriced, never charged at the
/// standard rate. `platform` and `region` must equal the call's where the price names them, and a price without them is
/// for all: most regions cost the same. Letter case does not matter.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct PriceConditions {
    /// Where the model runs, when not at its maker.
    pub platform: Option<String>,
    /// Region or geography.
    pub region: Option<String>,
    /// Service tier served: `priority`, `flex`, …; without it the price is for the standard tier.
    pub service_tier: Option<String>,
    /// `batch`; without it the price is for interactive calls.
    pub processing: Option<String>,
    /// `fast`; without it the price is for calls of normal speed.
    pub speed: Option<String>,
    /// Applies to requests whose whole prompt is above this many tokens.
    pub context_above: Option<i64>,
    /// Whether a prompt of exactly `context_above` tokens is above it (xAI) or not (everybody else).
    pub context_inclusive: bool,
    /// UTC times of day, each `HH:MM-HH:MM`, start inclusive, end exclusive, may wrap midnight; empty is always.
    pub hours_utc: Vec<String>,
    /// ISO weekdays 1 (Monday) to 7 on which the hours start; empty is every day.
    pub weekdays: Vec<u8>,
}

/// Another name of a model, dated like a price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelAlias {
    /// The provider's name.
    pub provider: String,
    /// The other name, as calls report it.
    pub alias: String,
    /// The name that prices have.
    pub model: String,
    /// First instant of validity.
    pub valid_from: DateTime<Utc>,
    /// First instant after validity; `None` is open.
    pub valid_to: Option<DateTime<Utc>>,
    /// Whether it comes from the cost book that this book marks up (the book's own meaning goes before it).
    pub inherited: bool,
}

/// One immutable, dated row of a price book, its rates resolved for every class it can price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    /// Its key.
    pub id: PriceId,
    /// Its book.
    pub book: BookId,
    /// The provider's name.
    pub provider: String,
    /// The model's canonical name.
    pub model: String,
    /// When it applies besides model and time.
    pub conditions: PriceConditions,
    /// Per single unit, by [`TokenClass::index`]; a class without a rate of its own holds its parent's.
    pub rates: [Option<Rate>; CLASS_COUNT],
    /// First instant of validity.
    pub valid_from: DateTime<Utc>,
    /// First instant after validity; `None` is open.
    pub valid_to: Option<DateTime<Utc>>,
    /// When it was published.
    pub recorded_at: DateTime<Utc>,
    /// Whether a markup over a cost price made it (an explicit price of the same key goes before it).
    pub derived: bool,
}

impl Price {
    /// The rate of a class, its own or its parent's.
    pub const fn rate(&self, class: TokenClass) -> Option<Rate> {
        self.rates[class.index()]
    }
}

/// The class whose rate applies to a class: itself, or the nearest parent that has one (design section 4).
pub fn rate_source<T>(own: &BTreeMap<TokenClass, T>, class: TokenClass) -> Option<TokenClass> {
    std::iter::successors(Some(class), |class| class.parent()).find(|class| own.contains_key(class))
}

/// Rates by class with every missing one taken from its parent.
pub fn resolve_parents(own: &BTreeMap<TokenClass, Rate>) -> [Option<Rate>; CLASS_COUNT] {
    TokenClass::ALL.map(|class| rate_source(own, class).and_then(|source| own.get(&source)).copied())
}

/// Rates that recorded usage is multiplied with: as [`resolve_parents`], and nothing for requests where the price has no
/// fee for them. A call's own request is recorded as soon as one side of the margin charges it, and is free on the other.
pub fn rates_of_recorded(own: &BTreeMap<TokenClass, Rate>) -> [Option<Rate>; CLASS_COUNT] {
    let mut rates = resolve_parents(own);
    rates[TokenClass::Request.index()].get_or_insert(Rate::ZERO);
    rates
}

/// Whether a half-open interval holds an instant; without an end it is open.
pub fn covers(valid_from: DateTime<Utc>, valid_to: Option<DateTime<Utc>>, at: DateTime<Utc>) -> bool {
    valid_from <= at && valid_to.is_none_or(|end| at < end)
}

/// First instant of validity, and first instant after; `None` is open.
pub type Interval = (DateTime<Utc>, Option<DateTime<Utc>>);

/// Whether two half-open intervals share an instant.
pub fn intervals_meet(left: Interval, right: Interval) -> bool {
    left.1.is_none_or(|end| right.0 < end) && right.1.is_none_or(|end| left.0 < end)
}
