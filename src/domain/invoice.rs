//! Invoices: what a line says, and the hash that seals a finalized one.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::event::text_enum;
use super::ids::{BookId, CustomerId, InvoiceId, PeriodPriceId};
use super::money::{Amount, Currency, MinorAmount, Rate};
use super::period::Period;
use super::tokens::{CLASS_COUNT, TokenClass};

/// Names the encoding that [`Invoice::content_hash`] hashes; another encoding gets another name.
const ENCODING: &str = "waybill.invoice.1";
/// Words that announce what not every line has.
const NOTE: &str = "note";
const PERIOD_PRICE: &str = "period price";

text_enum! {
    /// Why a line is on an invoice.
    LineKind, UnknownLineKind, "invoice line kind" {
        /// Usage of the invoiced period.
        Usage = "usage",
        /// Usage of an earlier period that was recorded after that period was closed.
        LateUsage = "late_usage",
        /// The difference that a re-rate of recorded usage makes.
        Adjustment = "adjustment",
        /// What a tier over the billing period is cheaper than the list, or dearer.
        Tier = "tier",
        /// Packages of units.
        Package = "package",
        /// Finished tasks at a fixed price, or the credit of such.
        Task = "task",
        /// Usage that packages or tasks stand for, taken back.
        IncludedUsage = "included_usage",
    }
}

/// What an invoice line needs to know of a price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceTerms {
    /// Its book.
    pub book: BookId,
    /// The provider's name.
    pub provider: String,
    /// The model's canonical name.
    pub model: String,
    /// The currency of its book.
    pub currency: Currency,
    /// Per single unit, by [`TokenClass::index`], as [`super::price::rates_of_recorded`] has them.
    pub rates: [Option<Rate>; CLASS_COUNT],
}

/// One line: a quantity at one rate in one service period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvoiceLine {
    /// Why it is there.
    pub kind: LineKind,
    /// The period in which the usage happened, or the tasks ended.
    pub service: Period,
    /// The provider's name; `None` where the line is of several, or of tasks.
    pub provider: Option<String>,
    /// The model's canonical name; `None` as for the provider.
    pub model: Option<String>,
    /// The token class; `None` as for the provider.
    pub class: Option<TokenClass>,
    /// Units, packages or tasks; negative where they are taken back.
    pub quantity: i64,
    /// Money for one; negative where a tier is cheaper than the list.
    pub rate: Amount,
    /// Quantity times rate, exact.
    pub exact: Amount,
    /// The exact amount rounded once, half away from zero.
    pub amount: MinorAmount,
    /// How it came about, where quantity and rate do not say it.
    pub note: Option<String>,
    /// The period price that made it.
    pub period_price: Option<PeriodPriceId>,
}

/// A finalized invoice with its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invoice {
    /// Its key.
    pub id: InvoiceId,
    /// Whom it bills.
    pub customer: CustomerId,
    /// The series that it is numbered in.
    pub series: String,
    /// Gapless in its series, from 1.
    pub number: i64,
    /// The billing period.
    pub period: Period,
    /// The currency of every amount on it.
    pub currency: Currency,
    /// Sum of the rounded lines.
    pub total: MinorAmount,
    /// Sum of the exact lines.
    pub exact_total: Amount,
    /// When it was finalized, in whole microseconds (what the database keeps).
    pub finalized_at: DateTime<Utc>,
    /// The customer's name at that time.
    pub customer_name: String,
    /// The customer's zone at that time.
    pub time_zone: String,
    /// What the figures were made from.
    pub manifest: Value,
    /// Hash of the invoice before it in the series; `None` for the first.
    pub previous_hash: Option<Vec<u8>>,
    /// In the order of their numbers, 1 first.
    pub lines: Vec<InvoiceLine>,
}

impl Invoice {
    /// The number as people write it: `INV-000042`.
    pub fn display_number(&self) -> String {
        format!("{}-{:06}", self.series, self.number)
    }

    /// SHA-256 over a canonical encoding of everything on the invoice and the hash of its predecessor: every field in
    /// a fixed order, numbers as text, each length-prefixed, so that no two invoices share an encoding.
    pub fn content_hash(&self) -> [u8; 32] {
        let mut seal = Seal(Sha256::new());
        seal.text(ENCODING);
        seal.bytes(self.id.0.as_bytes());
        seal.text(&self.customer.to_string());
        seal.text(&self.series);
        seal.text(&self.number.to_string());
        seal.period(self.period);
        seal.text(self.currency.as_str());
        seal.text(&self.total.minor().to_string());
        seal.text(&self.exact_total.femtos().to_string());
        seal.text(&self.finalized_at.timestamp_micros().to_string());
        seal.text(&self.customer_name);
        seal.text(&self.time_zone);
        seal.json(&self.manifest);
        seal.bytes(self.previous_hash.as_deref().unwrap_or_default());
        seal.text(&self.lines.len().to_string());
        for line in &self.lines {
            seal.text(line.kind.as_str());
            seal.period(line.service);
            // No name is empty, so an empty text is an absent one.
            seal.text(line.provider.as_deref().unwrap_or_default());
            seal.text(line.model.as_deref().unwrap_or_default());
            seal.text(line.class.map_or("", TokenClass::name));
            seal.text(&line.quantity.to_string());
            seal.text(&line.rate.femtos().to_string());
            seal.text(&line.exact.femtos().to_string());
            seal.text(&line.amount.minor().to_string());
            // Later than the encoding, so sealed only where they are there, behind a word that is no kind of line: what
            // follows a line is one of these words, the kind of the next line, or the end.
            if let Some(note) = &line.note {
                seal.text(NOTE);
                seal.text(note);
            }
            if let Some(price) = line.period_price {
                seal.text(PERIOD_PRICE);
                seal.text(&price.to_string());
            }
        }
        seal.0.finalize().into()
    }
}

/// A hash fed with length-prefixed fields.
struct Seal(Sha256);

impl Seal {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn period(&mut self, period: Period) {
        self.text(&period.start.timestamp_micros().to_string());
        self.text(&period.end.timestamp_micros().to_string());
    }

    /// Keys sorted: the database does not keep the order in which an object was written.
    fn json(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                let mut keys: Vec<&String> = fields.keys().collect();
                keys.sort_unstable();
                self.text(&format!("object {}", keys.len()));
                for key in keys {
                    self.text(key);
                    self.json(&fields[key]);
                }
            }
            Value::Array(items) => {
                self.text(&format!("array {}", items.len()));
                for item in items {
                    self.json(item);
                }
            }
            Value::String(text) => {
                self.text("string");
                self.text(text);
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => self.text(&value.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use serde_json::json;

    use super::*;

    fn invoice() -> Invoice {
        let at = |month| Utc.with_ymd_and_hms(2026, month, 1, 0, 0, 0).unwrap();
        let line = InvoiceLine {
            kind: LineKind::Usage,
            service: Period { start: at(10), end: at(11) },
            provider: Some("openai".to_owned()),
            model: Some("gpt-5".to_owned()),
            class: Some(TokenClass::Input),
            quantity: 1000,
            rate: Amount::from_femtos(1_250_000_000),
            exact: Amount::from_femtos(1_250_000_000_000),
            amount: MinorAmount::new(0, Currency::USD),
            note: None,
            period_price: None,
        };
        Invoice {
            id: InvoiceId(uuid::Uuid::from_u128(7)),
            customer: CustomerId(1),
            series: "INV".to_owned(),
            number: 42,
            period: Period { start: at(10), end: at(11) },
            currency: Currency::USD,
            total: MinorAmount::new(0, Currency::USD),
            exact_total: Amount::from_femtos(1_250_000_000_000),
            finalized_at: at(11),
            customer_name: "Acme".to_owned(),
            time_zone: "UTC".to_owned(),
            manifest: json!({"events": 3, "streams": [{"gaps": [], "incarnation": "x"}]}),
            previous_hash: None,
            lines: vec![line],
        }
    }

    #[test]
    fn the_hash_is_stable() {
        assert_eq!(invoice().display_number(), "INV-000042");
        let shuffled = Invoice {
            manifest: serde_json::from_str(r#"{"streams":[{"incarnation":"x","gaps":[]}],"events":3}"#)
                .unwrap(),
            ..invoice()
        };
        assert_eq!(shuffled.content_hash(), invoice().content_hash());
    }

    #[test]
    fn every_field_is_under_the_hash() {
        let sealed = invoice().content_hash();
        let mut edited: Vec<(&str, Invoice)> = Vec::new();
        let mut change = |name, edit: &dyn Fn(&mut Invoice)| {
            let mut changed = invoice();
            edit(&mut changed);
            edited.push((name, changed));
        };
        let second = chrono::TimeDelta::seconds(1);
        change("id", &|i| i.id = InvoiceId(uuid::Uuid::from_u128(8)));
        change("customer", &|i| i.customer = CustomerId(2));
        change("series", &|i| i.series.push('X'));
        change("number", &|i| i.number += 1);
        change("period start", &|i| i.period.start += second);
        change("period end", &|i| i.period.end += second);
        change("currency", &|i| i.currency = "EUR".parse().unwrap());
        change("total", &|i| i.total = MinorAmount::new(1, i.currency));
        change("exact total", &|i| i.exact_total = Amount::from_femtos(1));
        change("finalized at", &|i| i.finalized_at += second);
        change("name", &|i| i.customer_name.push('X'));
        change("zone", &|i| i.time_zone = "Asia/Kathmandu".to_owned());
        change("manifest", &|i| i.manifest["events"] = json!(4));
        change("previous", &|i| i.previous_hash = Some(vec![1; 32]));
        change("lines", &|i| i.lines.clear());
        change("kind", &|i| i.lines[0].kind = LineKind::LateUsage);
        change("service", &|i| i.lines[0].service.start += second);
        change("provider", &|i| i.lines[0].provider = Some("azure".to_owned()));
        change("no provider", &|i| i.lines[0].provider = None);
        change("model", &|i| i.lines[0].model = Some("gpt-4".to_owned()));
        change("no model", &|i| i.lines[0].model = None);
        change("class", &|i| i.lines[0].class = Some(TokenClass::Output));
        change("no class", &|i| i.lines[0].class = None);
        change("quantity", &|i| i.lines[0].quantity += 1);
        change("rate", &|i| i.lines[0].rate = Amount::from_femtos(1));
        change("negative rate", &|i| i.lines[0].rate = Amount::from_femtos(-1_250_000_000));
        change("note", &|i| i.lines[0].note = Some("7".to_owned()));
        change("period price", &|i| i.lines[0].period_price = Some(PeriodPriceId(7)));
        change("exact", &|i| i.lines[0].exact = Amount::from_femtos(1));
        change("amount", &|i| i.lines[0].amount = MinorAmount::new(1, i.currency));
        for (name, changed) in edited {
            assert_ne!(changed.content_hash(), sealed, "{name} is not sealed");
        }
    }

    /// Invoices that were sealed before lines had notes keep their hash.
    #[test]
    fn the_encoding_of_plain_lines_has_not_changed() {
        let sealed = "cd4526cf5fd7305879905c75b49bd1eea76014bf1c352d92e4905e2e128f7d88";
        let hash = invoice().content_hash();
        let bytes: Vec<u8> =
            (0..32).map(|at| u8::from_str_radix(&sealed[2 * at..2 * at + 2], 16).unwrap()).collect();
        assert_eq!(hash.as_slice(), bytes);
    }

    #[test]
    fn what_only_some_lines_have_is_not_taken_for_something_else() {
        let with = |edit: &dyn Fn(&mut Vec<InvoiceLine>)| {
            let mut changed = invoice();
            changed.lines.push(changed.lines[0].clone());
            edit(&mut changed.lines);
            changed.content_hash()
        };
        let hashes = [
            with(&|_| {}),
            with(&|lines| lines[0].note = Some("period price".to_owned())),
            with(&|lines| lines[1].note = Some("period price".to_owned())),
            with(&|lines| lines[0].period_price = Some(PeriodPriceId(1))),
            with(&|lines| lines[1].period_price = Some(PeriodPriceId(1))),
            with(&|lines| {
                lines[0].note = Some("usage".to_owned());
                lines[0].period_price = Some(PeriodPriceId(1));
            }),
        ];
        let distinct: std::collections::BTreeSet<_> = hashes.iter().collect();
        assert_eq!(distinct.len(), hashes.len());
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let mut left = invoice();
        let mut right = invoice();
        (left.customer_name, left.time_zone) = ("ab".to_owned(), "c".to_owned());
        (right.customer_name, right.time_zone) = ("a".to_owned(), "bc".to_owned());
        assert_ne!(left.content_hash(), right.content_hash());
    }
}
