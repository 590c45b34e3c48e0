//! What finance has discarded, when it comes again in another message.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::batch::{Batch, Place};
use super::decide::{Decided, Decision, Named, hash_of};
use crate::domain::ids::RejectionId;
use crate::metering;
use crate::store::StoreError;
use crate::store::journal::{self, DiscardedEvent, RejectionPosition, Suspect};

/// Discarded events whose bytes are read at a time, because an earlier release kept no hash of them, or one by
/// another reading: each may have megabytes.
const BODIES_TOGETHER_MAX: usize = 8;

/// An event that may be a copy of a discarded one.
struct Suspected<'a> {
    place: Place,
    message: &'a Decided,
    decision: &'a Decision,
    /// Hash of its billable content, where that can be read.
    content: Option<Uuid>,
}

impl Suspected<'_> {
    /// Whether something with the same names was discarded that says the same; where it is a rejection that is tried again, before
    /// it was rejected: of two that were open then finance may have discarded one and kept the other.
    fn is_of(&self, discards: &Discards) -> bool {
        let rejected_at = self.message.message.replay_of.map(|replay| replay.rejected_at);
        let before = |at: &DateTime<Utc>| rejected_at.is_none_or(|rejected_at| *at <= rejected_at);
        let told_by = |hash: Uuid| discards.get(&hash).is_some_and(before);
        // Its bytes, too: the release that rejected them may not have been able to read them.
        self.content.is_some_and(told_by) || told_by(hash_of(&self.message.kept(self.decision)))
    }
}

/// What was discarded under one name, by what copies are told by, and when first.
type Discards = HashMap<Uuid, DateTime<Utc>>;

/// Where a batch holds messages, or events of them, that were discarded when they came the first time.
///
/// # Errors
/// [`StoreError::Database`].
pub(super) async fn themselves(
    tx: &mut PgConnection,
    batch: &Batch,
    life: Uuid,
) -> Result<Vec<Place>, StoreError> {
    let sequences: Vec<i64> = batch.decided.iter().map(|decided| decided.message.sequence).collect();
    let discarded: HashSet<RejectionPosition> =
        journal::discarded(tx, life, &sequences).await?.into_iter().collect();
    let settled = |position: RejectionPosition| {
        discarded.contains(&position) || discarded.contains(&position.of_message())
    };
    let places = batch.placed().filter(|(_, _, decision)| settled(decision.position()));
    Ok(places.map(|(place, _, _)| place).collect())
}

/// Where a batch holds copies of discarded events: from the same gateway, with the same source and id, and with the same
/// billable content. Looked for among the events that happened in the time of what is discarded; of a batch of today's usage
/// there are few or none.
///
/// # Errors
/// [`StoreError::Database`].
pub(super) async fn copies(
    tx: &mut PgConnection,
    batch: &Batch,
    discarded: RangeInclusive<DateTime<Utc>>,
) -> Result<Vec<Place>, StoreError> {
    // Copies of one event are asked for once.
    let (mut suspects, mut copies, mut numbers) =
        (Vec::new(), Vec::<Vec<Suspected<'_>>>::new(), HashMap::new());
    for (place, message, decision) in batch.placed() {
        if let Some(time) = decision.time().filter(|time| discarded.contains(time))
            && let Some(Named { identity, content_hash: content, .. }) = decision.named()
        {
            // As it is kept with a rejection.
            let gateway = message.message.subject.rsplit('.').next().unwrap_or_default();
            let number = *numbers.entry((gateway, identity, time)).or_insert(suspects.len());
            if number == suspects.len() {
                suspects.push(Suspect { gateway, source: &identity.source, id: &identity.id, time });
                copies.push(Vec::new());
            }
            if let Some(copies) = copies.get_mut(number) {
                copies.push(Suspected { place, message, decision, content });
            }
        }
    }
    if suspects.is_empty() {
        return Ok(Vec::new());
    }
    let mut places = Vec::new();
    for (number, discards) in discards(tx, &suspects).await? {
        let told = copies.get(number).into_iter().flatten().filter(|copy| copy.is_of(&discards));
        places.extend(told.map(|copy| copy.place));
    }
    Ok(places)
}

/// What was discarded under the names of the suspects, by their number.
async fn discards(
    tx: &mut PgConnection,
    suspects: &[Suspect<'_>],
) -> Result<HashMap<usize, Discards>, StoreError> {
    let (mut discards, mut unhashed) = (HashMap::<usize, Discards>::new(), HashMap::new());
    for event in journal::discarded_events(tx, suspects, metering::READING).await? {
        let DiscardedEvent { suspect, content_hash, unhashed: rejection, discarded_at } = event;
        let Ok(number) = usize::try_from(suspect) else { continue };
        if let Some(hash) = content_hash {
            note(discards.entry(number).or_default(), hash, discarded_at);
        } else if let Some(rejection) = rejection {
            unhashed.insert(rejection, (number, discarded_at));
        }
    }
    let ids: Vec<RejectionId> = unhashed.keys().copied().collect();
    for ids in ids.chunks(BODIES_TOGETHER_MAX) {
        for (rejection, kept) in journal::bytes_of(tx, ids).await? {
            let Some((number, discarded_at)) = unhashed.get(&rejection) else { continue };
            let content = suspects.get(*number).and_then(|asked| content_of(&kept, asked));
            for hash in content.into_iter().chain([hash_of(&kept)]) {
                note(discards.entry(*number).or_default(), hash, *discarded_at);
            }
        }
    }
    Ok(discards)
}

fn note(discards: &mut Discards, hash: Uuid, discarded_at: DateTime<Utc>) {
    let first = discards.entry(hash).or_insert(discarded_at);
    *first = discarded_at.min(*first);
}

/// The hash of the billable content of a discarded event that has the names that were asked for.
fn content_of(kept: &[u8], asked: &Suspect<'_>) -> Option<Uuid> {
    // It may have been rejected because it cannot be decoded at all.
    let event = catch_unwind(AssertUnwindSafe(|| metering::parse_event(kept).ok())).ok().flatten()?;
    let named = event.identity.source == asked.source && event.identity.id == asked.id;
    named.then(|| Uuid::from_bytes(metering::content_hash(&event)))
}
