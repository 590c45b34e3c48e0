//! The sides of an event: by which price its charge and its cost came about, and what re-rates changed.

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::prices::QuotedLineView;
use crate::domain::ids::PriceId;
use crate::domain::money::{Amount, Currency};
use crate::domain::price::PriceConditions;
use crate::http::openapi::DecimalText;
use crate::reports::{Considered, Override, OverrideOutcome, Priced, Restated, Side};
use crate::store::prices::StoredPrice;

/// One side of the margin.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventSide)]
pub(super) struct SideView {
    /// The exact amount, as recorded: the sum of the classes and fees.
    #[schema(value_type = DecimalText)]
    amount: Amount,
    /// Its currency.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// The price that was taken.
    price: TakenPriceView,
    /// Tokens by class.
    classes: Vec<QuotedLineView>,
    /// Fees by class.
    fees: Vec<QuotedLineView>,
    /// The customer's override book; null on the side of the cost, and where the customer has none.
    override_book: Option<OverrideView>,
    /// The other prices of the model, as they stood when the event was recorded.
    not_taken: Vec<NotTakenView>,
}

/// The price that was taken.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TakenPrice)]
struct TakenPriceView {
    /// Its id.
    #[schema(value_type = i64)]
    id: PriceId,
    /// Its book.
    book: String,
    /// The model, by the price's name for it.
    model: String,
    /// What it asks of a call.
    conditions: PriceConditions,
    /// First instant of validity.
    valid_from: DateTime<Utc>,
    /// First instant after validity; null is open.
    valid_to: Option<DateTime<Utc>>,
    /// When it was published.
    recorded_at: DateTime<Utc>,
    /// What the quoted rates were multiplied with; it is in the rates here already.
    #[schema(value_type = DecimalText)]
    multiplier: Decimal,
    /// The cost price that a markup made it from; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    derived_from: Option<PriceId>,
    /// Where it was read; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    /// When it was last seen there; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    checked_at: Option<NaiveDate>,
}

/// The override book of a customer, and whether its price was taken.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventOverride)]
struct OverrideView {
    /// The book.
    #[schema(example = "acme-prices")]
    book: String,
    /// Whether the price that was taken is one of its.
    applied: bool,
    /// Why, or why not.
    #[schema(example = "It has a price for this call, which goes before those of the sell book.")]
    detail: &'static str,
}

impl From<Override> for OverrideView {
    fn from(decided: Override) -> Self {
        Self {
            applied: decided.outcome == OverrideOutcome::Applied,
            detail: decided.outcome.sentence(),
            book: decided.book,
        }
    }
}

/// A price that was not taken.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NotTakenPrice)]
struct NotTakenView {
    /// Its id.
    #[schema(value_type = i64)]
    id: PriceId,
    /// Its book.
    book: String,
    /// Its model.
    model: String,
    /// What it asks of a call.
    conditions: PriceConditions,
    /// First instant of validity.
    valid_from: DateTime<Utc>,
    /// First instant after validity; null is open.
    valid_to: Option<DateTime<Utc>>,
    /// Why not: `conditions`, `less_specific`, `derived`, `other_model`, `not_yet_valid`, `no_longer_valid`, `not_known_yet`,
    /// `not_assigned_yet`, `overridden`.
    #[schema(example = "conditions")]
    reason: &'static str,
    /// Why not, in a sentence.
    #[schema(example = "service_tier: it is for priority, the call had standard.")]
    detail: String,
}

/// What a re-rate changed: one row takes back what stood for a part, another restates it at the prices that stand since.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RestatedPart)]
pub(super) struct RestatedView {
    /// Position of the part in the event.
    part: i16,
    /// `retraction`, which takes back what stood for the part, or `restatement`, which stands for it since.
    #[schema(example = "restatement")]
    kind: String,
    /// The date the re-rate is booked on.
    booked_on: NaiveDate,
    /// Why it was re-rated; null where nobody said, and for the moment until the re-rate is posted.
    #[schema(example = "provider price corrected")]
    reason: Option<String>,
    /// What it adds to the amount, and by which price.
    charge: RestatedSideView,
    /// What it adds to our cost, and by which price; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<RestatedSideView>,
}

/// One side of a re-rate.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RestatedSide)]
struct RestatedSideView {
    /// The exact amount; that of a retraction has the other sign.
    #[schema(value_type = DecimalText)]
    amount: Amount,
    /// Its currency.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// The price.
    price: TakenPriceView,
    /// Tokens by class.
    classes: Vec<QuotedLineView>,
    /// Fees by class.
    fees: Vec<QuotedLineView>,
}

impl SideView {
    pub(super) fn new(side: Side, at: DateTime<Utc>, sees_cost: bool) -> Self {
        let Side { priced, override_book, others } = side;
        let RestatedSideView { amount, currency, price, classes, fees } =
            RestatedSideView::new(priced, sees_cost);
        Self {
            amount,
            currency,
            price,
            classes,
            fees,
            override_book: override_book.map(OverrideView::from),
            not_taken: others.into_iter().map(|other| NotTakenView::new(other, at)).collect(),
        }
    }
}

impl RestatedView {
    pub(super) fn new(restated: Restated, sees_cost: bool) -> Self {
        let Restated { row, charge, cost } = restated;
        Self {
            part: row.restates.unwrap_or_default(),
            kind: row.kind,
            booked_on: row.booked_on,
            reason: row.reason,
            charge: RestatedSideView::new(charge, sees_cost),
            cost: cost.map(|cost| RestatedSideView::new(cost, sees_cost)),
        }
    }
}

impl RestatedSideView {
    fn new(priced: Priced, sees_cost: bool) -> Self {
        let Priced { price, lines, amount } = priced;
        let currency = price.book.currency;
        let views = lines.into_iter().map(|line| QuotedLineView::new(line, currency));
        let (fees, classes) = views.partition(QuotedLineView::is_fee);
        Self { amount, currency, price: TakenPriceView::new(price, sees_cost), classes, fees }
    }
}

impl TakenPriceView {
    fn new(price: StoredPrice, sees_cost: bool) -> Self {
        let draft = price.draft;
        Self {
            id: price.id,
            book: price.book.name,
            model: draft.model,
            conditions: draft.conditions,
            valid_from: draft.valid_from,
            valid_to: draft.valid_to,
            recorded_at: price.recorded_at,
            multiplier: draft.multiplier,
            derived_from: price.derived_from.filter(|_| sees_cost),
            source: draft.source.filter(|_| sees_cost),
            checked_at: draft.checked_at.filter(|_| sees_cost),
        }
    }
}

impl NotTakenView {
    fn new(considered: Considered, at: DateTime<Utc>) -> Self {
        let Considered { book, price, reason } = considered;
        Self {
            id: price.id,
            book,
            model: price.model,
            conditions: price.conditions,
            valid_from: price.valid_from,
            valid_to: price.valid_to,
            reason: reason.code(),
            detail: reason.sentence(at),
        }
    }
}
