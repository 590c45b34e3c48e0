//! One fetch of messages from the stream, for the loop in [`super::consumer`].

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::jetstream::message::Info;
use futures_util::StreamExt;
use tokio::time::Instant;

use super::IngestError;
use super::stream;

/// Most messages that are fetched together. With what is recorded together, and as much that waits for it, three fetches
/// are on their way at most: no more than the messages that the stream lets out at a time.
pub(super) const FETCH_MESSAGES_MAX: usize = 2_500;
/// Most bytes that are fetched together, as the stream sends them: what is decided at a time, so little of it that the
/// recording task, which takes what there is, finds almost a full batch.
pub(super) const FETCH_BYTES_MAX: usize = 2 << 20;
/// How long one request waits for a first message.
pub(super) const FETCH_EXPIRES: Duration = Duration::from_secs(2);
/// The same for the rest of a batch, which is there already or not.
const DRAIN_EXPIRES: Duration = Duration::from_millis(500);
/// How long after a request has expired the server may take to say so before it is asked whether it still knows of it.
const OVERDUE_AFTER: Duration = Duration::from_millis(500);
/// How long it may take to answer that before it is asked again, and the pause before.
const ASK_EVERY: Duration = Duration::from_secs(1);
const ASK_PAUSE: Duration = Duration::from_millis(250);
/// What was sent before the answer to that question may arrive this much after it.
const STRAGGLERS: Duration = Duration::from_millis(250);
/// How often it is looked whether the client had to connect again.
const CONNECTION_LOOK: Duration = Duration::from_millis(100);
/// What the client waits for a request that nobody has ended, after it has expired, is at least this: the server is silent.
const FETCH_SILENT: Duration = Duration::from_secs(5);

const FETCH: &str = "cannot fetch messages";

/// The next messages: waits for a first one, then takes what is there with it. `None` where the request was lost on its way
/// to a consumer that answers otherwise, or with its connection. Where that happens at one message after the other, `many`
/// asks for all that is there at once: what is delivered behind such a message is found with it.
///
/// # Errors
/// [`IngestError::Stream`] where the stream refuses or does not answer.
pub(super) async fn fetch(
    client: &Client,
    consumer: &Consumer<pull::Config>,
    many: bool,
) -> Result<Option<Vec<Message>>, IngestError> {
    let mut messages = Vec::new();
    if many {
        let lost = rest(client, consumer, FETCH_MESSAGES_MAX, &mut messages).await?;
        if lost || !messages.is_empty() {
            return Ok((!messages.is_empty()).then_some(messages));
        }
    }
    let asked = Instant::now();
    let connects = connects(client);
    let first = consumer.batch().max_messages(1).expires(FETCH_EXPIRES).messages();
    let first = stream::within(FETCH, first).await?;
    let mut first = Request::new(client, connects, consumer, first, FETCH_EXPIRES);
    while let Some(message) = first.next().await {
        messages.push(message.map_err(IngestError::stream(FETCH))?);
    }
    if messages.is_empty() {
        if first.lost {
            return Ok(None);
        }
        // The client itself ends a request that nobody has ended, and calls that no error.
        return if asked.elapsed() >= FETCH_SILENT {
            Err(IngestError::stream(FETCH)("the server is silent".into()))
        } else {
            Ok(Some(messages))
        };
    }
    // What waits behind the last one comes at once; where nothing does, a second request would only wait for what is made
    // later. Messages that are delivered again count as waiting nowhere: behind one there may be more.
    let count = match last_info(&messages) {
        Some(info) if info.delivered <= 1 => {
            usize::try_from(info.pending).unwrap_or(usize::MAX).min(FETCH_MESSAGES_MAX)
        }
        _ => FETCH_MESSAGES_MAX,
    };
    if count > 0 {
        rest(client, consumer, count, &mut messages).await?;
    }
    Ok(Some(messages))
}

/// Takes what is there, at most so many messages; `true` where the request was lost.
async fn rest(
    client: &Client,
    consumer: &Consumer<pull::Config>,
    count: usize,
    messages: &mut Vec<Message>,
) -> Result<bool, IngestError> {
    let connects = connects(client);
    let rest = consumer.fetch().max_messages(count).max_bytes(FETCH_BYTES_MAX).expires(DRAIN_EXPIRES);
    let rest = stream::within(FETCH, rest.messages()).await?;
    let mut rest = Request::new(client, connects, consumer, rest, DRAIN_EXPIRES);
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
    Ok(rest.lost)
}

/// How often a client has connected.
pub(super) fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

/// What the stream says of the last of these messages.
pub(super) fn last_info(messages: &[Message]) -> Option<Info<'_>> {
    messages.last()?.info().ok()
}

/// A request for messages.
struct Request<'a> {
    client: &'a Client,
    /// How often the client had connected when it was made.
    connects: u64,
    consumer: &'a Consumer<pull::Config>,
    messages: pull::Batch,
    overdue: Instant,
    /// Whether nobody knows of it any more, because it went to a leader that is gone, or over a connection that is.
    lost: bool,
}

impl<'a> Request<'a> {
    /// One that was made just now.
    fn new(
        client: &'a Client,
        connects: u64,
        consumer: &'a Consumer<pull::Config>,
        messages: pull::Batch,
        expires: Duration,
    ) -> Self {
        let overdue = Instant::now() + expires + OVERDUE_AFTER;
        Self { client, connects, consumer, messages, overdue, lost: false }
    }

    /// The next message, or `None` at the end of the request. The client gives up a request that nobody has ended 5 s after
    /// it expired; where the consumer answers what it was asked later, waiting for longer is in vain. By time alone it
    /// would not do: over a slow connection every request would be given up, and its messages come again and again.
    async fn next(&mut self) -> Option<Result<Message, async_nats::Error>> {
        tokio::select! {
            biased;
            message = self.messages.next() => return message,
            () = tokio::time::sleep_until(self.overdue) => {}
            () = connected_again(self.client, self.connects) => {}
        }
        tokio::select! {
            biased;
            message = self.messages.next() => return message,
            () = answered(self.consumer) => {}
        }
        let straggler = tokio::time::timeout(STRAGGLERS, self.messages.next()).await;
        self.lost = straggler.is_err();
        straggler.ok().flatten()
    }
}

/// Returns once the client has connected more often than before: the server forgets a request with its connection.
async fn connected_again(client: &Client, before: u64) {
    while connects(client) == before {
        tokio::time::sleep(CONNECTION_LOOK).await;
    }
}

/// Returns once the consumer has answered a question; one that went to a leader that is gone has no answer either.
async fn answered(consumer: &Consumer<pull::Config>) {
    while !matches!(tokio::time::timeout(ASK_EVERY, consumer.get_info()).await, Ok(Ok(_))) {
        tokio::time::sleep(ASK_PAUSE).await;
    }
}
