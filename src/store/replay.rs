//! Rejections that are tried again.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreError;
use super::journal::NOTHING;
use crate::domain::identity::EventKey;
use crate::domain::ids::{BatchId, RejectionId};

/// What is said of a rejection that is settled because a copy of it was discarded before it came.
const COPY_OF_DISCARDED: &str =
    "the same event from this gateway was discarded before this one came, which is final";

/// A rejection to be tried again.
#[derive(Debug, Clone)]
pub struct Replayable {
    /// Its id.
    pub id: RejectionId,
    /// The life of the stream that its message came in.
    pub incarnation: Uuid,
    /// Sequence of its message.
    pub stream_seq: i64,
    /// Its position in the message, or -1 for the message as a whole.
    pub event_index: i32,
    /// The subject of its message.
    pub subject: String,
    /// The headers of its message, as JSON ...
    pub headers: Option<String>,
    /// ... and what they say of how its body is encoded.
    pub encoding: Option<String>,
    /// Its bytes.
    pub raw: Vec<u8>,
    /// Why it was rejected.
    pub reason: String,
    /// When the stream took its message, or the last one of its batch; where neither was kept, when it was rejected.
    pub received_at: DateTime<Utc>,
    /// When it was rejected first.
    pub rejected_at: DateTime<Utc>,
    /// Whether finance waived the acceptance window.
    pub window_waived: bool,
}

/// A rejection as it was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    /// The rejection.
    pub rejection: RejectionId,
    /// Whether it was judged without the acceptance window.
    pub window_waived: bool,
}

/// What became of a rejection that was tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// It is in the journal now.
    Recorded,
    /// It was in the journal already.
    Duplicate,
    /// A copy of it was discarded before it came.
    Discarded,
    /// It is rejected still, maybe for another reason.
    Rejected {
        /// Stable reason code.
        reason: &'static str,
        /// One sentence for people.
        detail: String,
        /// What it waits for, as a rejection does.
        waits_for: Option<EventKey>,
    },
}

/// A rejection and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The rejection.
    pub rejection: RejectionId,
    /// What became of it.
    pub resolution: Resolution,
}

/// The next open rejections that somebody asked to try again, up to `limit`, and as many whose reason is among `reasons` and
/// that have not been tried with the current catalog; of these those first that were tried with the oldest one, so that none
/// waits for those that stay. Only where they are fewer the same of those whose reason is among `last_reasons`. In the order of
/// their ids; where none is due none is read, however many are open.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn due(
    connection: &mut PgConnection,
    reasons: &[String],
    last_reasons: &[String],
    limit: i64,
) -> Result<Vec<RejectionId>, StoreError> {
    let due = sqlx::query_scalar!(
        // Each part as its index is ordered; of two parts that were one condition neither index would be of use.
        r#"SELECT DISTINCT due.id AS "id!: RejectionId" FROM (
               (SELECT id FROM rejections WHERE resolved_at IS NULL AND replay_requested ORDER BY id LIMIT $2)
               UNION ALL
               (SELECT behind.id
                FROM unnest($1::text[] || $3::text[]) AS waits (reason)
                CROSS JOIN LATERAL (
                    SELECT id, catalog_version FROM rejections
                    WHERE resolved_at IS NULL AND reason = waits.reason
                      AND catalog_version < (SELECT version FROM catalog_version)
                    ORDER BY catalog_version, id LIMIT $2) AS behind
                ORDER BY waits.reason = ANY($3), behind.catalog_version, behind.id LIMIT $2)) AS due
           ORDER BY 1"#,
        reasons,
        limit,
        last_reasons
    )
    .fetch_all(connection)
    .await?;
    Ok(due)
}

/// The first of these rejections, in the order of their ids, that come to `bytes_max` with what was received, and at least one:
/// an event may have megabytes. Those that are settled by now are left out.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn read(
    connection: &mut PgConnection,
    due: &[RejectionId],
    bytes_max: i64,
) -> Result<Vec<Replayable>, StoreError> {
    let ids: Vec<i64> = due.iter().map(|id| id.0).collect();
    let rows = sqlx::query_as!(
        Replayable,
        // The length of the bytes is known without reading them.
        r#"SELECT r.id AS "id: RejectionId", r.incarnation, r.stream_seq, r.event_index, r.subject, r.headers::text AS headers,
                  r.headers #>> '{Content-Encoding,0}' AS encoding, r.raw, r.reason,
                  COALESCE(r.received_at, LEAST(r.rejected_at, b.last_published_at)) AS "received_at!", r.rejected_at,
                  r.window_waived
           FROM (SELECT id, bytes, sum(bytes) OVER (ORDER BY id) AS together
                 FROM (SELECT id, octet_length(raw) + COALESCE(octet_length(headers::text), 0) AS bytes
                       FROM rejections WHERE id = ANY($1) AND resolved_at IS NULL) open) sized
           JOIN rejections r ON r.id = sized.id
           JOIN ingest_batches b ON b.id = r.batch_id
           WHERE sized.together <= $2 OR sized.together = sized.bytes
           ORDER BY r.id"#,
        &ids,
        bytes_max
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Asks for another try of those open rejections that wait for an estimate which the journal holds by now. Looks at up to
/// `limit` of them after one, and returns the last; `None` where none is left, and the next look begins with the first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn request_waiting(
    connection: &mut PgConnection,
    reason: &str,
    after: Option<RejectionId>,
    limit: i64,
) -> Result<Option<RejectionId>, StoreError> {
    let looked_at = sqlx::query!(
        r#"WITH waiting AS (
               SELECT id, batch_id, waits_for FROM rejections
               WHERE resolved_at IS NULL AND reason = $1 AND NOT replay_requested AND id > $2
               ORDER BY id LIMIT $3
           ), asked AS (
               UPDATE rejections r SET replay_requested = true
               FROM waiting w JOIN ingest_batches b ON b.id = w.batch_id
               WHERE r.id = w.id AND r.resolved_at IS NULL
                 -- It was not there then, so it is booked on that date or later: few partitions are looked through.
                 AND (w.waits_for IS NULL
                      OR w.waits_for <> $4 AND EXISTS (
                          SELECT FROM usage_events e
                          WHERE e.event_key = w.waits_for AND e.part = 0 AND e.booked_on >= b.booked_on))
           )
           SELECT max(id) AS "last: RejectionId", count(*) AS "count!" FROM waiting"#,
        reason,
        after.map_or(0, |after| after.0),
        limit,
        NOTHING as EventKey
    )
    .fetch_one(connection)
    .await?;
    Ok(looked_at.last.filter(|_| looked_at.count == limit))
}

/// Locks the rejections; `false` where one of them was resolved in the meantime, or had its window waived: then it was
/// judged by a window that it has no more, and the request would count as answered.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn still_open(connection: &mut PgConnection, tried: &[Tried]) -> Result<bool, StoreError> {
    let ids: Vec<i64> = tried.iter().map(|tried| tried.rejection.0).collect();
    let waived: Vec<bool> = tried.iter().map(|tried| tried.window_waived).collect();
    let open = sqlx::query_scalar!(
        "SELECT r.id FROM rejections r JOIN unnest($1::bigint[], $2::boolean[]) AS tried(id, window_waived) ON tried.id = r.id
         WHERE r.resolved_at IS NULL AND r.window_waived = tried.window_waived
         ORDER BY r.id FOR UPDATE OF r",
        &ids,
        &waived
    )
    .fetch_all(connection)
    .await?;
    Ok(open.len() == ids.len())
}

/// Notes what became of rejections that were tried again with a catalog.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn resolve(
    connection: &mut PgConnection,
    batch: Option<BatchId>,
    catalog_version: i64,
    resolved: &[Resolved],
) -> Result<(), StoreError> {
    for Resolved { rejection, resolution } in resolved {
        let (resolution, reason, detail, waits_for) = match resolution {
            Resolution::Recorded => (Some("recorded"), None, None, None),
            Resolution::Duplicate => (Some("duplicate"), None, None, None),
            Resolution::Discarded => (Some("discarded"), None, Some(COPY_OF_DISCARDED), None),
            Resolution::Rejected { reason, detail, waits_for } => {
                (None, Some(*reason), Some(detail.as_str()), *waits_for)
            }
        };
        sqlx::query!(
            "UPDATE rejections
             SET attempts = attempts + 1, catalog_version = $2, replay_requested = false, resolution = $3,
                 resolved_at = CASE WHEN $3::text IS NULL THEN NULL ELSE now() END,
                 resolved_batch_id = CASE WHEN $3::text IS NULL THEN NULL ELSE $4::bigint END,
                 reason = COALESCE($5, reason), detail = COALESCE($6, detail),
                 waits_for = $7, tried_after_batch = (SELECT max(id) FROM ingest_batches)
             WHERE id = $1",
            *rejection as RejectionId,
            catalog_version,
            resolution,
            batch as Option<BatchId>,
            reason,
            detail,
            waits_for as Option<EventKey>
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
