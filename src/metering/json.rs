//! Reading JSON strictly: typed, borrowed, every fault with its reason.
//!
//! serde's errors are texts; a fault of ours travels inside one, marked, and is taken out again in [`read`]. No
//! document is ever parsed into a tree, no count ever goes through a float.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::reason::{Reason, Rejected};
use crate::domain::tokens::QUANTITY_MAX;

/// Deepest nesting accepted.
const DEPTH_MAX: usize = 128;
/// Marks a fault of ours inside an error text of serde; no text of serde's own begins with a control character.
const FAULT_MARK: char = '\u{1}';

/// Reads one JSON object.
///
/// # Errors
/// [`Rejected`] with the reason and, where one is known, the field.
pub(super) fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Rejected> {
    read_any::<Object<T>>(text).map(|Object(value)| value)
}

/// Reads one JSON value of any kind, as [`read`] does.
pub(super) fn read_any<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Rejected> {
    serde_json::from_str(text).map_err(|error| rejected(&error, text))
}

/// The objects in a list; what is no list, or no object in it, says nothing.
pub(super) fn objects<'a, T: Deserialize<'a>>(list: Option<&'a RawValue>) -> Result<Vec<T>, Rejected> {
    let Some(list) = list.map(RawValue::get).filter(|list| list.starts_with('[')) else {
        return Ok(Vec::new());
    };
    let entries: Vec<&RawValue> = read_any(list)?;
    entries.into_iter().map(RawValue::get).filter(|entry| entry.starts_with('{')).map(read).collect()
}

/// Whether brackets nest deeper than [`DEPTH_MAX`]; decided by counting alone for every ordinary event.
pub(super) fn too_deep(text: &[u8]) -> bool {
    // In bytes as long as they hold the count: sixteen are counted at a time.
    let in_chunk =
        |chunk: &[u8]| chunk.iter().fold(0_u8, |count, byte| count + u8::from(matches!(byte, b'{' | b'[')));
    let openers: usize = text.chunks(usize::from(u8::MAX)).map(|chunk| usize::from(in_chunk(chunk))).sum();
    openers > DEPTH_MAX && depth(text) > DEPTH_MAX
}

/// The deepest nesting of brackets outside strings.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// An error of serde that carries one of our reasons.
pub(super) fn fault<E: de::Error>(reason: Reason, detail: impl fmt::Display) -> E {
    E::custom(format_args!("{FAULT_MARK}{reason}{FAULT_MARK}{detail}"))
}

/// What a serde error means here.
fn rejected(error: &serde_json::Error, text: &str) -> Rejected {
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    if let Some((code, detail)) =
        message.strip_prefix(FAULT_MARK).and_then(|fault| fault.split_once(FAULT_MARK))
    {
        return Rejected::new(code.parse().unwrap_or(Reason::Type), in_field(error, text, detail));
    }
    match error.classify() {
        Category::Data if message.starts_with("duplicate field") => {
            Rejected::new(Reason::DuplicateKey, format_args!("{message}; give every key once"))
        }
        Category::Data => Rejected::new(Reason::Type, in_field(error, text, message)),
        _ if message.starts_with("number out of range") => {
            Rejected::new(Reason::Range, in_field(error, text, message))
        }
        _ => Rejected::new(
            Reason::Json,
            format_args!("not valid JSON at line {} column {}: {message}", error.line(), error.column()),
        ),
    }
}

/// The message, led by the key that the error stands at.
fn in_field(error: &serde_json::Error, text: &str, message: &str) -> String {
    let line_start: usize =
        text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let before = text.get(..line_start.saturating_add(error.column()).min(text.len())).unwrap_or(text);
    let key = before.rfind("\":").and_then(|end| {
        let start = before[..end].rfind('"')?;
        Some(&before[start + 1..end])
    });
    match key {
        Some(key) if !message.contains(key) => {
            format!("`{}`: {message}", key.chars().take(60).collect::<String>())
        }
        _ => message.to_owned(),
    }
}

/// A value that must be a JSON object; serde's derived types would take an array of their fields too.
pub(super) struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Object)
    }
}

/// A text, borrowed where it holds no escapes; never with a NUL, which the database cannot hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    /// A text of its own.
    pub(super) fn owned(text: &str) -> Self {
        Self(Cow::Owned(text.to_owned()))
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        fn without_nul<E: de::Error>(text: Cow<'_, str>) -> Result<Text<'_>, E> {
            if text.as_bytes().contains(&0) {
                return Err(fault(Reason::Nul, "a text holds a NUL character; leave it out"));
            }
            Ok(Text(text))
        }

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                without_nul(Cow::Borrowed(text))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                without_nul(Cow::Owned(text.to_owned()))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

/// A count: a JSON integer in `0..=10^12`; `-0` is 0, a fraction or an exponent is refused even where its value is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Count(pub i64);

/// From here outwards a number is one that no 64-bit integer holds, fraction or not.
const ABOVE_INTEGERS: f64 = 9.2e18;
const BELOW_INTEGERS: f64 = -9.2e18;

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CountVisitor;

        impl Visitor<'_> for CountVisitor {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an integer from 0 to {QUANTITY_MAX}")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Count, E> {
                match i64::try_from(value) {
                    Ok(count) if count <= QUANTITY_MAX => Ok(Count(count)),
                    Ok(_) => Err(fault(
                        Reason::Limit,
                        format_args!("{value} is above the limit of {QUANTITY_MAX} for one event"),
                    )),
                    Err(_) => Err(out_of_range(value)),
                }
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Count, E> {
                match u64::try_from(value) {
                    Ok(value) => self.visit_u64(value),
                    Err(_) => Err(negative(value)),
                }
            }

            // serde hands over `-0`, fractions, exponents and integers beyond 64 bits as floats: all but `-0` are refused.
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Count, E> {
                if value.to_bits() == (-0.0_f64).to_bits() {
                    Ok(Count(0))
                } else if value >= ABOVE_INTEGERS {
                    Err(out_of_range(value))
                } else if value <= BELOW_INTEGERS {
                    Err(negative(value))
                } else {
                    Err(fault(Reason::Type, "a count is an integer without fraction or exponent"))
                }
            }
        }

        deserializer.deserialize_u64(CountVisitor)
    }
}

fn out_of_range<E: de::Error>(value: impl fmt::Display) -> E {
    fault(Reason::Range, format_args!("{value} does not fit a 64-bit counter"))
}

fn negative<E: de::Error>(value: impl fmt::Display) -> E {
    fault(Reason::Negative, format_args!("{value} is negative; a correction is a new event with `corrects`"))
}
