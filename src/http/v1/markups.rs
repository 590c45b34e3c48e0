//! The factors of markup books: what they were and are, and setting others from a time on.

use std::collections::BTreeMap;

use axum::Json;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::price_books::{ChangeView, change_view};
use crate::domain::ids::PriceId;
use crate::domain::money::Currency;
use crate::domain::price::PriceConditions;
use crate::http::AppState;
use crate::http::auth::Finance;
use crate::http::listing::{Listing, NoFilter, Page, PageParams};
use crate::http::openapi::DecimalText;
use crate::http::problem::{Problem, ProblemBody};
use crate::http::request::{Path, Query};
use crate::http::table::{Cells, CsvRow};
use crate::http::write::Write;
use crate::store::prices::{self, MarkupChange, MarkupEffect, MarkupRow, NewMarkup};

/// Most changed prices that an answer lists; more are only counted.
const PRICES_LISTED_MAX: usize = 1000;

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_markups, create_markup))
}

/// Factors that a markup book derives, or derived, its prices with.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Markup)]
struct MarkupView {
    /// The factor on every rate of the base, where `markups_by_model` has no other.
    #[schema(value_type = DecimalText)]
    markup: Decimal,
    /// Other factors for some models, by name or by the beginning of a name and `*`; the longest that matches decides.
    #[schema(value_type = BTreeMap<String, DecimalText>)]
    markups_by_model: BTreeMap<String, Decimal>,
    /// First instant; null for those that the book was made with.
    valid_from: Option<DateTime<Utc>>,
    /// First instant after; null is open.
    valid_to: Option<DateTime<Utc>>,
    /// When they were set.
    recorded_at: DateTime<Utc>,
}

impl From<MarkupRow> for MarkupView {
    fn from(row: MarkupRow) -> Self {
        let MarkupRow { markup, valid_from, valid_to, recorded_at } = row;
        Self { markup: markup.general, markups_by_model: markup.by_model, valid_from, valid_to, recorded_at }
    }
}

impl CsvRow for MarkupView {
    const HEADER: &'static [&'static str] =
        &["markup", "markups_by_model", "valid_from", "valid_to", "recorded_at"];

    fn cells(&self, cells: &mut Cells) {
        let by_model: Vec<String> =
            self.markups_by_model.iter().map(|(pattern, factor)| format!("{pattern}={factor}")).collect();
        cells
            .value(self.markup)
            .text(&by_model.join(" "))
            .maybe_time(self.valid_from)
            .maybe_time(self.valid_to)
            .time(self.recorded_at);
    }
}

/// List the factors of a markup book
///
/// In order of time; the first are those that the book was made with.
#[utoipa::path(get, path = "/v1/price-books/{book}/markups", operation_id = "list_markups", tag = "prices",
    params(("book" = String, Path, description = "The book's name", example = "standard"), PageParams),
    responses(
        (status = 200, description = "A page of factors", content(
            (Page<MarkupView> = "application/json"), (String = "text/csv"))),
        (status = 409, description = "The book marks up no cost book: it has no factors", body = ProblemBody,
            content_type = "application/problem+json")))]
async fn list_markups(
    Path(book): Path<String>,
    Listing { mut tx, page, .. }: Listing<Finance, NoFilter>,
) -> Result<Response, Problem> {
    let after: Option<Option<DateTime<Utc>>> = page.after()?;
    let rows = prices::markup_history(&mut tx, &book).await?.into_iter();
    let rest = rows.filter(|row| after.is_none_or(|after| row.valid_from > after));
    let rest = rest.take(usize::try_from(page.fetch()).unwrap_or(usize::MAX)).collect();
    page.respond(rest, |row: &MarkupRow| row.valid_from, MarkupView::from)
}

/// How to set factors.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct MarkupParams {
    /// Answers what would change, and changes nothing.
    #[serde(default)]
    #[param(default = false)]
    dry_run: bool,
}

/// What a change of factors did.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MarkupChange)]
struct MarkupChangeView {
    /// The book.
    book: String,
    /// The currency of its prices.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// Whether nothing was stored.
    dry_run: bool,
    /// The factor on every rate of the base, where `markups_by_model` has no other.
    #[schema(value_type = DecimalText)]
    markup: Decimal,
    /// Other factors for some models.
    #[schema(value_type = BTreeMap<String, DecimalText>)]
    markups_by_model: BTreeMap<String, Decimal>,
    /// First instant.
    valid_from: DateTime<Utc>,
    /// The start of the factors that are set for later already; null is open.
    valid_to: Option<DateTime<Utc>>,
    /// How many derived prices get other rates.
    changed: usize,
    /// Those, by provider, model and start; the first thousand.
    prices: Vec<MarkupEffectView>,
}

/// A derived price that gets other rates.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MarkedUpPrice)]
struct MarkupEffectView {
    /// The price that stood; it is kept, superseded.
    #[schema(value_type = i64)]
    superseded: PriceId,
    /// The price in its place; null in a dry run.
    #[schema(value_type = Option<i64>)]
    id: Option<PriceId>,
    /// The provider's name.
    provider: String,
    /// The model's canonical name.
    model: String,
    /// What a call must look like.
    conditions: PriceConditions,
    /// First instant with the new rates.
    valid_from: DateTime<Utc>,
    /// First instant after; null is open.
    valid_to: Option<DateTime<Utc>>,
    /// Old and new rates.
    changes: Vec<ChangeView>,
}

impl MarkupChangeView {
    fn new(change: MarkupChange, dry_run: bool) -> Self {
        let MarkupChange { book, markup, valid_from, valid_to, effects } = change;
        let currency = book.currency;
        let changed = effects.len();
        let listed = effects.into_iter().take(PRICES_LISTED_MAX);
        Self {
            book: book.name,
            currency,
            dry_run,
            markup: markup.general,
            markups_by_model: markup.by_model,
            valid_from,
            valid_to,
            changed,
            prices: listed.map(|effect| MarkupEffectView::new(effect, currency, dry_run)).collect(),
        }
    }
}

impl MarkupEffectView {
    fn new(effect: MarkupEffect, currency: Currency, dry_run: bool) -> Self {
        let MarkupEffect { before, id, draft, from, to, changes } = effect;
        Self {
            superseded: before,
            id: (!dry_run).then_some(id),
            changes: changes.into_iter().map(|change| change_view(change, &draft, currency)).collect(),
            provider: draft.provider,
            model: draft.model,
            conditions: draft.conditions,
            valid_from: from,
            valid_to: to,
        }
    }
}

/// Set the factors of a markup book
///
/// They take the place of all its factors from `valid_from` on, until those that are set for later already. Derived prices
/// that are valid then end there and new ones go on, also for cost prices that are published later. What is recorded already
/// keeps the price it was rated with, until it is re-rated.
#[utoipa::path(post, path = "/v1/price-books/{book}/markups", operation_id = "create_markup", tag = "prices",
    params(("book" = String, Path, description = "The book's name", example = "standard"), MarkupParams),
    request_body = NewMarkup,
    responses(
        (status = 200, description = "A dry run", body = MarkupChangeView),
        (status = 201, description = "Set", body = MarkupChangeView)))]
async fn create_markup(
    Path(book): Path<String>,
    Query(MarkupParams { dry_run }): Query<MarkupParams>,
    Write { mut work, body, .. }: Write<Finance, NewMarkup>,
) -> Result<Response, Problem> {
    let actor = work.caller.public_id.clone();
    let change = prices::change_markup(work.db(), &book, &body, &actor).await?;
    let view = MarkupChangeView::new(change, dry_run);
    if dry_run {
        // Without an answer from the transaction everything is rolled back.
        return Ok(Json(view).into_response());
    }
    work.answer(axum::http::StatusCode::CREATED, None, &view).await
}
