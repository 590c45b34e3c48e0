//! Answers to requests with an Idempotency-Key.
//!
//! The answer is written in the transaction of the effect, so both exist or neither; an advisory lock of that
//! transaction keeps a second request with the same key out while the first runs.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;

use super::StoreError;
use crate::domain::ids::ApiKeyId;

/// How long an answer is kept: 24 hours.
const KEPT: TimeDelta = TimeDelta::hours(24);
/// First half of the advisory lock's key; the second is a hash of the API key and the Idempotency-Key.
const LOCK_CLASS: i32 = 0x1de3;

/// An answer as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: i16,
    /// The Location header.
    pub location: Option<String>,
    /// JSON; empty for an answer without a body.
    pub body: Vec<u8>,
}

/// What is known about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Nothing: the request is the first, and holds the key until its transaction ends.
    First,
    /// The same request was answered before.
    Answered(Answer),
    /// Another request was made with the key.
    OtherRequest,
    /// A request with the key runs right now.
    Running,
}

/// Claims a key for a request that is known by its hash.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn claim(
    connection: &mut PgConnection,
    api_key: ApiKeyId,
    key: &str,
    request_hash: &[u8],
    now: DateTime<Utc>,
) -> Result<Claim, StoreError> {
    let alone = sqlx::query_scalar!(
        r#"SELECT pg_try_advisory_xact_lock($1, hashtext($2::bigint || ':' || $3::text)) AS "alone!""#,
        LOCK_CLASS,
        api_key.0,
        key
    )
    .fetch_one(&mut *connection)
    .await?;
    if !alone {
        return Ok(Claim::Running);
    }
    sqlx::query!(
        "DELETE FROM idempotency_keys WHERE api_key_id = $1 AND key = $2 AND created_at <= $3",
        api_key.0,
        key,
        now - KEPT
    )
    .execute(&mut *connection)
    .await?;
    let known = sqlx::query!(
        "SELECT request_hash, status, location, body FROM idempotency_keys WHERE api_key_id = $1 AND key = $2",
        api_key.0,
        key
    )
    .fetch_optional(connection)
    .await?;
    Ok(match known {
        None => Claim::First,
        Some(row) if row.request_hash != request_hash => Claim::OtherRequest,
        Some(row) => Claim::Answered(Answer { status: row.status, location: row.location, body: row.body }),
    })
}

/// Keeps the answer to a request whose key was claimed in this transaction.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn keep(
    connection: &mut PgConnection,
    api_key: ApiKeyId,
    key: &str,
    request_hash: &[u8],
    answer: &Answer,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO idempotency_keys (api_key_id, key, request_hash, status, location, body, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        api_key.0,
        key,
        request_hash,
        answer.status,
        answer.location,
        answer.body,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes answers past their time, the oldest first and at most `limit`; how many it were.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn purge(connection: &mut PgConnection, now: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    let purged = sqlx::query!(
        "DELETE FROM idempotency_keys WHERE (api_key_id, key) IN (
             SELECT api_key_id, key FROM idempotency_keys WHERE created_at <= $1 ORDER BY created_at LIMIT $2)
         AND created_at <= $1",
        now - KEPT,
        limit
    )
    .execute(connection)
    .await?;
    Ok(purged.rows_affected())
}
