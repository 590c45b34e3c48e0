//! One sum in the making, in little memory: a slice has a hundred thousand of them.

use std::collections::BTreeMap;

use crate::domain::money::Amount;
use crate::domain::tokens::{MAIN_CLASS_COUNT, TokenClass};
use crate::ingest::facts::{Fact, NO_TEXT, TextId};
use crate::store::posting::Totals;

/// Different texts, mostly one or two.
#[derive(Debug, Default)]
pub struct Few {
    first: Option<TextId>,
    more: Vec<TextId>,
}

impl Few {
    /// Whether there are several.
    pub const fn several(&self) -> bool {
        !self.more.is_empty()
    }

    /// Adds a text, if it is one.
    pub fn add(&mut self, text: TextId) {
        match self.first {
            _ if text == NO_TEXT => {}
            None => self.first = Some(text),
            Some(first) if first == text || self.more.contains(&text) => {}
            Some(_) => self.more.push(text),
        }
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = TextId> {
        self.first.into_iter().chain(self.more.iter().copied())
    }
}

/// Quantities and amounts so far: what 64 bits hold, and beside it what they do not.
#[derive(Debug, Default)]
pub struct Running {
    main: [i64; MAIN_CLASS_COUNT],
    cost: Amount,
    charge: Amount,
    beyond: Option<Box<Beyond>>,
}

#[derive(Debug, Default)]
struct Beyond {
    main: [i128; MAIN_CLASS_COUNT],
    rare: BTreeMap<TokenClass, i128>,
    /// Cost and charge that 128 bits could not hold with those of the next row.
    amounts: Vec<(Amount, Amount)>,
}

impl Running {
    /// Adds the numbers of a row.
    pub fn add(&mut self, fact: &Fact) {
        for (class, units) in fact.main.into_iter().enumerate() {
            self.main[class] = self.main[class].checked_add(units).unwrap_or_else(|| {
                let beyond = self.beyond.get_or_insert_default();
                beyond.main[class] += i128::from(self.main[class]);
                units
            });
        }
        for (class, units) in &fact.rare {
            *self.beyond.get_or_insert_default().rare.entry(*class).or_default() += i128::from(*units);
        }
        let sums = self.cost.checked_add(fact.cost()).zip(self.charge.checked_add(fact.charge()));
        let (cost, charge) = sums.unwrap_or_else(|| {
            self.beyond.get_or_insert_default().amounts.push((self.cost, self.charge));
            (fact.cost(), fact.charge())
        });
        (self.cost, self.charge) = (cost, charge);
    }

    /// What it comes to: one sum, and others beside it for amounts that it cannot hold.
    pub fn totals(&self) -> (Totals, Vec<Totals>) {
        let mut totals = Totals {
            main: self.main.map(i128::from),
            cost: self.cost,
            charge: self.charge,
            ..Totals::default()
        };
        let Some(beyond) = &self.beyond else { return (totals, Vec::new()) };
        for (total, units) in totals.main.iter_mut().zip(beyond.main) {
            *total += units;
        }
        totals.rare = beyond.rare.clone();
        totals.rare.retain(|_, units| *units != 0);
        let amounts =
            |(cost, charge): &(Amount, Amount)| Totals { cost: *cost, charge: *charge, ..Totals::default() };
        (totals, beyond.amounts.iter().map(amounts).collect())
    }
}
