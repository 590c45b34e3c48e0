//! How the amount of one event came about: what was used, which price was taken and why not the others, and the sum.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::ReportError;
use super::considered::{self, Considered, Override};
use super::quote::{QuotedLine, lines};
use crate::domain::event::UsagePart;
use crate::domain::identity::EventIdentity;
use crate::domain::ids::PriceId;
use crate::domain::money::{Amount, Currency};
use crate::store::StoreError;
use crate::store::evidence::{self, EventRow, Received};
use crate::store::prices::{self, StoredPrice};

/// Kinds of rows that a re-rate adds, in pairs: minus what stood for a part, and what stands for it since.
const RETRACTION: &str = "retraction";
const RESTATEMENT: &str = "restatement";

/// Everything about one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Its first row, which says what all of them share.
    pub event: EventRow,
    /// Its usage, part by part; none for the outcome of a task.
    pub parts: Vec<ExplainedPart>,
    /// Rows that take back an estimate, because this event corrects it.
    pub taken_back: Vec<EventRow>,
    /// Rows of re-rates, the first one first: what stood for a part, taken back, and what stands for it since.
    pub restated: Vec<Restated>,
    /// Sum of all rows: what this event adds to the customer's charge.
    pub charge: Total,
    /// The same on the cost side; `None` in a customer's scope.
    pub cost: Option<Total>,
    /// How it was corrected, where it is an estimate or replaces one.
    pub correction: Option<Correction>,
    /// What was received; `None` in a customer's scope, and where it is not kept any more.
    pub received: Option<Received>,
}

/// What the rows of an event add up to on one side of the margin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Total {
    /// What they come to in the currency that the event stands in.
    pub amount: Amount,
    /// That currency; `None` for the outcome of a task.
    pub currency: Option<Currency>,
    /// What they come to in others, where that is not nothing: the estimate that is taken back, or another part, was rated
    /// in one.
    pub others: Vec<(Amount, Currency)>,
}

impl Total {
    /// Of rows that are in the order of their parts.
    fn of(rows: &[EventRow], side: fn(&EventRow) -> (Amount, Option<Currency>)) -> Result<Self, ReportError> {
        let mut sums: BTreeMap<Currency, Amount> = BTreeMap::new();
        for (amount, currency) in rows.iter().map(side) {
            // The outcome of a task, which has neither price nor amount.
            let Some(currency) = currency else { continue };
            let sum = sums.entry(currency).or_default();
            *sum = sum.checked_add(amount).ok_or(ReportError::Overflow)?;
        }
        let restated = rows.iter().rev().find(|row| row.kind == RESTATEMENT && row.restates == Some(0));
        let currency = restated.or(rows.first()).and_then(|row| side(row).1);
        let amount = currency.and_then(|currency| sums.remove(&currency)).unwrap_or_default();
        let left = sums.into_iter().filter(|(_, amount)| *amount != Amount::ZERO);
        Ok(Self { amount, currency, others: left.map(|(currency, amount)| (amount, currency)).collect() })
    }
}

/// A row of a re-rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restated {
    /// The row.
    pub row: EventRow,
    /// What it adds to the charge, and by which price.
    pub charge: Priced,
    /// The same on the cost side; `None` in a customer's scope.
    pub cost: Option<Priced>,
}

/// An amount and the price that gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Priced {
    /// The price.
    pub price: StoredPrice,
    /// Rate times quantity by class; their sum is the amount.
    pub lines: Vec<QuotedLine>,
    /// The amount, as recorded.
    pub amount: Amount,
}

/// An estimate and what replaced it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Correction {
    /// The estimate.
    pub estimate: EventIdentity,
    /// What corrected it, the first one first.
    pub corrected_by: Vec<EventIdentity>,
}

impl Correction {
    /// The event that stands.
    pub fn standing(&self) -> &EventIdentity {
        self.corrected_by.last().unwrap_or(&self.estimate)
    }
}

/// One usage part, rated on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedPart {
    /// Its position.
    pub part: i16,
    /// What was used, under which conditions.
    pub usage: UsagePart,
    /// What the customer pays.
    pub charge: Side,
    /// What the provider charges us; `None` in a customer's scope.
    pub cost: Option<Side>,
}

/// One side of the margin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// The price that was taken, and what it gave.
    pub priced: Priced,
    /// The customer's override book; on the side of the charge only, where it has one.
    pub override_book: Option<Override>,
    /// The other prices of the model as they stood when the event was recorded, and why they were not taken.
    pub others: Vec<Considered>,
}

/// Explains an event; `None` where the scope has no such event. With `cost` only where the caller may see it.
///
/// # Errors
/// [`ReportError`].
pub async fn explain(
    connection: &mut PgConnection,
    identity: &EventIdentity,
    with_cost: bool,
) -> Result<Option<Explanation>, ReportError> {
    let rows = evidence::rows(connection, identity).await?;
    let Some(event) = rows.first().cloned() else { return Ok(None) };
    let charge = Total::of(&rows, |row| (row.charge, row.charge_currency))?;
    let cost = if with_cost { Some(Total::of(&rows, |row| (row.cost, row.cost_currency))?) } else { None };
    let correction = correction(connection, identity, &event).await?;
    let received = if with_cost { evidence::received(connection, &event, &identity.id).await? } else { None };
    let (mut parts, mut taken_back, mut restated) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        match row.kind.as_str() {
            "usage" => parts.push(explained(connection, &row, with_cost).await?),
            "reversal" => taken_back.push(row),
            RETRACTION | RESTATEMENT => restated.push(of_a_re_rate(connection, row, with_cost).await?),
            _ => {}
        }
    }
    Ok(Some(Explanation { event, parts, taken_back, restated, charge, cost, correction, received }))
}

async fn correction(
    connection: &mut PgConnection,
    identity: &EventIdentity,
    event: &EventRow,
) -> Result<Option<Correction>, StoreError> {
    let estimate = match event.corrects {
        Some(key) => evidence::identity(connection, key).await?.unwrap_or_else(|| identity.clone()),
        None => identity.clone(),
    };
    let corrected_by = evidence::corrections(connection, estimate.key()).await?;
    let concerned = event.estimated || event.corrects.is_some();
    Ok(concerned.then_some(Correction { estimate, corrected_by }))
}

async fn explained(
    connection: &mut PgConnection,
    row: &EventRow,
    with_cost: bool,
) -> Result<ExplainedPart, ReportError> {
    let usage = row.usage.clone().ok_or_else(|| missing("model"))?;
    let priced = charged(connection, row, &usage).await?;
    let (others, override_book) = considered::of_a_charge(connection, row, &usage, &priced.price).await?;
    let charge = Side { priced, override_book, others };
    let cost = if with_cost {
        let priced = costed(connection, row, &usage).await?;
        let others = considered::in_one_book(connection, row, &usage, &priced.price).await?;
        Some(Side { priced, override_book: None, others })
    } else {
        None
    };
    Ok(ExplainedPart { part: row.part, usage, charge, cost })
}

async fn of_a_re_rate(
    connection: &mut PgConnection,
    row: EventRow,
    with_cost: bool,
) -> Result<Restated, ReportError> {
    let usage = row.usage.clone().ok_or_else(|| missing("model"))?;
    let charge = charged(connection, &row, &usage).await?;
    let cost = if with_cost { Some(costed(connection, &row, &usage).await?) } else { None };
    Ok(Restated { row, charge, cost })
}

async fn charged(
    connection: &mut PgConnection,
    row: &EventRow,
    usage: &UsagePart,
) -> Result<Priced, ReportError> {
    let price = row.sell_price.ok_or_else(|| missing("sell_price_id"))?;
    priced(connection, usage, price, row.charge).await
}

async fn costed(
    connection: &mut PgConnection,
    row: &EventRow,
    usage: &UsagePart,
) -> Result<Priced, ReportError> {
    let price = row.cost_price.ok_or_else(|| missing("cost_price_id"))?;
    priced(connection, usage, price, row.cost).await
}

async fn priced(
    connection: &mut PgConnection,
    usage: &UsagePart,
    taken: PriceId,
    amount: Amount,
) -> Result<Priced, ReportError> {
    let price = prices::get(connection, taken).await?.ok_or_else(|| StoreError::Inconsistent {
        table: "prices",
        column: "id",
        detail: format!("price {taken} is gone"),
    })?;
    let lines = lines(usage, &price).ok_or(ReportError::Overflow)?;
    Ok(Priced { price, lines, amount })
}

fn missing(column: &'static str) -> StoreError {
    let detail = "a row of usage lacks it".to_owned();
    StoreError::Inconsistent { table: "usage_events", column, detail }
}
