//! Dropping old months of the journal.

use std::time::Duration;

use chrono::{NaiveDate, TimeDelta};
use serde_json::json;

use super::IngestError;
use crate::metering::FUTURE_WINDOW_MINUTES;
use crate::store::partitions::{self, Month, Obstacle};
use crate::store::{Database, Scope, audit, commit, verify};

/// How often the locks of a drop are asked for, a second each, and the pause between: a report that reads the journal for
/// some seconds is waited for.
const DROP_ATTEMPTS: u32 = 20;
const DROP_PAUSE: Duration = Duration::from_millis(500);

/// How far usage may be ahead of the date that it is booked on.
const AHEAD: TimeDelta = TimeDelta::minutes(FUTURE_WINDOW_MINUTES);

/// What became of a month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is archived and its partition dropped.
    Dropped,
    /// It could be.
    Possible,
    /// It may not be, for these reasons.
    Refused(Vec<Obstacle>),
    /// Somebody read the journal for too long; nothing was changed.
    Busy,
}

/// How to drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Months before this one.
    pub before: NaiveDate,
    /// Estimates that were never corrected are final.
    pub estimates_stand: bool,
    /// Drop them; else only say what would become of them.
    pub apply: bool,
}

/// The months of the journal, oldest first, each with what keeps it from being dropped.
///
/// # Errors
/// [`IngestError::Store`].
pub async fn list(database: &Database) -> Result<Vec<(Month, Vec<Obstacle>)>, IngestError> {
    let mut tx = database.read(Scope::Everything).await?;
    verify::prepare(&mut tx).await?;
    let mut listed = Vec::new();
    for month in partitions::months(&mut tx).await? {
        let obstacles = partitions::obstacles(&mut tx, month.first_day, AHEAD).await?;
        listed.push((month, obstacles));
    }
    Ok(listed)
}

/// Drops the months before one, oldest first, each in a transaction of its own; stops at the first that may not be dropped,
/// because no month is dropped before an older one.
///
/// # Errors
/// [`IngestError::Store`]; what was dropped before stays dropped.
pub async fn drop_before(
    database: &Database,
    request: Request,
    actor: &str,
) -> Result<Vec<(Month, Outcome)>, IngestError> {
    let mut tx = database.read(Scope::Everything).await?;
    verify::prepare(&mut tx).await?;
    let months = partitions::months(&mut tx).await?;
    drop(tx);
    let mut done = Vec::new();
    for month in months.into_iter().filter(|month| month.end() <= request.before) {
        let outcome = drop_one(database, month, request, actor).await?;
        let stop = matches!(outcome, Outcome::Refused(_) | Outcome::Busy);
        done.push((month, outcome));
        if stop {
            break;
        }
    }
    Ok(done)
}

async fn drop_one(
    database: &Database,
    month: Month,
    request: Request,
    actor: &str,
) -> Result<Outcome, IngestError> {
    let mut tx = database.begin_ingest().await?;
    verify::prepare(&mut tx).await?;
    partitions::lock(&mut tx).await?;
    let mut obstacles = partitions::obstacles(&mut tx, month.first_day, AHEAD).await?;
    if request.estimates_stand {
        obstacles.retain(|obstacle| !matches!(obstacle, Obstacle::OpenEstimates(_)));
    }
    if !obstacles.is_empty() {
        return Ok(Outcome::Refused(obstacles));
    }
    if !request.apply {
        return Ok(Outcome::Possible);
    }
    let rows = partitions::archive(&mut tx, month.first_day).await?;
    let detail = json!({"rows": rows, "batches": month.batches, "estimates_stand": request.estimates_stand});
    audit::record(&mut tx, actor, "journal.drop", &month.first_day.to_string(), Some(detail)).await?;
    for _ in 0..DROP_ATTEMPTS {
        if partitions::drop_partition(&mut tx, month.first_day).await? {
            commit(tx).await?;
            return Ok(Outcome::Dropped);
        }
        tokio::time::sleep(DROP_PAUSE).await;
    }
    Ok(Outcome::Busy)
}
