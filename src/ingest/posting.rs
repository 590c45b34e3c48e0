//! The loop that posts recorded batches.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::IngestError;
use super::facts::Facts;
use super::pace::{Nudge, Pace, SLICE_ROWS_MAX};
use super::recent::Recent;
use super::slice;
use crate::domain::ids::BatchId;
use crate::shutdown::Shutdown;
use crate::store::posting::{self, Slice};
use crate::store::{Database, commit};

/// Rows of a slice that are read from the journal: unlike those that are kept already, they take memory only now.
const READ_ROWS_MAX: i64 = 400_000;
/// How often billing periods are made for a slice: another poster may take what they were made for, and leave what lacks others.
const PERIODS_MADE_MAX: u32 = 5;
/// Pause after posting failed, and while another poster has its turn.
const RETRY: Duration = Duration::from_millis(400);
/// The loop looks by itself this often, for batches of other processes.
const TICK: Duration = Duration::from_secs(1);
/// How often the index that finds the rows of a batch is brought up to date.
const SUMMARIZE_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether enough has gathered.
const GATHER_LOOK: Duration = Duration::from_millis(50);

/// Posts one slice; returns how many batches that was, zero where there was nothing to do or another poster is at it.
///
/// # Errors
/// [`IngestError`]; nothing is posted then.
pub async fn post_once(database: &Database) -> Result<usize, IngestError> {
    Ok(post_slice(database, &Recent::default(), SLICE_ROWS_MAX).await?.map_or(0, |slice| slice.batches.len()))
}

/// Posts one slice, empty where there was nothing to do; `None` where another poster has its turn.
async fn post_slice(
    database: &Database,
    recent: &Recent,
    rows_max: i64,
) -> Result<Option<Slice>, IngestError> {
    let started = Instant::now();
    let (mut rows, mut made) = (rows_max, 0);
    let slice = loop {
        match on_slice(database, recent, rows, Work::Posting).await {
            // Usage, or the end of a task, in a month that has none yet: rare, so it is not looked for every time.
            Err(IngestError::Store(error)) if made < PERIODS_MADE_MAX && posting::lacks_period(&error) => {
                // Then no more than that: what was recorded since may lack others.
                match on_slice(database, recent, rows_max, Work::Periods).await? {
                    Some(slice) => rows = slice.rows,
                    None => return Ok(None),
                }
                made += 1;
            }
            posted => break posted?,
        }
    };
    if let Some(slice) = slice.as_ref().filter(|slice| !slice.batches.is_empty()) {
        let elapsed = started.elapsed();
        super::meters::posted(slice.rows, elapsed);
        tracing::debug!(
            batches = slice.batches.len(),
            rows = slice.rows,
            elapsed_ms = elapsed.as_millis(),
            "slice posted"
        );
    }
    Ok(slice)
}

/// What is done with a slice.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// It is added to the sums.
    Posting,
    /// The billing periods that it lacks are made.
    Periods,
}

/// Takes the next slice and does its work in one transaction; `None` where another poster has its turn.
async fn on_slice(
    database: &Database,
    recent: &Recent,
    rows_max: i64,
    work: Work,
) -> Result<Option<Slice>, IngestError> {
    let mut tx = database.begin_ingest().await?;
    match work {
        Work::Posting => {
            if !posting::try_turn(&mut tx).await? {
                commit(tx).await?;
                return Ok(None);
            }
        }
        // It lost its turn with the transaction that found that they are missing. Another poster that has it now finds the same:
        // where each left it to the other nobody would make them.
        Work::Periods => posting::await_turn(&mut tx).await?,
    }
    let mut slice = posting::next_slice(&mut tx, rows_max).await?;
    if slice.batches.is_empty() {
        commit(tx).await?;
        return Ok(Some(slice));
    }
    let kept = take_kept(&mut slice, recent);
    let done = match work {
        Work::Posting => slice::add(database, &mut tx, &slice, kept).await,
        Work::Periods => slice::make_periods(&mut tx, &slice, kept).await,
    };
    if let Err(error) = done {
        // A dropped transaction ends some time later: until then its batches would be passed over as another poster's.
        if let Err(rollback) = tx.rollback().await {
            tracing::debug!(error = %rollback, "failed posting could not be rolled back; its connection is gone");
        }
        return Err(error);
    }
    commit(tx).await?;
    Ok(Some(slice))
}

/// What this process has of the slice's batches from recording them; shortens the slice to what can be read of the others.
fn take_kept(slice: &mut Slice, recent: &Recent) -> HashMap<BatchId, Arc<Facts>> {
    let (mut kept, mut read) = (HashMap::new(), 0);
    slice.keep_while(|batch| {
        if let Some(facts) = recent.get(batch) {
            kept.insert(batch.id, facts);
            return true;
        }
        read += i64::from(batch.rows);
        read <= READ_ROWS_MAX
    });
    kept
}

async fn summarize(database: &Database) -> Result<(), IngestError> {
    let mut tx = database.begin_ingest().await?;
    posting::summarize(&mut tx).await?;
    Ok(commit(tx).await?)
}

/// Posts everything that is recorded by now, and waits for what other posters are at.
///
/// # Errors
/// [`IngestError`]; what was posted before stays posted.
pub async fn post_all(database: &Database) -> Result<(), IngestError> {
    while post_once(database).await? > 0 || others_left(database).await? {}
    Ok(())
}

/// Waits until the poster of the first batch that is not posted is done with it; returns whether it is still not posted.
async fn others_left(database: &Database) -> Result<bool, IngestError> {
    let mut tx = database.begin_ingest().await?;
    let left = posting::await_first(&mut tx).await?;
    commit(tx).await?;
    Ok(left)
}

/// Posts until a stop is asked for.
pub async fn run(database: Database, recent: Recent, shutdown: Shutdown, nudge: Nudge) {
    let mut summarized = Instant::now();
    let mut pace = Pace::default();
    while !shutdown.stopping() {
        if summarized.elapsed() >= SUMMARIZE_EVERY {
            summarized = Instant::now();
            if let Err(error) = summarize(&database).await {
                tracing::debug!(%error, "the index of the batches could not be brought up to date; later");
            }
        }
        let started = Instant::now();
        match post_gathered(&database, &recent, &nudge, pace).await {
            Ok(Next::Posted) => pace.posted(started.elapsed()),
            Ok(Next::Gather) => pause(&shutdown, GATHER_LOOK).await,
            Ok(Next::OthersTurn) => pause(&shutdown, RETRY).await,
            Ok(Next::Idle) => tokio::select! {
                () = shutdown.stopped() => return,
                () = nudge.wait() => {}
                () = tokio::time::sleep(TICK) => {}
            },
            Err(error) => {
                tracing::warn!(%error, "posting failed; trying again");
                pace.failed(started.elapsed(), error.connection_lost());
                pause(&shutdown, RETRY).await;
            }
        }
    }
}

async fn pause(shutdown: &Shutdown, pause: Duration) {
    tokio::select! {
        () = shutdown.stopped() => {}
        () = tokio::time::sleep(pause) => {}
    }
}

/// What one look at the unposted batches came to.
enum Next {
    Posted,
    Gather,
    OthersTurn,
    Idle,
}

/// Posts a slice where enough has gathered.
async fn post_gathered(
    database: &Database,
    recent: &Recent,
    nudge: &Nudge,
    pace: Pace,
) -> Result<Next, IngestError> {
    let mut tx = database.begin_ingest().await?;
    let waiting = posting::waiting(&mut tx).await?;
    commit(tx).await?;
    let Some(waiting) = waiting else {
        recent.clear();
        return Ok(Next::Idle);
    };
    recent.forget_before(waiting.first);
    if !pace.due(waiting, nudge.coming()) {
        return Ok(Next::Gather);
    }
    Ok(match post_slice(database, recent, pace.rows_max()).await? {
        None => Next::OthersTurn,
        // Where others hold what waits there is nothing to do.
        Some(slice) if slice.batches.is_empty() => Next::Idle,
        Some(_) => Next::Posted,
    })
}
