//! Closing a period and finalizing its invoices, in one transaction.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::time::Instant;
use uuid::{NoContext, Timestamp, Uuid};

use super::InvoicingError;
use super::lines::Document;
use super::preview::{Computed, compute, period_holding};
use crate::clock::Clock;
use crate::domain::ids::{BatchId, CustomerId, InvoiceId, PeriodPriceId};
use crate::domain::invoice::Invoice;
use crate::domain::money::Currency;
use crate::domain::period::Period;
use crate::domain::price::period_price::PeriodPrice;
use crate::domain::settlement::TaskCharge;
use crate::rating::settlement::charge_tasks;
use crate::store::completeness::{self, Covered, SequenceRange};
use crate::store::periods::{self, BilledCustomer};
use crate::store::settlement::{self, FinishedTasks};
use crate::store::{Database, Scope, StoreError, audit, commit, invoices};

/// How long after its end a period stays open for late usage, where nothing else is configured.
pub const DEFAULT_GRACE: TimeDelta = TimeDelta::hours(1);
/// The series that invoices are numbered in.
const SERIES: &str = "INV";
/// How rounding is named in the manifest.
const ROUNDING_RULE: &str =
    "each line once, half away from zero, to the minor unit; the total is the sum of the rounded lines";
/// How often the closing of a period looks whether posting has caught up, and the pause between two looks: twelve seconds in
/// all, which leaves as much of a request's time for the closing itself.
const POSTING_POLLS: u32 = 240;
const POSTING_POLL: Duration = Duration::from_millis(50);
/// A command waits for posting as long as it goes on: until nothing is posted for this long.
const POSTING_STOPPED: Duration = Duration::from_mins(2);
/// Microseconds: what the database keeps of a time.
const STORED_SUBSECOND_DIGITS: u16 = 6;

/// What to close.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whose period.
    pub customer: CustomerId,
    /// An instant in the period.
    pub at: DateTime<Utc>,
    /// How long after its end it must stay open.
    pub grace: TimeDelta,
    /// Who asks, for the audit log.
    pub actor: String,
}

/// A closed period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The period.
    pub period: Period,
    /// Its invoices, one per currency; none where nothing was used.
    pub invoices: Vec<InvoiceId>,
    /// Whether an earlier call had closed it already.
    pub already: bool,
}

/// Closes the period and finalizes its invoices; a repeated or concurrent call returns the same invoices.
///
/// # Errors
/// [`InvoicingError`]; where [`InvoicingError::retryable`] says so the same call may be made again, whatever became of
/// the first.
pub async fn close_and_finalize(
    database: &Database,
    clock: &Clock,
    request: &Request,
) -> Result<Closed, InvoicingError> {
    close_one(database, clock, request, None).await
}

async fn close_one(
    database: &Database,
    clock: &Clock,
    request: &Request,
    mark: Option<&Mark>,
) -> Result<Closed, InvoicingError> {
    let mut tx = database.begin().await?;
    let closed = close_once_posted(&mut tx, clock.now(), request, mark).await?;
    if !closed.already {
        commit(tx).await?;
    }
    Ok(closed)
}

/// As [`close_and_finalize`], in a transaction of the caller, who commits; nothing is closed until then. The transaction
/// must be read committed, because this waits in it for posting to catch up.
///
/// # Errors
/// As [`close_and_finalize`].
pub async fn close_within(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    request: &Request,
) -> Result<Closed, InvoicingError> {
    close_once_posted(connection, now, request, None).await
}

/// As [`close_within`]; holds back for the batches up to the mark, or up to the newest one there is.
async fn close_once_posted(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    request: &Request,
    mark: Option<&Mark>,
) -> Result<Closed, InvoicingError> {
    match check(connection, now, request).await {
        Ok(Checked::Done(closed)) => return Ok(closed),
        // Without the lock the order may change while it is looked at; it is decided below.
        Ok(Checked::Due(..)) | Err(InvoicingError::OutOfOrder { .. }) => {}
        Err(error) => return Err(error),
    }
    let Mark { covered, newest } = match mark {
        Some(mark) => mark.clone(),
        None => Mark::of_now(connection).await?,
    };
    wait_until_posted(connection, newest).await?;
    // From here to the commit nothing is posted: what the sums say now is what the period holds for ever.
    periods::lock_closing(connection).await?;
    // Asked again under the lock: a concurrent call may have closed the period since the first look, and a second
    // closing would compute the same invoice again and break on its key; a poster may have made an older period exist,
    // and closing over it would leave that one's usage on no invoice.
    let (customer, period) = match check(connection, now, request).await? {
        Checked::Done(closed) => return Ok(closed),
        Checked::Due(customer, period) => (customer, period),
    };
    let left = periods::unposted_or_half_posted(connection, newest).await?;
    none_left(left)?;
    let mut computed = compute(connection, customer.id, period).await?;
    let now = now.trunc_subsecs(STORED_SUBSECOND_DIGITS);
    let period_prices = ids_of(&computed.prices);
    let settled_by = json!({"period_prices": period_prices, "books": computed.books});
    periods::ensure(connection, customer.id, period).await?;
    let without_manifest = computed.documents.is_empty().then_some(&settled_by);
    periods::close(connection, customer.id, period, now, without_manifest).await?;
    // Made now, so that it starts where this one ends also where the calendar was changed meanwhile.
    let next = Period { start: period.end, end: customer.calendar()?.period_at(period.end)?.end };
    periods::ensure(connection, customer.id, next).await?;
    let coverage = coverage(connection, &covered, &computed.documents).await?;
    let mut finalized = BTreeMap::new();
    for document in std::mem::take(&mut computed.documents) {
        let manifest = json!({
            "events": document.events,
            "prices": document.prices,
            "period_prices": period_prices,
            "books": computed.books,
            "rounding": ROUNDING_RULE,
            "streams": coverage,
        });
        let currency = document.currency;
        let id = finalize(connection, &customer, period, document, manifest, now).await?;
        finalized.insert(currency, id);
    }
    charge(connection, &customer, period, &computed, &finalized).await?;
    let ids: Vec<InvoiceId> = finalized.into_values().collect();
    let detail = json!({"period_start": period.start, "period_end": period.end, "invoices": ids});
    audit::record(connection, &request.actor, "period.close", &customer.external_id, Some(detail)).await?;
    Ok(Closed { period, invoices: ids, already: false })
}

/// One customer's turn in [`close_due`].
#[derive(Debug)]
pub struct Turn {
    /// The customer.
    pub customer: CustomerId,
    /// The period.
    pub period: Period,
    /// What came of it.
    pub outcome: Result<Closed, InvoicingError>,
}

/// Closes every period whose end and grace time have passed by now, of all customers, each in a transaction of its own. A
/// customer whose period cannot be closed is left at that, the others go on. What is recorded by now is waited for before,
/// once for all of them; `unposted` is told how many batches of it are left, zero at the end.
///
/// # Errors
/// [`InvoicingError::NotPosted`] where posting does not go on; [`InvoicingError::Store`] where the customers cannot be
/// listed.
pub async fn close_due(
    database: &Database,
    clock: &Clock,
    grace: TimeDelta,
    actor: &str,
    unposted: impl Fn(i64),
) -> Result<Vec<Turn>, InvoicingError> {
    // Before the mark: of a period that ends during the wait, usage may have been recorded that nobody has waited for.
    let ended_by = clock.now().checked_sub_signed(grace).unwrap_or(DateTime::<Utc>::MIN_UTC);
    let mark = all_posted(database, unposted).await?;
    let mut turns = Vec::new();
    let mut failed: Vec<CustomerId> = Vec::new();
    loop {
        let mut tx = database.read(Scope::Everything).await?;
        let mut due = periods::due(&mut tx, ended_by).await?;
        drop(tx);
        due.retain(|(customer, _)| !failed.contains(customer));
        if due.is_empty() {
            return Ok(turns);
        }
        for (customer, period) in due {
            let request = Request { customer, at: period.start, grace, actor: actor.to_owned() };
            let outcome = match close_one(database, clock, &request, Some(&mark)).await {
                // Half of a later batch, of a poster that broke off: the rest of it is waited for as in a call by itself.
                Err(InvoicingError::NotPosted { .. }) => close_one(database, clock, &request, None).await,
                outcome => outcome,
            };
            if outcome.is_err() {
                failed.push(customer);
            }
            turns.push(Turn { customer, period, outcome });
        }
    }
}

/// Where a period stands.
enum Checked {
    /// It is closed already.
    Done(Closed),
    /// It can be closed.
    Due(BilledCustomer, Period),
}

/// Whether the period is closed, can be closed, or why it cannot.
async fn check(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    request: &Request,
) -> Result<Checked, InvoicingError> {
    let customer = periods::customer(connection, request.customer)
        .await?
        .ok_or(InvoicingError::UnknownCustomer(request.customer))?;
    let stored = period_holding(connection, &customer, request.at).await?;
    let period = stored.period;
    if stored.closed_at.is_some() {
        let invoices = invoices::of_period(connection, customer.id, period.start).await?;
        return Ok(Checked::Done(Closed { period, invoices, already: true }));
    }
    let possible_from = period.end.checked_add_signed(request.grace).unwrap_or(DateTime::<Utc>::MAX_UTC);
    if now < possible_from {
        return Err(InvoicingError::TooEarly { period, possible_from });
    }
    if !periods::over(connection, period.end).await? {
        return Err(InvoicingError::NotOver { period });
    }
    match periods::next_to_close(connection, customer.id).await? {
        Some(next) if next.start != period.start => Err(InvoicingError::OutOfOrder { next }),
        Some(_) => Ok(Checked::Due(customer, period)),
        None => {
            // The first period that is closed makes every later one due.
            let beginning = periods::beginning(connection, customer.id).await?;
            if period.end <= beginning {
                return Err(InvoicingError::BeforeBeginning { beginning });
            }
            Ok(Checked::Due(customer, period))
        }
    }
}

/// Up to where a closing holds back for posting.
#[derive(Clone)]
struct Mark {
    /// Sequences of batches that are posted, or waited for.
    covered: Covered,
    /// The newest batch that waits to be posted. Where none does, a later one may still be half-way; ids count from one.
    newest: BatchId,
}

impl Mark {
    async fn of_now(connection: &mut PgConnection) -> Result<Self, StoreError> {
        // Before the newest batch, so that what is not posted of it is waited for.
        let covered = completeness::covered_before(connection).await?;
        let newest = periods::newest_unposted(connection).await?.unwrap_or(BatchId(0));
        Ok(Self { covered, newest })
    }
}

/// Waits until everything recorded before the call is in the sums, as long as that goes on; returns up to where that is.
async fn all_posted(database: &Database, unposted: impl Fn(i64)) -> Result<Mark, InvoicingError> {
    let mut tx = database.begin().await?;
    let mark = Mark::of_now(&mut tx).await?;
    let (mut last, mut since) = (None, Instant::now());
    loop {
        let batches = periods::unposted_up_to(&mut tx, mark.newest).await?;
        if last.is_none() && batches > 0 {
            periods::want_posting(&mut tx).await?;
        }
        if last != Some(batches) {
            unposted(batches);
            (last, since) = (Some(batches), Instant::now());
        }
        if batches == 0 {
            return Ok(mark);
        }
        if since.elapsed() > POSTING_STOPPED {
            return Err(InvoicingError::NotPosted { batches });
        }
        tokio::time::sleep(POSTING_POLL).await;
    }
}

/// Waits, within bounds, until the batches up to this one are in the sums.
async fn wait_until_posted(connection: &mut PgConnection, newest: BatchId) -> Result<(), InvoicingError> {
    for poll in 0..POSTING_POLLS {
        match periods::unposted_up_to(connection, newest).await? {
            0 => return Ok(()),
            _ if poll == 0 => periods::want_posting(connection).await?,
            _ => tokio::time::sleep(POSTING_POLL).await,
        }
    }
    none_left(periods::unposted_up_to(connection, newest).await?)
}

const fn none_left(batches: i64) -> Result<(), InvoicingError> {
    match batches {
        0 => Ok(()),
        batches => Err(InvoicingError::NotPosted { batches }),
    }
}

fn ids_of(prices: &[PeriodPrice]) -> Vec<PeriodPriceId> {
    prices.iter().map(|price| price.id).collect()
}

/// Writes the charges and credits behind the task lines. They are found a second time, because those of millions of tasks are
/// not kept; the close lock keeps whoever would change tasks or charges out.
async fn charge(
    connection: &mut PgConnection,
    customer: &BilledCustomer,
    period: Period,
    computed: &Computed,
    invoices: &BTreeMap<Currency, InvoiceId>,
) -> Result<(), InvoicingError> {
    if computed.charges == 0 {
        return Ok(());
    }
    let (mut tasks, mut written) = (FinishedTasks::new(customer.id, period.start, true), 0);
    while let Some(page) = tasks.next_page(connection, &computed.books).await? {
        let charges = charge_tasks(&page, &computed.prices);
        for (currency, invoice) in invoices {
            let of_invoice: Vec<&TaskCharge> =
                charges.iter().filter(|charge| charge.entry.currency == *currency).collect();
            settlement::insert_charges(connection, *invoice, customer.id, &of_invoice).await?;
            written += of_invoice.len() as u64;
        }
    }
    if written == computed.charges {
        return Ok(());
    }
    let what = "charging the tasks of a period";
    Err(StoreError::RowsAffected { what, expected: computed.charges, actual: written }.into())
}

/// Which stream sequences the sums hold, for the manifest; not looked up where there is nothing to invoice.
async fn coverage(
    connection: &mut PgConnection,
    before: &Covered,
    documents: &[Document],
) -> Result<Value, InvoicingError> {
    if documents.is_empty() {
        return Ok(Value::Null);
    }
    let covered = completeness::sequences_posted(connection, before).await?;
    let gaps = completeness::gaps(&covered);
    let mut incarnations: Vec<Uuid> = covered.iter().map(|range| range.incarnation).collect();
    incarnations.dedup();
    let of = |ranges: &[SequenceRange], incarnation| -> Vec<[i64; 2]> {
        ranges
            .iter()
            .filter(|range| range.incarnation == incarnation)
            .map(|range| [range.from, range.to])
            .collect()
    };
    let streams: Vec<Value> = incarnations
        .into_iter()
        .map(|incarnation| {
            json!({"incarnation": incarnation, "covered": of(&covered, incarnation), "gaps": of(&gaps, incarnation)})
        })
        .collect();
    Ok(Value::Array(streams))
}

/// Numbers, seals and writes one invoice. Its number is taken here, after everything that can take long or fail.
async fn finalize(
    connection: &mut PgConnection,
    customer: &BilledCustomer,
    period: Period,
    document: Document,
    manifest: Value,
    now: DateTime<Utc>,
) -> Result<InvoiceId, InvoicingError> {
    let (number, previous_hash) = invoices::take_number(connection, SERIES).await?;
    let invoice = Invoice {
        id: InvoiceId(new_id(now)),
        customer: customer.id,
        series: SERIES.to_owned(),
        number,
        period,
        currency: document.currency,
        total: document.total,
        exact_total: document.exact_total,
        finalized_at: now,
        customer_name: customer.name.clone(),
        time_zone: customer.time_zone.clone(),
        manifest,
        previous_hash,
        lines: document.lines,
    };
    invoices::insert(connection, &invoice).await?;
    Ok(invoice.id)
}

/// A UUIDv7, so that ids sort by time.
fn new_id(now: DateTime<Utc>) -> Uuid {
    let seconds = u64::try_from(now.timestamp()).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, now.timestamp_subsec_nanos()))
}
