//! What prices over a billing period change: tiers and packages of usage ([`usage`]), tasks ([`tasks`]).
//!
//! Usage is on the invoice at the list rate it was stamped with. A period price adds lines beside it: what a tier is
//! cheaper (or dearer) than the list, the packages or tasks and the usage that they stand for, taken back line by line at
//! the same rates, so that both round to the same cent.
//!
//! The rules:
//! - A period price of a sell book counts what was rated at prices of that book; one of a customer's override book counts
//!   everything the customer used, and goes before the sell book's. Both in the hours that begin while it is valid.
//! - The price of a task is that of the override book, else of the sell book, when the task ended. The usage it includes
//!   is all usage of the task type, whichever of the two books rated it.
//! - It counts everything booked to the billing period: usage, late usage, and re-rated usage at its new list rate.
//! - The count runs through the billing period. Where a price takes the place of another of its name, each unit is charged
//!   by the price of its hour, and the count goes on: a change of price does not send anybody back to the first tier, nor
//!   sell the rest of a package twice.
//! - Units are counted in order of hour, provider, model, class and list rate, which does not depend on when they arrived.
//! - Tier `up_to` N holds the N-th unit; the next one begins with unit N + 1. What is below zero (corrections that outweigh
//!   usage) lies in the first tier.
//! - Usage of task types whose price includes it is in no tier and no package.

mod tasks;
mod usage;

pub use tasks::{TaskLines, charge_tasks};
pub use usage::settle_usage;

use crate::domain::ids::{PeriodPriceId, PriceId};
use crate::domain::money::{Currency, MoneyError};
use crate::domain::tokens::TokenClass;

/// Why a period cannot be settled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettlementError {
    /// A price that usage is stamped with cannot be read.
    #[error("price {0} is stamped on usage and not in any price book")]
    UnknownPrice(PriceId),
    /// A quantity without a list rate: it could not have been charged.
    #[error("price {price} has no rate for {class}, and usage is booked on it")]
    NoRate {
        /// The price.
        price: PriceId,
        /// The class.
        class: TokenClass,
    },
    /// Usage charged in another currency than the period price that would change it: its lines cannot stand on one invoice.
    #[error(
        "usage is charged in {usage} by price {price}, and period price {period_price} would change it in {changed}"
    )]
    Currency {
        /// The price of the usage.
        price: PriceId,
        /// Its currency.
        usage: Currency,
        /// The period price.
        period_price: PeriodPriceId,
        /// Its currency.
        changed: Currency,
    },
    /// A quantity or an amount too large to hold.
    #[error("the quantities of the period are too large to settle")]
    Overflow,
    /// A tier's rate too large to hold.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

#[cfg(test)]
mod tests;
