use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::domain::money::Amount;
use crate::domain::tokens::{CLASS_COUNT, MAIN_CLASS_COUNT, Quantities, TokenClass};
use crate::ingest::facts::Gathering;
use crate::store::posting::{Row, RowKind, Totals};

/// A row that owns what it is made of.
#[derive(Debug, Clone)]
struct Drawn {
    kind: RowKind,
    part: i16,
    customer: i64,
    seconds: i64,
    price: i64,
    texts: [Option<u8>; 4],
    model: u8,
    outcome: Outcome,
    quantities: Quantities,
    amount: i128,
    batch: i64,
}

/// Texts of one letter, in the order of the alphabet.
const LETTERS: [&str; 5] = ["a", "b", "c", "d", "e"];

impl Drawn {
    fn row(&self) -> Row<'_> {
        let usage = self.kind != RowKind::Outcome;
        let text = |number: Option<u8>| number.map(|number| LETTERS[usize::from(number)]);
        let [project, task, task_type, parent] = self.texts.map(text);
        Row {
            kind: self.kind,
            part: self.part,
            customer: CustomerId(self.customer),
            occurred_at: DateTime::UNIX_EPOCH + TimeDelta::seconds(self.seconds),
            cost_price: usage.then_some(PriceId(self.price)),
            sell_price: usage.then_some(PriceId(-self.price)),
            project,
            task,
            task_type,
            parent,
            model: Some(LETTERS[usize::from(self.model)]),
            outcome: (!usage).then_some(self.outcome),
            quantities: if usage { &self.quantities } else { &Quantities::NONE },
            cost: Amount::from_femtos(if usage { self.amount } else { 0 }),
            charge: Amount::from_femtos(if usage { 2 * self.amount } else { 0 }),
        }
    }
}

fn units() -> impl Strategy<Value = i64> {
    prop_oneof![4 => 0_i64..1_000, 2 => Just(0), 1 => Just(i64::MAX), 1 => Just(-1_000_i64)]
}

fn amount() -> impl Strategy<Value = i128> {
    prop_oneof![4 => 0_i128..10_i128.pow(12), 1 => Just(10_i128.pow(30)), 1 => Just(-(10_i128.pow(20)))]
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let kind = prop_oneof![
        6 => Just((RowKind::Usage, 0)),
        1 => Just((RowKind::Usage, 1)),
        1 => Just((RowKind::Outcome, 0)),
        1 => Just((RowKind::Reversal, 1000)),
        1 => Just((RowKind::Restated, 2000)),
    ];
    let text = || proptest::option::of(0_u8..3);
    let who = (kind, proptest::sample::select(vec![1_i64, 2, 9]), 0_i64..4_000, 1_i64..3);
    let what = ([text(), text(), text(), text()], 0_u8..5, proptest::sample::select(Outcome::ALL));
    let much = (proptest::array::uniform22(units()), amount(), 0_i64..4);
    (who, what, much).prop_map(
        |((kind, customer, seconds, price), (texts, model, outcome), (raw, amount, batch))| {
            let (kind, part) = kind;
            let quantities = Quantities::from_raw(raw);
            Drawn { kind, part, customer, seconds, price, texts, model, outcome, quantities, amount, batch }
        },
    )
}

fn booked_on(batch: i64) -> NaiveDate {
    NaiveDate::default() + TimeDelta::days(batch)
}

/// The sums of rows, gathered by batch in the order in which they come.
fn sums(rows: &[Drawn]) -> Sums {
    let mut batches: IndexMap<i64, Gathering> = IndexMap::new();
    for row in rows {
        let batch = batches
            .entry(row.batch)
            .or_insert_with(|| Gathering::new(BatchId(row.batch), booked_on(row.batch)));
        batch.add(&row.row()).unwrap();
    }
    let mut sums = Sums::default();
    for batch in batches.into_values() {
        let facts = batch.finish();
        // Customers of different shares, and of the same one.
        for share in Share::all() {
            sums.add(&facts, share).unwrap();
        }
    }
    sums
}

fn rollups(sums: &Sums) -> Vec<RollupSum<'_>> {
    let mut rollups: Vec<RollupSum<'_>> = sums.rollups().collect();
    rollups.sort_by_key(|sum| format!("{sum:?}"));
    rollups
}

fn tasks(sums: &Sums) -> Vec<TaskSum<'_>> {
    let ordered: BTreeSet<TextId> = sums.ordered().into_iter().collect();
    sums.tasks(|text| {
        // What is not asked for has no order.
        if !ordered.contains(&text) {
            return 0;
        }
        (0..).zip(LETTERS).find(|(_, letter)| *letter == sums.resolve(text)).unwrap().0
    })
    .collect()
}

/// Totals of some rows, one by one.
fn totals<'a>(rows: impl Iterator<Item = Row<'a>>) -> Totals {
    let mut raw = [0_i128; CLASS_COUNT];
    let (mut cost, mut charge) = (Amount::ZERO, Amount::ZERO);
    for row in rows {
        for (sum, units) in raw.iter_mut().zip(row.quantities.raw()) {
            *sum += i128::from(*units);
        }
        cost = cost.checked_add(row.cost).unwrap();
        charge = charge.checked_add(row.charge).unwrap();
    }
    let rare = TokenClass::ALL.into_iter().zip(raw).skip(MAIN_CLASS_COUNT).filter(|(_, units)| *units != 0);
    Totals { main: std::array::from_fn(|class| raw[class]), rare: rare.collect(), cost, charge }
}

proptest! {
    #[test]
    fn sums_are_those_of_the_rows_one_by_one(rows in proptest::collection::vec(drawn(), 0..40)) {
        let sums = sums(&rows);
        for task in tasks(&sums) {
            let own: Vec<Row<'_>> = rows.iter().map(Drawn::row)
                .filter(|row| row.customer == task.customer && row.task == Some(task.task)).collect();
            prop_assert_eq!(&task.totals, &totals(own.iter().copied()));
            prop_assert_eq!(task.calls, own.iter().map(|row| i64::from(row.calls())).sum::<i64>());
            prop_assert_eq!(task.task_type, own.iter().filter_map(|row| row.task_type).min());
            prop_assert_eq!(task.parent, own.iter().filter_map(|row| row.parent).min());
            let models: BTreeSet<&str> =
                own.iter().filter(|row| row.kind == RowKind::Usage).filter_map(|row| row.model).collect();
            prop_assert_eq!(&task.models, &models.into_iter().collect::<Vec<_>>());
            let ended = own.iter().filter_map(|row| Some((row.occurred_at, row.outcome?)));
            let ended = ended.min_by_key(|(at, outcome)| (std::cmp::Reverse(*at), outcome.as_str()));
            prop_assert_eq!(task.ended, ended);
            prop_assert_eq!(Some(task.first_at), own.iter().map(|row| row.occurred_at).min());
            prop_assert_eq!(Some(task.last_at), own.iter().map(|row| row.occurred_at).max());
        }
        let counted = |row: &Row<'_>| row.kind != RowKind::Outcome;
        let all = rollups(&sums);
        let of = |sum: &RollupSum<'_>, row: &Row<'_>| {
            let quarter = row.occurred_at.timestamp() / 900 * 900;
            row.customer == sum.customer && row.cost_price == Some(sum.cost_price)
                && row.project.unwrap_or_default() == sum.project
                && row.task_type.unwrap_or_default() == sum.task_type
                && (row.kind == RowKind::Restated) == sum.restated && quarter == sum.quarter.timestamp()
        };
        for sum in &all {
            let own = || rows.iter().map(Drawn::row).filter(|row| counted(row) && of(sum, row));
            prop_assert_eq!(&sum.totals, &totals(own()));
            prop_assert_eq!(sum.events, own().map(|row| i64::from(row.calls())).sum::<i64>());
        }
        for row in rows.iter().map(Drawn::row).filter(counted) {
            prop_assert_eq!(all.iter().filter(|sum| of(sum, &row)).count(), 1);
        }
        prop_assert!(tasks(&sums).is_sorted_by_key(|sum| (sum.customer, sum.task)));
        prop_assert!(sums.rollups().is_sorted_by_key(|sum| sum.customer));
    }

    #[test]
    fn sums_do_not_depend_on_the_order_of_the_rows(
        rows in proptest::collection::vec(drawn(), 0..40).prop_shuffle(),
        turn in 0_usize..40,
    ) {
        let mut turned = rows.clone();
        turned.reverse();
        turned.rotate_left(turn.min(rows.len()));
        let (one, other) = (sums(&rows), sums(&turned));
        prop_assert_eq!(rollups(&one), rollups(&other));
        prop_assert_eq!(tasks(&one), tasks(&other));
    }
}

#[test]
fn amounts_that_no_number_holds_are_sums_beside_each_other() {
    let most = i128::MAX / 2;
    let row = |amount| Drawn {
        kind: RowKind::Usage,
        part: 0,
        customer: 1,
        seconds: 0,
        price: 1,
        texts: [None, Some(0), None, None],
        model: 0,
        outcome: Outcome::Success,
        quantities: Quantities::NONE,
        amount,
        batch: 1,
    };
    let sums = sums(&[row(most), row(7), row(-3), row(most)]);
    let amounts = |totals: &Totals| (totals.cost.femtos(), totals.charge.femtos());
    // Twice the amount is charged, which leaves the range first.
    let expected = [(most, 2 * most), (most, 2 * most), (4, 8)];
    let mut rollups: Vec<(i128, i128)> = rollups(&sums).iter().map(|sum| amounts(&sum.totals)).collect();
    rollups.sort_unstable_by(|one, other| other.cmp(one));
    assert_eq!(rollups, expected);
    let tasks = tasks(&sums);
    let mut totals: Vec<(i128, i128)> = tasks.iter().map(|sum| amounts(&sum.totals)).collect();
    totals.sort_unstable_by(|one, other| other.cmp(one));
    assert_eq!(totals, expected);
    assert_eq!(tasks.iter().map(|sum| sum.calls).sum::<i64>(), 4);
}
