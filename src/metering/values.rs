//! Values of an event with a form of their own: the sequence, the token classes, the attributes.

use std::fmt;

use compact_str::CompactString;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use super::fields;
use super::json::{Count, Text, fault};
use super::reason::{Reason, Rejected};
use crate::domain::event;
use crate::domain::tokens::{Quantities, TokenClass};

/// Most attributes of one event.
pub const ATTRIBUTES_MAX: usize = 32;
/// The largest sequence number: ranges of them have an exclusive end and must fit 64 bits.
pub(super) const SEQUENCE_MAX: i64 = 1_000_000_000_000_000_000;

/// The CloudEvents extension `sequence`: an integer from 1, or a text of its digits.
pub(super) struct Sequence(pub i64);

impl<'de> Deserialize<'de> for Sequence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SequenceVisitor;

        impl Visitor<'_> for SequenceVisitor {
            type Value = Sequence;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer from 1, or a string of its digits")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Sequence, E> {
                match i64::try_from(value) {
                    Ok(number @ 1..=SEQUENCE_MAX) => Ok(Sequence(number)),
                    _ => Err(fault(
                        Reason::Range,
                        format_args!("a sequence counts from 1 to {SEQUENCE_MAX}; {value} is outside"),
                    )),
                }
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Sequence, E> {
                Err(fault(Reason::Range, format_args!("a sequence counts from 1; {value} is below")))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Sequence, E> {
                let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                match text.parse() {
                    Ok(number) if digits => self.visit_u64(number),
                    _ => {
                        Err(fault(Reason::Type, "a sequence is an integer from 1, or a string of its digits"))
                    }
                }
            }
        }

        deserializer.deserialize_any(SequenceVisitor)
    }
}

/// The `usage` object: disjoint classes by name, each at most once.
pub(super) struct Classes {
    pub quantities: Quantities,
    /// Whether any class is stated: all zero is a statement, an empty object is none.
    pub stated: bool,
}

impl<'de> Deserialize<'de> for Classes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ClassesVisitor;

        impl<'de> Visitor<'de> for ClassesVisitor {
            type Value = Classes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token classes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Classes, A::Error> {
                let mut quantities = Quantities::NONE;
                let mut seen = 0_u32;
                while let Some(name) = map.next_key::<Text<'de>>()? {
                    let class: TokenClass =
                        name.parse().map_err(|unknown| fault(Reason::UnknownClass, unknown))?;
                    let bit = 1 << class.index();
                    if seen & bit != 0 {
                        return Err(fault(Reason::DuplicateKey, format_args!("`{class}` is given twice")));
                    }
                    seen |= bit;
                    let Count(quantity) = map.next_value()?;
                    quantities.set(class, quantity).map_err(|limit| fault(Reason::Limit, limit))?;
                }
                Ok(Classes { quantities, stated: seen != 0 })
            }
        }

        deserializer.deserialize_map(ClassesVisitor)
    }
}

/// The `attributes` object: texts by key; `null` says that there is none.
pub(super) struct Attributes(pub event::Attributes);

impl<'de> Deserialize<'de> for Attributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AttributesVisitor;

        impl<'de> Visitor<'de> for AttributesVisitor {
            type Value = Attributes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Attributes, A::Error> {
                let mut attributes = event::Attributes::default();
                let mut absent: Vec<CompactString> = Vec::new();
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    let key = fields::machine_id("attribute key", &key).map_err(refused)?;
                    if attributes.iter().len() + absent.len() == ATTRIBUTES_MAX {
                        return Err(fault(
                            Reason::Limit,
                            format_args!("an event has at most {ATTRIBUTES_MAX} attributes"),
                        ));
                    }
                    if attributes.get(&key).is_some() || absent.contains(&key) {
                        return Err(fault(
                            Reason::DuplicateKey,
                            format_args!("attribute `{key}` is given twice"),
                        ));
                    }
                    match map.next_value::<Option<Text<'de>>>()? {
                        None => absent.push(key),
                        Some(value) => {
                            let value = fields::label("attribute value", &value).map_err(refused)?;
                            attributes.insert(key, value);
                        }
                    }
                }
                Ok(Attributes(attributes))
            }
        }

        deserializer.deserialize_map(AttributesVisitor)
    }
}

/// A rejection on its way through serde.
fn refused<E: de::Error>(rejected: Rejected) -> E {
    fault(rejected.reason, rejected.detail)
}
