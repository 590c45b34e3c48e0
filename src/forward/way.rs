//! The way of one message to the stream: tried until the stream says that it has it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::meters;
use super::stamp::Packed;
use crate::health::Health;
use crate::ingest::Publisher;
use crate::shutdown::Shutdown;

/// First and longest pause before a message is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The part of the program that this speaks for.
pub const STREAM: &str = "stream";

/// What all messages share.
#[derive(Debug)]
pub struct Way {
    /// The connection.
    pub publisher: Publisher,
    /// Whose subject it is.
    pub gateway: Arc<str>,
    /// What asks it to stop.
    pub shutdown: Shutdown,
    /// Where it says what is wrong.
    pub health: Health,
    /// The highest number that the stream can have: from an earlier run, or handed to it by this one.
    pub handed: AtomicU64,
    /// Why publishing fails at the moment.
    pub failing: Mutex<Option<String>>,
}

impl Way {
    /// Returns when the stream has the message, whose highest number is `last`, or when a stop is asked for: `false` then.
    pub async fn publish(&self, message: Packed, events: usize, last: u64) -> bool {
        let mut pause = RETRY.0;
        while !self.tried(&message, events, last).await {
            tokio::select! {
                // Some longer and some shorter, so that they do not come back all at once.
                () = tokio::time::sleep(pause + pause * u32::from(rand::random::<u8>()) / 512) => {}
                () = self.shutdown.stopped() => return false,
            }
            pause = (pause * 2).min(RETRY.1);
        }
        true
    }

    /// Whether the stream has the message now; says once why it has not.
    async fn tried(&self, message: &Packed, events: usize, last: u64) -> bool {
        // While there is no connection, publishing would only pile up copies in the client.
        if !self.publisher.connected() {
            let why = format!("{}; events are kept", self.publisher.not_connected());
            self.health.down(STREAM, why.as_str());
            if self.fails(Some(&why)).is_none_or(|said| said != why) {
                tracing::warn!("NATS is {why} and published later");
            }
            return false;
        }
        self.handed.fetch_max(last, Ordering::AcqRel);
        match self.publisher.publish_packed(&self.gateway, message.body.clone(), message.zstd).await {
            Ok(_) => {
                self.health.up(STREAM);
                if self.fails(None).is_some() {
                    tracing::info!("events are published again");
                }
                meters::published(events);
                true
            }
            Err(error) => {
                meters::retried();
                self.health.down(STREAM, "it takes no messages; events are kept");
                if self.fails(Some(&error.to_string())).is_none() {
                    tracing::warn!(%error, "events cannot be published; they are kept and tried again");
                }
                false
            }
        }
    }

    /// Notes why publishing fails, or that it does not any more; returns what was noted before.
    fn fails(&self, why: Option<&str>) -> Option<String> {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *failing, why.map(str::to_owned))
    }
}
