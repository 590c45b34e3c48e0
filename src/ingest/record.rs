//! Recording a batch: one transaction, tried again as a whole, split where the data itself is at fault.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use chrono::NaiveDate;
use sqlx::PgConnection;

use super::IngestError;
use super::batch::Batch;
use super::catalog::Catalog;
use super::decide::{Decided, Incoming};
use super::discards;
use super::facts::Gathering;
use super::meters;
use super::recent::Recent;
use super::sorted::{Comparison, Sorted};
use crate::clock::Clock;
use crate::metering::READING;
use crate::shutdown::Shutdown;
use crate::store::journal::{self, BatchRow, JournalEvent, LookUp, Origin, Recorded};
use crate::store::posting::Unposted;
use crate::store::{Database, StoreError, Transactions, catalog, commit, replay};

/// First pause before a transaction is tried again; doubles up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause before a transaction is tried again.
const RETRY_LAST: Duration = Duration::from_secs(5);
/// Races with other writers that a batch may lose, each of which shows it a row more. One that loses yet another holds an
/// event that the database refuses however often it is tried.
const RACES_MAX: u32 = 10;
/// How often a batch is decided again because the catalog has changed meanwhile, before changes of it wait for the batch.
const STALE_MAX: u32 = 2;
/// What the messages that are decided at a time may come to, in bytes of their decompressed bodies: the last one is above it
/// by less than its own size. Small compressed messages may have large bodies.
pub(super) const DECIDED_BYTES_MAX: usize = 32 << 20;
/// Batches that are looked up whole after one that held an event for the second time: where one comes again, because messages
/// are delivered again or a gateway publishes again, others do. Each that is found by the journal's key instead costs a COPY.
const WARY_BATCHES: u32 = 100;
/// SQLSTATE of a unique violation: another writer was faster, the next try sees its row.
const UNIQUE_VIOLATION: &str = "23505";
/// SQLSTATE where no partition takes the row, without the name of a constraint: the booking date's partition is missing.
const CHECK_VIOLATION: &str = "23514";
/// SQLSTATE classes with which the database refuses data for what it is: data exceptions, broken constraints, too large for
/// a row or an index. All others (rights, passwords, locks, a missing table) are no fault of an event and may pass.
const REFUSED_SQLSTATES: [&str; 3] = ["22", "23", "54"];

/// Records batches of messages; one per process, shared by the consumer, replay and repair.
#[derive(Debug, Clone)]
pub struct Recorder {
    database: Database,
    clock: Clock,
    prefix: Arc<str>,
    catalog: Arc<RwLock<Arc<Catalog>>>,
    shutdown: Shutdown,
    // Set while a transaction has to be tried again.
    stuck: Arc<AtomicBool>,
    attempts: Transactions,
    // For how many more batches events are expected to come again.
    wary: Arc<AtomicU32>,
    // What it records, for posting in the same process.
    recent: Option<Recent>,
}

/// What one try of the transaction came to.
enum Attempt {
    Done(Recorded),
    /// The batch was decided with another catalog than the database's, whose version this is: load it, decide again.
    StaleCatalog(i64),
    /// No booking date is open, or it is not today's: open it, try again.
    NoBookingDate,
}

/// How the transaction ends where nothing is in its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Commit,
    /// The same, with the catalog kept as it is until then.
    CommitHeld,
    /// It is tried whether the database takes the batch, with whatever catalog it was decided.
    RollBack,
}

/// What trying it as often as it takes came to.
enum Tried {
    Done(Recorded),
    /// The database refuses the data itself.
    Refused(StoreError),
    /// A newer catalog is loaded: decide again.
    StaleCatalog,
}

impl Recorder {
    /// A recorder with the catalog as it is now; `prefix` is what the stream's subjects start with.
    ///
    /// # Errors
    /// [`IngestError`] where the catalog cannot be read.
    pub async fn new(
        database: Database,
        clock: Clock,
        prefix: &str,
        shutdown: Shutdown,
    ) -> Result<Self, IngestError> {
        let catalog = Arc::new(RwLock::new(Arc::new(Catalog::load(&database).await?)));
        Ok(Self {
            database,
            clock,
            prefix: prefix.into(),
            catalog,
            shutdown,
            stuck: Arc::default(),
            attempts: Transactions::default(),
            wary: Arc::default(),
            recent: None,
        })
    }

    /// The same, keeping what it records for posting in this process.
    #[must_use]
    pub fn keeping(self, recent: Recent) -> Self {
        Self { recent: Some(recent), ..self }
    }

    /// The database it records in.
    pub const fn database(&self) -> &Database {
        &self.database
    }

    /// The clock it reads.
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What asks it to stop.
    pub const fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Whether a batch cannot be committed at the moment.
    pub fn stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }

    /// How long the oldest transaction that records has been underway.
    pub fn oldest_attempt(&self) -> Option<Duration> {
        self.attempts.oldest()
    }

    fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes messages apart and decides them with the catalog at hand: the CPU work, done before the transaction. As many of
    /// them as come to `events_max` events or [`DECIDED_BYTES_MAX`], and at least one.
    pub fn decide_next(&self, messages: &mut impl Iterator<Item = Incoming>, events_max: usize) -> Batch {
        self.decide_most(messages, events_max, DECIDED_BYTES_MAX)
    }

    fn decide_most(
        &self,
        messages: &mut impl Iterator<Item = Incoming>,
        events_max: usize,
        bytes_max: usize,
    ) -> Batch {
        let catalog = self.catalog();
        let (mut decided, mut events, mut bytes, mut again) = (Vec::new(), 0, 0, false);
        while events < events_max
            && bytes < bytes_max
            && let Some(message) = messages.next()
        {
            again |= message.replay_of.is_some();
            let message = Decided::new(&catalog, &self.prefix, message);
            events += message.decisions.len();
            bytes += message.body_len();
            decided.push(message);
        }
        if again { Batch::again(catalog.version, decided) } else { Batch::new(catalog.version, decided) }
    }

    /// Loads the catalog, where the one at hand is not of this version.
    async fn load(&self, version: i64) -> Result<(), IngestError> {
        if self.catalog().version != version {
            let fresh = Arc::new(Catalog::load(&self.database).await?);
            *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        Ok(())
    }

    /// Decides a batch with the catalog at hand. What the database was found to refuse stays refused.
    fn decide_again(&self, batch: &mut Batch) {
        let unstorable = batch.unstorable();
        let mut messages = std::mem::take(&mut batch.decided).into_iter().map(|decided| decided.message);
        *batch = self.decide_most(&mut messages, usize::MAX, usize::MAX);
        batch.refuse_again(unstorable);
    }

    /// Keeps the catalog as it is until the transaction ends, and has the batch decided with it: where it changes more often
    /// than it is loaded, batches would be decided again for ever.
    async fn hold_catalog(&self, tx: &mut PgConnection, batch: &mut Batch) -> Result<(), IngestError> {
        let version = catalog::hold(tx).await?;
        if version != batch.catalog_version {
            self.load(version).await?;
            self.decide_again(batch);
        }
        Ok(())
    }

    /// Records a batch; returns once it is committed, whatever it takes, or when the program stops. A message of it is recorded
    /// whole or not at all: once its sequence is in a batch, nobody reads it again.
    ///
    /// # Errors
    /// [`IngestError::Stopping`] because of a stop; other errors only where trying again cannot help and the fault is not in
    /// an event. What they leave in doubt is not acknowledged: part of the batch may be recorded.
    pub async fn record(&self, origin: Origin, batch: Batch) -> Result<Recorded, IngestError> {
        let (mut total, mut failed) = (Recorded::default(), None);
        let (mut pending, mut stale) = (vec![batch], 0);
        while let Some(batch) = pending.pop() {
            match self.record_or_split(origin, batch, &mut pending, &mut stale).await {
                Ok(recorded) => {
                    total.recorded += recorded.recorded;
                    total.duplicates += recorded.duplicates;
                    total.rejected += recorded.rejected;
                }
                Err(IngestError::Stopping) => return Err(IngestError::Stopping),
                Err(error) => {
                    tracing::error!(%error, "part of a batch cannot be recorded; going on with the rest of it");
                    failed = failed.or(Some(error));
                }
            }
        }
        failed.map_or(Ok(total), Err)
    }

    /// Records a batch, or leaves what has to be recorded instead of it; `stale` counts how often it was decided again.
    async fn record_or_split(
        &self,
        origin: Origin,
        mut batch: Batch,
        pending: &mut Vec<Batch>,
        stale: &mut u32,
    ) -> Result<Recorded, IngestError> {
        let ending = if *stale < STALE_MAX { Ending::Commit } else { Ending::CommitHeld };
        match self.try_out(origin, &mut batch, ending).await? {
            Tried::Done(recorded) => {
                *stale = 0;
                return Ok(recorded);
            }
            Tried::StaleCatalog => {
                *stale += 1;
                self.decide_again(&mut batch);
                pending.push(batch);
            }
            // The data itself is at fault: isolated by halves down to the message, and in that the one event.
            Tried::Refused(error) => match batch.halves() {
                Ok([first, second]) => pending.extend([second, first]),
                Err(message) => pending.push(self.without_refused(origin, message, error).await?),
            },
        }
        Ok(Recorded::default())
    }

    /// Makes rejections of those events of a message that the database refuses: first of those that it refuses by themselves,
    /// for which nothing before them is tried again; where there is none, of those that it refuses beside the others.
    ///
    /// # Errors
    /// [`IngestError::Store`] where it refuses a rejection, or no event of it.
    async fn without_refused(
        &self,
        origin: Origin,
        mut message: Batch,
        mut refusal: StoreError,
    ) -> Result<Batch, IngestError> {
        for alone in [true, false] {
            match self.find_refused(origin, &mut message, alone, refusal).await? {
                None => return Ok(message),
                Some(last) => refusal = last,
            }
        }
        Err(refusal.into())
    }

    /// Makes rejections of those events of a message that the database refuses; returns the last refusal where it finds none.
    /// They are found by trying more and more of its events, fewer where these are refused, in transactions that are rolled
    /// back.
    async fn find_refused(
        &self,
        origin: Origin,
        message: &mut Batch,
        alone: bool,
        mut refusal: StoreError,
    ) -> Result<Option<StoreError>, IngestError> {
        let events = message.event_count();
        // So many are taken; so many more were tried last, with what came of it.
        let (mut taken, mut more) = (0, events);
        let (mut refused, mut found) = (true, false);
        loop {
            if !refused {
                (taken, more) = (taken + more, more * 2);
            } else if more > 1 {
                more /= 2;
            } else if message.refuse(taken, &refusal) {
                (taken, found) = (taken + 1, true);
            } else {
                return Err(refusal.into());
            }
            more = more.min(events - taken);
            if more == 0 {
                return Ok((!found).then_some(refusal));
            }
            let others = message.only(if alone { taken } else { 0 }..taken + more);
            let tried = self.try_out(origin, message, Ending::RollBack).await;
            message.put_back(others);
            match tried? {
                Tried::Refused(error) => (refused, refusal) = (true, error),
                // Nothing is compared with the catalog here.
                Tried::Done(_) | Tried::StaleCatalog => refused = false,
            }
        }
    }

    /// Tries until the transaction is through, or the database refuses the data of the batch.
    async fn try_out(&self, origin: Origin, batch: &mut Batch, ending: Ending) -> Result<Tried, IngestError> {
        let mut pause = RETRY_FIRST;
        let (mut partition_made, mut races) = (false, 0);
        loop {
            let wary = self.wary.load(Ordering::Relaxed) > 0
                || !batch.may_be_new(origin)
                // What is decided then may hold corrections that this one does not.
                || ending == Ending::CommitHeld;
            // What has to be done first may fail as the transaction itself may, and is tried again like it.
            let first = match self.attempt(origin, batch, wary, ending).await {
                Ok(Attempt::Done(recorded)) => {
                    self.stuck.store(false, Ordering::Relaxed);
                    self.expect_copies(recorded.duplicates > 0);
                    return Ok(Tried::Done(recorded));
                }
                Ok(Attempt::StaleCatalog(version)) => match self.load(version).await {
                    Ok(()) => return Ok(Tried::StaleCatalog),
                    Err(error) => Err(error),
                },
                Ok(Attempt::NoBookingDate) => self.open_booking_date().await,
                Err(IngestError::Store(error)) if lost_a_race(&error) && !wary => {
                    tracing::debug!(%error, "an event may have come again; looking up each of the batch");
                    self.expect_copies(true);
                    Ok(())
                }
                Err(IngestError::Store(error)) if lost_a_race(&error) && races < RACES_MAX => {
                    tracing::debug!(%error, "another writer was faster; trying the batch again");
                    races += 1;
                    Ok(())
                }
                Err(IngestError::Store(error)) if lacks_partition(&error) && !partition_made => {
                    tracing::warn!(%error, "the journal lacks the partition of today; making it");
                    let made = self.open_booking_date().await;
                    partition_made = made.is_ok();
                    made
                }
                Err(IngestError::Store(error)) if refused(&error) => return Ok(Tried::Refused(error)),
                Err(error) => Err(error),
            };
            let Err(error) = first else { continue };
            if !error.retryable() && !matches!(error, IngestError::Store(_)) {
                return Err(error);
            }
            tracing::warn!(%error, "a batch could not be recorded; trying again");
            metrics::counter!("waybill_ingest_retries_total").increment(1);
            self.stuck.store(true, Ordering::Relaxed);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.stopped() => return Err(IngestError::Stopping),
            }
            pause = (pause * 2).min(RETRY_LAST);
        }
    }

    async fn open_booking_date(&self) -> Result<(), IngestError> {
        let today = self.clock.now().date_naive();
        let mut tx = self.database.begin_ingest().await?;
        journal::switch_date(&mut tx, today).await?;
        commit(tx).await?;
        Ok(())
    }

    /// Remembers whether the last batch held an event for the second time.
    fn expect_copies(&self, came_again: bool) {
        // Two batches at a time may count as one, which does no harm.
        let left = self.wary.load(Ordering::Relaxed).saturating_sub(1);
        self.wary.store(if came_again { WARY_BATCHES } else { left }, Ordering::Relaxed);
    }

    /// One transaction from begin to commit; a wary one looks for each event in the journal.
    async fn attempt(
        &self,
        origin: Origin,
        batch: &mut Batch,
        wary: bool,
        ending: Ending,
    ) -> Result<Attempt, IngestError> {
        let _underway = self.attempts.begin();
        let mut tx = self.database.begin_ingest().await?;
        if ending == Ending::CommitHeld {
            self.hold_catalog(&mut tx, batch).await?;
        }
        let batch = &*batch;
        let messages = batch.span(origin);
        let Some(opening) = journal::open(&mut tx, messages).await? else {
            return Ok(Attempt::NoBookingDate);
        };
        if opening.booked_on < self.clock.now().date_naive() {
            return Ok(Attempt::NoBookingDate);
        }
        if opening.catalog_version != batch.catalog_version && ending != Ending::RollBack {
            return Ok(Attempt::StaleCatalog(opening.catalog_version));
        }
        if origin == Origin::Replay && !replay::still_open(&mut tx, &batch.replayed()).await? {
            // Another process replays the same rejections.
            return Ok(Attempt::Done(Recorded::default()));
        }
        let mut discarded = match origin.incarnation().filter(|_| opening.discarded) {
            Some(life) => discards::themselves(&mut tx, batch, life).await?,
            None => Vec::new(),
        };
        if let (Some(from), Some(to)) = (opening.discarded_from, opening.discarded_to) {
            discarded.extend(discards::copies(&mut tx, batch, from..=to).await?);
        }
        let with = Comparison {
            booked_on: opening.booked_on,
            horizon: batch.horizon(opening.booked_on),
            look_up: if wary { LookUp::Whole } else { LookUp::ExceptOn(opening.booked_on) },
            discarded: discarded.into_iter().collect(),
        };
        let sorted = batch.sort_out(&mut tx, origin, &with).await?;
        self.write(&mut tx, origin, batch, &sorted, opening.booked_on).await?;
        match ending {
            Ending::Commit | Ending::CommitHeld => {
                commit(tx).await?;
                meters::stated(sorted.events.iter().flat_map(|candidate| &candidate.event.parts));
            }
            Ending::RollBack => tx.rollback().await?,
        }
        Ok(Attempt::Done(sorted.outcome(origin)))
    }

    /// Writes what was sorted out.
    async fn write(
        &self,
        tx: &mut PgConnection,
        origin: Origin,
        batch: &Batch,
        sorted: &Sorted<'_>,
        booked_on: NaiveDate,
    ) -> Result<(), IngestError> {
        let outcome = sorted.outcome(origin);
        let row = BatchRow {
            origin,
            sequences: batch.sequences(origin),
            last_published_at: batch.last_published_at(origin),
            outcome,
            rows: sorted.rows(),
            booked_on,
        };
        let written = if origin == Origin::Replay && outcome == Recorded::default() {
            None
        } else {
            Some(journal::insert_batch(tx, &row).await?)
        };
        let id = written.map(|batch| batch.id);
        if let Some(batch) = &written {
            self.write_events(tx, batch, booked_on, sorted).await?;
        }
        if let Some(id) = id
            && let Some(incarnation) = origin.incarnation()
        {
            let version = batch.catalog_version;
            let rejections = sorted.rejections.iter().map(AsRef::as_ref);
            journal::copy_rejections(tx, id, incarnation, version, READING, rejections).await?;
            // Copies that come again bring no new evidence.
            if !sorted.events.is_empty() {
                journal::insert_payload(tx, id, &batch.payload()?).await?;
            }
        }
        if origin == Origin::Replay {
            replay::resolve(tx, id, batch.catalog_version, &sorted.resolutions).await?;
        }
        let heard = origin != Origin::Replay;
        let repeated = journal::mark_sequences(tx, &batch.marks(origin, sorted), heard).await?;
        if let Some(id) = id
            && repeated
        {
            journal::forgive_repeats(tx, id, &sorted.fresh_marks()).await?;
        }
        Ok(())
    }

    /// Writes the new events, and what follows from them.
    async fn write_events(
        &self,
        tx: &mut PgConnection,
        batch: &Unposted,
        booked_on: NaiveDate,
        sorted: &Sorted<'_>,
    ) -> Result<(), IngestError> {
        let mut events: Vec<&JournalEvent> = sorted.events.iter().map(|candidate| &candidate.event).collect();
        if events.is_empty() {
            return Ok(());
        }
        // Writers that hold copies of the same events meet in one order, so they wait instead of deadlocking.
        events.sort_unstable_by_key(|event| event.key);
        // A batch with corrections has more rows than its events: those that take estimates back.
        let corrects = events.iter().any(|event| event.corrects.is_some());
        let recent = self.recent.as_ref().filter(|_| !corrects);
        let (mut facts, mut gathered) = (Gathering::new(batch.id, booked_on), Ok(()));
        // Gathered while the server is busy with the rows before.
        let copied = events.iter().copied().inspect(|event| {
            if recent.is_some() && gathered.is_ok() {
                gathered = facts.add_event(event);
            }
        });
        journal::copy_events(tx, batch.id, booked_on, copied).await?;
        match (recent, gathered) {
            (Some(recent), Ok(())) => recent.keep(batch, facts.finish()),
            (_, Err(error)) => {
                tracing::warn!(%error, "a batch is not kept; posting reads it from the journal");
            }
            (None, Ok(())) => {}
        }
        journal::correct(tx, batch.id, &sorted.corrections()).await?;
        Ok(())
    }
}

/// Whether the failed statement only shows that another writer was faster.
fn lost_a_race(error: &StoreError) -> bool {
    matches!(error, StoreError::StandsOtherwise(_)) || error.sqlstate().as_deref() == Some(UNIQUE_VIOLATION)
}

/// Whether the booking date has no partition: none was made, or somebody has detached it.
fn lacks_partition(error: &StoreError) -> bool {
    matches!(error, StoreError::NoPartition(_))
        || error.sqlstate().as_deref() == Some(CHECK_VIOLATION) && error.constraint().is_none()
}

/// Whether the database refuses the data itself: only it can say so, by its SQLSTATE, or by what it holds of an estimate. A
/// unique violation, and an estimate that stands otherwise, say so once too many races were lost for it to be one.
fn refused(error: &StoreError) -> bool {
    let by_state = |state: String| REFUSED_SQLSTATES.iter().any(|class| state.starts_with(class));
    matches!(error, StoreError::StandsOtherwise(_))
        || error.sqlstate().is_some_and(by_state) && !lacks_partition(error)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::identity::EventKey;

    #[test]
    fn only_the_database_can_say_that_the_data_is_at_fault() {
        let decode = sqlx::Error::ColumnDecode { index: "0".to_owned(), source: "not a number".into() };
        let begun = StoreError::Database(sqlx::Error::BeginFailed);
        let affected = StoreError::RowsAffected { what: "a write", expected: 1, actual: 0 };
        for error in [StoreError::Database(decode), begun, affected] {
            assert!(!error.retryable() && !refused(&error), "{error}");
        }
        // Tried again for ever it would hold up all others.
        let standing = StoreError::StandsOtherwise(EventKey(Uuid::nil()));
        assert!(lost_a_race(&standing) && refused(&standing), "{standing}");
    }
}
