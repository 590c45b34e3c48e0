//! Rejections tried again: by themselves when the gap they wait for is filled, or when finance asks.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::IngestError;
use super::decide::{Incoming, ReplayOf};
use super::pace::Nudge;
use super::record::Recorder;
use crate::domain::ids::RejectionId;
use crate::metering::Reason;
use crate::store::commit;
use crate::store::journal::Origin;
use crate::store::replay::{self, Replayable};

/// Rejections that are tried together, of those that were asked for and of those that a newer catalog may have done away with:
/// as a transaction or, where their bodies are large, as several.
const REPLAY_MAX: u16 = 500;
/// What is read of them at a time comes to this many bytes at most, or is one of them: an event may have megabytes.
const READ_BYTES_MAX: i64 = 32 << 20;
/// Corrections whose estimate is looked for at a time: each costs a descent of an index.
const WAITING_MAX: i64 = 2000;
/// How often the loop looks.
const TICK: Duration = Duration::from_secs(1);

/// Reasons that a newer catalog may have done away with: these are tried again by themselves.
const CATALOG_REASONS: [Reason; 4] =
    [Reason::UnknownGateway, Reason::UnknownCustomer, Reason::SuspendedCustomer, Reason::Unpriced];
/// The same of those that nothing is billed by: they hold up none of the others, however many they are.
const CATALOG_REASONS_LAST: [Reason; 1] = [Reason::NothingUsed];

/// What one batch of due rejections came to.
struct Round {
    /// How many were due, of [`REPLAY_MAX`] or more.
    due: usize,
    /// How many of them are settled.
    settled: i32,
}

/// Tries one batch of due rejections; returns how many of them are settled by it.
///
/// # Errors
/// [`IngestError`]; what was settled before it stays so.
pub async fn replay_once(recorder: &Recorder) -> Result<i32, IngestError> {
    Ok(round(recorder).await?.settled)
}

async fn round(recorder: &Recorder) -> Result<Round, IngestError> {
    let names = |reasons: &[Reason]| reasons.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut tx = recorder.database().read_ingest().await?;
    let due =
        replay::due(&mut tx, &names(&CATALOG_REASONS), &names(&CATALOG_REASONS_LAST), REPLAY_MAX.into())
            .await?;
    drop(tx);
    if due.is_empty() {
        return Ok(Round { due: 0, settled: 0 });
    }
    let now = recorder.clock().now();
    let (mut left, mut tried, mut new, mut duplicates) = (due.as_slice(), 0, 0, 0);
    while !left.is_empty() {
        let mut tx = recorder.database().read_ingest().await?;
        let read = replay::read(&mut tx, left, READ_BYTES_MAX).await?;
        drop(tx);
        let Some(last) = read.last().map(|rejection| rejection.id) else { break };
        left = left.split_at(left.partition_point(|id| *id <= last)).1;
        tried += read.len();
        let mut messages = read.into_iter().map(|rejection| incoming(rejection, now));
        while messages.len() > 0 {
            let batch = recorder.decide_next(&mut messages, usize::MAX);
            let outcome = recorder.record(Origin::Replay, batch).await?;
            new += outcome.recorded;
            duplicates += outcome.duplicates;
        }
    }
    tracing::info!(tried, recorded = new, duplicates, "rejections tried again");
    Ok(Round { due: due.len(), settled: new + duplicates })
}

fn incoming(rejection: Replayable, now: DateTime<Utc>) -> Incoming {
    // Neither a gateway that was not registered nor an event that was not found in its message has a count yet.
    let counted = rejection.event_index >= 0 && rejection.reason != Reason::UnknownGateway.as_str();
    Incoming {
        sequence: rejection.stream_seq,
        subject: rejection.subject,
        headers: rejection.headers,
        // A whole message is kept as it came, an event of one decompressed.
        encoding: rejection.encoding.filter(|_| rejection.event_index < 0),
        payload: Bytes::from(rejection.raw),
        replay_of: Some(ReplayOf {
            rejection: rejection.id,
            life: rejection.incarnation,
            event_index: rejection.event_index,
            rejected_at: rejection.rejected_at,
            tried_at: now,
            counted,
        }),
        received_at: rejection.received_at,
        window_waived: rejection.window_waived,
    }
}

/// Replays until a stop is asked for.
pub async fn run(recorder: Recorder, nudge: Nudge) {
    let mut looked_at = None;
    while !recorder.shutdown().stopping() {
        match pass(&recorder, &mut looked_at).await {
            Ok(Round { due, settled }) => {
                if settled > 0 {
                    nudge.now();
                }
                // More may be due. Each is tried once with a catalog, so there is an end to it even where all stay rejected.
                if settled > 0 || due >= usize::from(REPLAY_MAX) {
                    continue;
                }
            }
            Err(IngestError::Stopping) => return,
            Err(error) => tracing::warn!(%error, "replay failed; trying again"),
        }
        tokio::select! {
            () = recorder.shutdown().stopped() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

async fn pass(recorder: &Recorder, looked_at: &mut Option<RejectionId>) -> Result<Round, IngestError> {
    let mut tx = recorder.database().begin_ingest().await?;
    let reason = Reason::UnknownEstimate.as_str();
    let last = replay::request_waiting(&mut tx, reason, *looked_at, WAITING_MAX).await?;
    commit(tx).await?;
    *looked_at = last;
    round(recorder).await
}
