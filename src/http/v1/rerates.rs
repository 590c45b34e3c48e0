//! Re-rates: recorded usage restated at the prices that stand now.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::figures::find;
use crate::domain::ids::BatchId;
use crate::domain::money::{Amount, Currency};
use crate::http::AppState;
use crate::http::auth::Finance;
use crate::http::openapi::DecimalText;
use crate::http::problem::Problem;
use crate::http::request::Query;
use crate::http::write::Write;
use crate::invoicing::rerate::{
    self, Change, Figures, Group, REASON_CHARS_MAX, Request, RerateError, Rerated, UnpricedPart,
};

/// When to try again where prices kept changing.
const MOVING_RETRY_SECONDS: u32 = 2;
/// When to try again where another re-rate is made.
const RUNNING_RETRY_SECONDS: u32 = 5;

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(run_rerate))
}

/// Which recorded usage to rate again; everything that is given must hold.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRerate {
    /// Usage that happened at or after.
    from: DateTime<Utc>,
    /// Usage that happened before.
    to: DateTime<Utc>,
    /// External id of one customer.
    customer: Option<String>,
    /// One provider.
    provider: Option<String>,
    /// One model, as calls or prices name it; `gpt-5*` stands for every name that begins so.
    model: Option<String>,
    /// Why, in up to 200 characters; it stands on the invoices' adjustment lines.
    #[schema(example = "provider price corrected")]
    reason: Option<String>,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct RerateParams {
    /// Answers what would change, and changes nothing; give `false` to adjust.
    #[serde(default = "yes")]
    #[param(default = true)]
    dry_run: bool,
}

const fn yes() -> bool {
    true
}

/// What a re-rate changed, or would change.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Rerate)]
struct RerateView {
    /// Whether nothing was changed.
    dry_run: bool,
    /// Usage parts that were rated again.
    examined: i64,
    /// What changes, per customer, billing period and model.
    groups: Vec<GroupView>,
    /// Recorded usage that has no price any more, the first hundred; it stands as it is.
    unpriced: Vec<UnpricedView>,
    /// The recording batches that hold the adjustments.
    #[schema(value_type = Vec<i64>)]
    batches: Vec<BatchId>,
}

/// What changes for a customer, in a billing period, of a model. Usage that does not change is in none of the amounts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RerateGroup)]
struct GroupView {
    /// The customer's external id.
    customer: String,
    /// Start of the billing period in which the usage happened; a closed one is adjusted on the next invoice.
    period_start: DateTime<Utc>,
    /// Its end.
    period_end: DateTime<Utc>,
    /// The provider.
    provider: String,
    /// The model.
    model: String,
    /// Events of which an amount changes.
    events: i64,
    /// Events that have no price any more.
    unpriced: i64,
    cost: ChangeView,
    charge: ChangeView,
}

/// An amount before and after.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AmountChange)]
struct ChangeView {
    /// As it stood.
    #[schema(value_type = DecimalText)]
    before: Amount,
    /// At the prices that stand now.
    #[schema(value_type = DecimalText)]
    after: Amount,
    /// After minus before.
    #[schema(value_type = DecimalText)]
    difference: Amount,
    /// Of all three.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
}

/// Recorded usage that has no price any more.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UnpricedUsage)]
struct UnpricedView {
    /// The customer's external id.
    customer: String,
    /// The event's source.
    source: String,
    /// The event's id.
    id: String,
    /// Position in the event.
    part: i16,
    /// When it happened.
    occurred_at: DateTime<Utc>,
    /// Why it has no price.
    detail: String,
}

impl ChangeView {
    fn new(change: Change, currency: Currency) -> Result<Self, RerateError> {
        let difference = change.difference().ok_or(RerateError::Overflow)?;
        Ok(Self { before: change.before, after: change.after, difference, currency })
    }
}

impl GroupView {
    fn new((group, figures): (Group, Figures)) -> Result<Self, RerateError> {
        Ok(Self {
            customer: group.customer,
            period_start: group.period.start,
            period_end: group.period.end,
            provider: group.provider,
            model: group.model,
            events: figures.events,
            unpriced: figures.unpriced,
            cost: ChangeView::new(figures.cost, group.cost_currency)?,
            charge: ChangeView::new(figures.charge, group.currency)?,
        })
    }
}

impl From<UnpricedPart> for UnpricedView {
    fn from(part: UnpricedPart) -> Self {
        let UnpricedPart { customer, event, part, occurred_at, reason } = part;
        Self { customer, source: event.source.into(), id: event.id.into(), part, occurred_at, detail: reason }
    }
}

impl RerateView {
    fn new(rerated: Rerated, dry_run: bool) -> Result<Self, RerateError> {
        Ok(Self {
            dry_run,
            examined: rerated.examined,
            groups: rerated.groups.into_iter().map(GroupView::new).collect::<Result<_, _>>()?,
            unpriced: rerated.unpriced.into_iter().map(Into::into).collect(),
            batches: rerated.batches,
        })
    }
}

impl From<RerateError> for Problem {
    fn from(error: RerateError) -> Self {
        match error {
            RerateError::Store(error) => error.into(),
            RerateError::Calendar(error) => Self::invalid("from", error.to_string()),
            RerateError::Interval => Self::invalid("to", "after `from`"),
            RerateError::Archived(_) | RerateError::TooManyRows => Self::invalid("from", error.to_string()),
            RerateError::Reason => {
                Self::invalid("reason", format!("1 to {REASON_CHARS_MAX} printable characters"))
            }
            RerateError::TooMany => Self::invalid("to", error.to_string()),
            RerateError::Running => Self::unavailable("Another re-rate is being made; try again.", error)
                .retry_after(RUNNING_RETRY_SECONDS),
            RerateError::Recording => {
                Self::unavailable("Usage is being recorded, which takes long; try again.", error)
                    .retry_after(RUNNING_RETRY_SECONDS)
            }
            RerateError::Moving => Self::unavailable("Prices are being published; try again.", error)
                .retry_after(MOVING_RETRY_SECONDS),
            RerateError::Overflow => Self::sum_too_large(error),
            RerateError::Book(_) => Self::internal(error),
        }
    }
}

/// Re-rate recorded usage
///
/// Publishing a price never changes what is recorded. This compares recorded usage with the prices that stand now, each
/// call at its own time, and with `dry_run=false` adds the difference as adjustments: in the billing period of the
/// usage, or where that is closed on the next invoice, with its service period. Nothing recorded is edited, and a second
/// run finds nothing. Usage that has no price any more is listed and stands as it is. All of it or nothing.
///
/// Up to 200,000 rows are looked at: all that was recorded, of any customer, from the day before `from` until now. Up to 20,000
/// usage parts are adjusted. The command `waybill rerate` has no such bounds.
#[utoipa::path(post, path = "/v1/rerates", operation_id = "run_rerate", tag = "prices", params(RerateParams),
    request_body = NewRerate,
    responses((status = 200, description = "What changes", body = RerateView)))]
async fn run_rerate(
    State(state): State<AppState>,
    Query(RerateParams { dry_run }): Query<RerateParams>,
    Write { mut work, body, .. }: Write<Finance, NewRerate>,
) -> Result<Response, Problem> {
    let NewRerate { from, to, customer, provider, model, reason } = body;
    let customer = match customer {
        Some(external_id) => Some(find(work.db(), &external_id).await?.id),
        None => None,
    };
    let request = Request { from, to, customer, provider, model, reason };
    if dry_run {
        // Without an answer from the transaction nothing is kept.
        let shown = rerate::preview_within(work.db(), &request).await?;
        return Ok(Json(RerateView::new(shown, dry_run)?).into_response());
    }
    let (now, actor) = (work.now, work.caller.public_id.clone());
    let applied = rerate::apply_within(work.db(), &state.db, now, &request, &actor).await?;
    work.done(&RerateView::new(applied, dry_run)?).await
}
