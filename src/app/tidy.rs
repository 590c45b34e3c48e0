//! Removes what is past its time: the answers that are kept for requests that are repeated.

use std::time::Duration;

use crate::clock::Clock;
use crate::shutdown::Shutdown;
use crate::store::{Database, StoreError, commit, idempotency};

/// How often it is looked for.
const EVERY: Duration = Duration::from_mins(10);
/// Answers removed in one transaction: some milliseconds.
const SLICE_MAX: i64 = 1_000;
/// Pause after a full slice: others need the disk.
const PAUSE: Duration = Duration::from_millis(50);

/// Removes answers past their time, at once and then from time to time, until a stop is asked for.
pub async fn run(database: Database, clock: Clock, shutdown: Shutdown) {
    loop {
        match purge(&database, &clock).await {
            Ok(removed) if i64::try_from(removed).is_ok_and(|removed| removed >= SLICE_MAX) => {
                tokio::select! {
                    () = shutdown.stopped() => return,
                    () = tokio::time::sleep(PAUSE) => continue,
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "old answers to repeated requests could not be removed; trying again later");
            }
        }
        tokio::select! {
            () = shutdown.stopped() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn purge(database: &Database, clock: &Clock) -> Result<u64, StoreError> {
    let mut tx = database.begin().await?;
    let removed = idempotency::purge(&mut tx, clock.now(), SLICE_MAX).await?;
    commit(tx).await?;
    Ok(removed)
}
