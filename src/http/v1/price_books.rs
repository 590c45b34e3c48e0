//! Price books, and publishing prices into them.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::prices::{PriceView, RateView};
use crate::domain::ids::PriceId;
use crate::domain::money::{Currency, Rate};
use crate::domain::price::quotation::{NewPrice, PriceDraft, PriceFault};
use crate::domain::price::{BookKind, ModelAlias};
use crate::domain::tokens::TokenClass;
use crate::http::AppState;
use crate::http::auth::{Finance, Read};
use crate::http::listing::{Listing, NoFilter, Page, PageParams};
use crate::http::openapi::DecimalText;
use crate::http::problem::{ALREADY_EXISTS, CONFLICT, INVALID_VALUE, Problem};
use crate::http::request::{Path, Query};
use crate::http::table::{Cells, CsvRow};
use crate::http::write::Write;
use crate::store::prices::{
    self, Book, NewBook, PricesError, Publication, PublishedPrice, RateChange, Status,
};

/// Most prices of one publication.
const PRICES_MAX: usize = 1000;

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_price_books, create_price_book))
        .routes(routes!(get_price_book))
        .routes(routes!(publish_prices))
}

/// A named, append-only set of prices in one currency.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PriceBook)]
struct BookView {
    /// Its name.
    #[schema(example = "provider-cost")]
    name: String,
    /// What providers charge us, or what customers pay.
    kind: BookKind,
    /// The currency of every price in it.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// The cost book whose prices it marks up.
    base: Option<String>,
    /// The factor on every rate of the base now, where `markups` has no other.
    #[schema(value_type = Option<DecimalText>)]
    markup: Option<Decimal>,
    /// Other factors for some models now, by name or by the beginning of a name and `*`; the longest that matches decides.
    #[schema(value_type = BTreeMap<String, DecimalText>)]
    markups: BTreeMap<String, Decimal>,
    /// When it was made.
    created_at: DateTime<Utc>,
}

impl BookView {
    fn new(book: Book, now: DateTime<Utc>) -> Self {
        let Book { info, base, markups, created_at } = book;
        let markup = markups.map(|markups| markups.at(now).clone());
        let (markup, markups) = markup.map(|markup| (markup.general, markup.by_model)).unzip();
        Self {
            name: info.name,
            kind: info.kind,
            currency: info.currency,
            base,
            markup,
            markups: markups.unwrap_or_default(),
            created_at,
        }
    }
}

impl CsvRow for BookView {
    const HEADER: &'static [&'static str] =
        &["name", "kind", "currency", "base", "markup", "markups", "created_at"];

    fn cells(&self, cells: &mut Cells) {
        let markups: Vec<String> =
            self.markups.iter().map(|(pattern, factor)| format!("{pattern}={factor}")).collect();
        cells
            .text(&self.name)
            .value(self.kind)
            .value(self.currency)
            .maybe_text(self.base.as_deref())
            .maybe_value(self.markup)
            .text(&markups.join(" "))
            .time(self.created_at);
    }
}

/// List price books
///
/// In order of name.
#[utoipa::path(get, path = "/v1/price-books", operation_id = "list_price_books", tag = "prices", params(PageParams),
    responses((status = 200, description = "A page of price books", content(
        (Page<BookView> = "application/json"), (String = "text/csv")))))]
async fn list_price_books(
    State(state): State<AppState>,
    Listing { mut tx, page, .. }: Listing<Finance, NoFilter>,
) -> Result<Response, Problem> {
    let after: Option<String> = page.after()?;
    let books = prices::list_books(&mut tx, after.as_deref(), page.fetch()).await?;
    let now = state.clock.now();
    page.respond(books, |book| book.info.name.clone(), |book| BookView::new(book, now))
}

/// Get a price book
#[utoipa::path(get, path = "/v1/price-books/{book}", operation_id = "get_price_book", tag = "prices",
    params(("book" = String, Path, description = "The book's name", example = "provider-cost")),
    responses((status = 200, description = "The book", body = BookView)))]
async fn get_price_book(
    Path(book): Path<String>,
    State(state): State<AppState>,
    Read { mut tx, .. }: Read<Finance>,
) -> Result<Json<BookView>, Problem> {
    let book = prices::find_book(&mut tx, &book).await?.ok_or_else(|| Problem::not_found("price book"))?;
    Ok(Json(BookView::new(book, state.clock.now())))
}

/// Create a price book
///
/// Either an empty one, or a sell book that marks up a cost book: it has a derived price for every price that stands or will
/// be published there, and explicit prices of its own go before derived ones of the same conditions.
#[utoipa::path(post, path = "/v1/price-books", operation_id = "create_price_book", tag = "prices",
    request_body = NewBook,
    responses((status = 201, description = "Created", body = BookView)))]
async fn create_price_book(
    Write { mut work, body, .. }: Write<Finance, NewBook>,
) -> Result<Response, Problem> {
    let (now, actor) = (work.now, work.caller.public_id.clone());
    let book = prices::create_book(work.db(), &body, &actor).await?;
    work.created(format!("/v1/price-books/{}", book.info.name), &BookView::new(book, now)).await
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
#[schema(as = Publication)]
struct PublicationView {
    /// The book.
    book: String,
    /// The currency of its prices.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// Whether nothing was stored.
    dry_run: bool,
    /// One per price, in the order given.
    prices: Vec<PublishedView>,
    /// Prices that stood, and the copies that end where a published one starts.
    continued: Vec<ContinuedView>,
    /// How many model aliases are new.
    aliases: usize,
    /// Aliases that end because the name means another model from then on.
    ended_aliases: Vec<EndedAliasView>,
    /// How many prices of markup books were derived.
    derived: usize,
}

/// A name that means another model from some time on.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EndedAlias)]
struct EndedAliasView {
    /// The provider.
    provider: String,
    /// The name.
    alias: String,
    /// The model that it meant.
    model: String,
    /// From when on it does not.
    valid_to: Option<DateTime<Utc>>,
}

impl From<ModelAlias> for EndedAliasView {
    fn from(ended: ModelAlias) -> Self {
        let ModelAlias { provider, alias, model, valid_to, .. } = ended;
        Self { provider, alias, model, valid_to }
    }
}

/// What became of one price.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PublishedPrice)]
struct PublishedView {
    /// The price that stands for it; null in a dry run, where it is new.
    #[schema(value_type = Option<i64>)]
    id: Option<PriceId>,
    /// `unchanged`: the same terms stood already.
    status: Status,
    /// The price as published, with the rates that apply to each class; where it is unchanged, with the validity of the one that
    /// stands for it.
    price: PriceView,
    /// Old and new rates from `valid_from` on, where it follows another price.
    changes: Vec<ChangeView>,
    /// Classes whose rate the multiplier made inexact, so that it was rounded half away from zero to 15 places per unit.
    #[schema(value_type = Vec<String>)]
    rounded: Vec<TokenClass>,
}

/// A price that stood and was continued by a copy with an earlier end.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContinuedPrice)]
struct ContinuedView {
    /// The one that stood.
    #[schema(value_type = i64)]
    id: PriceId,
    /// Its copy; null in a dry run.
    #[schema(value_type = Option<i64>)]
    continued_by: Option<PriceId>,
}

/// A rate that changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RateChange)]
pub(super) struct ChangeView {
    /// The class.
    #[schema(value_type = String, example = "input")]
    class: TokenClass,
    /// Before; null where it had no rate of its own.
    old: Option<RateView>,
    /// From `valid_from` on; null where it has none of its own any more.
    new: Option<RateView>,
}

impl PublishedView {
    fn new(publication: &Publication, price: PublishedPrice, dry_run: bool) -> Self {
        let PublishedPrice { id, status, draft, changes } = price;
        let known = !dry_run || status == Status::Unchanged;
        let rounded = draft.rounded().collect();
        let currency = publication.book.currency;
        let changes = changes.into_iter().map(|change| change_view(change, &draft, currency)).collect();
        let id = known.then_some(id);
        Self { id, status, price: PriceView::of_draft(id, &publication.book, draft), changes, rounded }
    }
}

pub(super) fn change_view(change: RateChange, draft: &PriceDraft, currency: Currency) -> ChangeView {
    let RateChange { class, old, new } = change;
    let view = |rate: Option<Rate>| rate.map(|rate| RateView::new(class, rate, draft.per, None, currency));
    ChangeView { class, old: view(old), new: view(new) }
}

/// Publish prices
///
/// All of them or none. A price supersedes the one of the same model and conditions that started earlier, from its own
/// `valid_from` on; where it ends before that one would, that one goes on after it. A price without an end is up to where
/// another is announced to follow: the answer shows its `valid_to`. Where the one that follows is in force already, or an
/// earlier price comes back later, as after a promotion, a price without an end is refused, and the fault says what to do.
/// Publishing the same again changes nothing; of prices that were published together, send one again together with what took
/// a part of it.
/// What is recorded already keeps the price it was rated with.
#[utoipa::path(post, path = "/v1/price-books/{book}/prices", operation_id = "publish_prices", tag = "prices",
    params(("book" = String, Path, description = "The book's name", example = "provider-cost"), PublishParams),
    request_body = Vec<NewPrice>,
    responses(
        (status = 200, description = "A dry run, or nothing is new", body = PublicationView),
        (status = 201, description = "Published", body = PublicationView)))]
async fn publish_prices(
    Path(book): Path<String>,
    Query(PublishParams { dry_run }): Query<PublishParams>,
    Write { mut work, body, .. }: Write<Finance, Vec<NewPrice>>,
) -> Result<Response, Problem> {
    if body.is_empty() || body.len() > PRICES_MAX {
        return Err(Problem::invalid("", format!("send an array of 1 to {PRICES_MAX} prices")));
    }
    let (now, actor) = (work.now, work.caller.public_id.clone());
    let mut publication = prices::publish(work.db(), &book, &body, now, &actor).await?;
    let changed = publication.changed();
    let published = std::mem::take(&mut publication.prices);
    let prices =
        published.into_iter().map(|price| PublishedView::new(&publication, price, dry_run)).collect();
    let continued = publication
        .continued
        .iter()
        .map(|(id, copy)| ContinuedView { id: *id, continued_by: (!dry_run).then_some(*copy) })
        .collect();
    let Publication { book, aliases, ended_aliases, derived, .. } = publication;
    let currency = book.currency;
    let ended_aliases = ended_aliases.into_iter().map(EndedAliasView::from).collect();
    let view = PublicationView {
        book: book.name,
        currency,
        dry_run,
        prices,
        continued,
        aliases,
        ended_aliases,
        derived,
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

impl From<PricesError> for Problem {
    fn from(error: PricesError) -> Self {
        match error {
            PricesError::Store(error) => error.into(),
            PricesError::Refused(faults) => refused(&faults),
            PricesError::Field { field, detail } => Self::invalid(field, detail),
            PricesError::UnknownBook(name) => {
                Self::new(&crate::http::problem::NOT_FOUND, format!("There is no price book `{name}`."))
            }
            PricesError::BookExists(name) => {
                Self::new(&ALREADY_EXISTS, format!("There is a price book `{name}` already."))
            }
            PricesError::NoMarkupBook(name) => {
                Self::conflict(format!("`{name}` marks up no cost book; publish its prices instead."))
            }
            PricesError::MarkupExists { book, at } => {
                let detail =
                    format!("`{book}` has other factors from {at} on already; set new ones from later on");
                Self::conflict("No factor was set; see `errors`.").with_error("valid_from", detail)
            }
            PricesError::UnknownPrice(_) => Self::not_found("price"),
            PricesError::NotClosable { id, detail } => Self::conflict(format!("Price {id} {detail}.")),
        }
    }
}

fn refused(faults: &[PriceFault]) -> Problem {
    let conflict = faults.iter().any(|fault| fault.conflicts_with.is_some());
    let kind = if conflict { &CONFLICT } else { &INVALID_VALUE };
    let problem = Problem::new(kind, "No price was published; see `errors`.");
    faults.iter().fold(problem, |problem, fault| {
        let conflicting =
            fault.conflicts_with.map(|id| format!(" (conflicts with price {id})")).unwrap_or_default();
        problem
            .with_error(format!("[{}].{}", fault.index, fault.path), format!("{}{conflicting}", fault.detail))
    })
}
