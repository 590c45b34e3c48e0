//! What finance has discarded, when it comes again in another message.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::decide::{Decided, Decision, Named};
use crate::metering;
use crate::store::StoreError;
use crate::store::journal::{self, DiscardedEvent, RejectionPosition, Suspect};

/// Where messages hold copies of discarded events: from the same gateway, with the same source and id, and with the same
/// billable content. Looked for among the events that happened in the time of what is discarded; of a batch of today's usage
/// there are few or none.
///
/// # Errors
/// [`StoreError::Database`].
pub(super) async fn copies(
    tx: &mut PgConnection,
    messages: &[Decided],
    discarded: RangeInclusive<DateTime<Utc>>,
) -> Result<Vec<RejectionPosition>, StoreError> {
    // Copies of one event are asked for once.
    let (mut suspects, mut told_by, mut places) = (Vec::new(), Vec::new(), HashMap::new());
    for message in messages {
        // As it is kept with a rejection.
        let gateway = message.message.subject.rsplit('.').next().unwrap_or_default();
        for decision in &message.decisions {
            if let Some(time) = decision.time().filter(|time| discarded.contains(time))
                && let Some(Named { identity, content_hash, position, .. }) = decision.named()
            {
                let place = *places.entry((gateway, identity, time)).or_insert(suspects.len());
                if place == suspects.len() {
                    suspects.push(Suspect { gateway, source: &identity.source, id: &identity.id, time });
                    told_by.push(Vec::new());
                }
                let content = match (content_hash, decision) {
                    (Some(hash), _) => Content::Hash(hash),
                    (None, Decision::Reject(rejection)) => Content::Bytes(&rejection.raw),
                    (None, Decision::Record(_)) => continue,
                };
                if let Some(copies) = told_by.get_mut(place) {
                    copies.push((content, position));
                }
            }
        }
    }
    if suspects.is_empty() {
        return Ok(Vec::new());
    }
    let mut positions = Vec::new();
    for DiscardedEvent { suspect, raw } in journal::discarded_events(tx, &suspects).await? {
        let Ok(place) = usize::try_from(suspect) else { continue };
        let (Some(asked), Some(copies)) = (suspects.get(place), told_by.get(place)) else { continue };
        let hash = hash_of(&raw, asked);
        positions.extend(copies.iter().filter(|(content, _)| content.is_of(&raw, hash)).map(|(_, at)| *at));
    }
    Ok(positions)
}

/// What a copy of an event says as well.
enum Content<'a> {
    /// The hash of its billable content.
    Hash(Uuid),
    /// Its bytes as a rejection keeps them, where that cannot be read.
    Bytes(&'a [u8]),
}

impl Content<'_> {
    /// Whether it is that of an event with these bytes, and with this hash where they can be read.
    fn is_of(&self, raw: &[u8], hash: Option<Uuid>) -> bool {
        match self {
            Self::Bytes(bytes) => *bytes == raw,
            Self::Hash(own) => hash == Some(*own),
        }
    }
}

/// The hash of the billable content of a discarded event that has the names that were asked for.
fn hash_of(raw: &[u8], asked: &Suspect<'_>) -> Option<Uuid> {
    // It may have been rejected because it cannot be decoded at all.
    let event = catch_unwind(AssertUnwindSafe(|| metering::parse_event(raw).ok())).ok().flatten()?;
    let named = event.identity.source == asked.source && event.identity.id == asked.id;
    named.then(|| Uuid::from_bytes(metering::content_hash(&event)))
}
