//! What a billing period's settlement is made from and what it gives: usage by hour, finished tasks, lines, charges.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::event::Outcome;
use super::ids::{BookId, PeriodPriceId, PriceId};
use super::invoice::LineKind;
use super::money::{Amount, Currency, Rate};
use super::period::Period;
use super::price::covers;
use super::tokens::{Quantities, TokenClass};

/// Usage of one hour at one list price, booked to the period that is settled: usage, late usage and adjustments alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HourOfUsage {
    /// The period in which it happened.
    pub service: Period,
    /// The start of the hour, in the customer's zone.
    pub hour: DateTime<Utc>,
    /// The sell price.
    pub price: PriceId,
    /// The type of its task; empty for none.
    pub task_type: String,
    /// Units by class; may be negative.
    pub quantities: Quantities,
}

/// The books that a customer pays by in `[valid_from, valid_to)`; an invoice's manifest keeps them like this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayingBooks {
    /// First instant.
    pub valid_from: DateTime<Utc>,
    /// First instant after; `None` is open.
    pub valid_to: Option<DateTime<Utc>>,
    /// The customer's own book, which goes before the sell book.
    pub override_book: Option<BookId>,
    /// The sell book.
    pub sell_book: BookId,
}

impl PayingBooks {
    /// Those at an instant.
    pub fn at(books: &[Self], at: DateTime<Utc>) -> Option<&Self> {
        books.iter().find(|books| covers(books.valid_from, books.valid_to, at))
    }
}

/// A task whose outcome is booked to the period that is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedTask {
    /// Its id.
    pub task: String,
    /// Its type.
    pub task_type: Option<String>,
    /// The outcome that stands.
    pub outcome: Outcome,
    /// When it ended.
    pub ended_at: DateTime<Utc>,
    /// The period in which it ended.
    pub service: Period,
    /// The books that the customer paid by then, in the order in which they go before each other.
    pub books: Vec<BookId>,
    /// Its last entry in the ledger of charges.
    pub last: Option<TaskEntry>,
}

/// An entry in the ledger of charges, as far as the next one depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEntry {
    /// Its position among the entries of its task, from 1; odd ones charge, even ones take back.
    pub number: i32,
    /// The price it was charged by.
    pub price: PeriodPriceId,
    /// The book of that price.
    pub book: BookId,
    /// The name of that price.
    pub name: String,
    /// Money for the task.
    pub amount: Rate,
    /// The currency of the price's book.
    pub currency: Currency,
    /// The outcome that decided it.
    pub outcome: Outcome,
}

/// A charge of a task, or the credit that takes it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskCharge {
    /// The task.
    pub task: String,
    /// The period in which it ended.
    pub service: Period,
    /// When it ended.
    pub ended_at: DateTime<Utc>,
    /// What the ledger keeps.
    pub entry: TaskEntry,
}

impl TaskEntry {
    /// 1 for a charge, -1 for a credit.
    pub const fn quantity(&self) -> i64 {
        if self.number % 2 == 1 { 1 } else { -1 }
    }
}

/// A line that a period price makes, not yet rounded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettledLine {
    /// The currency of the price's book.
    pub currency: Currency,
    /// Tier, package, task or included usage.
    pub kind: LineKind,
    /// The period in which it happened.
    pub service: Period,
    /// The provider, where it is one.
    pub provider: Option<String>,
    /// The model, where it is one.
    pub model: Option<String>,
    /// The class, where it is one.
    pub class: Option<TokenClass>,
    /// Units, packages or tasks; negative where they are taken back.
    pub quantity: i64,
    /// Money for one; negative where a tier is cheaper than the list.
    pub rate: Amount,
    /// How it came about.
    pub note: String,
    /// The price that made it.
    pub price: PeriodPriceId,
}
