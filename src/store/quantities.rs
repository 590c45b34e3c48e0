//! Quantities as rows hold them: six columns and a document of the rare classes. And the conditions of a call: five columns.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use sqlx::types::Json;

use crate::domain::tokens::{CLASS_COUNT, MAIN_CLASS_COUNT, Quantities, TokenClass};

/// Rare classes by name, as stored: `{"web_search": 2}`.
pub(super) type Rare = Json<BTreeMap<TokenClass, i64>>;

/// The six main classes in the order of [`TokenClass::ALL`], and the rare ones.
pub(super) fn joined(main: [i64; MAIN_CLASS_COUNT], rare: Option<Rare>) -> Quantities {
    let mut raw = [0; CLASS_COUNT];
    raw[..MAIN_CLASS_COUNT].copy_from_slice(&main);
    for (class, quantity) in rare.map(|Json(rare)| rare).unwrap_or_default() {
        raw[class.index()] = quantity;
    }
    Quantities::from_raw(raw)
}

/// Rare classes as they are stored, or `None` where there are none.
pub(super) fn rare_json(classes: impl Iterator<Item = (TokenClass, impl Display)>) -> Option<String> {
    let mut json = String::new();
    for (class, units) in classes {
        json.push(if json.is_empty() { '{' } else { ',' });
        // Writing to a String cannot fail.
        let _ = write!(json, "\"{class}\":{units}");
    }
    (!json.is_empty()).then(|| json + "}")
}

/// The quantities of a row that has the six columns and `rare` under these names, whatever else it has.
macro_rules! quantities_of {
    ($row:expr) => {
        $crate::store::quantities::joined(
            [
                $row.input,
                $row.cache_read,
                $row.cache_write_5m,
                $row.cache_write_1h,
                $row.output,
                $row.reasoning,
            ],
            $row.rare,
        )
    };
}
pub(super) use quantities_of;

/// The conditions of the call of a row that has the five columns under their names, whatever else it has.
macro_rules! conditions_of {
    ($row:expr) => {
        $crate::domain::event::CallConditions {
            platform: $row.platform.map(Into::into),
            region: $row.region.map(Into::into),
            service_tier: $row.service_tier.map(Into::into),
            processing: $row.processing.map(Into::into),
            speed: $row.speed.map(Into::into),
        }
    };
}
pub(super) use conditions_of;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_classes_are_a_document_or_nothing() {
        assert_eq!(rare_json(std::iter::empty::<(TokenClass, i64)>()), None);
        let rare = BTreeMap::from([(TokenClass::WebSearch, 2), (TokenClass::Page, -3)]);
        assert_eq!(rare_json(rare.into_iter()).as_deref(), Some(r#"{"web_search":2,"page":-3}"#));
    }
}
