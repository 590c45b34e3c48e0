//! Rejections tried again: by themselves when the gap they wait for is filled, or when finance asks.

use std::time::Duration;

use bytes::Bytes;

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
const REPLAY_MAX: i64 = 500;
/// What is read of them at a time comes to this many bytes at most, or is one of them: an event may have megabytes.
const READ_BYTES_MAX: i64 = 32 << 20;
/// Corrections whose estimate is looked for at a time: each costs a descent of an index.
const WAITING_MAX: i64 = 2000;
/// How often the loop looks.
const TICK: Duration = Duration::from_secs(1);

/// Reasons that a newer catalog may have done away with: these are tried again by themselves.
const CATALOG_REASONS: [Reason; 5] = [
    Reason::UnknownGateway,
    Reason::UnknownCustomer,
    Reason::SuspendedCustomer,
    Reason::Unpriced,
    Reason::NothingUsed,
];

/// Tries one batch of due rejections; returns how many of them are settled by it.
///
/// # Errors
/// [`IngestError`]; what was settled before it stays so.
pub async fn replay_once(recorder: &Recorder) -> Result<i32, IngestError> {
    let reasons: Vec<String> = CATALOG_REASONS.iter().map(ToString::to_string).collect();
    let mut tx = recorder.database().read_ingest().await?;
    let due = replay::due(&mut tx, &reasons, REPLAY_MAX).await?;
    drop(tx);
    if due.is_empty() {
        return Ok(0);
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
    Ok(new + duplicates)
}

fn incoming(rejection: Replayable, now: chrono::DateTime<chrono::Utc>) -> Incoming {
    // A window is measured from when the stream took the event: waiting for a price does not make it too old, nor does
    // waiting in the stream. What came from the future is measured again from now.
    let received_at = if rejection.reason == Reason::Future.as_str() { now } else { rejection.received_at };
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
        }),
        received_at,
        window_waived: rejection.window_waived,
    }
}

/// Replays until a stop is asked for.
pub async fn run(recorder: Recorder, nudge: Nudge) {
    let mut looked_at = None;
    while !recorder.shutdown().stopping() {
        match pass(&recorder, &mut looked_at).await {
            // Nothing was due, or all that was tried is rejected still: more of it may wait for the next look.
            Ok(0) => {}
            Ok(_) => {
                nudge.now();
                continue;
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

async fn pass(recorder: &Recorder, looked_at: &mut Option<RejectionId>) -> Result<i32, IngestError> {
    let mut tx = recorder.database().begin_ingest().await?;
    let reason = Reason::UnknownEstimate.as_str();
    let last = replay::request_waiting(&mut tx, reason, *looked_at, WAITING_MAX).await?;
    commit(tx).await?;
    *looked_at = last;
    replay_once(recorder).await
}
