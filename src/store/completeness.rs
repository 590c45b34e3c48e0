//! Which stream sequences the ledger accounts for.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreError;

/// Consecutive stream sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequences {
    /// The first of them.
    pub from: i64,
    /// The one after the last of them.
    pub to: i64,
}

impl Sequences {
    /// How many they are.
    pub const fn count(self) -> i64 {
        self.to - self.from
    }
}

/// Sequences that no batch accounts for.
#[derive(Debug, Clone, Default)]
pub struct Unaccounted {
    /// How many they are.
    pub count: i64,
    /// The first of them, in order.
    pub first: Vec<Sequences>,
}

/// Sequences from 1 to `up_to` of a life of the stream that no batch accounts for, except those in `but`; the first
/// `limit` runs of them.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn unaccounted(
    connection: &mut PgConnection,
    incarnation: Uuid,
    up_to: i64,
    but: &[Sequences],
    limit: i64,
) -> Result<Unaccounted, StoreError> {
    let from: Vec<i64> = but.iter().map(|sequences| sequences.from).collect();
    let to: Vec<i64> = but.iter().map(|sequences| sequences.to).collect();
    let holes = sqlx::query!(
        r#"WITH accounted AS (
               SELECT COALESCE(range_agg(sequences_of_batch), '{}') AS sequences
               FROM (SELECT unnest(sequences) AS sequences_of_batch FROM accounted_sequences WHERE incarnation = $1
                     UNION ALL
                     SELECT unnest(sequences) FROM ingest_batches
                     WHERE incarnation = $1 AND id > (SELECT batch_id FROM accounted_through)
                     UNION ALL
                     SELECT int8range(lower, upper) FROM unnest($3::bigint[], $4::bigint[]) AS but (lower, upper)
                    ) AS ranges
           )
           SELECT lower(hole) AS "from!", upper(hole) AS "to!",
                  SUM(upper(hole) - lower(hole)) OVER ()::bigint AS "count!"
           FROM accounted, unnest(int8multirange(int8range(1, $2::bigint + 1)) - accounted.sequences) AS hole
           ORDER BY 1 LIMIT $5"#,
        incarnation,
        up_to,
        &from,
        &to,
        limit
    )
    .fetch_all(connection)
    .await?;
    let count = holes.first().map_or(0, |hole| hole.count);
    let first = holes.into_iter().map(|hole| Sequences { from: hole.from, to: hole.to }).collect();
    Ok(Unaccounted { count, first })
}

/// Adds batches to the summary that [`unaccounted`] reads, at most so many; returns how many. A batch counts once no
/// transaction can be left that began as long ago: what is written later has a higher number.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn summarize(connection: &mut PgConnection, most: i64) -> Result<i64, StoreError> {
    let through = sqlx::query_scalar!("SELECT batch_id FROM accounted_through FOR UPDATE SKIP LOCKED")
        .fetch_optional(&mut *connection)
        .await?;
    // Another process is at it.
    let Some(through) = through else { return Ok(0) };
    let added = sqlx::query_scalar!(
        r#"WITH young AS (
               SELECT min(id) AS id FROM ingest_batches WHERE id > $1 AND recorded_at >= now() - interval '10 minutes'
           ), due AS MATERIALIZED (
               SELECT id, incarnation, sequences FROM ingest_batches
               WHERE id > $1 AND recorded_at < now() - interval '10 minutes'
                     AND id < COALESCE((SELECT id FROM young), 9223372036854775807)
               ORDER BY id LIMIT $2
           ), added AS (
               INSERT INTO accounted_sequences AS a (incarnation, sequences)
               SELECT incarnation, range_agg(range) FROM due, unnest(sequences) AS range
               WHERE incarnation IS NOT NULL GROUP BY incarnation ORDER BY incarnation
               ON CONFLICT (incarnation) DO UPDATE SET sequences = a.sequences + EXCLUDED.sequences
           ), moved AS (
               UPDATE accounted_through SET batch_id = (SELECT max(id) FROM due) WHERE EXISTS (SELECT FROM due)
           )
           SELECT count(*) AS "added!" FROM due"#,
        through,
        most
    )
    .fetch_one(connection)
    .await?;
    Ok(added)
}

/// A message that a batch accounts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accounted {
    /// Its sequence.
    pub sequence: i64,
    /// When the stream took it; batches of earlier releases do not say.
    pub published_at: Option<DateTime<Utc>>,
}

/// The last message of a life of the stream that a batch accounts for.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn last(connection: &mut PgConnection, incarnation: Uuid) -> Result<Option<Accounted>, StoreError> {
    let last = sqlx::query_as!(
        Accounted,
        r#"SELECT upper(sequences) - 1 AS "sequence!", last_published_at AS published_at
           FROM ingest_batches
           WHERE incarnation = $1 AND incarnation IS NOT NULL AND NOT isempty(sequences)
           ORDER BY upper(sequences) DESC LIMIT 1"#,
        incarnation
    )
    .fetch_optional(connection)
    .await?;
    Ok(last)
}

/// Whether the ledger has batches of other lives of the stream, or of another stream.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn other_lives(connection: &mut PgConnection, incarnation: Uuid) -> Result<bool, StoreError> {
    let others = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM ingest_batches
                          WHERE incarnation < $1 AND incarnation IS NOT NULL AND NOT isempty(sequences))
               OR EXISTS (SELECT FROM ingest_batches
                          WHERE incarnation > $1 AND incarnation IS NOT NULL AND NOT isempty(sequences)) AS "others!""#,
        incarnation
    )
    .fetch_one(connection)
    .await?;
    Ok(others)
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
