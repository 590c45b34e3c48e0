//! Prices: what stands, what stood, ending one, and what a call would cost.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::Response;
use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::domain::ids::PriceId;
use crate::domain::money::{Amount, Currency, Rate};
use crate::domain::names::to_cell;
use crate::domain::price::quotation::PriceDraft;
use crate::domain::price::{BookInfo, PriceConditions, rate_source};
use crate::domain::tokens::TokenClass;
use crate::http::AppState;
use crate::http::auth::{Auth, Finance, Read, Reader};
use crate::http::listing::{Listing, Page, PageParams};
use crate::http::openapi::DecimalText;
use crate::http::problem::Problem;
use crate::http::request::{Path, read_json};
use crate::http::table::{Cells, CsvRow, Format, csv};
use crate::http::write::Write;
use crate::metering::parse_usage;
use crate::reports::{self, Quote, QuoteBy, QuoteError, QuotedLine, QuotedPart};
use crate::store::prices::{self, Closed, PriceCursor, PriceFilter, StoredPrice};

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_prices))
        .routes(routes!(get_price, update_price))
        .routes(routes!(preview_quote))
}

/// An immutable, dated row of a price book.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Price)]
pub(super) struct PriceView {
    /// Its id; null where it is not stored yet.
    #[schema(value_type = Option<i64>)]
    id: Option<PriceId>,
    /// The book's name.
    book: String,
    /// The currency of all its rates.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// The provider's name.
    provider: String,
    /// The model's canonical name.
    model: String,
    /// Other names of the model.
    aliases: Vec<String>,
    /// What a call must look like.
    conditions: PriceConditions,
    /// Units that the rates are money for.
    per: i64,
    /// Its own rates as quoted: money per `per` tokens, before the multiplier.
    #[schema(value_type = BTreeMap<String, DecimalText>)]
    rates: BTreeMap<TokenClass, Amount>,
    /// Its own fees: money per one unit.
    #[schema(value_type = BTreeMap<String, DecimalText>)]
    fees: BTreeMap<TokenClass, Amount>,
    /// What the quoted rates are multiplied with.
    #[schema(value_type = DecimalText)]
    multiplier: Decimal,
    /// What applies to each class, the multiplier in it, with the rates that classes take from their parents.
    effective_rates: Vec<RateView>,
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
    superseded_by: Option<PriceId>,
    /// The cost price that a markup made it from; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    derived_from: Option<PriceId>,
    /// Where it was read; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    /// When it was last seen there; finance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    checked_at: Option<NaiveDate>,
}

/// The rate of a class.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Rate)]
pub(super) struct RateView {
    /// The class.
    #[schema(value_type = String, example = "cache_read")]
    class: TokenClass,
    /// Money per `per` units; null where it is too large to be written.
    #[schema(value_type = Option<DecimalText>)]
    rate: Option<Amount>,
    /// Its currency.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// Units that the rate is money for.
    per: i64,
    /// The class whose rate it takes; null where it has its own.
    #[schema(value_type = Option<String>)]
    inherited_from: Option<TokenClass>,
}

impl RateView {
    pub(super) fn new(
        class: TokenClass,
        rate: Rate,
        per: i64,
        inherited_from: Option<TokenClass>,
        currency: Currency,
    ) -> Self {
        let per = if class.is_fee() { 1 } else { per };
        Self { class, rate: rate.times(per), currency, per, inherited_from }
    }
}

impl PriceView {
    pub(super) fn of_draft(id: Option<PriceId>, book: &BookInfo, draft: PriceDraft) -> Self {
        let own = draft.own_rates();
        let effective_rates = TokenClass::ALL
            .into_iter()
            .filter_map(|class| {
                let source = rate_source(&own, class)?;
                let inherited_from = (source != class).then_some(source);
                Some(RateView::new(class, *own.get(&source)?, draft.per, inherited_from, book.currency))
            })
            .collect();
        let quoted = draft.rates.iter().map(|(class, quote)| (*class, quote.quoted));
        let (fees, rates) = quoted.partition(|(class, _)| class.is_fee());
        Self {
            id,
            book: book.name.clone(),
            currency: book.currency,
            provider: draft.provider,
            model: draft.model,
            aliases: draft.aliases,
            conditions: draft.conditions,
            per: draft.per,
            rates,
            fees,
            multiplier: draft.multiplier,
            effective_rates,
            valid_from: draft.valid_from,
            valid_to: draft.valid_to,
            recorded_at: None,
            superseded_at: None,
            superseded_by: None,
            derived_from: None,
            source: draft.source,
            checked_at: draft.checked_at,
        }
    }

    fn new(price: StoredPrice, sees_cost: bool) -> Self {
        let StoredPrice { id, book, draft, recorded_at, superseded_at, superseded_by, derived_from } = price;
        let view = Self {
            recorded_at: Some(recorded_at),
            superseded_at,
            superseded_by,
            derived_from,
            ..Self::of_draft(Some(id), &book, draft)
        };
        if sees_cost { view } else { Self { derived_from: None, source: None, checked_at: None, ..view } }
    }
}

impl CsvRow for PriceView {
    const HEADER: &'static [&'static str] = &[
        "id",
        "book",
        "currency",
        "provider",
        "model",
        "aliases",
        "platform",
        "region",
        "service_tier",
        "processing",
        "speed",
        "context_above",
        "context_inclusive",
        "hours_utc",
        "weekdays",
        "per",
        "input",
        "cache_read",
        "cache_write_5m",
        "cache_write_1h",
        "output",
        "reasoning",
        "input_audio",
        "input_image",
        "input_video",
        "cache_read_audio",
        "cache_read_image",
        "cache_read_video",
        "output_audio",
        "output_image",
        "output_video",
        "request",
        "web_search",
        "code_session",
        "image",
        "page",
        "second",
        "character",
        "multiplier",
        "valid_from",
        "valid_to",
        "source",
        "checked_at",
        "recorded_at",
        "superseded_at",
        "superseded_by",
    ];

    fn cells(&self, cells: &mut Cells) {
        let asked = &self.conditions;
        cells
            .maybe_value(self.id)
            .text(&self.book)
            .value(self.currency)
            .text(&self.provider)
            .text(&self.model);
        cells
            .text(&to_cell(&self.aliases))
            .maybe_text(asked.platform.as_deref())
            .maybe_text(asked.region.as_deref())
            .maybe_text(asked.service_tier.as_deref())
            .maybe_text(asked.processing.as_deref())
            .maybe_text(asked.speed.as_deref())
            .maybe_value(asked.context_above)
            .value(asked.context_inclusive)
            .text(&asked.hours_utc.join(" "))
            .text(&asked.weekdays.iter().map(u8::to_string).collect::<Vec<_>>().join(" "))
            .value(self.per);
        for class in TokenClass::ALL {
            let quoted = if class.is_fee() { &self.fees } else { &self.rates };
            cells.maybe_value(quoted.get(&class));
        }
        cells
            .value(self.multiplier)
            .time(self.valid_from)
            .maybe_time(self.valid_to)
            .maybe_text(self.source.as_deref())
            .maybe_value(self.checked_at)
            .maybe_time(self.recorded_at)
            .maybe_time(self.superseded_at)
            .maybe_value(self.superseded_by);
    }
}

/// Narrows the list; everything that is given must hold.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PriceListFilter {
    /// The book's name.
    book: Option<String>,
    /// The provider's name.
    provider: Option<String>,
    /// The model's name or an alias of it.
    model: Option<String>,
    /// Valid at this time.
    at: Option<DateTime<Utc>>,
    /// As it was recorded at this time; without it, what stands now.
    as_of: Option<DateTime<Utc>>,
    /// Superseded and withdrawn prices as well.
    #[serde(default)]
    #[param(default = false)]
    superseded: bool,
}

/// List prices
///
/// In order of book, provider, model and start. A customer's key sees the prices of its own sell books. The rates in CSV are
/// as quoted; they can be imported again.
#[utoipa::path(get, path = "/v1/prices", operation_id = "list_prices", tag = "prices", params(PriceListFilter, PageParams),
    responses((status = 200, description = "A page of prices", content(
        (Page<PriceView> = "application/json"), (String = "text/csv")))))]
async fn list_prices(
    Listing { caller, mut tx, filter, page, .. }: Listing<Reader, PriceListFilter>,
) -> Result<Response, Problem> {
    let PriceListFilter { book, provider, model, at, as_of, superseded } = filter;
    let filter = PriceFilter { book, provider, model, at, as_of, superseded };
    let after: Option<PriceCursor> = page.after()?;
    let rows = prices::list(&mut tx, &filter, after.as_ref(), page.fetch()).await?;
    let sees_cost = caller.sees_cost();
    page.respond(rows, StoredPrice::cursor, |price| PriceView::new(price, sees_cost))
}

/// Prices as the API lists them for finance, all on one page: an array in JSON, or CSV that can be imported.
///
/// # Errors
/// Where they cannot be written, which is our fault.
pub fn price_list(prices: Vec<StoredPrice>, format: Format) -> Result<Vec<u8>, Problem> {
    let views: Vec<PriceView> = prices.into_iter().map(|price| PriceView::new(price, true)).collect();
    match format {
        Format::Json => serde_json::to_vec_pretty(&views).map_err(Problem::internal),
        Format::Csv => csv(&views),
    }
}

/// Get a price
///
/// Standing, superseded or withdrawn: prices are kept for ever.
#[utoipa::path(get, path = "/v1/prices/{id}", operation_id = "get_price", tag = "prices",
    params(("id" = i64, Path, description = "The price's id")),
    responses((status = 200, description = "The price", body = PriceView)))]
async fn get_price(
    Path(id): Path<i64>,
    Read { caller, mut tx, .. }: Read<Reader>,
) -> Result<Json<PriceView>, Problem> {
    let price = prices::get(&mut tx, PriceId(id)).await?.ok_or_else(|| Problem::not_found("price"))?;
    Ok(Json(PriceView::new(price, caller.sees_cost())))
}

/// The new end of a price.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PriceEnd {
    /// First instant after validity. An announced price is withdrawn by an end at or before its start.
    valid_to: DateTime<Utc>,
    /// Ends only this other name of the price's model, in the price's book.
    #[serde(default)]
    alias: Option<String>,
}

/// The price that stands now, or the one withdrawn.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EndedPrice)]
struct EndedPriceView {
    #[serde(flatten)]
    price: PriceView,
    /// From when on the book has no price of the same model and conditions; null where one stands then, as a derived one does
    /// beneath an explicit one, and where only a name ended.
    no_price_from: Option<DateTime<Utc>>,
}

/// End a price
///
/// It is superseded by a copy that ends at `valid_to`, or withdrawn where that is at or before the start of an announced price.
/// The answer is the copy, or the price that was withdrawn. The price that an announced one was to follow keeps its end: calls
/// are unpriced from `no_price_from` on, or rated by a less specific price of the model where one matches, until a price is
/// published for that time, with the aliases of the model. Prices that a markup derived from it follow, and aliases of its model
/// end with the last price of the model in the book. With `alias`, that name ends instead of the price, and the answer is the
/// price.
#[utoipa::path(patch, path = "/v1/prices/{id}", operation_id = "update_price", tag = "prices",
    params(("id" = i64, Path, description = "The price's id")),
    request_body = PriceEnd,
    responses((status = 200, description = "The price that stands now, or the one withdrawn", body = EndedPriceView)))]
async fn update_price(
    Path(id): Path<i64>,
    Write { mut work, body, .. }: Write<Finance, PriceEnd>,
) -> Result<Response, Problem> {
    let (now, actor) = (work.now, work.caller.public_id.clone());
    let PriceEnd { valid_to, alias } = body;
    let Closed { copy, no_price_from } = if let Some(alias) = alias {
        prices::close_alias(work.db(), PriceId(id), &alias, valid_to, now, &actor).await?;
        Closed { copy: None, no_price_from: None }
    } else {
        prices::close(work.db(), PriceId(id), valid_to, now, &actor).await?
    };
    let shown = prices::get(work.db(), copy.unwrap_or(PriceId(id))).await?;
    let price = shown.ok_or_else(|| Problem::not_found("price"))?;
    work.done(&EndedPriceView { price: PriceView::new(price, true), no_price_from }).await
}

/// A call to be quoted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct QuoteRequest {
    /// The price book's name; give this or a customer.
    #[schema(example = "provider-cost")]
    book: Option<String>,
    /// A customer's external id: the call is charged by its override book and its sell book of that time.
    #[schema(example = "acme")]
    customer: Option<String>,
    /// When the call happens; without it now.
    at: Option<DateTime<Utc>>,
    /// The `data` of a usage event.
    #[schema(value_type = Object)]
    data: Box<RawValue>,
}

/// What a call costs.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Quote)]
struct QuoteView {
    /// The exact amount.
    #[schema(value_type = DecimalText)]
    amount: Amount,
    /// Its currency.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// One per model that the call used.
    parts: Vec<PartView>,
}

/// What one part of a call costs.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QuotePart)]
struct PartView {
    /// The model, by the price's name for it.
    model: String,
    /// The price that applies.
    #[schema(value_type = i64)]
    price_id: PriceId,
    /// The name of its book.
    book: String,
    /// The whole prompt, which a context tier is compared with.
    tier_input: i64,
    /// Tokens by class.
    classes: Vec<QuotedLineView>,
    /// Fees by class.
    fees: Vec<QuotedLineView>,
    /// What the quoted rates were multiplied with; it is in the rates here already.
    #[schema(value_type = DecimalText)]
    multiplier: Decimal,
    /// The sum of the classes and fees.
    #[schema(value_type = DecimalText)]
    amount: Amount,
    /// Its currency.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
}

/// What one class costs.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QuoteLine)]
pub(super) struct QuotedLineView {
    /// The class.
    #[schema(value_type = String, example = "input")]
    class: TokenClass,
    /// How much was used.
    quantity: i64,
    /// Money per `per` units.
    #[schema(value_type = DecimalText)]
    rate: Amount,
    /// Units that the rate is money for.
    per: i64,
    /// Rate times quantity, exact.
    #[schema(value_type = DecimalText)]
    amount: Amount,
    /// The currency of both.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
    /// The class whose rate it takes; null where it has its own.
    #[schema(value_type = Option<String>)]
    inherited_from: Option<TokenClass>,
}

impl QuoteView {
    fn new(quote: Quote) -> Self {
        let Quote { amount, currency, parts } = quote;
        let parts = parts.into_iter().map(|part| PartView::new(part, currency)).collect();
        Self { amount, currency, parts }
    }
}

impl QuotedLineView {
    pub(super) fn new(line: QuotedLine, currency: Currency) -> Self {
        let QuotedLine { class, inherited_from, quantity, rate, per, amount } = line;
        Self { class, quantity, rate, per, amount, currency, inherited_from }
    }

    pub(super) const fn is_fee(&self) -> bool {
        self.class.is_fee()
    }
}

impl PartView {
    fn new(part: QuotedPart, currency: Currency) -> Self {
        let QuotedPart { model, price, book, tier_input, lines, multiplier, amount } = part;
        let views = lines.into_iter().map(|line| QuotedLineView::new(line, currency));
        let (fees, classes) = views.partition(QuotedLineView::is_fee);
        Self { model, price_id: price, book, tier_input, classes, fees, multiplier, amount, currency }
    }
}

/// Quote a call
///
/// What a call would cost at a time, by the prices that stand now; nothing is recorded. A customer's key may ask for its own
/// sell books, and for itself.
#[utoipa::path(post, path = "/v1/prices/quote", operation_id = "preview_quote", tag = "prices",
    request_body = QuoteRequest,
    responses((status = 200, description = "What it costs", body = QuoteView)))]
async fn preview_quote(
    State(state): State<AppState>,
    Auth { caller, .. }: Auth<Reader>,
    request: Request,
) -> Result<Json<QuoteView>, Problem> {
    // The body first: a connection must not wait for a client that sends slowly.
    let (_, QuoteRequest { book, customer, at, data }) = read_json::<QuoteRequest>(request).await?;
    let by = match (&book, &customer) {
        (Some(book), None) => QuoteBy::Book(book),
        (None, Some(customer)) => QuoteBy::Customer(customer),
        _ => return Err(Problem::invalid("book", "give a book or a customer, and not both")),
    };
    let at = at.unwrap_or_else(|| state.clock.now());
    let usage = parse_usage(data.get().as_bytes());
    let usage = usage.map_err(|rejected| Problem::invalid("data", rejected.detail))?;
    let mut tx = state.db.read(caller.scope()).await?;
    let quote = reports::quote(&mut tx, by, at, &usage.parts).await.map_err(quote_problem)?;
    Ok(Json(QuoteView::new(quote)))
}

fn quote_problem(error: QuoteError) -> Problem {
    match error {
        QuoteError::Store(error) => error.into(),
        QuoteError::UnknownBook(name) => Problem::invalid("book", format!("there is no price book `{name}`")),
        error @ (QuoteError::UnknownCustomer(_) | QuoteError::Unassigned(_)) => {
            Problem::invalid("customer", error.to_string())
        }
        QuoteError::Unpriced { part, reason } => {
            Problem::invalid(format!("data (part {part})"), reason.to_string())
        }
        QuoteError::Overflow => Problem::invalid("data", "the amount is out of range"),
        QuoteError::Book(error) => Problem::internal(error),
    }
}
