//! The statements that prove the ledger: each returns the rows that differ, none where it holds.
//!
//! Owns: comparing the journal with the batches, the sums with the journal, the invoices with the sums.
//! Does not own: which of them make up a verification, and hashing invoices (`reports::verify`).
//! Invariants: read only; written without the statements that posting and invoicing use, so that a fault in those
//! does not hide itself; no tolerance anywhere.

mod charges;
mod corrections;
mod documents;
mod journal;
mod rebuild;
mod sums;

use sqlx::PgConnection;

use super::StoreError;

pub use charges::{
    ChargedPeriod, booked_tasks, booked_usage, charge_differences, charged_periods, task_line_differences,
};
pub use corrections::reversal_differences;
pub use documents::{line_differences, period_differences};
pub use journal::{
    amount_differences, archive_differences, batch_differences, booking_differences, duplicate_identities,
    prices_used, rejection_differences, restatement_differences, validity_differences,
};
pub use rebuild::{
    day_differences, refolded_reason_differences, refolded_rollup_differences, refolded_task_differences,
};
pub use sums::{
    outcome_differences, rare_rollup_differences, rare_task_differences, rollup_differences, task_differences,
};

/// Two figures that must be equal and are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What they are figures of.
    pub subject: String,
    /// The figure that is nearer to the raw events.
    pub expected: String,
    /// The figure that was derived from it.
    pub actual: String,
}

/// How much there is to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Recording transactions.
    pub batches: i64,
    /// Those of them that are posted.
    pub posted_batches: i64,
    /// Rows of the journal.
    pub journal_rows: i64,
    /// Rollups.
    pub rollups: i64,
    /// Tasks.
    pub tasks: i64,
    /// Invoices.
    pub invoices: i64,
}

/// Lets this transaction take as long, and as much memory, as comparing everything needs.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn prepare(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("SET LOCAL statement_timeout = 0").execute(&mut *connection).await?;
    sqlx::query!("SET LOCAL work_mem = '128MB'").execute(connection).await?;
    Ok(())
}

/// Counts what there is.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn extent(connection: &mut PgConnection) -> Result<Extent, StoreError> {
    let extent = sqlx::query_as!(
        Extent,
        r#"SELECT (SELECT count(*) FROM ingest_batches) AS "batches!",
                  (SELECT count(*) FROM ingest_batches WHERE posted_at IS NOT NULL) AS "posted_batches!",
                  (SELECT count(*) FROM usage_events) AS "journal_rows!",
                  (SELECT count(*) FROM usage_rollups) AS "rollups!",
                  (SELECT count(*) FROM tasks) AS "tasks!",
                  (SELECT count(*) FROM invoices) AS "invoices!""#
    )
    .fetch_one(connection)
    .await?;
    Ok(extent)
}
