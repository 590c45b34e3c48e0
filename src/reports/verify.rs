//! The proof on a live database: nothing lost, nothing twice, and conservation to the last digit (design section 2).
//!
//! Everything is compared in one snapshot, while recording and posting go on. A batch that is not posted yet takes part
//! in every check of the journal and in none of the sums.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::ReportError;
use crate::domain::money::{Amount, MinorAmount};
use crate::store::invoices::{self, Series, StoredInvoice};
use crate::store::verify::{self as compare, Difference, Extent};
use crate::store::{Database, Scope, StoreError, Tx, completeness, periods, rates};

/// Differing rows listed per check; more only say the same again.
const ROWS_PER_CHECK: i64 = 100;
/// The status of every invoice: voiding one is not built.
const FINALIZED: &str = "finalized";
/// Invoices looked at together.
const INVOICE_PAGE: i64 = 200;

/// What was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// A batch's events are recorded, duplicate or rejected, and the journal holds, or the archive held, what it recorded.
    Batches,
    /// Every rejected event is kept.
    Rejections,
    /// A journal row bears the booking date and a sequence of its batch.
    Bookings,
    /// Every stream sequence up to the highest seen is accounted for.
    Sequences,
    /// Every identity is recorded once.
    Identities,
    /// Cost and charge are quantity times rate of the prices stamped, and a re-rate or a correction takes back what stood.
    Amounts,
    /// The prices stamped were valid when the usage happened.
    Validity,
    /// Rollups are the sum of the posted journal.
    Rollups,
    /// Rows of days are the sum of their hours.
    Days,
    /// Task totals are the sum of the posted journal.
    Tasks,
    /// Periods are closed in order and usage is booked into them.
    Periods,
    /// Invoice lines are the rollups of their closed period.
    InvoiceLines,
    /// Lines are rounded once and add up to their invoice.
    InvoiceTotals,
    /// Invoices are numbered without a gap, their hashes chain, and all of them stand.
    InvoiceChain,
    /// Tiers, packages and included usage are what the invoice's period prices make of its usage.
    Settlement,
    /// Task lines are the ledger of charges, which charges every task that ended and has a price, once.
    TaskCharges,
    /// Every rollup, with its whole key, is what the journal folded again gives.
    RebuiltRollups,
    /// Every task, column by column, is what the journal folded again gives.
    RebuiltTasks,
    /// The reasons of adjustments are those of the re-rates in the journal.
    RebuiltReasons,
}

impl Check {
    /// Its name in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Batches => "batches",
            Self::Rejections => "rejections",
            Self::Bookings => "bookings",
            Self::Sequences => "sequences",
            Self::Identities => "identities",
            Self::Amounts => "amounts",
            Self::Validity => "validity",
            Self::Rollups => "rollups",
            Self::Days => "days",
            Self::Tasks => "tasks",
            Self::Periods => "periods",
            Self::InvoiceLines => "invoice_lines",
            Self::InvoiceTotals => "invoice_totals",
            Self::InvoiceChain => "invoice_chain",
            Self::Settlement => "settlement",
            Self::TaskCharges => "task_charges",
            Self::RebuiltRollups => "rebuilt_rollups",
            Self::RebuiltTasks => "rebuilt_tasks",
            Self::RebuiltReasons => "rebuilt_reasons",
        }
    }
}

/// Two figures that must be equal and are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check that found it.
    pub check: Check,
    /// What the figures are of.
    pub subject: String,
    /// The figure that is nearer to the raw events.
    pub expected: String,
    /// The figure that was derived from it.
    pub actual: String,
}

/// The outcome.
#[derive(Debug, Clone)]
pub struct Verification {
    /// How much was compared.
    pub extent: Extent,
    /// Everything recorded up to then is in the sums that were compared.
    pub as_of: DateTime<Utc>,
    /// Every check that was made.
    pub checks: Vec<Check>,
    /// What differs, at most a hundred rows per check; none is the proof.
    pub findings: Vec<Finding>,
}

impl Verification {
    /// Whether everything holds.
    pub const fn holds(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Collects what the checks find.
#[derive(Default)]
struct Findings {
    checks: Vec<Check>,
    rows: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, check: Check, differences: Vec<Difference>) {
        if !self.checks.contains(&check) {
            self.checks.push(check);
        }
        self.rows.extend(differences.into_iter().map(|difference| Finding {
            check,
            subject: difference.subject,
            expected: difference.expected,
            actual: difference.actual,
        }));
    }
}

/// Compares everything in one snapshot.
///
/// # Errors
/// [`ReportError::Store`] where the database does not answer; what differs is a finding, not an error.
pub async fn verify(database: &Database, now: DateTime<Utc>) -> Result<Verification, ReportError> {
    let mut tx = database.read(Scope::Everything).await?;
    let mut findings = Findings::default();
    let (extent, as_of) = prove(&mut tx, now, &mut findings).await?;
    Ok(Verification { extent, as_of, checks: findings.checks, findings: findings.rows })
}

/// As [`verify`], and folds the whole posted journal again to compare every row of the sums; `begun` is told of each of
/// these checks as it begins, because they take long.
///
/// # Errors
/// As [`verify`].
pub async fn rebuild(
    database: &Database,
    now: DateTime<Utc>,
    begun: impl Fn(Check),
) -> Result<Verification, ReportError> {
    let mut tx = database.read(Scope::Everything).await?;
    let mut findings = Findings::default();
    let (extent, as_of) = prove(&mut tx, now, &mut findings).await?;
    begun(Check::RebuiltRollups);
    let rollups = compare::refolded_rollup_differences(&mut tx, ROWS_PER_CHECK).await?;
    findings.add(Check::RebuiltRollups, rollups);
    begun(Check::RebuiltTasks);
    findings.add(Check::RebuiltTasks, compare::refolded_task_differences(&mut tx, ROWS_PER_CHECK).await?);
    begun(Check::RebuiltReasons);
    let reasons = compare::refolded_reason_differences(&mut tx, ROWS_PER_CHECK).await?;
    findings.add(Check::RebuiltReasons, reasons);
    Ok(Verification { extent, as_of, checks: findings.checks, findings: findings.rows })
}

async fn prove(
    tx: &mut Tx,
    now: DateTime<Utc>,
    findings: &mut Findings,
) -> Result<(Extent, DateTime<Utc>), StoreError> {
    compare::prepare(tx).await?;
    let extent = compare::extent(tx).await?;
    let as_of = periods::posted_through(tx, now).await?;
    journal(tx, findings).await?;
    sums(tx, findings).await?;
    documents(tx, findings).await?;
    Ok((extent, as_of))
}

async fn journal(tx: &mut Tx, findings: &mut Findings) -> Result<(), StoreError> {
    findings.add(Check::Batches, compare::batch_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::Batches, compare::archive_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::Rejections, compare::rejection_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::Bookings, compare::booking_differences(tx, ROWS_PER_CHECK).await?);
    let covered = completeness::sequences_covered(tx).await?;
    let gaps = completeness::gaps(&covered).into_iter().map(|gap| Difference {
        subject: format!("stream incarnation {}", gap.incarnation),
        expected: format!("sequences {} to {} in a batch", gap.from, gap.to - 1),
        actual: "in none; run `waybill repair`".to_owned(),
    });
    findings.add(Check::Sequences, gaps.collect());
    findings.add(Check::Identities, compare::duplicate_identities(tx, ROWS_PER_CHECK).await?);
    let used = compare::prices_used(tx).await?;
    let terms = rates::by_price(tx, &used).await?;
    findings.add(Check::Amounts, compare::amount_differences(tx, &terms, ROWS_PER_CHECK).await?);
    findings.add(Check::Amounts, compare::restatement_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::Amounts, compare::reversal_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::Validity, compare::validity_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::InvoiceLines, compare::line_differences(tx, &terms, ROWS_PER_CHECK).await?);
    Ok(())
}

async fn sums(tx: &mut Tx, findings: &mut Findings) -> Result<(), StoreError> {
    findings.add(Check::Rollups, compare::rollup_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::Rollups, compare::rare_rollup_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::Days, compare::day_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::Tasks, compare::task_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::Tasks, compare::rare_task_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::Tasks, compare::outcome_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::Periods, compare::period_differences(tx, ROWS_PER_CHECK).await?);
    Ok(())
}

/// Recomputes every invoice from its own lines and its period prices, and walks the chain of each series.
async fn documents(tx: &mut Tx, findings: &mut Findings) -> Result<(), StoreError> {
    let mut totals = Vec::new();
    let mut chain = Vec::new();
    let mut settlement = Vec::new();
    for series in invoices::all_series(tx).await? {
        let mut link = Link { number: 0, hash: None };
        loop {
            let page = invoices::in_series(tx, &series.series, link.number, INVOICE_PAGE).await?;
            if page.is_empty() {
                break;
            }
            for stored in &page {
                totals.extend(total_difference(stored));
                chain.extend(link.follow(stored));
                settlement.extend(super::settlement::differences(tx, stored).await?);
            }
        }
        chain.extend(link.end(&series));
    }
    findings.add(Check::InvoiceTotals, totals);
    findings.add(Check::InvoiceChain, chain);
    findings.add(Check::Settlement, settlement);
    findings.add(Check::TaskCharges, compare::task_line_differences(tx, ROWS_PER_CHECK).await?);
    findings.add(Check::TaskCharges, compare::charge_differences(tx, ROWS_PER_CHECK).await?);
    let most = usize::try_from(ROWS_PER_CHECK).unwrap_or(usize::MAX);
    let mut left_out = super::settlement::task_differences(tx, most).await?;
    left_out.truncate(most);
    findings.add(Check::TaskCharges, left_out);
    Ok(())
}

/// Rounds and adds up the lines again.
fn total_difference(stored: &StoredInvoice) -> Option<Difference> {
    let invoice = &stored.invoice;
    let computed = || -> Option<(Amount, MinorAmount)> {
        let mut exact = Amount::ZERO;
        let mut total = MinorAmount::new(0, invoice.currency);
        for line in &invoice.lines {
            let amount = line.rate.times(line.quantity)?;
            let rounded = amount.round_to_minor(invoice.currency).ok()?;
            if amount != line.exact || rounded != line.amount {
                return None;
            }
            exact = exact.checked_add(amount)?;
            total = total.checked_add(rounded)?;
        }
        Some((exact, total))
    };
    let computed = computed();
    if computed == Some((invoice.exact_total, invoice.total)) {
        return None;
    }
    Some(Difference {
        subject: format!("invoice {}", invoice.display_number()),
        expected: computed.map_or_else(
            || "lines of quantity times rate, each rounded once".to_owned(),
            |(exact, total)| format!("lines add up to {exact} exact, {total} rounded"),
        ),
        actual: format!("{} exact, {} rounded", invoice.exact_total, invoice.total),
    })
}

/// Where the walk along a series stands.
struct Link {
    number: i64,
    hash: Option<Vec<u8>>,
}

impl Link {
    /// Steps to the next invoice.
    fn follow(&mut self, stored: &StoredInvoice) -> Vec<Difference> {
        let invoice = &stored.invoice;
        let mut differences = Vec::new();
        let mut differs = |expected: String, actual: String| {
            differences.push(Difference {
                subject: format!("invoice {}", invoice.display_number()),
                expected,
                actual,
            });
        };
        if invoice.number != self.number + 1 {
            differs(
                format!("number {} after {}", self.number + 1, self.number),
                format!("number {}", invoice.number),
            );
        }
        if invoice.previous_hash != self.hash {
            differs("the hash of the invoice before it".to_owned(), "another one".to_owned());
        }
        if invoice.content_hash().as_slice() != stored.content_hash {
            differs("content as it was sealed".to_owned(), "content with another hash".to_owned());
        }
        if stored.status != FINALIZED {
            differs(
                format!("status {FINALIZED}"),
                format!("status {}, which no command sets", stored.status),
            );
        }
        self.number = invoice.number;
        self.hash = Some(stored.content_hash.clone());
        differences
    }

    /// Compares the last step with what the series says.
    fn end(self, series: &Series) -> Option<Difference> {
        if self.number == series.last_number && self.hash == series.last_hash {
            return None;
        }
        Some(Difference {
            subject: format!("series {}", series.series),
            expected: format!("its newest invoice is number {}", series.last_number),
            actual: format!("number {}, or its hash differs", self.number),
        })
    }
}
