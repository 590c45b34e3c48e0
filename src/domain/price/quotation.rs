//! A price as it is published: read from JSON or a file, checked as a whole, brought to rates per single unit.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, NaiveDate, SubsecRound, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::PriceConditions;
use crate::domain::ids::PriceId;
use crate::domain::money::{Amount, MoneyError, Rate, SCALE};
use crate::domain::names::{NAME_BYTES_MAX, is_model, is_provider};
use crate::domain::tokens::TokenClass;

/// Longest source, in characters.
pub(super) const SOURCE_CHARS_MAX: usize = 500;
/// Most aliases of one price.
const ALIASES_MAX: usize = 50;
/// Largest number of units a rate may be quoted for.
pub(super) const PER_MAX: u64 = 1_000_000_000;
/// Decimal places and upper bound of a multiplier, as the database keeps it.
const MULTIPLIER_PLACES: u32 = 6;
const MULTIPLIER_BOUND: i64 = 1000;
/// Validity lies between these instants, in seconds since 1970: 2000-01-01 and 2200-01-01.
pub(super) const VALIDITY_SECONDS: std::ops::RangeInclusive<i64> = 946_684_800..=7_258_118_400;

/// A price to be published: the form of the API and of price files (design section 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPrice {
    /// The provider's name.
    pub provider: String,
    /// The model's canonical name, as calls report it.
    pub model: String,
    /// Other names of the model, valid as long as this price.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// What it asks of a call besides model and time.
    #[serde(default)]
    pub conditions: PriceConditions,
    /// How many units the rates are money for, usually 1000000; needed where there are rates.
    #[serde(default)]
    pub per: Option<u64>,
    /// Money per `per` tokens by token class, as decimal strings.
    #[serde(default, deserialize_with = "distinct_quotes")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub rates: BTreeMap<String, Quote>,
    /// Money per one unit by fee class, as decimal strings; the multiplier leaves them alone.
    #[serde(default, deserialize_with = "distinct_quotes")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub fees: BTreeMap<String, Quote>,
    /// Applied to every rate when it is published, rounded half away from zero to 15 places per unit.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub multiplier: Option<Quote>,
    /// First instant of validity.
    pub valid_from: DateTime<Utc>,
    /// First instant after validity; none is open.
    #[serde(default)]
    pub valid_to: Option<DateTime<Utc>>,
    /// Where it was read.
    #[serde(default)]
    pub source: Option<String>,
    /// When it was last seen there.
    #[serde(default)]
    pub checked_at: Option<NaiveDate>,
}

/// A decimal as somebody wrote it, not yet checked; a JSON number is refused, because it may have been a float.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Quote(pub String);

impl<'de> Deserialize<'de> for Quote {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Quote;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a decimal in quotes, such as \"2.5\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quote, E> {
                Ok(Quote(text.to_owned()))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl Quote {
    /// The exact decimal.
    ///
    /// # Errors
    /// [`MoneyError`] where it is no plain decimal or has more than 15 places or too many digits.
    pub fn exact(&self) -> Result<Decimal, MoneyError> {
        let amount: Amount = self.0.parse()?;
        Decimal::try_from_i128_with_scale(amount.femtos(), SCALE)
            .map(|decimal| decimal.normalize())
            .map_err(|_| MoneyError::OutOfRange(amount.to_string()))
    }
}

/// Quotes by name, a name given twice refused: which of the two would be meant?
///
/// # Errors
/// The deserializer's.
pub fn distinct_quotes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Quote>, D::Error> {
    struct Quotes;
    impl<'de> de::Visitor<'de> for Quotes {
        type Value = BTreeMap<String, Quote>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of decimals in quotes")
        }

        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut quotes = BTreeMap::new();
            while let Some((class, quote)) = map.next_entry::<String, Quote>()? {
                if quotes.contains_key(&class) {
                    return Err(de::Error::custom(format_args!("`{class}` is given twice")));
                }
                quotes.insert(class, quote);
            }
            Ok(quotes)
        }
    }
    deserializer.deserialize_map(Quotes)
}

/// Why a price is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, utoipa::ToSchema)]
#[error("prices[{index}].{path}: {detail}")]
pub struct PriceFault {
    /// Its position among those published together.
    pub index: usize,
    /// The field, as in `rates.output`.
    pub path: String,
    /// What is wrong and what to do.
    pub detail: String,
    /// The standing price it collides with.
    #[schema(value_type = Option<i64>)]
    pub conflicts_with: Option<PriceId>,
}

/// A rate as quoted and as charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotedRate {
    /// Money per the price's `per` units (a fee: per one unit), before the multiplier.
    pub quoted: Amount,
    /// Money per one unit, the multiplier in it.
    pub rate: Rate,
    /// Whether the multiplication had to be rounded.
    pub rounded: bool,
}

/// A price that is valid in itself; whether it fits beside the others is [`super::publication::plan`]'s to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceDraft {
    /// The provider's name, lower case.
    pub provider: String,
    /// The model's canonical name.
    pub model: String,
    /// Other names of the model.
    pub aliases: Vec<String>,
    /// What it asks of a call, normalized.
    pub conditions: PriceConditions,
    /// The conditions as one text.
    pub conditions_key: String,
    /// Units the rates are quoted for.
    pub per: i64,
    /// What the rates were multiplied with.
    pub multiplier: Decimal,
    /// Its own rates, without those of parents.
    pub rates: BTreeMap<TokenClass, QuotedRate>,
    /// First instant of validity.
    pub valid_from: DateTime<Utc>,
    /// First instant after validity; `None` is open.
    pub valid_to: Option<DateTime<Utc>>,
    /// Where it was read.
    pub source: Option<String>,
    /// When it was last seen there.
    pub checked_at: Option<NaiveDate>,
}

impl PriceDraft {
    /// Classes whose rate the multiplier made inexact, so that it was rounded.
    pub fn rounded(&self) -> impl Iterator<Item = TokenClass> + '_ {
        self.rates.iter().filter(|(_, quote)| quote.rounded).map(|(class, _)| *class)
    }

    /// Whether both charge the same for the same calls while they are valid.
    pub fn same_terms(&self, other: &Self) -> bool {
        self.conditions_key == other.conditions_key && self.own_rates() == other.own_rates()
    }

    /// Its own rates per single unit, without those of parents.
    pub fn own_rates(&self) -> BTreeMap<TokenClass, Rate> {
        self.rates.iter().map(|(class, quote)| (*class, quote.rate)).collect()
    }
}

/// Gathers what is wrong with one price.
struct Faults {
    index: usize,
    found: Vec<PriceFault>,
}

impl Faults {
    fn add(&mut self, path: impl Into<String>, detail: impl Into<String>) {
        let fault =
            PriceFault { index: self.index, path: path.into(), detail: detail.into(), conflicts_with: None };
        self.found.push(fault);
    }
}

impl NewPrice {
    /// What it is a price of: provider, model, conditions and start.
    pub fn title(&self) -> String {
        let conditions =
            self.conditions.key().unwrap_or_else(|_| "conditions that cannot be read".to_owned());
        format!("{} {} ({conditions}) from {}", self.provider, self.model, self.valid_from)
    }

    /// Checks everything that can be checked without the other prices.
    ///
    /// # Errors
    /// Every [`PriceFault`] found, with `index` in each.
    pub fn check(&self, index: usize) -> Result<PriceDraft, Vec<PriceFault>> {
        let mut faults = Faults { index, found: Vec::new() };
        let provider = self.provider.to_ascii_lowercase();
        check_names(self, &mut faults);
        check_validity(self, &mut faults);
        let conditions = self.conditions.clone().normalized().unwrap_or_else(|fault| {
            faults.add(fault.path, fault.detail);
            PriceConditions::default()
        });
        let conditions_key = conditions.key().unwrap_or_default();
        let multiplier = check_multiplier(self.multiplier.as_ref(), &mut faults);
        let per = check_per(self, &mut faults);
        let mut rates = BTreeMap::new();
        quoted_rates(&self.rates, false, per, multiplier, &mut rates, &mut faults);
        quoted_rates(&self.fees, true, 1, Decimal::ONE, &mut rates, &mut faults);
        if self.rates.is_empty() && self.fees.is_empty() {
            faults.add("rates", "has no rate and no fee; a free class has the rate \"0\"");
        }
        if !faults.found.is_empty() {
            return Err(faults.found);
        }
        Ok(PriceDraft {
            provider,
            model: self.model.clone(),
            aliases: self.aliases.clone(),
            conditions,
            conditions_key,
            per: i64::try_from(per).unwrap_or(1),
            multiplier,
            rates,
            valid_from: self.valid_from.trunc_subsecs(6),
            valid_to: self.valid_to.map(|end| end.trunc_subsecs(6)),
            source: self.source.clone(),
            checked_at: self.checked_at,
        })
    }
}

fn check_names(price: &NewPrice, faults: &mut Faults) {
    if !is_provider(&price.provider.to_ascii_lowercase()) {
        faults.add("provider", format!("is not 1 to {NAME_BYTES_MAX} of a-z 0-9 . _ : -"));
    }
    check_model_name("model", &price.model, faults);
    if price.aliases.len() > ALIASES_MAX {
        faults.add("aliases", format!("has more than {ALIASES_MAX} names"));
    }
    for (position, alias) in price.aliases.iter().enumerate() {
        let path = format!("aliases[{position}]");
        check_model_name(&path, alias, faults);
        if *alias == price.model {
            faults.add(path, "is the model's own name; leave it out");
        }
    }
    if let Some(source) = &price.source
        && (source.is_empty()
            || source.chars().count() > SOURCE_CHARS_MAX
            || source.contains(char::is_control))
    {
        faults.add("source", format!("is not 1 to {SOURCE_CHARS_MAX} printable characters"));
    }
}

fn check_model_name(path: &str, name: &str, faults: &mut Faults) {
    if !is_model(name) {
        let detail = format!(
            "is not 1 to {NAME_BYTES_MAX} printable ASCII characters without blanks at its ends, as calls name models"
        );
        faults.add(path, detail);
    }
}

fn check_validity(price: &NewPrice, faults: &mut Faults) {
    if !VALIDITY_SECONDS.contains(&price.valid_from.timestamp()) {
        faults.add("valid_from", "is not between 2000-01-01 and 2200-01-01");
    }
    if let Some(end) = price.valid_to {
        if !VALIDITY_SECONDS.contains(&end.timestamp()) {
            faults.add("valid_to", "is not between 2000-01-01 and 2200-01-01");
        } else if end.trunc_subsecs(6) <= price.valid_from.trunc_subsecs(6) {
            faults.add("valid_to", "is not after valid_from; validity is half-open, [valid_from, valid_to)");
        }
    }
}

fn check_multiplier(quote: Option<&Quote>, faults: &mut Faults) -> Decimal {
    let Some(quote) = quote else {
        return Decimal::ONE;
    };
    match quote.exact() {
        Ok(value)
            if !value.is_sign_negative()
                && value < Decimal::from(MULTIPLIER_BOUND)
                && value.scale() <= MULTIPLIER_PLACES =>
        {
            return value;
        }
        Ok(value) => {
            let places = MULTIPLIER_PLACES;
            let detail =
                format!("{value} is not from 0 to below {MULTIPLIER_BOUND} with at most {places} places");
            faults.add("multiplier", detail);
        }
        Err(error) => faults.add("multiplier", error.to_string()),
    }
    Decimal::ONE
}

fn check_per(price: &NewPrice, faults: &mut Faults) -> u64 {
    match price.per {
        Some(per) if (1..=PER_MAX).contains(&per) => per,
        None if price.rates.is_empty() => 1,
        None => {
            faults.add("per", "is missing: say how many tokens the rates are money for, usually 1000000");
            1
        }
        Some(per) => {
            faults.add("per", format!("{per} is not from 1 to {PER_MAX}"));
            1
        }
    }
}

fn quoted_rates(
    quotes: &BTreeMap<String, Quote>,
    fees: bool,
    per: u64,
    multiplier: Decimal,
    rates: &mut BTreeMap<TokenClass, QuotedRate>,
    faults: &mut Faults,
) {
    let field = if fees { "fees" } else { "rates" };
    for (name, quote) in quotes {
        let path = format!("{field}.{}", name.chars().take(40).collect::<String>());
        let class: TokenClass = match name.parse() {
            Ok(class) => class,
            Err(error) => {
                let known =
                    TokenClass::ALL.into_iter().filter(|class| class.is_fee() == fees).map(TokenClass::name);
                faults.add(path, format!("{error}; use one of: {}", known.collect::<Vec<_>>().join(", ")));
                continue;
            }
        };
        if class.is_fee() != fees {
            let other = if fees { "rates" } else { "fees" };
            faults.add(path, format!("`{name}` belongs under `{other}`"));
            continue;
        }
        match quote.exact().and_then(|exact| Rate::from_quote(exact, per, multiplier)) {
            Ok((rate, rounded)) => {
                let as_written = quote.0.parse().unwrap_or_default();
                rates.insert(class, QuotedRate { quoted: as_written, rate, rounded });
            }
            Err(error) => faults.add(path, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(json: &str) -> NewPrice {
        serde_json::from_str(json).unwrap()
    }

    fn gpt_5(rates: &str, rest: &str) -> String {
        format!(
            r#"{{"provider":"OpenAI","model":"gpt-5","per":1000000,"rates":{rates},
                "valid_from":"2025-08-07T00:00:00Z"{rest}}}"#
        )
    }

    fn paths(json: &str) -> Vec<String> {
        price(json).check(3).unwrap_err().into_iter().map(|fault| fault.path).collect()
    }

    #[test]
    fn a_quote_becomes_exact_rates_per_token() {
        let draft = price(&gpt_5(
            r#"{"input":"1.25","cache_read":"0.125","output":"10.00"}"#,
            r#","fees":{"web_search":"0.01"},"multiplier":"1.1""#,
        ))
        .check(0)
        .unwrap();
        assert_eq!(draft.provider, "openai");
        let rate = |class| draft.rates[&class].rate.per_unit().to_string();
        assert_eq!(rate(TokenClass::Input), "0.000001375");
        assert_eq!(rate(TokenClass::CacheRead), "0.0000001375");
        assert_eq!(rate(TokenClass::Output), "0.000011");
        assert_eq!(rate(TokenClass::WebSearch), "0.01", "a multiplier is for tokens");
        assert_eq!(draft.rates[&TokenClass::Output].quoted.to_string(), "10");
        assert_eq!(draft.rounded().count(), 0);
    }

    #[test]
    fn a_multiplier_that_does_not_come_out_even_is_rounded_and_said() {
        let draft = price(&gpt_5(r#"{"input":"0.000000001","output":"1"}"#, r#","multiplier":"1.5""#))
            .check(0)
            .unwrap();
        assert_eq!(draft.rates[&TokenClass::Input].rate.femtos(), 2, "1.5 femtos, half away from zero");
        assert_eq!(draft.rounded().collect::<Vec<_>>(), [TokenClass::Input]);
    }

    #[test]
    fn every_fault_names_its_field() {
        assert_eq!(paths(&gpt_5(r#"{"input":"-1"}"#, "")), ["rates.input"]);
        assert_eq!(paths(&gpt_5(r#"{"input":"NaN"}"#, "")), ["rates.input"]);
        assert_eq!(paths(&gpt_5(r#"{"input":"1e-6"}"#, "")), ["rates.input"]);
        assert_eq!(paths(&gpt_5(r#"{"input":"1.123456789012345678901234567890"}"#, "")), ["rates.input"]);
        assert_eq!(paths(&gpt_5(r#"{"input":"0.0000000001"}"#, "")), ["rates.input"], "16 places per token");
        assert_eq!(paths(&gpt_5(r#"{"input":"1000000000001"}"#, "")), ["rates.input"]);
        assert_eq!(
            paths(&gpt_5(r#"{"prompt":"1","web_search":"1"}"#, "")),
            ["rates.prompt", "rates.web_search"]
        );
        assert_eq!(paths(&gpt_5(r#"{"input":"1"}"#, r#","fees":{"output":"1"}"#)), ["fees.output"]);
        assert_eq!(paths(&gpt_5("{}", "")), ["rates"]);
        assert_eq!(paths(&gpt_5(r#"{"input":"1"}"#, r#","multiplier":"-1""#)), ["multiplier"]);
        assert_eq!(paths(&gpt_5(r#"{"input":"1"}"#, r#","multiplier":"1.1234567""#)), ["multiplier"]);
        assert_eq!(paths(&gpt_5(r#"{"input":"1"}"#, r#","valid_to":"2025-08-07T00:00:00Z""#)), ["valid_to"]);
        assert_eq!(paths(&gpt_5(r#"{"input":"1"}"#, r#","aliases":["gpt-5"]"#)), ["aliases[0]"]);
        let unit_less =
            r#"{"provider":"x","model":"","rates":{"input":"1"},"valid_from":"2025-08-07T00:00:00Z"}"#;
        assert_eq!(paths(unit_less), ["model", "per"]);
    }

    #[test]
    fn whatever_a_call_may_carry_a_price_can_name_and_nothing_else() {
        let named = |provider: &str, model: &str, region: &str| {
            let price = serde_json::json!({"provider": provider, "model": model, "aliases": ["Same Deployment 2"],
                "conditions": {"region": region}, "per": 1, "rates": {"input": "1"},
                "valid_from": "2025-08-07T00:00:00Z"});
            let faults =
                serde_json::from_value::<NewPrice>(price).unwrap().check(0).err().unwrap_or_default();
            faults.into_iter().map(|fault| fault.path).collect::<Vec<_>>()
        };
        for provider in ["gcp.vertex_ai", "urn:provider:x", "OpenAI"] {
            assert_eq!(named(provider, "My Deployment", "eu:west-1"), [""; 0], "{provider}");
        }
        assert_eq!(named("open/ai", "gpt-5", "eu"), ["provider"]);
        for model in ["", " gpt-5", "gpt-5 ", "gpt\u{a0}5", "gрt-5", "gpt\n5", &"m".repeat(129)] {
            assert_eq!(named("openai", model, "eu"), ["model"], "{model}");
        }
        for region in ["eu/west", "eu west", "ö"] {
            assert_eq!(named("openai", "gpt-5", region), ["conditions.region"], "{region}");
        }
        assert_eq!(named("openai", "gpt-5", &"e".repeat(128)), [""; 0]);
    }

    #[test]
    fn a_number_without_quotes_and_a_class_given_twice_do_not_even_parse() {
        let error =
            |rates: &str| serde_json::from_str::<NewPrice>(&gpt_5(rates, "")).unwrap_err().to_string();
        assert!(error(r#"{"input":2.5}"#).contains("a decimal in quotes"), "{}", error(r#"{"input":2.5}"#));
        assert!(error(r#"{"input":"1","input":"2"}"#).contains("given twice"));
    }

    #[test]
    fn it_reads_back_what_it_writes() {
        let read = price(&gpt_5(r#"{"input":"1.25"}"#, r#","conditions":{"context_above":200000}"#));
        assert_eq!(serde_json::from_str::<NewPrice>(&serde_json::to_string(&read).unwrap()).unwrap(), read);
    }
}
