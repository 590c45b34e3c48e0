//! How far a gateway's own count is settled: which of its events are in the database.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::StoreError;
use crate::domain::ids::GatewayId;

/// One epoch of a gateway's count.
#[derive(Debug, Clone)]
pub struct EpochRow {
    /// Its name.
    pub epoch: String,
    /// Every number from 1 to this is in the database.
    pub settled: i64,
    /// The highest number in the database.
    pub highest: i64,
    /// Numbers below the highest that are not.
    pub missing: i64,
    /// When its first number came.
    pub first_seen_at: DateTime<Utc>,
    /// When a number came last.
    pub seen_at: DateTime<Utc>,
}

/// Consecutive numbers of an epoch that are not in the database.
#[derive(Debug, Clone)]
pub struct EpochHole {
    /// The epoch.
    pub epoch: String,
    /// First missing number.
    pub first: i64,
    /// Last missing number.
    pub last: i64,
}

/// Epochs of a gateway, the one heard of last first, at most `limit`; `epoch` narrows to one.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn epochs(
    connection: &mut PgConnection,
    gateway: GatewayId,
    epoch: Option<&str>,
    limit: i64,
) -> Result<Vec<EpochRow>, StoreError> {
    let rows = sqlx::query_as!(
        EpochRow,
        r#"SELECT epoch, upper(seen) - 1 AS "highest!", first_seen_at, seen_at,
                  COALESCE((SELECT upper(range) - 1 FROM unnest(seen) AS range WHERE lower(range) = 1), 0) AS "settled!",
                  COALESCE((SELECT SUM(upper(hole) - lower(hole))
                            FROM unnest(int8multirange(int8range(1, upper(seen))) - seen) AS hole), 0)::bigint AS "missing!"
           FROM gateway_sequences
           WHERE gateway_id = $1 AND ($2::text IS NULL OR epoch = $2)
           ORDER BY seen_at DESC, epoch LIMIT $3"#,
        gateway as GatewayId,
        epoch,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// The lowest holes of some epochs, in order of epoch and number, at most `limit` of each.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn holes(
    connection: &mut PgConnection,
    gateway: GatewayId,
    epochs: &[String],
    limit: i64,
) -> Result<Vec<EpochHole>, StoreError> {
    let rows = sqlx::query_as!(
        EpochHole,
        r#"SELECT s.epoch, h.first AS "first!", h.last AS "last!"
           FROM gateway_sequences s,
                LATERAL (SELECT lower(hole) AS first, upper(hole) - 1 AS last
                         FROM unnest(int8multirange(int8range(1, upper(s.seen))) - s.seen) AS hole
                         ORDER BY hole LIMIT $3) AS h
           WHERE s.gateway_id = $1 AND s.epoch = ANY($2)
           ORDER BY 1, 2"#,
        gateway as GatewayId,
        epochs,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
