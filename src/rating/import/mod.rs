//! Reading prices from files: our own JSON and CSV, and the public price lists of others.
//!
//! Owns: the forms of those files, what of them we can hold, and a reason for everything that we cannot.
//! Does not own: fetching files, storing prices (`store::prices`), what publishing changes (`domain::price::publication`).
//! Invariants: pure; a number is read from its text, never through a float; noise of floats is removed and said; nothing
//! is guessed: what a list leaves open is ignored with a reason.

mod csv;
mod genai_prices;
mod litellm;
mod number;
mod openrouter;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;

use crate::domain::price::PriceConditions;
use crate::domain::price::quotation::{NewPrice, Quote};
use crate::domain::tokens::TokenClass;

/// What a list's rates are brought to.
const PER_TOKENS: u64 = 1_000_000;

/// The form of a price file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Our own JSON: an array of prices as the API takes them.
    Json,
    /// Our own CSV: the columns of the API's list of prices.
    Csv,
    /// LiteLLM's price map.
    LiteLlm,
    /// The data file of genai-prices, with its history and conditions.
    GenaiPrices,
    /// OpenRouter's model list (`/api/v1/models`).
    OpenRouter,
}

impl Format {
    /// Every form.
    pub const ALL: [Self; 5] = [Self::Json, Self::Csv, Self::LiteLlm, Self::GenaiPrices, Self::OpenRouter];

    /// Its name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Csv => "csv",
            Self::LiteLlm => "litellm",
            Self::GenaiPrices => "genai-prices",
            Self::OpenRouter => "openrouter",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no form of a price file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no form of a price file; use json, csv, litellm, genai-prices or openrouter")]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        Self::ALL
            .into_iter()
            .find(|format| format.as_str() == name)
            .ok_or_else(|| UnknownFormat(name.chars().take(40).collect()))
    }
}

/// What a list of others does not say itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// The start of prices without a date.
    pub valid_from: DateTime<Utc>,
    /// Where the file is from.
    pub source: String,
    /// When it was read there.
    pub checked_at: NaiveDate,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Import {
    /// Prices that are valid in themselves.
    pub prices: Vec<NewPrice>,
    /// What is not taken, and why.
    pub ignored: Vec<Ignored>,
    /// Numbers that had the noise of a float.
    pub cleaned: Vec<Cleaned>,
}

/// Something in a file that is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// Provider and model, and what of it.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// A number that was brought to the price it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// Provider and model, and what of it.
    pub what: String,
    /// As written.
    pub written: String,
    /// Per unit, as taken.
    pub taken: Decimal,
}

/// Why a file cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Not the JSON that the form asks for.
    #[error("the file is not the JSON of {format}: {error}")]
    Json {
        /// The form.
        format: Format,
        /// What is wrong and where.
        error: serde_json::Error,
    },
    /// Not the CSV that we write.
    #[error("the file is not our CSV: {0}")]
    Csv(String),
}

/// Reads a price file.
///
/// # Errors
/// [`ImportError`] where the file as a whole is not of the form; single prices that cannot be taken are in
/// [`Import::ignored`].
pub fn read(format: Format, file: &[u8], defaults: &Defaults) -> Result<Import, ImportError> {
    let json = |error| ImportError::Json { format, error };
    let mut import = Import::default();
    match format {
        Format::Json => import.prices = serde_json::from_slice(file).map_err(json)?,
        Format::Csv => csv::read(file, &mut import)?,
        Format::LiteLlm => litellm::read(file, defaults, &mut import).map_err(json)?,
        Format::GenaiPrices => genai_prices::read(file, defaults, &mut import).map_err(json)?,
        Format::OpenRouter => openrouter::read(file, defaults, &mut import).map_err(json)?,
    }
    import.keep_valid();
    Ok(import)
}

impl Import {
    fn ignore(&mut self, what: impl Into<String>, reason: impl Into<String>) {
        self.ignored.push(Ignored { what: what.into(), reason: reason.into() });
    }

    /// Moves prices that are wrong in themselves to those ignored.
    fn keep_valid(&mut self) {
        let prices = std::mem::take(&mut self.prices);
        for (index, price) in prices.into_iter().enumerate() {
            match price.check(index) {
                Ok(_) => self.prices.push(price),
                Err(faults) => {
                    let reasons = faults.iter().map(|fault| format!("{}: {}", fault.path, fault.detail));
                    let what = format!("{} {} (price {})", price.provider, price.model, index + 1);
                    self.ignore(what, reasons.collect::<Vec<_>>().join("; "));
                }
            }
        }
    }
}

/// Money per one unit by class.
type UnitRates = BTreeMap<TokenClass, Decimal>;

/// What all prices of a listed model have in common.
#[derive(Debug)]
struct Listed<'a> {
    provider: &'a str,
    model: &'a str,
    aliases: Vec<String>,
    defaults: &'a Defaults,
}

/// One price of a listed model.
#[derive(Debug, Default)]
struct Variant {
    conditions: PriceConditions,
    multiplier: Option<Decimal>,
    valid_from: Option<DateTime<Utc>>,
    valid_to: Option<DateTime<Utc>>,
}

impl Listed<'_> {
    fn what(&self, of_it: &str) -> String {
        format!("{} {} {of_it}", self.provider, self.model)
    }

    fn price(&self, rates: &UnitRates, variant: Variant) -> NewPrice {
        let Variant { conditions, multiplier, valid_from, valid_to } = variant;
        let per_unit =
            |class: &TokenClass| if class.is_fee() { Decimal::ONE } else { Decimal::from(PER_TOKENS) };
        let quoted = rates.iter().map(|(class, rate)| {
            // Out of a decimal's range only for a rate far above the largest that is taken.
            let quote = rate.checked_mul(per_unit(class)).unwrap_or(*rate).normalize();
            (class, Quote(quote.to_string()))
        });
        let (fees, tokens): (Vec<_>, Vec<_>) = quoted.partition(|(class, _)| class.is_fee());
        let named = |quotes: Vec<(&TokenClass, Quote)>| {
            quotes.into_iter().map(|(class, quote)| (class.name().to_owned(), quote)).collect()
        };
        NewPrice {
            provider: self.provider.to_owned(),
            model: self.model.to_owned(),
            aliases: self.aliases.clone(),
            conditions,
            per: Some(PER_TOKENS),
            rates: named(tokens),
            fees: named(fees),
            multiplier: multiplier.map(|factor| Quote(factor.normalize().to_string())),
            valid_from: valid_from.unwrap_or(self.defaults.valid_from),
            valid_to,
            source: Some(self.defaults.source.clone()),
            checked_at: Some(self.defaults.checked_at),
        }
    }
}

/// One set of rates laid over another.
fn overlaid(base: &UnitRates, over: &UnitRates) -> UnitRates {
    let mut rates = base.clone();
    rates.extend(over);
    rates
}

/// Rates of the prompt lengths above which others apply; 0 is the base.
type Tiers = BTreeMap<i64, UnitRates>;

/// The tiers of a variant: its own rates over the base's, at every threshold that either has; a class that the variant
/// sets for any length keeps that rate at the base's thresholds.
fn overlaid_tiers(base: &Tiers, over: &Tiers) -> Tiers {
    let thresholds: BTreeSet<i64> = base.keys().chain(over.keys()).copied().collect();
    thresholds.into_iter().map(|above| (above, overlaid(&up_to(base, above), &up_to(over, above)))).collect()
}

/// What applies above a threshold: the rates of every threshold up to it, the higher over the lower.
fn up_to(tiers: &Tiers, above: i64) -> UnitRates {
    tiers.range(..=above).fold(UnitRates::new(), |rates, (_, over)| overlaid(&rates, over))
}
