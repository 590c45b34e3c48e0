//! Messages that are delivered and never arrive, because the client library cannot hand them over: taken from the stream by
//! their sequences.
//!
//! A publisher chooses the bytes of its headers, and the server stores them unread. The client ends its connection at the
//! first message whose headers it cannot read, and takes one whose headers are a status for the end of a request. Such a
//! message would be delivered again after each ack wait, before everything new, and a few dozen of them would stop all
//! recording. So after a connection or a request was lost, and while something is delivered again, what was delivered and is
//! in no batch is read by its sequence. Where one is found that cannot be handed over, it is recorded from there, with what
//! follows it: that was on its way behind it. After the commit all of them are acknowledged by their sequences.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_nats::Subject;
use async_nats::jetstream::consumer::{Consumer, pull};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::IngestError;
use super::decide::Incoming;
use super::message::{self, Stored};
use super::pace::Nudge;
use super::pipeline::{Acks, Fetched};
use super::stream::{self, CONSUMER, INCARNATION, UsageStream};
use crate::store::Database;
use crate::store::completeness::{self, Sequences};

/// How often it is asked whether something is delivered again while messages arrive.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// After this everything that is not acknowledged is looked at anew: what was recorded from here may have failed.
const ANEW_AFTER: Duration = Duration::from_mins(1);
/// Messages that are read per look, and as many that are acknowledged without: no more are out at a time.
const LOOK_MESSAGES: usize = 20_000;
/// Runs of missing sequences per look: as many as there can be of so many messages.
const LOOK_RUNS: i64 = 20_000;
/// Messages that are in memory together while they are read, and of these, requests at a time.
const READ_MESSAGES: usize = 200;
const READS_AT_A_TIME: usize = 32;

/// Sequences that the consumer has delivered, of which some are not acknowledged: those after the first up to the last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivered {
    after: i64,
    to: i64,
    connects: u64,
}

/// What there is to look at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Suspected {
    /// Nothing.
    Nothing,
    /// What was delivered.
    Some(Delivered),
    /// The consumer is that of another life of the stream: its sequences are not those that the ledger knows.
    OtherLife,
}

/// What a look came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Everything that was looked at can be handed over.
    Nothing,
    /// Something was handed on to be recorded.
    Some,
    /// Nobody records any more.
    Stopped,
    /// The stream is another than before: nothing was looked at.
    OtherLife,
}

/// Looks for such messages.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// How often the client had connected at the last look.
    connects: u64,
    last_look: Instant,
    /// Up to where messages were read ...
    read_to: i64,
    /// ... and what is recorded was acknowledged ...
    acknowledged_to: i64,
    /// ... since then.
    since: Instant,
}

impl Unreadable {
    /// For a session that begins with a client that has connected so often.
    pub fn new(connects: u64) -> Self {
        let now = Instant::now();
        Self { connects, last_look: now, read_to: 0, acknowledged_to: 0, since: now }
    }

    /// What is to be looked at, where something may have been delivered in vain: the client has connected again, a request
    /// came to nothing, or messages are delivered again.
    ///
    /// # Errors
    /// [`IngestError::Stream`].
    pub async fn suspected(
        &mut self,
        connects: u64,
        (consumer, incarnation): (&Consumer<pull::Config>, Uuid),
        in_vain: bool,
    ) -> Result<Suspected, IngestError> {
        let lost = in_vain || connects != self.connects;
        if !lost && self.last_look.elapsed() < LOOK_EVERY {
            return Ok(Suspected::Nothing);
        }
        let info = stream::within("cannot look at the consumer", consumer.get_info()).await?;
        self.last_look = Instant::now();
        if !is_of(&info.config.metadata, incarnation) {
            return Ok(Suspected::OtherLife);
        }
        if info.num_ack_pending == 0 {
            self.connects = connects;
            return Ok(Suspected::Nothing);
        }
        let sequence = |sequence| i64::try_from(sequence).unwrap_or(i64::MAX);
        let (after, to) =
            (sequence(info.ack_floor.stream_sequence), sequence(info.delivered.stream_sequence));
        if !lost && info.num_redelivered == 0 {
            return Ok(Suspected::Nothing);
        }
        Ok(Suspected::Some(Delivered { after, to, connects }))
    }

    /// Looks at it. What cannot be handed over is sent on to be recorded, and what follows the first of it, with the subjects
    /// that acknowledge them.
    ///
    /// # Errors
    /// [`IngestError`]; what was handed on before it stays so.
    pub async fn take(
        &mut self,
        delivered: Delivered,
        stream: &UsageStream,
        database: &Database,
        (sender, nudge): (&mpsc::Sender<Fetched>, &Nudge),
    ) -> Result<Taken, IngestError> {
        if self.since.elapsed() >= ANEW_AFTER {
            (self.read_to, self.acknowledged_to, self.since) = (0, 0, Instant::now());
        }
        let Delivered { after, to, connects } = delivered;
        let missing = missing(stream, database, after, to).await?;
        // What lies behind so many runs is not known.
        let cut = missing.last().filter(|_| i64::try_from(missing.len()).is_ok_and(|runs| runs >= LOOK_RUNS));
        let to = cut.map_or(to, |last| last.to - 1);
        let unread = missing.iter().flat_map(|run| run.from.max(self.read_to + 1)..run.to);
        let unread: Vec<i64> = unread.take(LOOK_MESSAGES).collect();
        self.acknowledge(stream, recorded(&missing, after.max(self.acknowledged_to), to)).await;
        let mut taken = Taken::Nothing;
        for sequences in unread.chunks(READ_MESSAGES) {
            let read = read_all(stream, sequences).await?;
            if let Some(first) = read.iter().find(|stored| stored.undeliverable) {
                let Incoming { subject, sequence, .. } = &first.message;
                tracing::warn!(
                    subject,
                    sequence,
                    "a message has headers that cannot be read; it is recorded without them"
                );
                taken = Taken::Some;
            }
            if taken == Taken::Some {
                let replies = read.iter().map(|stored| Some(ack_subject(stream, stored.message.sequence)));
                let replies = replies.collect();
                let messages = read.into_iter().map(|stored| stored.message).collect();
                if sender.send(Fetched { messages, replies, underway: nudge.underway() }).await.is_err() {
                    return Ok(Taken::Stopped);
                }
            }
            self.read_to = sequences.last().copied().unwrap_or(self.read_to);
        }
        if unread.len() < LOOK_MESSAGES {
            self.read_to = to;
        }
        self.connects = connects;
        Ok(taken)
    }

    /// Acknowledges what is in a batch: it is committed, whoever recorded it, and could not be acknowledged otherwise where
    /// it never arrives.
    async fn acknowledge(&mut self, stream: &UsageStream, recorded: Vec<Sequences>) {
        let sequences = recorded.iter().flat_map(|run| run.from..run.to).take(LOOK_MESSAGES);
        let sequences: Vec<i64> = sequences.collect();
        let Some(last) = sequences.last() else { return };
        self.acknowledged_to = *last;
        let replies = sequences.iter().map(|sequence| Some(ack_subject(stream, *sequence))).collect();
        Acks(stream.client()).send(replies).await;
    }
}

/// Whether a consumer with this metadata was made for this life of the stream, as far as it says.
fn is_of(metadata: &HashMap<String, String>, incarnation: Uuid) -> bool {
    metadata.get(INCARNATION).is_none_or(|life| *life == incarnation.to_string())
}

/// The messages of these sequences that the stream still holds and can read itself.
async fn read_all(stream: &UsageStream, sequences: &[i64]) -> Result<Vec<Stored>, IngestError> {
    let reads: Vec<_> = sequences.iter().map(|sequence| message::read(stream, *sequence)).collect();
    let mut reads = futures_util::stream::iter(reads).buffered(READS_AT_A_TIME);
    let mut read = Vec::with_capacity(sequences.len());
    while let Some(stored) = reads.next().await {
        match stored {
            Ok(stored) => read.extend(stored),
            // It keeps none of the others from being read.
            Err(error) if error.of_one_message() => {
                tracing::error!(%error, "a message that was delivered cannot be read");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Sequences in no batch, of those after the first up to the last.
async fn missing(
    stream: &UsageStream,
    database: &Database,
    after: i64,
    to: i64,
) -> Result<Vec<Sequences>, IngestError> {
    let mut tx = database.read_ingest().await?;
    let before = [Sequences { from: 1, to: after + 1 }];
    Ok(completeness::unaccounted(&mut tx, stream.incarnation, to, &before, LOOK_RUNS).await?.first)
}

/// The others.
fn recorded(missing: &[Sequences], after: i64, to: i64) -> Vec<Sequences> {
    let mut from = after + 1;
    let mut recorded = Vec::new();
    for hole in missing.iter().copied().chain([Sequences { from: to + 1, to: to + 1 }]) {
        if from < hole.from {
            recorded.push(Sequences { from, to: hole.from });
        }
        from = from.max(hole.to);
    }
    recorded
}

/// What acknowledges a sequence, however it was delivered. With explicit acks the server looks at the sequence of the stream
/// alone, which is the second number: the rest is what it told with the delivery.
fn ack_subject(stream: &UsageStream, sequence: i64) -> Subject {
    format!("$JS.ACK.{}.{CONSUMER}.1.{sequence}.1.0.0", stream.names.stream).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_that_was_made_for_another_life_is_told() {
        let (ours, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let made_for = |life: Uuid| HashMap::from([(INCARNATION.to_owned(), life.to_string())]);
        assert!(is_of(&made_for(ours), ours));
        assert!(!is_of(&made_for(other), ours));
        assert!(is_of(&HashMap::new(), ours), "one of an earlier release does not say");
    }

    #[test]
    fn what_is_not_missing_is_recorded() {
        let runs = |pairs: &[(i64, i64)]| -> Vec<Sequences> {
            pairs.iter().map(|(from, to)| Sequences { from: *from, to: *to }).collect()
        };
        for (missing, after, to, expected) in [
            (&[][..], 0, 0, &[][..]),
            (&[], 3, 9, &[(4, 10)]),
            (&[(4, 10)], 3, 9, &[]),
            (&[(5, 7), (9, 10)], 3, 9, &[(4, 5), (7, 9)]),
            (&[(2, 7)], 4, 9, &[(7, 10)]),
            (&[(4, 7)], 8, 9, &[(9, 10)]),
        ] {
            assert_eq!(recorded(&runs(missing), after, to), runs(expected), "{missing:?} {after} {to}");
        }
    }
}
