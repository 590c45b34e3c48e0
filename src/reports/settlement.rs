//! Settles a final invoice again, from the rollups and the period prices that it names, and the tasks of closed periods.

use serde_json::Value;

use crate::domain::ids::PeriodPriceId;
use crate::domain::invoice::{Invoice, InvoiceLine, LineKind};
use crate::domain::settlement::{PayingBooks, SettledLine, TaskCharge};
use crate::rating::settlement::{charge_tasks, settle_usage};
use crate::store::invoices::StoredInvoice;
use crate::store::verify::{self as compare, ChargedPeriod, Difference};
use crate::store::{StoreError, Tx, period_prices, rates};

/// The lines of tiers, packages and included usage that are not what the period prices give.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn differences(tx: &mut Tx, stored: &StoredInvoice) -> Result<Vec<Difference>, StoreError> {
    let invoice = &stored.invoice;
    let mut actual: Vec<String> = invoice.lines.iter().filter(|line| is_settled(line)).map(written).collect();
    let (mut expected, failed) = match recomputed(tx, invoice).await? {
        Ok(lines) => (lines, None),
        Err(reason) => (Vec::new(), Some(reason)),
    };
    expected.sort_unstable();
    actual.sort_unstable();
    if failed.is_none() && expected == actual {
        return Ok(Vec::new());
    }
    let only = |these: &[String], those: &[String]| {
        let missing: Vec<&str> =
            these.iter().filter(|line| !those.contains(line)).map(String::as_str).collect();
        if missing.is_empty() { "no other line".to_owned() } else { missing.join("; ") }
    };
    Ok(vec![Difference {
        subject: format!("invoice {}", invoice.display_number()),
        expected: failed.unwrap_or_else(|| only(&expected, &actual)),
        actual: only(&actual, &expected),
    }])
}

fn is_settled(line: &InvoiceLine) -> bool {
    matches!(line.kind, LineKind::Tier | LineKind::Package | LineKind::IncludedUsage)
}

/// What the lines should be, or why that cannot be said.
async fn recomputed(tx: &mut Tx, invoice: &Invoice) -> Result<Result<Vec<String>, String>, StoreError> {
    let ids = named(&invoice.manifest["period_prices"]);
    if ids.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    let prices: Vec<_> =
        period_prices::by_id(tx, &ids).await?.into_iter().map(|stored| stored.price).collect();
    let usage = compare::booked_usage(tx, invoice.customer, invoice.period.start).await?;
    let mut stamped: Vec<_> = usage.iter().map(|hour| hour.price).collect();
    stamped.sort_unstable();
    stamped.dedup();
    let terms = rates::by_price(tx, &stamped).await?;
    let books: Vec<PayingBooks> = match serde_json::from_value(invoice.manifest["books"].clone()) {
        Ok(books) => books,
        Err(error) => return Ok(Err(format!("a manifest that names the customer's books: {error}"))),
    };
    let settled = settle_usage(invoice.period, &usage, &terms, &prices, &books);
    let of_invoice = |line: &SettledLine| line.currency == invoice.currency;
    Ok(settled
        .map(|lines| lines.into_iter().filter(of_invoice).map(|line| computed(&line)).collect())
        .map_err(|error| error.to_string()))
}

fn named(prices: &Value) -> Vec<PeriodPriceId> {
    let prices = prices.as_array().map(Vec::as_slice).unwrap_or_default();
    prices.iter().filter_map(Value::as_i64).map(PeriodPriceId).collect()
}

/// Tasks of closed periods that were not charged, or not credited, as the period prices of that time have it; about `limit` of
/// them. Whatever was charged since is in the ledger of charges, so what is charged now was left out then.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn task_differences(tx: &mut Tx, limit: usize) -> Result<Vec<Difference>, StoreError> {
    let mut differences = Vec::new();
    for period in compare::charged_periods(tx).await? {
        let books: Vec<PayingBooks> = match serde_json::from_value(period.books.clone()) {
            Ok(books) => books,
            Err(error) => {
                differences.push(Difference {
                    subject: format!("customer {}, period from {}", period.customer, period.start),
                    expected: format!("a manifest that names the customer's books: {error}"),
                    actual: period.books.to_string(),
                });
                continue;
            }
        };
        let prices: Vec<_> = period_prices::by_id(tx, &named(&period.period_prices))
            .await?
            .into_iter()
            .map(|stored| stored.price)
            .collect();
        let mut after = String::new();
        loop {
            let tasks = compare::booked_tasks(tx, period.customer, period.start, &books, &after).await?;
            let Some(last) = tasks.last() else { break };
            after.clone_from(&last.task);
            differences.extend(charge_tasks(&tasks, &prices).iter().map(|charge| left_out(&period, charge)));
            if differences.len() >= limit {
                return Ok(differences);
            }
        }
    }
    Ok(differences)
}

fn left_out(period: &ChargedPeriod, charge: &TaskCharge) -> Difference {
    let TaskCharge { task, entry, .. } = charge;
    let what = if entry.quantity() > 0 { "charge" } else { "credit" };
    Difference {
        subject: format!("customer {}, task {task}, booked to {}", period.customer, period.start),
        expected: format!("a {what} of {} by period price {}", entry.amount.per_unit(), entry.price),
        actual: "none".to_owned(),
    }
}

fn written(line: &InvoiceLine) -> String {
    let InvoiceLine { kind, service, provider, model, class, quantity, rate, note, period_price, .. } = line;
    format!(
        "{kind} of {} {provider:?} {model:?} {class:?} {quantity} at {rate} by {period_price:?}, {note:?}",
        service.start
    )
}

fn computed(line: &SettledLine) -> String {
    let SettledLine { kind, service, provider, model, class, quantity, rate, .. } = line;
    let (note, period_price) = (Some(&line.note), Some(line.price));
    format!(
        "{kind} of {} {provider:?} {model:?} {class:?} {quantity} at {rate} by {period_price:?}, {note:?}",
        service.start
    )
}
