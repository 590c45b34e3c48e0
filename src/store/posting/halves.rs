//! The odd half of a slice: what customers with odd ids used, which may be added on a connection of its own.
//!
//! A row of `half_postings` stands for the odd half of each batch that is not posted. Whoever adds it holds that row; where
//! another one did, it says so, whatever became of the other half.

use sqlx::PgConnection;

use super::super::periods::CLOSE_LOCK;
use super::super::{StoreError, ensure_affected};
use super::{Slice, ids};
use crate::domain::ids::BatchId;

/// Takes the close lock shared, where nobody waits to close a period; the other half of the slice is held back by whoever
/// does, and must not wait for this one then.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn try_close_lock(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let taken = sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock_shared($1) AS "taken!""#, CLOSE_LOCK)
        .fetch_one(connection)
        .await?;
    Ok(taken)
}

/// Locks the odd halves of the slice's batches, after whoever is still at one of them; returns those that are not added yet.
///
/// # Errors
/// [`StoreError::RowsAffected`] where the slice is posted already; [`StoreError::Database`].
pub async fn take_odd_half(connection: &mut PgConnection, slice: &Slice) -> Result<Vec<BatchId>, StoreError> {
    let halves = sqlx::query!(
        r#"SELECT batch_id AS "batch: BatchId", posted_closing IS NOT NULL AS "added!" FROM half_postings
           WHERE batch_id = ANY($1) ORDER BY batch_id FOR UPDATE"#,
        &ids(slice)
    )
    .fetch_all(connection)
    .await?;
    let (expected, actual) = (slice.batches.len() as u64, halves.len() as u64);
    if actual != expected {
        return Err(StoreError::RowsAffected { what: "locking half of some batches", expected, actual });
    }
    Ok(halves.into_iter().filter(|half| !half.added).map(|half| half.batch).collect())
}

/// Marks the odd halves of these batches as added.
///
/// # Errors
/// [`StoreError::RowsAffected`] where one of them was, which the locks make impossible; [`StoreError::Database`].
pub async fn mark_odd_half(connection: &mut PgConnection, batches: &[BatchId]) -> Result<(), StoreError> {
    let result = sqlx::query!(
        "UPDATE half_postings SET posted_closing = (SELECT COALESCE(max(closing), 0) FROM billing_periods)
         WHERE batch_id = ANY($1) AND posted_closing IS NULL",
        &batches.iter().map(|batch| batch.0).collect::<Vec<i64>>()
    )
    .execute(connection)
    .await?;
    ensure_affected("marking half of some batches as posted", &result, batches.len() as u64)
}

/// Forgets the halves of batches that are posted as a whole.
pub(super) async fn forget_halves(connection: &mut PgConnection, slice: &Slice) -> Result<(), StoreError> {
    let result = sqlx::query!("DELETE FROM half_postings WHERE batch_id = ANY($1)", &ids(slice))
        .execute(connection)
        .await?;
    ensure_affected("forgetting the halves of posted batches", &result, slice.batches.len() as u64)
}
