//! The loop that sums old hours into days, beside posting.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use super::IngestError;
use crate::clock::Clock;
use crate::shutdown::Shutdown;
use crate::store::compaction::{self, Due};
use crate::store::{Database, Scope, commit};

/// How long a day is over before its hours are summed: by then nearly all of its usage has come.
const COMPACT_AFTER: TimeDelta = TimeDelta::hours(36);
/// How often the loop looks for such days.
const EVERY: Duration = Duration::from_mins(10);
/// Rows of hours summed in one transaction: a tenth of a second.
const SLICE_ROWS_MAX: i64 = 5_000;

/// Sums every hour that is due; returns how many rows of hours it took. Several may run side by side, each takes other
/// customers. A customer whose hours the database refuses to sum is left at that, the others go on.
///
/// # Errors
/// [`IngestError::Store`] where the database does not answer.
pub async fn compact(
    database: &Database,
    now: DateTime<Utc>,
    shutdown: &Shutdown,
) -> Result<i64, IngestError> {
    let mut tx = database.read(Scope::Everything).await?;
    let all = compaction::due(&mut tx, now, COMPACT_AFTER).await?;
    drop(tx);
    let mut total = 0;
    for due in all {
        match sum_hours(database, due, shutdown, &mut total).await {
            Err(IngestError::Store(error)) if error.sqlstate().is_some() => {
                let customer = due.customer.0;
                tracing::warn!(%error, customer, "hours of a customer could not be summed; trying again later");
            }
            ended => ended?,
        }
    }
    Ok(total)
}

/// Sums the hours of one customer, and counts them.
async fn sum_hours(
    database: &Database,
    due: Due,
    shutdown: &Shutdown,
    total: &mut i64,
) -> Result<(), IngestError> {
    while !shutdown.stopping() {
        let started = Instant::now();
        let summed = slice(database, due).await?;
        if summed == 0 {
            break;
        }
        *total += summed;
        super::meters::compacted(summed);
        // Half the time at most: nobody waits for it, and others need the disk.
        tokio::time::sleep(started.elapsed()).await;
    }
    Ok(())
}

async fn slice(database: &Database, due: Due) -> Result<i64, IngestError> {
    let mut tx = database.begin_ingest().await?;
    let summed = compaction::sum_hours(&mut tx, due, SLICE_ROWS_MAX).await?;
    commit(tx).await?;
    Ok(summed)
}

/// Compacts from time to time until a stop is asked for.
pub async fn run(database: Database, clock: Clock, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = shutdown.stopped() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        match compact(&database, clock.now(), &shutdown).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "summed hours of old days"),
            Err(error) => tracing::warn!(%error, "hours of old days could not be summed; trying again later"),
        }
    }
}
