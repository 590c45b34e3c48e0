//! The prices that were looked at for one amount and not taken, and why.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::domain::event::UsagePart;
use crate::domain::price::{BookInfo, Price};
use crate::rating::{PriceBook, Verdict};
use crate::store::StoreError;
use crate::store::customers::{self, ChargingBooks};
use crate::store::evidence::EventRow;
use crate::store::prices::{self, StoredPrice};

/// A price that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// Its book's name.
    pub book: String,
    /// The price.
    pub price: Price,
    /// Why not.
    pub reason: Reason,
}

/// Why a price was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Rating says so.
    Judged(Verdict),
    /// It matches the call as well, but the customer's override book has a price that does.
    Overridden,
    /// It was published while the event was being recorded.
    NotKnownYet,
    /// It is of the override book, which was assigned after the event was recorded.
    NotAssignedYet,
}

/// The override book of a customer, and what became of it for one charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The book's name.
    pub book: String,
    /// What became of it.
    pub outcome: OverrideOutcome,
}

/// What became of an override book for one charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverrideOutcome {
    /// The price that was taken is one of its.
    Applied,
    /// It has prices of the model, but none for the call.
    NoneApplies,
    /// It has no price of the model at all.
    UnknownModel,
    /// It has one for the call, but it was assigned too late.
    NotAssignedYet,
}

/// The other prices of the model in the book of the price that was taken. They are read as they stood when the event was
/// recorded; one that would have been taken then came in between.
pub(super) async fn in_one_book(
    connection: &mut PgConnection,
    row: &EventRow,
    usage: &UsagePart,
    taken: &StoredPrice,
) -> Result<Vec<Considered>, StoreError> {
    let book = candidates(connection, &taken.book, usage, row.recorded_at).await?;
    Ok(judged(&book, usage, row.occurred_at, taken, &Reason::NotKnownYet))
}

/// The other prices of the model in the books that charge the customer, and what became of its override book.
pub(super) async fn of_a_charge(
    connection: &mut PgConnection,
    row: &EventRow,
    usage: &UsagePart,
    taken: &StoredPrice,
) -> Result<(Vec<Considered>, Option<Override>), StoreError> {
    let charging = customers::charging_books(connection, row.customer, row.occurred_at).await?;
    let Some(ChargingBooks { sell, override_book: Some(own) }) = charging else {
        return Ok((in_one_book(connection, row, usage, taken).await?, None));
    };
    if taken.book.id != sell.id && taken.book.id != own.id {
        // Other books were assigned since: these decided nothing.
        return Ok((in_one_book(connection, row, usage, taken).await?, None));
    }
    let (at, as_of) = (row.occurred_at, row.recorded_at);
    let applied = taken.book.id == own.id;
    let elsewhere = if applied { Reason::Overridden } else { Reason::NotAssignedYet };
    let standard = candidates(connection, &sell, usage, as_of).await?;
    let by_name = candidates(connection, &own, usage, as_of).await?;
    let mut considered = judged(&by_name, usage, at, taken, &elsewhere);
    if let Some(canonical) = standard.canonical(usage, at).filter(|name| *name != usage.model) {
        let by_canonical = UsagePart { model: canonical.into(), ..usage.clone() };
        let book = candidates(connection, &own, &by_canonical, as_of).await?;
        considered.extend(judged(&book, &by_canonical, at, taken, &elsewhere));
    }
    let outcome = if applied {
        OverrideOutcome::Applied
    } else if considered.iter().any(|considered| considered.reason == Reason::NotAssignedYet) {
        OverrideOutcome::NotAssignedYet
    } else if considered.is_empty() {
        OverrideOutcome::UnknownModel
    } else {
        OverrideOutcome::NoneApplies
    };
    considered.extend(judged(&standard, usage, at, taken, &elsewhere));
    let mut seen = BTreeSet::new();
    considered.retain(|considered| seen.insert(considered.price.id));
    Ok((considered, Some(Override { book: own.name, outcome })))
}

/// What a model's name could have meant in a book, as it stood at an instant.
async fn candidates(
    connection: &mut PgConnection,
    book: &BookInfo,
    usage: &UsagePart,
    as_of: DateTime<Utc>,
) -> Result<PriceBook, StoreError> {
    let (info, standing, aliases) =
        prices::load_candidates(connection, book, &usage.provider, &usage.model, as_of).await?;
    PriceBook::new(info, standing, aliases).map_err(|error| StoreError::Inconsistent {
        table: "prices",
        column: "conditions_key",
        detail: error.to_string(),
    })
}

/// The candidates in one book but for the price that was taken; those of another book than its that match the call as
/// well have the reason `elsewhere`.
fn judged(
    book: &PriceBook,
    usage: &UsagePart,
    at: DateTime<Utc>,
    taken: &StoredPrice,
    elsewhere: &Reason,
) -> Vec<Considered> {
    let info = book.info();
    let reason = |verdict: Verdict| match verdict {
        Verdict::Differs(_) | Verdict::NotYetValid | Verdict::NoLongerValid => Reason::Judged(verdict),
        _ if info.id != taken.book.id => elsewhere.clone(),
        Verdict::Applies => Reason::NotKnownYet,
        verdict => Reason::Judged(verdict),
    };
    let candidates = book.explain(usage, at).into_iter();
    let others = candidates.filter(|candidate| candidate.price.id != taken.id);
    others
        .map(|candidate| Considered {
            book: info.name.clone(),
            price: candidate.price.clone(),
            reason: reason(candidate.verdict),
        })
        .collect()
}

impl OverrideOutcome {
    /// One sentence for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Applied => "It has a price for this call, which goes before those of the sell book.",
            Self::NoneApplies => "It has prices of the model, but none for this call: see `not_taken`.",
            Self::UnknownModel => "It knows no model of this name.",
            Self::NotAssignedYet => {
                "It has a price for this call, but was assigned after the event was recorded: re-rate it."
            }
        }
    }
}

impl Reason {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotKnownYet => "not_known_yet",
            Self::Overridden => "overridden",
            Self::NotAssignedYet => "not_assigned_yet",
            Self::Judged(Verdict::Applies) => "applies",
            Self::Judged(Verdict::LessSpecific) => "less_specific",
            Self::Judged(Verdict::Derived) => "derived",
            Self::Judged(Verdict::OtherModel) => "other_model",
            Self::Judged(Verdict::NotYetValid) => "not_yet_valid",
            Self::Judged(Verdict::NoLongerValid) => "no_longer_valid",
            Self::Judged(Verdict::Differs(_)) => "conditions",
        }
    }

    /// One sentence for people.
    pub fn sentence(&self, at: DateTime<Utc>) -> String {
        let fixed = match self {
            Self::NotKnownYet => "It was published while the event was being recorded.",
            Self::NotAssignedYet => {
                "It matches the call, but its book was assigned after the event was recorded."
            }
            Self::Overridden => {
                "It matches the call, but a price of the customer's override book goes before it."
            }
            Self::Judged(Verdict::Applies) => "It applies.",
            Self::Judged(Verdict::LessSpecific) => {
                "It matches the call, but the price that was taken asks for more."
            }
            Self::Judged(Verdict::Derived) => {
                "It matches the call, but an explicit price goes before a derived one."
            }
            Self::Judged(Verdict::OtherModel) => "It is for the model that the name means elsewhere.",
            Self::Judged(Verdict::NotYetValid) => return format!("It starts after the call at {at}."),
            Self::Judged(Verdict::NoLongerValid) => return format!("It ended before the call at {at}."),
            Self::Judged(Verdict::Differs(differences)) => {
                let differences: Vec<String> = differences
                    .iter()
                    .map(|difference| {
                        let (field, asked, made) =
                            (difference.condition.field(), &difference.asked, &difference.made);
                        format!("{field}: it is for {asked}, the call had {made}")
                    })
                    .collect();
                return format!("{}.", differences.join("; "));
            }
        };
        fixed.to_owned()
    }
}
