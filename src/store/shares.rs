//! How many connections one customer may have at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::ids::CustomerId;

/// Reads of one customer at a time: a quarter of the connections of the API, so that three customers that keep the database busy
/// leave some to everybody else.
const READS_MAX: usize = 3;
/// How long one more waits: less than a request may take, and long enough for a page that asks for several reports at once.
const WAIT: Duration = Duration::from_secs(5);

/// The reads that each customer has underway; a clone shares it.
#[derive(Debug, Clone, Default)]
pub(super) struct Shares(Arc<Mutex<BTreeMap<CustomerId, Weak<Semaphore>>>>);

/// One of a customer's reads, until this is dropped.
pub(super) type Share = OwnedSemaphorePermit;

impl Shares {
    /// One more read of a customer, once it has fewer than it may; `None` where that takes too long.
    pub(super) async fn take(&self, customer: CustomerId) -> Option<Share> {
        tokio::time::timeout(WAIT, self.of(customer).acquire_owned()).await.ok()?.ok()
    }

    fn of(&self, customer: CustomerId) -> Arc<Semaphore> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reads) = all.get(&customer).and_then(Weak::upgrade) {
            return reads;
        }
        // Those of customers that read nothing any more go, so there are never more than requests underway.
        all.retain(|_, reads| reads.strong_count() > 0);
        let reads = Arc::new(Semaphore::new(READS_MAX));
        all.insert(customer, Arc::downgrade(&reads));
        reads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_customer_has_its_share_and_one_that_reads_nothing_is_forgotten() {
        let shares = Shares::default();
        let (one, other) = (CustomerId(1), CustomerId(2));
        let mut taken = Vec::new();
        for _ in 0..READS_MAX {
            taken.push(shares.take(one).await.unwrap());
        }
        let more = tokio::spawn({
            let shares = shares.clone();
            async move { shares.take(one).await }
        });
        assert!(shares.take(other).await.is_some(), "the others have theirs");
        assert_eq!(shares.of(one).available_permits(), 0);
        drop(taken);
        drop(more.await.unwrap().expect("what waits gets what comes free"));
        let kept = shares.take(CustomerId(3)).await;
        assert_eq!(shares.0.lock().unwrap().len(), 1, "{kept:?}");
    }
}
