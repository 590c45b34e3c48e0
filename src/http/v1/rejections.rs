//! Rejections: events that could not be recorded as billable usage, kept whole.

use axum::Json;
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::domain::ids::RejectionId;
use crate::http::AppState;
use crate::http::auth::{Finance, Read};
use crate::http::listing::{Listing, Page, PageParams};
use crate::http::problem::Problem;
use crate::http::request::Path;
use crate::http::table::{Cells, CsvRow};
use crate::http::write::{Work, Write};
use crate::metering::Reason;
use crate::store::rejections::{self, Done, RejectionFilter, RejectionRow};

/// Longest note of a discarded rejection, in characters.
const NOTE_CHARS_MAX: usize = 500;
/// How many rejections one request changes, so that it ends within its time ...
const CHANGED_MAX: usize = 50_000;
/// ... and how many more it counts.
const COUNTED_MAX: usize = 100_000;

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_rejections))
        .routes(routes!(replay_rejections))
        .routes(routes!(discard_rejections))
        .routes(routes!(get_rejection))
        .routes(routes!(replay_rejection))
        .routes(routes!(discard_rejection))
}

/// A rejection.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Rejection)]
struct RejectionView {
    /// Its id.
    id: i64,
    /// Why, as a stable code.
    #[schema(example = "unpriced")]
    reason: String,
    /// Why, and what to do about it.
    detail: String,
    /// The gateway, as far as known.
    gateway: Option<String>,
    /// The customer as the event names it, as far as known.
    customer: Option<String>,
    /// The event's `source`, as far as known.
    event_source: Option<String>,
    /// The event's `id`, as far as known.
    event_id: Option<String>,
    /// The provider, as far as known.
    provider: Option<String>,
    /// The model, as far as known.
    model: Option<String>,
    /// Sequence of its message in the stream.
    stream_sequence: i64,
    /// Its position in the message, from 0; -1 for the message as a whole.
    event_index: i32,
    /// When it was rejected first.
    rejected_at: DateTime<Utc>,
    /// How often it was tried.
    attempts: i32,
    /// Whether another try was asked for and has yet to happen.
    replay_requested: bool,
    /// Whether its time is accepted although it is older than the acceptance window.
    window_waived: bool,
    /// When it was settled; null while open.
    resolved_at: Option<DateTime<Utc>>,
    /// How it was settled: `recorded`, `duplicate` or `discarded`.
    resolution: Option<String>,
    /// Why it was discarded.
    resolution_note: Option<String>,
}

/// A rejection with what was received.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RejectionWithRaw)]
struct RejectionWithRawView {
    #[serde(flatten)]
    rejection: RejectionView,
    /// The subject of its message.
    subject: String,
    /// The headers of its message.
    #[schema(value_type = Option<Object>)]
    headers: Option<serde_json::Value>,
    /// How `raw` is written: `utf8` as it is, `base64` where it is not text.
    #[schema(example = "utf8")]
    raw_encoding: &'static str,
    /// The event as received, or the whole message where it could not be taken apart, without the texts of prompts and answers.
    raw: String,
}

impl From<RejectionRow> for RejectionView {
    fn from(row: RejectionRow) -> Self {
        Self {
            id: row.id.0,
            reason: row.reason,
            detail: row.detail,
            gateway: row.gateway,
            customer: row.customer,
            event_source: row.event_source,
            event_id: row.event_id,
            provider: row.provider,
            model: row.model,
            stream_sequence: row.stream_seq,
            event_index: row.event_index,
            rejected_at: row.rejected_at,
            attempts: row.attempts,
            replay_requested: row.replay_requested,
            window_waived: row.window_waived,
            resolved_at: row.resolved_at,
            resolution: row.resolution,
            resolution_note: row.resolution_note,
        }
    }
}

impl CsvRow for RejectionView {
    const HEADER: &'static [&'static str] = &[
        "id",
        "reason",
        "detail",
        "gateway",
        "customer",
        "event_source",
        "event_id",
        "provider",
        "model",
        "stream_sequence",
        "event_index",
        "rejected_at",
        "attempts",
        "replay_requested",
        "window_waived",
        "resolved_at",
        "resolution",
        "resolution_note",
    ];

    fn cells(&self, cells: &mut Cells) {
        cells
            .value(self.id)
            .value(&self.reason)
            .text(&self.detail)
            .maybe_text(self.gateway.as_deref())
            .maybe_text(self.customer.as_deref())
            .maybe_text(self.event_source.as_deref())
            .maybe_text(self.event_id.as_deref())
            .maybe_text(self.provider.as_deref())
            .maybe_text(self.model.as_deref())
            .value(self.stream_sequence)
            .value(self.event_index)
            .time(self.rejected_at)
            .value(self.attempts)
            .value(self.replay_requested)
            .value(self.window_waived)
            .maybe_time(self.resolved_at)
            .maybe_text(self.resolution.as_deref())
            .maybe_text(self.resolution_note.as_deref());
    }
}

/// Narrows the list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Filter {
    /// Only of this reason.
    reason: Option<Reason>,
    /// Only events that name this customer.
    customer: Option<String>,
    /// Only from this gateway.
    gateway: Option<String>,
    /// Only of this provider.
    provider: Option<String>,
    /// Only of this model.
    model: Option<String>,
    /// `true` for the ones that wait, `false` for the settled ones.
    open: Option<bool>,
    /// Only rejected at this time or later.
    from: Option<DateTime<Utc>>,
    /// Only rejected before this time.
    to: Option<DateTime<Utc>>,
}

/// List rejections
///
/// Newest first.
#[utoipa::path(get, path = "/v1/rejections", operation_id = "list_rejections", tag = "rejections",
    params(Filter, PageParams),
    responses((status = 200, description = "A page of rejections", content(
        (Page<RejectionView> = "application/json"), (String = "text/csv")))))]
async fn list_rejections(
    Listing { mut tx, filter, page, .. }: Listing<Finance, Filter>,
) -> Result<Response, Problem> {
    let before = page.after::<i64>()?.map(RejectionId);
    let narrow = RejectionFilter {
        reason: filter.reason.map(Reason::as_str),
        customer: filter.customer.as_deref(),
        gateway: filter.gateway.as_deref(),
        provider: filter.provider.as_deref(),
        model: filter.model.as_deref(),
        open: filter.open,
        from: filter.from,
        to: filter.to,
        id: None,
    };
    let rows = rejections::list(&mut tx, narrow, before, page.fetch()).await?;
    page.respond(rows, |row| row.id.0, RejectionView::from)
}

/// Get a rejection
///
/// With the event as it was received, without the texts of prompts and answers.
#[utoipa::path(get, path = "/v1/rejections/{id}", operation_id = "get_rejection", tag = "rejections",
    params(("id" = i64, Path, description = "Its id")),
    responses((status = 200, description = "The rejection", body = RejectionWithRawView)))]
async fn get_rejection(
    Path(id): Path<i64>,
    Read { mut tx, .. }: Read<Finance>,
) -> Result<Json<RejectionWithRawView>, Problem> {
    let id = RejectionId(id);
    let row = rejections::get(&mut tx, id).await?.ok_or_else(unknown)?;
    let received = rejections::received(&mut tx, id).await?;
    let (raw_encoding, raw) = match String::from_utf8(received.raw) {
        Ok(text) => ("utf8", text),
        Err(error) => ("base64", STANDARD.encode(error.as_bytes())),
    };
    let rejection = row.into();
    Ok(Json(RejectionWithRawView {
        rejection,
        subject: received.subject,
        headers: received.headers,
        raw_encoding,
        raw,
    }))
}

/// How to try again.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ReplayOptions {
    /// Accept the event's time although it is older than the acceptance window. One that lies ahead is accepted once it has come.
    #[serde(default)]
    waive_window: bool,
}

/// Replay a rejection
///
/// It is tried again soon, through the same checks; look at it again to see what became of it.
#[utoipa::path(post, path = "/v1/rejections/{id}/replay", operation_id = "replay_rejection", tag = "rejections",
    params(("id" = i64, Path, description = "Its id")),
    request_body = Option<ReplayOptions>,
    responses((status = 202, description = "It will be tried again", body = RejectionView)))]
async fn replay_rejection(
    Path(id): Path<i64>,
    Write { mut work, body, .. }: Write<Finance, Option<ReplayOptions>>,
) -> Result<Response, Problem> {
    let waive_window = body.unwrap_or_default().waive_window;
    let id = RejectionId(id);
    if !rejections::request_replay(work.db(), id, waive_window).await? {
        return Err(not_open(&mut work, id).await);
    }
    work.audit("rejection.replay", &id.to_string(), Some(json!({"waive_window": waive_window}))).await?;
    answer(work, id, StatusCode::ACCEPTED).await
}

/// Which rejections to try again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ReplayMany {
    /// All open ones of this reason ...
    #[schema(example = "unpriced")]
    reason: Reason,
    /// ... that name this customer,
    customer: Option<String>,
    /// from this gateway,
    gateway: Option<String>,
    /// of this provider,
    provider: Option<String>,
    /// of this model,
    model: Option<String>,
    /// rejected at this time or later
    from: Option<DateTime<Utc>>,
    /// and before this time.
    to: Option<DateTime<Utc>>,
    /// Accept times that are older than the acceptance window. Those that lie ahead are accepted once they have come.
    #[serde(default)]
    waive_window: bool,
}

/// How many will be tried again.
#[derive(Debug, Serialize, ToSchema)]
struct ReplayRequested {
    /// How many rejections.
    requested: u64,
    /// How many more there are, up to 100,000: ask again for them.
    left: usize,
}

/// Replay rejections of a reason
///
/// They are tried again soon, through the same checks. A request takes the 50,000 oldest of those that were not asked for yet,
/// and says how many are left.
#[utoipa::path(post, path = "/v1/rejections/replay", operation_id = "replay_rejections", tag = "rejections",
    request_body = ReplayMany,
    responses((status = 202, description = "They will be tried again", body = ReplayRequested)))]
async fn replay_rejections(
    Write { mut work, body, .. }: Write<Finance, ReplayMany>,
) -> Result<Response, Problem> {
    let filter = RejectionFilter {
        reason: Some(body.reason.as_str()),
        customer: body.customer.as_deref(),
        gateway: body.gateway.as_deref(),
        provider: body.provider.as_deref(),
        model: body.model.as_deref(),
        from: body.from,
        to: body.to,
        ..RejectionFilter::default()
    };
    let bounds = (CHANGED_MAX, COUNTED_MAX);
    let Done { done, left } =
        rejections::request_replays(work.db(), filter, body.waive_window, bounds).await?;
    let detail = json!({
        "customer": body.customer, "gateway": body.gateway, "provider": body.provider, "model": body.model,
        "from": body.from, "to": body.to, "waive_window": body.waive_window, "requested": done,
    });
    work.audit("rejection.replay_all", body.reason.as_str(), Some(detail)).await?;
    work.answer(StatusCode::ACCEPTED, None, &ReplayRequested { requested: done, left }).await
}

/// Why a rejection will not be billed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Discard {
    /// The reason, for whoever asks later; 1 to 500 characters.
    #[schema(example = "test traffic of the gateway's own", min_length = 1, max_length = 500)]
    note: String,
}

/// Discard a rejection
///
/// Settles it as usage that is not billed. This is final: where its gateway sends the same event again, with the same content,
/// it is settled, too. What is to be billed after all has to be sent with a new id.
#[utoipa::path(post, path = "/v1/rejections/{id}/discard", operation_id = "discard_rejection", tag = "rejections",
    params(("id" = i64, Path, description = "Its id")),
    request_body = Discard,
    responses((status = 200, description = "Discarded", body = RejectionView)))]
async fn discard_rejection(
    Path(id): Path<i64>,
    Write { mut work, body, .. }: Write<Finance, Discard>,
) -> Result<Response, Problem> {
    let note = checked_note(&body.note)?;
    let id = RejectionId(id);
    if !rejections::discard(work.db(), id, note).await? {
        return Err(not_open(&mut work, id).await);
    }
    work.audit("rejection.discard", &id.to_string(), Some(json!({"note": note}))).await?;
    answer(work, id, StatusCode::OK).await
}

/// Which rejections will not be billed, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DiscardMany {
    /// All open ones of this reason ...
    #[schema(example = "too_old")]
    reason: Reason,
    /// ... that name this customer,
    customer: Option<String>,
    /// from this gateway,
    gateway: Option<String>,
    /// of this provider,
    provider: Option<String>,
    /// of this model,
    model: Option<String>,
    /// rejected at this time or later
    from: Option<DateTime<Utc>>,
    /// and before this time.
    to: Option<DateTime<Utc>>,
    /// Why, for whoever asks later; 1 to 500 characters.
    #[schema(example = "test traffic of the gateway's own", min_length = 1, max_length = 500)]
    note: String,
}

/// How many were discarded.
#[derive(Debug, Serialize, ToSchema)]
struct Discarded {
    /// How many rejections.
    discarded: u64,
    /// How many more there are, up to 100,000: ask again for them.
    left: usize,
}

/// Discard rejections of a reason
///
/// Settles them as usage that is not billed, each as if it were discarded by itself. A request takes the 50,000 oldest, and says
/// how many are left. Look at the list with the same filter first: this is final.
#[utoipa::path(post, path = "/v1/rejections/discard", operation_id = "discard_rejections", tag = "rejections",
    request_body = DiscardMany,
    responses((status = 200, description = "Discarded", body = Discarded)))]
async fn discard_rejections(
    Write { mut work, body, .. }: Write<Finance, DiscardMany>,
) -> Result<Response, Problem> {
    let note = checked_note(&body.note)?;
    let filter = RejectionFilter {
        reason: Some(body.reason.as_str()),
        customer: body.customer.as_deref(),
        gateway: body.gateway.as_deref(),
        provider: body.provider.as_deref(),
        model: body.model.as_deref(),
        from: body.from,
        to: body.to,
        ..RejectionFilter::default()
    };
    let bounds = (CHANGED_MAX, COUNTED_MAX);
    let Done { done, left } = rejections::discard_many(work.db(), filter, note, bounds).await?;
    let detail = json!({
        "customer": body.customer, "gateway": body.gateway, "provider": body.provider, "model": body.model,
        "from": body.from, "to": body.to, "note": note, "discarded": done,
    });
    work.audit("rejection.discard_all", body.reason.as_str(), Some(detail)).await?;
    work.answer(StatusCode::OK, None, &Discarded { discarded: done, left }).await
}

fn checked_note(note: &str) -> Result<&str, Problem> {
    let note = note.trim();
    if note.is_empty() || note.chars().count() > NOTE_CHARS_MAX {
        return Err(Problem::invalid("note", format!("must have 1 to {NOTE_CHARS_MAX} characters")));
    }
    Ok(note)
}

async fn answer(mut work: Work, id: RejectionId, status: StatusCode) -> Result<Response, Problem> {
    let row = rejections::get(work.db(), id).await?.ok_or_else(unknown)?;
    work.answer(status, None, &RejectionView::from(row)).await
}

/// Why an open rejection was not found: there is none, or it is settled.
async fn not_open(work: &mut Work, id: RejectionId) -> Problem {
    match rejections::get(work.db(), id).await {
        Ok(Some(_)) => Problem::conflict("The rejection is settled already."),
        Ok(None) => unknown(),
        Err(error) => error.into(),
    }
}

fn unknown() -> Problem {
    Problem::not_found("rejection")
}
