//! What posting needs to know of the rows of one batch, in little memory: some 100 bytes a row, where a row of the journal has
//! 400 and an event that is being recorded a few thousand.

use std::collections::HashMap;
use std::num::NonZeroU32;

use chrono::NaiveDate;
use foldhash::fast::RandomState;
use indexmap::IndexSet;

use crate::domain::event::Outcome;
use crate::domain::ids::{BatchId, CustomerId, PriceId};
use crate::domain::money::Amount;
use crate::domain::tokens::{MAIN_CLASS_COUNT, Quantities};
use crate::store::journal::{JournalEvent, JournalPart};
use crate::store::posting::{Row, RowKind};

/// A text among the texts of a batch; [`NO_TEXT`] stands for none.
pub type TextId = u32;
/// No text.
pub const NO_TEXT: TextId = u32::MAX;

/// The rows that one batch added to the journal.
#[derive(Debug)]
pub struct Facts {
    /// The batch.
    pub batch: BatchId,
    /// The date it is booked on.
    pub booked_on: NaiveDate,
    /// Its rows.
    pub rows: Vec<Fact>,
    /// What is too large for the rows, or too rare, by the place of the row.
    wide: HashMap<u32, Box<Wide>, RandomState>,
    texts: String,
    text_ends: Vec<u32>,
}

/// One row. Quantities and amounts are those of a usual call; others are kept apart.
#[derive(Debug, Clone, Copy)]
pub struct Fact {
    /// Whose usage.
    pub customer: CustomerId,
    /// When it happened, in microseconds since 1970.
    pub occurred_at: i64,
    prices: Option<(NonZeroU32, NonZeroU32)>,
    cost: i64,
    charge: i64,
    main: [u32; MAIN_CLASS_COUNT],
    /// Attribute `project`.
    pub project: TextId,
    /// Its task ...
    pub task: TextId,
    /// ... the task's type ...
    pub task_type: TextId,
    /// ... and what the task is a part of.
    pub parent: TextId,
    /// The model, of usage.
    pub model: TextId,
    /// Calls that it stands for.
    pub calls: i8,
    /// Whether it is of a re-rate.
    pub restated: bool,
    /// How its task ended.
    pub outcome: Option<Outcome>,
}

#[derive(Debug)]
struct Wide {
    prices: Option<(PriceId, PriceId)>,
    quantities: Quantities,
    cost: Amount,
    charge: Amount,
}

/// Quantities and amounts of one row.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<'a> {
    /// The prices of cost and charge; an outcome has none.
    pub prices: Option<(PriceId, PriceId)>,
    /// The main classes.
    pub main: [i64; MAIN_CLASS_COUNT],
    /// The others, where there are any.
    pub rare: Option<&'a Quantities>,
    /// What the provider charges us, exact.
    pub cost: Amount,
    /// What the customer pays, exact.
    pub charge: Amount,
}

impl Facts {
    /// The rows of recorded events. Reversals of estimates are made by the database: a batch with corrections has more rows.
    pub fn of(batch: BatchId, booked_on: NaiveDate, events: &[&JournalEvent]) -> Self {
        let mut gathering = Gathering::new(batch, booked_on, events.len());
        for event in events {
            if event.parts.is_empty() {
                gathering.add(&row(event, 0, None));
            }
            for (part, number) in event.parts.iter().zip(0_i16..) {
                gathering.add(&row(event, number, Some(part)));
            }
        }
        gathering.finish()
    }

    /// The numbers of the row at a place.
    pub fn numbers(&self, place: usize) -> Numbers<'_> {
        let fact = &self.rows[place];
        match u32::try_from(place).ok().and_then(|place| self.wide.get(&place)) {
            None => Numbers {
                prices: fact.prices.map(|(cost, sell)| (price(cost), price(sell))),
                main: fact.main.map(i64::from),
                rare: None,
                cost: Amount::from_femtos(fact.cost.into()),
                charge: Amount::from_femtos(fact.charge.into()),
            },
            Some(wide) => Numbers {
                prices: wide.prices,
                main: wide.quantities.main(),
                rare: Some(&wide.quantities),
                cost: wide.cost,
                charge: wide.charge,
            },
        }
    }

    /// How many texts there are: their ids are below.
    pub fn text_count(&self) -> usize {
        self.text_ends.len()
    }

    /// A text by its id.
    pub fn text(&self, text: TextId) -> &str {
        let place = text as usize;
        let start = place.checked_sub(1).map_or(0, |before| self.text_ends[before] as usize);
        &self.texts[start..self.text_ends[place] as usize]
    }

    /// Memory that it takes, about.
    pub fn bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Fact>()
            + self.wide.len() * 2 * size_of::<Wide>()
            + self.texts.capacity()
            + self.text_ends.capacity() * size_of::<u32>()
    }
}

fn price(id: NonZeroU32) -> PriceId {
    PriceId(id.get().into())
}

/// What a recorded event, or one part of it, is as a row.
fn row<'a>(event: &'a JournalEvent, number: i16, part: Option<&'a JournalPart>) -> Row<'a> {
    Row {
        kind: if part.is_some() { RowKind::Usage } else { RowKind::Outcome },
        part: number,
        customer: event.customer,
        occurred_at: event.occurred_at,
        cost_price: part.map(|part| part.cost_price),
        sell_price: part.map(|part| part.sell_price),
        project: event.project.as_deref(),
        task: event.task.as_ref().map(|task| task.id.as_str()),
        task_type: event.task.as_ref().and_then(|task| task.kind.as_deref()),
        parent: event.task.as_ref().and_then(|task| task.parent.as_deref()),
        model: part.map(|part| part.model.as_str()),
        outcome: event.outcome,
        quantities: part.map_or(&Quantities::NONE, |part| &part.quantities),
        cost: part.map_or(Amount::ZERO, |part| part.cost),
        charge: part.map_or(Amount::ZERO, |part| part.charge),
    }
}

/// Facts in the making.
#[derive(Debug)]
pub struct Gathering {
    facts: Facts,
    texts: IndexSet<Box<str>, RandomState>,
}

impl Gathering {
    /// Nothing of a batch yet, with room for so many rows.
    pub fn new(batch: BatchId, booked_on: NaiveDate, rows: usize) -> Self {
        let facts = Facts {
            batch,
            booked_on,
            rows: Vec::with_capacity(rows),
            wide: HashMap::default(),
            texts: String::new(),
            text_ends: Vec::new(),
        };
        Self { facts, texts: IndexSet::default() }
    }

    /// Adds one row.
    pub fn add(&mut self, row: &Row<'_>) {
        let narrow = narrow(row);
        if narrow.is_none() {
            let prices = row.cost_price.zip(row.sell_price);
            let wide = Wide { prices, quantities: *row.quantities, cost: row.cost, charge: row.charge };
            // Batches are bounded to far below 2^32 rows.
            let place = u32::try_from(self.facts.rows.len()).unwrap_or(u32::MAX);
            self.facts.wide.insert(place, Box::new(wide));
        }
        let Narrow { prices, main, cost, charge } = narrow.unwrap_or_default();
        let fact = Fact {
            customer: row.customer,
            occurred_at: row.occurred_at.timestamp_micros(),
            prices,
            cost,
            charge,
            main,
            project: self.text(row.project),
            task: self.text(row.task),
            task_type: self.text(row.task_type),
            parent: self.text(row.parent),
            model: self.text(row.model.filter(|_| row.kind == RowKind::Usage)),
            calls: row.calls(),
            restated: row.kind == RowKind::Restated,
            outcome: row.outcome.filter(|_| row.kind == RowKind::Outcome),
        };
        self.facts.rows.push(fact);
    }

    fn text(&mut self, text: Option<&str>) -> TextId {
        let Some(text) = text else { return NO_TEXT };
        let place = self.texts.get_index_of(text).unwrap_or_else(|| self.texts.insert_full(text.into()).0);
        // A batch has fewer texts, and bytes of them, than 2^32.
        TextId::try_from(place).unwrap_or(NO_TEXT)
    }

    /// All that was added.
    pub fn finish(mut self) -> Facts {
        self.facts.texts.reserve_exact(self.texts.iter().map(|text| text.len()).sum());
        for text in &self.texts {
            self.facts.texts.push_str(text);
            self.facts.text_ends.push(u32::try_from(self.facts.texts.len()).unwrap_or(u32::MAX));
        }
        self.facts.text_ends.shrink_to_fit();
        self.facts.rows.shrink_to_fit();
        self.facts
    }
}

/// The numbers of a usual call.
#[derive(Debug, Default)]
struct Narrow {
    prices: Option<(NonZeroU32, NonZeroU32)>,
    main: [u32; MAIN_CLASS_COUNT],
    cost: i64,
    charge: i64,
}

/// The numbers of the row where it is of a usual call.
fn narrow(row: &Row<'_>) -> Option<Narrow> {
    if row.quantities.rare().next().is_some() {
        return None;
    }
    let mut narrow = Narrow::default();
    for (place, units) in narrow.main.iter_mut().zip(row.quantities.main()) {
        *place = u32::try_from(units).ok()?;
    }
    if let Some((cost, sell)) = row.cost_price.zip(row.sell_price) {
        let id = |price: PriceId| u32::try_from(price.0).ok().and_then(NonZeroU32::new);
        narrow.prices = Some((id(cost)?, id(sell)?));
    }
    narrow.cost = i64::try_from(row.cost.femtos()).ok()?;
    narrow.charge = i64::try_from(row.charge.femtos()).ok()?;
    Some(narrow)
}
