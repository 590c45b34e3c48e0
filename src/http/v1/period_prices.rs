//! Prices over a billing period: tiers, packages, and a fixed price per task.

use axum::Json;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::domain::event::Outcome;
use crate::domain::ids::PeriodPriceId;
use crate::domain::money::{Amount, Currency};
use crate::domain::price::period_price::quotation::{NewPeriodPrice, PeriodFault};
use crate::domain::price::period_price::{PeriodPrice, PeriodPriceKind, Scheme, TaskUsage, TierRate, Tiers};
use crate::domain::tokens::TokenClass;
use crate::http::AppState;
use crate::http::auth::{Finance, Read, Reader};
use crate::http::listing::{Listing, Page, PageParams};
use crate::http::openapi::DecimalText;
use crate::http::problem::{CONFLICT, INVALID_VALUE, NOT_FOUND, Problem};
use crate::http::request::{Path, Query};
use crate::http::table::{Cells, CsvRow};
use crate::http::write::Write;
use crate::store::period_prices::{
    self, PeriodPriceCursor, PeriodPriceFilter, PeriodPricesError, Publication, StoredPeriodPrice,
};

/// Most prices of one publication.
const PRICES_MAX: usize = 200;

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_period_prices, publish_period_prices))
        .routes(routes!(get_period_price, update_period_price))
}

/// An immutable, dated price over a billing period. Which fields it has, its kind decides.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PeriodPrice)]
struct PeriodPriceView {
    /// Its id; null where it is not stored yet.
    #[schema(value_type = Option<i64>)]
    id: Option<PeriodPriceId>,
    /// The sell book's name.
    book: String,
    /// The currency of its rates and amounts.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// What it is known by in its book.
    name: String,
    /// How it charges.
    kind: PeriodPriceKind,
    /// Tiers, packages: usage of this provider only.
    provider: Option<String>,
    /// Tiers, packages: usage of this model, or of all whose name begins so.
    model: Option<String>,
    /// Tiers, packages: the classes that are counted.
    #[schema(value_type = Vec<String>)]
    classes: Vec<TokenClass>,
    /// Tiers.
    tiers: Vec<TierView>,
    /// Tiers: how many units their rates are money for.
    per: Option<i64>,
    /// Packages: units in one.
    #[schema(value_type = Option<String>)]
    size: Option<String>,
    /// Packages, tasks: money for one.
    #[schema(value_type = Option<DecimalText>)]
    amount: Option<Amount>,
    /// Tasks: of this type.
    task_type: Option<String>,
    /// Tasks: only those that ended like this; null is any end.
    outcome: Option<Outcome>,
    /// Tasks: whether their usage is in the price.
    usage: Option<TaskUsage>,
    /// First instant of validity.
    valid_from: DateTime<Utc>,
    /// First instant after validity; null is open.
    valid_to: Option<DateTime<Utc>>,
    /// When it was published; null where it is not stored yet.
    recorded_at: Option<DateTime<Utc>>,
    /// When another took its place, or it was withdrawn.
    superseded_at: Option<DateTime<Utc>>,
    /// Which took its place.
    #[schema(value_type = Option<i64>)]
    superseded_by: Option<PeriodPriceId>,
    /// Where it was agreed; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
}

/// A tier: begins after the last unit of the one before it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PriceTier)]
struct TierView {
    /// The last unit in it; null in the last tier.
    #[schema(example = "10000000")]
    up_to: Option<String>,
    /// Money per `per` units in place of the list rate.
    #[schema(value_type = Option<DecimalText>)]
    rate: Option<Amount>,
    /// Or what the list rate is multiplied with.
    #[schema(value_type = Option<DecimalText>)]
    factor: Option<Decimal>,
    /// Of the rate.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
}

impl PeriodPriceView {
    fn new(id: Option<PeriodPriceId>, price: PeriodPrice) -> Self {
        let PeriodPrice { book, draft, .. } = price;
        let currency = book.currency;
        let kind = draft.scheme.kind();
        let (provider, model, classes) = match draft.scheme.scope().cloned() {
            Some(scope) => (scope.provider, Some(scope.model), scope.classes.into_iter().collect()),
            None => (None, None, Vec::new()),
        };
        let mut view = Self {
            id,
            book: book.name,
            currency,
            name: draft.name,
            kind,
            provider,
            model,
            classes,
            tiers: Vec::new(),
            per: None,
            size: None,
            amount: None,
            task_type: None,
            outcome: None,
            usage: None,
            valid_from: draft.valid_from,
            valid_to: draft.valid_to,
            recorded_at: None,
            superseded_at: None,
            superseded_by: None,
            source: draft.source,
        };
        match draft.scheme {
            Scheme::Graduated(tiers) | Scheme::Volume(tiers) => {
                view.per = tiers.per;
                view.tiers = tier_views(tiers, currency);
            }
            Scheme::Package { size, amount, .. } => {
                view.size = Some(size.to_string());
                view.amount = Some(amount.per_unit());
            }
            Scheme::Task { task_type, outcome, amount, usage } => {
                view.task_type = Some(task_type);
                view.outcome = outcome;
                view.amount = Some(amount.per_unit());
                view.usage = Some(usage);
            }
        }
        view
    }

    fn stored(stored: StoredPeriodPrice, sees_source: bool) -> Self {
        let StoredPeriodPrice { price, recorded_at, superseded_at, superseded_by } = stored;
        let view = Self::new(Some(price.id), price);
        let source = view.source.clone().filter(|_| sees_source);
        Self { recorded_at: Some(recorded_at), superseded_at, superseded_by, source, ..view }
    }
}

fn tier_views(tiers: Tiers, currency: Currency) -> Vec<TierView> {
    let per = tiers.per.unwrap_or(1);
    let view = |tier: crate::domain::price::period_price::Tier| {
        let (rate, factor) = match tier.rate {
            TierRate::Absolute(rate) => (rate.times(per), None),
            TierRate::Factor(factor) => (None, Some(factor)),
        };
        TierView { up_to: tier.up_to.map(|units| units.to_string()), rate, factor, currency }
    };
    tiers.tiers.into_iter().map(view).collect()
}

impl CsvRow for PeriodPriceView {
    const HEADER: &'static [&'static str] = &[
        "id",
        "book",
        "currency",
        "name",
        "kind",
        "provider",
        "model",
        "classes",
        "tiers",
        "per",
        "size",
        "amount",
        "task_type",
        "outcome",
        "usage",
        "valid_from",
        "valid_to",
        "recorded_at",
        "superseded_at",
        "superseded_by",
        "source",
    ];

    fn cells(&self, cells: &mut Cells) {
        let classes: Vec<&str> = self.classes.iter().map(|class| class.name()).collect();
        let tier = |tier: &TierView| {
            let up_to = tier.up_to.as_deref().unwrap_or("on");
            match (tier.rate, tier.factor) {
                (Some(rate), _) => format!("{up_to}:{rate}"),
                (None, factor) => format!("{up_to}:x{}", factor.unwrap_or_default()),
            }
        };
        let tiers: Vec<String> = self.tiers.iter().map(tier).collect();
        cells
            .maybe_value(self.id)
            .text(&self.book)
            .value(self.currency)
            .text(&self.name)
            .value(self.kind)
            .maybe_text(self.provider.as_deref())
            .maybe_text(self.model.as_deref())
            .text(&classes.join(" "))
            .text(&tiers.join(" "))
            .maybe_value(self.per)
            .maybe_value(self.size.as_deref())
            .maybe_value(self.amount)
            .maybe_text(self.task_type.as_deref())
            .maybe_value(self.outcome)
            .maybe_value(self.usage)
            .time(self.valid_from)
            .maybe_time(self.valid_to)
            .maybe_time(self.recorded_at)
            .maybe_time(self.superseded_at)
            .maybe_value(self.superseded_by)
            .maybe_text(self.source.as_deref());
    }
}

/// Narrows the list; everything that is given must hold.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PeriodPriceListFilter {
    /// Valid at this time.
    at: Option<DateTime<Utc>>,
    /// Superseded and withdrawn ones as well.
    #[serde(default)]
    #[param(default = false)]
    superseded: bool,
}

/// List period prices
///
/// Of one sell book, in order of name and start. A customer's key sees those of its own sell books.
#[utoipa::path(get, path = "/v1/price-books/{book}/period-prices", operation_id = "list_period_prices", tag = "prices",
    params(("book" = String, Path, description = "The book's name", example = "standard"), PeriodPriceListFilter, PageParams),
    responses((status = 200, description = "A page of period prices", content(
        (Page<PeriodPriceView> = "application/json"), (String = "text/csv")))))]
async fn list_period_prices(
    Path(book): Path<String>,
    Listing { caller, mut tx, filter, page, .. }: Listing<Reader, PeriodPriceListFilter>,
) -> Result<Response, Problem> {
    let book = period_prices::book(&mut tx, &book).await?.ok_or_else(|| Problem::not_found("price book"))?;
    let PeriodPriceListFilter { at, superseded } = filter;
    let filter = PeriodPriceFilter { books: Some(vec![book.id]), ids: None, at, superseded };
    let after: Option<PeriodPriceCursor> = page.after()?;
    let rows = period_prices::list(&mut tx, &filter, after.as_ref(), page.fetch()).await?;
    let position = |stored: &StoredPeriodPrice| {
        let draft = &stored.price.draft;
        (draft.name.clone(), draft.valid_from, stored.price.id.0)
    };
    let sees_source = caller.sees_cost();
    page.respond(rows, position, |stored| PeriodPriceView::stored(stored, sees_source))
}

/// Get a period price
///
/// Standing, superseded or withdrawn: they are kept for ever, and invoice lines name them.
#[utoipa::path(get, path = "/v1/period-prices/{id}", operation_id = "get_period_price", tag = "prices",
    params(("id" = i64, Path, description = "Its id")),
    responses((status = 200, description = "The period price", body = PeriodPriceView)))]
async fn get_period_price(
    Path(id): Path<i64>,
    Read { caller, mut tx, .. }: Read<Reader>,
) -> Result<Json<PeriodPriceView>, Problem> {
    let stored = period_prices::get(&mut tx, PeriodPriceId(id)).await?;
    let stored = stored.ok_or_else(|| Problem::not_found("period price"))?;
    Ok(Json(PeriodPriceView::stored(stored, caller.sees_cost())))
}

/// How to publish.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PublishParams {
    /// Answers what would be published, and publishes nothing.
    #[serde(default)]
    #[param(default = false)]
    dry_run: bool,
}

/// What became of a publication.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PeriodPublication)]
struct PublicationView {
    /// The book.
    book: String,
    /// Whether nothing was stored.
    dry_run: bool,
    /// One per price, in the order given.
    prices: Vec<PublishedView>,
    /// Those that stood, and the copies that end where a published one starts.
    continued: Vec<ContinuedView>,
}

/// What became of one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PublishedPeriodPrice)]
struct PublishedView {
    /// `added`, or `unchanged`: the same stood already.
    #[schema(example = "added")]
    status: &'static str,
    /// As published; without an id in a dry run, where it is new.
    price: PeriodPriceView,
}

/// One that stood and was continued by a copy with an earlier end.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContinuedPeriodPrice)]
struct ContinuedView {
    /// The one that stood.
    #[schema(value_type = i64)]
    id: PeriodPriceId,
    /// Its copy; null in a dry run.
    #[schema(value_type = Option<i64>)]
    continued_by: Option<PeriodPriceId>,
}

/// Publish period prices
///
/// Into a sell book, all of them or none. Usage is recorded at its list rate as ever; what these change is on lines of their
/// own in the preview and on the invoice. One of a name supersedes the one of that name that started earlier, from its own
/// `valid_from` on, up to its end or to where another of the name is announced; one without an end is refused where the one
/// that follows is in force already, or an earlier one comes back later. No two may count the same usage or the same tasks at the same time. Invoices that are final stay
/// as they are.
#[utoipa::path(post, path = "/v1/price-books/{book}/period-prices", operation_id = "publish_period_prices", tag = "prices",
    params(("book" = String, Path, description = "The book's name", example = "standard"), PublishParams),
    request_body = Vec<NewPeriodPrice>,
    responses(
        (status = 200, description = "A dry run, or nothing is new", body = PublicationView),
        (status = 201, description = "Published", body = PublicationView)))]
async fn publish_period_prices(
    Path(book): Path<String>,
    Query(PublishParams { dry_run }): Query<PublishParams>,
    Write { mut work, body, .. }: Write<Finance, Vec<NewPeriodPrice>>,
) -> Result<Response, Problem> {
    if body.is_empty() || body.len() > PRICES_MAX {
        return Err(Problem::invalid("", format!("send an array of 1 to {PRICES_MAX} period prices")));
    }
    let (now, actor) = (work.now, work.caller.public_id.clone());
    let Publication { book, prices, continued } =
        period_prices::publish(work.db(), &book, &body, now, &actor).await?;
    let changed = prices.iter().any(|(_, new)| *new);
    let prices = prices.into_iter().map(|(price, new)| PublishedView {
        status: if new { "added" } else { "unchanged" },
        price: PeriodPriceView::new((!new || !dry_run).then_some(price.id), price),
    });
    let continued = continued
        .into_iter()
        .map(|(id, copy)| ContinuedView { id, continued_by: (!dry_run).then_some(copy) });
    let view = PublicationView {
        book: book.name,
        dry_run,
        prices: prices.collect(),
        continued: continued.collect(),
    };
    if dry_run {
        // Without an answer from the transaction everything is rolled back.
        return Ok(Json(view).into_response());
    }
    if changed {
        work.answer(axum::http::StatusCode::CREATED, None, &view).await
    } else {
        work.done(&view).await
    }
}

/// The new end of a period price.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PeriodPriceEnd {
    /// First instant after validity. An announced one is withdrawn by an end at or before its start.
    valid_to: DateTime<Utc>,
}

/// End a period price
///
/// It is superseded by a copy that ends at `valid_to`, or withdrawn where that is before the start of an announced one. The
/// answer is the copy, or the one that was withdrawn.
#[utoipa::path(patch, path = "/v1/period-prices/{id}", operation_id = "update_period_price", tag = "prices",
    params(("id" = i64, Path, description = "Its id")),
    request_body = PeriodPriceEnd,
    responses((status = 200, description = "Ended", body = PeriodPriceView)))]
async fn update_period_price(
    Path(id): Path<i64>,
    Write { mut work, body, .. }: Write<Finance, PeriodPriceEnd>,
) -> Result<Response, Problem> {
    let id = PeriodPriceId(id);
    let (now, actor) = (work.now, work.caller.public_id.clone());
    let copy = period_prices::close(work.db(), id, body.valid_to, now, &actor).await?;
    let stored = period_prices::get(work.db(), copy.unwrap_or(id)).await?;
    let stored = stored.ok_or_else(|| Problem::not_found("period price"))?;
    work.done(&PeriodPriceView::stored(stored, true)).await
}

impl From<PeriodPricesError> for Problem {
    fn from(error: PeriodPricesError) -> Self {
        match error {
            PeriodPricesError::Store(error) => error.into(),
            PeriodPricesError::Refused(faults) => refused(&faults),
            PeriodPricesError::UnknownBook(name) => {
                Self::new(&NOT_FOUND, format!("There is no price book `{name}`."))
            }
            PeriodPricesError::CostBook(_) => Self::invalid("book", error.to_string()),
            PeriodPricesError::Unknown(_) => Self::not_found("period price"),
            PeriodPricesError::NotClosable { id, detail } => {
                Self::conflict(format!("Period price {id} {detail}."))
            }
        }
    }
}

fn refused(faults: &[PeriodFault]) -> Problem {
    let conflict = faults.iter().any(|fault| fault.conflicts_with.is_some());
    let kind = if conflict { &CONFLICT } else { &INVALID_VALUE };
    let problem = Problem::new(kind, "No period price was published; see `errors`.");
    faults.iter().fold(problem, |problem, fault| {
        let conflicting =
            fault.conflicts_with.map(|id| format!(" (conflicts with period price {id})")).unwrap_or_default();
        problem
            .with_error(format!("[{}].{}", fault.index, fault.path), format!("{}{conflicting}", fault.detail))
    })
}
