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
///
/// # Errors
/// [`StoreError::Database`].
pub async fn unposted_batches(connection: &mut PgConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM ingest_batches WHERE posted_at IS NULL"#)
        .fetch_one(connection)
        .await?)
}

/// Open rejections by reason; a reason that had some and has none any more is listed with zero.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn open_rejections(connection: &mut PgConnection) -> Result<Vec<OpenRejections>, StoreError> {
    let rows = sqlx::query_as!(
        OpenRejections,
        r#"SELECT reason, count(*) FILTER (WHERE resolved_at IS NULL) AS "count!" FROM rejections GROUP BY reason"#
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
