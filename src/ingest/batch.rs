//! A batch of decided messages, and what of it is new to the journal.

use std::borrow::Cow;

use chrono::{DateTime, NaiveDate, Utc};
use foldhash::fast::RandomState;
use foldhash::{HashMap, HashSet};
use sqlx::PgConnection;
use uuid::Uuid;

use super::IngestError;
use super::decide::{Candidate, Decided, Decision, Incoming};
use crate::domain::event::SequenceMark;
use crate::domain::identity::EventKey;
use crate::metering::Reason;
use crate::store::journal::payload::Payload;
use crate::store::journal::{
    self, Existing, FreshMark, LookUp, Mark, Origin, ReadEvent, Recorded, Rejection, RejectionPosition, Span,
};
use crate::store::replay::{Resolution, Resolved, Tried};
use crate::store::{StoreError, journal::JournalEvent};

/// Messages decided with one version of the catalog.
#[derive(Debug)]
pub struct Batch {
    /// The version.
    pub catalog_version: i64,
    /// The messages, in the order of the stream.
    pub decided: Vec<Decided>,
    /// What it received, as it is stored; `None` where that is made when it is needed.
    received: Option<Vec<u8>>,
}

/// What a batch is compared with.
#[derive(Debug)]
pub struct Comparison {
    /// The first booking date that is looked through.
    pub horizon: NaiveDate,
    /// How thoroughly.
    pub look_up: LookUp,
    /// What of it finance has discarded: settled, whatever would become of it now.
    pub discarded: HashSet<RejectionPosition>,
}

impl Comparison {
    fn settled(&self, position: RejectionPosition) -> bool {
        !self.discarded.is_empty()
            && (self.discarded.contains(&position) || self.discarded.contains(&position.of_message()))
    }
}

/// What a batch comes to, given what the database holds.
#[derive(Debug, Default)]
pub struct Sorted<'a> {
    /// New events.
    pub events: Vec<&'a Candidate>,
    /// Events and messages that cannot be recorded: by themselves, or for what the database holds.
    pub rejections: Vec<Cow<'a, Rejection>>,
    /// Events that were recorded, or rejected, before.
    pub duplicates: i32,
    /// For a replay: what became of each rejection.
    pub resolutions: Vec<Resolved>,
}

impl Sorted<'_> {
    /// How the events ended. A rejection that is rejected again keeps counting in its first batch.
    pub fn outcome(&self, origin: Origin) -> Recorded {
        let rejected = if origin == Origin::Replay { 0 } else { count(self.rejections.len()) };
        Recorded { recorded: count(self.events.len()), duplicates: self.duplicates, rejected }
    }

    /// Rows the new events add.
    pub fn rows(&self) -> i32 {
        count(self.events.iter().map(|candidate| candidate.event.row_count()).sum())
    }
}

fn count(number: usize) -> i32 {
    // Batches are bounded to far below this.
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// What decides over one candidate.
enum Known {
    New,
    Duplicate,
    Rejected(Refusal),
}

/// Why an event cannot be recorded, given what the database holds.
struct Refusal {
    reason: Reason,
    detail: &'static str,
    waits_for: Option<EventKey>,
}

impl Batch {
    fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.decided.iter().flat_map(|decided| &decided.decisions).filter_map(|decision| match decision {
            Decision::Record(candidate) => Some(candidate.as_ref()),
            Decision::Reject(_) => None,
        })
    }

    /// The refused events that may be copies.
    fn refused_events(&self) -> impl Iterator<Item = &ReadEvent> {
        self.decided.iter().flat_map(|decided| &decided.decisions).filter_map(|decision| match decision {
            Decision::Record(_) => None,
            Decision::Reject(rejection) => rejection.event.as_ref(),
        })
    }

    /// The places of its events in their gateways' own counts. However an event ends, as recorded, duplicate or
    /// rejection, it is in the database once this batch is: its number is settled.
    pub fn marks(&self, origin: Origin, sorted: &Sorted<'_>) -> Vec<Mark<'_>> {
        let recorded: HashSet<*const Candidate> =
            sorted.events.iter().map(|candidate| std::ptr::from_ref(*candidate)).collect();
        let mut marks = Vec::new();
        for decision in self.decided.iter().flat_map(|decided| &decided.decisions) {
            let (gateway, mark, fresh) = match decision {
                Decision::Record(candidate) => {
                    let Some(mark) = &candidate.mark else { continue };
                    // What is read or tried again had its number before.
                    let fresh = matches!(origin, Origin::Stream(_))
                        && recorded.contains(&std::ptr::from_ref(&**candidate));
                    (candidate.event.gateway, mark, fresh)
                }
                Decision::Reject(rejection) => {
                    let Some((gateway, mark)) = &rejection.mark else { continue };
                    (*gateway, mark, false)
                }
            };
            let SequenceMark { epoch, number } = mark;
            marks.push(Mark { gateway, epoch, number: *number, fresh });
        }
        marks
    }

    /// Whether it can be decided without all that the journal holds: an event that is there already can then only break the
    /// journal's key. A correction may be refused for what another one has done, so it needs to know itself.
    pub fn may_be_new(&self, origin: Origin) -> bool {
        matches!(origin, Origin::Stream(_))
            && self.candidates().all(|candidate| candidate.event.corrects.is_none())
    }

    /// How many events it holds, whole-message faults counted as one.
    pub fn event_count(&self) -> usize {
        self.decided.iter().map(|decided| decided.decisions.len()).sum()
    }

    /// Stream sequences of its messages; none for a replay, whose sequences were accounted for when they arrived.
    pub fn sequences(&self, origin: Origin) -> Vec<i64> {
        if origin == Origin::Replay {
            return Vec::new();
        }
        let mut sequences: Vec<i64> = self.decided.iter().map(|decided| decided.message.sequence).collect();
        sequences.sort_unstable();
        sequences.dedup();
        sequences
    }

    /// Its messages in the stream; none for a replay, whose may be of several lives.
    pub fn span(&self, origin: Origin) -> Option<Span> {
        let incarnation = origin.incarnation()?;
        let sequences = || self.decided.iter().map(|decided| decided.message.sequence);
        Some(Span { incarnation, first: sequences().min()?, last: sequences().max()? })
    }

    /// The first booking date that a copy of one of its events may be found on: counted from when the stream took the oldest
    /// of its messages, which may be read again for as long as the stream keeps them.
    pub fn horizon(&self, booked_on: NaiveDate) -> NaiveDate {
        let oldest = self.decided.iter().map(|decided| decided.message.received_at).min();
        journal::dedup_horizon(oldest.map_or(booked_on, |oldest| booked_on.min(oldest.date_naive())))
    }

    /// When the stream took its last message; none for a replay.
    pub fn last_published_at(&self, origin: Origin) -> Option<DateTime<Utc>> {
        let messages = self.decided.iter().map(|decided| &decided.message);
        let last = messages.max_by_key(|message| message.sequence).map(|message| message.received_at);
        last.filter(|_| origin != Origin::Replay)
    }

    /// The rejections that it tries again.
    pub fn replayed(&self) -> Vec<Tried> {
        let tried = |message: &Incoming| {
            let rejection = message.replay_of?.rejection;
            Some(Tried { rejection, window_waived: message.window_waived })
        };
        self.decided.iter().filter_map(|decided| tried(&decided.message)).collect()
    }

    /// A batch of messages from the stream, with everything done that needs no database.
    pub fn new(catalog_version: i64, decided: Vec<Decided>) -> Self {
        let mut batch = Self { catalog_version, decided, received: None };
        // Where this fails it fails again, and is reported, when the payload is needed.
        batch.received = batch.compressed().ok();
        batch
    }

    /// A batch whose payload is made only when it is needed: rejections that are tried again, parts of another batch.
    pub const fn again(catalog_version: i64, decided: Vec<Decided>) -> Self {
        Self { catalog_version, decided, received: None }
    }

    /// Adds the messages of another batch that was decided with the same version of the catalog.
    pub fn append(&mut self, mut other: Self) {
        self.decided.append(&mut other.decided);
        self.received = match (self.received.take(), other.received) {
            (Some(mut received), Some(others)) => {
                received.extend_from_slice(&others);
                Some(received)
            }
            _ => None,
        };
    }

    /// What it received, compressed, without what people and models said to each other.
    ///
    /// # Errors
    /// [`IngestError::Compress`].
    pub fn payload(&self) -> Result<Cow<'_, [u8]>, IngestError> {
        match &self.received {
            Some(received) => Ok(Cow::Borrowed(received)),
            None => Ok(Cow::Owned(self.compressed().map_err(IngestError::Compress)?)),
        }
    }

    fn compressed(&self) -> std::io::Result<Vec<u8>> {
        let mut payload = Payload::with_capacity(self.decided.iter().map(Decided::body_len).sum());
        for decided in &self.decided {
            payload.add(decided.message.sequence, &decided.without_texts());
        }
        payload.compressed()
    }

    /// Compares every event with what the database and the batch itself hold.
    ///
    /// # Errors
    /// [`IngestError::Store`].
    pub async fn sort_out(
        &self,
        tx: &mut PgConnection,
        origin: Origin,
        with: &Comparison,
    ) -> Result<Sorted<'_>, IngestError> {
        let (horizon, look_up) = (with.horizon, with.look_up);
        let existing = self.existing(tx, horizon, look_up).await?;
        let in_batch = self.corrected(&existing, with);
        let mut sorted = Sorted::default();
        let mut refused: Vec<(&Decided, Cow<'_, Rejection>)> = Vec::new();
        let mut seen: HashMap<EventKey, &JournalEvent> =
            HashMap::with_capacity_and_hasher(self.event_count(), RandomState::default());
        for decided in &self.decided {
            for decision in &decided.decisions {
                match decision {
                    Decision::Record(candidate) if with.settled(candidate.position()) => {
                        sorted.duplicates += 1;
                    }
                    Decision::Reject(rejection) if with.settled(rejection.position) => sorted.duplicates += 1,
                    Decision::Reject(rejection) if is_recorded(rejection, &existing) => {
                        sorted.duplicates += 1;
                        sorted.resolve(decided, || Resolution::Duplicate);
                    }
                    Decision::Reject(rejection) => refused.push((decided, Cow::Borrowed(rejection.as_ref()))),
                    Decision::Record(candidate) => {
                        let event = &candidate.event;
                        match known(tx, event, &existing, &seen, &in_batch).await? {
                            Known::New => {
                                seen.insert(event.key, event);
                                sorted.events.push(candidate);
                                sorted.resolve(decided, || Resolution::Recorded);
                            }
                            Known::Duplicate => {
                                sorted.duplicates += 1;
                                sorted.resolve(decided, || Resolution::Duplicate);
                            }
                            Known::Rejected(Refusal { reason, detail, waits_for }) => {
                                let rejection = decided.reject(candidate, reason, detail.to_owned());
                                refused.push((decided, Cow::Owned(Rejection { waits_for, ..rejection })));
                            }
                        }
                    }
                }
            }
        }
        let mut rejected_before = known_rejections(tx, origin, &refused).await?;
        for (decided, rejection) in refused {
            // The message came again, maybe while it waited to be recorded: then both are in this batch. Rejections that are
            // tried again may be of several lives of the stream, with the same positions.
            if origin != Origin::Replay && !rejected_before.insert(rejection.position) {
                sorted.duplicates += 1;
            } else {
                sorted.resolve(decided, || Resolution::Rejected {
                    reason: rejection.reason,
                    detail: rejection.detail.clone(),
                    waits_for: rejection.waits_for,
                });
                sorted.rejections.push(rejection);
            }
        }
        Ok(sorted)
    }

    /// The events of this batch that the journal lacks, by key, where one of them corrects another, or else none. Of two
    /// with one key the first, which is the one that is recorded.
    fn corrected(
        &self,
        existing: &HashMap<EventKey, Existing>,
        with: &Comparison,
    ) -> HashMap<EventKey, &JournalEvent> {
        let lacks = |candidate: &&Candidate| {
            !existing.contains_key(&candidate.event.key) && !with.settled(candidate.position())
        };
        if !self.candidates().any(|candidate| candidate.event.corrects.is_some() && lacks(&candidate)) {
            return HashMap::default();
        }
        let mut in_batch = HashMap::default();
        for candidate in self.candidates().filter(lacks) {
            in_batch.entry(candidate.event.key).or_insert(&candidate.event);
        }
        in_batch
    }

    async fn existing(
        &self,
        tx: &mut PgConnection,
        horizon: NaiveDate,
        look_up: LookUp,
    ) -> Result<HashMap<EventKey, Existing>, StoreError> {
        // Old events may have been recorded long ago: their look-up covers every partition.
        let old_too = self.candidates().any(|candidate| candidate.backfill) || !self.replayed().is_empty();
        let horizon = if old_too { NaiveDate::default() } else { horizon };
        let mut keys: Vec<Uuid> = self.candidates().map(|candidate| candidate.event.key.0).collect();
        let mut rows = journal::existing(tx, &mut keys, horizon, look_up).await?;
        // What is refused is not added, so nothing else would tell that it is there.
        let mut refused: Vec<Uuid> = self.refused_events().map(|event| event.key.0).collect();
        rows.extend(journal::existing(tx, &mut refused, horizon, LookUp::Whole).await?);
        Ok(rows.into_iter().map(|row| (row.key, row)).collect())
    }

    /// Two batches, each of half of its messages.
    ///
    /// # Errors
    /// Itself, where it is one message.
    pub fn halves(mut self) -> Result<[Self; 2], Self> {
        if self.decided.len() < 2 {
            return Err(self);
        }
        let second = self.decided.split_off(self.decided.len() / 2);
        Ok([self.decided, second].map(|half| Self::again(self.catalog_version, half)))
    }

    /// Leaves so many of the events of its last message, and gives the others.
    pub fn hold_back(&mut self, events: usize) -> Vec<Decision> {
        let decisions = self.decided.last_mut().map(|decided| &mut decided.decisions);
        decisions.map_or_else(Vec::new, |decisions| decisions.split_off(events.min(decisions.len())))
    }

    /// Adds them to it again.
    pub fn put_back(&mut self, mut held: Vec<Decision>) {
        if let Some(decided) = self.decided.last_mut() {
            decided.decisions.append(&mut held);
        }
    }

    /// Makes a rejection of an event of its last message that the database refuses; `false` where it is one already.
    pub fn refuse(&mut self, index: usize, error: &StoreError) -> bool {
        let sqlstate = error.sqlstate().unwrap_or_default();
        let detail = format!(
            "the database refuses this event (SQLSTATE {sqlstate}); it is kept as it is, please report it"
        );
        let decided = self.decided.last_mut();
        decided.is_some_and(|decided| decided.refuse(index, Reason::Unstorable, detail))
    }
}

/// Whether the event of a rejection is in the journal: recorded when nothing was against it.
fn is_recorded(rejection: &Rejection, existing: &HashMap<EventKey, Existing>) -> bool {
    rejection.event.as_ref().is_some_and(|event| {
        existing.get(&event.key).is_some_and(|row| row.is(&event.identity, event.content_hash))
    })
}

impl<'a> Sorted<'a> {
    /// The recorded events that have a place in their gateway's count.
    pub fn fresh_marks(&self) -> Vec<FreshMark<'a>> {
        let fresh = |candidate: &&'a Candidate| {
            let mark = candidate.mark.as_ref()?;
            let identity = &candidate.event.identity;
            Some(FreshMark {
                gateway: candidate.event.gateway,
                epoch: &mark.epoch,
                source: &identity.source,
                id: &identity.id,
            })
        };
        self.events.iter().filter_map(fresh).collect()
    }

    fn resolve(&mut self, decided: &Decided, resolution: impl FnOnce() -> Resolution) {
        if let Some(replay) = decided.message.replay_of {
            self.resolutions.push(Resolved { rejection: replay.rejection, resolution: resolution() });
        }
    }
}

/// Which of the positions were rejected before, when their message came the first time.
async fn known_rejections(
    tx: &mut PgConnection,
    origin: Origin,
    refused: &[(&Decided, Cow<'_, Rejection>)],
) -> Result<HashSet<RejectionPosition>, StoreError> {
    let Some(incarnation) = origin.incarnation() else { return Ok(HashSet::default()) };
    let positions: Vec<RejectionPosition> = refused.iter().map(|(_, rejection)| rejection.position).collect();
    Ok(journal::known_rejections(tx, incarnation, &positions).await?.into_iter().collect())
}

/// Whether the journal, or the batch itself, holds the event already; and whether what it corrects is there.
async fn known(
    tx: &mut PgConnection,
    event: &JournalEvent,
    existing: &HashMap<EventKey, Existing>,
    seen: &HashMap<EventKey, &JournalEvent>,
    in_batch: &HashMap<EventKey, &JournalEvent>,
) -> Result<Known, StoreError> {
    let before = match (existing.get(&event.key), seen.get(&event.key)) {
        (Some(row), _) => Some(row.is(&event.identity, event.content_hash)),
        (None, Some(earlier)) => {
            Some(earlier.content_hash == event.content_hash && earlier.identity == event.identity)
        }
        (None, None) => None,
    };
    match before {
        Some(true) => return Ok(Known::Duplicate),
        Some(false) => {
            let detail = "an event with this source and id is recorded with other content; the first one stands, \
                          send a correction with `corrects`, or a new id";
            return Ok(Known::Rejected(Refusal { reason: Reason::Conflict, detail, waits_for: None }));
        }
        None => {}
    }
    let Some(original) = event.corrects else { return Ok(Known::New) };
    let estimate = match in_batch.get(&original) {
        Some(earlier) => Some((earlier.estimated && earlier.corrects.is_none(), earlier.customer)),
        None => {
            journal::correction_target(tx, original).await?.map(|target| (target.estimated, target.customer))
        }
    };
    let (detail, waits_for) = match estimate {
        Some((true, customer)) if customer == event.customer => return Ok(Known::New),
        Some((true, _)) => ("the estimate that `corrects` names was for another customer", journal::NOTHING),
        Some((false, _)) => (
            // A correction of a correction would take back twice what stands.
            "the event that `corrects` names was no estimate, or corrects one itself; name the first estimate",
            journal::NOTHING,
        ),
        None => (
            "the estimate that `corrects` names is not recorded; this event is tried again once it is",
            original,
        ),
    };
    let reason = Reason::UnknownEstimate;
    Ok(Known::Rejected(Refusal { reason, detail, waits_for: Some(waits_for) }))
}
