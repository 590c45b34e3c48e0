//! Invoices: what a line says, and the hash that seals a finalized one.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::event::text_enum;
use super::ids::{CustomerId, InvoiceId};
use super::money::{Amount, Currency, MinorAmount, Rate};
use super::period::Period;
use super::tokens::{CLASS_COUNT, TokenClass};

/// Names the encoding that [`Invoice::content_hash`] hashes; another encoding gets another name.
const ENCODING: &str = "waybill.invoice.1";

text_enum! {
    /// Why a line is on an invoice.
    LineKind, UnknownLineKind, "invoice line kind" {
        /// Usage of the invoiced period.
        Usage = "usage",
        /// Usage of an earlier period that was recorded after that period was closed.
        LateUsage = "late_usage",
        /// The difference that a re-rate of recorded usage makes.
        Adjustment = "adjustment",
    }
}

/// What an invoice line needs to know of a price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceTerms {
    /// The provider's name.
    pub provider: String,
    /// The model's canonical name.
    pub model: String,
    /// The currency of its book.
    pub currency: Currency,
    /// Per single unit, by [`TokenClass::index`], missing ones taken from their parents.
    pub rates: [Option<Rate>; CLASS_COUNT],
}

/// One line: a quantity of one class of one model at one rate in one service period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvoiceLine {
    /// Why it is there.
    pub kind: LineKind,
    /// The period in which the usage happened.
    pub service: Period,
    /// The provider's name.
    pub provider: String,
    /// The model's canonical name.
    pub model: String,
    /// The token class.
    pub class: TokenClass,
    /// Units; negative where corrections outweigh usage.
    pub quantity: i64,
    /// Money per single unit.
    pub rate: Rate,
    /// Quantity times rate, exact.
    pub exact: Amount,
    /// The exact amount rounded once, half away from zero.
    pub amount: MinorAmount,
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
            seal.text(&line.provider);
            seal.text(&line.model);
            seal.text(line.class.name());
            seal.text(&line.quantity.to_string());
            seal.text(&line.rate.femtos().to_string());
            seal.text(&line.exact.femtos().to_string());
            seal.text(&line.amount.minor().to_string());
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
            provider: "openai".to_owned(),
            model: "gpt-5".to_owned(),
            class: TokenClass::Input,
            quantity: 1000,
            rate: Rate::from_femtos(1_250_000_000).unwrap(),
            exact: Amount::from_femtos(1_250_000_000_000),
            amount: MinorAmount::new(0, Currency::USD),
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
        change("provider", &|i| i.lines[0].provider.push('X'));
        change("model", &|i| i.lines[0].model.push('X'));
        change("class", &|i| i.lines[0].class = TokenClass::Output);
        change("quantity", &|i| i.lines[0].quantity += 1);
        change("rate", &|i| i.lines[0].rate = Rate::from_femtos(1).unwrap());
        change("exact", &|i| i.lines[0].exact = Amount::from_femtos(1));
        change("amount", &|i| i.lines[0].amount = MinorAmount::new(1, i.currency));
        for (name, changed) in edited {
            assert_ne!(changed.content_hash(), sealed, "{name} is not sealed");
        }
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
