//! What finance has discarded, when it comes again in another message.

use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::decide::{Decided, Decision};
use crate::domain::identity::EventIdentity;
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
    let (mut suspects, mut told_by) = (Vec::new(), Vec::new());
    for message in messages {
        // As it is kept with a rejection.
        let gateway = message.message.subject.rsplit('.').next().unwrap_or_default();
        for decision in &message.decisions {
            if decision.time().is_some_and(|time| discarded.contains(&time))
                && let Some((identity, content, position)) = identified(decision)
            {
                suspects.push(Suspect { gateway, source: &identity.source, id: &identity.id });
                told_by.push((identity, content, position));
            }
        }
    }
    if suspects.is_empty() {
        return Ok(Vec::new());
    }
    let found = journal::discarded_events(tx, &suspects).await?;
    let copy = |event: &DiscardedEvent| {
        let (identity, content, position) = told_by.get(usize::try_from(event.suspect).ok()?)?;
        content.is_of(&event.raw, identity).then_some(*position)
    };
    Ok(found.iter().filter_map(copy).collect())
}

/// What a copy of an event says as well.
enum Content<'a> {
    /// The hash of its billable content.
    Hash(Uuid),
    /// Its bytes as a rejection keeps them, where that cannot be read.
    Bytes(&'a [u8]),
}

impl Content<'_> {
    /// Whether the bytes of an event are that one, with this content.
    fn is_of(&self, raw: &[u8], identity: &EventIdentity) -> bool {
        match self {
            Self::Bytes(bytes) => *bytes == raw,
            Self::Hash(hash) => {
                // It may have been rejected because it cannot be decoded at all.
                let read = catch_unwind(AssertUnwindSafe(|| metering::parse_event(raw).ok())).ok().flatten();
                read.is_some_and(|event| {
                    event.identity == *identity && Uuid::from_bytes(metering::content_hash(&event)) == *hash
                })
            }
        }
    }
}

/// What a copy of the event is told by, and where the event stands. Of one that has no name that can be read, or that speaks
/// for another gateway, nothing.
fn identified(decision: &Decision) -> Option<(&EventIdentity, Content<'_>, RejectionPosition)> {
    match decision {
        Decision::Record(candidate) => {
            let event = &candidate.event;
            Some((&event.identity, Content::Hash(event.content_hash), candidate.position()))
        }
        Decision::Reject(rejection) => {
            let event = rejection.event.as_ref()?;
            let content = event.content_hash.map_or(Content::Bytes(&rejection.raw), Content::Hash);
            Some((&event.identity, content, rejection.position))
        }
    }
}
