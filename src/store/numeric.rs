//! NUMERIC in PostgreSQL's binary form, to and from whole numbers of 10^-15.
//!
//! Amounts and rates go to the database digit by digit, without a detour through a decimal type of 28 digits; the
//! same encoder serves bound parameters and the binary COPY of the journal.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

use crate::domain::money::{Amount, Rate};

/// Base of the digits of a NUMERIC on the wire; each stands for four decimal places.
const BASE: u128 = 10_000;
/// Digits behind the point: 10^-15 is brought to 16 places, four whole digits.
const FRACTION_DIGITS: i16 = 4;
/// i128 has at most 39 decimal places, and one is added: ten digits of four places.
const DIGITS_MAX: usize = 10;
/// Display scale of the wire form.
const DISPLAY_SCALE: u16 = 15;
/// Sign words of the wire form; the others mean NaN and the infinities.
const SIGN_POSITIVE: u16 = 0x0000;
const SIGN_NEGATIVE: u16 = 0x4000;
/// Bytes before the digits.
const HEADER_BYTES: usize = 8;

/// A NUMERIC that 128 bits cannot hold in units of 10^-15: the sums have no bound in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a NUMERIC is too large")]
pub(super) struct TooLarge;

/// Appends a number of 10^-15 units as a binary NUMERIC.
pub fn encode_femtos(femtos: i128, out: &mut Vec<u8>) {
    // The last digit holds three decimal places of ours and one more that is always zero.
    let magnitude = femtos.unsigned_abs();
    let last = magnitude % (BASE / 10) * 10;
    encode(femtos < 0, magnitude / (BASE / 10), last, FRACTION_DIGITS, DISPLAY_SCALE, out);
}

/// Appends a whole number as a binary NUMERIC.
fn encode_whole(units: i128, out: &mut Vec<u8>) {
    let magnitude = units.unsigned_abs();
    encode(units < 0, magnitude / BASE, magnitude % BASE, 0, 0, out);
}

/// Digit count, weight, sign, display scale, digits: of a number whose last digit is given apart, with so many digits behind
/// the point.
fn encode(negative: bool, mut rest: u128, mut digit: u128, fraction: i16, scale: u16, out: &mut Vec<u8>) {
    let mut digits = [0_u16; DIGITS_MAX];
    let mut length = 0;
    while digit != 0 || rest != 0 {
        digits[length] = u16::try_from(digit).unwrap_or_default();
        length += 1;
        digit = rest % BASE;
        rest /= BASE;
    }
    let trailing_zeros = digits[..length].iter().take_while(|digit| **digit == 0).count();
    let sent = &digits[trailing_zeros..length];
    let weight = i16::try_from(length).unwrap_or_default() - 1 - fraction;
    let sign = if negative { SIGN_NEGATIVE } else { SIGN_POSITIVE };
    out.extend_from_slice(&u16::try_from(sent.len()).unwrap_or_default().to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&scale.to_be_bytes());
    for digit in sent.iter().rev() {
        out.extend_from_slice(&digit.to_be_bytes());
    }
}

/// Reads a binary NUMERIC as a number of 10^-15 units; what does not fit exactly is an error, never rounded.
fn decode_femtos(bytes: &[u8]) -> Result<i128, BoxDynError> {
    let word = |at: usize| bytes.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let (Some(count), Some(weight), Some(sign)) = (word(0), word(2), word(4)) else {
        return Err("a NUMERIC is shorter than its header".into());
    };
    if sign != SIGN_POSITIVE && sign != SIGN_NEGATIVE {
        return Err("a NUMERIC is NaN or infinite".into());
    }
    let weight = i16::from_be_bytes(weight.to_be_bytes());
    let mut femtos: i128 = 0;
    for index in 0..count {
        let digit = word(HEADER_BYTES + usize::from(index) * 2).ok_or("a NUMERIC is shorter than it says")?;
        // Place of this digit, counted in digits from the last one we hold.
        let place = i32::from(weight) - i32::from(index) + i32::from(FRACTION_DIGITS);
        let value = i128::from(digit);
        let part = match u32::try_from(place) {
            // The last digit's lowest decimal place lies beyond 10^-15.
            Ok(0) if value % 10 == 0 => value / 10,
            Ok(places) if places > 0 => 10_000_i128
                .checked_pow(places - 1)
                .and_then(|unit| unit.checked_mul(1000)?.checked_mul(value))
                .ok_or(TooLarge)?,
            _ if value == 0 => 0,
            _ => return Err("a NUMERIC has more than 15 decimal places".into()),
        };
        femtos = femtos.checked_add(part).ok_or(TooLarge)?;
    }
    Ok(if sign == SIGN_NEGATIVE { -femtos } else { femtos })
}

fn decode(value: &PgValueRef<'_>) -> Result<i128, BoxDynError> {
    match value.format() {
        PgValueFormat::Binary => decode_femtos(value.as_bytes()?),
        PgValueFormat::Text => Ok(value.as_str()?.parse::<Amount>()?.femtos()),
    }
}

macro_rules! written_as_numeric {
    ($name:ident, |$value:ident, $out:ident| $encode:expr) => {
        impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                PgTypeInfo::with_name("NUMERIC")
            }
        }

        impl PgHasArrayType for $name {
            fn array_type_info() -> PgTypeInfo {
                PgTypeInfo::with_name("_NUMERIC")
            }
        }

        impl Encode<'_, Postgres> for $name {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                let $value = self;
                let mut bytes = Vec::with_capacity(HEADER_BYTES + 2 * DIGITS_MAX);
                let $out = &mut bytes;
                $encode;
                buffer.extend_from_slice(&bytes);
                Ok(IsNull::No)
            }
        }
    };
}

macro_rules! stored_as_numeric {
    ($name:ident, |$value:ident| $to_femtos:expr, |$femtos:ident| $from_femtos:expr) => {
        written_as_numeric!($name, |$value, out| encode_femtos($to_femtos, out));

        impl<'r> Decode<'r, Postgres> for $name {
            fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
                let $femtos = decode(&value)?;
                $from_femtos
            }
        }
    };
}

stored_as_numeric!(Amount, |amount| amount.femtos(), |femtos| Ok(Self::from_femtos(femtos)));
stored_as_numeric!(Rate, |rate| rate.femtos(), |femtos| Ok(Self::from_femtos(femtos)?));

/// A sum of quantities: whole, and of any size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Units(pub i128);

written_as_numeric!(Units, |units, out| encode_whole(units.0, out));

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_128_bits_cannot_hold_is_named() {
        // 2^127 x 10^-15 and more: a digit of weight 5 is worth 10^20 units.
        for (weight, digit) in [(5_i16, 1702_u16), (6, 1), (40, 9999), (i16::MAX, 1)] {
            let words = [1, weight.cast_unsigned(), SIGN_POSITIVE, DISPLAY_SCALE, digit];
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            assert!(decode_femtos(&bytes).unwrap_err().is::<TooLarge>(), "{digit} at {weight}");
        }
    }

    proptest! {
        #[test]
        fn a_numeric_reads_back_as_it_was_written(femtos in -(10_i128.pow(37))..10_i128.pow(37)) {
            let mut bytes = Vec::new();
            encode_femtos(femtos, &mut bytes);
            prop_assert_eq!(decode_femtos(&bytes).unwrap(), femtos);
        }

        #[test]
        fn a_whole_number_is_so_many_units(units in -(10_i128.pow(22))..10_i128.pow(22)) {
            let mut bytes = Vec::new();
            encode_whole(units, &mut bytes);
            prop_assert_eq!(decode_femtos(&bytes).unwrap(), units * 10_i128.pow(15));
        }

        #[test]
        fn round_numbers_too(mantissa in -9999_i128..9999, exponent in 0_u32..30) {
            let femtos = mantissa * 10_i128.pow(exponent);
            let mut bytes = Vec::new();
            encode_femtos(femtos, &mut bytes);
            prop_assert_eq!(decode_femtos(&bytes).unwrap(), femtos);
        }
    }
}
