//! Putting sums right: what differs from the journal folded again is replaced, in open periods only.

use serde_json::json;

use super::IngestError;
use crate::store::refold::{self, Replaced};
use crate::store::verify::{self, Difference};
use crate::store::{Database, audit, commit, periods};

/// Rows shown of what stands in the way.
const ROWS_SHOWN: i64 = 100;

/// What became of the sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refolded {
    /// So many rows were replaced; none where all of them were right.
    Replaced(Replaced),
    /// Nothing was changed: this would change a closed period, or would still differ.
    Refused(Vec<Difference>),
}

/// Replaces every sum that differs from the journal, in one transaction that keeps posters and closings out. Recording goes on
/// meanwhile; what it records is posted afterwards.
///
/// # Errors
/// [`IngestError::Store`]; nothing is changed then.
pub async fn apply(database: &Database, actor: &str) -> Result<Refolded, IngestError> {
    let mut tx = database.begin_ingest().await?;
    verify::prepare(&mut tx).await?;
    periods::lock_closing(&mut tx).await?;
    let in_the_way = refold::final_differences(&mut tx, ROWS_SHOWN).await?;
    if !in_the_way.is_empty() {
        return Ok(Refolded::Refused(in_the_way));
    }
    let replaced = refold::replace(&mut tx).await?;
    if replaced.nothing() {
        return Ok(Refolded::Replaced(replaced));
    }
    let left = verify::refolded_differences(&mut tx, ROWS_SHOWN).await?;
    if !left.is_empty() {
        return Ok(Refolded::Refused(left));
    }
    let detail = json!({
        "rollups": replaced.rollups, "tasks": replaced.tasks, "reasons": replaced.reasons,
    });
    audit::record(&mut tx, actor, "sums.rebuild", "ledger", Some(detail)).await?;
    commit(tx).await?;
    Ok(Refolded::Replaced(replaced))
}
