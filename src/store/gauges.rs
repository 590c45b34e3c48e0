//! What the metrics show of the ledger.

use sqlx::PgConnection;

use super::StoreError;

/// Open rejections of one reason.
#[derive(Debug, Clone)]
pub struct OpenRejections {
    /// The reason.
    pub reason: String,
    /// How many.
    pub count: i64,
}

/// Recorded batches that are not posted yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unposted {
    /// How many.
    pub batches: i64,
    /// Seconds since the oldest of them was recorded; 0 where there is none.
    pub oldest_seconds: i64,
}

/// How far posting trails recording.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn unposted(connection: &mut PgConnection) -> Result<Unposted, StoreError> {
    let unposted = sqlx::query_as!(
        Unposted,
        r#"SELECT count(*) AS "batches!",
                  COALESCE(GREATEST(extract(epoch FROM now() - min(recorded_at)), 0), 0)::bigint AS "oldest_seconds!"
           FROM ingest_batches WHERE posted_at IS NULL"#
    )
    .fetch_one(connection)
    .await?;
    Ok(unposted)
}

/// Days from the open booking date to the end of the last journal partition; what is booked after it has no place. `None` before
/// anything was booked: partitions are made as dates open.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn partition_days_ahead(connection: &mut PgConnection) -> Result<Option<i64>, StoreError> {
    let days = sqlx::query_scalar!(
        r#"SELECT COALESCE((SELECT max(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([0-9-]+)')::date)
                            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                            WHERE i.inhparent = 'usage_events'::regclass) - booked_on, 0)::bigint AS "days!"
           FROM journal_clock"#
    )
    .fetch_optional(connection)
    .await?;
    Ok(days)
}

/// Open rejections by reason; a reason that has none is not listed.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn open_rejections(connection: &mut PgConnection) -> Result<Vec<OpenRejections>, StoreError> {
    let rows = sqlx::query_as!(
        OpenRejections,
        r#"SELECT reason, count(*) AS "count!" FROM rejections WHERE resolved_at IS NULL GROUP BY reason"#
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
