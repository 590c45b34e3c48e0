//! Which stream sequences the ledger accounts for.

use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreError;

/// Most holes listed at once.
const HOLES_MAX: i64 = 1_000_000;

/// Sequences from 1 to `up_to` of a life of the stream that no batch accounts for, in order.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn unaccounted(
    connection: &mut PgConnection,
    incarnation: Uuid,
    up_to: i64,
) -> Result<Vec<i64>, StoreError> {
    let holes = sqlx::query_scalar!(
        r#"WITH accounted AS (
               SELECT COALESCE(range_agg(sequences_of_batch), '{}') AS sequences
               FROM (SELECT unnest(sequences) AS sequences_of_batch FROM ingest_batches WHERE incarnation = $1) AS ranges
           )
           SELECT sequence AS "sequence!"
           FROM accounted,
                unnest(int8multirange(int8range(1, $2::bigint + 1)) - accounted.sequences) AS hole,
                generate_series(lower(hole), upper(hole) - 1) AS sequence
           LIMIT $3"#,
        incarnation,
        up_to,
        HOLES_MAX
    )
    .fetch_all(connection)
    .await?;
    Ok(holes)
}

/// How far recording and posting are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Events in batches from the stream, however they ended.
    pub events: i64,
    /// Batches that are not posted yet.
    pub unposted_batches: i64,
}

/// How far recording and posting are.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn progress(connection: &mut PgConnection) -> Result<Progress, StoreError> {
    let progress = sqlx::query_as!(
        Progress,
        r#"SELECT COALESCE(SUM(events) FILTER (WHERE origin = 'stream'), 0) AS "events!",
                  COUNT(*) FILTER (WHERE posted_at IS NULL) AS "unposted_batches!"
           FROM ingest_batches"#
    )
    .fetch_one(connection)
    .await?;
    Ok(progress)
}
