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
use crate::store::{Database, StoreError, Tx, commit, periods};

/// Rows of a slice that are read from the journal: unlike those that are kept already, they take memory only now.
const READ_ROWS_MAX: i64 = 400_000;
/// How often billing periods are made for a slice: another poster may take what they were made for, and leave what lacks others.
const PERIODS_MADE_MAX: u32 = 5;
/// After this it is said that another program is at the same batches.
const ELSEWHERE_LONG: Duration = Duration::from_mins(1);
/// For as long a command tries again where posting fails: a slice that was too large gets smaller only by and by.
const FAILING_LONG: Duration = Duration::from_mins(5);
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
    let posted = post_slice(database, &Recent::default(), SLICE_ROWS_MAX, Turn::Now).await?;
    Ok(posted.map_or(0, |posted| posted.slice.batches.len()))
}

/// A slice that was posted, and how long that took from its turn on. Of no batches where there was nothing to do.
struct Posted {
    slice: Slice,
    took: Duration,
    /// Whether all of it was added now: half of what was tried before may have been added then.
    whole: bool,
}

impl Posted {
    /// What it tells of how much a slice should be.
    fn tell(&self, pace: &mut Pace) {
        if self.whole {
            pace.posted(self.slice.rows, self.took);
        } else {
            pace.partly_posted(self.slice.rows, self.took);
        }
    }
}

/// Posts one slice; `None` where another poster has its turn.
async fn post_slice(
    database: &Database,
    recent: &Recent,
    rows_max: i64,
    turn: Turn,
) -> Result<Option<Posted>, IngestError> {
    let (mut rows, mut made) = (rows_max, 0);
    let posted = loop {
        match on_slice(database, recent, rows, Work::Posting, turn).await {
            // Usage, or the end of a task, in a month that has none yet: rare, so it is not looked for every time.
            Err(IngestError::Store(error)) if made < PERIODS_MADE_MAX && posting::lacks_period(&error) => {
                // It lost its turn with the transaction that found that they are missing. Another poster that has it now finds
                // the same: where each left it to the other nobody would make them.
                match on_slice(database, recent, rows_max, Work::Periods, Turn::Awaited).await? {
                    // Then no more than that: what was recorded since may lack others.
                    Some(made_for) => rows = made_for.slice.rows,
                    None => return Ok(None),
                }
                made += 1;
            }
            posted => break posted?,
        }
    };
    if let Some(Posted { slice, took, .. }) =
        posted.as_ref().filter(|posted| !posted.slice.batches.is_empty())
    {
        super::meters::posted(slice.rows, *took);
        tracing::debug!(
            batches = slice.batches.len(),
            rows = slice.rows,
            elapsed_ms = took.as_millis(),
            "slice posted"
        );
    }
    Ok(posted)
}

/// What is done with a slice.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// It is added to the sums.
    Posting,
    /// The billing periods that it lacks are made.
    Periods,
}

/// What is done where another poster has its turn.
#[derive(Debug, Clone, Copy)]
enum Turn {
    /// Nothing.
    Now,
    /// It is waited for.
    Awaited,
}

/// Takes the next slice and does its work in one transaction; `None` where another poster has its turn.
async fn on_slice(
    database: &Database,
    recent: &Recent,
    rows_max: i64,
    work: Work,
    turn: Turn,
) -> Result<Option<Posted>, IngestError> {
    let mut tx = database.begin_ingest().await?;
    let taken = match turn {
        Turn::Now => posting::try_turn(&mut tx).await?,
        Turn::Awaited => posting::await_turn(&mut tx).await?,
    };
    if !taken {
        give_back(tx).await;
        return Ok(None);
    }
    let started = Instant::now();
    let mut slice = posting::next_slice(&mut tx, rows_max).await?;
    if slice.batches.is_empty() {
        give_back(tx).await;
        return Ok(Some(Posted { slice, took: started.elapsed(), whole: true }));
    }
    let kept = take_kept(&mut slice, recent);
    let done = match work {
        Work::Posting => slice::add(database, &mut tx, &slice, kept).await,
        Work::Periods => slice::make_periods(&mut tx, &slice, kept).await.map(|()| true),
    };
    let whole = match done {
        Ok(whole) => whole,
        Err(error) => {
            give_back(tx).await;
            return Err(error);
        }
    };
    commit(tx).await?;
    Ok(Some(Posted { slice, took: started.elapsed(), whole }))
}

/// Ends a transaction that did nothing. A dropped one ends some time later: until then its locks would be taken for another
/// poster's.
async fn give_back(tx: Tx) {
    if let Err(error) = tx.rollback().await {
        tracing::debug!(%error, "posting could not be rolled back; its connection is gone");
    }
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

/// Posts everything that is recorded by now, with whoever else is at it.
///
/// # Errors
/// [`IngestError::Unposted`] where nobody gets any further; any other. What was posted before stays posted.
pub async fn post_all(database: &Database) -> Result<(), IngestError> {
    let mut tx = database.begin_ingest().await?;
    let newest = periods::newest_unposted(&mut tx).await?;
    commit(tx).await?;
    let Some(newest) = newest else { return Ok(()) };
    let (mut pace, mut progress) = (Pace::default(), Progress::new(Instant::now()));
    loop {
        let started = Instant::now();
        let posted = match post_slice(database, &Recent::default(), pace.rows_max(), Turn::Awaited).await {
            Err(error) if may_pass(&error) && progress.goes_on_after_failing(Instant::now()) => {
                tracing::warn!(%error, "posting failed; trying again");
                pace.failed(started.elapsed(), &error);
                tokio::time::sleep(RETRY).await;
                continue;
            }
            posted => posted?,
        };
        let mut tx = database.begin_ingest().await?;
        let left = periods::unposted_up_to(&mut tx, newest).await?;
        commit(tx).await?;
        if left == 0 {
            return Ok(());
        }
        if progress.stands_still(left, Instant::now()) {
            return Err(IngestError::Unposted { batches: left });
        }
        match posted {
            Some(posted) if !posted.slice.batches.is_empty() => posted.tell(&mut pace),
            // A poster of a release without turns holds them.
            Some(_) => tokio::time::sleep(RETRY).await,
            // It was waited for.
            None => {}
        }
    }
}

/// Whether posting may succeed where it failed so; a partition that is not there, nobody brings back meanwhile.
fn may_pass(error: &IngestError) -> bool {
    error.retryable() && !matches!(error, IngestError::Store(StoreError::NoPartition(_)))
}

/// Whether what is left gets less, whoever posts it.
struct Progress {
    least: i64,
    since: Instant,
    /// When it failed last, or got less: nobody else was at it before that.
    own: Instant,
}

impl Progress {
    const fn new(now: Instant) -> Self {
        Self { least: i64::MAX, since: now, own: now }
    }

    /// Whether it is tried again after a failure: unless nothing else came of it for long.
    fn goes_on_after_failing(&mut self, now: Instant) -> bool {
        self.own = now;
        now.duration_since(self.since) < FAILING_LONG
    }

    /// Whether no fewer batches than ever before are left, for long.
    fn stands_still(&mut self, left: i64, now: Instant) -> bool {
        if left < self.least {
            *self = Self { least: left, since: now, own: now };
        }
        now.duration_since(self.own) > ELSEWHERE_LONG
    }
}

/// Posts until a stop is asked for.
pub async fn run(database: Database, recent: Recent, shutdown: Shutdown, nudge: Nudge) {
    let mut summarized = Instant::now();
    let (mut pace, mut elsewhere) = (Pace::default(), Elsewhere::default());
    while !shutdown.stopping() {
        if summarized.elapsed() >= SUMMARIZE_EVERY {
            summarized = Instant::now();
            if let Err(error) = summarize(&database).await {
                tracing::debug!(%error, "the index of the batches could not be brought up to date; later");
            }
        }
        let started = Instant::now();
        let next = post_gathered(&database, &recent, &nudge, pace).await;
        if !matches!(next, Ok(Next::OthersTurn(_))) {
            elsewhere = Elsewhere::default();
        }
        match next {
            Ok(Next::Posted(posted)) => posted.tell(&mut pace),
            Ok(Next::Gather) => pause(&shutdown, GATHER_LOOK).await,
            Ok(Next::OthersTurn(first)) => {
                if let Some(long) = elsewhere.long_at(first, Instant::now()) {
                    tracing::warn!(
                        batch = %first,
                        seconds = long.as_secs(),
                        "another program has been posting the same batches for long; if it is frozen, end it"
                    );
                }
                pause(&shutdown, RETRY).await;
            }
            Ok(Next::Idle) => tokio::select! {
                () = shutdown.stopped() => return,
                () = nudge.wait() => {}
                () = tokio::time::sleep(TICK) => {}
            },
            Err(error) => {
                tracing::warn!(%error, "posting failed; trying again");
                pace.failed(started.elapsed(), &error);
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
    Posted(Posted),
    Gather,
    OthersTurn(BatchId),
    Idle,
}

/// How long another poster has been at the same batches: one that is frozen while it reads is ended by no bound of the server
/// where it is connected by a Unix socket.
#[derive(Default)]
struct Elsewhere(Option<(BatchId, Instant, bool)>);

impl Elsewhere {
    /// Takes note that another poster is at batches from this one on; for how long it has been, once, where that is long.
    fn long_at(&mut self, first: BatchId, now: Instant) -> Option<Duration> {
        match &mut self.0 {
            Some((at, since, said)) if *at == first => {
                let long = now.duration_since(*since);
                let is_news = long > ELSEWHERE_LONG && !*said;
                *said |= is_news;
                is_news.then_some(long)
            }
            other => {
                *other = Some((first, now, false));
                None
            }
        }
    }
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
    Ok(match post_slice(database, recent, pace.rows_max(), Turn::Now).await? {
        None => Next::OthersTurn(waiting.first),
        // Where others hold what waits there is nothing to do.
        Some(posted) if posted.slice.batches.is_empty() => Next::Idle,
        Some(posted) => Next::Posted(posted),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGER: Duration = ELSEWHERE_LONG.saturating_add(Duration::from_secs(1));

    #[test]
    fn a_command_gives_up_where_nobody_gets_any_further() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        assert!(!progress.stands_still(10, start));
        assert!(!progress.stands_still(10, start + ELSEWHERE_LONG));
        assert!(!progress.stands_still(9, start + LONGER), "one less");
        assert!(!progress.stands_still(11, start + 2 * ELSEWHERE_LONG));
        assert!(progress.stands_still(9, start + LONGER + LONGER));
        assert!(!progress.stands_still(8, start + 3 * LONGER));
        assert!(progress.goes_on_after_failing(start + 5 * LONGER), "a slice may have been too large");
        assert!(!progress.stands_still(8, start + 5 * LONGER), "that was no other program");
        assert!(!progress.goes_on_after_failing(start + 3 * LONGER + FAILING_LONG));
    }

    #[test]
    fn half_of_a_slice_says_only_that_it_was_too_large() {
        let mut pace = Pace::default();
        let posted = |rows, took, whole| Posted { slice: Slice { rows, ..Slice::default() }, took, whole };
        posted(SLICE_ROWS_MAX, Duration::from_secs(24), false).tell(&mut pace);
        assert_eq!(pace.rows_max(), SLICE_ROWS_MAX / 2);
        posted(SLICE_ROWS_MAX / 2, Duration::ZERO, false).tell(&mut pace);
        assert_eq!(pace.rows_max(), SLICE_ROWS_MAX / 2, "it says nothing of the other half");
        posted(SLICE_ROWS_MAX / 2, Duration::ZERO, true).tell(&mut pace);
        assert_eq!(pace.rows_max(), SLICE_ROWS_MAX);
    }

    #[test]
    fn another_program_that_is_at_the_same_batches_for_long_is_named_once() {
        let start = Instant::now();
        let mut elsewhere = Elsewhere::default();
        assert_eq!(elsewhere.long_at(BatchId(1), start), None);
        assert_eq!(elsewhere.long_at(BatchId(1), start + ELSEWHERE_LONG), None);
        assert_eq!(elsewhere.long_at(BatchId(1), start + LONGER), Some(LONGER));
        assert_eq!(elsewhere.long_at(BatchId(1), start + 2 * LONGER), None, "it was said");
        assert_eq!(elsewhere.long_at(BatchId(2), start + 3 * LONGER), None, "it got further");
        assert_eq!(elsewhere.long_at(BatchId(2), start + 5 * LONGER), Some(2 * LONGER));
    }
}
