//! The loop that posts recorded batches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::IngestError;
use crate::domain::period::BillingCalendar;
use crate::shutdown::Shutdown;
use crate::store::{Database, commit, periods, posting};

/// Rows folded in one transaction: enough that each key is touched once for many events, short enough that closing a
/// period never waits long.
const SLICE_ROWS_MAX: i64 = 100_000;
/// The loop looks by itself this often, for batches of other processes.
const TICK: Duration = Duration::from_secs(1);
/// Least time between two slices, so that each folds many batches: figures trail recording by about this.
const GATHER: Duration = Duration::from_millis(200);

/// Wakes the posting loop.
#[derive(Debug, Clone, Default)]
pub struct Nudge(Arc<Notify>);

impl Nudge {
    /// There is something to post.
    pub fn now(&self) {
        self.0.notify_one();
    }

    async fn wait(&self) {
        self.0.notified().await;
    }
}

/// Posts one slice; returns how many batches it folded, zero where there was nothing to do.
///
/// # Errors
/// [`IngestError::Store`]; nothing is folded then.
pub async fn post_once(database: &Database) -> Result<usize, IngestError> {
    let started = Instant::now();
    let mut tx = database.begin_ingest().await?;
    let slice = posting::next_slice(&mut tx, SLICE_ROWS_MAX).await?;
    if slice.batches.is_empty() {
        return Ok(0);
    }
    for missing in posting::missing_periods(&mut tx, &slice).await? {
        let period = BillingCalendar::new(&missing.time_zone, missing.anchor_day)?.period_at(missing.at)?;
        periods::ensure(&mut tx, missing.customer, period).await?;
    }
    // The fold joins usage with its period: without one it would drop the row, so nothing is folded then.
    if let Some(missing) = posting::missing_periods(&mut tx, &slice).await?.first() {
        return Err(IngestError::NoPeriod { customer: missing.customer, at: missing.at });
    }
    posting::fold_rollups(&mut tx, &slice).await?;
    posting::fold_tasks(&mut tx, &slice).await?;
    posting::mark_posted(&mut tx, &slice).await?;
    commit(tx).await?;
    super::meters::posted(slice.rows, started.elapsed());
    Ok(slice.batches.len())
}

/// Posts everything that is recorded by now.
///
/// # Errors
/// [`IngestError::Store`].
pub async fn post_all(database: &Database) -> Result<(), IngestError> {
    while post_once(database).await? > 0 {}
    Ok(())
}

/// Posts until a stop is asked for.
pub async fn run(database: Database, shutdown: Shutdown, nudge: Nudge) {
    while !shutdown.stopping() {
        match post_once(&database).await {
            Ok(0) => {
                tokio::select! {
                    () = shutdown.stopped() => return,
                    () = nudge.wait() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "posting failed; trying again"),
        }
        tokio::select! {
            () = shutdown.stopped() => {}
            () = tokio::time::sleep(GATHER) => {}
        }
    }
}
