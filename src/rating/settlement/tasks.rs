//! Fixed prices of finished tasks: each is charged once, and credited where its end changes to one that is not charged.

use std::collections::BTreeMap;

use super::SettlementError;
use crate::domain::ids::{BookId, PeriodPriceId};
use crate::domain::invoice::LineKind;
use crate::domain::money::Rate;
use crate::domain::period::Period;
use crate::domain::price::period_price::{PeriodPrice, Scheme};
use crate::domain::settlement::{FinishedTask, SettledLine, TaskCharge, TaskEntry};

/// The entries that the tasks add to the ledger of charges, in the order of the tasks.
///
/// A task that was charged stays so while its outcome, or the price by name, is the same. Otherwise the charge is taken
/// back at its own amount, and the price that applies to the new outcome, if there is one, is charged.
pub fn charge_tasks(tasks: &[FinishedTask], prices: &[PeriodPrice]) -> Vec<TaskCharge> {
    let mut charges = Vec::new();
    for task in tasks {
        let in_book =
            |book: &BookId| prices.iter().find(|price| price.book.id == *book && applies(price, task));
        let price = task.books.iter().find_map(in_book);
        let mut number = 1;
        let mut charge = |entry| {
            let FinishedTask { task, service, ended_at, .. } = task.clone();
            charges.push(TaskCharge { task, service, ended_at, entry });
        };
        if let Some(last) = &task.last {
            number = last.number.saturating_add(1);
            if last.quantity() > 0 {
                let same = price.is_some_and(|price| price.key() == (last.book, last.name.as_str()));
                if same || last.outcome == task.outcome {
                    continue;
                }
                charge(TaskEntry { number, outcome: task.outcome, ..last.clone() });
                number = number.saturating_add(1);
            }
        }
        if let Some((price, Scheme::Task { amount, .. })) = price.map(|price| (price, &price.draft.scheme)) {
            charge(TaskEntry {
                number,
                price: price.id,
                book: price.book.id,
                name: price.draft.name.clone(),
                amount: *amount,
                currency: price.book.currency,
                outcome: task.outcome,
            });
        }
    }
    charges
}

fn applies(price: &PeriodPrice, task: &FinishedTask) -> bool {
    match &price.draft.scheme {
        Scheme::Task { task_type, outcome, .. } => {
            price.valid_at(task.ended_at)
                && task.task_type.as_ref() == Some(task_type)
                && outcome.is_none_or(|outcome| outcome == task.outcome)
        }
        Scheme::Graduated(_) | Scheme::Volume(_) | Scheme::Package { .. } => false,
    }
}

/// The lines of entries in the ledger of charges, which may be added in parts: charges and credits of one price, at one
/// amount, in one service period on one line each.
#[derive(Debug, Default)]
pub struct TaskLines(BTreeMap<(Period, PeriodPriceId, Rate, i64), SettledLine>);

impl TaskLines {
    /// Adds these entries.
    ///
    /// # Errors
    /// [`SettlementError::Overflow`].
    pub fn add(&mut self, charges: &[TaskCharge]) -> Result<(), SettlementError> {
        for TaskCharge { service, entry, .. } in charges {
            let quantity = entry.quantity();
            let key = (*service, entry.price, entry.amount, quantity);
            let line = self.0.entry(key).or_insert_with(|| SettledLine {
                currency: entry.currency,
                kind: LineKind::Task,
                service: *service,
                provider: None,
                model: None,
                class: None,
                quantity: 0,
                rate: entry.amount.per_unit(),
                note: if quantity > 0 {
                    format!("{}: finished tasks", entry.name)
                } else {
                    format!("{}: credit, the outcome of tasks charged before has changed", entry.name)
                },
                price: entry.price,
            });
            line.quantity = line.quantity.checked_add(quantity).ok_or(SettlementError::Overflow)?;
        }
        Ok(())
    }

    /// The lines, in order of service period, price and amount.
    pub fn into_lines(self) -> impl Iterator<Item = SettledLine> {
        self.0.into_values()
    }
}
