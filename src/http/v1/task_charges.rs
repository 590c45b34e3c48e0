//! The tasks behind the task lines of an invoice.

use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::domain::ids::{InvoiceId, PeriodPriceId};
use crate::domain::money::{Amount, Currency};
use crate::http::AppState;
use crate::http::auth::Reader;
use crate::http::listing::{Listing, NoFilter, Page, PageParams};
use crate::http::openapi::DecimalText;
use crate::http::problem::Problem;
use crate::http::request::Path;
use crate::http::table::{Cells, CsvRow};
use crate::store::invoices;
use crate::store::settlement::{self, ChargedTask};

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_task_charges))
}

/// A task that an invoice charges, or credits because its outcome changed after it was charged.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TaskCharge)]
struct TaskChargeView {
    /// The task's id.
    task: String,
    /// The outcome that decided it.
    #[schema(example = "success")]
    outcome: String,
    /// When the task ended.
    ended_at: DateTime<Utc>,
    /// 1 for a charge, -1 for a credit.
    quantity: i16,
    /// Money for the task.
    #[schema(value_type = DecimalText)]
    rate: Amount,
    /// Quantity times rate.
    #[schema(value_type = DecimalText)]
    amount: Amount,
    /// Of both.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// The price that it was charged by.
    #[schema(value_type = i64)]
    period_price_id: PeriodPriceId,
}

impl From<ChargedTask> for TaskChargeView {
    fn from(charged: ChargedTask) -> Self {
        let ChargedTask { task, outcome, ended_at, quantity, rate, amount, currency, period_price, .. } =
            charged;
        Self { task, outcome, ended_at, quantity, rate, amount, currency, period_price_id: period_price }
    }
}

impl CsvRow for TaskChargeView {
    const HEADER: &'static [&'static str] =
        &["task", "outcome", "ended_at", "quantity", "rate", "amount", "currency", "period_price_id"];

    fn cells(&self, cells: &mut Cells) {
        cells
            .text(&self.task)
            .value(&self.outcome)
            .time(self.ended_at)
            .value(self.quantity)
            .value(self.rate)
            .value(self.amount)
            .value(self.currency)
            .value(self.period_price_id);
    }
}

/// List the tasks of an invoice
///
/// Those behind its lines of kind `task`, in order of their ids.
#[utoipa::path(get, path = "/v1/invoices/{id}/task-charges", operation_id = "list_task_charges", tag = "invoices",
    params(("id" = Uuid, Path, description = "The invoice's id"), PageParams),
    responses((status = 200, description = "A page of charged tasks", content(
        (Page<TaskChargeView> = "application/json"), (String = "text/csv")))))]
async fn list_task_charges(
    Path(id): Path<Uuid>,
    Listing { mut tx, page, .. }: Listing<Reader, NoFilter>,
) -> Result<Response, Problem> {
    let invoice = InvoiceId(id);
    if !invoices::exists(&mut tx, invoice).await? {
        return Err(Problem::not_found("invoice"));
    }
    let after: Option<(String, i32)> = page.after()?;
    let rows = settlement::charged_tasks(&mut tx, invoice, after.as_ref(), page.fetch()).await?;
    page.respond(rows, |charged| (charged.task.clone(), charged.number), TaskChargeView::from)
}
