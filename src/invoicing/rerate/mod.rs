//! Re-rating: recorded usage restated at the prices that stand now.
//!
//! Publishing a price changes nothing that is recorded. A re-rate does, by additions: [`preview`] says what it would come
//! to, [`apply`] writes it. Both look at what stands (usage, or its newest restatement), so that a re-rate is repeatable:
//! a second one finds nothing. The rows of an apply are posted as adjustments and land on the invoice of the first
//! period that is open.

mod catalog;
mod sums;

use chrono::{DateTime, NaiveDate, Utc};
use serde_json::json;
use sqlx::PgConnection;

use crate::clock::Clock;
use crate::domain::ids::{BatchId, CustomerId};
use crate::domain::period::CalendarError;
use crate::rating::{self, BookError};
use crate::store::journal::{self, BatchRow, Opening, Origin, Recorded};
use crate::store::rerate::{self as store, Chunk, Filter, ROWS_PER_RESTATEMENT, Restatement};
use crate::store::{Database, StoreError, audit, commit, partitions};

use catalog::Catalog;
use sums::Sums;
pub use sums::{Change, Figures, Group, Rerated, UnpricedPart};

/// Rows of the journal that are looked at together, and restated in one transaction by [`apply`].
const CHUNK_ROWS_MAX: i64 = 5_000;
/// Usage parts that [`apply_within`] restates at most: what one transaction can hold without keeping recording waiting.
pub const PARTS_MAX: usize = 20_000;
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
    /// Too much for one transaction.
    #[error(
        "more than {PARTS_MAX} usage parts differ; narrow the interval, or use the command `waybill rerate`"
    )]
    TooMany,
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
        pass.look(connection, &chunk).await?;
    }
    Ok(pass.sums.finish())
}

/// Re-rates in one transaction of the caller, who commits.
///
/// # Errors
/// [`RerateError`]; [`RerateError::TooMany`] above [`PARTS_MAX`] parts.
pub async fn apply_within(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    request: &Request,
    actor: &str,
) -> Result<Rerated, RerateError> {
    store::wait_for_writers(connection).await?;
    let mut pass = Pass::begin(connection, request).await?;
    let mut parts = 0;
    while let Some(chunk) = pass.next(connection).await? {
        parts += pass.restate(connection, now, &chunk, actor).await?;
        if parts > PARTS_MAX {
            return Err(RerateError::TooMany);
        }
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
    let mut tx = database.begin_ingest().await?;
    store::wait_for_writers(&mut tx).await?;
    let mut pass = Pass::begin(&mut tx, request).await?;
    drop(tx);
    loop {
        let mut tx = database.begin_ingest().await?;
        let Some(chunk) = pass.next(&mut tx).await? else { return Ok(pass.sums.finish()) };
        pass.restate(&mut tx, clock.now(), &chunk, actor).await?;
        commit(tx).await?;
    }
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
        // Asked every time: a month may be dropped in between.
        // What was recorded on the day before may have happened on the first day that is kept.
        let kept_from =
            partitions::archived_through(connection).await?.and_then(|kept_from| kept_from.succ_opt());
        if let Some(from) = kept_from.filter(|kept_from| self.filter.from.date_naive() < *kept_from) {
            return Err(RerateError::Archived(from));
        }
        let chunk =
            store::next_chunk(connection, self.filter.from, self.after, self.through, CHUNK_ROWS_MAX).await?;
        if let Some(chunk) = &chunk {
            self.after = chunk.last;
        }
        Ok(chunk)
    }

    /// Rates what stands of a chunk again and adds up what differs.
    async fn look(
        &mut self,
        connection: &mut PgConnection,
        chunk: &Chunk,
    ) -> Result<Vec<Restatement>, RerateError> {
        let mut restatements = Vec::new();
        for standing in store::standing(connection, &self.filter, chunk).await? {
            self.sums.examined += 1;
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
                Ok(Some(stamps)) => {
                    self.sums.changed(name, period, &standing, stamps)?;
                    restatements.push(Restatement { key: standing.key, part: standing.part, stamps });
                }
                Ok(None) => {}
                Err(reason) => self.sums.unpriced(name, period, &standing, reason),
            }
        }
        Ok(restatements)
    }

    /// Restates what differs in a chunk, as one batch; returns how many parts that were.
    async fn restate(
        &mut self,
        connection: &mut PgConnection,
        now: DateTime<Utc>,
        chunk: &Chunk,
        actor: &str,
    ) -> Result<usize, RerateError> {
        let Opening { booked_on, catalog_version } = open_journal(connection, now).await?;
        // From here to the commit nothing that stands changes but by this.
        store::change_standing(connection).await?;
        if catalog_version != self.catalog.version() {
            self.catalog = Catalog::load(connection).await?;
        }
        let restatements = self.look(connection, chunk).await?;
        if restatements.is_empty() {
            return Ok(0);
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
        Ok(restatements.len())
    }
}

/// Takes the journal's lock with today's booking date open.
async fn open_journal(connection: &mut PgConnection, now: DateTime<Utc>) -> Result<Opening, StoreError> {
    let today = now.date_naive();
    // Looked up before the lock is taken: two that hold it shared and both want it exclusively wait for ever.
    if journal::booking_date(connection).await?.is_none_or(|date| date < today) {
        journal::switch_date(connection, today).await?;
    }
    journal::open(connection).await?.ok_or_else(|| StoreError::Inconsistent {
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
