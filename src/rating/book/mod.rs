//! One price book, indexed for rating.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use foldhash::HashMap;

use crate::domain::event::{CallConditions, UsagePart};
use crate::domain::ids::PriceId;
use crate::domain::money::{Amount, Rate};
use crate::domain::price::conditions::{
    ConditionFault, Specificity, WeekWindows, is_standard, minute_of_week,
};
use crate::domain::price::publication::Plan;
use crate::domain::price::{BookInfo, ModelAlias, Price, covers, intervals_meet, resolve_parents};
use crate::domain::tokens::{Quantities, TokenClass};

/// What a usage part costs in one book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rated {
    /// The price that applied.
    pub price: PriceId,
    /// The exact amount, in the book's currency.
    pub amount: Amount,
    /// Whether the price has a fee per request and the part counts none: the call itself is one, and is in the amount.
    pub own_request: bool,
}

impl Rated {
    /// The quantities that give the amount.
    #[must_use]
    pub const fn counted(&self, quantities: Quantities) -> Quantities {
        if self.own_request { quantities.with_own_request() } else { quantities }
    }
}

/// Why a usage part has no amount: a state with a name, never zero.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unpriced {
    /// The book has neither a price nor an alias of this name.
    #[error(
        "price book `{book}` knows no model `{model}` of provider `{provider}`; publish a price or an alias for it"
    )]
    UnknownModel {
        /// The book's name.
        book: String,
        /// The provider of the call.
        provider: String,
        /// The model of the call.
        model: String,
    },
    /// The model is known, but no price is valid at that time.
    #[error(
        "price book `{book}` has no price of `{provider}` `{model}` at {at}; publish one that is valid then"
    )]
    NoPriceAt {
        /// The book's name.
        book: String,
        /// The provider of the call.
        provider: String,
        /// The model of the call.
        model: String,
        /// When the call happened.
        at: DateTime<Utc>,
    },
    /// Prices are valid at that time, but none is for such a call.
    #[error(
        "price book `{book}` has prices of `{provider}` `{model}` at {at}, but none for {conditions}; publish one: \
         another tier's price is not taken in its place"
    )]
    NoPriceFor {
        /// The book's name.
        book: String,
        /// The provider of the call.
        provider: String,
        /// The model of the call.
        model: String,
        /// When the call happened.
        at: DateTime<Utc>,
        /// What the call was like.
        conditions: String,
    },
    /// The price that applies has no rate for something the call used.
    #[error("price {price} of `{model}` has no rate for {quantity} {class}; publish a price that has one")]
    NoRate {
        /// The price that applied.
        price: PriceId,
        /// Its model.
        model: String,
        /// The class without a rate.
        class: TokenClass,
        /// How much of it was used.
        quantity: i64,
    },
    /// The amount does not fit.
    #[error("the amount at price {price} is out of range")]
    Overflow {
        /// The price that applied.
        price: PriceId,
    },
}

/// Why prices make no book.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// A price's conditions cannot be read.
    #[error("price {price} has conditions that cannot be read: {fault}")]
    Conditions {
        /// The price.
        price: PriceId,
        /// What is wrong with it.
        fault: ConditionFault,
    },
    /// One call could match both, and neither is more specific.
    #[error("prices {0} and {1} could both apply to one call")]
    Ambiguous(PriceId, PriceId),
}

/// A price with its conditions made ready to compare.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) price: Price,
    windows: Option<WeekWindows>,
    pub(super) specificity: Specificity,
}

#[derive(Debug, Clone, Default)]
struct ProviderPrices {
    /// By model, most specific first; of equal ones the explicit before the derived.
    models: HashMap<String, Vec<Entry>>,
    /// By alias, the book's own before inherited ones.
    aliases: HashMap<String, Vec<ModelAlias>>,
}

/// The prices of one book, ready to rate with.
#[derive(Debug, Clone)]
pub struct PriceBook {
    info: BookInfo,
    providers: HashMap<String, ProviderPrices>,
}

/// What of a call a price is compared with.
pub(super) struct Call<'a> {
    at: DateTime<Utc>,
    minute_of_week: u16,
    tier_input: i64,
    conditions: &'a CallConditions,
}

impl<'a> Call<'a> {
    pub(super) fn of(part: &'a UsagePart, at: DateTime<Utc>) -> Self {
        Self {
            at,
            minute_of_week: minute_of_week(at),
            tier_input: part.tier_input,
            conditions: &part.conditions,
        }
    }
}

/// Something that a price asks of a call besides its model and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Where the model runs.
    Platform,
    /// Region or geography.
    Region,
    /// Service tier served.
    ServiceTier,
    /// Batch or interactive.
    Processing,
    /// Speed.
    Speed,
    /// Length of the whole prompt.
    Context,
    /// Time of day and weekday.
    Times,
}

impl Condition {
    /// Every one, in the order of the fields of a price.
    pub const ALL: [Self; 7] = [
        Self::Platform,
        Self::Region,
        Self::ServiceTier,
        Self::Processing,
        Self::Speed,
        Self::Context,
        Self::Times,
    ];

    /// The field of a price that says it.
    pub const fn field(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Region => "region",
            Self::ServiceTier => "service_tier",
            Self::Processing => "processing",
            Self::Speed => "speed",
            Self::Context => "context_above",
            Self::Times => "hours_utc",
        }
    }
}

impl PriceBook {
    /// Indexes a book's standing prices and aliases; their order does not matter.
    ///
    /// # Errors
    /// [`BookError`] where a price cannot be read, or two of them could apply to one call alike.
    pub fn new(info: BookInfo, prices: Vec<Price>, aliases: Vec<ModelAlias>) -> Result<Self, BookError> {
        let mut providers: HashMap<String, ProviderPrices> = HashMap::default();
        for price in prices {
            let unreadable = |fault| BookError::Conditions { price: price.id, fault };
            let windows = price.conditions.windows().map_err(unreadable)?;
            let specificity = price.conditions.specificity().map_err(unreadable)?;
            let models = &mut providers.entry(price.provider.clone()).or_default().models;
            models.entry(price.model.clone()).or_default().push(Entry { price, windows, specificity });
        }
        for alias in aliases {
            let known = &mut providers.entry(alias.provider.clone()).or_default().aliases;
            known.entry(alias.alias.clone()).or_default().push(alias);
        }
        for provider in providers.values_mut() {
            for entries in provider.models.values_mut() {
                entries.sort_by_key(|entry| {
                    (Reverse(entry.specificity), entry.price.derived, entry.price.valid_from, entry.price.id)
                });
                refuse_ambiguity(entries)?;
            }
            for meanings in provider.aliases.values_mut() {
                meanings.sort_by_key(|alias| (alias.inherited, alias.valid_from));
            }
        }
        Ok(Self { info, providers })
    }

    /// The book that a plan makes of an empty one; its prices are numbered from 1 on.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn planned(info: BookInfo, plan: Plan) -> Result<Self, BookError> {
        let rows = plan.rows.into_iter().zip(1..).map(|(draft, id)| Price {
            id: PriceId(id),
            book: info.id,
            rates: resolve_parents(&draft.own_rates()),
            provider: draft.provider,
            model: draft.model,
            conditions: draft.conditions,
            valid_from: draft.valid_from,
            valid_to: draft.valid_to,
            recorded_at: draft.valid_from,
            derived: false,
        });
        let prices = rows.collect();
        Self::new(info, prices, plan.aliases)
    }

    /// The book's name, kind and currency.
    pub const fn info(&self) -> &BookInfo {
        &self.info
    }

    /// The exact amount of a usage part at its own time.
    ///
    /// # Errors
    /// [`Unpriced`].
    pub fn rate(&self, part: &UsagePart, at: DateTime<Utc>) -> Result<Rated, Unpriced> {
        amount(self.choose(part, at)?, part)
    }

    /// The one price that applies to a usage part at a time: of the model by its own name, or else by the alias that
    /// is valid then; the most specific of those that match the call.
    ///
    /// # Errors
    /// [`Unpriced`], except for what the quantities may still bring.
    pub fn choose(&self, part: &UsagePart, at: DateTime<Utc>) -> Result<&Price, Unpriced> {
        self.find(&part.model, part, at).ok_or_else(|| self.unpriced(part, at))
    }

    /// As [`choose`](Self::choose), for a model by any name; without saying why there is none, so it never allocates.
    pub(super) fn find(&self, model: &str, part: &UsagePart, at: DateTime<Utc>) -> Option<&Price> {
        let call = Call::of(part, at);
        let mut entries = self.meant(model, part, at)?.iter();
        entries.find(|entry| entry.matches(&call)).map(|entry| &entry.price)
    }

    /// The name that prices have for a model at a time; `None` where neither a price nor an alias knows it.
    pub fn canonical(&self, part: &UsagePart, at: DateTime<Utc>) -> Option<&str> {
        Some(self.meant(&part.model, part, at)?.first()?.price.model.as_str())
    }

    /// The prices that a model's name means at a time, valid then or not.
    fn meant(&self, model: &str, part: &UsagePart, at: DateTime<Utc>) -> Option<&Vec<Entry>> {
        let provider = self.providers.get(part.provider.as_str())?;
        match provider.models.get(model) {
            Some(entries) if any_valid(entries, at) => Some(entries),
            named => provider.by_alias(model, at).or(named),
        }
    }

    /// Every name of a model at a time, its own and aliases, with the name that its prices have; models without a valid
    /// price are left out.
    pub(super) fn names(&self, at: DateTime<Utc>) -> BTreeMap<(&str, &str), &str> {
        let mut names = BTreeMap::new();
        for (provider, known) in &self.providers {
            for alias in known.aliases.keys() {
                let meant = known.by_alias(alias, at).filter(|entries| any_valid(entries, at));
                if let Some(entry) = meant.and_then(|entries| entries.first()) {
                    names.insert((provider.as_str(), alias.as_str()), entry.price.model.as_str());
                }
            }
            // A name of its own goes before an alias.
            for (model, _) in known.models.iter().filter(|(_, entries)| any_valid(entries, at)) {
                names.insert((provider.as_str(), model.as_str()), model.as_str());
            }
        }
        names
    }

    /// The prices of a model by its own name that are valid at a time; of equal conditions the explicit one first.
    pub(super) fn valid(
        &self,
        provider: &str,
        model: &str,
        at: DateTime<Utc>,
    ) -> impl Iterator<Item = &Price> {
        let entries = self.providers.get(provider).and_then(|known| known.models.get(model));
        entries.into_iter().flatten().filter(move |entry| entry.valid_at(at)).map(|entry| &entry.price)
    }

    pub(super) fn by_name(&self, part: &UsagePart) -> Option<&Vec<Entry>> {
        self.providers.get(part.provider.as_str())?.models.get(part.model.as_str())
    }

    pub(super) fn by_alias(&self, part: &UsagePart, at: DateTime<Utc>) -> Option<&Vec<Entry>> {
        self.providers.get(part.provider.as_str())?.by_alias(&part.model, at)
    }

    fn unpriced(&self, part: &UsagePart, at: DateTime<Utc>) -> Unpriced {
        self.meant(&part.model, part, at)
            .map_or_else(|| self.unknown(part, at), |entries| self.no_price(part, at, entries))
    }

    fn unknown(&self, part: &UsagePart, at: DateTime<Utc>) -> Unpriced {
        let provider = self.providers.get(part.provider.as_str());
        let (book, model) = (self.info.name.clone(), part.model.to_string());
        if provider.is_some_and(|known| known.aliases.contains_key(part.model.as_str())) {
            return Unpriced::NoPriceAt { book, provider: part.provider.to_string(), model, at };
        }
        Unpriced::UnknownModel { book, provider: part.provider.to_string(), model }
    }

    fn no_price(&self, part: &UsagePart, at: DateTime<Utc>, entries: &[Entry]) -> Unpriced {
        let (book, provider, model) =
            (self.info.name.clone(), part.provider.to_string(), part.model.to_string());
        if entries.iter().any(|entry| entry.valid_at(at)) {
            let conditions = describe(part);
            return Unpriced::NoPriceFor { book, provider, model, at, conditions };
        }
        Unpriced::NoPriceAt { book, provider, model, at }
    }
}

/// The exact amount of a usage part at a price, a fee for the call itself included.
///
/// # Errors
/// [`Unpriced::NoRate`], [`Unpriced::Overflow`].
pub(super) fn amount(price: &Price, part: &UsagePart) -> Result<Rated, Unpriced> {
    let used = &part.quantities;
    let fee = price.rate(TokenClass::Request).filter(|_| used.lacks_request());
    let mut sum = fee.map_or(Amount::ZERO, Rate::per_unit);
    for (class, quantity) in used.non_zero() {
        let Some(rate) = price.rate(class) else {
            if class == TokenClass::Request && used.has_only_own_request() {
                continue;
            }
            return Err(Unpriced::NoRate { price: price.id, model: price.model.clone(), class, quantity });
        };
        sum = rate
            .times(quantity)
            .and_then(|amount| sum.checked_add(amount))
            .ok_or(Unpriced::Overflow { price: price.id })?;
    }
    Ok(Rated { price: price.id, amount: sum, own_request: fee.is_some() })
}

impl ProviderPrices {
    fn by_alias(&self, name: &str, at: DateTime<Utc>) -> Option<&Vec<Entry>> {
        let meanings = self.aliases.get(name)?;
        let meaning = meanings.iter().find(|alias| covers(alias.valid_from, alias.valid_to, at))?;
        self.models.get(&meaning.model)
    }
}

impl Entry {
    pub(super) fn valid_at(&self, at: DateTime<Utc>) -> bool {
        covers(self.price.valid_from, self.price.valid_to, at)
    }

    pub(super) fn matches(&self, call: &Call<'_>) -> bool {
        self.valid_at(call.at) && Condition::ALL.iter().all(|condition| self.meets(*condition, call))
    }

    pub(super) fn meets(&self, condition: Condition, call: &Call<'_>) -> bool {
        let (asked, made) = (&self.price.conditions, call.conditions);
        match condition {
            Condition::Platform => allows(asked.platform.as_deref(), made.platform.as_deref()),
            Condition::Region => allows(asked.region.as_deref(), made.region.as_deref()),
            Condition::ServiceTier => equals(asked.service_tier.as_deref(), made.service_tier.as_deref()),
            Condition::Processing => equals(asked.processing.as_deref(), made.processing.as_deref()),
            Condition::Speed => equals(asked.speed.as_deref(), made.speed.as_deref()),
            Condition::Context => asked.context_above.is_none_or(|above| {
                call.tier_input > above || (asked.context_inclusive && call.tier_input == above)
            }),
            Condition::Times => {
                self.windows.as_ref().is_none_or(|windows| windows.contains(call.minute_of_week))
            }
        }
    }
}

fn any_valid(entries: &[Entry], at: DateTime<Utc>) -> bool {
    entries.iter().any(|entry| entry.valid_at(at))
}

/// A platform or region that the price does not name is any.
fn allows(asked: Option<&str>, made: Option<&str>) -> bool {
    asked.is_none_or(|asked| made.is_some_and(|made| asked.eq_ignore_ascii_case(made)))
}

/// A tier, processing or speed that the price does not name is the standard one.
fn equals(asked: Option<&str>, made: Option<&str>) -> bool {
    let asked = asked.filter(|name| !is_standard(name));
    let made = made.filter(|name| !is_standard(name));
    match (asked, made) {
        (None, None) => true,
        (Some(asked), Some(made)) => asked.eq_ignore_ascii_case(made),
        _ => false,
    }
}

fn refuse_ambiguity(entries: &[Entry]) -> Result<(), BookError> {
    for (index, left) in entries.iter().enumerate() {
        for right in &entries[index + 1..] {
            let (a, b) = (&left.price, &right.price);
            let meet = a.derived == b.derived
                && intervals_meet((a.valid_from, a.valid_to), (b.valid_from, b.valid_to));
            let unreadable = |fault| BookError::Conditions { price: a.id, fault };
            if meet && a.conditions.ambiguous_with(&b.conditions).map_err(unreadable)? {
                return Err(BookError::Ambiguous(a.id, b.id));
            }
        }
    }
    Ok(())
}

/// The conditions of a call in words, for a message.
fn describe(part: &UsagePart) -> String {
    let made = &part.conditions;
    let names = [
        ("platform", &made.platform),
        ("region", &made.region),
        ("service_tier", &made.service_tier),
        ("processing", &made.processing),
        ("speed", &made.speed),
    ];
    let mut words: Vec<String> = names
        .iter()
        .filter_map(|(field, name)| name.as_ref().map(|name| format!("{field} `{name}`")))
        .collect();
    words.push(format!("a prompt of {} tokens", part.tier_input));
    words.join(", ")
}

#[cfg(test)]
mod tests;
