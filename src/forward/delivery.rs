//! From the journal to the stream: packs what is new, waits for the stream's word, and for the ledger's.
//!
//! A message whose events the ledger does not have after a while is published again: soon where later events have
//! arrived (a hole, so it was lost on the way), later where nothing has (the ledger may just be behind).

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::journal::{Journal, JournalError, Record};
use super::settled::Settled;
use super::stamp::{self, Packed, STAMP_BYTES_MAX};
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
/// First and longest pause before a message is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often is looked whether something must be published again.
const TICK: Duration = Duration::from_secs(1);
/// How much longer than a hole unsettled events above everything settled may stay so.
const BEHIND_FACTOR: u32 = 15;
/// The wait before events are published yet again doubles so often.
const DOUBLINGS_MAX: u32 = 6;
/// The parts of the program that this speaks for.
const COUNT: &str = "count";
const STREAM: &str = "stream";
/// What is wrong with a journal whose numbers the ledger has seen before.
const OLDER_COPY: &str = "the ledger has higher numbers of this journal than the journal itself, so this is an older copy of it; events are \
                          forwarded, but nothing is removed: stop, and start with a new folder once all is published";
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
    with: Delivery,
    /// The next number to read.
    cursor: u64,
    /// By first number.
    unsettled: BTreeMap<u64, Sent>,
    again: VecDeque<u64>,
    /// Each ends with the message's first number.
    in_flight: JoinSet<u64>,
    /// Since when fewer events than a full message wait.
    waiting: Option<Instant>,
    settled: Settled,
    /// Whether the ledger knows more of the journal than the journal itself.
    older_copy: bool,
    /// Whether publishing fails at the moment.
    failing: Arc<AtomicBool>,
}

impl Delivery {
    /// Publishes until a stop is asked for.
    pub async fn run(self) {
        let settled = self.settled.borrow().clone();
        let (cursor, opened_at) = (self.journal.oldest(), self.opened_at);
        let mut work = Loop {
            with: self,
            cursor,
            unsettled: BTreeMap::new(),
            again: VecDeque::new(),
            in_flight: JoinSet::new(),
            waiting: None,
            settled: Settled::default(),
            older_copy: false,
            failing: Arc::default(),
        };
        // Nothing was published yet: what the ledger has is what was in the journal then.
        work.settle(settled, opened_at).await;
        work.run().await;
    }
}

impl Loop {
    async fn run(mut self) {
        let (mut durable, mut told) = (self.with.journal.watch(), self.with.settled.clone());
        let (shutdown, mut tick) = (self.with.shutdown.clone(), tokio::time::interval(TICK));
        let mut stop_at = None;
        loop {
            if let Err(error) = self.fill(stop_at.is_some()).await {
                tracing::error!(%error, "the journal cannot be read; trying again");
            }
            if let Some(at) = stop_at {
                let done = self.in_flight.is_empty() && self.cursor > self.with.journal.durable();
                if done || Instant::now() >= at || !self.with.publisher.connected() {
                    return;
                }
            }
            let linger = self.waiting.map_or(TICK, |since| LINGER.saturating_sub(since.elapsed()));
            tokio::select! {
                Some(Ok(first)) = self.in_flight.join_next() => self.ended(first),
                Ok(()) = told.changed() => {
                    let settled = told.borrow_and_update().clone();
                    self.settle(settled, self.with.journal.durable()).await;
                }
                Ok(()) = durable.changed() => {}
                () = tokio::time::sleep(linger) => {}
                _ = tick.tick() => self.look(),
                () = shutdown.stopped(), if stop_at.is_none() => stop_at = Some(Instant::now() + STOP_TIMEOUT),
            }
        }
    }

    /// Sends as much as may be on its way.
    async fn fill(&mut self, hurry: bool) -> Result<(), JournalError> {
        while self.in_flight.len() < IN_FLIGHT_MAX {
            if let Some(first) = self.again.pop_front() {
                let Some(last) = self.unsettled.get(&first).map(|sent| sent.last) else { continue };
                let mut records = self.read(first).await?;
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
            let backlog = (self.with.journal.durable() + 1).saturating_sub(self.cursor);
            if backlog == 0 {
                self.waiting = None;
                return Ok(());
            }
            if backlog < EVENTS_PER_MESSAGE as u64 && !hurry {
                let since = *self.waiting.get_or_insert_with(Instant::now);
                if since.elapsed() < LINGER {
                    return Ok(());
                }
            }
            self.waiting = None;
            let mut records = self.read(self.cursor).await?;
            // What is damaged is never settled: a message ends before it.
            let start = records.first().map_or(self.cursor, |record| record.sequence);
            let whole = records.iter().zip(start..).take_while(|(record, number)| record.sequence == *number);
            let whole = whole.count();
            records.truncate(whole);
            let (Some(first), Some(last)) = (records.first(), records.last()) else {
                // What is left of the journal cannot be read, which was said.
                self.cursor = self.with.journal.durable() + 1;
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
        Ok(())
    }

    async fn read(&self, from: u64) -> Result<Vec<Record>, JournalError> {
        let journal = self.with.journal.clone();
        let read =
            tokio::task::spawn_blocking(move || journal.read(from, EVENTS_PER_MESSAGE, EVENTS_BYTES_MAX));
        read.await.unwrap_or_else(|_| Ok(Vec::new()))
    }

    /// Publishes records as one message, again and again until the stream has it.
    fn send(&mut self, first: u64, records: Vec<Record>) {
        let way = Way {
            publisher: self.with.publisher.clone(),
            gateway: Arc::clone(&self.with.gateway),
            shutdown: self.with.shutdown.clone(),
            failing: Arc::clone(&self.failing),
            health: self.with.health.clone(),
        };
        let epoch = self.with.journal.epoch();
        self.in_flight.spawn(async move {
            let count = records.len();
            match stamp::packed(&records, epoch) {
                Ok(packed) => {
                    drop(records);
                    way.publish(packed, count).await;
                }
                Err(error) => {
                    tracing::error!(%error, first, "a message could not be packed; trying again later");
                }
            }
            first
        });
    }

    /// From now on the ledger's word is waited for.
    fn ended(&mut self, first: u64) {
        if let Some(sent) = self.unsettled.get_mut(&first) {
            sent.waits_since = Some(Instant::now());
        }
    }

    /// Forgets what the ledger has, unless it has numbers above `newest`: then the journal is an older copy of itself, and what it
    /// gives those numbers to now is not what the ledger has.
    async fn settle(&mut self, settled: Settled, newest: u64) {
        if settled.highest() > newest && !self.older_copy {
            tracing::error!(highest = settled.highest(), newest, "{OLDER_COPY}");
            self.older_copy = true;
        }
        if self.older_copy {
            self.with.health.down(COUNT, OLDER_COPY);
            return;
        }
        self.unsettled.retain(|first, sent| !settled.covers(*first..=sent.last));
        let (journal, released) = (self.with.journal.clone(), settled.clone());
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
        let (resend_after, highest) = (self.with.resend_after, self.settled.highest());
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
        let journal = &self.with.journal;
        let sent: u64 = self.unsettled.iter().map(|(first, sent)| sent.last - first + 1).sum();
        let unread = (journal.durable() + 1).saturating_sub(self.cursor);
        let oldest_ms = self.unsettled.first_key_value().map(|(_, sent)| sent.accepted_ms);
        let age_ms = oldest_ms.map_or(0, |oldest| (self.with.clock.now().timestamp_millis() - oldest).max(0));
        meters::state(sent + unread, age_ms, journal);
    }
}

/// What one message needs on its way to the stream.
struct Way {
    publisher: Publisher,
    gateway: Arc<str>,
    shutdown: Shutdown,
    failing: Arc<AtomicBool>,
    health: Health,
}

impl Way {
    /// Returns when the stream has the message, or when a stop is asked for.
    async fn publish(&self, message: Packed, events: usize) {
        let mut pause = RETRY.0;
        while !self.tried(&message, events).await {
            tokio::select! {
                // Some longer and some shorter, so that they do not come back all at once.
                () = tokio::time::sleep(pause + pause * u32::from(rand::random::<u8>()) / 512) => {}
                () = self.shutdown.stopped() => return,
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Whether the stream has the message now; says once why it has not.
    async fn tried(&self, message: &Packed, events: usize) -> bool {
        // While there is no connection, publishing would only pile up copies in the client.
        if !self.publisher.connected() {
            self.health.down(STREAM, "not connected; events are kept");
            if !self.failing.swap(true, Ordering::Relaxed) {
                tracing::warn!("there is no connection to NATS; events are kept and published later");
            }
            return false;
        }
        match self.publisher.publish_packed(&self.gateway, message.body.clone(), message.zstd).await {
            Ok(_) => {
                self.health.up(STREAM);
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("events are published again");
                }
                meters::published(events);
                true
            }
            Err(error) => {
                meters::retried();
                self.health.down(STREAM, "it takes no messages; events are kept");
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "events cannot be published; they are kept and tried again");
                }
                false
            }
        }
    }
}
