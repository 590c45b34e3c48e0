//! Posting: adding recorded batches to rollups and tasks, each batch exactly once.
//!
//! Owns: which batches come next, their rows, adding sums, marking batches as posted.
//! Does not own: making sums of rows (`ingest`).
//! Invariants: a batch is marked posted in the transaction that adds it, and half of one in the transaction that adds that, so a
//! crash anywhere leaves each half either added or not.
//! Posters hold the close lock shared: a period is never closed while a batch is half-way into it.
//! One of them works at a time, whichever: all of them add to the same sums and would only wait for each other, with slices as
//! small as what is left of their time.

mod halves;
mod row;
mod sums;

pub use halves::{mark_odd_half, take_odd_half, try_close_lock};
pub use row::{Row, RowKind, each_row};
pub use sums::{RollupSum, TaskSum, Totals, add_to_rollups, add_to_tasks, ranks};

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;

use super::periods::{self, POSTING_WANTED_LOCK};
use super::{StoreError, ensure_affected, journal};
use crate::domain::ids::{BatchId, CustomerId};

/// Held by the poster whose turn it is until its transaction ends.
pub const POSTING_LOCK: i64 = 0x77_61_79_07;
/// Ids between two batches of a slice that may be none of its own: of other posters, or of transactions that are not
/// over. Each row is compared with all of them.
const HOLES_MAX: i64 = 100;

/// A batch that is not posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unposted {
    /// Its id ...
    pub id: BatchId,
    /// ... and when it was recorded: a database that was restored to an older state gives ids again.
    pub recorded_at: DateTime<Utc>,
    /// Rows it added to the journal, reversals of estimates aside.
    pub rows: i32,
}

/// Batches that one posting transaction adds together. Their rows are found by the range of their ids without the holes,
/// because the block range index is read once for a range, but once per id for a list of ids.
#[derive(Debug, Clone, Default)]
pub struct Slice {
    /// The batches, in order.
    pub batches: Vec<Unposted>,
    /// Their booking dates: limits reading to the partitions that hold them.
    pub dates: Vec<NaiveDate>,
    /// Rows they added to the journal.
    pub rows: i64,
    /// Whether one of them is of a re-rate.
    pub rerated: bool,
}

impl Slice {
    /// Whether there are few holes enough with this batch as the next one.
    fn reaches(&self, next: BatchId) -> bool {
        let batches = i64::try_from(self.batches.len()).unwrap_or(i64::MAX);
        self.batches.first().is_none_or(|first| next.0 - first.id.0 - batches <= HOLES_MAX)
    }

    /// Leaves the batches from the first one on that is not wanted to a later slice; one stays whatever it is.
    pub fn keep_while(&mut self, mut wanted: impl FnMut(&Unposted) -> bool) {
        let kept = self.batches.iter().take_while(|batch| wanted(batch)).count();
        self.batches.truncate(kept.max(1));
        self.rows = self.batches.iter().map(|batch| i64::from(batch.rows)).sum();
    }

    /// The batches that are asked for, as slices whose rows can be read.
    pub fn parts(&self, wanted: impl Fn(&Unposted) -> bool) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        for batch in self.batches.iter().filter(|batch| wanted(batch)) {
            match parts.last_mut().filter(|part| part.reaches(batch.id)) {
                Some(part) => part.batches.push(*batch),
                None => {
                    parts.push(Self { batches: vec![*batch], dates: self.dates.clone(), ..Self::default() });
                }
            }
        }
        parts
    }

    /// Ids between the first and the last batch that are none of them.
    fn holes(&self) -> Vec<i64> {
        self.batches.windows(2).flat_map(|pair| pair[0].id.0 + 1..pair[1].id.0).collect()
    }

    fn first(&self) -> i64 {
        self.batches.first().map_or(0, |batch| batch.id.0)
    }

    fn last(&self) -> i64 {
        self.batches.last().map_or(0, |batch| batch.id.0)
    }
}

/// Brings the block range index of the batches up to date, and what the planner knows of it. Otherwise only a vacuum does,
/// and until then every slice would read everything that was recorded since.
///
/// # Errors
/// [`StoreError::Database`], with SQLSTATE 55P03 where a vacuum or another poster is at it.
pub async fn summarize(connection: &mut PgConnection) -> Result<(), StoreError> {
    // A longer wait would make an automatic vacuum give way, again and again.
    sqlx::query!("SET LOCAL lock_timeout = '1ms'").execute(&mut *connection).await?;
    sqlx::query!("SELECT summarize_journal_batches()").fetch_one(&mut *connection).await?;
    sqlx::query!("SELECT refresh_journal_statistics()").fetch_one(connection).await?;
    Ok(())
}

/// What is recorded and not posted yet.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    /// The first batch.
    pub first: BatchId,
    /// Rows of the journal, as far as they are counted.
    pub rows: i64,
    /// Age of the oldest batch in milliseconds.
    pub oldest_ms: i64,
    /// Age of the newest one.
    pub newest_ms: i64,
    /// How long what the newest one holds had waited in the stream.
    pub behind_ms: i64,
    /// Whether somebody waits for it, to close a period.
    pub wanted: bool,
}

/// Counts what waits to be posted; `None` where nothing does.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn waiting(connection: &mut PgConnection) -> Result<Option<Waiting>, StoreError> {
    let waiting = sqlx::query_as!(
        Waiting,
        r#"WITH next AS (
               SELECT id, rows, recorded_at, last_published_at FROM ingest_batches
               WHERE posted_at IS NULL ORDER BY id LIMIT 2000
           ), ages AS (
               SELECT min(id) AS first, sum(rows)::bigint AS rows, min(recorded_at) AS oldest, max(recorded_at) AS newest,
                      -- Of a replay or a re-rate there is no publishing, and nothing waits behind it.
                      (SELECT recorded_at - last_published_at FROM next ORDER BY id DESC LIMIT 1) AS behind
               FROM next
           )
           SELECT first AS "first!: BatchId", rows AS "rows!", (extract(epoch FROM clock_timestamp() - oldest) * 1000)::bigint AS "oldest_ms!",
                  (extract(epoch FROM clock_timestamp() - newest) * 1000)::bigint AS "newest_ms!",
                  COALESCE(extract(epoch FROM behind) * 1000, 0)::bigint AS "behind_ms!",
                  -- Of a poster that asks at the same instant this looks the same, and costs a small slice.
                  NOT pg_try_advisory_xact_lock($1) AS "wanted!"
           FROM ages WHERE rows IS NOT NULL"#,
        POSTING_WANTED_LOCK
    )
    .fetch_optional(connection)
    .await?;
    Ok(waiting)
}

/// Takes the turn to post, and the close lock shared before it, or others would be kept out for as long as this one waits for
/// a closing; `false` where another poster has its turn.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn try_turn(connection: &mut PgConnection) -> Result<bool, StoreError> {
    periods::keep_open(connection).await?;
    let taken = sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock($1) AS "taken!""#, POSTING_LOCK)
        .fetch_one(connection)
        .await?;
    Ok(taken)
}

/// Takes the turn after whoever has it; `false` where that took too long, after which the transaction is over.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn await_turn(connection: &mut PgConnection) -> Result<bool, StoreError> {
    match lock_turn(connection).await {
        Err(error) if error.lock_timed_out() => Ok(false),
        taken => taken.map(|()| true),
    }
}

async fn lock_turn(connection: &mut PgConnection) -> Result<(), StoreError> {
    // Before the close lock, or a closing would wait for this one's turn as well as for the slice after it.
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", POSTING_LOCK).fetch_one(&mut *connection).await?;
    periods::keep_open(connection).await
}

/// Locks the next batches to post, up to about `rows_max` rows; batches that a poster of a release without turns holds are
/// passed over. Empty where there is nothing to do. The caller has the turn.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn next_slice(connection: &mut PgConnection, rows_max: i64) -> Result<Slice, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: BatchId", recorded_at, rows, booked_on, origin = 'rerate' AS "rerated!" FROM ingest_batches
           WHERE posted_at IS NULL ORDER BY id LIMIT 2000
           -- Keeps every other poster out, but not the other half of this slice, whose reasons refer to the batches.
           FOR NO KEY UPDATE SKIP LOCKED"#
    )
    .fetch_all(connection)
    .await?;
    let mut slice = Slice::default();
    for row in rows {
        if slice.rows > 0 && slice.rows + i64::from(row.rows) > rows_max || !slice.reaches(row.id) {
            break;
        }
        slice.rows += i64::from(row.rows);
        slice.rerated |= row.rerated;
        slice.batches.push(Unposted { id: row.id, recorded_at: row.recorded_at, rows: row.rows });
        if !slice.dates.contains(&row.booked_on) {
            slice.dates.push(row.booked_on);
        }
    }
    Ok(slice)
}

/// Refuses a slice with rows in a partition that is not part of the journal: they cannot be seen, and adding what can be
/// would lose them. Asked before and after adding: a concurrent detach may have begun in between.
///
/// # Errors
/// [`StoreError::NoPartition`]; [`StoreError::Database`].
pub async fn require_partitions(connection: &mut PgConnection, slice: &Slice) -> Result<(), StoreError> {
    for day in &slice.dates {
        if journal::partition(connection, *day).await?.is_none() {
            return Err(StoreError::NoPartition(*day));
        }
    }
    Ok(())
}

/// SQLSTATE of a row that lacks what it must have.
const NOT_NULL_VIOLATION: &str = "23502";

/// Whether adding failed because usage, or the outcome of a task, lies in no billing period yet.
pub fn lacks_period(error: &StoreError) -> bool {
    error.sqlstate().as_deref() == Some(NOT_NULL_VIOLATION)
        || error.constraint() == Some("tasks_outcome_booked")
}

/// A customer's day with usage that lies in no billing period yet.
#[derive(Debug, Clone)]
pub struct MissingPeriod {
    /// The customer.
    pub customer: CustomerId,
    /// The customer's zone.
    pub time_zone: String,
    /// The day its periods start on.
    pub anchor_day: i16,
    /// An instant that no period holds.
    pub at: DateTime<Utc>,
}

/// Usage that lies in no billing period yet: one instant per customer and hour of its zone: in some zones a period starts
/// within a UTC hour.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn missing_periods(
    connection: &mut PgConnection,
    used: &[(CustomerId, DateTime<Utc>)],
) -> Result<Vec<MissingPeriod>, StoreError> {
    let (customers, instants): (Vec<i64>, Vec<DateTime<Utc>>) =
        used.iter().map(|(customer, at)| (customer.0, *at)).unzip();
    let rows = sqlx::query_as!(
        MissingPeriod,
        r#"SELECT u.customer_id AS "customer!: CustomerId", c.time_zone, c.anchor_day, min(u.at) AS "at!"
           FROM unnest($1::bigint[], $2::timestamptz[]) AS u (customer_id, at)
           JOIN customers c ON c.id = u.customer_id
           WHERE NOT EXISTS (SELECT 1 FROM billing_periods p
                             WHERE p.customer_id = u.customer_id AND p.start_at <= u.at AND u.at < p.end_at)
           GROUP BY u.customer_id, c.time_zone, c.anchor_day, date_trunc('hour', u.at, c.time_zone)
           -- Posters that make the same periods wait for each other: all in one order, or each for the other.
           ORDER BY u.customer_id, min(u.at)"#,
        &customers,
        &instants
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Keeps which re-rates are in the adjustments that the slice adds to a period, for the lines that say why; of customers with
/// odd ids only, where that half is added by itself. Those that are kept already stay.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn add_reasons(
    connection: &mut PgConnection,
    slice: &Slice,
    odd_only: bool,
) -> Result<(), StoreError> {
    if !slice.rerated {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO adjustment_reasons (customer_id, booked_period, service_period, sell_price_id, batch_id, booked_on,
             reason)
         SELECT DISTINCT e.customer_id, GREATEST(p.start_at, COALESCE(c.closed_through, p.start_at)), p.start_at,
                e.sell_price_id, e.batch_id, e.booked_on, r.reason
         FROM usage_events e
         JOIN rerates r ON r.batch_id = e.batch_id
         JOIN customers c ON c.id = e.customer_id
         JOIN billing_periods p ON p.customer_id = e.customer_id
                               AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at
         WHERE e.batch_id BETWEEN $1 AND $2 AND e.batch_id <> ALL($3) AND e.booked_on = ANY($4) AND e.restates IS NOT NULL
               AND (NOT $5 OR e.customer_id % 2 = 1)
         ON CONFLICT DO NOTHING",
        slice.first(),
        slice.last(),
        &slice.holes(),
        &slice.dates,
        odd_only
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Marks the slice posted.
///
/// # Errors
/// [`StoreError::RowsAffected`] where one of its batches was posted already, which the locks make impossible.
pub async fn mark_posted(connection: &mut PgConnection, slice: &Slice) -> Result<(), StoreError> {
    halves::forget_halves(connection, slice).await?;
    let result = sqlx::query!(
        // How many periods were closed before says for ever which period its late usage was booked to.
        "UPDATE ingest_batches SET posted_at = now(),
             posted_closing = (SELECT COALESCE(max(closing), 0) FROM billing_periods)
         WHERE id = ANY($1) AND posted_at IS NULL",
        &ids(slice)
    )
    .execute(connection)
    .await?;
    ensure_affected("marking batches as posted", &result, slice.batches.len() as u64)
}

fn ids(slice: &Slice) -> Vec<i64> {
    slice.batches.iter().map(|batch| batch.id.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_knows_the_ids_between_its_batches_and_ends_where_they_are_many() {
        let batch = |id| Unposted { id: BatchId(id), recorded_at: DateTime::UNIX_EPOCH, rows: 1 };
        let mut slice = Slice::default();
        for next in [7, 8, 11] {
            assert!(slice.reaches(BatchId(next)));
            slice.batches.push(batch(next));
        }
        assert_eq!((slice.first(), slice.last(), slice.holes().as_slice()), (7, 11, [9, 10].as_slice()));
        assert!(!slice.reaches(BatchId(11 + HOLES_MAX)), "{HOLES_MAX} with the two of before are too many");
        assert!(!slice.reaches(BatchId(i64::MAX)));
        assert_eq!(slice.holes(), [9, 10], "what is not reached leaves no holes");
        assert!(slice.reaches(BatchId(11 + HOLES_MAX - 1)));
        let parts = slice.parts(|batch| batch.id != BatchId(8));
        assert_eq!(parts.len(), 1);
        assert_eq!((parts[0].first(), parts[0].last(), parts[0].holes()), (7, 11, vec![8, 9, 10]));
        let mut few = slice.clone();
        few.keep_while(|batch| batch.id != BatchId(11));
        assert_eq!((few.last(), few.rows), (8, 2));
        few.keep_while(|_| false);
        assert_eq!((few.last(), few.rows), (7, 1));
        slice.batches.push(batch(1_000));
        assert_eq!(slice.parts(|_| true).iter().map(Slice::first).collect::<Vec<_>>(), [7, 1_000]);
    }
}
