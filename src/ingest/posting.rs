//! The loop that posts recorded batches.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::Notify;

use super::IngestError;
use super::facts::{Facts, Gathering, TextId};
use super::recent::Recent;
use super::sums::{Share, Sums};
use crate::domain::ids::BatchId;
use crate::domain::period::BillingCalendar;
use crate::shutdown::Shutdown;
use crate::store::posting::{self, Row, Slice, Waiting};
use crate::store::{Database, commit, periods};

/// Rows posted in one transaction: enough that each key is touched once for many events, short enough that closing a
/// period never waits long.
const SLICE_ROWS_MAX: i64 = 300_000;
/// Rows that a slice may have however slow the database is.
const SLICE_ROWS_LEAST: i64 = 10_000;
/// Rows of a slice that are read from the journal: unlike those that are kept already, they take memory only now.
const READ_ROWS_MAX: i64 = 100_000;
/// A slice that takes longer is followed by a smaller one: other posters wait 10 s for its keys, and no statement may take
/// more than 30 s.
const SLICE_LONG: Duration = Duration::from_secs(8);
/// A slice that takes less is followed by a larger one.
const SLICE_SHORT: Duration = Duration::from_secs(4);
/// SQLSTATE of a row that lacks what it must have.
const NOT_NULL_VIOLATION: &str = "23502";
/// Pause after posting failed.
const RETRY: Duration = Duration::from_millis(400);
/// The loop looks by itself this often, for batches of other processes.
const TICK: Duration = Duration::from_secs(1);
/// How often the index that finds the rows of a batch is brought up to date.
const SUMMARIZE_EVERY: Duration = Duration::from_secs(5);
/// How long batches gather before they are posted together: figures trail recording by about this ...
const GATHER_MS: i64 = 400;
/// ... and by up to this while what is recorded has waited in the stream for longer than that anyway: the more rows a slice
/// has, the fewer sums are written for each.
const GATHER_LONGEST_MS: i64 = 4_000;
/// How often it is looked whether enough has gathered.
const GATHER_LOOK: Duration = Duration::from_millis(100);

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

/// Posts one slice; returns how many batches that was, zero where there was nothing to do.
///
/// # Errors
/// [`IngestError::Store`]; nothing is posted then.
pub async fn post_once(database: &Database) -> Result<usize, IngestError> {
    post_slice(database, &Recent::default(), SLICE_ROWS_MAX).await
}

async fn post_slice(database: &Database, recent: &Recent, rows_max: i64) -> Result<usize, IngestError> {
    let started = Instant::now();
    let slice = match post(database, recent, rows_max, false).await {
        // Usage of a month that nobody has used anything in yet: rare, so it is not looked for every time.
        Err(IngestError::Store(error)) if error.sqlstate().as_deref() == Some(NOT_NULL_VIOLATION) => {
            post(database, recent, rows_max, true).await?
        }
        posted => posted?,
    };
    if let Some(last) = slice.batches.last() {
        recent.forget_through(last.id);
        super::meters::posted(slice.rows, started.elapsed());
    }
    Ok(slice.batches.len())
}

/// Posts the next slice in one transaction, after making the billing periods it lacks where that is asked for.
async fn post(
    database: &Database,
    recent: &Recent,
    rows_max: i64,
    with_periods: bool,
) -> Result<Slice, IngestError> {
    let mut tx = database.begin_ingest().await?;
    let mut slice = posting::next_slice(&mut tx, rows_max).await?;
    if slice.batches.is_empty() {
        return Ok(slice);
    }
    let kept = take_kept(&mut slice, recent);
    if let Err(error) = add_slice(&mut tx, &slice, kept, with_periods).await {
        // A dropped transaction ends some time later: until then its batches would be passed over as another poster's.
        if let Err(rollback) = tx.rollback().await {
            tracing::debug!(error = %rollback, "failed posting could not be rolled back; its connection is gone");
        }
        return Err(error);
    }
    commit(tx).await?;
    Ok(slice)
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

async fn add_slice(
    tx: &mut PgConnection,
    slice: &Slice,
    kept: HashMap<BatchId, Arc<Facts>>,
    with_periods: bool,
) -> Result<(), IngestError> {
    posting::require_partitions(tx, slice).await?;
    if with_periods {
        make_periods(tx, slice).await?;
    }
    let facts = facts(tx, slice, kept).await?;
    for share in Share::all() {
        let mut sums = Sums::default();
        for facts in &facts {
            sums.add(facts, share);
        }
        posting::add_to_rollups(tx, sums.rollups()).await?;
        let ranks = ranks(tx, &sums).await?;
        let rank = |text| ranks.get(&text).copied().unwrap_or_default();
        posting::add_to_tasks(tx, sums.tasks(rank)).await?;
    }
    posting::add_reasons(tx, slice).await?;
    posting::mark_posted(tx, slice).await?;
    Ok(posting::require_partitions(tx, slice).await?)
}

/// The rows of the slice: of batches that are kept as they were recorded, of others as the journal has them.
async fn facts(
    tx: &mut PgConnection,
    slice: &Slice,
    kept: HashMap<BatchId, Arc<Facts>>,
) -> Result<Vec<Arc<Facts>>, IngestError> {
    let mut read: HashMap<BatchId, Gathering> = HashMap::new();
    for part in slice.parts(|batch| !kept.contains_key(&batch.id)) {
        let gather = |batch, booked_on, row: &Row<'_>| {
            read.entry(batch).or_insert_with(|| Gathering::new(batch, booked_on, 0)).add(row);
        };
        posting::each_row(tx, &part, gather).await?;
    }
    let read = read.into_values().map(|batch| Arc::new(batch.finish()));
    Ok(kept.into_values().chain(read).collect())
}

/// The order of the texts whose order counts.
async fn ranks(tx: &mut PgConnection, sums: &Sums) -> Result<HashMap<TextId, i64>, IngestError> {
    let texts = sums.ordered();
    if texts.is_empty() {
        return Ok(HashMap::new());
    }
    let resolved: Vec<&str> = texts.iter().map(|text| sums.resolve(*text)).collect();
    let ranks = posting::ranks(tx, &resolved).await?;
    Ok(texts.into_iter().zip(ranks).collect())
}

async fn make_periods(tx: &mut PgConnection, slice: &Slice) -> Result<(), IngestError> {
    for missing in posting::missing_periods(tx, slice).await? {
        let period = BillingCalendar::new(&missing.time_zone, missing.anchor_day)?.period_at(missing.at)?;
        periods::ensure(tx, missing.customer, period).await?;
    }
    match posting::missing_periods(tx, slice).await?.first() {
        Some(missing) => Err(IngestError::NoPeriod { customer: missing.customer, at: missing.at }),
        None => Ok(()),
    }
}

async fn summarize(database: &Database) -> Result<(), IngestError> {
    let mut tx = database.begin_ingest().await?;
    posting::summarize(&mut tx).await?;
    Ok(commit(tx).await?)
}

/// Posts everything that is recorded by now, and waits for what other posters are at.
///
/// # Errors
/// [`IngestError::Store`].
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
        match post_gathered(&database, &recent, pace).await {
            Ok(Next::Posted) => pace.posted(started.elapsed()),
            Ok(Next::Gather) => pause(&shutdown, GATHER_LOOK).await,
            Ok(Next::Idle) => tokio::select! {
                () = shutdown.stopped() => return,
                () = nudge.wait() => {}
                () = tokio::time::sleep(TICK) => {}
            },
            Err(error) => {
                tracing::warn!(%error, "posting failed; trying again");
                pace.smaller();
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
    Idle,
}

/// How much is posted at a time: as much as the database does in a few seconds.
#[derive(Debug, Clone, Copy)]
struct Pace {
    rows_max: i64,
    last_took: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rows_max: SLICE_ROWS_MAX, last_took: Duration::ZERO }
    }
}

impl Pace {
    fn posted(&mut self, took: Duration) {
        self.last_took = took;
        if took > SLICE_LONG {
            self.smaller();
        } else if took < SLICE_SHORT {
            self.rows_max = self.rows_max.saturating_mul(2).min(SLICE_ROWS_MAX);
        }
    }

    fn smaller(&mut self) {
        self.rows_max = (self.rows_max / 2).max(SLICE_ROWS_LEAST);
    }

    /// Whether what waits is posted now: it is a full slice, it has waited long enough, or no more of it comes.
    fn due(self, waiting: Waiting) -> bool {
        // The slower a slice, the more the next one should fold: under load recording has the machine half the time.
        let last_took = i64::try_from(self.last_took.as_millis()).unwrap_or(i64::MAX);
        let patience = (waiting.behind_ms / 2).max(last_took).clamp(GATHER_MS, GATHER_LONGEST_MS);
        waiting.rows >= self.rows_max || waiting.oldest_ms >= patience || waiting.newest_ms >= GATHER_MS
    }
}

/// Posts a slice where enough has gathered.
async fn post_gathered(database: &Database, recent: &Recent, pace: Pace) -> Result<Next, IngestError> {
    let mut tx = database.begin_ingest().await?;
    let waiting = posting::waiting(&mut tx).await?;
    commit(tx).await?;
    match waiting {
        None => {
            recent.clear();
            Ok(Next::Idle)
        }
        Some(waiting) if !pace.due(waiting) => Ok(Next::Gather),
        // Where others hold what waits there is nothing to do.
        Some(_) => {
            Ok(if post_slice(database, recent, pace.rows_max).await? > 0 { Next::Posted } else { Next::Idle })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_trail_recording_by_little_and_more_while_recording_trails_the_stream() {
        let waiting =
            |rows, oldest_ms, newest_ms, behind_ms| Waiting { rows, oldest_ms, newest_ms, behind_ms };
        let quick = Pace { last_took: Duration::from_millis(50), ..Pace::default() };
        assert!(!quick.due(waiting(100, 399, 10, 20)));
        assert!(quick.due(waiting(100, 400, 10, 20)));
        assert!(quick.due(waiting(SLICE_ROWS_MAX, 0, 0, 20)), "a full slice waits for nothing");
        assert!(!quick.due(waiting(100, 2_000, 10, 60_000)), "recording is a minute behind");
        assert!(quick.due(waiting(100, 4_000, 10, 60_000)), "but nothing waits for longer than this");
        assert!(quick.due(waiting(100, 2_000, 400, 60_000)), "nothing more comes");
        let slow = Pace { last_took: Duration::from_secs(1), ..quick };
        assert!(!slow.due(waiting(100, 900, 10, 20)), "the last slice took longer");
    }

    #[test]
    fn slices_shrink_while_they_take_too_long_and_grow_again() {
        let mut pace = Pace::default();
        pace.posted(Duration::from_secs(6));
        assert_eq!(pace.rows_max, SLICE_ROWS_MAX);
        pace.posted(Duration::from_secs(20));
        pace.smaller();
        assert_eq!(pace.rows_max, SLICE_ROWS_MAX / 4);
        (0..10).for_each(|_| pace.smaller());
        assert_eq!(pace.rows_max, SLICE_ROWS_LEAST, "a few batches are always possible");
        (0..10).for_each(|_| pace.posted(Duration::from_secs(1)));
        assert_eq!(pace.rows_max, SLICE_ROWS_MAX);
    }
}
