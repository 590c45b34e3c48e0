//! From the journal to the stream: packs what is new, waits for the stream's word, and for the ledger's.
//!
//! A message whose events the ledger says it does not have after a while is published again: soon where later events have
//! arrived (a hole, so it was lost on the way), later where nothing has (the ledger may just be behind).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::heard::Heard;
use super::journal::{Journal, JournalError, Record};
use super::settled::Settled;
use super::stamp;
use super::unsettled::{Due, Unsettled};
use super::way::Way;
use super::{EVENTS_BYTES_MAX, EVENTS_PER_MESSAGE, meters};
use crate::clock::Clock;
use crate::health::Health;
use crate::ingest::Publisher;
use crate::shutdown::Shutdown;

/// How long an event waits for others to share its message.
const LINGER: Duration = Duration::from_millis(10);
/// Messages on their way at a time.
const IN_FLIGHT_MAX: usize = 32;
/// How often is looked whether something must be published again.
const TICK: Duration = Duration::from_secs(1);
/// The part of the program that this speaks for.
const COUNT: &str = "count";
/// What is wrong with a journal whose next numbers were given before.
const OLDER_COPY: &str = "the ledger or the stream has higher numbers of this journal than the journal itself, so this is an older copy of \
                          it; events are forwarded, but nothing is removed: once waybill_forward_unpublished_events is 0 stop, start with a \
                          new folder, and keep this one until the ledger has its events";
/// The part of the program that reads the journal.
const DELIVERY: &str = "delivery";
/// What is wrong where it cannot.
const UNREADABLE: &str = "the journal cannot be read, so nothing new is published; the log says why";
/// What is said when the ledger's database was restored.
const FORGOTTEN: &str =
    "the ledger does not have any more what it had; what is still in the journal is published again";
/// How long a stop waits for the stream: what is not published then is at the next start.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes the journal of a gateway.
#[derive(Debug)]
pub struct Delivery {
    /// The journal.
    pub journal: Journal,
    /// The way to the stream.
    pub publisher: Publisher,
    /// Whose subject it is.
    pub gateway: Arc<str>,
    /// The journal's newest number when it was opened.
    pub opened_at: u64,
    /// How long a hole may last before its events are published again.
    pub resend_after: Duration,
    /// How long settled events are kept, where there is room.
    pub keep: Duration,
    /// What the ledger has; `None` until it says so for the first time.
    pub settled: watch::Receiver<Option<Settled>>,
    /// The time.
    pub clock: Clock,
    /// Where it says what is wrong.
    pub health: Health,
    /// What asks it to stop.
    pub shutdown: Shutdown,
}

/// That the journal cannot be read.
#[derive(Debug, Default)]
struct Unreadable {
    /// Since when, in milliseconds since 1970.
    since_ms: Option<i64>,
    /// Whether that is so of what is published again, whatever else can be read.
    again: bool,
}

/// The state of the loop.
#[derive(Debug)]
struct Loop {
    journal: Journal,
    way: Arc<Way>,
    resend_after: Duration,
    keep: Duration,
    clock: Clock,
    /// The next number to read.
    cursor: u64,
    unsettled: Unsettled,
    /// What is published again, by first number.
    again: VecDeque<u64>,
    /// Each ends with the message's first number, and whether the stream has the message.
    in_flight: JoinSet<(u64, bool)>,
    /// The stream has said that it has everything up to this number, in this run or an earlier one, but for what is settled.
    published: u64,
    /// What is noted of that beside the journal.
    published_noted: u64,
    /// Since when fewer events than a full message wait.
    waiting: Option<Instant>,
    unreadable: Unreadable,
    /// What the ledger said last, in this run or, where it has not yet, in an earlier one.
    settled: Settled,
    /// Whether [`Self::settled`] is noted beside the journal.
    noted: bool,
    /// When the ledger spoke.
    heard: Heard,
    /// The last number that the journal had at the start.
    opened_at: u64,
    /// Whether the ledger knows more of the journal than the journal itself.
    older_copy: bool,
    /// Whether the journal's folder could not be tidied, which is said once.
    untidy: bool,
}

impl Delivery {
    /// Publishes until a stop is asked for.
    pub async fn run(self) {
        let Self {
            journal,
            publisher,
            gateway,
            opened_at,
            resend_after,
            keep,
            settled,
            clock,
            health,
            shutdown,
        } = self;
        let handed = AtomicU64::new(opened_at);
        let way = Way { publisher, gateway, shutdown, health, handed, failing: Mutex::default() };
        // What is settled already need not be published again after a start, and makes room where it is needed.
        let (older_copy, earlier) = (journal.older_copy(), journal.noted_settled());
        let nothing_known = earlier.is_none();
        let believed = earlier.unwrap_or_default();
        let published = journal.noted_published();
        let mut work = Loop {
            cursor: journal.oldest(),
            journal,
            way: Arc::new(way),
            resend_after,
            keep,
            clock,
            unsettled: Unsettled::default(),
            again: VecDeque::new(),
            in_flight: JoinSet::new(),
            published,
            published_noted: published,
            waiting: None,
            unreadable: Unreadable::default(),
            settled: believed.clone(),
            noted: false,
            heard: Heard::default(),
            opened_at,
            older_copy,
            untidy: false,
        };
        if older_copy {
            work.found_older_copy().await;
        } else if nothing_known {
            work.journal.unsettle();
        }
        work.tidied(move |journal| journal.release(&believed, i64::MIN)).await;
        work.cursor = work.journal.oldest_unsettled();
        work.run(settled).await;
    }
}

impl Loop {
    async fn run(mut self, mut told: watch::Receiver<Option<Settled>>) {
        let first = told.borrow_and_update().clone();
        if let Some(settled) = first {
            self.settle(settled).await;
        }
        let mut durable = self.journal.watch();
        let (shutdown, mut tick) = (self.way.shutdown.clone(), tokio::time::interval(TICK));
        let mut stop_at = None;
        loop {
            self.fill(stop_at.is_some()).await;
            if let Some(at) = stop_at {
                let done = self.in_flight.is_empty() && self.cursor > self.journal.durable();
                if done || Instant::now() >= at || !self.way.publisher.connected() {
                    self.note_published().await;
                    return;
                }
            }
            let linger = self.waiting.map_or(TICK, |since| LINGER.saturating_sub(since.elapsed()));
            // What could not be sent in any case need not be looked at before something has ended.
            let stuck = self.unreadable.since_ms.is_some() || self.in_flight.len() >= IN_FLIGHT_MAX;
            let linger = if self.cursor <= self.published { Duration::ZERO } else { linger };
            let linger = if stuck { TICK } else { linger };
            tokio::select! {
                Some(ended) = self.in_flight.join_next() => self.ended(ended.ok()),
                Ok(()) = told.changed() => {
                    let settled = told.borrow_and_update().clone();
                    if let Some(settled) = settled {
                        self.settle(settled).await;
                    }
                }
                Ok(()) = durable.changed() => {}
                () = tokio::time::sleep(linger) => {}
                _ = tick.tick() => {
                    self.note_published().await;
                    self.look();
                }
                () = shutdown.stopped(), if stop_at.is_none() => stop_at = Some(Instant::now() + STOP_TIMEOUT),
            }
        }
    }

    /// Sends as much as may be on its way: in turn what is sent again and what is new, so that neither waits for all of the other.
    /// Of what is only read, because the stream has it, no more at a time.
    async fn fill(&mut self, hurry: bool) {
        let mut read = 0;
        while self.in_flight.len() + read < IN_FLIGHT_MAX {
            read += usize::from(self.cursor <= self.published);
            let again = self.send_again().await;
            let new = self.in_flight.len() < IN_FLIGHT_MAX && self.send_new(hurry).await;
            if !again && !new {
                return;
            }
        }
    }

    /// Sends a message again that must have been lost; `false` where there is none, or it cannot be read now.
    async fn send_again(&mut self) -> bool {
        let Some(first) = self.again.pop_front() else { return false };
        self.unreadable.again = false;
        let Some(last) = self.unsettled.last(first) else { return true };
        // Neighbours that were joined may lie in two segments, and a read ends with one.
        let (mut records, mut from) = (Vec::new(), first);
        while from <= last {
            let Some(more) = self.read(from).await else {
                self.again.push_front(first);
                self.unreadable.again = true;
                return false;
            };
            let Some(end) = more.last().map(|record| record.sequence) else { break };
            records.extend(more);
            from = end + 1;
        }
        records.retain(|record| record.sequence <= last && !self.settled.contains(record.sequence));
        if records.is_empty() {
            // The rest of it cannot be read any more, which was said.
            self.unsettled.forget(first);
        } else {
            meters::republished(records.len());
            self.send(first, records);
        }
        true
    }

    /// Sends the next new message, or takes note of one that the stream had before the start; `false` where there is none yet, or it
    /// cannot be read now.
    async fn send_new(&mut self, hurry: bool) -> bool {
        self.cursor = self.cursor.max(self.settled.through() + 1);
        // After a step back: what is on its way, or waits to be settled, is not read anew.
        if let Some(last) = self.unsettled.last_from_below(self.cursor) {
            self.cursor = self.cursor.max(last + 1);
        }
        let durable = self.journal.durable();
        let backlog = (durable + 1).saturating_sub(self.cursor);
        if backlog == 0 {
            self.waiting = None;
            self.readable();
            return false;
        }
        if backlog < EVENTS_PER_MESSAGE as u64 && !hurry {
            let since = *self.waiting.get_or_insert_with(Instant::now);
            if since.elapsed() < LINGER {
                return false;
            }
        }
        self.waiting = None;
        let Some(mut records) = self.read(self.cursor).await else { return false };
        // What is damaged is never settled: a message ends before it.
        let start = records.first().map_or(self.cursor, |record| record.sequence);
        let end = self.unsettled.next_from(self.cursor).unwrap_or(u64::MAX);
        let published = self.cursor <= self.published;
        let end = if published { end.min(self.published + 1) } else { end };
        if start >= end {
            self.cursor = end;
            return true;
        }
        let whole = records.iter().zip(start..end).take_while(|(record, number)| record.sequence == *number);
        let whole = whole.count();
        records.truncate(whole);
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            // What is left of the journal cannot be read, which was said.
            self.cursor = durable + 1;
            return true;
        };
        let (first, last, accepted_ms) = (first.sequence, last.sequence, first.accepted_ms);
        let bytes = records.iter().map(|record| record.event.len()).sum();
        self.cursor = last + 1;
        records.retain(|record| !self.settled.contains(record.sequence));
        if !records.is_empty() {
            self.unsettled.sent(first..=last, bytes, accepted_ms);
            if published {
                self.unsettled.acknowledged(first, self.heard.at(Instant::now()));
            } else {
                self.send(first, records);
            }
        }
        true
    }

    /// Records from a number on; `None` where the journal cannot be read, which is said once.
    async fn read(&mut self, from: u64) -> Option<Vec<Record>> {
        let journal = self.journal.clone();
        match blocking(move || journal.read(from, EVENTS_PER_MESSAGE, EVENTS_BYTES_MAX)).await {
            Ok(records) => {
                self.readable();
                Some(records)
            }
            Err(error) => {
                if self.unreadable.since_ms.is_none() {
                    tracing::error!(%error, "the journal cannot be read; trying again");
                    self.way.health.down(DELIVERY, UNREADABLE);
                    self.unreadable.since_ms = Some(self.clock.now().timestamp_millis());
                }
                None
            }
        }
    }

    /// The journal can be read, or nothing in it need be.
    fn readable(&mut self) {
        if !self.unreadable.again && self.unreadable.since_ms.take().is_some() {
            tracing::info!("the journal can be read again");
            self.way.health.up(DELIVERY);
        }
    }

    /// Publishes records as one message, again and again until the stream has it.
    fn send(&mut self, first: u64, records: Vec<Record>) {
        let way = Arc::clone(&self.way);
        let last = records.last().map_or(first, |record| record.sequence);
        let epoch = self.journal.epoch();
        self.in_flight.spawn(async move {
            let count = records.len();
            let published = match stamp::packed(&records, epoch) {
                Ok(packed) => {
                    drop(records);
                    way.publish(packed, count, last).await
                }
                Err(error) => {
                    tracing::error!(%error, first, "a message could not be packed; trying again later");
                    false
                }
            };
            (first, published)
        });
    }

    /// From now on the ledger's word is waited for: for one message, or for all where it is not known whose task has failed.
    fn ended(&mut self, ended: Option<(u64, bool)>) {
        let at = self.heard.at(Instant::now());
        match ended {
            Some((first, true)) => self.unsettled.acknowledged(first, at),
            ended => self.unsettled.given_up(ended.map(|(first, _)| first), at),
        }
    }

    /// Notes up to where the stream has everything, so that a start does not publish it again. What could not be read, and so never
    /// was published, lies above that.
    async fn note_published(&mut self) {
        if self.older_copy {
            return;
        }
        let lacking = [self.unsettled.first_unpublished(), self.journal.unsettled_damage()];
        let lacking = lacking.into_iter().flatten().fold(self.cursor, u64::min);
        self.published = self.published.max(lacking.saturating_sub(1));
        let published = self.published;
        if published != self.published_noted
            && self.tidied(move |journal| journal.note_published(published)).await
        {
            self.published_noted = published;
        }
    }

    /// Forgets what the ledger has, unless it has numbers that were never handed to the stream: then the journal is an older copy of
    /// itself, and what it gives those numbers to now is not what the ledger has.
    async fn settle(&mut self, settled: Settled) {
        let handed = self.way.handed.load(Ordering::Acquire);
        if settled.highest() > handed && !self.older_copy {
            tracing::error!(highest = settled.highest(), handed, "{OLDER_COPY}");
            self.older_copy = true;
        }
        if self.older_copy {
            self.found_older_copy().await;
            return;
        }
        if !settled.keeps(&self.settled) {
            tracing::warn!(before = ?self.settled, now = ?settled, "{FORGOTTEN}");
            self.cursor = self.journal.oldest();
            self.journal.unsettle();
            // Else a start before all of it is published again would pass it over.
            self.published = 0;
            self.note_published().await;
        }
        self.heard.answer(Instant::now(), settled.highest());
        self.unsettled.settle(&settled);
        meters::settled(settled.through());
        self.noted &= settled == self.settled;
        self.settled = settled;
        let (settled, noted) = (self.settled.clone(), self.noted);
        let keep_ms = i64::try_from(self.keep.as_millis()).unwrap_or(i64::MAX);
        let accepted_before_ms = self.clock.now().timestamp_millis().saturating_sub(keep_ms);
        self.noted = self
            .tidied(move |journal| {
                journal.release(&settled, accepted_before_ms)?;
                if noted { Ok(()) } else { journal.note_settled(&settled) }
            })
            .await;
        self.cursor = self.cursor.max(self.journal.oldest_unsettled());
        self.gauge();
    }

    /// From now on nothing counts as settled. What did so before goes first, or it would take the room of what is new: its numbers
    /// are those that the original gave.
    async fn found_older_copy(&mut self) {
        self.way.health.down(COUNT, OLDER_COPY);
        self.published = 0;
        let opened_at = self.opened_at;
        self.tidied(move |journal| {
            // Numbers go on past what the ledger has: the next run could not tell by itself.
            journal.mark_older_copy()?;
            journal.release_through(opened_at)
        })
        .await;
        self.journal.unsettle();
    }

    /// Changes something in the journal's folder that can wait; says once where that fails. `true` where it is done.
    async fn tidied(
        &mut self,
        change: impl FnOnce(&Journal) -> Result<(), JournalError> + Send + 'static,
    ) -> bool {
        let journal = self.journal.clone();
        let failed = blocking(move || change(&journal)).await.err();
        if let Some(error) = failed.as_ref().filter(|_| !self.untidy) {
            tracing::warn!(%error, "the journal's folder could not be tidied; trying again");
        }
        self.untidy = failed.is_some();
        !self.untidy
    }

    /// Looks for messages that must have been lost on the way.
    fn look(&mut self) {
        let Due { firsts, events, in_holes } =
            self.unsettled.due(&self.heard, self.settled.highest(), self.resend_after);
        if let (Some(first), Some(last)) = (firsts.first(), firsts.last()) {
            tracing::warn!(
                messages = firsts.len(),
                events,
                in_holes,
                first,
                last,
                "the ledger says that it does not have these events; publishing them again"
            );
            self.again.extend(firsts);
        }
        self.gauge();
    }

    fn gauge(&self) {
        let journal = &self.journal;
        let sent = self.unsettled.events_from(0);
        // After a step back some of what is on its way lies above the cursor.
        let ahead = self.unsettled.events_from(self.cursor);
        let unread = (journal.durable() + 1).saturating_sub(self.cursor + ahead);
        // Of what cannot be read nobody knows when it was accepted.
        let oldest_ms = self.unsettled.oldest_ms().into_iter().chain(self.unreadable.since_ms).min();
        let age_ms = oldest_ms.map_or(0, |oldest| (self.clock.now().timestamp_millis() - oldest).max(0));
        meters::state((sent + unread, self.unsettled.on_way() + unread), age_ms, journal);
    }
}

/// Reads the journal without holding up the program. A read that panics is a failure like others: what it was to read is not passed
/// over.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, JournalError> {
    tokio::task::spawn_blocking(read).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_read_that_panics_is_a_failure_and_not_the_end_of_the_journal() {
        let panicked = blocking(|| -> Result<Vec<Record>, JournalError> { panic!("while reading") });
        assert!(matches!(panicked.await, Err(JournalError::Ended(_))));
        assert!(matches!(blocking(|| Ok(1)).await, Ok(1)));
    }
}
