//! Customers and the price books that rate them.

use axum::Json;
use axum::response::Response;
use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::domain::money::Currency;
use crate::domain::period::{BillingCalendar, CalendarError};
use crate::domain::price::{BookInfo, BookKind};
use crate::http::AppState;
use crate::http::auth::{Admin, Finance, Read, Reader};
use crate::http::listing::{Listing, Page, PageParams};
use crate::http::problem::{ALREADY_EXISTS, CURRENCY_CHANGE, OnConstraint, Problem};
use crate::http::request::Path;
use crate::http::table::{Cells, CsvRow};
use crate::http::write::{Work, Write};
use crate::store::catalog;
use crate::store::customers::{self, AssignmentRow, CustomerRow, CustomerStatus, NewAssignment};
use crate::store::prices::{self, Book};

/// The cost book where neither the request nor the sell book names one: the one that ships with the program.
const DEFAULT_COST_BOOK: &str = "provider-cost";

/// Years that an assignment may start and end in; the others cannot be written as RFC 3339, or are mistakes.
const YEARS: std::ops::RangeInclusive<i32> = 2000..=9999;

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_customers, create_customer))
        .routes(routes!(get_customer, update_customer))
        .routes(routes!(create_assignment))
}

/// A customer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Customer)]
struct CustomerView {
    /// How gateways and finance know it.
    #[schema(example = "acme")]
    external_id: String,
    /// Its name.
    #[schema(example = "Acme GmbH")]
    name: String,
    /// Whether its events are recorded.
    status: CustomerStatus,
    /// IANA zone of its billing calendar.
    #[schema(example = "Europe/Berlin")]
    time_zone: String,
    /// The day its monthly periods start on.
    #[schema(minimum = 1, maximum = 28)]
    anchor_day: i16,
    /// End of the last closed period; null where none is closed yet.
    closed_through: Option<DateTime<Utc>>,
    /// When it was made.
    created_at: DateTime<Utc>,
}

/// A customer with its price books.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CustomerWithBooks)]
struct CustomerWithBooksView {
    #[serde(flatten)]
    customer: CustomerView,
    /// The price books that rate it, in order of time.
    assignments: Vec<AssignmentView>,
}

/// The price books that rate a customer in `[valid_from, valid_to)`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Assignment)]
struct AssignmentView {
    /// What the customer pays by.
    sell_book: String,
    /// Its own prices, which go before those of the sell book; null where it has none.
    override_book: Option<String>,
    /// What its usage costs us by; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_book: Option<String>,
    /// The currency of all.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// First instant.
    valid_from: DateTime<Utc>,
    /// First instant after; null is open.
    valid_to: Option<DateTime<Utc>>,
}

impl From<CustomerRow> for CustomerView {
    fn from(row: CustomerRow) -> Self {
        let CustomerRow {
            id: _,
            external_id,
            name,
            time_zone,
            anchor_day,
            closed_through,
            status,
            created_at,
        } = row;
        Self { external_id, name, status, time_zone, anchor_day, closed_through, created_at }
    }
}

impl From<AssignmentRow> for AssignmentView {
    fn from(row: AssignmentRow) -> Self {
        let AssignmentRow { sell_book, override_book, cost_book, currency, valid_from, valid_to } = row;
        Self { sell_book, override_book, cost_book, currency, valid_from, valid_to }
    }
}

impl CsvRow for CustomerView {
    const HEADER: &'static [&'static str] =
        &["external_id", "name", "status", "time_zone", "anchor_day", "closed_through", "created_at"];

    fn cells(&self, cells: &mut Cells) {
        cells
            .text(&self.external_id)
            .text(&self.name)
            .value(self.status)
            .text(&self.time_zone)
            .value(self.anchor_day)
            .maybe_time(self.closed_through)
            .time(self.created_at);
    }
}

/// Narrows the list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct CustomerFilter {
    /// Only customers of this status.
    status: Option<CustomerStatus>,
}

/// List customers
///
/// In order of `external_id`. A customer's key sees its own customer only.
#[utoipa::path(get, path = "/v1/customers", operation_id = "list_customers", tag = "customers",
    params(CustomerFilter, PageParams),
    responses((status = 200, description = "A page of customers", content(
        (Page<CustomerView> = "application/json"), (String = "text/csv")))))]
async fn list_customers(
    Listing { mut tx, filter, page, .. }: Listing<Reader, CustomerFilter>,
) -> Result<Response, Problem> {
    let after: Option<String> = page.after()?;
    let rows = customers::list(&mut tx, filter.status, after.as_deref(), page.fetch()).await?;
    page.respond(rows, |row| row.external_id.clone(), CustomerView::from)
}

/// Get a customer
///
/// With the price books that rate it.
#[utoipa::path(get, path = "/v1/customers/{external_id}", operation_id = "get_customer", tag = "customers",
    params(("external_id" = String, Path, description = "How gateways and finance know it", example = "acme")),
    responses((status = 200, description = "The customer", body = CustomerWithBooksView)))]
async fn get_customer(
    Path(external_id): Path<String>,
    Read { mut tx, .. }: Read<Reader>,
) -> Result<Json<CustomerWithBooksView>, Problem> {
    let row = customers::by_external_id(&mut tx, &external_id).await?.ok_or_else(unknown)?;
    Ok(Json(with_books(&mut tx, row).await?))
}

/// A customer to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewCustomer {
    /// How gateways and finance will know it: 1 to 128 of `A-Z a-z 0-9 . _ : -`. It never changes.
    #[schema(example = "acme", pattern = "^[A-Za-z0-9._:-]{1,128}$")]
    external_id: String,
    /// Its name, 1 to 200 characters.
    #[schema(example = "Acme GmbH", min_length = 1, max_length = 200)]
    name: String,
    /// IANA zone of its billing calendar.
    #[serde(default = "utc")]
    #[schema(default = "UTC", example = "Europe/Berlin")]
    time_zone: String,
    /// The day its monthly periods start on.
    #[serde(default = "first_day")]
    #[schema(default = 1, minimum = 1, maximum = 28)]
    anchor_day: i16,
}

fn utc() -> String {
    "UTC".to_owned()
}

const fn first_day() -> i16 {
    1
}

/// Create a customer
///
/// Events that named it before are tried again. It is rated once price books are assigned to it.
#[utoipa::path(post, path = "/v1/customers", operation_id = "create_customer", tag = "customers",
    request_body = NewCustomer,
    responses((status = 201, description = "Created", body = CustomerView)))]
async fn create_customer(
    Write { mut work, body, .. }: Write<Admin, NewCustomer>,
) -> Result<Response, Problem> {
    let NewCustomer { external_id, name, time_zone, anchor_day } = body;
    let calendar = BillingCalendar::new(&time_zone, anchor_day).map_err(|error| {
        let field = if matches!(error, CalendarError::AnchorDay(_)) { "anchor_day" } else { "time_zone" };
        Problem::invalid(field, error.to_string())
    })?;
    check_zone(&mut work, &time_zone, &calendar).await?;
    let new =
        customers::NewCustomer { external_id: &external_id, name: &name, time_zone: &time_zone, anchor_day };
    let row = customers::create(work.db(), new).await.map_err(|error| match error.constraint() {
        Some("customers_external_id_key") => {
            Problem::new(&ALREADY_EXISTS, format!("There is a customer `{external_id}` already."))
        }
        Some("customers_external_id_check") => {
            Problem::invalid("external_id", "must be 1 to 128 of A-Z a-z 0-9 . _ : -")
        }
        Some("customers_name_check") => bad_name(),
        _ => error.into(),
    })?;
    catalog::bump(work.db()).await?;
    let detail = json!({"name": name, "time_zone": time_zone, "anchor_day": anchor_day});
    work.audit("customer.create", &external_id, Some(detail)).await?;
    work.created(format!("/v1/customers/{external_id}"), &CustomerView::from(row)).await
}

/// Periods are computed here, hours and days by the database: it must have the zone, with the same clocks.
async fn check_zone(work: &mut Work, zone: &str, calendar: &BillingCalendar) -> Result<(), Problem> {
    let offsets = customers::zone_offsets(work.db(), zone).await?;
    let detail = if offsets.is_empty() {
        format!(
            "PostgreSQL does not know `{zone}`; name the zone as Europe/Berlin, or install the zones that it lacks"
        )
    } else if offsets.iter().any(|offset| calendar.offset_seconds(offset.at) != offset.seconds) {
        format!(
            "PostgreSQL has other clocks for `{zone}`; name the zone as Europe/Berlin, or bring its zones up to date"
        )
    } else {
        return Ok(());
    };
    Err(Problem::invalid("time_zone", detail))
}

/// A change of a customer; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CustomerChange {
    /// Its new name, 1 to 200 characters.
    #[schema(min_length = 1, max_length = 200)]
    name: Option<String>,
    /// Events of a suspended customer are kept as rejections, and recorded once it is active again.
    status: Option<CustomerStatus>,
}

/// Update a customer
///
/// Its name or its status. Invoices that are final keep the name they were made with.
#[utoipa::path(patch, path = "/v1/customers/{external_id}", operation_id = "update_customer", tag = "customers",
    params(("external_id" = String, Path, description = "How gateways and finance know it", example = "acme")),
    request_body = CustomerChange,
    responses((status = 200, description = "Changed", body = CustomerView)))]
async fn update_customer(
    Path(external_id): Path<String>,
    Write { mut work, body, .. }: Write<Admin, CustomerChange>,
) -> Result<Response, Problem> {
    let CustomerChange { name, status } = body;
    if name.is_none() && status.is_none() {
        return Err(Problem::invalid("name", "give a name, a status, or both"));
    }
    let id = find(&mut work, &external_id).await?.id;
    let row = customers::update(work.db(), id, name.as_deref(), status)
        .await
        .on_constraint("customers_name_check", bad_name)?;
    catalog::bump(work.db()).await?;
    work.audit("customer.update", &external_id, Some(json!({"name": name, "status": status}))).await?;
    work.done(&CustomerView::from(row)).await
}

/// Price books to be assigned.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewAssignment)]
#[serde(deny_unknown_fields)]
struct NewAssignmentBody {
    /// What the customer pays by.
    #[schema(example = "standard")]
    sell_book: String,
    /// A sell book of the customer's own prices: where one of them applies to a call, the charge is by that price, and by
    /// the sell book's otherwise.
    #[schema(example = "acme-prices")]
    override_book: Option<String>,
    /// What its usage costs us by; without it the cost book that the sell book is derived from, else `provider-cost`.
    #[schema(example = "provider-cost")]
    cost_book: Option<String>,
    /// First instant. An open assignment before it ends here.
    valid_from: DateTime<Utc>,
    /// First instant after; null is open.
    valid_to: Option<DateTime<Utc>>,
}

/// Assign price books to a customer
///
/// Events from `valid_from` on are rated with them; the open assignment before ends there. What is recorded already keeps
/// the price it was rated with. All books must have the same currency, which is that of the customer's assignments before:
/// a customer who is to pay in another one is a new customer.
#[utoipa::path(post, path = "/v1/customers/{external_id}/assignments", operation_id = "create_assignment", tag = "customers",
    params(("external_id" = String, Path, description = "How gateways and finance know it", example = "acme")),
    request_body = NewAssignmentBody,
    responses((status = 201, description = "Assigned; the customer with all its assignments", body = CustomerWithBooksView)))]
async fn create_assignment(
    Path(external_id): Path<String>,
    Write { mut work, body, .. }: Write<Finance, NewAssignmentBody>,
) -> Result<Response, Problem> {
    let NewAssignmentBody { sell_book, override_book, cost_book, valid_from, valid_to } = body;
    if !YEARS.contains(&valid_from.year()) {
        return Err(Problem::invalid("valid_from", "must be between the years 2000 and 9999"));
    }
    if valid_to.is_some_and(|to| to <= valid_from || !YEARS.contains(&to.year())) {
        return Err(Problem::invalid("valid_to", "must be after valid_from, and before the year 10000"));
    }
    let customer = find(&mut work, &external_id).await?;
    let sell = book(&mut work, "sell_book", BookKind::Sell, &sell_book).await?;
    let cost_name = cost_book.or(sell.base).unwrap_or_else(|| DEFAULT_COST_BOOK.to_owned());
    let cost = book(&mut work, "cost_book", BookKind::Cost, &cost_name).await?;
    let (sell, cost) = (sell.info, cost.info);
    check_currencies(&sell, "cost_book", &cost)?;
    stays_with_currency(&mut work, &customer, &sell).await?;
    let own = match override_book {
        Some(name) => Some(own_book(&mut work, &sell, &name).await?),
        None => None,
    };
    let new = NewAssignment {
        sell_book: sell.id,
        override_book: own.as_ref().map(|own| own.id),
        cost_book: cost.id,
        valid_from,
        valid_to,
    };
    let ended = customers::assign(work.db(), customer.id, new)
        .await
        .on_constraint("book_assignments_no_overlap", || {
            Problem::conflict("Another assignment overlaps; a new one may only follow, or fill a gap.")
        })?;
    catalog::bump(work.db()).await?;
    let detail = json!({
        "sell_book": sell.name, "override_book": own.map(|own| own.name), "cost_book": cost.name,
        "valid_from": valid_from, "valid_to": valid_to, "ended_assignment_from": ended,
    });
    work.audit("assignment.create", &external_id, Some(detail)).await?;
    let view = with_books(work.db(), customer).await?;
    work.created(format!("/v1/customers/{external_id}"), &view).await
}

async fn with_books(db: &mut sqlx::PgConnection, row: CustomerRow) -> Result<CustomerWithBooksView, Problem> {
    let assignments =
        customers::assignments(db, row.id).await?.into_iter().map(AssignmentView::from).collect();
    Ok(CustomerWithBooksView { customer: row.into(), assignments })
}

async fn find(work: &mut Work, external_id: &str) -> Result<CustomerRow, Problem> {
    customers::by_external_id(work.db(), external_id).await?.ok_or_else(unknown)
}

async fn book(work: &mut Work, field: &'static str, kind: BookKind, name: &str) -> Result<Book, Problem> {
    match prices::find_book(work.db(), name).await? {
        Some(book) if book.info.kind == kind => Ok(book),
        Some(book) => {
            Err(Problem::invalid(field, format!("`{name}` is a {} book; name a {kind} book", book.info.kind)))
        }
        None => Err(Problem::invalid(field, format!("there is no price book `{name}`"))),
    }
}

/// The book whose prices go before those of a sell book.
async fn own_book(work: &mut Work, sell: &BookInfo, name: &str) -> Result<BookInfo, Problem> {
    const FIELD: &str = "override_book";
    let own = book(work, FIELD, BookKind::Sell, name).await?.info;
    if own.id == sell.id {
        let detail = format!("`{name}` is the sell book already; name another book, or leave it out");
        return Err(Problem::invalid(FIELD, detail));
    }
    check_currencies(sell, FIELD, &own)?;
    Ok(own)
}

/// A customer is charged in one currency for good: the totals of its tasks are sums over all its calls.
async fn stays_with_currency(
    work: &mut Work,
    customer: &CustomerRow,
    sell: &BookInfo,
) -> Result<(), Problem> {
    let Some(other) = customers::other_currency(work.db(), customer.id, sell.currency).await? else {
        return Ok(());
    };
    let (was, is) = (
        format!("`{}` is charged in {} by `{}`", customer.external_id, other.currency, other.sell_book),
        format!("`{}` is in {}", sell.name, sell.currency),
    );
    let detail = format!(
        "{was}, and {is}; a customer stays with its currency. Make a new customer for the other one."
    );
    Err(Problem::new(&CURRENCY_CHANGE, detail))
}

/// Charge and cost of one event are compared and subtracted.
fn check_currencies(sell: &BookInfo, field: &'static str, other: &BookInfo) -> Result<(), Problem> {
    if sell.currency == other.currency {
        return Ok(());
    }
    let (sell, other) = (
        format!("`{}` is in {}", sell.name, sell.currency),
        format!("`{}` in {}", other.name, other.currency),
    );
    Err(Problem::invalid(
        field,
        format!("{sell} and {other}; the books of an assignment must have the same currency"),
    ))
}

fn unknown() -> Problem {
    Problem::not_found("customer")
}

fn bad_name() -> Problem {
    Problem::invalid("name", "must have 1 to 200 characters")
}
