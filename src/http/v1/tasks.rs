//! Tasks: what each cost, what it is made of.

use axum::Json;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::figures::{
    AskedAt, ForCustomer, ForFinance, MoneyRow, MoneyView, QuantitiesView, money_columns, one_customer,
};
use crate::domain::money::Amount;
use crate::http::AppState;
use crate::http::auth::{Caller, Read, Reader};
use crate::http::listing::{Listing, Page, PageParams};
use crate::http::problem::Problem;
use crate::http::request::{Path, Query};
use crate::http::table::Cells;
use crate::reports::Figures;
use crate::store::tasks::{self, Call, CallPosition, Currencies, Task, TaskFilter};
use crate::store::{partitions, periods};

/// Calls shown with a task; `/v1/tasks/{id}/calls` has them all.
const CALLS_SHOWN: usize = 50;
/// The same, with one more that tells whether more follow.
const CALLS_FETCHED: i64 = 51;

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_tasks))
        .routes(routes!(get_task))
        .routes(routes!(list_task_calls))
}

/// A task with its own totals; those of tasks under it are not among them.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Task)]
struct TaskView {
    /// Its id, unique per customer.
    #[schema(example = "refund-8812")]
    id: String,
    /// Its type.
    #[serde(rename = "type")]
    #[schema(example = "refund")]
    kind: Option<String>,
    /// The task it is a part of.
    parent: Option<String>,
    /// When its first event happened.
    first_event_at: DateTime<Utc>,
    /// When its last event happened.
    last_event_at: DateTime<Utc>,
    /// How it ended; null while open.
    outcome: Option<String>,
    /// When it ended.
    ended_at: Option<DateTime<Utc>>,
    /// The models it used.
    models: Vec<String>,
    /// Model calls.
    calls: i64,
    quantities: QuantitiesView,
    #[serde(flatten)]
    money: MoneyView,
}

impl TaskView {
    fn new(task: Task, money: MoneyView) -> Self {
        Self {
            id: task.task_id,
            kind: task.task_type,
            parent: task.parent,
            first_event_at: task.first_event_at,
            last_event_at: task.last_event_at,
            outcome: task.outcome,
            ended_at: task.ended_at,
            models: task.models,
            calls: task.calls,
            quantities: QuantitiesView(task.quantities),
            money,
        }
    }
}

impl MoneyRow for TaskView {
    money_columns!(quantities: "id", "type", "parent", "first_event_at", "last_event_at", "outcome", "ended_at",
        "models", "calls");

    fn cells(&self, cells: &mut Cells) {
        cells
            .text(&self.id)
            .maybe_text(self.kind.as_deref())
            .maybe_text(self.parent.as_deref())
            .time(self.first_event_at)
            .time(self.last_event_at)
            .maybe_text(self.outcome.as_deref())
            .maybe_time(self.ended_at)
            .text(&self.models.join(" "))
            .value(self.calls);
        self.quantities.cells(cells);
        self.money.cells(cells);
    }
}

/// One step of a task: a model call (or a part of one), the outcome, or what was corrected or re-rated later.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TaskCall)]
struct CallView {
    /// The event's source.
    source: String,
    /// The event's id.
    id: String,
    /// Position in the event, which has several parts where one call used several models.
    part: i16,
    /// `usage` or `outcome`; `reversal` takes a corrected estimate back; `retraction` and `restatement` are a re-rate.
    #[schema(example = "usage")]
    kind: String,
    /// When it happened.
    occurred_at: DateTime<Utc>,
    /// The provider.
    provider: Option<String>,
    /// The model as reported.
    model: Option<String>,
    /// The outcome, where it is one.
    outcome: Option<String>,
    /// The call's own status.
    status: Option<String>,
    /// Whether the gateway estimated the usage.
    estimated: bool,
    /// How long it took.
    latency_ms: Option<i64>,
    quantities: QuantitiesView,
    #[serde(flatten)]
    money: MoneyView,
}

impl CallView {
    fn new(call: Call, money: MoneyView) -> Self {
        Self {
            source: call.source,
            id: call.id,
            part: call.part,
            kind: call.kind,
            occurred_at: call.occurred_at,
            provider: call.provider,
            model: call.model,
            outcome: call.outcome,
            status: call.status,
            estimated: call.estimated,
            latency_ms: call.latency_ms,
            quantities: QuantitiesView(call.quantities),
            money,
        }
    }
}

impl MoneyRow for CallView {
    money_columns!(quantities: "source", "id", "part", "kind", "occurred_at", "provider", "model", "outcome", "status",
        "estimated", "latency_ms");

    fn cells(&self, cells: &mut Cells) {
        cells
            .text(&self.source)
            .text(&self.id)
            .value(self.part)
            .value(&self.kind)
            .time(self.occurred_at)
            .maybe_text(self.provider.as_deref())
            .maybe_text(self.model.as_deref())
            .maybe_text(self.outcome.as_deref())
            .maybe_text(self.status.as_deref())
            .value(self.estimated)
            .maybe_value(self.latency_ms);
        self.quantities.cells(cells);
        self.money.cells(cells);
    }
}

/// A task with what is under it and its first calls.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TaskWithCalls)]
struct TaskWithCallsView {
    #[serde(flatten)]
    task: TaskView,
    /// The task and everything under it together.
    nested: NestedView,
    /// Its first calls in the order they happened; none where `steps_timed_out`.
    steps: Vec<CallView>,
    /// Whether `/v1/tasks/{id}/calls` has more.
    has_more_steps: bool,
    /// Whether the calls could not be read in time, as of a task that went on for months: its totals hold them all the same.
    steps_timed_out: bool,
    /// Whether it has calls in months whose raw events are archived: they are in its totals and not among its steps.
    has_archived_steps: bool,
    /// Everything whose recording was complete by then is in it.
    as_of: DateTime<Utc>,
}

/// Totals of a task with everything under it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NestedTotals)]
struct NestedView {
    /// Tasks, the task itself among them.
    tasks: i64,
    /// Model calls.
    calls: i64,
    #[serde(flatten)]
    money: MoneyView,
}

/// Narrows the list of tasks.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Filter {
    /// The customer's `external_id`; finance must give it, a customer's key always gets its own.
    customer: Option<String>,
    /// Last event at or after.
    from: Option<DateTime<Utc>>,
    /// Last event before.
    to: Option<DateTime<Utc>>,
    /// Only of this type.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Only with this outcome: `success`, `failure`, `escalated`, `abandoned`, or `open`.
    outcome: Option<String>,
    /// Only parts of this task.
    parent: Option<String>,
}

/// Whose task.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Whose {
    /// The customer's `external_id`; finance must give it, a customer's key always gets its own.
    customer: Option<String>,
}

/// List tasks
///
/// The one with the newest event first, each with its own totals.
#[utoipa::path(get, path = "/v1/tasks", operation_id = "list_tasks", tag = "tasks", params(Filter, PageParams),
    responses((status = 200, description = "A page of tasks", content(
        (Page<TaskView> = "application/json"), (String = "text/csv")))))]
async fn list_tasks(
    Listing { caller, mut tx, filter, page, .. }: Listing<Reader, Filter>,
) -> Result<Response, Problem> {
    let customer = one_customer(&mut tx, &caller, filter.customer.as_deref()).await?;
    let narrow = TaskFilter {
        from: filter.from,
        to: filter.to,
        task_type: filter.kind,
        outcome: filter.outcome,
        parent: filter.parent,
        after: page.after::<(DateTime<Utc>, String)>()?,
        limit: page.fetch(),
    };
    let rows = tasks::list(&mut tx, customer, &narrow).await?;
    let currencies = tasks::currencies(&mut tx, customer).await?;
    let position = |task: &Task| (task.last_event_at, task.task_id.clone());
    let view = |task: Task| {
        let money = money(task.cost, task.charge, currencies.at(task.first_event_at), &caller);
        TaskView::new(task, money)
    };
    if caller.sees_cost() {
        page.respond(rows, position, |task| ForFinance(view(task)))
    } else {
        page.respond(rows, position, |task| ForCustomer(view(task)))
    }
}

/// Get a task
///
/// With its first calls, and the totals of everything under it. The totals are answered also where the calls cannot be read
/// in time.
#[utoipa::path(get, path = "/v1/tasks/{id}", operation_id = "get_task", tag = "tasks",
    params(("id" = String, Path, description = "Its id", example = "refund-8812"), Whose),
    responses((status = 200, description = "The task", body = TaskWithCallsView)))]
async fn get_task(
    Path(id): Path<String>,
    Query(whose): Query<Whose>,
    AskedAt(now): AskedAt,
    Read { caller, mut tx, .. }: Read<Reader>,
) -> Result<Json<TaskWithCallsView>, Problem> {
    let customer = one_customer(&mut tx, &caller, whose.customer.as_deref()).await?;
    let task = tasks::get(&mut tx, customer, &id).await?.ok_or_else(unknown)?;
    let as_of = periods::posted_through(&mut tx, now).await?;
    let tree = tasks::tree_totals(&mut tx, customer, &id).await?;
    let kept_from = partitions::archived_through(&mut tx).await?;
    let has_archived_steps = kept_from.is_some_and(|kept_from| task.extent.first_booked_on < kept_from);
    let currencies = tasks::currencies(&mut tx, customer).await?;
    let own_currencies = currencies.at(task.first_event_at);
    // Last, because nothing more can be read once a statement has failed.
    let (mut calls, steps_timed_out) = match tasks::calls(&mut tx, customer, &task, None, CALLS_FETCHED).await
    {
        Ok(calls) => (calls, false),
        Err(error) if error.timed_out() => (Vec::new(), true),
        Err(error) => return Err(error.into()),
    };
    let has_more_steps = steps_timed_out || calls.len() > CALLS_SHOWN;
    calls.truncate(CALLS_SHOWN);
    let nested = NestedView {
        tasks: tree.tasks,
        calls: tree.calls,
        money: money(tree.cost, tree.charge, own_currencies, &caller),
    };
    let steps = calls
        .into_iter()
        .map(|call| {
            let money = money(call.cost, call.charge, currencies.at(call.occurred_at), &caller);
            CallView::new(call, money)
        })
        .collect();
    let own = money(task.cost, task.charge, own_currencies, &caller);
    let task = TaskView::new(task, own);
    Ok(Json(TaskWithCallsView {
        task,
        nested,
        steps,
        has_more_steps,
        steps_timed_out,
        has_archived_steps,
        as_of,
    }))
}

/// List calls of a task
///
/// In the order they happened: usage, corrected estimates taken back, and the outcome.
#[utoipa::path(get, path = "/v1/tasks/{id}/calls", operation_id = "list_task_calls", tag = "tasks",
    params(("id" = String, Path, description = "Its id", example = "refund-8812"), Whose, PageParams),
    responses((status = 200, description = "A page of calls", content(
        (Page<CallView> = "application/json"), (String = "text/csv")))))]
async fn list_task_calls(
    Path(id): Path<String>,
    Listing { caller, mut tx, filter, page, .. }: Listing<Reader, Whose>,
) -> Result<Response, Problem> {
    let customer = one_customer(&mut tx, &caller, filter.customer.as_deref()).await?;
    let task = tasks::get(&mut tx, customer, &id).await?.ok_or_else(unknown)?;
    let currencies = tasks::currencies(&mut tx, customer).await?;
    let after = page.after::<(DateTime<Utc>, Uuid, i16)>()?;
    let rows = tasks::calls(&mut tx, customer, &task, after, page.fetch()).await?;
    let position = |call: &Call| -> CallPosition { (call.occurred_at, call.event_key.0, call.part) };
    let view = |call: Call| {
        let money = money(call.cost, call.charge, currencies.at(call.occurred_at), &caller);
        CallView::new(call, money)
    };
    if caller.sees_cost() {
        page.respond(rows, position, |call| ForFinance(view(call)))
    } else {
        page.respond(rows, position, |call| ForCustomer(view(call)))
    }
}

fn money(cost: Amount, charge: Amount, currencies: Currencies, caller: &Caller) -> MoneyView {
    let cost = currencies.cost.map(|currency| (cost, currency));
    MoneyView::new(&Figures { charge, currency: currencies.charge, cost }, caller)
}

fn unknown() -> Problem {
    Problem::not_found("task")
}
