//! The traffic simulator: seeded events to the stream, as fast as it takes them or at a rate.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};

use super::packing::pack;
use super::traffic::{GATEWAY, Traffic};
use crate::ingest::{PublishError, Publisher};

/// Messages on their way to the stream at a time.
const IN_FLIGHT: usize = 64;

/// What to publish.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many events.
    pub events: usize,
    /// The seed: the same seed gives the same events.
    pub seed: u64,
    /// Tasks start at or after this ...
    pub from: DateTime<Utc>,
    /// ... and before this.
    pub to: DateTime<Utc>,
    /// Events per message.
    pub per_message: usize,
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
    let messages = pack(traffic, plan.per_message.max(1));
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
                publisher.publish(GATEWAY, body).await?;
                bar.inc(count as u64);
                Ok(count)
            }
        })
        .buffered(IN_FLIGHT)
        .try_collect()
        .await?;
    bar.finish_and_clear();
    Ok(Sent { events: counts.iter().sum(), messages: counts.len(), elapsed: started.elapsed() })
}
