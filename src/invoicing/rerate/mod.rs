//! Re-rating: recorded usage restated at the prices that stand now.
//!
//! Publishing a price changes nothing that is recorded. A re-rate does, by additions: [`preview`] says what it would come
//! to, [`apply`] writes it. Both look at what stands (usage, or its newest restatement), so that a re-rate is repeatable:
//! a second one finds nothing. The rows of an apply are posted as adjustments and land on the invoice of the first
//! period that is open.

mod catalog;
mod sums;

use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use serde_json::json;
use sqlx::PgConnection;

use crate::clock::Clock;
use crate::domain::ids::{BatchId, CustomerId};
use crate::domain::period::CalendarError;
use crate::rating::{self, BookError, Restated};
use crate::store::journal::{self, BatchRow, Opening, Origin, Recorded};
use crate::store::rerate::{self as store, Chunk, Filter, ROWS_PER_RESTATEMENT, Restatement};
use crate::store::{Database, StoreError, Tx, audit, commit, partitions};

use catalog::Catalog;
use sums::Sums;
pub use sums::{Change, Figures, Group, Rerated, UnpricedPart};

/// Rows of the journal that are looked at together, and restated in one transaction by [`apply`].
const CHUNK_ROWS_MAX: i64 = 5_000;
/// Rows of the journal that [`preview_within`] and [`apply_within`] look at at most: seconds, where a request may take half
/// a minute.
pub const ROWS_MAX: i64 = 200_000;
/// Usage parts that [`apply_within`] restates at most: corrections and the switch of the booking date wait until its
/// transaction ends.
pub const PARTS_MAX: usize = 20_000;
/// Pause before those who record are waited for again: others who wait behind it get through.
const RECORDING_PAUSE: Duration = Duration::from_secs(1);
/// Longest reason, in characters.
pub const REASON_CHARS_MAX: usize = 200;
/// Ends a model pattern that stands for every name that begins like it.
const WILDCARD: char = '*';

/// What to re-rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Usage that happened at or after.
    pub from: DateTime<Utc>,
    /// Usage that happened before.
    pub to: DateTime<Utc>,
    /// Of this customer only.
    pub customer: Option<CustomerId>,
    /// Of this provider only.
    pub provider: Option<String>,
    /// Of this model only, as calls or prices name it; with `*` at its end, of every model whose name begins so.
    pub model: Option<String>,
    /// Why, for the adjustment lines on invoices.
    pub reason: Option<String>,
}

/// Why there was no re-rate.
#[derive(Debug, thiserror::Error)]
pub enum RerateError {
    /// The database did not do as asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored price book contradicts itself.
    #[error("a stored price book cannot be used: {0}")]
    Book(#[from] BookError),
    /// A stored calendar, or a time outside of it.
    #[error(transparent)]
    Calendar(#[from] CalendarError),
    /// An interval that holds nothing.
    #[error("`from` must be before `to`")]
    Interval,
    /// A reason that does not fit on an invoice.
    #[error("`reason` must be 1 to {REASON_CHARS_MAX} printable characters")]
    Reason,
    /// Raw events that are archived.
    #[error(
        "raw events of the time before {0} are archived and can no longer be re-rated; let `from` be {0} or later"
    )]
    Archived(NaiveDate),
    /// Too much to look at for one request.
    #[error(
        "more than {ROWS_MAX} rows were recorded since `from`; let it be later, or use the command `waybill rerate`"
    )]
    TooManyRows,
    /// Too much for one transaction.
    #[error(
        "more than {PARTS_MAX} usage parts differ; narrow the interval, or use the command `waybill rerate`"
    )]
    TooMany,
    /// Re-rates are made one after the other.
    #[error("another re-rate is being made; try again when it is done")]
    Running,
    /// What is being recorded with earlier prices comes first.
    #[error("what is being recorded takes long, and a re-rate begins after it; try again")]
    Recording,
    /// Prices were published faster than they could be read.
    #[error("prices kept changing; try again")]
    Moving,
    /// Amounts too large to add up.
    #[error("the amounts are too large to add up")]
    Overflow,
}

/// What a re-rate would change, as the connection sees the ledger; changes nothing.
///
/// # Errors
/// [`RerateError`].
pub async fn preview(connection: &mut PgConnection, request: &Request) -> Result<Rerated, RerateError> {
    let mut pass = Pass::begin(connection, request).await?;
    while let Some(chunk) = pass.next(connection).await? {
        pass.show(connection, &chunk).await?;
    }
    Ok(pass.sums.finish())
}

/// As [`preview`], within the time of a request.
///
/// # Errors
/// [`RerateError`]; [`RerateError::TooManyRows`] above [`ROWS_MAX`].
pub async fn preview_within(
    connection: &mut PgConnection,
    request: &Request,
) -> Result<Rerated, RerateError> {
    let mut pass = Pass::begin(connection, request).await?;
    for chunk in pass.bounded(connection).await? {
        pass.show(connection, &chunk).await?;
    }
    Ok(pass.sums.finish())
}

/// Re-rates in one transaction of the caller, who commits; it must have no lock that recording takes.
///
/// # Errors
/// [`RerateError`]; [`RerateError::TooManyRows`] above [`ROWS_MAX`], [`RerateError::TooMany`] above [`PARTS_MAX`] parts,
/// [`RerateError::Running`] where another re-rate is not done in time, [`RerateError::Recording`] where usage that is being
/// recorded is not.
pub async fn apply_within(
    connection: &mut PgConnection,
    database: &Database,
    now: DateTime<Utc>,
    request: &Request,
    actor: &str,
) -> Result<Rerated, RerateError> {
    // Before the lock: it takes another connection, for which others that wait for the lock may have to make room.
    open_date(connection, database, now).await?;
    if !store::lock(connection).await? {
        return Err(RerateError::Running);
    }
    if !store::wait_for_writers(connection).await? {
        return Err(RerateError::Recording);
    }
    let mut pass = Pass::begin(connection, request).await?;
    let mut differing = Vec::new();
    let mut parts = 0;
    // Looked at without a lock: others wait for as long as it takes to restate, not to find out what.
    for chunk in pass.bounded(connection).await? {
        let Looked { same, differing: _, restatements } = pass.look(connection, &chunk).await?;
        pass.sums.add(same)?;
        parts += restatements.len();
        if parts > PARTS_MAX {
            return Err(RerateError::TooMany);
        }
        if !restatements.is_empty() {
            differing.push(chunk.of(restatements.into_iter().map(|restatement| restatement.key)));
        }
    }
    for chunk in differing {
        pass.restate(connection, &chunk, actor).await?;
    }
    Ok(pass.sums.finish())
}

/// Re-rates however much it is, in transactions of some thousand rows. Where it fails in between, what is committed
/// stands, and the same call goes on from there.
///
/// # Errors
/// [`RerateError`].
pub async fn apply(
    database: &Database,
    clock: &Clock,
    request: &Request,
    actor: &str,
) -> Result<Rerated, RerateError> {
    let mut tx = loop {
        let mut tx = begin_alone(database).await?;
        if store::wait_for_writers(&mut tx).await? {
            break tx;
        }
        tx.rollback().await?;
        tokio::time::sleep(RECORDING_PAUSE).await;
    };
    let mut pass = Pass::begin(&mut tx, request).await?;
    // Not dropped: that ends it some time later, and the next one waits for its lock.
    tx.rollback().await?;
    loop {
        let mut tx = begin_alone(database).await?;
        let Some(chunk) = pass.next(&mut tx).await? else { return Ok(pass.sums.finish()) };
        open_date(&mut tx, database, clock.now()).await?;
        let same = pass.restate(&mut tx, &chunk, actor).await?;
        pass.sums.add(same)?;
        commit(tx).await?;
    }
}

/// Begins a transaction that is the only one to re-rate, however long another takes.
async fn begin_alone(database: &Database) -> Result<Tx, StoreError> {
    loop {
        let mut tx = database.begin_ingest().await?;
        if store::lock(&mut tx).await? {
            return Ok(tx);
        }
    }
}

/// What a look at a chunk found.
struct Looked {
    /// Figures of the parts that stay as they are, for want of a price or because they are right.
    same: Sums,
    /// Figures of the others.
    differing: Sums,
    /// What they are to be.
    restatements: Vec<Restatement>,
}

/// One way through the journal.
struct Pass {
    request: Request,
    filter: Filter,
    catalog: Catalog,
    sums: Sums,
    after: BatchId,
    through: BatchId,
}

impl Pass {
    async fn begin(connection: &mut PgConnection, request: &Request) -> Result<Self, RerateError> {
        if request.from >= request.to {
            return Err(RerateError::Interval);
        }
        if request.reason.as_deref().is_some_and(|reason| !is_reason(reason)) {
            return Err(RerateError::Reason);
        }
        let catalog = Catalog::load(connection).await?;
        let through = store::newest_batch(connection).await?.unwrap_or(BatchId(0));
        let filter = filter(request);
        require_kept(connection, filter.from).await?;
        Ok(Self {
            request: request.clone(),
            filter,
            catalog,
            sums: Sums::default(),
            after: BatchId(0),
            through,
        })
    }

    async fn next(&mut self, connection: &mut PgConnection) -> Result<Option<Chunk>, RerateError> {
        let chunk =
            store::next_chunk(connection, self.filter.from, self.after, self.through, CHUNK_ROWS_MAX).await?;
        if let Some(chunk) = &chunk {
            self.after = chunk.last;
        }
        Ok(chunk)
    }

    /// All that are left, where a request may look at them: `to` leaves none out, because usage may be recorded late.
    async fn bounded(&mut self, connection: &mut PgConnection) -> Result<Vec<Chunk>, RerateError> {
        let mut chunks = Vec::new();
        let mut rows = 0;
        while let Some(chunk) = self.next(connection).await? {
            rows += chunk.rows;
            if rows > ROWS_MAX {
                return Err(RerateError::TooManyRows);
            }
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    /// Adds up what a chunk would come to.
    async fn show(&mut self, connection: &mut PgConnection, chunk: &Chunk) -> Result<(), RerateError> {
        let Looked { same, differing, restatements: _ } = self.look(connection, chunk).await?;
        self.sums.add(same)?;
        self.sums.add(differing)
    }

    /// Rates what stands of a chunk again.
    async fn look(&mut self, connection: &mut PgConnection, chunk: &Chunk) -> Result<Looked, RerateError> {
        // Asked every time: a month may be dropped in between.
        require_kept(connection, self.filter.from).await?;
        let (mut same, mut differing) = (Sums::default(), Sums::default());
        let mut restatements = Vec::new();
        for standing in store::standing(connection, &self.filter, chunk).await? {
            same.examined += 1;
            let (customer, at) = (standing.customer, standing.occurred_at);
            let rated = match self.catalog.books(customer, at) {
                None => Err(catalog::unassigned(at)),
                Some((cost_book, sell_books)) => {
                    rating::rerate(&standing.usage, at, standing.stamps, cost_book, sell_books)
                        .map_err(|cause| cause.to_string())
                }
            };
            if matches!(rated, Ok(None)) {
                continue;
            }
            let period = self.catalog.period(connection, customer, at).await?;
            let name = self.catalog.name(customer);
            match rated {
                Ok(Some(Restated { stamps, own_request })) => {
                    differing.changed(name, period, &standing, stamps)?;
                    let (key, booked_on) = standing.event();
                    let part = standing.part;
                    restatements.push(Restatement { key, booked_on, part, stamps, own_request });
                }
                Ok(None) => {}
                Err(reason) => same.unpriced(name, period, &standing, reason),
            }
        }
        Ok(Looked { same, differing, restatements })
    }

    /// Restates what differs in a chunk, as one batch, and adds it up; returns the figures of the rest.
    async fn restate(
        &mut self,
        connection: &mut PgConnection,
        chunk: &Chunk,
        actor: &str,
    ) -> Result<Sums, RerateError> {
        let Opening { booked_on, catalog_version, .. } = open_journal(connection).await?;
        // From here to the commit nothing that stands changes but by this.
        store::change_standing(connection).await?;
        if catalog_version != self.catalog.version() {
            self.catalog = Catalog::load(connection).await?;
        }
        let Looked { same, differing, restatements } = self.look(connection, chunk).await?;
        self.sums.add(differing)?;
        if restatements.is_empty() {
            return Ok(same);
        }
        let rows =
            i32::try_from(restatements.len() * ROWS_PER_RESTATEMENT).map_err(|_| RerateError::TooMany)?;
        let row = BatchRow {
            origin: Origin::Rerate,
            sequences: Vec::new(),
            last_published_at: None,
            outcome: Recorded::default(),
            rows,
            booked_on,
        };
        let batch = journal::insert_batch(connection, &row).await?.id;
        store::restate(connection, batch, booked_on, &restatements).await?;
        let Request { from, to, customer, provider, model, reason } = &self.request;
        store::keep_reason(connection, batch, reason.as_deref()).await?;
        let customer = customer.map(|customer| self.catalog.name(customer));
        let detail = json!({"from": from, "to": to, "customer": customer, "provider": provider, "model": model,
            "reason": reason, "parts": restatements.len()});
        audit::record(connection, actor, "rerate.apply", &format!("batch {batch}"), Some(detail)).await?;
        self.sums.batches.push(batch);
        Ok(same)
    }
}

/// Refuses an interval that begins in a month that was dropped.
async fn require_kept(connection: &mut PgConnection, from: DateTime<Utc>) -> Result<(), RerateError> {
    // What was recorded on the day before may have happened on the first day that is kept.
    let kept_from =
        partitions::archived_through(connection).await?.and_then(|kept_from| kept_from.succ_opt());
    match kept_from.filter(|kept_from| from.date_naive() < *kept_from) {
        Some(kept_from) => Err(RerateError::Archived(kept_from)),
        None => Ok(()),
    }
}

/// Has today's booking date open. Where it is not, another transaction opens it, because whoever records waits until that
/// one has ended.
async fn open_date(
    connection: &mut PgConnection,
    database: &Database,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let today = now.date_naive();
    if journal::booking_date(connection).await?.is_some_and(|date| date >= today) {
        return Ok(());
    }
    let mut tx = database.begin().await?;
    journal::switch_date(&mut tx, today).await?;
    commit(tx).await
}

/// Takes the journal's lock; [`open_date`] goes before.
async fn open_journal(connection: &mut PgConnection) -> Result<Opening, StoreError> {
    journal::open(connection, None).await?.ok_or_else(|| StoreError::Inconsistent {
        table: "journal_clock",
        column: "booked_on",
        detail: "no booking date is open".to_owned(),
    })
}

fn is_reason(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= REASON_CHARS_MAX && !text.contains(char::is_control)
}

fn filter(request: &Request) -> Filter {
    let prefix = request.model.as_deref().and_then(|model| model.strip_suffix(WILDCARD));
    Filter {
        from: request.from,
        to: request.to,
        customer: request.customer,
        provider: request.provider.as_deref().map(str::to_lowercase),
        model: request.model.clone().filter(|_| prefix.is_none()),
        model_prefix: prefix.map(str::to_owned),
    }
}
