//! Cost, charge and margin side by side, and ratios without floats.

use std::fmt;

use serde::{Serialize, Serializer};

use super::ReportError;
use crate::domain::money::{Amount, Currency};

/// Ratios are kept in ten-thousandths: `0.1234` is 12.34 %.
const RATIO_PARTS: i128 = 10_000;

/// What usage cost us and brought in. In a customer's scope there is a charge only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// What customers pay.
    pub charge: Amount,
    /// The currency of the charge.
    pub currency: Currency,
    /// What providers charge us, with its currency; `None` in a customer's scope.
    pub cost: Option<(Amount, Currency)>,
}

impl Figures {
    /// Charge minus cost, where both are known and in one currency.
    pub fn margin(&self) -> Option<Amount> {
        let (cost, currency) = self.cost?;
        if currency == self.currency { self.charge.checked_sub(cost) } else { None }
    }

    /// Margin as a share of the charge; `None` without a margin or where nothing was charged.
    pub fn margin_ratio(&self) -> Option<Ratio> {
        Ratio::of(self.margin()?.femtos(), self.charge.femtos())
    }

    /// The sum of two with the same currencies.
    pub(super) fn add(&mut self, other: &Self) -> Result<(), ReportError> {
        self.charge = self.charge.checked_add(other.charge).ok_or(ReportError::Overflow)?;
        if let (Some((cost, _)), Some((more, _))) = (&mut self.cost, other.cost) {
            *cost = cost.checked_add(more).ok_or(ReportError::Overflow)?;
        }
        Ok(())
    }
}

/// A ratio, rounded half away from zero to four decimal places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio {
    ten_thousandths: i128,
}

impl Ratio {
    /// `part / whole`; `None` where the whole is zero or less, or the numbers are too large.
    pub fn of(part: i128, whole: i128) -> Option<Self> {
        if whole <= 0 {
            return None;
        }
        let scaled = part.checked_mul(RATIO_PARTS)?;
        let (quotient, remainder) = (scaled / whole, scaled % whole);
        let away = i128::from(remainder.unsigned_abs() >= whole.unsigned_abs().div_ceil(2));
        Some(Self { ten_thousandths: quotient + away * scaled.signum() })
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.ten_thousandths < 0 { "-" } else { "" };
        let magnitude = self.ten_thousandths.unsigned_abs();
        let parts = RATIO_PARTS.unsigned_abs();
        write!(f, "{sign}{}.{:04}", magnitude / parts, magnitude % parts)
    }
}

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_round_half_away_from_zero() {
        for (part, whole, shown) in [
            (1, 3, "0.3333"),
            (2, 3, "0.6667"),
            (-2, 3, "-0.6667"),
            (1, 20_000, "0.0001"),
            (-1, 20_000, "-0.0001"),
            (1, 20_001, "0.0000"),
            (5, 5, "1.0000"),
            (-3, 2, "-1.5000"),
            (0, 7, "0.0000"),
        ] {
            assert_eq!(Ratio::of(part, whole).unwrap().to_string(), shown, "{part} / {whole}");
        }
        assert_eq!(Ratio::of(1, 0), None);
        assert_eq!(Ratio::of(i128::MAX, 1), None);
    }

    #[test]
    fn there_is_no_margin_across_currencies() {
        let (one, two) = (Amount::from_femtos(1), Amount::from_femtos(2));
        let euro = "EUR".parse().unwrap();
        let same = Figures { charge: two, currency: Currency::USD, cost: Some((one, Currency::USD)) };
        assert_eq!(same.margin(), Some(one));
        assert_eq!(same.margin_ratio().unwrap().to_string(), "0.5000");
        assert_eq!(Figures { cost: Some((one, euro)), ..same }.margin(), None);
        assert_eq!(Figures { cost: None, ..same }.margin(), None);
    }
}
