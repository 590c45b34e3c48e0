//! How the amount of one event came about: what was used, which price was taken and why not the others, and the sum.

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

/// Everything about one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Its first row, which says what all of them share.
    pub event: EventRow,
    /// Its usage, part by part; none for the outcome of a task.
    pub parts: Vec<ExplainedPart>,
    /// Rows that take back an estimate, because this event corrects it.
    pub taken_back: Vec<EventRow>,
    /// Sum of the rows: what this event adds to the customer's charge, and to our cost.
    pub charge: Amount,
    /// The same on the cost side; `None` in a customer's scope.
    pub cost: Option<Amount>,
    /// Currency of the charge; `None` for the outcome of a task.
    pub charge_currency: Option<Currency>,
    /// Currency of the cost.
    pub cost_currency: Option<Currency>,
    /// How it was corrected, where it is an estimate or replaces one.
    pub correction: Option<Correction>,
    /// What was received; `None` in a customer's scope, and where it is not kept any more.
    pub received: Option<Received>,
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
    /// The price that was taken.
    pub price: StoredPrice,
    /// Rate times quantity by class; their sum is the amount.
    pub lines: Vec<QuotedLine>,
    /// The amount, as recorded.
    pub amount: Amount,
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
    let sum = |amount: fn(&EventRow) -> Amount| {
        Amount::checked_sum(rows.iter().map(amount)).ok_or(ReportError::Overflow)
    };
    let charge = sum(|row| row.charge)?;
    let cost = if with_cost { Some(sum(|row| row.cost)?) } else { None };
    let correction = correction(connection, identity, &event).await?;
    let received = if with_cost { evidence::received(connection, &event, &identity.id).await? } else { None };
    let (mut parts, mut taken_back) = (Vec::new(), Vec::new());
    for row in rows {
        match row.kind.as_str() {
            "usage" => parts.push(explained(connection, &row, with_cost).await?),
            "reversal" => taken_back.push(row),
            _ => {}
        }
    }
    let currency = |side: Option<&Side>| side.map(|side| side.price.book.currency);
    let first = parts.first();
    Ok(Some(Explanation {
        charge_currency: currency(first.map(|part| &part.charge)),
        cost_currency: currency(first.and_then(|part| part.cost.as_ref())),
        event,
        parts,
        taken_back,
        charge,
        cost,
        correction,
        received,
    }))
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
    let missing = |column| StoreError::Inconsistent {
        table: "usage_events",
        column,
        detail: "a usage row lacks it".to_owned(),
    };
    let usage = row.usage.clone().ok_or_else(|| missing("model"))?;
    let sell = row.sell_price.ok_or_else(|| missing("sell_price_id"))?;
    let charge = side(connection, row, &usage, sell, row.charge, true).await?;
    let cost = if with_cost {
        let price = row.cost_price.ok_or_else(|| missing("cost_price_id"))?;
        Some(side(connection, row, &usage, price, row.cost, false).await?)
    } else {
        None
    };
    Ok(ExplainedPart { part: row.part, usage, charge, cost })
}

async fn side(
    connection: &mut PgConnection,
    row: &EventRow,
    usage: &UsagePart,
    taken: PriceId,
    amount: Amount,
    of_charge: bool,
) -> Result<Side, ReportError> {
    let price = prices::get(connection, taken).await?.ok_or_else(|| StoreError::Inconsistent {
        table: "prices",
        column: "id",
        detail: format!("price {taken} is gone"),
    })?;
    let lines = lines(usage, &price).ok_or(ReportError::Overflow)?;
    let (others, override_book) = if of_charge {
        considered::of_a_charge(connection, row, usage, &price).await?
    } else {
        (considered::in_one_book(connection, row, usage, &price).await?, None)
    };
    Ok(Side { price, lines, amount, override_book, others })
}
