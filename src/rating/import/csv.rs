//! Our own CSV: the columns of the API's list of prices, in any order.

use std::collections::BTreeMap;

use super::{Import, ImportError};
use crate::domain::names::from_cell;
use crate::domain::price::PriceConditions;
use crate::domain::price::quotation::{NewPrice, Quote};
use crate::domain::tokens::TokenClass;

/// Columns of a list that say how a price is kept, not what it says.
const KEPT: [&str; 6] = ["id", "book", "currency", "recorded_at", "superseded_at", "superseded_by"];
/// Columns that say what a price says, besides one for each class.
const COLUMNS: [&str; 17] = [
    "provider",
    "model",
    "aliases",
    "platform",
    "region",
    "service_tier",
    "processing",
    "speed",
    "context_above",
    "context_inclusive",
    "hours_utc",
    "weekdays",
    "per",
    "multiplier",
    "valid_from",
    "valid_to",
    "source",
];
/// The last one, apart for its type.
const CHECKED_AT: &str = "checked_at";

pub(super) fn read(file: &[u8], import: &mut Import) -> Result<(), ImportError> {
    let mut reader = ::csv::Reader::from_reader(file);
    let unreadable = |error: ::csv::Error| ImportError::Csv(error.to_string());
    let header: Vec<String> = reader.headers().map_err(unreadable)?.iter().map(str::to_owned).collect();
    for name in &header {
        let known = KEPT.contains(&name.as_str())
            || COLUMNS.contains(&name.as_str())
            || name == CHECKED_AT
            || name.parse::<TokenClass>().is_ok();
        if !known {
            return Err(ImportError::Csv(format!("there is no column `{name}`")));
        }
    }
    for (index, record) in reader.records().enumerate() {
        let record = record.map_err(unreadable)?;
        let cells: BTreeMap<&str, &str> = header
            .iter()
            .map(String::as_str)
            .zip(record.iter())
            .filter(|(_, cell)| !cell.is_empty())
            .collect();
        match price(&cells) {
            Ok(price) => import.prices.push(price),
            Err(reason) => import.ignore(format!("row {}", index + 2), reason),
        }
    }
    Ok(())
}

fn price(cells: &BTreeMap<&str, &str>) -> Result<NewPrice, String> {
    // A text that a spreadsheet would calculate is written with a leading quote.
    let text = |column: &str| {
        cells.get(column).map(|cell| {
            let formula = |rest: &&str| rest.starts_with(['=', '+', '-', '@', '\t', '\r']);
            cell.strip_prefix('\'').filter(formula).unwrap_or(cell).to_owned()
        })
    };
    let needed = |column: &str| text(column).ok_or_else(|| format!("{column} is empty"));
    let words = |column: &str| -> Vec<String> {
        text(column).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let weekdays = words("weekdays").iter().map(|day| parsed("weekdays", day)).collect::<Result<_, _>>()?;
    let quotes = |fees: bool| {
        let classes = TokenClass::ALL.into_iter().filter(move |class| class.is_fee() == fees);
        classes.filter_map(|class| Some((class.name().to_owned(), Quote(text(class.name())?)))).collect()
    };
    Ok(NewPrice {
        provider: needed("provider")?,
        model: needed("model")?,
        aliases: from_cell(&text("aliases").unwrap_or_default()),
        conditions: PriceConditions {
            platform: text("platform"),
            region: text("region"),
            service_tier: text("service_tier"),
            processing: text("processing"),
            speed: text("speed"),
            context_above: optional("context_above", text("context_above"))?,
            context_inclusive: optional("context_inclusive", text("context_inclusive"))?.unwrap_or(false),
            hours_utc: words("hours_utc"),
            weekdays,
        },
        per: optional("per", text("per"))?,
        rates: quotes(false),
        fees: quotes(true),
        multiplier: text("multiplier").map(Quote),
        valid_from: parsed("valid_from", &needed("valid_from")?)?,
        valid_to: optional("valid_to", text("valid_to"))?,
        source: text("source"),
        checked_at: optional(CHECKED_AT, text(CHECKED_AT))?,
    })
}

fn parsed<T: std::str::FromStr>(column: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{column}: `{}` cannot be read", text.chars().take(40).collect::<String>()))
}

fn optional<T: std::str::FromStr>(column: &str, text: Option<String>) -> Result<Option<T>, String> {
    text.map(|text| parsed(column, &text)).transpose()
}
