//! Billing periods: kept once computed, closed in order.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;

use super::{StoreError, ensure_affected};
use crate::domain::ids::{BatchId, CustomerId};
use crate::domain::period::{BillingCalendar, Period};

/// Advisory lock between posting (shared) and closing (exclusive): which period usage is booked to is decided by the
/// poster, so no period may close while a batch is half-way into it.
pub const CLOSE_LOCK: i64 = 0x77_61_79_02;
/// Advisory lock that a closing holds shared while it waits for posting: a poster that cannot have it for itself alone posts
/// what waits without gathering more.
pub(super) const POSTING_WANTED_LOCK: i64 = 0x77_61_79_05;

/// A customer as billing needs it.
#[derive(Debug, Clone)]
pub struct BilledCustomer {
    /// Its key.
    pub id: CustomerId,
    /// How others know it.
    pub external_id: String,
    /// Its name.
    pub name: String,
    /// Its zone.
    pub time_zone: String,
    /// The day its periods start on.
    pub anchor_day: i16,
    /// End of its last closed period.
    pub closed_through: Option<DateTime<Utc>>,
}

impl BilledCustomer {
    /// Its calendar.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`] where the stored zone or day is none.
    pub fn calendar(&self) -> Result<BillingCalendar, StoreError> {
        BillingCalendar::new(&self.time_zone, self.anchor_day).map_err(|error| StoreError::Inconsistent {
            table: "customers",
            column: "time_zone",
            detail: error.to_string(),
        })
    }
}

/// A period that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPeriod {
    /// From when to when.
    pub period: Period,
    /// When it was closed; `None` is open.
    pub closed_at: Option<DateTime<Utc>>,
}

/// The customer, or `None` where the scope has none of that key.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn customer(
    connection: &mut PgConnection,
    id: CustomerId,
) -> Result<Option<BilledCustomer>, StoreError> {
    let customer = sqlx::query_as!(
        BilledCustomer,
        r#"SELECT id AS "id: CustomerId", external_id, name, time_zone, anchor_day, closed_through
           FROM customers WHERE id = $1"#,
        id.0
    )
    .fetch_optional(connection)
    .await?;
    Ok(customer)
}

/// When the customer was made, or is first rated by price books, whichever is earlier: no usage of it can lie before.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn beginning(
    connection: &mut PgConnection,
    customer: CustomerId,
) -> Result<DateTime<Utc>, StoreError> {
    let beginning = sqlx::query_scalar!(
        r#"SELECT LEAST(created_at, (SELECT min(valid_from) FROM book_assignments WHERE customer_id = $1)) AS "beginning!"
           FROM customers WHERE id = $1"#,
        customer.0
    )
    .fetch_one(connection)
    .await?;
    Ok(beginning)
}

/// All periods of a customer, oldest first.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    connection: &mut PgConnection,
    customer: CustomerId,
) -> Result<Vec<StoredPeriod>, StoreError> {
    let rows = sqlx::query!(
        "SELECT start_at, end_at, closed_at FROM billing_periods WHERE customer_id = $1 ORDER BY start_at",
        customer.0
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| stored(row.start_at, row.end_at, row.closed_at)).collect())
}

/// The period that holds an instant, if it exists already.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn holding(
    connection: &mut PgConnection,
    customer: CustomerId,
    at: DateTime<Utc>,
) -> Result<Option<StoredPeriod>, StoreError> {
    let row = sqlx::query!(
        "SELECT start_at, end_at, closed_at FROM billing_periods
         WHERE customer_id = $1 AND start_at <= $2 AND $2 < end_at",
        customer.0,
        at
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| stored(row.start_at, row.end_at, row.closed_at)))
}

/// When the customer's first period was closed: those before it were passed over then.
///
/// # Errors
/// [`StoreError::Inconsistent`] where none is closed, which the customer's closed time contradicts.
pub async fn first_closed_at(
    connection: &mut PgConnection,
    customer: CustomerId,
) -> Result<DateTime<Utc>, StoreError> {
    let first = sqlx::query_scalar!(
        r#"SELECT closed_at AS "closed_at!" FROM billing_periods
           WHERE customer_id = $1 AND state = 'closed' ORDER BY start_at LIMIT 1"#,
        customer.0
    )
    .fetch_optional(connection)
    .await?;
    first.ok_or_else(|| StoreError::Inconsistent {
        table: "customers",
        column: "closed_through",
        detail: format!("customer {customer} has no closed period"),
    })
}

/// The customer's period to close next, if any exists: the oldest open one that is not before the closed time (late
/// usage makes periods exist that lie before it; they stay without an invoice).
///
/// # Errors
/// [`StoreError::Database`].
pub async fn next_to_close(
    connection: &mut PgConnection,
    customer: CustomerId,
) -> Result<Option<Period>, StoreError> {
    let row = sqlx::query!(
        "SELECT start_at, end_at FROM billing_periods p JOIN customers c ON c.id = p.customer_id
         WHERE p.customer_id = $1 AND p.state = 'open' AND p.start_at >= COALESCE(c.closed_through, p.start_at)
         ORDER BY start_at LIMIT 1",
        customer.0
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Period { start: row.start_at, end: row.end_at }))
}

/// Customers whose next period to close ended at or before `ended_by`, with that period.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn due(
    connection: &mut PgConnection,
    ended_by: DateTime<Utc>,
) -> Result<Vec<(CustomerId, Period)>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT DISTINCT ON (customer_id) customer_id AS "customer: CustomerId", start_at, end_at
           FROM billing_periods p JOIN customers c ON c.id = p.customer_id
           WHERE p.state = 'open' AND end_at <= $1 AND p.start_at >= COALESCE(c.closed_through, p.start_at)
           ORDER BY customer_id, start_at"#,
        ended_by
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.customer, Period { start: row.start_at, end: row.end_at })).collect())
}

/// Makes the period exist, cut where a period that exists already holds part of it: after a change of the calendar the
/// first new period begins where the last old one ends.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn ensure(
    connection: &mut PgConnection,
    customer: CustomerId,
    period: Period,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO billing_periods (customer_id, start_at, end_at)
         SELECT $1, cut.start_at, cut.end_at
         FROM (SELECT GREATEST($2, (SELECT max(end_at) FROM billing_periods
                                    WHERE customer_id = $1 AND start_at <= $2 AND end_at > $2)) AS start_at,
                      LEAST($3, (SELECT min(start_at) FROM billing_periods
                                 WHERE customer_id = $1 AND start_at > $2 AND start_at < $3)) AS end_at) AS cut
         WHERE cut.start_at < cut.end_at
         ON CONFLICT DO NOTHING",
        customer.0,
        period.start,
        period.end
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether a period that ends then is over by the database's own clock too.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn over(connection: &mut PgConnection, end: DateTime<Utc>) -> Result<bool, StoreError> {
    let over = sqlx::query_scalar!(r#"SELECT $1 <= latest_period_end() AS "over!""#, end)
        .fetch_one(connection)
        .await?;
    Ok(over)
}

/// Has posters post at once what waits, until the transaction ends.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn want_posting(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_advisory_xact_lock_shared($1)", POSTING_WANTED_LOCK)
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// Keeps periods from being closed, and sums from being put right, until the transaction ends; after whoever is at that.
///
/// # Errors
/// [`StoreError::Database`].
pub(super) async fn keep_open(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_advisory_xact_lock_shared($1)", CLOSE_LOCK).fetch_one(connection).await?;
    Ok(())
}

/// Waits until no poster works, and keeps all out until the transaction ends.
///
/// # Errors
/// [`StoreError::Database`], retryable where posters held the lock for too long.
pub async fn lock_closing(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", CLOSE_LOCK).fetch_one(connection).await?;
    Ok(())
}

/// Closes an open period and moves the customer's closed time to its end; `settled_by` says what decided which tasks are
/// charged where no invoice will. The caller holds the close lock.
///
/// # Errors
/// [`StoreError::RowsAffected`] where the period is not open.
pub async fn close(
    connection: &mut PgConnection,
    customer: CustomerId,
    period: Period,
    at: DateTime<Utc>,
    settled_by: Option<&Value>,
) -> Result<(), StoreError> {
    let closed = sqlx::query!(
        "UPDATE billing_periods
         SET state = 'closed', closed_at = $3, settled_by = $4,
             closing = (SELECT COALESCE(max(closing), 0) + 1 FROM billing_periods)
         WHERE customer_id = $1 AND start_at = $2 AND state = 'open'",
        customer.0,
        period.start,
        at,
        settled_by
    )
    .execute(&mut *connection)
    .await?;
    ensure_affected("closing a billing period", &closed, 1)?;
    let moved = sqlx::query!(
        "UPDATE customers SET closed_through = $2 WHERE id = $1 AND (closed_through IS NULL OR closed_through < $2)",
        customer.0,
        period.end
    )
    .execute(connection)
    .await?;
    ensure_affected("moving a customer's closed time", &moved, 1)
}

/// The newest batch that is recorded and not posted; `None` where everything is posted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn newest_unposted(connection: &mut PgConnection) -> Result<Option<BatchId>, StoreError> {
    let id = sqlx::query_scalar!("SELECT max(id) FROM ingest_batches WHERE posted_at IS NULL")
        .fetch_one(connection)
        .await?;
    Ok(id.map(BatchId))
}

/// How many batches up to and including this one are not posted.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn unposted_up_to(connection: &mut PgConnection, batch: BatchId) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM ingest_batches WHERE posted_at IS NULL AND id <= $1"#,
        batch.0
    )
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// As [`unposted_up_to`], and later ones of which a half is posted: what is posted of one batch is booked by the same closings.
/// While posters are at work there nearly always is one, so it is asked by who holds the lock of [`lock_closing`].
///
/// # Errors
/// [`StoreError::Database`].
pub async fn unposted_or_half_posted(
    connection: &mut PgConnection,
    batch: BatchId,
) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM ingest_batches b
           WHERE posted_at IS NULL
             AND (id <= $1 OR EXISTS (SELECT FROM half_postings h WHERE h.batch_id = b.id AND h.posted_closing IS NOT NULL))"#,
        batch.0
    )
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// The instant up to which everything recorded is in the sums: that of the oldest unposted batch, else when the connection's
/// transaction began by the clock of the database, which `recorded_at` is taken from; in any case not after `now`, which was
/// taken before the connection's snapshot.
///
/// Recorded by an instant is what was committed by then. A batch's `recorded_at` is when its transaction began: one that
/// was being committed when the snapshot was taken may bear an earlier time than the answer and not be in it.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn posted_through(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
) -> Result<DateTime<Utc>, StoreError> {
    let through = sqlx::query_scalar!(
        r#"SELECT LEAST($1, COALESCE(min(recorded_at), now())) AS "through!" FROM ingest_batches WHERE posted_at IS NULL"#,
        now
    )
    .fetch_one(connection)
    .await?;
    Ok(through)
}

/// The time by the clock of the database, which `recorded_at` is taken from.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn database_time(connection: &mut PgConnection) -> Result<DateTime<Utc>, StoreError> {
    Ok(sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(connection).await?)
}

/// Whether every batch of the connection's snapshot that began by an instant of the database's clock is in the sums.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn posted_up_to(connection: &mut PgConnection, at: DateTime<Utc>) -> Result<bool, StoreError> {
    let posted = sqlx::query_scalar!(
        r#"SELECT NOT EXISTS (SELECT FROM ingest_batches WHERE posted_at IS NULL AND recorded_at <= $1) AS "posted!""#,
        at
    )
    .fetch_one(connection)
    .await?;
    Ok(posted)
}

const fn stored(start: DateTime<Utc>, end: DateTime<Utc>, closed_at: Option<DateTime<Utc>>) -> StoredPeriod {
    StoredPeriod { period: Period { start, end }, closed_at }
}
