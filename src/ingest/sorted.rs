//! What of a batch is new to the journal: every event of it compared with what the database and the batch itself hold.

use std::borrow::Cow;
use std::cmp::Reverse;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use foldhash::fast::RandomState;
use foldhash::{HashMap, HashSet};
use sqlx::PgConnection;
use uuid::Uuid;

use super::IngestError;
use super::batch::{Batch, Place};
use super::decide::{Candidate, Decided, Decision, Incoming, Named};
use crate::domain::identity::EventKey;
use crate::metering::{PAST_WINDOW_DAYS, Reason};
use crate::store::StoreError;
use crate::store::journal::{
    self, Correction, Existing, FreshMark, JournalEvent, LookUp, Origin, Recorded, Rejection,
    RejectionPosition, WHOLE_MESSAGE,
};
use crate::store::replay::{Resolution, Resolved};

/// How far a gateway's clock may be wrong where it is told which of two estimates of one id a correction is for. An id is used
/// again after weeks.
const CLOCK_WRONG_HOURS: i64 = 24;

/// What a batch is compared with.
#[derive(Debug)]
pub struct Comparison {
    /// The date that it is booked on.
    pub booked_on: NaiveDate,
    /// The first booking date that is looked through: that of its oldest message.
    pub horizon: NaiveDate,
    /// How thoroughly.
    pub look_up: LookUp,
    /// What of it finance has discarded: settled, whatever would become of it now. By its place in the batch: rejections that
    /// are tried again may be of several lives of the stream, with the same positions.
    pub discarded: HashSet<Place>,
}

impl Comparison {
    fn settled(&self, place: Place) -> bool {
        !self.discarded.is_empty() && self.discarded.contains(&place)
    }

    /// The first booking date on which what has the id of a message's event is taken for that event. What was booked before was
    /// another, whose id is used again.
    fn horizon_of(&self, message: &Incoming, backfill: bool) -> NaiveDate {
        if backfill { NaiveDate::default() } else { message.horizon(self.booked_on) }
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
    /// Those of the events that correct estimates.
    corrections: Vec<Correction<'a>>,
}

/// What the journal, and the batch itself, hold of the events of a batch.
struct Held<'a> {
    /// In the journal.
    existing: Rows,
    /// Where the batch holds what stands in the journal from this very place of the stream: the same event, whatever is read of
    /// it now.
    in_place: HashSet<Place>,
    /// Of the batch, where one of its events corrects another.
    in_batch: HashMap<EventKey, &'a JournalEvent>,
}

impl Held<'_> {
    /// Whether the event of a rejection is in the journal: recorded when nothing was against it.
    fn records(&self, rejection: &Rejection, place: Place) -> bool {
        rejection.event.as_ref().filter(|event| event.may_be_recorded).is_some_and(|event| {
            let copy = |row: &Existing| event.content_hash.is_some_and(|hash| row.is(&event.identity, hash));
            self.in_place.contains(&place) || self.existing.of(event.key).iter().any(copy)
        })
    }
}

/// What the journal holds under the keys of a batch, in their order: of an id that was used again more than one event.
struct Rows(Vec<Existing>);

impl Rows {
    fn new(mut rows: Vec<Existing>) -> Self {
        rows.sort_unstable_by_key(|row| row.key);
        Self(rows)
    }

    fn of(&self, key: EventKey) -> &[Existing] {
        let from = self.0.split_at(self.0.partition_point(|row| row.key < key)).1;
        from.split_at(from.partition_point(|row| row.key == key)).0
    }

    /// Whether they hold a copy of an event, or where none of it, another that has its id; `None` where neither.
    fn copy_of(&self, event: &JournalEvent, horizon: NaiveDate) -> Option<bool> {
        let rows = self.of(event.key);
        // A copy is none the less one for having been booked long ago.
        let copy = rows.iter().any(|row| row.is(&event.identity, event.content_hash));
        (copy || rows.iter().any(|row| row.booked_on >= horizon)).then_some(copy)
    }
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

/// An event that is compared.
struct Compared<'a> {
    place: Place,
    message: &'a Incoming,
    candidate: &'a Candidate,
    /// The life of the stream that its place counts in.
    life: Option<Uuid>,
    /// What was booked before was another event.
    horizon: NaiveDate,
}

impl<'a> Compared<'a> {
    /// What it corrects, if it does.
    fn correction(&self) -> Option<Correction<'a>> {
        let Candidate { event, mark, .. } = self.candidate;
        // By the clocks of the stream and of the gateway, which may be ahead. What is older than the window when it comes is sent
        // again, by a backfill: of its first copy only its time is known.
        let first_sent_by = event.occurred_at.checked_add_signed(TimeDelta::days(PAST_WINDOW_DAYS));
        let sent_by = first_sent_by
            .map_or(self.message.received_at, |by| by.min(self.message.received_at))
            .max(event.occurred_at);
        let estimate_by = sent_by
            .checked_add_signed(TimeDelta::hours(CLOCK_WRONG_HOURS))
            .unwrap_or(DateTime::<Utc>::MAX_UTC);
        Some(Correction {
            original: event.corrects?,
            life: self.life,
            mark: mark.as_ref(),
            event,
            estimate_by,
        })
    }
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
        let existing = self.existing(tx, with).await?;
        let in_place = self.in_place(tx, origin, &existing).await?;
        let in_batch = self.corrected(&existing, with);
        let held = Held { existing, in_place, in_batch };
        let mut sorted = Sorted::default();
        let mut refused: Vec<(&Decided, Cow<'_, Rejection>)> = Vec::new();
        let mut seen: HashMap<EventKey, &JournalEvent> =
            HashMap::with_capacity_and_hasher(self.event_count(), RandomState::default());
        for (place, decided, decision) in self.placed() {
            match decision {
                _ if with.settled(place) => {
                    sorted.duplicates += 1;
                    sorted.resolve(decided, || discarded_before(decided));
                }
                Decision::Reject(rejection) if held.records(rejection, place) => {
                    sorted.duplicates += 1;
                    sorted.resolve(decided, || Resolution::Duplicate);
                }
                Decision::Reject(rejection) => refused.push((decided, Cow::Borrowed(rejection.as_ref()))),
                Decision::Record(candidate) => {
                    let (message, life) = (&decided.message, decided.life(origin));
                    let horizon = with.horizon_of(message, candidate.backfill);
                    let compared = Compared { place, message, candidate, life, horizon };
                    match known(tx, &compared, &held, &seen).await? {
                        Known::New => {
                            seen.insert(candidate.event.key, &candidate.event);
                            sorted.corrections.extend(compared.correction());
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
    fn corrected(&self, existing: &Rows, with: &Comparison) -> HashMap<EventKey, &JournalEvent> {
        let mut in_batch = HashMap::default();
        if !self.candidates().any(|candidate| candidate.event.corrects.is_some()) {
            return in_batch;
        }
        for (place, decided, decision) in self.placed() {
            if let Decision::Record(candidate) = decision
                && let Candidate { event, backfill, .. } = candidate.as_ref()
                && existing.copy_of(event, with.horizon_of(&decided.message, *backfill)).is_none()
                && !with.settled(place)
            {
                in_batch.entry(event.key).or_insert(event);
            }
        }
        in_batch
    }

    async fn existing(&self, tx: &mut PgConnection, with: &Comparison) -> Result<Rows, StoreError> {
        let replayed = !self.replayed().is_empty();
        // Old events may have been recorded long ago: their look-up covers every partition, that of the others does not.
        let (mut keys, mut refused) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for candidate in self.candidates() {
            keys[usize::from(candidate.backfill)].push(candidate.event.key.0);
        }
        for event in self.refused_events() {
            // What is tried again and refused may be of any age.
            refused[usize::from(event.backfill || replayed)].push(event.key.0);
        }
        let mut rows = Vec::new();
        let horizons = [with.horizon, NaiveDate::default()];
        for ((horizon, mut keys), mut refused) in horizons.into_iter().zip(keys).zip(refused) {
            rows.extend(journal::existing(tx, &mut keys, horizon, with.look_up).await?);
            // What is refused is not added, so nothing else would tell that it is there.
            rows.extend(journal::existing(tx, &mut refused, horizon, LookUp::Whole).await?);
        }
        Ok(Rows::new(rows))
    }

    /// Which events of the batch the journal holds from their very place in the stream, of those that do not read as they did
    /// when they were recorded: by a release that read them otherwise.
    async fn in_place(
        &self,
        tx: &mut PgConnection,
        origin: Origin,
        existing: &Rows,
    ) -> Result<HashSet<Place>, StoreError> {
        if existing.0.is_empty() {
            return Ok(HashSet::default());
        }
        let (mut asked, mut places) = (Vec::new(), Vec::new());
        for (place, decided, decision) in self.placed() {
            let Some(Named { identity, key, content_hash, position }) = decision.named() else { continue };
            let Some(life) = decided.life(origin) else { continue };
            for row in existing.of(key) {
                if row.stood_at(position) && row.is_of(identity) && Some(row.content_hash) != content_hash {
                    asked.push((life, row));
                    places.push(place);
                }
            }
        }
        if asked.is_empty() {
            return Ok(HashSet::default());
        }
        let recorded = journal::recorded_from(tx, &asked).await?;
        Ok(recorded.into_iter().filter_map(|number| places.get(number).copied()).collect())
    }
}

/// What becomes of a rejection that is tried again where its event was discarded before: of a message as a whole, which may
/// hold others, nothing is said but that it is settled.
fn discarded_before(decided: &Decided) -> Resolution {
    let whole = decided.message.replay_of.is_some_and(|replay| replay.event_index == WHOLE_MESSAGE);
    if whole { Resolution::Duplicate } else { Resolution::Discarded }
}

impl<'a> Sorted<'a> {
    /// The recorded events that correct estimates: of one estimate in the order of the stream, so that the last one stands, and
    /// lives of it in the order in which the batch has them, but none after one that its gateway has counted later; the
    /// estimates in one order, in which all writers take them.
    pub fn corrections(&self) -> Vec<Correction<'a>> {
        let mut lives: Vec<Option<Uuid>> = Vec::new();
        for correction in &self.corrections {
            if !lives.contains(&correction.life) {
                lives.push(correction.life);
            }
        }
        let place = |Correction { life, event, .. }: &Correction<'_>| {
            (lives.iter().position(|other| other == life), event.stream_seq, event.event_index)
        };
        let number = |correction: &Correction<'_>| correction.mark.map(|mark| mark.number);
        let mut placed: Vec<_> =
            self.corrections.iter().map(|correction| (place(correction), *correction)).collect();
        // It was sent before all that come later in the same count, so it is put before the first of them.
        placed.sort_by_key(|(_, correction)| Reverse(number(correction)));
        let mut firsts = HashMap::default();
        for (place, Correction { original, mark, event, .. }) in &mut placed {
            if let Some(mark) = *mark {
                let first = firsts.entry((*original, event.gateway, &mark.epoch)).or_insert(*place);
                *first = (*first).min(*place);
                *place = *first;
            }
        }
        placed.sort_by_key(|(place, correction)| (correction.original, *place, number(correction)));
        placed.into_iter().map(|(_, correction)| correction).collect()
    }

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
    compared: &Compared<'_>,
    held: &Held<'_>,
    seen: &HashMap<EventKey, &JournalEvent>,
) -> Result<Known, StoreError> {
    let event = &compared.candidate.event;
    let earlier = seen
        .get(&event.key)
        .map(|earlier| earlier.content_hash == event.content_hash && earlier.identity == event.identity);
    let before = held.existing.copy_of(event, compared.horizon);
    if before == Some(true) || earlier == Some(true) || held.in_place.contains(&compared.place) {
        return Ok(Known::Duplicate);
    }
    if before.or(earlier).is_some() {
        let detail = "an event with this source and id is recorded with other content; the first one stands, \
                      send a correction with `corrects`, or a new id";
        return Ok(Known::Rejected(Refusal { reason: Reason::Conflict, detail, waits_for: None }));
    }
    match compared.correction() {
        Some(correction) => corrects(tx, &correction, held).await,
        None => Ok(Known::New),
    }
}

/// Whether what a new event corrects is there, and may be corrected by it.
async fn corrects(
    tx: &mut PgConnection,
    correction: &Correction<'_>,
    held: &Held<'_>,
) -> Result<Known, StoreError> {
    let event = correction.event;
    let mut superseded = false;
    let estimate = match held.in_batch.get(&correction.original) {
        Some(earlier) => {
            Some((earlier.estimated && earlier.corrects.is_none(), earlier.customer, earlier.occurred_at))
        }
        None => journal::correction_target(tx, correction, None).await?.map(|target| {
            superseded = target.superseded;
            (target.estimated, target.customer, target.occurred_at)
        }),
    };
    let (detail, waits_for) = match estimate {
        Some((_, _, occurred_at)) if occurred_at > correction.estimate_by => (
            "the event that `corrects` names happened after this one was sent, so its id is used again and what is \
             corrected cannot be told; settle it by hand and discard this one",
            journal::NOTHING,
        ),
        Some((true, customer, _)) if customer == event.customer => {
            if !superseded {
                return Ok(Known::New);
            }
            let detail = "a later correction of this estimate stands already; discard this one, or send it as a new \
                          event if it is the one that is right";
            return Ok(Known::Rejected(Refusal {
                reason: Reason::Superseded,
                detail,
                waits_for: Some(journal::NOTHING),
            }));
        }
        Some((true, ..)) => ("the estimate that `corrects` names was for another customer", journal::NOTHING),
        Some((false, ..)) => (
            // A correction of a correction would take back twice what stands.
            "the event that `corrects` names was no estimate, or corrects one itself; name the first estimate",
            journal::NOTHING,
        ),
        None => (
            "the estimate that `corrects` names is not recorded; this event is tried again once it is",
            correction.original,
        ),
    };
    let reason = Reason::UnknownEstimate;
    Ok(Known::Rejected(Refusal { reason, detail, waits_for: Some(waits_for) }))
}
