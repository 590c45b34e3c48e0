//! From the journal to the stream: packs what is new, waits for the stream's word, and for the ledger's.
//!
//! A message whose events the ledger does not have after a while is published again: soon where later events have
//! arrived (a hole, so it was lost on the way), later where nothing has (the ledger may just be behind).

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::journal::{Journal, JournalError, Record};
use super::settled::Settled;
use super::stamp::{self, STAMP_BYTES_MAX};
use super::way::Way;
use super::{MESSAGE_BYTES_MAX, meters};
use crate::clock::Clock;
use crate::health::Health;
use crate::ingest::Publisher;
use crate::shutdown::Shutdown;

/// Most events of a message.
const EVENTS_PER_MESSAGE: usize = 100;
/// Most bytes of a message's events, such that it fits with every stamp and without compression.
const EVENTS_BYTES_MAX: usize = MESSAGE_BYTES_MAX - EVENTS_PER_MESSAGE * STAMP_BYTES_MAX;
/// How long an event waits for others to share its message.
const LINGER: Duration = Duration::from_millis(10);
/// Messages on their way at a time.
const IN_FLIGHT_MAX: usize = 32;
/// How often is looked whether something must be published again.
const TICK: Duration = Duration::from_secs(1);
/// How much longer than a hole unsettled events above everything settled may stay so.
const BEHIND_FACTOR: u32 = 15;
/// The wait before events are published yet again doubles so often.
const DOUBLINGS_MAX: u32 = 6;
/// The part of the program that this speaks for.
const COUNT: &str = "count";
/// What is wrong with a journal whose numbers the ledger has seen before.
const OLDER_COPY: &str = "the ledger has higher numbers of this journal than the journal itself, so this is an older copy of it; events are \
                          forwarded, but nothing is removed: stop, and start with a new folder once all is published";
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
    /// What the ledger has.
    pub settled: watch::Receiver<Settled>,
    /// The time.
    pub clock: Clock,
    /// Where it says what is wrong.
    pub health: Health,
    /// What asks it to stop.
    pub shutdown: Shutdown,
}

/// A message that is not settled yet.
#[derive(Debug)]
struct Sent {
    last: u64,
    accepted_ms: i64,
    /// When the stream said that it has it; `None` while it is on its way.
    waits_since: Option<Instant>,
    sends: u32,
}

/// The state of the loop.
#[derive(Debug)]
struct Loop {
    journal: Journal,
    way: Arc<Way>,
    resend_after: Duration,
    clock: Clock,
    /// The next number to read.
    cursor: u64,
    /// By first number.
    unsettled: BTreeMap<u64, Sent>,
    again: VecDeque<u64>,
    /// Each ends with the message's first number.
    in_flight: JoinSet<u64>,
    /// Since when fewer events than a full message wait.
    waiting: Option<Instant>,
    /// Since when the journal cannot be read, in milliseconds since 1970.
    unreadable_ms: Option<i64>,
    settled: Settled,
    /// Whether the ledger knows more of the journal than the journal itself.
    older_copy: bool,
}

impl Delivery {
    /// Publishes until a stop is asked for.
    pub async fn run(self) {
        let Self { journal, publisher, gateway, opened_at, resend_after, settled, clock, health, shutdown } =
            self;
        let handed = AtomicU64::new(opened_at);
        let way = Way { publisher, gateway, shutdown, health, handed, failing: Mutex::default() };
        let first = settled.borrow().clone();
        let mut work = Loop {
            cursor: journal.oldest(),
            older_copy: journal.older_copy(),
            journal,
            way: Arc::new(way),
            resend_after,
            clock,
            unsettled: BTreeMap::new(),
            again: VecDeque::new(),
            in_flight: JoinSet::new(),
            waiting: None,
            unreadable_ms: None,
            settled: Settled::default(),
        };
        work.settle(first).await;
        work.run(settled).await;
    }
}

impl Loop {
    async fn run(mut self, mut told: watch::Receiver<Settled>) {
        let mut durable = self.journal.watch();
        let (shutdown, mut tick) = (self.way.shutdown.clone(), tokio::time::interval(TICK));
        let mut stop_at = None;
        loop {
            self.fill(stop_at.is_some()).await;
            if let Some(at) = stop_at {
                let done = self.in_flight.is_empty() && self.cursor > self.journal.durable();
                if done || Instant::now() >= at || !self.way.publisher.connected() {
                    return;
                }
            }
            let linger = self.waiting.map_or(TICK, |since| LINGER.saturating_sub(since.elapsed()));
            let linger = if self.unreadable_ms.is_some() { TICK } else { linger };
            tokio::select! {
                Some(ended) = self.in_flight.join_next() => self.ended(ended.ok()),
                Ok(()) = told.changed() => {
                    let settled = told.borrow_and_update().clone();
                    self.settle(settled).await;
                }
                Ok(()) = durable.changed() => {}
                () = tokio::time::sleep(linger) => {}
                _ = tick.tick() => self.look(),
                () = shutdown.stopped(), if stop_at.is_none() => stop_at = Some(Instant::now() + STOP_TIMEOUT),
            }
        }
    }

    /// Sends as much as may be on its way.
    async fn fill(&mut self, hurry: bool) {
        while self.in_flight.len() < IN_FLIGHT_MAX {
            if let Some(first) = self.again.pop_front() {
                let Some(last) = self.unsettled.get(&first).map(|sent| sent.last) else { continue };
                let Some(mut records) = self.read(first).await else {
                    self.again.push_front(first);
                    return;
                };
                records.retain(|record| record.sequence <= last && !self.settled.contains(record.sequence));
                if records.is_empty() {
                    // The rest of it cannot be read any more, which was said.
                    self.unsettled.remove(&first);
                } else {
                    meters::republished(records.len());
                    self.send(first, records);
                }
                continue;
            }
            self.cursor = self.cursor.max(self.settled.through() + 1);
            // After a step back: what is on its way, or waits to be settled, is not read anew.
            if let Some((_, sent)) = self.unsettled.range(..=self.cursor).next_back() {
                self.cursor = self.cursor.max(sent.last + 1);
            }
            let backlog = (self.journal.durable() + 1).saturating_sub(self.cursor);
            if backlog == 0 {
                self.waiting = None;
                self.readable();
                return;
            }
            if backlog < EVENTS_PER_MESSAGE as u64 && !hurry {
                let since = *self.waiting.get_or_insert_with(Instant::now);
                if since.elapsed() < LINGER {
                    return;
                }
            }
            self.waiting = None;
            let Some(mut records) = self.read(self.cursor).await else { return };
            // What is damaged is never settled: a message ends before it.
            let start = records.first().map_or(self.cursor, |record| record.sequence);
            let end = self.unsettled.range(self.cursor..).next().map_or(u64::MAX, |(first, _)| *first);
            if start >= end {
                self.cursor = end;
                continue;
            }
            let whole =
                records.iter().zip(start..end).take_while(|(record, number)| record.sequence == *number);
            let whole = whole.count();
            records.truncate(whole);
            let (Some(first), Some(last)) = (records.first(), records.last()) else {
                // What is left of the journal cannot be read, which was said.
                self.cursor = self.journal.durable() + 1;
                continue;
            };
            let (first, last, accepted_ms) = (first.sequence, last.sequence, first.accepted_ms);
            self.cursor = last + 1;
            records.retain(|record| !self.settled.contains(record.sequence));
            if !records.is_empty() {
                self.unsettled.insert(first, Sent { last, accepted_ms, waits_since: None, sends: 1 });
                self.send(first, records);
            }
        }
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
                if self.unreadable_ms.is_none() {
                    tracing::error!(%error, "the journal cannot be read; trying again");
                    self.way.health.down(DELIVERY, UNREADABLE);
                    self.unreadable_ms = Some(self.clock.now().timestamp_millis());
                }
                None
            }
        }
    }

    /// The journal can be read, or nothing in it need be.
    fn readable(&mut self) {
        if self.unreadable_ms.take().is_some() {
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
            match stamp::packed(&records, epoch) {
                Ok(packed) => {
                    drop(records);
                    way.publish(packed, count, last).await;
                }
                Err(error) => {
                    tracing::error!(%error, first, "a message could not be packed; trying again later");
                }
            }
            first
        });
    }

    /// From now on the ledger's word is waited for: for one message, or for all where it is not known whose task has failed.
    fn ended(&mut self, first: Option<u64>) {
        let now = Instant::now();
        for (_, sent) in
            self.unsettled.iter_mut().filter(|(number, _)| first.is_none_or(|first| **number == first))
        {
            sent.waits_since.get_or_insert(now);
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
            self.way.health.down(COUNT, OLDER_COPY);
            // Numbers go on past what the ledger has: the next run could not tell by itself.
            let journal = self.journal.clone();
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || journal.mark_older_copy()).await {
                tracing::warn!(%error, "that it is an older copy could not be noted; trying again");
            }
            return;
        }
        if !settled.keeps(&self.settled) {
            tracing::warn!(before = ?self.settled, now = ?settled, "{FORGOTTEN}");
            self.cursor = self.journal.oldest();
        }
        self.unsettled.retain(|first, sent| !settled.covers(*first..=sent.last));
        let (journal, released) = (self.journal.clone(), settled.clone());
        meters::settled(settled.through());
        self.settled = settled;
        let released = tokio::task::spawn_blocking(move || journal.release(&released)).await;
        if let Ok(Err(error)) = released {
            tracing::warn!(%error, "a segment of the journal could not be removed; trying again");
        }
        self.gauge();
    }

    /// Looks for messages that must have been lost on the way.
    fn look(&mut self) {
        let (resend_after, highest) = (self.resend_after, self.settled.highest());
        for (first, sent) in &mut self.unsettled {
            let Some(waits_since) = sent.waits_since else { continue };
            let hole = *first <= highest;
            let wait = if hole { resend_after } else { resend_after * BEHIND_FACTOR };
            if waits_since.elapsed() >= wait * 2_u32.pow((sent.sends - 1).min(DOUBLINGS_MAX)) {
                let range: RangeInclusive<u64> = *first..=sent.last;
                tracing::warn!(
                    ?range,
                    hole,
                    sends = sent.sends,
                    "events are not settled; publishing them again"
                );
                (sent.waits_since, sent.sends) = (None, sent.sends.saturating_add(1));
                self.again.push_back(*first);
            }
        }
        self.gauge();
    }

    fn gauge(&self) {
        let journal = &self.journal;
        let sent: u64 = self.unsettled.iter().map(|(first, sent)| sent.last - first + 1).sum();
        // After a step back some of what is on its way lies above the cursor.
        let ahead: u64 = self.unsettled.range(self.cursor..).map(|(first, sent)| sent.last - first + 1).sum();
        let unread = (journal.durable() + 1).saturating_sub(self.cursor + ahead);
        let sent_ms = self.unsettled.first_key_value().map(|(_, sent)| sent.accepted_ms);
        // Of what cannot be read nobody knows when it was accepted.
        let oldest_ms = sent_ms.into_iter().chain(self.unreadable_ms).min();
        let age_ms = oldest_ms.map_or(0, |oldest| (self.clock.now().timestamp_millis() - oldest).max(0));
        meters::state(sent + unread, age_ms, journal);
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
