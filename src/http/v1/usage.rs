//! Summed usage.

use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::figures::{
    AskedAt, MoneyRow, MoneyView, QuantitiesView, customer, interval, money_columns, respond,
};
use crate::domain::ids::CustomerId;
use crate::domain::tokens::TokenClass;
use crate::http::AppState;
use crate::http::auth::{Auth, Caller, Finance, Reader};
use crate::http::problem::{POSTING_BEHIND, Problem};
use crate::http::request::Query;
use crate::http::table::{Cells, Format};
use crate::reports::{Dimension, UsageQuery, UsageRow, fresh, usage};
use crate::store::usage::UsageFilter;

/// Looks at posting after the first, a tenth of a second apart, before a fresh report is given up: ten seconds.
const FRESH_POLLS: u32 = 100;
/// Seconds after which posting may have caught up.
const POSTING_RETRY_SECONDS: u32 = 2;

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get_usage)).routes(routes!(get_margin))
}

/// Which usage, grouped by what.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct UsageParams {
    /// Hours that start at or after this time; without it 30 days before `to`. Usage is summed by hours aligned to the
    /// customer's zone, and an hour counts as a whole.
    from: Option<DateTime<Utc>>,
    /// Hours that start before this time; without it now.
    to: Option<DateTime<Utc>>,
    /// Any of `customer`, `day` (in the customer's zone), `provider`, `model`, `project`, `task_type`, `class`, separated by
    /// commas.
    #[param(example = "model,class")]
    group_by: Option<String>,
    /// Only of this customer, by `external_id`; a customer's key always gets its own.
    customer: Option<String>,
    /// Only of this provider.
    provider: Option<String>,
    /// Only of this model, by its canonical name.
    model: Option<String>,
    /// Only of this project; empty for usage of none.
    project: Option<String>,
    /// Only of this task type; empty for usage of none.
    task_type: Option<String>,
    /// With everything that was recorded before the request: the answer waits for it, up to 10 seconds, and `as_of` is not
    /// before the request. Where it takes longer the answer is 503 `posting_behind`.
    #[serde(default)]
    #[param(default = false)]
    fresh: bool,
}

/// Summed usage.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageReport)]
struct UsageReportView {
    /// The groups; one row per currency where there are several.
    data: Vec<UsageRowView>,
    /// Start of the interval.
    from: DateTime<Utc>,
    /// End of the interval.
    to: DateTime<Utc>,
    /// Everything whose recording was complete by then is in it.
    as_of: DateTime<Utc>,
}

/// One group. A dimension that was not asked for is left out.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageRow)]
struct UsageRowView {
    /// The customer's `external_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    customer: Option<String>,
    /// The day in the customer's zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<NaiveDate>,
    /// The provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    /// The model's canonical name.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// The project; empty for usage of none.
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<String>,
    /// The task type; empty for usage of none.
    #[serde(skip_serializing_if = "Option::is_none")]
    task_type: Option<String>,
    /// The token class.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    class: Option<TokenClass>,
    /// Calls; null where grouped by class, because one call uses several.
    events: Option<i64>,
    quantities: QuantitiesView,
    #[serde(flatten)]
    money: MoneyView,
}

impl UsageRowView {
    fn new(row: UsageRow, caller: &Caller) -> Self {
        let UsageRow {
            customer,
            day,
            provider,
            model,
            project,
            task_type,
            class,
            events,
            quantities,
            figures,
        } = row;
        Self {
            customer,
            day,
            provider,
            model,
            project,
            task_type,
            class,
            events,
            quantities: QuantitiesView(quantities),
            money: MoneyView::new(&figures, caller),
        }
    }
}

impl MoneyRow for UsageRowView {
    money_columns!(quantities: "customer", "day", "provider", "model", "project", "task_type", "class", "events");

    fn cells(&self, cells: &mut Cells) {
        cells
            .maybe_text(self.customer.as_deref())
            .maybe_value(self.day)
            .maybe_text(self.provider.as_deref())
            .maybe_text(self.model.as_deref())
            .maybe_text(self.project.as_deref())
            .maybe_text(self.task_type.as_deref())
            .maybe_value(self.class)
            .maybe_value(self.events);
        self.quantities.cells(cells);
        self.money.cells(cells);
    }
}

/// Sum usage
///
/// By any dimensions. Customers see the amount they pay; finance sees cost, charge and margin.
#[utoipa::path(get, path = "/v1/usage", operation_id = "get_usage", tag = "reports", params(UsageParams),
    responses((status = 200, description = "The sums", content(
        (UsageReportView = "application/json"), (String = "text/csv")))))]
async fn get_usage(
    format: Format,
    Query(params): Query<UsageParams>,
    State(state): State<AppState>,
    AskedAt(now): AskedAt,
    Auth { caller, .. }: Auth<Reader>,
) -> Result<Response, Problem> {
    sums(format, params, &state, now, &caller, "usage", "").await
}

/// Report margins
///
/// Cost, charge and margin, by customer where nothing else is asked for. The margin is null where cost and charge are in
/// different currencies.
#[utoipa::path(get, path = "/v1/reports/margin", operation_id = "get_margin", tag = "reports", params(UsageParams),
    responses((status = 200, description = "The margins", content(
        (UsageReportView = "application/json"), (String = "text/csv")))))]
async fn get_margin(
    format: Format,
    Query(params): Query<UsageParams>,
    State(state): State<AppState>,
    AskedAt(now): AskedAt,
    Auth { caller, .. }: Auth<Finance>,
) -> Result<Response, Problem> {
    sums(format, params, &state, now, &caller, "margin", "customer").await
}

/// The sums that the parameters ask for, as the caller may see them; `name` is that of the CSV file.
async fn sums(
    format: Format,
    params: UsageParams,
    state: &AppState,
    now: DateTime<Utc>,
    caller: &Caller,
    name: &str,
    group_by_default: &str,
) -> Result<Response, Problem> {
    let mut tx = if params.fresh {
        fresh(&state.db, caller.scope(), FRESH_POLLS).await?.ok_or_else(posting_behind)?
    } else {
        state.db.read(caller.scope()).await?
    };
    let customer = customer(&mut tx, caller, params.customer.as_deref()).await?;
    let query = params.query(customer, group_by_default, now)?;
    let report = usage(&mut tx, caller.scope(), &query, now).await?;
    let view = UsageReportView {
        data: report.rows.into_iter().map(|row| UsageRowView::new(row, caller)).collect(),
        from: query.filter.from,
        to: query.filter.to,
        as_of: report.as_of,
    };
    respond(format, caller, view.as_of, name, &view, &view.data)
}

fn posting_behind() -> Problem {
    let detail = "What was recorded before the request is not in the sums yet, and 10 seconds were not enough; ask again, \
                  or without `fresh` for the sums up to `as_of`.";
    Problem::new(&POSTING_BEHIND, detail).retry_after(POSTING_RETRY_SECONDS)
}

impl UsageParams {
    fn query(
        self,
        customer: Option<CustomerId>,
        group_by_default: &str,
        now: DateTime<Utc>,
    ) -> Result<UsageQuery, Problem> {
        let (from, to) = interval(self.from, self.to, now)?;
        let group_by = self.group_by.as_deref().unwrap_or(group_by_default);
        let group_by = group_by
            .split(',')
            .filter(|name| !name.is_empty())
            .map(|name| {
                name.parse::<Dimension>().map_err(|error| Problem::invalid("group_by", error.to_string()))
            })
            .collect::<Result<_, _>>()?;
        let filter = UsageFilter {
            customer,
            from,
            to,
            provider: self.provider,
            model: self.model,
            project: self.project,
            task_type: self.task_type,
        };
        Ok(UsageQuery { filter, group_by })
    }
}
