//! What becomes of messages once they are fetched: one task decides them (CPU), one records and acknowledges them
//! (database); the ack follows the commit.
//!
//! What is decided while a batch is being recorded is recorded together after it. So events that come slowly wait for one
//! transaction at most, not for one after the other, and the slower the database, the fewer and larger they are. A task
//! that is slower holds the one before it back: what is in memory is bounded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Subject;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::IngestError;
use super::batch::Batch;
use super::decide::{Decided, Incoming};
use super::pace::{Nudge, Underway};
use super::record::{DECIDED_BYTES_MAX, Recorder};
use super::stream::{self, UsageStream};
use crate::health::Health;
use crate::store::journal::Origin;

/// A batch ends with the message that reaches this many events, however small they came, or [`DECIDED_BYTES_MAX`], and so
/// much waits to be recorded together: what bounds the memory, and where a larger transaction gains no more.
const BATCH_EVENTS_MAX: usize = 12_500;
/// What a message counts for among them, however few events it has: more small ones could not be on their way, because the
/// stream lets out no more messages at a time.
const MESSAGE_WEIGHT: usize = 2;
/// What acknowledges a message.
const ACK: Bytes = Bytes::from_static(b"+ACK");
/// How often a batch that is being recorded is looked at: whether it can be.
const RECORDING_LOOK: Duration = Duration::from_millis(500);

/// The part that recording speaks for in the health of the program.
pub(super) const INGEST: &str = "ingest";

/// Messages on their way from the fetching to the deciding task ...
pub(super) struct Fetched {
    /// The messages ...
    pub(super) messages: Vec<Incoming>,
    /// ... and the subject that acknowledges each of them.
    pub(super) replies: Vec<Option<Subject>>,
    /// Held until they are recorded.
    pub(super) underway: Underway,
}

/// ... and from there to the recording task.
struct Ready {
    batch: Batch,
    replies: Vec<Option<Subject>>,
    underway: Underway,
}

/// What waits for the recording task, with its share of what may wait, which is given back when it is taken.
type Waiting = (Ready, OwnedSemaphorePermit);

/// Starts both tasks; they end when the sender is dropped, after what was sent is recorded, which the second one tells.
pub(super) fn start(
    stream: &UsageStream,
    recorder: &Recorder,
    health: &Health,
    nudge: &Nudge,
) -> (mpsc::Sender<Fetched>, JoinHandle<()>) {
    // One batch waits fetched while one is being decided.
    let (sender, fetched) = mpsc::channel(1);
    // Bounded by the room that its batches take.
    let (ready, receiver) = mpsc::unbounded_channel();
    recorder.shutdown().spawn(decide_all(recorder.clone(), fetched, ready));
    let recording = Recording {
        origin: Origin::Stream(stream.incarnation),
        recorder: recorder.clone(),
        acks: Acks(stream.client()),
        health: health.clone(),
        nudge: nudge.clone(),
    };
    (sender, recorder.shutdown().spawn(recording.record_all(receiver)))
}

/// Decides batch after batch, outside of the threads that serve connections: it takes tens of milliseconds of CPU.
async fn decide_all(
    recorder: Recorder,
    mut fetched: mpsc::Receiver<Fetched>,
    ready: mpsc::UnboundedSender<Waiting>,
) {
    let room = Arc::new(Semaphore::new(BATCH_EVENTS_MAX));
    while let Some(Fetched { messages, mut replies, underway }) = fetched.recv().await {
        let mut waiting = messages.into_iter();
        while !replies.is_empty() {
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
            let later = replies.split_off(batch.decided.len());
            let Ok(share) = Arc::clone(&room).acquire_many_owned(weight(&batch)).await else { return };
            let decided = Ready { batch, replies, underway: Underway::clone(&underway) };
            if ready.send((decided, share)).is_err() {
                return;
            }
            replies = later;
        }
    }
}

/// What a batch takes of the room for those that wait, by its events, messages or bytes; the largest takes all of it.
fn weight(batch: &Batch) -> u32 {
    let bytes: usize = batch.decided.iter().map(Decided::body_len).sum();
    let by_bytes = bytes.div_ceil(DECIDED_BYTES_MAX / BATCH_EVENTS_MAX);
    let by_messages = batch.decided.len() * MESSAGE_WEIGHT;
    let weight = batch.event_count().max(by_messages).max(by_bytes).min(BATCH_EVENTS_MAX);
    u32::try_from(weight).unwrap_or(u32::MAX)
}

/// Sends acknowledgements.
pub(super) struct Acks(pub(super) async_nats::Client);

impl Acks {
    /// A lost one is harmless: the message comes again and is a duplicate.
    pub(super) async fn send(&self, replies: Vec<Option<Subject>>) {
        let sent = async {
            for reply in replies.into_iter().flatten() {
                self.0.publish(reply, ACK).await?;
            }
            self.0.flush().await.map_err(async_nats::Error::from)
        };
        if let Err(error) = stream::within("acks could not be sent", sent).await {
            tracing::debug!(%error, "messages will be delivered again");
        }
    }
}

/// The recording task.
struct Recording {
    origin: Origin,
    recorder: Recorder,
    acks: Acks,
    health: Health,
    nudge: Nudge,
}

impl Recording {
    async fn record_all(self, mut receiver: mpsc::UnboundedReceiver<Waiting>) {
        let mut waiting = Vec::new();
        while receiver.recv_many(&mut waiting, usize::MAX).await > 0 {
            for ready in joined(waiting.drain(..)) {
                if self.record(ready).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Records a batch and acknowledges its messages.
    ///
    /// # Errors
    /// [`IngestError::Stopping`], alone.
    async fn record(&self, Ready { batch, replies, underway }: Ready) -> Result<(), IngestError> {
        let started = Instant::now();
        let events = batch.event_count();
        let outcome = match self.tell(self.recorder.record(self.origin, batch)).await {
            Ok(outcome) => outcome,
            Err(IngestError::Stopping) => return Err(IngestError::Stopping),
            Err(error) => {
                // Not acknowledged: the messages are delivered again after the ack wait.
                tracing::error!(%error, "a batch could not be recorded; its messages will be delivered again");
                self.health.down(INGEST, "usage cannot be recorded");
                return Ok(());
            }
        };
        self.health.up(INGEST);
        drop(underway);
        self.nudge.now();
        let messages = replies.len();
        self.acks.send(replies).await;
        let elapsed = started.elapsed();
        super::meters::recorded(outcome, messages, events, elapsed);
        tracing::debug!(
            messages,
            recorded = outcome.recorded,
            duplicates = outcome.duplicates,
            rejected = outcome.rejected,
            elapsed_ms = elapsed.as_millis(),
            "batch recorded"
        );
        Ok(())
    }

    /// Waits until a batch is recorded, and says so while it cannot be.
    async fn tell<T>(&self, recording: impl Future<Output = T>) -> T {
        tokio::pin!(recording);
        loop {
            tokio::select! {
                done = &mut recording => return done,
                () = tokio::time::sleep(RECORDING_LOOK) => if self.recorder.stuck() {
                    self.health.down(INGEST, "usage cannot be recorded");
                }
            }
        }
    }
}

/// What waits, as few batches: those that were decided with one version of the catalog are one. Gives their room back.
fn joined(waiting: impl Iterator<Item = Waiting>) -> Vec<Ready> {
    let mut all: Vec<Ready> = Vec::new();
    for (mut ready, _share) in waiting {
        match all.last_mut() {
            Some(last) if last.batch.catalog_version == ready.batch.catalog_version => {
                last.batch.append(ready.batch);
                last.replies.append(&mut ready.replies);
            }
            _ => all.push(ready),
        }
    }
    all
}
