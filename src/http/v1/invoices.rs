//! Invoices: preview them, finalize them, read them.

use axum::response::Response;
use chrono::{DateTime, Datelike, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::figures::{AskedAt, find, one_customer};
use crate::domain::identity::hex;
use crate::domain::ids::{InvoiceId, PeriodPriceId};
use crate::domain::invoice::{InvoiceLine, LineKind};
use crate::domain::money::{Amount, Currency, MinorAmount};
use crate::domain::period::BillingCalendar;
use crate::domain::tokens::TokenClass;
use crate::http::AppState;
use crate::http::auth::{Caller, Finance, Read, Reader};
use crate::http::listing::{Listing, Page, PageParams};
use crate::http::openapi::DecimalText;
use crate::http::problem::{Problem, ProblemBody};
use crate::http::request::{Path, Query};
use crate::http::table::{Cells, CsvRow, Format};
use crate::http::write::Write;
use crate::invoicing::{self, Closed, DEFAULT_GRACE, Document, InvoicingError, Request};
use crate::store::invoices::{self, InvoiceFilter, StoredInvoice};
use crate::store::periods;

/// Seconds after which posting will have caught up.
const POSTING_RETRY_SECONDS: u32 = 2;

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_invoices))
        .routes(routes!(preview_invoice))
        .routes(routes!(finalize_invoice))
        .routes(routes!(get_invoice))
}

impl From<InvoicingError> for Problem {
    fn from(error: InvoicingError) -> Self {
        match error {
            InvoicingError::Store(error) => error.into(),
            InvoicingError::UnknownCustomer(_) => Self::not_found("customer"),
            InvoicingError::Calendar(error) => Self::invalid("period", error.to_string()),
            InvoicingError::BeforeBeginning { .. } => Self::invalid("period", error.to_string()),
            InvoicingError::TooEarly { .. }
            | InvoicingError::NotOver { .. }
            | InvoicingError::OutOfOrder { .. } => Self::conflict(error.to_string()),
            InvoicingError::NotPosted { .. } => {
                Self::unavailable("Recorded usage is not posted yet; try again.", error)
                    .retry_after(POSTING_RETRY_SECONDS)
            }
            InvoicingError::Lines(error) if error.too_large() => Self::sum_too_large(error),
            InvoicingError::Lines(error) => Self::internal(error),
        }
    }
}

/// For finance: what is wrong with the sums stays wrong until somebody looks into it, so it is said. Whoever is billed by them
/// is not told.
fn told_finance(error: InvoicingError) -> Problem {
    match error {
        InvoicingError::Lines(error) if !error.too_large() => Problem::conflict(error.to_string()),
        error => error.into(),
    }
}

/// An invoice. Its lines are not listed here.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Invoice)]
struct InvoiceView {
    /// Its id.
    id: Uuid,
    /// Its number, gapless.
    #[schema(example = "INV-000042")]
    number: String,
    /// The customer's `external_id`.
    customer: String,
    /// The customer's name when it was finalized.
    customer_name: String,
    /// `finalized` or `void`.
    #[schema(example = "finalized")]
    status: String,
    /// Start of the billing period.
    period_start: DateTime<Utc>,
    /// End of the billing period.
    period_end: DateTime<Utc>,
    /// The zone of the billing period when it was finalized.
    time_zone: String,
    /// Sum of the rounded lines.
    #[schema(value_type = DecimalText)]
    total: MinorAmount,
    /// Sum of the exact lines.
    #[schema(value_type = DecimalText)]
    exact_total: Amount,
    /// Of every amount on it.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// When it was finalized.
    finalized_at: DateTime<Utc>,
    /// SHA-256 of everything on it and of the invoice before it.
    content_hash: String,
}

/// An invoice with its lines.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InvoiceWithLines)]
struct InvoiceWithLinesView {
    #[serde(flatten)]
    invoice: InvoiceView,
    /// The lines.
    lines: Vec<LineView>,
    /// Hash of the invoice before it in its series; null for the first.
    previous_hash: Option<String>,
    /// What the figures were made from: events, prices, stream sequences and their gaps, rounding; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    manifest: Option<serde_json::Value>,
}

/// A line: a quantity at one rate in one service period.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InvoiceLine)]
struct LineView {
    /// Counts from 1.
    line: usize,
    /// `usage`; `late_usage` of an earlier period, recorded after that was closed; `adjustment` by a re-rate. By prices over
    /// the billing period: `tier`, what a tier changes of the list rate; `package`s; `task`s at a fixed price;
    /// `included_usage`, taken back because packages or tasks stand for it.
    kind: LineKind,
    /// Start of the period in which the usage happened, or the tasks ended.
    service_start: DateTime<Utc>,
    /// End of that period.
    service_end: DateTime<Utc>,
    /// The provider; null where the line is of several, or of tasks.
    provider: Option<String>,
    /// The model; null as for the provider.
    model: Option<String>,
    /// The token class; null as for the provider.
    #[schema(value_type = Option<String>, example = "input")]
    class: Option<TokenClass>,
    /// Units, packages or tasks; negative where they are taken back.
    quantity: i64,
    /// Money for one; negative where a tier is cheaper than the list.
    #[schema(value_type = DecimalText)]
    rate: Amount,
    /// Quantity times rate.
    #[schema(value_type = DecimalText)]
    exact_amount: Amount,
    /// The exact amount rounded once, half away from zero.
    #[schema(value_type = DecimalText)]
    amount: MinorAmount,
    /// Of rate and amounts.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// How the line came about, where quantity and rate do not say it.
    #[schema(
        example = "gpt-5 input volume: graduated: 5000000 above 10000000 at 2 instead of 2.5 per 1000000"
    )]
    note: Option<String>,
    /// The period price that made it.
    #[schema(value_type = Option<i64>)]
    period_price_id: Option<PeriodPriceId>,
}

/// A period as it would be invoiced now.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InvoicePreview)]
struct PreviewView {
    /// The customer's `external_id`.
    customer: String,
    /// Start of the billing period.
    period_start: DateTime<Utc>,
    /// End of the billing period.
    period_end: DateTime<Utc>,
    /// When the period was closed, or passed over because a later one was closed first; then its invoices are final and
    /// equal this.
    closed_at: Option<DateTime<Utc>>,
    /// One per currency; none where nothing was used.
    invoices: Vec<DraftView>,
    /// Everything whose recording was complete by then is in it.
    as_of: DateTime<Utc>,
}

/// What one invoice would hold.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InvoiceDraft)]
struct DraftView {
    /// Sum of the rounded lines.
    #[schema(value_type = DecimalText)]
    total: MinorAmount,
    /// Sum of the exact lines.
    #[schema(value_type = DecimalText)]
    exact_total: Amount,
    /// Of every amount.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// Usage events behind the lines.
    events: i64,
    /// The lines.
    lines: Vec<LineView>,
}

/// A closed period.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ClosedPeriod)]
struct ClosedView {
    /// The customer's `external_id`.
    customer: String,
    /// Start of the billing period.
    period_start: DateTime<Utc>,
    /// End of the billing period.
    period_end: DateTime<Utc>,
    /// Whether it had been closed before; then these are the invoices of that time.
    already_closed: bool,
    /// Its invoices, one per currency; none where nothing was used.
    invoices: Vec<InvoiceView>,
}

impl InvoiceView {
    fn new(stored: StoredInvoice) -> Self {
        let StoredInvoice { invoice, customer_external_id, status, content_hash } = stored;
        Self {
            id: invoice.id.0,
            number: invoice.display_number(),
            customer: customer_external_id,
            customer_name: invoice.customer_name,
            status,
            period_start: invoice.period.start,
            period_end: invoice.period.end,
            time_zone: invoice.time_zone,
            total: invoice.total,
            exact_total: invoice.exact_total,
            currency: invoice.currency,
            finalized_at: invoice.finalized_at,
            content_hash: hex(&content_hash),
        }
    }
}

impl InvoiceWithLinesView {
    fn new(mut stored: StoredInvoice, caller: &Caller) -> Self {
        let lines = line_views(std::mem::take(&mut stored.invoice.lines), stored.invoice.currency);
        let previous_hash = stored.invoice.previous_hash.as_deref().map(hex);
        // It counts messages of the whole stream, which other customers share.
        let manifest = caller.sees_cost().then(|| stored.invoice.manifest.clone());
        Self { invoice: InvoiceView::new(stored), lines, previous_hash, manifest }
    }
}

impl DraftView {
    fn new(document: Document) -> Self {
        let Document { currency, lines, exact_total, total, events, prices: _ } = document;
        Self { total, exact_total, currency, events, lines: line_views(lines, currency) }
    }
}

fn line_views(lines: Vec<InvoiceLine>, currency: Currency) -> Vec<LineView> {
    let numbered = (1..).zip(lines);
    numbered
        .map(|(number, line)| LineView {
            line: number,
            kind: line.kind,
            service_start: line.service.start,
            service_end: line.service.end,
            provider: line.provider,
            model: line.model,
            class: line.class,
            quantity: line.quantity,
            rate: line.rate,
            exact_amount: line.exact,
            amount: line.amount,
            currency,
            note: line.note,
            period_price_id: line.period_price,
        })
        .collect()
}

impl CsvRow for InvoiceView {
    const HEADER: &'static [&'static str] = &[
        "id",
        "number",
        "customer",
        "customer_name",
        "status",
        "period_start",
        "period_end",
        "time_zone",
        "total",
        "exact_total",
        "currency",
        "finalized_at",
        "content_hash",
    ];

    fn cells(&self, cells: &mut Cells) {
        cells
            .value(self.id)
            .text(&self.number)
            .text(&self.customer)
            .text(&self.customer_name)
            .value(&self.status)
            .time(self.period_start)
            .time(self.period_end)
            .text(&self.time_zone)
            .value(self.total)
            .value(self.exact_total)
            .value(self.currency)
            .time(self.finalized_at)
            .value(&self.content_hash);
    }
}

impl CsvRow for &LineView {
    const HEADER: &'static [&'static str] = &[
        "line",
        "kind",
        "service_start",
        "service_end",
        "provider",
        "model",
        "class",
        "quantity",
        "rate",
        "exact_amount",
        "amount",
        "currency",
        "note",
        "period_price_id",
    ];

    fn cells(&self, cells: &mut Cells) {
        cells
            .value(self.line)
            .value(self.kind)
            .time(self.service_start)
            .time(self.service_end)
            .maybe_text(self.provider.as_deref())
            .maybe_text(self.model.as_deref())
            .maybe_value(self.class)
            .value(self.quantity)
            .value(self.rate)
            .value(self.exact_amount)
            .value(self.amount)
            .value(self.currency)
            .maybe_text(self.note.as_deref())
            .maybe_value(self.period_price_id);
    }
}

/// Narrows the list of invoices.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Filter {
    /// Only of this customer, by `external_id`; a customer's key always gets its own.
    customer: Option<String>,
    /// Only of periods that start at or after.
    from: Option<DateTime<Utc>>,
    /// Only of periods that start before.
    to: Option<DateTime<Utc>>,
    /// Only of periods that start in this month (`2026-10`), each in the zone of its invoice.
    #[param(example = "2026-10")]
    period: Option<String>,
}

/// Which period.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PreviewParams {
    /// The customer's `external_id`; finance must give it, a customer's key always gets its own.
    customer: Option<String>,
    /// The month in which the period starts in the customer's zone (`2026-10`), or any time in it (RFC 3339); without it the
    /// period that runs.
    #[param(example = "2026-10")]
    period: Option<String>,
}

/// A period to be closed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct FinalizeBody {
    /// The customer's `external_id`.
    #[schema(example = "acme")]
    customer: String,
    /// The month in which the period starts in the customer's zone (`2026-10`), or any time in it (RFC 3339).
    #[schema(example = "2026-10")]
    period: String,
}

/// List invoices
///
/// The newest number first.
#[utoipa::path(get, path = "/v1/invoices", operation_id = "list_invoices", tag = "invoices", params(Filter, PageParams),
    responses((status = 200, description = "A page of invoices", content(
        (Page<InvoiceView> = "application/json"), (String = "text/csv")))))]
async fn list_invoices(
    Listing { caller, mut tx, filter, page, .. }: Listing<Reader, Filter>,
) -> Result<Response, Problem> {
    let customer = super::figures::customer(&mut tx, &caller, filter.customer.as_deref()).await?;
    let month = filter.period.as_deref().map(|period| {
        first_day(period).ok_or_else(|| Problem::invalid("period", "must be a month like 2026-10"))
    });
    let narrow = InvoiceFilter {
        customer,
        from: filter.from,
        to: filter.to,
        month: month.transpose()?,
        below: page.after::<i64>()?,
        limit: page.fetch(),
    };
    let rows = invoices::list(&mut tx, &narrow).await?;
    page.respond(rows, |stored| stored.invoice.number, InvoiceView::new)
}

/// Preview an invoice
///
/// Computed now by the same function that finalizes it; of a closed period, what was finalized.
#[utoipa::path(get, path = "/v1/invoices/preview", operation_id = "preview_invoice", tag = "invoices",
    params(PreviewParams),
    responses(
        (status = 200, description = "The period as it would be invoiced now", content(
            (PreviewView = "application/json"), (String = "text/csv"))),
        (status = 409, description = "The sums give no invoice that could be trusted; finance is told why",
            body = ProblemBody, content_type = "application/problem+json")))]
async fn preview_invoice(
    format: Format,
    Query(params): Query<PreviewParams>,
    AskedAt(now): AskedAt,
    Read { caller, mut tx, .. }: Read<Reader>,
) -> Result<Response, Problem> {
    let id = one_customer(&mut tx, &caller, params.customer.as_deref()).await?;
    let at = match params.period {
        None => now,
        Some(period) => {
            let customer =
                periods::customer(&mut tx, id).await?.ok_or_else(|| Problem::not_found("customer"))?;
            instant_in(&period, customer.calendar()?, customer.anchor_day)?
        }
    };
    let told = |error| if caller.sees_cost() { told_finance(error) } else { error.into() };
    let draft = invoicing::preview(&mut tx, id, at, now).await.map_err(told)?;
    let view = PreviewView {
        customer: draft.customer.external_id,
        period_start: draft.period.start,
        period_end: draft.period.end,
        closed_at: draft.closed_at,
        invoices: draft.documents.into_iter().map(DraftView::new).collect(),
        as_of: draft.as_of,
    };
    let lines: Vec<&LineView> = view.invoices.iter().flat_map(|draft| &draft.lines).collect();
    format.respond_as_of(view.as_of, "invoice-preview", &view, &lines)
}

/// Finalize an invoice
///
/// Closes the billing period and finalizes its invoices. Periods are closed in order, an hour after their end at the
/// earliest. Repeating it returns the same invoices. A period without usage is closed without an invoice. The first one must
/// end after the customer was made, or after it was given price books where that is earlier.
#[utoipa::path(post, path = "/v1/invoices/finalize", operation_id = "finalize_invoice", tag = "invoices",
    request_body = FinalizeBody,
    responses((status = 200, description = "Closed, now or before", body = ClosedView)))]
async fn finalize_invoice(
    Write { mut work, body, .. }: Write<Finance, FinalizeBody>,
) -> Result<Response, Problem> {
    let customer = find(work.db(), &body.customer).await?;
    let calendar =
        BillingCalendar::new(&customer.time_zone, customer.anchor_day).map_err(Problem::internal)?;
    let request = Request {
        customer: customer.id,
        at: instant_in(&body.period, calendar, customer.anchor_day)?,
        grace: DEFAULT_GRACE,
        actor: work.caller.public_id.clone(),
    };
    let now = work.now;
    let Closed { period, invoices: ids, already } =
        invoicing::close_within(work.db(), now, &request).await.map_err(told_finance)?;
    let mut views = Vec::with_capacity(ids.len());
    for id in ids {
        let stored = invoices::get(work.db(), id).await?.ok_or_else(|| Problem::not_found("invoice"))?;
        views.push(InvoiceView::new(stored));
    }
    let view = ClosedView {
        customer: body.customer,
        period_start: period.start,
        period_end: period.end,
        already_closed: already,
        invoices: views,
    };
    work.done(&view).await
}

/// Get an invoice
///
/// With its lines; as CSV the lines alone.
#[utoipa::path(get, path = "/v1/invoices/{id}", operation_id = "get_invoice", tag = "invoices",
    params(("id" = Uuid, Path, description = "Its id")),
    responses((status = 200, description = "The invoice", content(
        (InvoiceWithLinesView = "application/json"), (String = "text/csv")))))]
async fn get_invoice(
    Path(id): Path<Uuid>,
    Read { caller, mut tx, .. }: Read<Reader>,
    format: Format,
) -> Result<Response, Problem> {
    let stored = invoices::get(&mut tx, InvoiceId(id)).await?.ok_or_else(|| Problem::not_found("invoice"))?;
    let name = stored.invoice.display_number();
    let view = InvoiceWithLinesView::new(stored, &caller);
    let lines: Vec<&LineView> = view.lines.iter().collect();
    format.respond(&name, &view, &lines)
}

/// An instant in the period that is meant: the start of the one that starts in a month (`2026-10`), or a time as given.
fn instant_in(period: &str, calendar: BillingCalendar, anchor_day: i16) -> Result<DateTime<Utc>, Problem> {
    let invalid =
        || Problem::invalid("period", "must be a month like 2026-10, or a time like 2026-10-15T00:00:00Z");
    if let Ok(at) = period.parse::<DateTime<Utc>>() {
        return Ok(at);
    }
    let month = first_day(period).ok_or_else(invalid)?;
    let day = u32::try_from(anchor_day).ok().and_then(|day| month.with_day(day)).ok_or_else(invalid)?;
    calendar.midnight(day).ok_or_else(invalid)
}

/// The first day of a month (`2026-10`).
fn first_day(month: &str) -> Option<NaiveDate> {
    NaiveDate::parse_from_str(&format!("{month}-01"), "%Y-%m-%d").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_means_the_period_that_starts_in_it() {
        let calendar = BillingCalendar::new("Asia/Kathmandu", 15).unwrap();
        for (period, at) in [
            ("2026-10", "2026-10-14T18:15:00Z"),
            ("2026-10-20T00:00:00Z", "2026-10-20T00:00:00Z"),
            ("2026-10-20T00:00:00+02:00", "2026-10-19T22:00:00Z"),
        ] {
            assert_eq!(
                instant_in(period, calendar, 15).unwrap(),
                at.parse::<DateTime<Utc>>().unwrap(),
                "{period}"
            );
        }
        for period in ["", "2026", "2026-13", "2026-10-20", "October", "2026-10-20T00:00:00"] {
            assert_eq!(instant_in(period, calendar, 15).unwrap_err().code(), "invalid_value", "{period}");
        }
    }
}
