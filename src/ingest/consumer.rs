//! The loop that takes messages from the stream and records them; ack follows commit.
//!
//! Three tasks, each one batch ahead of the next: one fetches (network), one decides (CPU), one records and acknowledges
//! (database). A stage that is slower holds the others back, so what is in memory is bounded by a few batches.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::jetstream::{Message, message::Acker};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::IngestError;
use super::batch::Batch;
use super::decide::Incoming;
use super::posting::Nudge;
use super::record::Recorder;
use super::stream::{StreamLimits, UsageStream};
use crate::health::Health;
use crate::store::journal::Origin;

/// Most messages of one batch, and so of one transaction: larger ones cost less per event up to here. Four batches on
/// their way stay below the messages that the stream lets out at a time.
const BATCH_MESSAGES_MAX: usize = 4_000;
/// Most bytes that are fetched together, as the stream sends them.
const BATCH_BYTES_MAX: usize = 6 << 20;
/// A batch ends with the message that reaches this many events, however small they came: what bounds the memory, and
/// where a larger transaction gains no more.
const BATCH_EVENTS_MAX: usize = 10_000;
/// How long one request waits for a first message; one that went to a leader that is gone is given up 5 s after that.
const FETCH_EXPIRES: Duration = Duration::from_secs(2);
/// The same for the rest of a batch, which is there already or not.
const DRAIN_EXPIRES: Duration = Duration::from_millis(500);
/// How often the settings of stream and consumer are looked at again.
const CHECK_EVERY: Duration = Duration::from_mins(1);
/// How often a batch that is being recorded is looked at: whether it can be.
const RECORDING_LOOK: Duration = Duration::from_millis(500);
/// Pause after the stream failed.
const STREAM_RETRY: Duration = Duration::from_secs(1);

/// The parts that this loop speaks for in the health of the program.
const INGEST: &str = "ingest";
const STREAM: &str = "stream";

/// Messages on their way from the fetching to the deciding task ...
struct Fetched {
    messages: Vec<Incoming>,
    ackers: Vec<Acker>,
}

/// ... and from there to the recording task.
struct Ready {
    batch: Batch,
    ackers: Vec<Acker>,
}

/// Consumes until a stop is asked for.
///
/// # Errors
/// [`IngestError::Drift`] where stream or consumer have wrong settings; other errors are waited out.
pub async fn run(
    stream: UsageStream,
    limits: StreamLimits,
    recorder: Recorder,
    health: Health,
    nudge: Nudge,
) -> Result<(), IngestError> {
    let consumer = stream.consumer(limits).await?;
    probe(&recorder, &health).await;
    // One batch waits decided while one is being recorded, and one waits fetched while one is being decided.
    let (sender, fetched) = mpsc::channel(1);
    let (ready, receiver) = mpsc::channel(1);
    let origin = Origin::Stream(stream.incarnation);
    recorder.shutdown().spawn(decide_all(recorder.clone(), fetched, ready));
    let recording =
        recorder.shutdown().spawn(record_all(origin, recorder.clone(), receiver, health.clone(), nudge));
    let fetched = fetch_all(&stream, limits, &consumer, &recorder, &health, &sender).await;
    drop(sender);
    if recording.await.is_err() {
        health.down(INGEST, "the recording task ended unexpectedly");
    }
    fetched
}

async fn fetch_all(
    stream: &UsageStream,
    limits: StreamLimits,
    consumer: &Consumer<pull::Config>,
    recorder: &Recorder,
    health: &Health,
    sender: &mpsc::Sender<Fetched>,
) -> Result<(), IngestError> {
    let mut checked = Instant::now();
    loop {
        if checked.elapsed() >= CHECK_EVERY {
            checked = Instant::now();
            match stream.check(limits).await {
                Err(error @ IngestError::Drift { .. }) => return Err(error),
                Err(error) => tracing::warn!(%error, "the stream's settings could not be looked at"),
                Ok(()) => {}
            }
        }
        let messages = tokio::select! {
            biased;
            () = recorder.shutdown().stopped() => return Ok(()),
            messages = fetch(consumer) => messages,
        };
        match messages {
            Ok(messages) if messages.is_empty() => {
                health.up(STREAM);
                probe(recorder, health).await;
            }
            Ok(messages) => {
                health.up(STREAM);
                let (messages, ackers) = take_apart(messages);
                if sender.send(Fetched { messages, ackers }).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the stream does not answer; trying again");
                health.down(STREAM, "the stream does not answer");
                tokio::select! {
                    () = recorder.shutdown().stopped() => return Ok(()),
                    () = tokio::time::sleep(STREAM_RETRY) => {}
                }
            }
        }
    }
}

/// While nothing comes in, whether it could be recorded.
async fn probe(recorder: &Recorder, health: &Health) {
    if recorder.stuck() {
        health.down(INGEST, "usage cannot be recorded");
        return;
    }
    match recorder.database().ping_ingest().await {
        Ok(()) => health.up(INGEST),
        Err(error) => {
            tracing::warn!(%error, "the database does not answer");
            health.down(INGEST, "the database does not answer");
        }
    }
}

/// The next messages: waits for a first one, then takes what is there with it.
async fn fetch(consumer: &Consumer<pull::Config>) -> Result<Vec<Message>, IngestError> {
    let failed = || IngestError::stream("cannot fetch messages");
    let mut messages = Vec::new();
    let first = consumer.batch().max_messages(1).expires(FETCH_EXPIRES).messages();
    let mut first = first.await.map_err(|error| failed()(error.into()))?;
    while let Some(message) = first.next().await {
        messages.push(message.map_err(failed())?);
    }
    if messages.is_empty() {
        return Ok(messages);
    }
    let rest =
        consumer.fetch().max_messages(BATCH_MESSAGES_MAX).max_bytes(BATCH_BYTES_MAX).expires(DRAIN_EXPIRES);
    let mut rest = rest.messages().await.map_err(|error| failed()(error.into()))?;
    while let Some(message) = rest.next().await {
        match message {
            Ok(message) => messages.push(message),
            // What was received is good; the fault shows again at the next fetch.
            Err(error) => {
                tracing::debug!(%error, "a fetch ended early");
                break;
            }
        }
    }
    Ok(messages)
}

fn take_apart(messages: Vec<Message>) -> (Vec<Incoming>, Vec<Acker>) {
    messages
        .into_iter()
        .map(|message| {
            let position = message.info().ok().map(|info| {
                let published = DateTime::<Utc>::from_timestamp(
                    info.published.unix_timestamp(),
                    info.published.nanosecond(),
                );
                (i64::try_from(info.stream_sequence).unwrap_or(i64::MAX), published.unwrap_or_default())
            });
            let (message, acker) = message.split();
            // Sequence and time come from the server's reply subject only; headers of the publisher are not trusted.
            let (sequence, received_at) = position.unwrap_or_default();
            (incoming(sequence, received_at, message), acker)
        })
        .unzip()
}

/// A message of the stream as recording takes it.
pub fn incoming(sequence: i64, received_at: DateTime<Utc>, message: async_nats::Message) -> Incoming {
    let headers = message.headers.as_ref();
    let encoding = headers.and_then(|headers| headers.get("Content-Encoding")).map(ToString::to_string);
    Incoming {
        sequence,
        subject: message.subject.to_string(),
        headers: headers.filter(|headers| !headers.is_empty()).and_then(headers_json),
        encoding,
        payload: message.payload,
        replay_of: None,
        received_at,
        window_waived: false,
    }
}

fn headers_json(headers: &async_nats::HeaderMap) -> Option<String> {
    let object: serde_json::Map<String, serde_json::Value> = headers
        .iter()
        .map(|(name, values)| {
            let values =
                values.iter().map(|value| value.as_str().replace('\0', "\u{fffd}")).collect::<Vec<_>>();
            (name.to_string(), values.into())
        })
        .collect();
    serde_json::to_string(&object).ok()
}

/// Decides batch after batch, outside of the threads that serve connections: it takes tens of milliseconds of CPU.
async fn decide_all(recorder: Recorder, mut fetched: mpsc::Receiver<Fetched>, ready: mpsc::Sender<Ready>) {
    while let Some(Fetched { messages, mut ackers }) = fetched.recv().await {
        let mut waiting = messages.into_iter();
        while !ackers.is_empty() {
            let recorder = recorder.clone();
            let deciding = tokio::task::spawn_blocking(move || {
                let batch = recorder.decide_next(&mut waiting, BATCH_EVENTS_MAX);
                (batch, waiting)
            });
            let Ok((batch, rest)) = deciding.await else {
                // Not acknowledged: the messages are delivered again after the ack wait.
                tracing::error!("a batch could not be decided; its messages will be delivered again");
                break;
            };
            waiting = rest;
            let later = ackers.split_off(batch.decided.len());
            if ready.send(Ready { batch, ackers }).await.is_err() {
                return;
            }
            ackers = later;
        }
    }
}

async fn record_all(
    origin: Origin,
    recorder: Recorder,
    mut receiver: mpsc::Receiver<Ready>,
    health: Health,
    nudge: Nudge,
) {
    while let Some(Ready { batch, ackers }) = receiver.recv().await {
        let started = Instant::now();
        let events = batch.event_count();
        let outcome = match tell(&recorder, &health, recorder.record(origin, batch)).await {
            Ok(outcome) => outcome,
            Err(IngestError::Stopping) => return,
            Err(error) => {
                // Not acknowledged: the messages are delivered again after the ack wait.
                tracing::error!(%error, "a batch could not be recorded; its messages will be delivered again");
                health.down(INGEST, "usage cannot be recorded");
                continue;
            }
        };
        health.up(INGEST);
        nudge.now();
        for acker in &ackers {
            // A lost ack is harmless: the message comes again and is a duplicate.
            if let Err(error) = acker.ack().await {
                tracing::debug!(%error, "an ack could not be sent");
            }
        }
        let elapsed = started.elapsed();
        super::meters::recorded(outcome, ackers.len(), events, elapsed);
        tracing::debug!(
            messages = ackers.len(),
            recorded = outcome.recorded,
            duplicates = outcome.duplicates,
            rejected = outcome.rejected,
            elapsed_ms = elapsed.as_millis(),
            "batch recorded"
        );
    }
}

/// Waits until a batch is recorded, and says so while it cannot be.
async fn tell<T>(recorder: &Recorder, health: &Health, recording: impl Future<Output = T>) -> T {
    tokio::pin!(recording);
    loop {
        tokio::select! {
            done = &mut recording => return done,
            () = tokio::time::sleep(RECORDING_LOOK) => if recorder.stuck() {
                health.down(INGEST, "usage cannot be recorded");
            }
        }
    }
}
