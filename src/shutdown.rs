//! Stopping in two steps: soft (finish what runs, take nothing new), then hard (drop everything).

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long running work may take to finish after a soft stop.
pub const GRACE: Duration = Duration::from_secs(20);

/// Handed to every long-running task.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    soft: CancellationToken,
    tracker: TaskTracker,
}

impl Shutdown {
    /// A fresh one, nothing stopped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everything to finish.
    pub fn stop(&self) {
        self.soft.cancel();
        self.tracker.close();
    }

    /// Whether a stop was asked for.
    pub fn stopping(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Resolves when a stop is asked for.
    pub async fn stopped(&self) {
        self.soft.cancelled().await;
    }

    /// Runs a task that the stop waits for.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Waits until every task has ended, at most [`GRACE`]; `false` where some had to be left behind.
    pub async fn drained(&self) -> bool {
        self.tracker.close();
        tokio::time::timeout(GRACE, self.tracker.wait()).await.is_ok()
    }
}
