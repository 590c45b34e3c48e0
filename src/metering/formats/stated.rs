//! Costs that a provider states, read exactly from their digits.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::domain::money::{Amount, SCALE};
use crate::metering::json::read;

/// Largest stated cost kept, in currency units: above it the statement is noise.
const COST_LIMIT_UNITS: i128 = 1_000_000_000_000;
/// 10^-10 USD, the unit of xAI's statement, in 10^-15 USD.
const FEMTOS_PER_TICK: i128 = 100_000;
/// Longest mantissa that fits the arithmetic below, in digits.
const MANTISSA_DIGITS_MAX: usize = 30;

/// A cost as a JSON number or a text of one; `None` where it is absent, negative, or cannot be held exactly.
///
/// It stands beside our own amount and is never billed, so a statement that cannot be held is left out, not refused.
pub(super) fn cost(raw: Option<&RawValue>) -> Option<Amount> {
    decimal(unquoted(raw?.get()))
}

/// A cost as it is, or Perplexity's object with a total.
pub(super) fn cost_or_total(raw: Option<&RawValue>) -> Option<Amount> {
    #[derive(Deserialize)]
    struct Cost<'a> {
        #[serde(borrow)]
        total_cost: Option<&'a RawValue>,
    }
    match read::<Cost<'_>>(raw?.get()) {
        Ok(whole) => cost(whole.total_cost),
        Err(_) => cost(raw),
    }
}

/// A cost in xAI's ticks, a JSON integer or a text of one; left out like any other where it cannot be held.
pub(super) fn ticks(raw: &RawValue) -> Option<Amount> {
    let digits = unquoted(raw.get());
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let ticks: i64 = digits.parse().ok()?;
    i128::from(ticks).checked_mul(FEMTOS_PER_TICK).map(Amount::from_femtos)
}

/// What a JSON text without escapes says, or the value as it stands.
fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

/// A decimal with or without exponent, exact to 15 places.
fn decimal(text: &str) -> Option<Amount> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    if whole.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let significant = digits.trim_end_matches('0');
    let trailing_zeros = i32::try_from(digits.len() - significant.len()).ok()?;
    let significant = significant.trim_start_matches('0');
    if significant.is_empty() {
        return Some(Amount::ZERO);
    }
    if significant.len() > MANTISSA_DIGITS_MAX {
        return None;
    }
    let places = i32::try_from(fraction.len()).ok()?;
    let power =
        i32::try_from(SCALE).ok()?.checked_add(exponent)?.checked_sub(places)?.checked_add(trailing_zeros)?;
    let factor = 10_i128.checked_pow(u32::try_from(power).ok()?)?;
    let femtos = significant.parse::<i128>().ok()?.checked_mul(factor)?;
    (femtos <= COST_LIMIT_UNITS * 10_i128.pow(SCALE)).then(|| Amount::from_femtos(femtos))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_read_digit_by_digit() {
        for (text, amount) in [
            ("0.02560135", "0.02560135"),
            ("8.5e-05", "0.000085"),
            ("9.251E-05", "0.00009251"),
            ("6e-07", "0.0000006"),
            ("1e-15", "0.000000000000001"),
            ("0.0000310365", "0.0000310365"),
            ("1.50", "1.5"),
            ("12e2", "1200"),
            ("100", "100"),
            ("0", "0"),
            ("0.0", "0"),
            ("0e-400", "0"),
            ("0.10000000000000000000000000000000000", "0.1"),
        ] {
            assert_eq!(decimal(text).map(|amount| amount.to_string()).as_deref(), Some(amount), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_held_is_left_out() {
        for text in [
            "1e-16",
            "0.006000000000000001",
            "-1",
            "1e400",
            "1e2147483647",
            "1e-2147483648",
            "",
            ".5",
            "1.2.3",
            "NaN",
            "1e13",
        ] {
            assert_eq!(decimal(text), None, "{text}");
        }
    }

    #[test]
    fn a_tick_is_a_ten_billionth() {
        let read = |json: &str| {
            let raw: &RawValue = serde_json::from_str(json).unwrap();
            ticks(raw).map(|amount| amount.to_string())
        };
        for json in ["318319000", "\"318319000\""] {
            assert_eq!(read(json).as_deref(), Some("0.0318319"), "{json}");
        }
        assert_eq!(read("9223372036854775807").as_deref(), Some("922337203.6854775807"));
        for json in ["9223372036854775808", "-1", "1.5", "1e3", "true", "\"\"", "\"+1\"", "{}", "[1]"] {
            assert_eq!(read(json), None, "{json}");
        }
    }

    proptest! {
        #[test]
        fn every_amount_reads_back(femtos in 0_i128..10_i128.pow(27)) {
            let amount = Amount::from_femtos(femtos);
            prop_assert_eq!(decimal(&amount.to_string()), Some(amount));
            prop_assert_eq!(decimal(&format!("{femtos}e-15")), Some(amount));
        }

        #[test]
        fn no_text_makes_it_fail(text in "[-+0-9.eE]{0,40}") {
            let _ = decimal(&text);
        }
    }
}
