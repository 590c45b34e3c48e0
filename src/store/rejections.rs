//! Rejections as finance sees them: listed, looked at, sent to be tried again, discarded.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::StoreError;
use crate::domain::ids::RejectionId;

/// A rejection in a list.
#[derive(Debug, Clone)]
pub struct RejectionRow {
    /// Its key.
    pub id: RejectionId,
    /// Why, as a stable code.
    pub reason: String,
    /// Why, in a sentence.
    pub detail: String,
    /// The gateway, as far as known.
    pub gateway: Option<String>,
    /// The customer's external id, as far as known.
    pub customer: Option<String>,
    /// The event's source, as far as known.
    pub event_source: Option<String>,
    /// The event's id, as far as known.
    pub event_id: Option<String>,
    /// The provider, as far as known.
    pub provider: Option<String>,
    /// The model, as far as known.
    pub model: Option<String>,
    /// Sequence of its message in the stream.
    pub stream_seq: i64,
    /// Its position in the message; -1 for the message as a whole.
    pub event_index: i32,
    /// When it was rejected first.
    pub rejected_at: DateTime<Utc>,
    /// How often it was tried.
    pub attempts: i32,
    /// Whether another try was asked for.
    pub replay_requested: bool,
    /// Whether finance accepts its time.
    pub window_waived: bool,
    /// When it was settled.
    pub resolved_at: Option<DateTime<Utc>>,
    /// How: `recorded`, `duplicate` or `discarded`.
    pub resolution: Option<String>,
    /// Why it was discarded.
    pub resolution_note: Option<String>,
}

/// What was received, without the texts of prompts and answers.
#[derive(Debug, Clone)]
pub struct Received {
    /// The subject of its message.
    pub subject: String,
    /// The headers of its message.
    pub headers: Option<serde_json::Value>,
    /// The event, or the whole message where it could not be taken apart.
    pub raw: Vec<u8>,
}

/// Narrows rejections; what is `None` narrows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct RejectionFilter<'a> {
    /// The reason's code.
    pub reason: Option<&'a str>,
    /// The customer's external id.
    pub customer: Option<&'a str>,
    /// The gateway's name.
    pub gateway: Option<&'a str>,
    /// The provider.
    pub provider: Option<&'a str>,
    /// The model.
    pub model: Option<&'a str>,
    /// Whether it is not settled yet.
    pub open: Option<bool>,
    /// Rejected at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Rejected before this time.
    pub to: Option<DateTime<Utc>>,
    /// One only.
    pub id: Option<RejectionId>,
}

/// What was done to many rejections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// To how many.
    pub done: u64,
    /// To how many more it could be done: as many as were counted.
    pub left: usize,
}

/// Rejections, newest first, before one, at most `limit`.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    connection: &mut PgConnection,
    filter: RejectionFilter<'_>,
    before: Option<RejectionId>,
    limit: i64,
) -> Result<Vec<RejectionRow>, StoreError> {
    let rows = sqlx::query_as!(
        RejectionRow,
        r#"SELECT id AS "id: RejectionId", reason, detail, gateway, customer, event_source, event_id, provider, model,
                  stream_seq, event_index, rejected_at, attempts, replay_requested, window_waived, resolved_at, resolution,
                  resolution_note
           FROM rejections
           WHERE ($1::text IS NULL OR reason = $1) AND ($2::text IS NULL OR customer = $2)
             AND ($3::text IS NULL OR gateway = $3) AND ($4::text IS NULL OR provider = $4)
             AND ($5::text IS NULL OR model = $5) AND ($6::boolean IS NULL OR (resolved_at IS NULL) = $6)
             AND ($7::timestamptz IS NULL OR rejected_at >= $7) AND ($8::timestamptz IS NULL OR rejected_at < $8)
             AND ($9::bigint IS NULL OR id = $9) AND ($10::bigint IS NULL OR id < $10)
           ORDER BY id DESC LIMIT $11"#,
        filter.reason,
        filter.customer,
        filter.gateway,
        filter.provider,
        filter.model,
        filter.open,
        filter.from,
        filter.to,
        filter.id.map(|id| id.0),
        before.map(|id| id.0),
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// One rejection.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn get(connection: &mut PgConnection, id: RejectionId) -> Result<Option<RejectionRow>, StoreError> {
    let filter = RejectionFilter { id: Some(id), ..RejectionFilter::default() };
    Ok(list(connection, filter, None, 1).await?.pop())
}

/// What was received with a rejection that exists.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn received(connection: &mut PgConnection, id: RejectionId) -> Result<Received, StoreError> {
    let row = sqlx::query_as!(Received, "SELECT subject, headers, raw FROM rejections WHERE id = $1", id.0)
        .fetch_one(connection)
        .await?;
    Ok(row)
}

/// Open rejections that match, the oldest first: `most` of them, and how many more there are, of up to `counted`. Of those that
/// are asked to be tried again already only what `waive_window` would change, where it is given.
async fn open_ones(
    connection: &mut PgConnection,
    filter: RejectionFilter<'_>,
    waive_window: Option<bool>,
    (most, counted): (usize, usize),
) -> Result<(Vec<i64>, usize), StoreError> {
    let mut ids = sqlx::query_scalar!(
        "SELECT id FROM rejections
         WHERE resolved_at IS NULL
           AND ($1::text IS NULL OR reason = $1) AND ($2::text IS NULL OR customer = $2)
           AND ($3::text IS NULL OR gateway = $3) AND ($4::text IS NULL OR provider = $4)
           AND ($5::text IS NULL OR model = $5)
           AND ($6::timestamptz IS NULL OR rejected_at >= $6) AND ($7::timestamptz IS NULL OR rejected_at < $7)
           AND ($8::boolean IS NULL OR NOT replay_requested OR $8 AND NOT window_waived)
         ORDER BY id LIMIT $9",
        filter.reason,
        filter.customer,
        filter.gateway,
        filter.provider,
        filter.model,
        filter.from,
        filter.to,
        waive_window,
        i64::try_from(most.saturating_add(counted)).unwrap_or(i64::MAX)
    )
    .fetch_all(connection)
    .await?;
    let left = ids.split_off(most.min(ids.len())).len();
    Ok((ids, left))
}

/// Asks for another try of an open rejection; `waive_window` also accepts a time before the acceptance window. `false` where
/// it is not open any more.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn request_replay(
    connection: &mut PgConnection,
    id: RejectionId,
    waive_window: bool,
) -> Result<bool, StoreError> {
    Ok(request(connection, &[id.0], waive_window).await? == 1)
}

/// The same of the open rejections that match, the oldest first; `bounds`: of how many, and how many more are counted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn request_replays(
    connection: &mut PgConnection,
    filter: RejectionFilter<'_>,
    waive_window: bool,
    bounds: (usize, usize),
) -> Result<Done, StoreError> {
    let (ids, left) = open_ones(connection, filter, Some(waive_window), bounds).await?;
    Ok(Done { done: request(connection, &ids, waive_window).await?, left })
}

async fn request(connection: &mut PgConnection, ids: &[i64], waive_window: bool) -> Result<u64, StoreError> {
    let result = sqlx::query!(
        "UPDATE rejections SET replay_requested = true, window_waived = window_waived OR $2
         WHERE id = ANY($1) AND resolved_at IS NULL",
        ids,
        waive_window
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

/// Settles an open rejection as not to be billed, with the reason in words; `false` where it is not open any more.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn discard(connection: &mut PgConnection, id: RejectionId, note: &str) -> Result<bool, StoreError> {
    Ok(discard_each(connection, &[id.0], note).await? == 1)
}

/// The same of the open rejections that match, the oldest first; `bounds`: of how many, and how many more are counted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn discard_many(
    connection: &mut PgConnection,
    filter: RejectionFilter<'_>,
    note: &str,
    bounds: (usize, usize),
) -> Result<Done, StoreError> {
    let (ids, left) = open_ones(connection, filter, None, bounds).await?;
    Ok(Done { done: discard_each(connection, &ids, note).await?, left })
}

async fn discard_each(connection: &mut PgConnection, ids: &[i64], note: &str) -> Result<u64, StoreError> {
    // By the database's clock, as it was rejected: which of both was first decides what a copy of it becomes.
    let result = sqlx::query!(
        "UPDATE rejections SET resolved_at = now(), resolution = 'discarded', resolution_note = $2, replay_requested = false
         WHERE id = ANY($1) AND resolved_at IS NULL",
        ids,
        note
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}
