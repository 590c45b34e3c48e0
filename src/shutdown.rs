//! Stopping in two steps: soft (finish what runs, take nothing new), then hard (drop everything); and parts of the program
//! that end before they are asked to.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::SetOnce;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long running work may take to finish after a soft stop.
pub const GRACE: Duration = Duration::from_secs(20);

/// Handed to every long-running task.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    soft: CancellationToken,
    tracker: TaskTracker,
    /// The first part that ended by itself.
    ended: Arc<SetOnce<&'static str>>,
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

    /// Runs a task that the stop waits for, for somebody who looks at how it ends.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Runs a part of the program, which goes on until a stop is asked for: one that returns before that, or panics, is told
    /// of by [`Self::part_ended`].
    pub fn spawn_part(&self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.clone();
        self.tracker.spawn(async move {
            let panicked = AssertUnwindSafe(part).catch_unwind().await.is_err();
            if panicked || !shutdown.stopping() {
                tracing::error!(part = name, panicked, "a part of the program ended by itself");
                // Only the first is told: the others may have ended because of it.
                shutdown.ended.set(name).ok();
            }
        });
    }

    /// Resolves, with its name, when a part has ended by itself.
    pub async fn part_ended(&self) -> &'static str {
        self.ended.wait().await
    }

    /// The first part that has ended by itself, where one has.
    pub fn ended_part(&self) -> Option<&'static str> {
        self.ended.get().copied()
    }

    /// Waits until every task has ended, at most [`GRACE`]; `false` where some had to be left behind.
    pub async fn drained(&self) -> bool {
        self.tracker.close();
        tokio::time::timeout(GRACE, self.tracker.wait()).await.is_ok()
    }
}
