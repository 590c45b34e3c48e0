//! Prices and price books.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::event::text_enum;
use super::ids::{BookId, PriceId};
use super::money::{Currency, Rate};
use super::tokens::{CLASS_COUNT, TokenClass};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

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

/// What a call must look like for a price to apply; `None` matches the standard call only where the field says so.
///
/// `platform`, `region`, `service_tier`, `processing` and `speed` must equal the call's; where the call has a value
/// and no price asks for it, the price without that condition applies.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct PriceConditions {
    /// Where the model runs, when not at its maker.
    pub platform: Option<String>,
    /// Region or geography.
    pub region: Option<String>,
    /// Service tier served: `priority`, `flex`, …
    pub service_tier: Option<String>,
    /// `batch`.
    pub processing: Option<String>,
    /// `fast`.
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

/// Rates by class with every missing one taken from its parent (design section 4).
pub fn resolve_parents(own: &BTreeMap<TokenClass, Rate>) -> [Option<Rate>; CLASS_COUNT] {
    let mut resolved = [None; CLASS_COUNT];
    for class in TokenClass::ALL {
        let mut at = Some(class);
        while let Some(candidate) = at {
            if let Some(rate) = own.get(&candidate) {
                resolved[class.index()] = Some(*rate);
                break;
            }
            at = candidate.parent();
        }
    }
    resolved
}
