//! One event explained: how its amount came about.

mod sides;

use std::collections::BTreeMap;

use axum::Json;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::figures::QuantitiesView;
use crate::domain::event::{CallConditions, StatedCost};
use crate::domain::identity::EventIdentity;
use crate::domain::money::{Amount, Currency};
use crate::http::AppState;
use crate::http::auth::{Read, Reader};
use crate::http::openapi::DecimalText;
use crate::http::problem::{NOT_FOUND, Problem};
use crate::http::request::Path;
use crate::metering;
use crate::reports::{self, Correction, ExplainedPart, Explanation, Priced};
use crate::store::evidence::{EventRow, Received};
use crate::store::partitions;
use sides::{RestatedView, SideView};

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get_event))
}

/// A recorded event, and how its amount came about.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
struct EventView {
    /// Its source.
    #[schema(example = "gw-eu-1/pod-3")]
    source: String,
    /// Its id.
    #[schema(example = "0198c3a2-7b1e-7cc0-9d6e-0b4d1f2a3c4d")]
    id: String,
    /// The customer's external id.
    #[schema(example = "acme")]
    customer: String,
    /// When it happened.
    occurred_at: DateTime<Utc>,
    /// When it was recorded.
    recorded_at: DateTime<Utc>,
    /// The date it is booked on.
    booked_on: NaiveDate,
    /// Its task.
    task: Option<TaskRefView>,
    /// How the task ended, where the event says that.
    outcome: Option<String>,
    /// Labels of the gateway.
    attributes: BTreeMap<String, String>,
    /// The call's own status.
    status: Option<String>,
    /// How long the call took.
    latency_ms: Option<i64>,
    /// Whether the gateway estimated the usage.
    estimated: bool,
    /// The estimate and its corrections, where it is an estimate or replaces one.
    correction: Option<CorrectionView>,
    /// Its usage, part by part: several where one call used several models.
    parts: Vec<EventPartView>,
    /// What it takes back of the estimate that it corrects.
    taken_back: Vec<TakenBackView>,
    /// What re-rates changed, the first one first: in each, a part as it stood is taken back and restated.
    restated: Vec<RestatedView>,
    /// What it adds to the customer's bill: the amounts of `parts`, `taken_back` and `restated` together.
    #[schema(value_type = DecimalText)]
    amount: Amount,
    /// Currency of the amount, that of the prices that stand; null for the outcome of a task.
    #[schema(value_type = Option<String>, example = "USD")]
    currency: Option<Currency>,
    /// What it adds in other currencies; left out where that is nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    other_amounts: Vec<OtherAmountView>,
    /// What it adds to our cost; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DecimalText>)]
    cost: Option<Amount>,
    /// Currency of the cost; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    cost_currency: Option<Currency>,
    /// What it adds to our cost in other currencies; finance only, left out where that is nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    other_costs: Vec<OtherAmountView>,
    /// What was received; finance only, as long as it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    received: Option<ReceivedView>,
}

/// A task as the event names it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventTask)]
struct TaskRefView {
    /// Its id.
    id: String,
    /// Its type.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// The task it is a part of.
    parent: Option<String>,
}

/// The identity of an event.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventIdentity)]
struct IdentityView {
    /// Its source.
    source: String,
    /// Its id.
    id: String,
}

impl From<EventIdentity> for IdentityView {
    fn from(EventIdentity { source, id }: EventIdentity) -> Self {
        Self { source: source.into(), id: id.into() }
    }
}

/// An estimate and what replaced it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventCorrection)]
struct CorrectionView {
    /// The estimate.
    estimate: IdentityView,
    /// What corrected it, the first one first.
    corrected_by: Vec<IdentityView>,
    /// The one that counts.
    standing: IdentityView,
    /// Whether that is this event.
    stands: bool,
}

/// One usage part.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventPart)]
struct EventPartView {
    /// Its position in the event, from 0.
    part: i16,
    /// The provider.
    provider: String,
    /// The model as the provider reported it.
    model: String,
    /// What the call was like.
    conditions: CallConditionsView,
    /// The whole prompt, caches included: what context tiers are compared with.
    tier_input: i64,
    quantities: QuantitiesView,
    /// What the customer pays, and by which price.
    charge: SideView,
    /// What the provider charges us, and by which price; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<SideView>,
    /// What the provider says it charged; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    stated_cost: Option<StatedCostView>,
}

/// Conditions of a call; null is the ordinary one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CallConditions)]
struct CallConditionsView {
    /// Where the model ran, when not at its maker.
    platform: Option<String>,
    /// Region or geography.
    region: Option<String>,
    /// The service tier that was served.
    service_tier: Option<String>,
    /// `batch`, or null.
    processing: Option<String>,
    /// `fast`, or null.
    speed: Option<String>,
}

impl From<CallConditions> for CallConditionsView {
    fn from(made: CallConditions) -> Self {
        Self {
            platform: made.platform.map(Into::into),
            region: made.region.map(Into::into),
            service_tier: made.service_tier.map(Into::into),
            processing: made.processing.map(Into::into),
            speed: made.speed.map(Into::into),
        }
    }
}

/// A cost that the provider stated.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StatedCost)]
struct StatedCostView {
    /// As stated.
    #[schema(value_type = DecimalText)]
    amount: Amount,
    /// Its currency.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// Our cost minus it; null across currencies.
    #[schema(value_type = Option<DecimalText>)]
    difference: Option<Amount>,
}

impl StatedCostView {
    fn new(stated: StatedCost, cost: &Priced) -> Self {
        let StatedCost { amount, currency } = stated;
        let comparable = cost.price.book.currency == currency;
        let difference = if comparable { cost.amount.checked_sub(amount) } else { None };
        Self { amount, currency, difference }
    }
}

/// A part of a corrected estimate, taken back.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TakenBack)]
struct TakenBackView {
    /// The model.
    model: Option<String>,
    /// Negative.
    quantities: QuantitiesView,
    /// Negative.
    #[schema(value_type = DecimalText)]
    amount: Amount,
    /// Of the amount: that of the estimate's price.
    #[schema(value_type = Option<String>, example = "USD")]
    currency: Option<Currency>,
    /// Negative; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DecimalText>)]
    cost: Option<Amount>,
    /// Of the cost; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "USD")]
    cost_currency: Option<Currency>,
}

/// An amount in another currency than that of the event.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OtherAmount)]
struct OtherAmountView {
    /// Exact.
    #[schema(value_type = DecimalText)]
    amount: Amount,
    /// Its currency.
    #[schema(value_type = String, example = "EUR")]
    currency: Currency,
}

impl From<(Amount, Currency)> for OtherAmountView {
    fn from((amount, currency): (Amount, Currency)) -> Self {
        Self { amount, currency }
    }
}

/// What was received.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ReceivedEvent)]
struct ReceivedView {
    /// Sequence of its message in the stream.
    stream_sequence: Option<i64>,
    /// How `raw` is written: `utf8` as it is, `base64` where it is not text.
    #[schema(example = "utf8")]
    raw_encoding: &'static str,
    /// The event as received, but for the texts of prompts and answers, which are never kept.
    raw: String,
}

impl EventPartView {
    fn new(explained: ExplainedPart, at: DateTime<Utc>, sees_cost: bool) -> Self {
        let ExplainedPart { part, usage, charge, cost } = explained;
        let stated_cost = usage.stated_cost.zip(cost.as_ref().map(|cost| &cost.priced));
        Self {
            part,
            provider: usage.provider.into(),
            model: usage.model.into(),
            conditions: usage.conditions.into(),
            tier_input: usage.tier_input,
            quantities: QuantitiesView(usage.quantities),
            stated_cost: stated_cost.map(|(stated, cost)| StatedCostView::new(stated, cost)),
            charge: SideView::new(charge, at, sees_cost),
            cost: cost.map(|cost| SideView::new(cost, at, sees_cost)),
        }
    }
}

impl CorrectionView {
    fn new(correction: Correction, event: &EventIdentity) -> Self {
        let standing = correction.standing().clone();
        Self {
            stands: standing == *event,
            standing: standing.into(),
            estimate: correction.estimate.into(),
            corrected_by: correction.corrected_by.into_iter().map(IdentityView::from).collect(),
        }
    }
}

impl EventView {
    fn new(identity: EventIdentity, explanation: Explanation, sees_cost: bool) -> Self {
        let Explanation { event, parts, taken_back, restated, charge, cost, correction, received } =
            explanation;
        let (cost, cost_currency, other_costs) =
            cost.map_or((None, None, Vec::new()), |cost| (Some(cost.amount), cost.currency, cost.others));
        let EventRow { occurred_at, task_id, task_type: kind, task_parent: parent, .. } = event;
        let taken_back = taken_back.into_iter().map(|row| TakenBackView {
            quantities: QuantitiesView(row.usage.as_ref().map(|usage| usage.quantities).unwrap_or_default()),
            model: row.usage.map(|usage| usage.model.into()),
            amount: row.charge,
            currency: row.charge_currency,
            cost: sees_cost.then_some(row.cost),
            cost_currency: row.cost_currency.filter(|_| sees_cost),
        });
        Self {
            customer: event.customer_external_id,
            occurred_at,
            recorded_at: event.recorded_at,
            booked_on: event.booked_on,
            task: task_id.map(|id| TaskRefView { id, kind, parent }),
            outcome: event.outcome,
            attributes: event.attributes,
            status: event.status,
            latency_ms: event.latency_ms,
            estimated: event.estimated,
            correction: correction.map(|correction| CorrectionView::new(correction, &identity)),
            parts: parts.into_iter().map(|part| EventPartView::new(part, occurred_at, sees_cost)).collect(),
            taken_back: taken_back.collect(),
            restated: restated.into_iter().map(|row| RestatedView::new(row, sees_cost)).collect(),
            amount: charge.amount,
            currency: charge.currency,
            other_amounts: charge.others.into_iter().map(OtherAmountView::from).collect(),
            cost,
            cost_currency,
            other_costs: other_costs.into_iter().map(OtherAmountView::from).collect(),
            received: received.map(|received| ReceivedView::new(event.stream_seq, &received)),
            source: identity.source.into(),
            id: identity.id.into(),
        }
    }
}

impl ReceivedView {
    fn new(stream_sequence: Option<i64>, received: &Received) -> Self {
        let message = metering::split(&received.bytes, received.encoding.as_deref()).ok();
        let index = received.index.unwrap_or_default();
        let event = message.as_ref().and_then(|message| match received.index {
            // A message that was tried again as a whole: which event of it this is, nothing says.
            None if message.ranges().len() > 1 => None,
            _ => message.events().nth(index),
        });
        let whole = message.as_ref().map_or(received.bytes.as_slice(), metering::Message::body);
        // What is stored is redacted already; what was stored before a key was known for texts is not.
        let raw = metering::redact(event.unwrap_or(whole));
        match std::str::from_utf8(&raw) {
            Ok(text) => Self { stream_sequence, raw_encoding: "utf8", raw: text.to_owned() },
            Err(_) => Self { stream_sequence, raw_encoding: "base64", raw: STANDARD.encode(&raw) },
        }
    }
}

/// Get an event
///
/// How its amount came about: quantities by class, the price that was taken and why the others of its model were not, what
/// corrections and re-rates changed, and the sum. A slash in `source` is written `%2F`. A customer's key finds its own events, with the charge only.
#[utoipa::path(get, path = "/v1/events/{source}/{id}", operation_id = "get_event", tag = "events",
    params(
        ("source" = String, Path, description = "The event's source, percent-encoded", example = "gw-eu-1%2Fpod-3"),
        ("id" = String, Path, description = "The event's id"),
    ),
    responses((status = 200, description = "The event", body = EventView)))]
async fn get_event(
    Path((source, id)): Path<(String, String)>,
    Read { caller, mut tx, .. }: Read<Reader>,
) -> Result<Json<EventView>, Problem> {
    let identity = EventIdentity { source: source.into(), id: id.into() };
    let sees_cost = caller.sees_cost();
    let explanation = reports::explain(&mut tx, &identity, sees_cost).await?;
    let Some(explanation) = explanation else {
        return Err(match partitions::archived_through(&mut tx).await? {
            None => Problem::not_found("event"),
            Some(kept_from) => Problem::new(
                &NOT_FOUND,
                format!(
                    "There is no such event, or it was recorded before {kept_from} and its raw form is archived."
                ),
            ),
        });
    };
    Ok(Json(EventView::new(identity, explanation, sees_cost)))
}
