//! Cost per task.

use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::figures::{AskedAt, MoneyView, customer, interval};
use crate::domain::money::{Amount, Currency};
use crate::http::AppState;
use crate::http::auth::{Caller, Read, Reader};
use crate::http::openapi::DecimalText;
use crate::http::problem::Problem;
use crate::http::request::Query;
use crate::http::table::{Cells, CsvRow, Format};
use crate::reports::{CostPerTask, Distribution, Ratio, TaskGroup, TypeSummary, Unattributed, cost_per_task};
use crate::store::reports::TaskScope;

/// Name of the file where it is asked for as one, without its ending.
const FILE_NAME: &str = "cost-per-task";

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get_cost_per_task))
}

/// Which tasks.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Tasks whose last event is at or after this time; without it 30 days before `to`.
    from: Option<DateTime<Utc>>,
    /// Tasks whose last event is before this time; without it now.
    to: Option<DateTime<Utc>>,
    /// Only of this customer, by `external_id`; a customer's key always gets its own.
    customer: Option<String>,
    /// Only of this type.
    task_type: Option<String>,
    /// `true` counts a task with everything under it, and does not list what is under another. Then type, outcome and time
    /// are those of the task on top.
    #[serde(default)]
    nested: bool,
}

/// Cost per task. Percentiles are exact totals of actual tasks (nearest rank).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CostPerTask)]
struct ReportView {
    /// By type and outcome.
    data: Vec<TaskGroupView>,
    /// By type.
    types: Vec<TypeView>,
    /// Usage in the interval's hours whose calls name no task type, a row per currency: calls of no task, and those of tasks that
    /// do not say of which type; the latter are in `data` and `types` as well, so it does not add up with them. Empty where one
    /// `task_type` is asked for.
    unattributed: Vec<UnattributedView>,
    /// Start of the interval.
    from: DateTime<Utc>,
    /// End of the interval.
    to: DateTime<Utc>,
    /// Everything whose recording was complete by then is in it.
    as_of: DateTime<Utc>,
}

/// Tasks of one type that ended in one way.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TaskGroup)]
struct TaskGroupView {
    /// The type; null for tasks that name none.
    task_type: Option<String>,
    /// How they ended: `success`, `failure`, `escalated`, `abandoned`, or `open`.
    outcome: String,
    /// Tasks.
    tasks: i64,
    /// Their model calls.
    calls: i64,
    #[serde(flatten)]
    money: DistributionsView,
}

/// How totals of single tasks are distributed, as the caller may see it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum DistributionsView {
    /// To finance.
    Finance {
        /// What providers charge us.
        cost: Option<DistributionView>,
        /// What customers pay.
        charge: DistributionView,
    },
    /// To a customer.
    Customer {
        /// What it pays.
        amount: DistributionView,
    },
}

/// How totals of single tasks are distributed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Distribution)]
struct DistributionView {
    /// Sum of all.
    #[schema(value_type = DecimalText)]
    total: Amount,
    /// Sum by number of tasks, rounded to 15 places.
    #[schema(value_type = DecimalText)]
    mean: Amount,
    /// Half of the tasks cost at most this.
    #[schema(value_type = DecimalText)]
    p50: Amount,
    /// Nine of ten cost at most this.
    #[schema(value_type = DecimalText)]
    p90: Amount,
    /// 99 of 100 cost at most this.
    #[schema(value_type = DecimalText)]
    p99: Amount,
    /// The dearest.
    #[schema(value_type = DecimalText)]
    max: Amount,
    /// Of all of them.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
}

/// All tasks of one type.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TaskTypeSummary)]
struct TypeView {
    /// The type; null for tasks that name none.
    task_type: Option<String>,
    /// Tasks.
    tasks: i64,
    /// Tasks without an outcome yet.
    open: i64,
    /// Tasks that ended with success.
    successes: i64,
    /// Successes among the ended tasks, to four places; null where none has ended.
    #[schema(value_type = Option<DecimalText>)]
    success_rate: Option<Ratio>,
    /// All ended tasks by successes: what a success costs with its failures; null without a success.
    per_success: Option<PerSuccessView>,
    /// Ended tasks without success.
    wasted: MoneyView,
    /// All tasks, open ones included.
    total: MoneyView,
}

/// What a success costs, as the caller may see it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum PerSuccessView {
    /// To finance.
    Finance {
        /// What providers charge us.
        #[schema(value_type = Option<DecimalText>)]
        cost: Option<Amount>,
        /// What customers pay.
        #[schema(value_type = DecimalText)]
        charge: Amount,
        /// Of both.
        #[schema(value_type = String, example = "USD")]
        currency: Currency,
    },
    /// To a customer.
    Customer {
        /// What it pays.
        #[schema(value_type = DecimalText)]
        amount: Amount,
        /// Of the amount.
        #[schema(value_type = String, example = "USD")]
        currency: Currency,
    },
}

/// Usage that belongs to no task type.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UnattributedUsage)]
struct UnattributedView {
    /// Calls.
    calls: i64,
    #[serde(flatten)]
    money: MoneyView,
}

impl DistributionView {
    const fn new(distribution: Distribution, currency: Currency) -> Self {
        let Distribution { total, mean, p50, p90, p99, max } = distribution;
        Self { total, mean, p50, p90, p99, max, currency }
    }

    fn cells(&self, cells: &mut Cells) {
        for amount in [self.total, self.mean, self.p50, self.p90, self.p99, self.max] {
            cells.value(amount);
        }
    }
}

impl TaskGroupView {
    fn new(group: TaskGroup, caller: &Caller) -> Self {
        let charge = DistributionView::new(group.charge, group.currency);
        let money = if caller.sees_cost() {
            let cost = group.cost.map(|(cost, currency)| DistributionView::new(cost, currency));
            DistributionsView::Finance { cost, charge }
        } else {
            DistributionsView::Customer { amount: charge }
        };
        Self {
            task_type: group.task_type,
            outcome: group.outcome.unwrap_or_else(|| "open".to_owned()),
            tasks: group.tasks,
            calls: group.calls,
            money,
        }
    }

    fn head(&self, cells: &mut Cells) {
        cells.maybe_text(self.task_type.as_deref()).value(&self.outcome).value(self.tasks).value(self.calls);
    }
}

impl TypeView {
    fn new(summary: TypeSummary, caller: &Caller) -> Self {
        let currency = summary.figures.currency;
        let per_success = summary.charge_per_success.map(|charge| {
            if caller.sees_cost() {
                PerSuccessView::Finance { cost: summary.cost_per_success, charge, currency }
            } else {
                PerSuccessView::Customer { amount: charge, currency }
            }
        });
        Self {
            task_type: summary.task_type,
            tasks: summary.tasks,
            open: summary.open,
            successes: summary.successes,
            success_rate: summary.success_rate,
            per_success,
            wasted: MoneyView::new(&summary.wasted, caller),
            total: MoneyView::new(&summary.figures, caller),
        }
    }
}

/// A group as finance gets it as CSV.
struct FinanceRow<'a>(&'a TaskGroupView);

/// A group as a customer gets it as CSV.
struct CustomerRow<'a>(&'a TaskGroupView);

impl CsvRow for FinanceRow<'_> {
    const HEADER: &'static [&'static str] = &[
        "task_type",
        "outcome",
        "tasks",
        "calls",
        "charge_total",
        "charge_mean",
        "charge_p50",
        "charge_p90",
        "charge_p99",
        "charge_max",
        "currency",
        "cost_total",
        "cost_mean",
        "cost_p50",
        "cost_p90",
        "cost_p99",
        "cost_max",
        "cost_currency",
    ];

    fn cells(&self, cells: &mut Cells) {
        self.0.head(cells);
        let DistributionsView::Finance { cost, charge } = &self.0.money else { return };
        charge.cells(cells);
        cells.value(charge.currency);
        match cost {
            Some(cost) => {
                cost.cells(cells);
                cells.value(cost.currency);
            }
            None => {
                for _ in 0..7 {
                    cells.text("");
                }
            }
        }
    }
}

impl CsvRow for CustomerRow<'_> {
    const HEADER: &'static [&'static str] = &[
        "task_type",
        "outcome",
        "tasks",
        "calls",
        "amount_total",
        "amount_mean",
        "amount_p50",
        "amount_p90",
        "amount_p99",
        "amount_max",
        "currency",
    ];

    fn cells(&self, cells: &mut Cells) {
        self.0.head(cells);
        let DistributionsView::Customer { amount } = &self.0.money else { return };
        amount.cells(cells);
        cells.value(amount.currency);
    }
}

/// Report cost per task
///
/// Per task type and outcome: count, total, mean, percentiles and maximum of the exact totals of single tasks; per type the
/// success rate and what a success costs. Customers see the amount they pay; finance sees cost and charge.
#[utoipa::path(get, path = "/v1/reports/cost-per-task", operation_id = "get_cost_per_task", tag = "reports",
    params(Params),
    responses((status = 200, description = "The report", content(
        (ReportView = "application/json"), (String = "text/csv")))))]
async fn get_cost_per_task(
    format: Format,
    Query(params): Query<Params>,
    AskedAt(now): AskedAt,
    Read { caller, mut tx, .. }: Read<Reader>,
) -> Result<Response, Problem> {
    let (from, to) = interval(params.from, params.to, now)?;
    let customer = customer(&mut tx, &caller, params.customer.as_deref()).await?;
    let scope = TaskScope { customer, from, to, task_type: params.task_type, nested: params.nested };
    let report = cost_per_task(&mut tx, caller.scope(), &scope, now).await?;
    let CostPerTask { groups, types, unattributed, as_of } = report;
    let unattributed = unattributed.into_iter().map(|Unattributed { events, figures }| UnattributedView {
        calls: events,
        money: MoneyView::new(&figures, &caller),
    });
    let view = ReportView {
        data: groups.into_iter().map(|group| TaskGroupView::new(group, &caller)).collect(),
        types: types.into_iter().map(|summary| TypeView::new(summary, &caller)).collect(),
        unattributed: unattributed.collect(),
        from,
        to,
        as_of,
    };
    if caller.sees_cost() {
        let rows: Vec<_> = view.data.iter().map(FinanceRow).collect();
        format.respond_as_of(as_of, FILE_NAME, &view, &rows)
    } else {
        let rows: Vec<_> = view.data.iter().map(CustomerRow).collect();
        format.respond_as_of(as_of, FILE_NAME, &view, &rows)
    }
}
