//! Months of the journal: which may be dropped, and dropping them.
//!
//! What a month adds to the sums is archived by its whole keys in the transaction that drops its partition, so sums equal
//! journal plus archive at any time. Batches, rejections and invoices stay.

use chrono::{DateTime, Months, NaiveDate, NaiveTime, TimeDelta, Utc};
use sqlx::{Acquire, PgConnection};

use super::journal::{JOURNAL_LOCK, dedup_horizon, horizon_passes};
use super::{StoreError, catalog};

/// Advisory lock of dropping: one at a time.
const PARTITIONS_LOCK: i64 = 0x77_61_79_04;

/// A month of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Month {
    /// Its first day.
    pub first_day: NaiveDate,
    /// Rows, as the statistics of the database estimate them.
    pub rows: i64,
    /// What its partition takes on disk, with its index, in bytes.
    pub bytes: i64,
    /// Batches booked in it.
    pub batches: i64,
    /// What the payloads of these batches take, in bytes.
    pub payload_bytes: i64,
}

impl Month {
    /// The first day after it.
    pub fn end(&self) -> NaiveDate {
        month_end(self.first_day)
    }
}

fn month_end(first_day: NaiveDate) -> NaiveDate {
    first_day.checked_add_months(Months::new(1)).unwrap_or(NaiveDate::MAX)
}

/// Why a month may not be dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// Copies of its events may still come.
    #[error(
        "it reaches into the dedup horizon, which begins {horizon}: copies of its events could not be told"
    )]
    Horizon {
        /// The first day of the horizon.
        horizon: NaiveDate,
    },
    /// It holds what is in no sum yet.
    #[error("{0} of its batches are not posted")]
    Unposted(i64),
    /// Its usage or outcomes are booked to a period without an invoice.
    #[error("{customers} customers have usage of it in a period that is not closed; close what is due first")]
    OpenPeriods {
        /// How many.
        customers: i64,
    },
    /// It holds estimates that a correction may name.
    #[error(
        "{0} estimates in it were never corrected; a correction could not be booked any more (--estimates-stand drops them all the same)"
    )]
    OpenEstimates(i64),
    /// Somebody may send its events again.
    #[error("gateway `{gateway}` may send events from {from} on; end its backfill first")]
    Backfill {
        /// The gateway.
        gateway: String,
        /// From when on.
        from: DateTime<Utc>,
    },
    /// What was rejected could not be told from what is recorded, and would never be billed.
    #[error(
        "{0} open rejections are, or may be, usage or copies of it; have them recorded or discard them first"
    )]
    OpenRejections(i64),
}

/// The months that have a partition, oldest first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn months(connection: &mut PgConnection) -> Result<Vec<Month>, StoreError> {
    let months = sqlx::query_as!(
        Month,
        r#"WITH partitions AS (
               SELECT c.oid, GREATEST(c.reltuples, pg_stat_get_live_tuples(c.oid))::bigint AS rows,
                      substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM \(''([0-9-]+)')::date AS first_day
               FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'usage_events'::regclass
           ), booked AS (
               SELECT date_trunc('month', b.booked_on::timestamp)::date AS first_day, count(*) AS batches,
                      COALESCE(sum(octet_length(p.body)), 0)::bigint AS payload_bytes
               FROM ingest_batches b LEFT JOIN batch_payloads p ON p.batch_id = b.id GROUP BY 1
           )
           SELECT p.first_day AS "first_day!", GREATEST(p.rows, 0) AS "rows!", pg_total_relation_size(p.oid) AS "bytes!",
                  COALESCE(b.batches, 0) AS "batches!", COALESCE(b.payload_bytes, 0) AS "payload_bytes!"
           FROM partitions p LEFT JOIN booked b USING (first_day) ORDER BY p.first_day"#
    )
    .fetch_all(connection)
    .await?;
    Ok(months)
}

/// Booking dates before this are archived; `None` where none is.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn archived_through(connection: &mut PgConnection) -> Result<Option<NaiveDate>, StoreError> {
    Ok(sqlx::query_scalar!("SELECT archived_through()").fetch_one(connection).await?)
}

/// What keeps a month from being dropped; usage was at most so far `ahead` of the date that it is booked on. The dearer
/// questions, which read the month, are asked only where the others let it go.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn obstacles(
    connection: &mut PgConnection,
    first_day: NaiveDate,
    ahead: TimeDelta,
) -> Result<Vec<Obstacle>, StoreError> {
    let end = month_end(first_day);
    let mut obstacles = Vec::new();
    let today = super::journal::booking_date(connection).await?.unwrap_or(first_day);
    let horizon = dedup_horizon(today);
    if end > horizon {
        obstacles.push(Obstacle::Horizon { horizon });
    }
    let unposted = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM ingest_batches
           WHERE posted_at IS NULL AND booked_on >= $1 AND booked_on < $2"#,
        first_day,
        end
    )
    .fetch_one(&mut *connection)
    .await?;
    if unposted > 0 {
        obstacles.push(Obstacle::Unposted(unposted));
    }
    let backfills = sqlx::query!(
        r#"SELECT name, backfill_from AS "from!" FROM gateways
           WHERE backfill_from < $1::date::timestamp AT TIME ZONE 'UTC' ORDER BY name"#,
        end
    )
    .fetch_all(&mut *connection)
    .await?;
    obstacles
        .extend(backfills.into_iter().map(|row| Obstacle::Backfill { gateway: row.name, from: row.from }));
    let rejections = open_rejections(connection, end, ahead).await?;
    if rejections > 0 {
        obstacles.push(Obstacle::OpenRejections(rejections));
    }
    if obstacles.is_empty() {
        obstacles.extend(within(connection, first_day, end).await?);
    }
    Ok(obstacles)
}

/// How many open rejections may be usage of a month that ends then, or copies of it under other times: recorded later, they
/// could not be told from what is recorded, so once the month is dropped the first are refused for good, and the second
/// would be billed again. What is of archived months already is refused anyway.
async fn open_rejections(
    connection: &mut PgConnection,
    end: NaiveDate,
    ahead: TimeDelta,
) -> Result<i64, StoreError> {
    let start = |day: NaiveDate| day.and_time(NaiveTime::MIN).and_utc();
    let ahead_of = |day: NaiveDate| start(day).checked_add_signed(ahead).unwrap_or(DateTime::<Utc>::MAX_UTC);
    let from = archived_through(connection).await?.map(ahead_of);
    let rejections = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM rejections
           WHERE resolved_at IS NULL AND ($1::timestamptz IS NULL OR event_time IS NULL OR event_time >= $1)
             AND (event_time < $2
                  -- Whatever its time is, and where nobody can read it: as long as copies are told from what was booked then.
                  OR received_at < $3
                  -- An earlier release kept neither time.
                  OR received_at IS NULL)"#,
        from,
        ahead_of(end),
        start(horizon_passes(end))
    )
    .fetch_one(connection)
    .await?;
    Ok(rejections)
}

/// What of a month's own rows keeps it from being dropped.
async fn within(
    connection: &mut PgConnection,
    first_day: NaiveDate,
    end: NaiveDate,
) -> Result<Vec<Obstacle>, StoreError> {
    let mut obstacles = Vec::new();
    let customers = sqlx::query_scalar!(
        r#"WITH booked AS (
               SELECT customer_id, booked_period AS period FROM folded_rollups($1, $2)
               UNION SELECT customer_id, outcome_period FROM folded_outcomes($1, $2)
           )
           SELECT count(DISTINCT b.customer_id) AS "count!" FROM booked b
           LEFT JOIN billing_periods p ON p.customer_id = b.customer_id AND p.start_at = b.period
           WHERE p.state IS DISTINCT FROM 'closed'"#,
        first_day,
        end
    )
    .fetch_one(&mut *connection)
    .await?;
    if customers > 0 {
        obstacles.push(Obstacle::OpenPeriods { customers });
    }
    let estimates = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM usage_events e
           WHERE e.booked_on >= $1 AND e.booked_on < $2 AND e.estimated AND e.corrects_key IS NULL AND e.part = 0
             AND e.kind = 'usage' AND NOT EXISTS (SELECT FROM corrections c WHERE c.original_key = e.event_key)"#,
        first_day,
        end
    )
    .fetch_one(connection)
    .await?;
    if estimates > 0 {
        obstacles.push(Obstacle::OpenEstimates(estimates));
    }
    Ok(obstacles)
}

/// Lets one drop work at a time, until the transaction ends.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn lock(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", PARTITIONS_LOCK).fetch_one(connection).await?;
    Ok(())
}

/// Keeps what a month adds to the sums, and removes what was received in it; returns its rows in the journal. The caller holds
/// the lock of [`lock`] and has looked at its [`obstacles`].
///
/// # Errors
/// [`StoreError`].
pub async fn archive(connection: &mut PgConnection, first_day: NaiveDate) -> Result<i64, StoreError> {
    let end = month_end(first_day);
    let rows = sqlx::query_scalar!(
        r#"INSERT INTO archived_months (month, batches, rows)
           SELECT $1, (SELECT count(*) FROM ingest_batches WHERE booked_on >= $1 AND booked_on < $2),
                  (SELECT count(*) FROM usage_events
                   WHERE booked_on >= $1 AND booked_on < $2 AND kind <> 'reversal')
           RETURNING rows"#,
        first_day,
        end
    )
    .fetch_one(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO archived_rollups (month, customer_id, booked_period, service_period, hour, cost_price_id,
             sell_price_id, project, task_type, kind, events, input, cache_read, cache_write_5m, cache_write_1h, output,
             reasoning, rare, cost, charge)
         SELECT $1, f.* FROM folded_rollups($1, $2) f",
        first_day,
        end
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO archived_tasks (month, customer_id, task_id, task_type, parent, first_event_at, last_event_at, calls,
             input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, rare, cost, charge, models, first_batch,
             last_batch, first_booked_on, last_booked_on)
         SELECT $1, f.* FROM folded_tasks($1, $2) f",
        first_day,
        end
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO archived_outcomes (month, customer_id, task_id, outcome, ended_at, outcome_period, posted_closing)
         SELECT $1, f.* FROM folded_outcomes($1, $2) f",
        first_day,
        end
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO archived_reasons (month, customer_id, booked_period, service_period, sell_price_id, batch_id,
             booked_on, reason)
         SELECT $1, f.* FROM folded_reasons($1, $2) f",
        first_day,
        end
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "DELETE FROM batch_payloads p USING ingest_batches b
         WHERE b.id = p.batch_id AND b.booked_on >= $1 AND b.booked_on < $2",
        first_day,
        end
    )
    .execute(connection)
    .await?;
    Ok(rows)
}

/// Drops the partition of an archived month; `false` where somebody read or wrote the journal for longer than a second, and
/// it may be tried again in the same transaction. Recording waits that long at most, and only from here to the commit.
///
/// # Errors
/// [`StoreError`].
pub async fn drop_partition(connection: &mut PgConnection, first_day: NaiveDate) -> Result<bool, StoreError> {
    // A savepoint: what was archived stays where the locks are not to be had, and the locks that were go again.
    let mut attempt = connection.begin().await?;
    match dropped(&mut attempt, first_day).await {
        Ok(()) => {
            attempt.commit().await?;
            Ok(true)
        }
        Err(error) if error.lock_timed_out() => {
            attempt.rollback().await?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

async fn dropped(connection: &mut PgConnection, first_day: NaiveDate) -> Result<(), StoreError> {
    sqlx::query!("SET LOCAL lock_timeout = '1s'").execute(&mut *connection).await?;
    // Those that come see the new version of the catalog. It goes before the journal's lock, as where recording holds it.
    catalog::bump(connection).await?;
    // Writers that have looked at the partitions are done then.
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", JOURNAL_LOCK).fetch_one(&mut *connection).await?;
    sqlx::query!("SELECT drop_journal_partition($1)", first_day).fetch_one(&mut *connection).await?;
    Ok(())
}
