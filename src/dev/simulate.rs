//! The traffic simulator: seeded events to the stream, as fast as it takes them or at a rate.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};

use super::packing::{self, pack};
use super::traffic::{GATEWAY, Traffic};
use crate::ingest::{PublishError, Publisher};

/// Messages on their way to the stream at a time.
const IN_FLIGHT: usize = 64;
/// The same for messages of one event, which are many and small.
const SINGLES_IN_FLIGHT: usize = 4_096;

/// What to publish.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many events.
    pub events: usize,
    /// The seed: with the same times it gives the same events.
    pub seed: u64,
    /// Tasks start at or after this ...
    pub from: DateTime<Utc>,
    /// ... and before this; no event is later.
    pub to: DateTime<Utc>,
    /// Most events per message; at a rate, fewer where one would wait longer than 10 ms for its message.
    pub per_message: usize,
    /// Whether messages are compressed with zstd.
    pub zstd: bool,
    /// Events per second; `None` is as fast as the stream takes them.
    pub rate: Option<u32>,
}

/// What was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Events.
    pub events: usize,
    /// Messages they were packed into.
    pub messages: usize,
    /// Time it took.
    pub elapsed: Duration,
}

/// Publishes the plan's traffic, showing progress, and returns once the stream has stored all of it.
///
/// # Errors
/// [`PublishError`] of the first message that the stream did not take.
pub async fn simulate(publisher: &Publisher, plan: &Plan) -> Result<Sent, PublishError> {
    let started = Instant::now();
    let bar = ProgressBar::new(plan.events as u64).with_message("publishing");
    if let Ok(style) = ProgressStyle::with_template("{msg:>12} {bar:40} {pos}/{len} events, {per_sec}") {
        bar.set_style(style);
    }
    let traffic = Traffic::new(plan.seed, plan.from, plan.to).take(plan.events);
    let per_message =
        plan.rate.map_or(plan.per_message, |rate| plan.per_message.min(packing::per_message(rate)));
    let messages = pack(traffic, per_message.max(1));
    let due = plan.rate.map(|rate| Duration::from_secs(1) / rate.max(1));
    let mut ahead = 0_u32;
    let paced = stream::iter(messages).then(|(body, count)| {
        let wait = due.map(|each| started + each * ahead);
        ahead = ahead.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        async move {
            if let Some(at) = wait {
                tokio::time::sleep_until(at.into()).await;
            }
            (body, count)
        }
    });
    let counts: Vec<usize> = paced
        .map(|(body, count)| {
            let bar = &bar;
            async move {
                // Where it cannot be compressed it goes as it is.
                let compressed = if plan.zstd { packing::compressed(&body).ok() } else { None };
                let (zstd, body) = (compressed.is_some(), compressed.unwrap_or(body));
                publisher.publish_packed(GATEWAY, body, zstd).await?;
                bar.inc(count as u64);
                Ok(count)
            }
        })
        .buffered(if per_message > 1 { IN_FLIGHT } else { SINGLES_IN_FLIGHT })
        .try_collect()
        .await?;
    bar.finish_and_clear();
    Ok(Sent { events: counts.iter().sum(), messages: counts.len(), elapsed: started.elapsed() })
}
