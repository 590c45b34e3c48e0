//! Exact amounts, exact rates, and the one place that rounds.
//!
//! An amount is a whole number of 10^-15 currency units. A quantity is an integer and a rate has at most 15
//! decimal places, so `rate x quantity` is exact here and nothing is rounded before the invoice line
//! (design section 4).

use std::fmt;
use std::str::FromStr;

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Decimal places of every exact amount and of every rate per single unit.
pub const SCALE: u32 = 15;
/// 10^15: the number of femto-units in one currency unit.
const FEMTOS_PER_UNIT: i128 = 1_000_000_000_000_000;
/// The largest rate per single unit, in currency units: no real price comes near it, and with quantities up to
/// 10^12 an amount stays far inside `i128` and inside `NUMERIC(38,15)`.
const RATE_LIMIT_UNITS: i128 = 1_000_000;

/// Why a text or a number is not an amount or a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Not a plain decimal such as `12.5`; exponents, signs other than a leading `-`, and blanks are refused.
    #[error("`{0}` is not a plain decimal number; write it like 12.5")]
    NotDecimal(String),
    /// More decimal places than [`SCALE`] once brought to a single unit.
    #[error("{0} needs more than 15 decimal places per unit; quote it with fewer digits")]
    TooPrecise(Decimal),
    /// Below zero where only zero or more makes sense.
    #[error("{0} is negative; a rate is zero or more")]
    Negative(Decimal),
    /// Outside what the ledger can hold.
    #[error("{0} is out of range")]
    OutOfRange(String),
    /// Not a currency code of ISO 4217 with a known minor unit.
    #[error("`{0}` is not a supported ISO 4217 currency code")]
    UnknownCurrency(String),
}

/// An exact amount of money, in 10^-15 of a currency's major unit; may be negative (a correction).
///
/// The currency is carried beside it by whoever holds it; amounts of two currencies are never added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i128);

impl Amount {
    /// Nothing owed.
    pub const ZERO: Self = Self(0);

    /// The amount of so many 10^-15 units.
    pub const fn from_femtos(femtos: i128) -> Self {
        Self(femtos)
    }

    /// The number of 10^-15 units.
    pub const fn femtos(self) -> i128 {
        self.0
    }

    /// The sum, or `None` on overflow.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, or `None` on overflow.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(difference) => Some(Self(difference)),
            None => None,
        }
    }

    /// The amount with the opposite sign, or `None` on overflow.
    pub const fn checked_neg(self) -> Option<Self> {
        match self.0.checked_neg() {
            Some(negated) => Some(Self(negated)),
            None => None,
        }
    }

    /// So many times the amount, or `None` on overflow.
    pub const fn times(self, quantity: i64) -> Option<Self> {
        match self.0.checked_mul(quantity as i128) {
            Some(femtos) => Some(Self(femtos)),
            None => None,
        }
    }

    /// The sum of all, or `None` on overflow.
    pub fn checked_sum(amounts: impl IntoIterator<Item = Self>) -> Option<Self> {
        amounts.into_iter().try_fold(Self::ZERO, Self::checked_add)
    }

    /// This amount divided by a count, rounded half away from zero to [`SCALE`] places: for means in reports,
    /// never for anything that is billed.
    pub const fn mean_of(self, count: i64) -> Option<Self> {
        if count <= 0 {
            return None;
        }
        Some(Self(divide_half_away(self.0, count as i128)))
    }

    /// The amount rounded once, half away from zero, to the currency's minor unit (design section 2, point 5).
    ///
    /// # Errors
    /// [`MoneyError::OutOfRange`] where the minor units do not fit 64 bits.
    pub fn round_to_minor(self, currency: Currency) -> Result<MinorAmount, MoneyError> {
        let femtos_per_minor = FEMTOS_PER_UNIT / 10_i128.pow(currency.minor_digits());
        let minor = divide_half_away(self.0, femtos_per_minor);
        i64::try_from(minor)
            .map(|minor| MinorAmount { minor, currency })
            .map_err(|_| MoneyError::OutOfRange(self.to_string()))
    }
}

/// Integer division that rounds half away from zero.
pub(crate) const fn divide_half_away(dividend: i128, divisor: i128) -> i128 {
    let quotient = dividend / divisor;
    let remainder = dividend % divisor;
    let doubled = remainder.unsigned_abs() * 2;
    if doubled >= divisor.unsigned_abs() {
        if (dividend < 0) == (divisor < 0) { quotient + 1 } else { quotient - 1 }
    } else {
        quotient
    }
}

impl fmt::Display for Amount {
    /// The shortest decimal that is exactly this amount, without exponent: `0.0136`, `-2`, `0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let magnitude = self.0.unsigned_abs();
        let scale = FEMTOS_PER_UNIT.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, fraction) = (magnitude / scale, magnitude % scale);
        if fraction == 0 {
            write!(f, "{sign}{whole}")
        } else {
            let digits = format!("{fraction:015}");
            write!(f, "{sign}{whole}.{}", digits.trim_end_matches('0'))
        }
    }
}

impl FromStr for Amount {
    type Err = MoneyError;

    /// Reads a plain decimal with at most 15 places; anything else is refused, nothing is rounded.
    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let not_decimal = || MoneyError::NotDecimal(text.chars().take(40).collect());
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let dangling_point = digits.ends_with('.');
        if whole.is_empty() || dangling_point || !all_digits(whole) || !all_digits(fraction) {
            return Err(not_decimal());
        }
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > SCALE as usize || whole.len() > 22 {
            return Err(MoneyError::OutOfRange(text.chars().take(60).collect()));
        }
        let whole: i128 = whole.parse().map_err(|_| not_decimal())?;
        let fraction: i128 = format!("{fraction:0<15}").parse().map_err(|_| not_decimal())?;
        let magnitude = whole
            .checked_mul(FEMTOS_PER_UNIT)
            .and_then(|femtos| femtos.checked_add(fraction))
            .ok_or_else(|| MoneyError::OutOfRange(text.to_owned()))?;
        Ok(Self(if negative { -magnitude } else { magnitude }))
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// An exact price of one single unit (one token, one request, one second) in 10^-15 currency units; never negative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(i128);

impl Rate {
    /// Nothing per unit.
    pub const ZERO: Self = Self(0);

    /// Reads a quoted price: `quoted` money for `per` units, times a multiplier such as `1.1`.
    ///
    /// Returns the rate per unit and whether the multiplication had to be rounded (half away from zero) to 15 places;
    /// the quote itself must fit exactly.
    ///
    /// # Errors
    /// [`MoneyError`] where the quote is negative, out of range, or needs more than 15 places per unit.
    pub fn from_quote(quoted: Decimal, per: u64, multiplier: Decimal) -> Result<(Self, bool), MoneyError> {
        let out_of_range = || MoneyError::OutOfRange(quoted.to_string());
        if quoted.is_sign_negative() && !quoted.is_zero() {
            return Err(MoneyError::Negative(quoted));
        }
        if (multiplier.is_sign_negative() && !multiplier.is_zero()) || per == 0 {
            return Err(out_of_range());
        }
        let quote = quoted.normalize();
        let factor = multiplier.normalize();
        // quoted / per in femtos = mantissa x 10^(15 - scale) / per
        let numerator = scale_to_femtos(quote).ok_or(MoneyError::TooPrecise(quoted))?;
        let per = i128::from(per);
        if numerator % per != 0 {
            return Err(MoneyError::TooPrecise(quoted));
        }
        let base = numerator / per;
        let scaled = base.checked_mul(factor.mantissa()).ok_or_else(out_of_range)?;
        let divisor = 10_i128.checked_pow(factor.scale()).ok_or_else(out_of_range)?;
        let rate = divide_half_away(scaled, divisor);
        if rate > RATE_LIMIT_UNITS * FEMTOS_PER_UNIT {
            return Err(out_of_range());
        }
        Ok((Self(rate), scaled % divisor != 0))
    }

    /// The rate of so many 10^-15 currency units per unit.
    ///
    /// # Errors
    /// [`MoneyError`] where it is negative or above the limit.
    pub fn from_femtos(femtos: i128) -> Result<Self, MoneyError> {
        if femtos < 0 {
            return Err(MoneyError::OutOfRange(Amount(femtos).to_string()));
        }
        if femtos > RATE_LIMIT_UNITS * FEMTOS_PER_UNIT {
            return Err(MoneyError::OutOfRange(Amount(femtos).to_string()));
        }
        Ok(Self(femtos))
    }

    /// This rate times a factor (cost plus 20 % is `1.2`), and whether it had to be rounded (half away from zero) to 15
    /// places.
    ///
    /// # Errors
    /// [`MoneyError::OutOfRange`].
    pub fn marked_up(self, factor: Decimal) -> Result<(Self, bool), MoneyError> {
        let per_unit = Decimal::try_from_i128_with_scale(self.0, SCALE)
            .map_err(|_| MoneyError::OutOfRange(Amount(self.0).to_string()))?;
        Self::from_quote(per_unit, 1, factor)
    }

    /// The number of 10^-15 currency units per unit.
    pub const fn femtos(self) -> i128 {
        self.0
    }

    /// The price of one unit, as an amount.
    pub const fn per_unit(self) -> Amount {
        Amount(self.0)
    }

    /// The exact price of a quantity (negative quantities are corrections), or `None` on overflow.
    pub const fn times(self, quantity: i64) -> Option<Amount> {
        self.per_unit().times(quantity)
    }
}

/// How far a price may lie from what can be held, as one part in so many, and still count as the same price with noise.
const NOISE_PARTS: i128 = 1_000_000;

/// The price per unit that a computed number stands for: itself where it has at most 15 places, else rounded half away
/// from zero to 15, where that changes it by less than a millionth (`1.5000020000000002e-05` came out of a float).
///
/// Returns whether it was rounded; `None` where more than noise would be lost.
pub fn without_noise(value: Decimal) -> Option<(Decimal, bool)> {
    let value = value.normalize();
    let Some(surplus) = value.scale().checked_sub(SCALE).filter(|surplus| *surplus > 0) else {
        return Some((value, false));
    };
    let divisor = 10_i128.checked_pow(surplus)?;
    let femtos = divide_half_away(value.mantissa(), divisor);
    let lost = femtos.checked_mul(divisor)?.checked_sub(value.mantissa())?;
    let noise = lost.checked_abs()?.checked_mul(NOISE_PARTS)? < value.mantissa().checked_abs()?;
    let held = Decimal::try_from_i128_with_scale(femtos, SCALE).ok()?;
    noise.then_some((held.normalize(), true))
}

/// A decimal as a whole number of 10^-15 units, or `None` where it has more places or does not fit.
fn scale_to_femtos(value: Decimal) -> Option<i128> {
    let factor = 10_i128.checked_pow(SCALE.checked_sub(value.scale())?)?;
    value.mantissa().checked_mul(factor)
}

/// An amount rounded to a currency's minor unit: what a line item and a total are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinorAmount {
    minor: i64,
    currency: Currency,
}

impl MinorAmount {
    /// So many minor units (cents, yen) of a currency.
    pub const fn new(minor: i64, currency: Currency) -> Self {
        Self { minor, currency }
    }

    /// The number of minor units.
    pub const fn minor(self) -> i64 {
        self.minor
    }

    /// The currency.
    pub const fn currency(self) -> Currency {
        self.currency
    }

    /// The sum in the same currency; `None` on overflow or where the currencies differ.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        if self.currency != other.currency {
            return None;
        }
        self.minor.checked_add(other.minor).map(|minor| Self { minor, currency: self.currency })
    }
}

impl fmt::Display for MinorAmount {
    /// All decimal places of the currency, always: `12.30`, `-0.05`, `7` (yen).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.currency.minor_digits();
        let magnitude = self.minor.unsigned_abs();
        let sign = if self.minor < 0 { "-" } else { "" };
        if digits == 0 {
            return write!(f, "{sign}{magnitude}");
        }
        let scale = 10_u64.pow(digits);
        write!(f, "{sign}{}.{:0width$}", magnitude / scale, magnitude % scale, width = digits as usize)
    }
}

impl Serialize for MinorAmount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A currency by its ISO 4217 code; its minor unit decides to what an invoice line is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency([u8; 3]);

/// Currencies with no minor unit (ISO 4217, list one).
const ZERO_DIGIT: [&str; 16] = [
    "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF",
    "XOF",
];
/// Currencies with three decimal places (ISO 4217, list one).
const THREE_DIGIT: [&str; 7] = ["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"];
/// Currencies with two decimal places that prices are quoted in here.
const TWO_DIGIT: [&str; 40] = [
    "AED", "ARS", "AUD", "BDT", "BGN", "BRL", "CAD", "CHF", "CNY", "COP", "CZK", "DKK", "EGP", "EUR", "GBP",
    "HKD", "HUF", "IDR", "ILS", "INR", "KES", "MAD", "MXN", "MYR", "NGN", "NOK", "NZD", "PEN", "PHP", "PKR",
    "PLN", "QAR", "RON", "SAR", "SEK", "SGD", "THB", "TRY", "TWD", "USD",
];

impl Currency {
    /// US dollar, the currency model providers quote in.
    pub const USD: Self = Self(*b"USD");

    /// Decimal places of the minor unit: 2 for most, 0 for yen, 3 for dinars.
    pub fn minor_digits(self) -> u32 {
        if ZERO_DIGIT.contains(&self.as_str()) {
            0
        } else if THREE_DIGIT.contains(&self.as_str()) {
            3
        } else {
            2
        }
    }

    /// The three-letter code.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XXX")
    }
}

impl FromStr for Currency {
    type Err = MoneyError;

    fn from_str(code: &str) -> Result<Self, MoneyError> {
        let known = ZERO_DIGIT.contains(&code)
            || THREE_DIGIT.contains(&code)
            || TWO_DIGIT.contains(&code)
            || code == "ZAR";
        match <[u8; 3]>::try_from(code.as_bytes()) {
            Ok(bytes) if known => Ok(Self(bytes)),
            _ => Err(MoneyError::UnknownCurrency(code.chars().take(8).collect())),
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = String::deserialize(deserializer)?;
        code.parse().map_err(de::Error::custom)
    }
}
