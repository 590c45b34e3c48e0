//! A batch of decided messages.

use std::borrow::Cow;
use std::ops::Range;

use chrono::{DateTime, NaiveDate, Utc};
use foldhash::HashSet;

use super::IngestError;
use super::decide::{Candidate, Decided, Decision, Incoming};
use super::sorted::Sorted;
use crate::domain::event::SequenceMark;
use crate::metering::Reason;
use crate::store::StoreError;
use crate::store::journal::payload::Payload;
use crate::store::journal::{self, Mark, Origin, ReadEvent, Span};
use crate::store::replay::Tried;

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

/// Where an event is in a batch: its message, and its place in that.
pub(super) type Place = (usize, usize);

impl Batch {
    /// Its events, each with its place and its message.
    pub(super) fn placed(&self) -> impl Iterator<Item = (Place, &Decided, &Decision)> {
        self.decided.iter().enumerate().flat_map(|(message, decided)| {
            let decisions = decided.decisions.iter().enumerate();
            decisions.map(move |(index, decision)| ((message, index), decided, decision))
        })
    }

    pub(super) fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.decided.iter().flat_map(|decided| &decided.decisions).filter_map(|decision| match decision {
            Decision::Record(candidate) => Some(candidate.as_ref()),
            Decision::Reject(_) => None,
        })
    }

    /// The refused events that may be copies of recorded ones.
    pub(super) fn refused_events(&self) -> impl Iterator<Item = &ReadEvent> {
        self.decided.iter().flat_map(|decided| &decided.decisions).filter_map(|decision| match decision {
            Decision::Record(_) => None,
            Decision::Reject(rejection) => rejection.event.as_ref().filter(|event| event.may_be_recorded),
        })
    }

    /// The places of its events in their gateways' own counts. However an event ends, as recorded, duplicate or
    /// rejection, it is in the database once this batch is: its number is settled.
    pub fn marks(&self, origin: Origin, sorted: &Sorted<'_>) -> Vec<Mark<'_>> {
        let recorded: HashSet<*const Candidate> =
            sorted.events.iter().map(|candidate| std::ptr::from_ref(*candidate)).collect();
        let mut marks = Vec::new();
        for (_, decided, decision) in self.placed() {
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
            let counted = decided.message.replay_of.is_some_and(|replay| replay.counted);
            marks.push(Mark { gateway, epoch, number: *number, fresh, counted });
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

    /// Its messages in the stream.
    pub fn span(&self, origin: Origin) -> Option<Span> {
        let incarnation = origin.incarnation();
        let sequences = || self.decided.iter().map(|decided| decided.message.sequence);
        let times = || self.decided.iter().flat_map(|decided| &decided.decisions).filter_map(Decision::time);
        let (oldest, newest) = (times().min(), times().max());
        Some(Span { incarnation, first: sequences().min()?, last: sequences().max()?, oldest, newest })
    }

    /// The first booking date that a copy of one of its events may be found on: counted from when the stream took the oldest
    /// of its messages, which may be read again for as long as the stream keeps them.
    pub fn horizon(&self, booked_on: NaiveDate) -> NaiveDate {
        let horizons = self.decided.iter().map(|decided| decided.message.horizon(booked_on));
        horizons.min().unwrap_or_else(|| journal::dedup_horizon(booked_on))
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

    /// Leaves these of the events of its last message, to be tried by themselves, and gives the others.
    pub fn only(&mut self, events: Range<usize>) -> HeldBack {
        let mut held = HeldBack { received: self.received.take(), ..HeldBack::default() };
        if events.start > 0 {
            // What was received is read beside the events from the first one on.
            self.received = Some(Vec::new());
        }
        if let Some(Decided { decisions, .. }) = self.decided.last_mut() {
            held.after = decisions.split_off(events.end.min(decisions.len()));
            held.before = decisions.drain(..events.start.min(decisions.len())).collect();
        }
        held
    }

    /// Adds them to it again.
    pub fn put_back(&mut self, mut held: HeldBack) {
        self.received = held.received;
        if let Some(Decided { decisions, .. }) = self.decided.last_mut() {
            decisions.splice(..0, held.before);
            decisions.append(&mut held.after);
        }
    }

    /// Makes a rejection of an event of its last message that the database refuses; `false` where it is one already.
    pub fn refuse(&mut self, index: usize, error: &StoreError) -> bool {
        let why = match error.sqlstate() {
            Some(sqlstate) => format!("the database refuses this event (SQLSTATE {sqlstate})"),
            None => error.to_string(),
        };
        let detail = format!("{why}; it is kept as it is, please report it");
        let decided = self.decided.last_mut();
        decided.is_some_and(|decided| decided.refuse(index, Reason::Unstorable, detail))
    }

    /// The events that the database was found to refuse, by message and position, and what was said of them.
    pub fn unstorable(&self) -> Vec<(usize, usize, String)> {
        let messages = self.decided.iter().enumerate();
        let decisions = messages.flat_map(|(message, decided)| {
            decided.decisions.iter().enumerate().map(move |(index, decision)| (message, index, decision))
        });
        let unstorable = decisions.filter_map(|(message, index, decision)| match decision {
            Decision::Reject(rejection) if rejection.reason == Reason::Unstorable.as_str() => {
                Some((message, index, rejection.detail.clone()))
            }
            _ => None,
        });
        unstorable.collect()
    }

    /// Makes rejections of them again, after the batch was decided again.
    pub fn refuse_again(&mut self, unstorable: Vec<(usize, usize, String)>) {
        for (message, index, detail) in unstorable {
            if let Some(decided) = self.decided.get_mut(message) {
                decided.refuse(index, Reason::Unstorable, detail);
            }
        }
    }
}

/// Events of a message that are not tried with the others of it.
#[derive(Debug, Default)]
pub struct HeldBack {
    before: Vec<Decision>,
    after: Vec<Decision>,
    received: Option<Vec<u8>>,
}
