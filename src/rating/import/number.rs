//! Numbers of price lists: exact decimals from their JSON text.

use rust_decimal::Decimal;
use serde_json::value::RawValue;

use super::{Cleaned, Import};
use crate::domain::money::without_noise;

/// The exact decimal of a JSON number, or of a string that holds one.
pub(super) fn decimal(raw: &RawValue) -> Option<Decimal> {
    let text = raw.get();
    let text = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    if text.contains(['e', 'E']) {
        Decimal::from_scientific(text).ok()
    } else {
        Decimal::from_str_exact(text).ok()
    }
}

/// A number as money per one unit, quoted for `per` units; the noise of a float is removed and reported, and what is no
/// price is ignored with a reason.
pub(super) fn rate(
    import: &mut Import,
    what: impl Fn() -> String,
    raw: &RawValue,
    per: u32,
) -> Option<Decimal> {
    let per_unit = decimal(raw).and_then(|quoted| quoted.checked_div(Decimal::from(per)));
    match per_unit.and_then(without_noise) {
        Some((rate, _)) if rate.is_sign_negative() && !rate.is_zero() => {
            import.ignore(what(), format!("{} is negative", raw.get()));
            None
        }
        Some((rate, rounded)) => {
            if rounded {
                import.cleaned.push(Cleaned { what: what(), written: raw.get().to_owned(), taken: rate });
            }
            Some(rate)
        }
        None => {
            let shown: String = raw.get().chars().take(40).collect();
            import.ignore(
                what(),
                format!("{shown} is no number that can be held in 15 decimal places per unit"),
            );
            None
        }
    }
}
