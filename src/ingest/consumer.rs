//! The loop that takes messages from the stream; [`super::pipeline`] decides and records them.

use std::time::{Duration, Instant};

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::{Client, Subject};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::IngestError;
use super::decide::Incoming;
use super::fetch::{connects, fetch, last_info};
use super::life::{self, Life};
use super::message;
use super::pace::Nudge;
use super::pipeline::{self, Fetched, INGEST};
use super::record::Recorder;
use super::stream::{self, StreamLimits, UsageStream};
use super::unreadable::{Suspected, Taken, Unreadable};
use crate::health::Health;
use crate::store::StoreError;

/// How long nothing may come in before it is asked whether something should have.
const STARVED_AFTER: Duration = Duration::from_secs(12);
/// Looks in a row, a fetch apart, that must find messages waiting before another subscription is tried.
const STARVED_LOOKS: u32 = 2;
/// Requests in a row that may be lost, as one is when the consumer gets another leader, before the stream counts as silent.
const LOST_REQUESTS_MAX: u32 = 2;
/// How long the database may take to show that it could take a commit.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the stream failed.
const STREAM_RETRY: Duration = Duration::from_millis(500);

/// The part that this loop speaks for in the health of the program, besides [`INGEST`].
pub(super) const STREAM: &str = "stream";
/// What its health says while requests are not answered.
pub(super) const SILENT: &str = "the stream does not answer";

/// Why consuming ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// A stop was asked for.
    Stopped,
    /// A pause was asked for.
    Paused,
    /// Messages wait, but none is delivered.
    Starved {
        /// Whether some were before.
        received: bool,
    },
    /// The stream counts its sequences again.
    OtherLife,
}

/// Consumes until a stop or a pause is asked for, or a watchdog ends it; what was taken is recorded first.
///
/// # Errors
/// [`IngestError::Drift`] where the consumer has wrong settings; [`IngestError::Stream`] where it cannot be opened.
pub(super) async fn run(
    stream: UsageStream,
    limits: StreamLimits,
    recorder: Recorder,
    health: Health,
    nudge: Nudge,
    pause: CancellationToken,
) -> Result<Ended, IngestError> {
    let consumer = stream.consumer(limits).await?;
    let (sender, recording) = pipeline::start(&stream, &recorder, &health, &nudge);
    let client = stream.client();
    let connects = connects(&client);
    let mut fetching = Fetching {
        client,
        connects,
        unreadable: Unreadable::new(connects),
        stream,
        consumer,
        recorder,
        health: health.clone(),
        nudge: nudge.clone(),
        probing: None,
        last_received: Instant::now(),
        received: false,
        starved_looks: 0,
        lost_requests: 0,
    };
    fetching.probe().await;
    let ended = fetching.fetch_all(&sender, &pause).await;
    drop(sender);
    nudge.left(None);
    if recording.await.is_err() {
        health.down(INGEST, "the recording task ended unexpectedly");
    }
    Ok(ended)
}

struct Fetching {
    client: Client,
    stream: UsageStream,
    consumer: Consumer<pull::Config>,
    recorder: Recorder,
    health: Health,
    nudge: Nudge,
    /// How often the client had connected when the stream was last compared with the ledger.
    connects: u64,
    unreadable: Unreadable,
    /// A question to the database that has no answer yet.
    probing: Option<JoinHandle<Result<(), StoreError>>>,
    last_received: Instant,
    received: bool,
    starved_looks: u32,
    lost_requests: u32,
}

impl Fetching {
    async fn fetch_all(&mut self, sender: &mpsc::Sender<Fetched>, pause: &CancellationToken) -> Ended {
        let shutdown = self.recorder.shutdown().clone();
        let mut in_vain = false;
        loop {
            let messages = tokio::select! {
                biased;
                () = shutdown.stopped() => return Ended::Stopped,
                () = pause.cancelled() => return Ended::Paused,
                messages = self.next(sender, in_vain) => match messages {
                    Ok(messages) => messages,
                    Err(ended) => return ended,
                }
            };
            in_vain = !matches!(&messages, Ok(Some(messages)) if !messages.is_empty());
            let failed = match messages {
                Ok(None) => {
                    self.lost_requests += 1;
                    if self.lost_requests >= LOST_REQUESTS_MAX {
                        tracing::warn!(in_a_row = self.lost_requests, "requests for messages are lost");
                        self.health.down(STREAM, SILENT);
                    }
                    false
                }
                Ok(Some(messages)) if messages.is_empty() => {
                    self.answers();
                    self.nudge.left(Some(0));
                    self.probe().await;
                    false
                }
                Ok(Some(messages)) => {
                    self.answers();
                    let underway = self.nudge.underway();
                    self.nudge.left(Some(last_info(&messages).map_or(0, |info| info.pending)));
                    // What is in hand may come again and again while it cannot be recorded.
                    self.stuck();
                    match self.still_the_same().await {
                        Ok(true) => {}
                        Ok(false) => return Ended::OtherLife,
                        Err(error) => {
                            // Not acknowledged: the messages are delivered again after the ack wait.
                            tracing::warn!(%error, "the stream could not be compared with the ledger");
                            continue;
                        }
                    }
                    self.receives();
                    let Some((messages, replies)) = self.with_bodies(messages).await else { continue };
                    if sender.send(Fetched { messages, replies, underway }).await.is_err() {
                        return Ended::Stopped;
                    }
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "the stream does not answer; trying again");
                    self.health.down(STREAM, SILENT);
                    true
                }
            };
            if self.starved().await {
                return Ended::Starved { received: self.received };
            }
            if failed {
                tokio::select! {
                    () = shutdown.stopped() => return Ended::Stopped,
                    () = pause.cancelled() => return Ended::Paused,
                    () = tokio::time::sleep(STREAM_RETRY) => {}
                }
            }
        }
    }

    /// The next messages, after those before them that cannot arrive.
    ///
    /// # Errors
    /// Why consuming ends, alone.
    async fn next(
        &mut self,
        sender: &mpsc::Sender<Fetched>,
        in_vain: bool,
    ) -> Result<Result<Option<Vec<Message>>, IngestError>, Ended> {
        let many = self.take_unreadable(sender, in_vain).await?;
        Ok(fetch(&self.client, &self.consumer, many).await)
    }

    /// The stream has answered a request for messages.
    fn answers(&mut self) {
        self.lost_requests = 0;
        self.health.up(STREAM);
    }

    /// Messages come in.
    fn receives(&mut self) {
        (self.received, self.last_received, self.starved_looks) = (true, Instant::now(), 0);
    }

    /// Hands on what was delivered and cannot arrive, where there may be such messages; whether there were.
    ///
    /// # Errors
    /// Why consuming ends, alone.
    async fn take_unreadable(
        &mut self,
        sender: &mpsc::Sender<Fetched>,
        in_vain: bool,
    ) -> Result<bool, Ended> {
        if self.recorder.stuck() {
            return Ok(false);
        }
        let taken = async {
            let connects = connects(&self.client);
            let of = (&self.consumer, self.stream.incarnation);
            let delivered = match self.unreadable.suspected(connects, of, in_vain).await? {
                Suspected::Some(delivered) => delivered,
                Suspected::Nothing => return Ok::<_, IngestError>(Taken::Nothing),
                Suspected::OtherLife => return Ok(Taken::OtherLife),
            };
            if !self.still_the_same().await? {
                return Ok(Taken::OtherLife);
            }
            let to = (sender, &self.nudge);
            self.unreadable.take(delivered, &self.stream, self.recorder.database(), to).await
        };
        match taken.await {
            Ok(Taken::Nothing) => Ok(false),
            Ok(Taken::Some) => {
                self.answers();
                self.receives();
                Ok(true)
            }
            Ok(Taken::Stopped) => Err(Ended::Stopped),
            Ok(Taken::OtherLife) => Err(Ended::OtherLife),
            Err(error) => {
                tracing::warn!(%error, "what was delivered and did not arrive could not be looked at");
                Ok(false)
            }
        }
    }

    /// After a server was away it may be another one, or have lost the end of the stream: then its sequences mean something
    /// else, and nothing of it may be recorded under the life that is known.
    async fn still_the_same(&mut self) -> Result<bool, IngestError> {
        let connects = connects(&self.client);
        if connects != self.connects {
            if let Life::RolledBack { .. } = life::look(&self.stream, self.recorder.database()).await? {
                return Ok(false);
            }
            self.connects = connects;
        }
        Ok(true)
    }

    /// The messages as they are in the stream; `None` where one of them cannot be read: then all of them come again.
    async fn with_bodies(&self, messages: Vec<Message>) -> Option<(Vec<Incoming>, Vec<Option<Subject>>)> {
        let mut taken = Vec::with_capacity(messages.len());
        let mut replies = Vec::with_capacity(messages.len());
        for message in messages {
            let (mut incoming, reply, left_out) = message::delivered(message);
            if left_out {
                match message::read(&self.stream, incoming.sequence).await {
                    Ok(whole) => incoming = whole.map_or(incoming, |whole| whole.message),
                    Err(error) => {
                        tracing::warn!(%error, "a message came without its body, which could not be read");
                        return None;
                    }
                }
            }
            taken.push(incoming);
            replies.push(reply);
        }
        Some((taken, replies))
    }

    /// Whether messages wait although none was delivered for a while, and none is held back because too many are out.
    async fn starved(&mut self) -> bool {
        if self.last_received.elapsed() < STARVED_AFTER {
            return false;
        }
        let info = stream::within("cannot look at the consumer", self.consumer.get_info()).await;
        let waiting = info.is_ok_and(|info| {
            let out = i64::try_from(info.num_ack_pending).unwrap_or(i64::MAX);
            info.num_pending > 0 && !info.paused && may_be_out(out, info.config.max_ack_pending)
        });
        self.starved_looks = if waiting { self.starved_looks + 1 } else { 0 };
        self.starved_looks >= STARVED_LOOKS
    }

    /// Whether a batch cannot be committed at the moment; then it says so.
    fn stuck(&self) -> bool {
        let stuck = self.recorder.stuck();
        if stuck {
            self.health.down(INGEST, "usage cannot be recorded");
        }
        stuck
    }

    /// While nothing comes in, whether it could be recorded. The question runs as a task of its own: a database that is
    /// silent is left to answer, never cancelled, and asked nothing else meanwhile.
    async fn probe(&mut self) {
        if self.stuck() {
            return;
        }
        let mut probing = self.probing.take().unwrap_or_else(|| {
            let database = self.recorder.database().clone();
            tokio::spawn(async move { database.ping_ingest().await })
        });
        match tokio::time::timeout(PROBE_TIMEOUT, &mut probing).await {
            Ok(Ok(Ok(()))) => self.health.up(INGEST),
            Ok(answer) => {
                let error = answer.map_or_else(
                    |error| error.to_string(),
                    |answer| answer.err().map(|error| error.to_string()).unwrap_or_default(),
                );
                tracing::warn!(error, "the database does not answer");
                self.health.down(INGEST, "the database does not answer");
            }
            Err(_) => {
                self.probing = Some(probing);
                self.health.down(INGEST, "the database does not answer");
            }
        }
    }
}

/// Whether another message may be out beside so many; a negative bound is none.
const fn may_be_out(out: i64, most: i64) -> bool {
    most < 0 || out < most
}

#[cfg(test)]
mod tests {
    use super::may_be_out;

    #[test]
    fn messages_are_held_back_where_a_bound_is_reached_alone() {
        assert!(may_be_out(0, 1) && !may_be_out(1, 1));
        assert!(may_be_out(0, -1) && may_be_out(100_000, -1), "there is none");
    }
}
