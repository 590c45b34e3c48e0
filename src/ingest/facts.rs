//! What posting needs to know of the rows of one batch, in little memory: some 60 bytes a row, where a row of the journal has
//! 400 and an event that is being recorded a few thousand.

use chrono::NaiveDate;
use foldhash::fast::RandomState;
use indexmap::IndexSet;
use serde::{Deserialize, Serialize};

use super::IngestError;
use crate::domain::event::Outcome;
use crate::domain::ids::{BatchId, CustomerId, PriceId};
use crate::domain::money::Amount;
use crate::domain::tokens::{MAIN_CLASS_COUNT, Quantities, TokenClass};
use crate::store::journal::{JournalEvent, JournalPart};
use crate::store::posting::{Row, RowKind};

/// A text among the texts of a batch, counted from one; [`NO_TEXT`] stands for none.
pub type TextId = u32;
/// No text.
pub const NO_TEXT: TextId = 0;
/// Parts that a slice is posted in; an even number.
const SHARES: usize = 32;
/// More than any row takes: twenty bytes an amount, ten a quantity, and thirty the name of a class that is no main one.
const ROW_BYTES_MAX: usize = 1024;

/// A part of all customers: the sums of a slice are made and added part by part, so that of many customers only those of one
/// part take memory at a time. Those of one customer are made at once, however many they are: the rows of a slice bound them.
#[derive(Debug, Clone, Copy)]
pub struct Share(usize);

impl Share {
    /// All shares.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SHARES).map(Self)
    }

    /// Those of the customers with even ids, in the order in which every poster takes them.
    pub fn even() -> impl Iterator<Item = Self> {
        Self::all().step_by(2)
    }

    /// Those of the customers with odd ids, likewise.
    pub fn odd() -> impl Iterator<Item = Self> {
        Self::all().skip(1).step_by(2)
    }

    /// The one that a customer is in.
    fn of(customer: CustomerId) -> Self {
        Self(usize::try_from(customer.0.unsigned_abs() % SHARES as u64).unwrap_or_default())
    }
}

/// The rows that one batch added to the journal.
#[derive(Debug)]
pub struct Facts {
    /// The batch.
    pub batch: BatchId,
    /// The date it is booked on.
    pub booked_on: NaiveDate,
    /// How many rows there are.
    pub rows: usize,
    /// When the first one happened.
    since: i64,
    /// The rows of each share, one after the other.
    coded: [Vec<u8>; SHARES],
    texts: String,
    /// Where each text ends, by its id; that of no text at the start.
    text_ends: Vec<u32>,
}

/// One row. Most numbers are small, and take little room as variable-length integers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Whose usage.
    pub customer: CustomerId,
    /// When it happened, in microseconds since 1970; of coded rows, since the first one.
    pub occurred_at: i64,
    /// The prices of cost and charge; an outcome has none.
    pub prices: Option<(PriceId, PriceId)>,
    cost: i128,
    charge: i128,
    /// The main classes.
    pub main: [i64; MAIN_CLASS_COUNT],
    /// The others, where there is any of them.
    pub rare: Vec<(TokenClass, i64)>,
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

impl Fact {
    /// What the provider charges us, exact.
    pub const fn cost(&self) -> Amount {
        Amount::from_femtos(self.cost)
    }

    /// What the customer pays, exact.
    pub const fn charge(&self) -> Amount {
        Amount::from_femtos(self.charge)
    }
}

impl Facts {
    /// The rows whose customers are in a share.
    ///
    /// # Errors
    /// [`IngestError::Facts`], after which there is no more.
    pub fn of_share(&self, share: Share) -> impl Iterator<Item = Result<Fact, IngestError>> {
        let mut left = self.coded[share.0].as_slice();
        std::iter::from_fn(move || {
            (!left.is_empty()).then(|| {
                let (mut fact, rest) = postcard::take_from_bytes::<Fact>(std::mem::take(&mut left))?;
                left = rest;
                fact.occurred_at = fact.occurred_at.wrapping_add(self.since);
                Ok(fact)
            })
        })
    }

    /// How many ids of texts there are, [`NO_TEXT`] among them.
    pub const fn text_ids(&self) -> usize {
        self.text_ends.len()
    }

    /// A text by its id.
    pub fn text(&self, text: TextId) -> &str {
        let place = text as usize;
        let start = self.text_ends[place.saturating_sub(1)];
        &self.texts[start as usize..self.text_ends[place] as usize]
    }

    /// Memory that it takes, about.
    pub fn bytes(&self) -> usize {
        self.coded.iter().map(Vec::capacity).sum::<usize>()
            + self.texts.capacity()
            + self.text_ends.capacity() * size_of::<u32>()
    }
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
    /// Where a row is coded.
    coded: [u8; ROW_BYTES_MAX],
}

impl Gathering {
    /// Nothing of a batch yet.
    pub fn new(batch: BatchId, booked_on: NaiveDate) -> Self {
        let facts = Facts {
            batch,
            booked_on,
            rows: 0,
            since: 0,
            coded: std::array::from_fn(|_| Vec::new()),
            texts: String::new(),
            text_ends: vec![0],
        };
        Self { facts, texts: IndexSet::default(), coded: [0; ROW_BYTES_MAX] }
    }

    /// Adds the rows of a recorded event. A reversal of an estimate is none of them: the database makes it.
    ///
    /// # Errors
    /// [`IngestError::Facts`].
    pub fn add_event(&mut self, event: &JournalEvent) -> Result<(), IngestError> {
        if event.parts.is_empty() {
            self.add(&row(event, 0, None))?;
        }
        for (part, number) in event.parts.iter().zip(0_i16..) {
            self.add(&row(event, number, Some(part)))?;
        }
        Ok(())
    }

    /// Adds one row.
    ///
    /// # Errors
    /// [`IngestError::Facts`].
    pub fn add(&mut self, row: &Row<'_>) -> Result<(), IngestError> {
        let occurred_at = row.occurred_at.timestamp_micros();
        if self.facts.rows == 0 {
            self.facts.since = occurred_at;
        }
        let fact = Fact {
            customer: row.customer,
            occurred_at: occurred_at.wrapping_sub(self.facts.since),
            prices: row.cost_price.zip(row.sell_price),
            cost: row.cost.femtos(),
            charge: row.charge.femtos(),
            main: row.quantities.main(),
            rare: row.quantities.rare().collect(),
            project: self.text(row.project),
            task: self.text(row.task),
            task_type: self.text(row.task_type),
            parent: self.text(row.parent),
            model: self.text(row.model.filter(|_| row.kind == RowKind::Usage)),
            calls: row.calls(),
            restated: row.kind == RowKind::Restated,
            outcome: row.outcome.filter(|_| row.kind == RowKind::Outcome),
        };
        let coded = postcard::to_slice(&fact, &mut self.coded)?;
        self.facts.coded[Share::of(row.customer).0].extend_from_slice(coded);
        self.facts.rows += 1;
        Ok(())
    }

    fn text(&mut self, text: Option<&str>) -> TextId {
        text.map_or(NO_TEXT, |text| id_of(&mut self.texts, text))
    }

    /// All that was added.
    pub fn finish(mut self) -> Facts {
        self.facts.texts.reserve_exact(self.texts.iter().map(|text| text.len()).sum());
        self.facts.text_ends.reserve_exact(self.texts.len());
        for text in &self.texts {
            self.facts.texts.push_str(text);
            self.facts.text_ends.push(u32::try_from(self.facts.texts.len()).unwrap_or(u32::MAX));
        }
        self.facts.coded.iter_mut().for_each(Vec::shrink_to_fit);
        self.facts
    }
}

/// The id of a text among others, added where it is new.
pub fn id_of(texts: &mut IndexSet<Box<str>, RandomState>, text: &str) -> TextId {
    let place = texts.get_index_of(text).unwrap_or_else(|| texts.insert_full(text.into()).0);
    // There are fewer texts, and bytes of them, than 2^32.
    TextId::try_from(place + 1).unwrap_or(NO_TEXT)
}
