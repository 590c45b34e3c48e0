//! Which stream sequences the ledger accounts for.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreError;
use crate::domain::ids::BatchId;

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
        // The first and the last of the index: whether there is any less or greater is asked of every batch where the planner
        // takes some of them for likely to be.
        r#"SELECT COALESCE((SELECT incarnation FROM ingest_batches
                            WHERE incarnation IS NOT NULL AND NOT isempty(sequences) ORDER BY incarnation LIMIT 1) < $1, false)
               OR COALESCE((SELECT incarnation FROM ingest_batches
                            WHERE incarnation IS NOT NULL AND NOT isempty(sequences)
                            ORDER BY incarnation DESC LIMIT 1) > $1, false) AS "others!""#,
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

/// Sequences `[from, to)` of one life of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceRange {
    /// Which life of the stream.
    pub incarnation: Uuid,
    /// The first sequence.
    pub from: i64,
    /// The first sequence after.
    pub to: i64,
}

/// The stream sequences that batches account for, as few ranges as possible, in order. Reads every batch there is.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn sequences_covered(connection: &mut PgConnection) -> Result<Vec<SequenceRange>, StoreError> {
    let ranges = sqlx::query_as!(
        SequenceRange,
        r#"SELECT incarnation AS "incarnation!", lower(range) AS "from!", upper(range) AS "to!"
           FROM (SELECT incarnation, unnest(range_agg(sequences)) AS range FROM ingest_batches
                 WHERE incarnation IS NOT NULL GROUP BY incarnation) AS covered
           ORDER BY incarnation, lower(range)"#
    )
    .fetch_all(connection)
    .await?;
    Ok(ranges)
}

/// Sequences of batches up to one, each of them posted or waited for.
#[derive(Debug, Clone)]
pub struct Covered {
    /// No batch up to this one is left out.
    through: BatchId,
    ranges: Vec<SequenceRange>,
}

/// What a closing can look up before it keeps posting out: the sequences of all batches but the latest, by the summary. A
/// batch among them that is not posted is visible to the caller's next statement, who waits until it is.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn covered_before(connection: &mut PgConnection) -> Result<Covered, StoreError> {
    // Up to the batch before the first that is not posted, or that an older one may still follow, for the reason of
    // [`summarize`]. To one that is there: an id between them may be of a batch that is being recorded and comes later.
    let through = sqlx::query_scalar!(
        r#"SELECT COALESCE(max(id), 0) AS "through!: BatchId" FROM ingest_batches
           WHERE id < COALESCE(
               LEAST((SELECT min(id) FROM ingest_batches WHERE posted_at IS NULL),
                     (SELECT min(id) FROM ingest_batches
                      WHERE id > (SELECT batch_id FROM accounted_through)
                        AND recorded_at >= now() - interval '10 minutes')),
               9223372036854775807)"#
    )
    .fetch_one(&mut *connection)
    .await?;
    let ranges = sqlx::query_as!(
        SequenceRange,
        r#"SELECT incarnation AS "incarnation!", lower(range) AS "from!", upper(range) AS "to!"
           FROM (SELECT incarnation, unnest(range_agg(sequences)) AS range
                 FROM (SELECT incarnation, sequences FROM accounted_sequences
                       UNION ALL
                       SELECT incarnation, sequences FROM ingest_batches
                       WHERE incarnation IS NOT NULL
                         AND id > (SELECT batch_id FROM accounted_through) AND id <= $1) AS known
                 GROUP BY incarnation) AS covered"#,
        through.0
    )
    .fetch_all(connection)
    .await?;
    Ok(Covered { through, ranges })
}

/// The stream sequences of the posted batches, as few ranges as possible, in order: what was looked up `before`, and what
/// is posted since. Reads the latest batches only.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn sequences_posted(
    connection: &mut PgConnection,
    before: &Covered,
) -> Result<Vec<SequenceRange>, StoreError> {
    let incarnations: Vec<Uuid> = before.ranges.iter().map(|range| range.incarnation).collect();
    let from: Vec<i64> = before.ranges.iter().map(|range| range.from).collect();
    let to: Vec<i64> = before.ranges.iter().map(|range| range.to).collect();
    let ranges = sqlx::query_as!(
        SequenceRange,
        r#"SELECT incarnation AS "incarnation!", lower(range) AS "from!", upper(range) AS "to!"
           FROM (SELECT incarnation, unnest(range_agg(sequences)) AS range
                 FROM (SELECT incarnation, int8multirange(int8range(lower, upper)) AS sequences
                       FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS before (incarnation, lower, upper)
                       UNION ALL
                       SELECT incarnation, sequences FROM ingest_batches
                       WHERE incarnation IS NOT NULL AND posted_at IS NOT NULL AND id > $4) AS posted
                 GROUP BY incarnation) AS covered
           ORDER BY incarnation, lower(range)"#,
        &incarnations,
        &from,
        &to,
        before.through.0
    )
    .fetch_all(connection)
    .await?;
    Ok(ranges)
}

/// The sequences up to the highest covered one that no range covers; counting starts at 1.
pub fn gaps(covered: &[SequenceRange]) -> Vec<SequenceRange> {
    let mut gaps = Vec::new();
    let mut next: Option<(Uuid, i64)> = None;
    for range in covered {
        let expected =
            next.filter(|(incarnation, _)| *incarnation == range.incarnation).map_or(1, |(_, to)| to);
        if expected < range.from {
            gaps.push(SequenceRange { incarnation: range.incarnation, from: expected, to: range.from });
        }
        next = Some((range.incarnation, range.to));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_lie_between_the_ranges_of_one_incarnation() {
        let range =
            |incarnation, from, to| SequenceRange { incarnation: Uuid::from_u128(incarnation), from, to };
        let covered = [range(1, 1, 5), range(1, 7, 8), range(2, 3, 4)];
        assert_eq!(gaps(&covered), [range(1, 5, 7), range(2, 1, 3)]);
        assert_eq!(gaps(&covered[..1]), []);
        assert_eq!(gaps(&[]), []);
    }
}
