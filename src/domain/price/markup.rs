//! Sell prices made from cost prices: every rate times a factor.

use std::collections::BTreeMap;

use rust_decimal::Decimal;

use super::quotation::{PriceDraft, Quote, QuotedRate};
use crate::domain::money::MoneyError;
use crate::domain::names::{NAME_BYTES_MAX, is_model};

/// Upper bound of a factor, and its decimal places, as the database keeps it.
const FACTOR_BOUND: i64 = 1000;
const FACTOR_PLACES: u32 = 6;

/// The factors of a markup book; `1.2` is cost plus 20 %.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Markup {
    /// For models that no pattern matches.
    pub general: Decimal,
    /// By model name, or beginning of one and `*`.
    pub by_model: BTreeMap<String, Decimal>,
}

/// Why a factor or a pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarkupError {
    /// Not a factor.
    #[error("`{0}` is not a decimal from 0 to below 1000 with at most 6 places; cost plus 20 % is 1.2")]
    Factor(String),
    /// Not a pattern.
    #[error("`{0}` is not a model's name, or the beginning of one followed by `*`")]
    Pattern(String),
}

impl Markup {
    /// Reads a book's factors.
    ///
    /// # Errors
    /// [`MarkupError`].
    pub fn read(general: &Quote, by_model: &BTreeMap<String, Quote>) -> Result<Self, MarkupError> {
        let by_model = by_model.iter().map(|(pattern, quote)| {
            let beginning = pattern.strip_suffix('*').unwrap_or(pattern);
            if beginning.is_empty() || !is_model(pattern) || beginning.contains('*') {
                return Err(MarkupError::Pattern(pattern.chars().take(NAME_BYTES_MAX).collect()));
            }
            Ok((pattern.clone(), factor(quote)?))
        });
        Ok(Self { general: factor(general)?, by_model: by_model.collect::<Result<_, _>>()? })
    }

    /// The factor of a model: of its own name, else of the longest beginning that matches, else the general one.
    pub fn factor(&self, model: &str) -> Decimal {
        if let Some(factor) = self.by_model.get(model) {
            return *factor;
        }
        let matching = self.by_model.iter().filter(|(pattern, _)| {
            pattern.strip_suffix('*').is_some_and(|beginning| model.starts_with(beginning))
        });
        matching.max_by_key(|(pattern, _)| pattern.len()).map_or(self.general, |(_, factor)| *factor)
    }

    /// The sell price of a cost price at a factor, each rate rounded half away from zero to 15 places.
    ///
    /// # Errors
    /// [`MoneyError::OutOfRange`].
    pub fn apply(factor: Decimal, cost: &PriceDraft) -> Result<PriceDraft, MoneyError> {
        let mut rates = BTreeMap::new();
        for (class, quote) in &cost.rates {
            let (rate, rounded) = quote.rate.marked_up(factor)?;
            let per = if class.is_fee() { 1 } else { cost.per };
            let quoted =
                rate.times(per).ok_or_else(|| MoneyError::OutOfRange(rate.per_unit().to_string()))?;
            rates.insert(*class, QuotedRate { quoted, rate, rounded });
        }
        Ok(PriceDraft { rates, multiplier: Decimal::ONE, source: None, checked_at: None, ..cost.clone() })
    }
}

fn factor(quote: &Quote) -> Result<Decimal, MarkupError> {
    let refused = || MarkupError::Factor(quote.0.chars().take(40).collect());
    let factor = quote.exact().map_err(|_| refused())?;
    let fits =
        !factor.is_sign_negative() && factor < Decimal::from(FACTOR_BOUND) && factor.scale() <= FACTOR_PLACES;
    if fits { Ok(factor) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::price::quotation::NewPrice;
    use crate::domain::tokens::TokenClass;

    fn markup(by_model: &[(&str, &str)]) -> Result<Markup, MarkupError> {
        let by_model =
            by_model.iter().map(|(pattern, factor)| ((*pattern).to_owned(), Quote((*factor).to_owned())));
        Markup::read(&Quote("1.2".to_owned()), &by_model.collect())
    }

    #[test]
    fn the_longest_pattern_that_matches_decides() {
        let markup = markup(&[
            ("claude-*", "1.3"),
            ("claude-haiku-*", "1.4"),
            ("claude-haiku-4-5", "1.5"),
            ("gpt-5", "2"),
        ])
        .unwrap();
        let factor = |model: &str| markup.factor(model).to_string();
        assert_eq!(factor("gpt-4"), "1.2");
        assert_eq!(factor("gpt-5"), "2");
        assert_eq!(factor("gpt-5.1"), "1.2");
        assert_eq!(factor("claude-opus-5"), "1.3");
        assert_eq!(factor("claude-haiku-5-5"), "1.4");
        assert_eq!(factor("claude-haiku-4-5"), "1.5");
    }

    #[test]
    fn nonsense_is_refused() {
        for (pattern, factor) in [("a", "-1"), ("a", "1000"), ("a", "1.0000001"), ("a", "x")] {
            assert!(matches!(markup(&[(pattern, factor)]), Err(MarkupError::Factor(_))), "{factor}");
        }
        for pattern in ["", "*", "a*b", " a", "ä"] {
            assert!(matches!(markup(&[(pattern, "1")]), Err(MarkupError::Pattern(_))), "{pattern}");
        }
    }

    #[test]
    fn a_derived_price_has_the_multiplied_rates_and_no_source() {
        let cost: NewPrice = serde_json::from_str(
            r#"{"provider":"deepseek","model":"deepseek-v4-pro","per":1000000,"rates":{"cache_read":"0.003625"},
                "fees":{"web_search":"0.01"},"multiplier":"1.1","valid_from":"2026-01-01T00:00:00Z","source":"secret"}"#,
        )
        .unwrap();
        let cost = cost.check(0).unwrap();
        let derived = Markup::apply(markup(&[]).unwrap().factor(&cost.model), &cost).unwrap();
        let rate = |class: TokenClass| derived.rates[&class].rate.per_unit().to_string();
        assert_eq!(rate(TokenClass::CacheRead), "0.000000004785");
        assert_eq!(rate(TokenClass::WebSearch), "0.012", "cost plus 20 % is plus 20 % of fees too");
        assert_eq!(derived.rates[&TokenClass::CacheRead].quoted.to_string(), "0.004785");
        assert_eq!((derived.source, derived.multiplier), (None, Decimal::ONE));
    }
}
