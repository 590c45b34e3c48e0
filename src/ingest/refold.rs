//! Putting sums right: what differs from the journal folded again is replaced, in open periods only.

use serde_json::json;

use super::IngestError;
use crate::store::refold::{self, Final, Replaced};
use crate::store::verify::{self, Difference};
use crate::store::{Database, audit, commit, periods};

/// Rows shown of what stands in the way.
const ROWS_SHOWN: i64 = 100;

/// What became of the sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refolded {
    /// So many rows were replaced; none where all of them were right.
    Replaced(Replaced),
    /// So many rows were replaced; those of customers with these differences were left, because they are final.
    Partly(Replaced, Vec<Difference>),
    /// Nothing was changed: all that differs is of customers with these differences, which are final.
    Refused(Vec<Difference>),
    /// Nothing was changed: with these differences the sums would not be what the journal gives after it either.
    Vain(Vec<Difference>),
}

/// Replaces the sums that differ from the journal, in one transaction that keeps posters and closings out. Recording goes on
/// meanwhile; what it records is posted afterwards. A customer with a difference in a closed period is left as it is: what
/// differs in its open ones may have been billed in the closed one, and would be billed again.
///
/// # Errors
/// [`IngestError::Store`]; nothing is changed then.
pub async fn apply(database: &Database, actor: &str) -> Result<Refolded, IngestError> {
    let mut tx = database.begin_ingest().await?;
    verify::prepare(&mut tx).await?;
    periods::lock_closing(&mut tx).await?;
    let Final { customers, differences } = refold::final_differences(&mut tx, ROWS_SHOWN).await?;
    let replaced = refold::replace(&mut tx, &customers).await?;
    if replaced.nothing() {
        return Ok(if differences.is_empty() {
            Refolded::Replaced(replaced)
        } else {
            Refolded::Refused(differences)
        });
    }
    let left = refold::left_differences(&mut tx, &customers, ROWS_SHOWN).await?;
    if !left.is_empty() {
        return Ok(Refolded::Vain(left));
    }
    let detail = json!({
        "rollups": replaced.rollups, "tasks": replaced.tasks, "reasons": replaced.reasons, "customers_left": customers,
    });
    audit::record(&mut tx, actor, "sums.rebuild", "ledger", Some(detail)).await?;
    commit(tx).await?;
    Ok(if differences.is_empty() {
        Refolded::Replaced(replaced)
    } else {
        Refolded::Partly(replaced, differences)
    })
}
