//! Reading unaccounted sequences again: after a restore of the database, after acks that nobody earned, or where the
//! consumer keeps back what it should have delivered again.
//!
//! What was delivered and is not acknowledged is on its way, until so many ack waits have passed that it would have come
//! again, more than once. A consumer whose servers had lost their quorum has been seen to deliver some never again.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::decide::Incoming;
use super::message::read;
use super::record::Recorder;
use super::stream::{self, Delivery, StreamLimits, UsageStream};
use super::{IngestError, meters};
use crate::store::completeness::{self, Sequences};
use crate::store::journal::Origin;
use crate::store::{Database, commit};

/// Messages read again per transaction.
const REPAIR_BATCH_MESSAGES: usize = 200;
/// Messages read again per round: seconds, so that how many are left is seen.
const ROUND_MESSAGES: i64 = 20_000;
/// Runs of missing sequences that are looked at per round.
const ROUND_RUNS: i64 = 2_000;
/// Batches that are summarized in one transaction.
const SUMMARY_BATCHES: i64 = 50_000;
/// Ack waits after which what was delivered is no longer on its way ...
const OVERDUE_ACK_WAITS: u32 = 4;
/// ... but never sooner than this.
const OVERDUE_LEAST: Duration = Duration::from_secs(20);

/// What a repair came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Sequences that no batch accounts for.
    pub unaccounted: i64,
    /// Of these, read again and recorded (as whatever their events are).
    pub repaired: i64,
    /// Of these, no longer in the stream: expired, or deleted by an operator.
    pub gone: i64,
}

/// Reads every sequence again that the consumer has acknowledged and no batch accounts for. One that it keeps back is
/// found by a [`Repairer`] that goes on for longer.
///
/// # Errors
/// [`IngestError`].
pub async fn repair(
    stream: &UsageStream,
    limits: StreamLimits,
    recorder: &Recorder,
) -> Result<Repaired, IngestError> {
    let mut repairer = Repairer::default();
    let mut total = Repaired::default();
    loop {
        let round = repairer.round(stream, limits, recorder).await?;
        total.repaired += round.repaired;
        total.gone = round.gone;
        total.unaccounted = total.repaired + total.gone + round.left;
        if round.left == 0 || round.repaired == 0 {
            return Ok(total);
        }
    }
}

/// What one round came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Sequences read again and recorded.
    pub repaired: i64,
    /// Sequences that are left for the next round.
    pub left: i64,
    /// Sequences that are no longer in the stream, of all rounds.
    pub gone: i64,
}

/// Repairs round by round.
#[derive(Debug, Default)]
pub struct Repairer {
    /// The life of the stream that it knows.
    incarnation: Option<Uuid>,
    /// What is known to be no longer in the stream.
    gone: Vec<Sequences>,
    /// What was on its way when it was last looked at anew.
    on_its_way: Option<OnItsWay>,
}

/// Messages that were delivered while the first of them was not acknowledged.
#[derive(Debug, Clone, Copy)]
struct OnItsWay {
    since: Instant,
    consumer: Delivery,
}

impl Repairer {
    /// What is known to be no longer in the stream: only the gateways' journals still have it.
    pub fn gone(&self) -> &[Sequences] {
        &self.gone
    }

    /// Reads again what is missing, as much as a round takes.
    ///
    /// # Errors
    /// [`IngestError`]; what was recorded before it stays recorded.
    pub async fn round(
        &mut self,
        stream: &UsageStream,
        limits: StreamLimits,
        recorder: &Recorder,
    ) -> Result<Round, IngestError> {
        if self.incarnation != Some(stream.incarnation) {
            *self = Self { incarnation: Some(stream.incarnation), ..Self::default() };
        }
        // While database or stream fail, nothing is expected to be recorded: the wait begins anew.
        let on_its_way = self.on_its_way.take();
        summarize(recorder.database()).await?;
        // Asked before the ledger: what is acknowledged by now was recorded before.
        let consumer = stream.delivery(limits).await?;
        let due = self.due(on_its_way, consumer, limits.ack_wait);
        let missing = self.missing(stream, recorder.database(), due).await?;
        let mut round = Round { left: missing.count, ..Round::default() };
        // Shown before it is read: it may be that it cannot be.
        meters::completeness(missing.count, self.gone_count());
        if missing.count > 0 {
            tracing::warn!(
                sequences = missing.count,
                acknowledged = consumer.acknowledged,
                "the ledger lacks sequences that are acknowledged, or were delivered long ago; reading them again"
            );
            let present = self.skip_expired(stream, &missing.first).await?;
            let origin = Origin::Repair(stream.incarnation);
            let wanted: Vec<i64> = present.iter().flat_map(|run| run.from..run.to).collect();
            for sequences in wanted.chunks(REPAIR_BATCH_MESSAGES) {
                let mut messages = self.read_all(stream, sequences).await?.into_iter();
                while messages.len() > 0 {
                    let batch = recorder.decide_next(&mut messages, usize::MAX);
                    let read = i64::try_from(batch.decided.len()).unwrap_or(i64::MAX);
                    match recorder.record(origin, batch).await {
                        Ok(_) => {
                            round.repaired += read;
                            meters::repaired(read);
                        }
                        // They are left for the next round, and keep none of the others from being read.
                        Err(error) if !error.retryable() && !matches!(error, IngestError::Stopping) => {
                            tracing::error!(%error, "missing sequences cannot be recorded");
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            round.left = self.missing(stream, recorder.database(), due).await?.count;
            tracing::warn!(
                repaired = round.repaired,
                left = round.left,
                gone = self.gone_count(),
                "missing sequences were read again"
            );
        }
        round.gone = self.gone_count();
        meters::completeness(round.left, round.gone);
        Ok(round)
    }

    /// The last sequence that the ledger should have: acknowledged, or delivered so long ago that it is not on its way any more.
    fn due(&mut self, on_its_way: Option<OnItsWay>, consumer: Delivery, ack_wait: Duration) -> i64 {
        let now = OnItsWay { since: Instant::now(), consumer };
        let then =
            on_its_way.filter(|then| then.consumer.acknowledged == consumer.acknowledged).unwrap_or(now);
        let overdue = (ack_wait * OVERDUE_ACK_WAITS).max(OVERDUE_LEAST);
        if then.since.elapsed() < overdue {
            self.on_its_way = Some(then);
            return consumer.acknowledged;
        }
        self.on_its_way = Some(now);
        then.consumer.delivered.max(consumer.acknowledged)
    }

    async fn missing(
        &self,
        stream: &UsageStream,
        database: &Database,
        due: i64,
    ) -> Result<completeness::Unaccounted, IngestError> {
        let mut tx = database.read_ingest().await?;
        Ok(completeness::unaccounted(&mut tx, stream.incarnation, due, &self.gone, ROUND_RUNS).await?)
    }

    /// Notes what the stream holds no longer, and gives the rest, as much of it as a round takes.
    async fn skip_expired(
        &mut self,
        stream: &UsageStream,
        missing: &[Sequences],
    ) -> Result<Vec<Sequences>, IngestError> {
        let first = stream::first_sequence(stream).await?;
        let mut left = ROUND_MESSAGES;
        let mut present = Vec::new();
        for run in missing {
            let (expired_to, from) = (run.to.min(first), run.from.max(first));
            if run.from < expired_to {
                self.note_gone(Sequences { from: run.from, to: expired_to });
            }
            let to = run.to.min(from.saturating_add(left));
            if from < to {
                left -= to - from;
                present.push(Sequences { from, to });
            }
        }
        Ok(present)
    }

    async fn read_all(
        &mut self,
        stream: &UsageStream,
        sequences: &[i64],
    ) -> Result<Vec<Incoming>, IngestError> {
        let mut messages = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            match read(stream, *sequence).await {
                Ok(Some(stored)) => messages.push(stored.message),
                Ok(None) => self.note_gone(Sequences { from: *sequence, to: sequence + 1 }),
                // It is left for the next round, and keeps none of the others from being read.
                Err(error) if error.of_one_message() => {
                    tracing::error!(sequence, %error, "a missing sequence cannot be read");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(messages)
    }

    fn note_gone(&mut self, gone: Sequences) {
        match self.gone.last_mut() {
            Some(last) if last.to == gone.from => last.to = gone.to,
            _ => self.gone.push(gone),
        }
    }

    fn gone_count(&self) -> i64 {
        self.gone.iter().map(|gone| gone.count()).sum()
    }
}

/// Keeps the look-up of what is missing short.
async fn summarize(database: &Database) -> Result<(), IngestError> {
    loop {
        let mut tx = database.begin_ingest().await?;
        let added = completeness::summarize(&mut tx, SUMMARY_BATCHES).await?;
        commit(tx).await?;
        if added < SUMMARY_BATCHES {
            return Ok(());
        }
    }
}
