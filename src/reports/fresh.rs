//! A snapshot that waits for posting: for figures that must hold what was recorded just before.

use std::time::Duration;

use crate::store::{Database, Scope, StoreError, Tx, periods};

/// The pause between two looks.
const POLL: Duration = Duration::from_millis(100);

/// A snapshot with everything in the sums that was recorded before the call; `None` where that is not so within `polls`
/// looks, a tenth of a second apart, after the first.
///
/// # Errors
/// [`StoreError`].
pub async fn fresh(database: &Database, scope: Scope, polls: u32) -> Result<Option<Tx>, StoreError> {
    let mut tx = database.read(scope).await?;
    let asked = periods::database_time(&mut tx).await?;
    for _ in 0..polls {
        if periods::posted_up_to(&mut tx, asked).await? {
            return Ok(Some(tx));
        }
        // Nothing is held while it waits: neither the snapshot nor the connection.
        tx.rollback().await?;
        tokio::time::sleep(POLL).await;
        tx = database.read(scope).await?;
    }
    Ok(periods::posted_up_to(&mut tx, asked).await?.then_some(tx))
}
