//! What this process recorded lately: posting need not read it again from the journal.
//!
//! Only a shortcut. A batch that is not here, because another process recorded it, or too much was waiting, is read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};

use super::facts::Facts;
use crate::domain::ids::BatchId;
use crate::store::posting::Unposted;

/// Most memory that is spent on it: about 1,300,000 rows, those of the largest slice and what comes while it is posted.
const KEPT_BYTES_MAX: usize = 80 << 20;

/// The facts of batches that are not posted yet; a clone shares them.
#[derive(Debug, Clone, Default)]
pub struct Recent(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    batches: BTreeMap<BatchId, (DateTime<Utc>, Arc<Facts>)>,
    bytes: usize,
}

impl Recent {
    /// Keeps the facts of a batch whose transaction may still fail: then nobody asks for it.
    pub fn keep(&self, batch: &Unposted, facts: Facts) {
        self.with(|kept| {
            let bytes = facts.bytes();
            if kept.bytes + bytes <= KEPT_BYTES_MAX {
                kept.bytes += bytes;
                let replaced = kept.batches.insert(batch.id, (batch.recorded_at, Arc::new(facts)));
                kept.bytes -= replaced.map_or(0, |(_, facts)| facts.bytes());
            }
        });
    }

    /// The facts of a batch, where they are here and all of it.
    pub fn get(&self, batch: &Unposted) -> Option<Arc<Facts>> {
        self.with(|kept| {
            let (recorded_at, facts) = kept.batches.get(&batch.id)?;
            let whole = usize::try_from(batch.rows).is_ok_and(|rows| rows == facts.rows);
            (*recorded_at == batch.recorded_at && whole).then(|| Arc::clone(facts))
        })
    }

    /// Forgets every batch before the first one that is not posted, whoever posted them. One that is recorded with an earlier
    /// id but later is read.
    pub fn forget_before(&self, unposted: BatchId) {
        self.with(|kept| {
            while let Some(first) = kept.batches.first_entry().filter(|first| *first.key() < unposted) {
                kept.bytes -= first.remove().1.bytes();
            }
        });
    }

    /// Forgets everything: others have posted it.
    pub fn clear(&self) {
        self.with(|kept| *kept = Kept::default());
    }

    fn with<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
