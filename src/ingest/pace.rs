//! When posting goes on, and with how much at a time: soon where little comes in, much at once where recording trails the
//! stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::IngestError;
use crate::store::posting::Waiting;

/// Rows posted in one transaction: enough that each key is touched once for many events, short enough that closing a
/// period never waits long.
pub const SLICE_ROWS_MAX: i64 = 1_000_000;
/// Rows that a slice may have however slow the database is.
const SLICE_ROWS_LEAST: i64 = 10_000;
/// How long a slice should take: a closing waits 10 s for it.
const SLICE_TAKES: Duration = Duration::from_secs(6);
/// After this a slice may have been too large where the connection was lost over it.
const SLICE_LONG: Duration = Duration::from_secs(8);
/// How long batches gather before they are posted together: figures trail recording by about this ...
const GATHER_MS: i64 = 400;
/// ... by up to this while posting is slow: the more rows a slice has, the fewer sums are written for each ...
const GATHER_SLOW_MS: i64 = 4_000;
/// ... and by up to this while what is recorded has waited in the stream for as long anyway.
const GATHER_BEHIND_MS: i64 = 30_000;
/// How old the newest batch is when nothing more seems to come, where the stream has nothing more.
const QUIET_MS: i64 = 100;
/// Where it is not known what waits in the stream.
const UNKNOWN: i64 = -1;

/// Tells posting what recording is at; a clone tells the same.
#[derive(Debug, Clone)]
pub struct Nudge(Arc<Recording>);

#[derive(Debug)]
struct Recording {
    recorded: Notify,
    /// Messages that the stream still has, or [`UNKNOWN`].
    left: AtomicI64,
    /// Shared with every batch on its way.
    underway: Underway,
}

/// Messages are on their way to being recorded as long as this is held.
pub type Underway = Arc<()>;

/// What is known of batches to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coming {
    /// Nothing: this process records none.
    Unknown,
    /// There are some.
    More,
    /// There is none at the moment.
    Nothing,
}

impl Default for Nudge {
    fn default() -> Self {
        let recording = Recording {
            recorded: Notify::new(),
            left: AtomicI64::new(UNKNOWN),
            underway: Underway::default(),
        };
        Self(Arc::new(recording))
    }
}

impl Nudge {
    /// There is something to post.
    pub fn now(&self) {
        self.0.recorded.notify_one();
    }

    /// Resolves when there is.
    pub async fn wait(&self) {
        self.0.recorded.notified().await;
    }

    /// How many messages the stream still has; `None` where that is not looked at any more.
    pub fn left(&self, messages: Option<u64>) {
        let left = messages.map_or(UNKNOWN, |messages| i64::try_from(messages).unwrap_or(i64::MAX));
        self.0.left.store(left, Ordering::Relaxed);
    }

    /// Messages were taken.
    pub fn underway(&self) -> Underway {
        Arc::clone(&self.0.underway)
    }

    /// What is known of batches to come.
    pub fn coming(&self) -> Coming {
        match (self.0.left.load(Ordering::Relaxed), Arc::strong_count(&self.0.underway)) {
            (UNKNOWN, _) => Coming::Unknown,
            (0, 1) => Coming::Nothing,
            _ => Coming::More,
        }
    }
}

/// How much is posted at a time: as much as the database does in a few seconds.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    rows_max: i64,
    last_took: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rows_max: SLICE_ROWS_MAX, last_took: Duration::ZERO }
    }
}

impl Pace {
    /// Rows that the next slice may have.
    pub const fn rows_max(self) -> i64 {
        self.rows_max
    }

    /// So many rows were posted. The next slice has as many as would have taken what a slice should, at most twice and at least
    /// half as many as this one could have had; one that had few says nothing of many.
    pub fn posted(&mut self, rows: i64, took: Duration) {
        self.last_took = took;
        if took > SLICE_TAKES || rows.saturating_mul(2) >= self.rows_max {
            let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).max(1);
            let fitting = rows.saturating_mul(millis(SLICE_TAKES)) / millis(took);
            self.resize(fitting.clamp(self.rows_max / 2, self.rows_max.saturating_mul(2)));
        }
    }

    /// Some of so many rows were posted, of which others had been before: where that took too long the whole would have all the
    /// more, but it says nothing of how little the whole takes.
    pub fn partly_posted(&mut self, rows: i64, took: Duration) {
        if took > SLICE_TAKES {
            self.posted(rows, took);
        }
    }

    /// Posting failed after so long. That others held a lock says nothing of the slice, nor does a connection that was lost, unless
    /// after long.
    pub fn failed(&mut self, took: Duration, error: &IngestError) {
        let blameless = error.lock_timed_out() || (error.connection_lost() && took < SLICE_LONG);
        if !blameless {
            self.resize(self.rows_max / 2);
        }
    }

    fn resize(&mut self, rows: i64) {
        self.rows_max = rows.clamp(SLICE_ROWS_LEAST, SLICE_ROWS_MAX);
    }

    /// Whether what waits is posted now: it is a full slice, it has waited long enough, no more of it comes, or somebody waits
    /// for it.
    pub fn due(self, waiting: Waiting, coming: Coming) -> bool {
        // The slower a slice, the more the next one should fold: under load recording has the machine half the time.
        let last_took = i64::try_from(self.last_took.as_millis()).unwrap_or(i64::MAX).min(GATHER_SLOW_MS);
        let behind = waiting.behind_ms.min(GATHER_BEHIND_MS);
        let over = match coming {
            Coming::Unknown => waiting.newest_ms >= GATHER_MS,
            Coming::More => false,
            Coming::Nothing => waiting.newest_ms >= QUIET_MS,
        };
        let full = waiting.rows >= self.rows_max;
        waiting.wanted || over || full || waiting.oldest_ms >= last_took.max(behind).max(GATHER_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;

    use crate::domain::ids::{BatchId, CustomerId};
    use crate::store::StoreError;

    #[test]
    fn figures_trail_recording_by_little_and_more_while_recording_trails_the_stream() {
        let waiting = |rows, oldest_ms, newest_ms, behind_ms| Waiting {
            first: BatchId(1),
            rows,
            oldest_ms,
            newest_ms,
            behind_ms,
            wanted: false,
        };
        let quick = Pace { last_took: Duration::from_millis(50), ..Pace::default() };
        for coming in [Coming::Unknown, Coming::More, Coming::Nothing] {
            assert!(!quick.due(waiting(100, 399, 10, 20), coming));
            assert!(quick.due(waiting(100, 400, 10, 20), coming));
            assert!(quick.due(waiting(SLICE_ROWS_MAX, 0, 0, 20), coming), "a full slice waits for nothing");
            assert!(!quick.due(waiting(100, 9_999, 10, 10_000), coming), "recording is ten seconds behind");
            assert!(quick.due(waiting(100, 10_000, 10, 10_000), coming), "figures trail it by ten more");
            assert!(!quick.due(waiting(100, 20_000, 10, 60_000), coming), "recording is a minute behind");
            assert!(
                quick.due(waiting(100, 30_000, 10, 60_000), coming),
                "but nothing waits for longer than this"
            );
            let slow = Pace { last_took: Duration::from_secs(1), ..quick };
            assert!(!slow.due(waiting(100, 900, 10, 20), coming), "the last slice took longer");
            let slower = Pace { last_took: Duration::from_secs(7), ..quick };
            assert!(
                slower.due(waiting(100, 4_000, 10, 20), coming),
                "but what is recorded in time waits no longer"
            );
        }
        let late = waiting(100, 2_000, 400, 60_000);
        assert!(quick.due(late, Coming::Unknown), "nothing more seems to come");
        assert!(!quick.due(late, Coming::More), "a batch takes long, but it comes");
        assert!(quick.due(waiting(100, 300, 100, 60_000), Coming::Nothing), "nothing more comes");
        let wanted = Waiting { wanted: true, ..waiting(100, 0, 0, 60_000) };
        assert!(quick.due(wanted, Coming::More), "a closing waits for it");
    }

    fn refused() -> IngestError {
        IngestError::NoPeriod { customer: CustomerId(1), at: DateTime::UNIX_EPOCH }
    }

    fn lost() -> IngestError {
        StoreError::from(sqlx::Error::PoolTimedOut).into()
    }

    #[test]
    fn slices_shrink_while_they_take_too_long_and_grow_again() {
        let mut pace = Pace::default();
        pace.posted(SLICE_ROWS_MAX, SLICE_TAKES);
        assert_eq!(pace.rows_max, SLICE_ROWS_MAX);
        pace.posted(SLICE_ROWS_MAX, Duration::from_secs(20));
        assert_eq!(pace.rows_max, SLICE_ROWS_MAX / 2);
        pace.posted(SLICE_ROWS_MAX / 2, Duration::from_secs(8));
        assert_eq!(pace.rows_max, SLICE_ROWS_MAX * 3 / 8);
        pace.posted(SLICE_ROWS_MAX / 8, Duration::from_secs(7));
        assert_eq!(pace.rows_max, SLICE_ROWS_MAX * 3 / 16, "one with few rows took too long");
        (0..10).for_each(|_| pace.failed(Duration::ZERO, &refused()));
        assert_eq!(pace.rows_max, SLICE_ROWS_LEAST, "a few batches are always possible");
        pace.posted(SLICE_ROWS_LEAST, Duration::from_secs(5));
        assert_eq!(pace.rows_max, SLICE_ROWS_LEAST * 6 / 5);
        (0..10).for_each(|_| pace.posted(100, Duration::from_millis(10)));
        assert_eq!(pace.rows_max, SLICE_ROWS_LEAST * 6 / 5, "what few rows take says nothing of many");
        (0..10).for_each(|_| pace.posted(pace.rows_max, Duration::ZERO));
        assert_eq!(pace.rows_max, SLICE_ROWS_MAX);
    }

    #[test]
    fn slices_do_not_shrink_because_a_server_was_away() {
        let mut pace = Pace::default();
        (0..10).for_each(|_| pace.failed(Duration::from_secs(3), &lost()));
        assert_eq!(pace.rows_max, SLICE_ROWS_MAX);
        pace.failed(Duration::from_secs(9), &lost());
        assert_eq!(pace.rows_max, SLICE_ROWS_MAX / 2, "it may be why the connection was lost");
    }

    #[test]
    fn what_comes_is_known_while_this_process_records() {
        let nudge = Nudge::default();
        assert_eq!(nudge.coming(), Coming::Unknown);
        nudge.left(Some(0));
        assert_eq!(nudge.coming(), Coming::Nothing);
        let underway = nudge.underway();
        assert_eq!(nudge.coming(), Coming::More);
        drop(underway);
        assert_eq!(nudge.coming(), Coming::Nothing);
        nudge.left(Some(7));
        assert_eq!(nudge.coming(), Coming::More);
        nudge.left(None);
        assert_eq!(nudge.coming(), Coming::Unknown);
    }
}
