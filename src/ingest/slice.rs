//! Adding one slice to the sums: a large one in two halves at a time, because one connection has one of the machine's cores.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::task::JoinHandle;

use super::IngestError;
use super::facts::{Facts, Gathering, Share, TextId};
use super::sums::{self, Sums};
use crate::domain::ids::BatchId;
use crate::domain::period::BillingCalendar;
use crate::store::posting::{self, Row, Slice};
use crate::store::{Database, commit, periods, still_stands};

/// Fewest rows of a slice that are worth a transaction of its own for half of them: two of them leave recording less of a
/// small machine, which matters where there is no backlog, and slices are of a second.
const HALVES_ROWS_MIN: i64 = 20_000;
/// How often a session that waits for the other half says something: one that stands still in a transaction for a few seconds
/// more is taken for that of a frozen program, and ended.
const SIGN_OF_LIFE: Duration = Duration::from_secs(4);

/// Adds the slice to the sums and marks it posted; `kept` is what is known of its rows, the others are read. The odd half may
/// be committed whatever becomes of this transaction: then it is known as added when the slice is tried again. Whether
/// it was of none of the batches before.
///
/// # Errors
/// [`IngestError`]; one that [`posting::lacks_period`] tells where billing periods are missing.
pub(super) async fn add(
    database: &Database,
    tx: &mut PgConnection,
    slice: &Slice,
    kept: HashMap<BatchId, Arc<Facts>>,
) -> Result<bool, IngestError> {
    posting::require_partitions(tx, slice).await?;
    let facts = facts(tx, slice, kept).await?;
    let elsewhere = (slice.rows >= HALVES_ROWS_MIN).then(|| {
        let (database, slice, facts) = (database.clone(), slice.clone(), facts.clone());
        tokio::spawn(async move { add_odd_half(&database, &slice, &facts).await })
    });
    // Even before odd, as every poster adds them.
    let even = add_shares(tx, &facts, Share::even()).await;
    let odd = match elsewhere {
        Some(half) => other_half(tx, half).await,
        None => Ok(None),
    };
    even?;
    let added = if let Some(added) = odd? {
        added
    } else {
        let open = posting::take_odd_half(tx, slice).await?;
        add_shares(tx, &of_batches(&facts, &open), Share::odd()).await?;
        open.len()
    };
    // Those of the odd half too: whoever added it may have been a release that leaves them to this.
    posting::add_reasons(tx, slice, false).await?;
    posting::mark_posted(tx, slice).await?;
    posting::require_partitions(tx, slice).await?;
    Ok(added == slice.batches.len())
}

/// What became of the odd half, which is waited for whatever becomes of this transaction: its batches must not be taken again
/// while it works.
async fn other_half(
    tx: &mut PgConnection,
    mut half: JoinHandle<Result<Option<usize>, IngestError>>,
) -> Result<Option<usize>, IngestError> {
    let mut alive = Ok(());
    loop {
        tokio::select! {
            odd = &mut half => {
                alive?;
                return odd?;
            }
            () = tokio::time::sleep(SIGN_OF_LIFE), if alive.is_ok() => alive = still_stands(tx).await,
        }
    }
}

/// Adds the odd half in a transaction of its own, and says of how many batches it was not added yet; `None`, and nothing is done,
/// where a period is about to be closed, or no connection is to be had: the other half, which is underway, must not be lost for
/// that.
async fn add_odd_half(
    database: &Database,
    slice: &Slice,
    facts: &[Arc<Facts>],
) -> Result<Option<usize>, IngestError> {
    let mut tx = match database.begin_ingest().await {
        Ok(tx) => tx,
        Err(error) => {
            tracing::debug!(%error, "no connection for half of a slice; it is added with the other");
            return Ok(None);
        }
    };
    if !posting::try_close_lock(&mut tx).await? {
        return Ok(None);
    }
    let open = posting::take_odd_half(&mut tx, slice).await?;
    add_shares(&mut tx, &of_batches(facts, &open), Share::odd()).await?;
    posting::add_reasons(&mut tx, slice, true).await?;
    posting::mark_odd_half(&mut tx, &open).await?;
    commit(tx).await?;
    Ok(Some(open.len()))
}

fn of_batches(facts: &[Arc<Facts>], batches: &[BatchId]) -> Vec<Arc<Facts>> {
    facts.iter().filter(|facts| batches.contains(&facts.batch)).cloned().collect()
}

async fn add_shares(
    tx: &mut PgConnection,
    facts: &[Arc<Facts>],
    shares: impl Iterator<Item = Share>,
) -> Result<(), IngestError> {
    for share in shares {
        let mut sums = Sums::default();
        for facts in facts {
            sums.add(facts, share)?;
        }
        posting::add_to_rollups(tx, sums.rollups()).await?;
        let ranks = ranks(tx, &sums).await?;
        let rank = |text| ranks.get(&text).copied().unwrap_or_default();
        posting::add_to_tasks(tx, sums.tasks(rank)).await?;
    }
    Ok(())
}

/// The rows of the slice: of batches that are kept as they were recorded, of others as the journal has them.
async fn facts(
    tx: &mut PgConnection,
    slice: &Slice,
    kept: HashMap<BatchId, Arc<Facts>>,
) -> Result<Vec<Arc<Facts>>, IngestError> {
    let mut read: HashMap<BatchId, Gathering> = HashMap::new();
    for part in slice.parts(|batch| !kept.contains_key(&batch.id)) {
        let gather = |batch, booked_on, row: &Row<'_>| {
            read.entry(batch).or_insert_with(|| Gathering::new(batch, booked_on)).add(row)
        };
        posting::each_row(tx, &part, gather).await?;
    }
    let read = read.into_values().map(|batch| Arc::new(batch.finish()));
    Ok(kept.into_values().chain(read).collect())
}

/// The order of the texts whose order counts.
async fn ranks(tx: &mut PgConnection, sums: &Sums) -> Result<HashMap<TextId, i64>, IngestError> {
    let texts = sums.ordered();
    if texts.is_empty() {
        return Ok(HashMap::new());
    }
    let resolved: Vec<&str> = texts.iter().map(|text| sums.resolve(*text)).collect();
    let ranks = posting::ranks(tx, &resolved).await?;
    Ok(texts.into_iter().zip(ranks).collect())
}

/// Makes the billing periods that the slice lacks. In a transaction before the one that adds it: both halves must see them.
///
/// # Errors
/// [`IngestError`].
pub(super) async fn make_periods(
    tx: &mut PgConnection,
    slice: &Slice,
    kept: HashMap<BatchId, Arc<Facts>>,
) -> Result<(), IngestError> {
    posting::require_partitions(tx, slice).await?;
    let used = sums::used(&facts(tx, slice, kept).await?)?;
    for missing in posting::missing_periods(tx, &used).await? {
        let period = BillingCalendar::new(&missing.time_zone, missing.anchor_day)?.period_at(missing.at)?;
        periods::ensure(tx, missing.customer, period).await?;
    }
    match posting::missing_periods(tx, &used).await?.first() {
        Some(missing) => Err(IngestError::NoPeriod { customer: missing.customer, at: missing.at }),
        None => Ok(()),
    }
}
