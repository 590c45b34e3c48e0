//! The auditor itself: it finds nothing in a sound ledger, and finds each kind of damage.

use std::path::Path;

use chrono::{DateTime, TimeDelta};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use waybill::clock::Clock;
use waybill::ingest::compaction::compact;
use waybill::invoicing::close_due;
use waybill::shutdown::Shutdown;
use waybill::store::Database;

use crate::api::event;
use crate::bed::{Bed, CUSTOMERS, LONG_ACK_WAIT_SECONDS, Verdict};
use crate::publisher::{Gateway, Load, now};
use crate::rounds::seed;
use crate::servers::copy;

/// Damages that a ledger could have, or that the auditor should notice in what it compares it with: the file, the row, what is
/// done to it, and the invariants that must break.
const DAMAGES: [(&str, Row, Damage, &[&str]); 36] = [
    (EVENTS, LAST, Damage::Drop, &["I1", "I2", "I3", "I9"]),
    (EVENTS, LAST, Damage::Double, &["I2", "I3", "I9"]),
    (EVENTS, LAST, Damage::Add(1, &["input"]), &["I2", "I3", "I9"]),
    (EVENTS, LAST, Damage::Later("occurred_at"), &["I2", "I3", "I9"]),
    (EVENTS, LAST, Damage::Set("project", "elsewhere"), &["I2", "I3"]),
    (EVENTS, LAST, Damage::Set("estimated", "t"), &["I2"]),
    // Of a correction that takes back something else, or nothing.
    (EVENTS, Row::Is("kind", "reversal"), Damage::Set("corrects_key", ""), &["I3"]),
    (EVENTS, Row::Is("kind", "reversal"), Damage::Drop, &["I3"]),
    (ROLLUPS, Row::Is("whole_day", "f"), Damage::Add(1, &["charge"]), &["I3"]),
    (ROLLUPS, Row::Is("whole_day", "f"), Damage::Later("hour"), &["I3"]),
    (ROLLUPS, Row::Is("whole_day", "f"), Damage::Later("booked_period"), &["I3"]),
    (ROLLUPS, Row::Is("whole_day", "t"), Damage::Add(1, &["charge"]), &["I3"]),
    (ROLLUPS, Row::Is("whole_day", "t"), Damage::Later("hour"), &["I3"]),
    ("end/usage_hours.csv", Row::Any, Damage::Add(1, &["cost"]), &["I3"]),
    ("end/usage_hours.csv", Row::Any, Damage::Later("hour"), &["I3"]),
    ("end/usage_hours.csv", Row::Any, Damage::Later("day"), &["I3"]),
    ("end/prices.csv", Row::Any, Damage::Swap("id"), &["I3"]),
    ("end/prices.csv", Row::Any, Damage::Set("valid_from", "2099-01-01 00:00:00+00"), &["I3"]),
    ("end/prices.csv", Row::Any, Damage::Set("valid_to", "2025-01-02 00:00:00+00"), &["I3"]),
    ("end/prices.csv", Row::Any, Damage::Drop, &["I3"]),
    // The next book, which is not one of the customer's cost books.
    ("end/book_assignments.csv", Row::Any, Damage::Add(1, &["cost_book_id"]), &["I3"]),
    ("end/tasks.csv", Row::Any, Damage::Add(1, &["output"]), &["I3"]),
    ("end/tasks.csv", Row::IsNot("outcome", ""), Damage::Later("ended_at"), &["I3"]),
    ("end/tasks.csv", Row::IsNot("outcome", ""), Damage::Later("outcome_period"), &["I3"]),
    (BATCHES, Row::Any, Damage::Drop, &["I9"]),
    // An event that nobody has counted.
    (BATCHES, Row::IsNot("duplicates", "0"), Damage::Add(-1, &["events", "duplicates"]), &["I9"]),
    // Copies that nobody has sent, as many as there would be if one of its messages of one event had come twice.
    (BATCHES, Row::MessagesWithCopies, Damage::Add(1, &["events", "duplicates"]), &["I9"]),
    (BATCHES, Row::OneMessageWithCopies, Damage::Split, &["I9"]),
    (REJECTIONS, Row::Is("reason", "conflict"), Damage::Drop, &["I2", "I9"]),
    (REJECTIONS, Row::Is("reason", "conflict"), Damage::Set("reason", "time"), &["I2", "I9"]),
    (REJECTIONS, Row::Is("reason", "unknown_customer"), Damage::Drop, &["I1", "I9"]),
    (REJECTIONS, Row::Is("event_index", "-1"), Damage::Drop, &["I1", "I9"]),
    ("end/gateway_sequences.csv", Row::Any, Damage::Drop, &["I10"]),
    ("end/stream.jsonl", Row::Any, Damage::Swap("body"), &["I9"]),
    ("end/stream.jsonl", Row::Any, Damage::Add(1, &["sequence"]), &["I9"]),
    ("snapshots/99999/usage_rollups.csv", Row::Any, Damage::Add(1, &["charge"]), &["I12"]),
];
const EVENTS: &str = "end/usage_events.csv";
const ROLLUPS: &str = "end/usage_rollups.csv";
const BATCHES: &str = "end/ingest_batches.csv";
const REJECTIONS: &str = "end/rejections.csv";
/// The event that comes last, so that it is known what is damaged: no estimate, and no copy of it was sent.
const LAST: Row = Row::Is("id", LAST_ID);
const LAST_ID: &str = "last";

/// Which row is damaged: the last of those.
#[derive(Debug, Clone, Copy)]
enum Row {
    Any,
    /// One with this in a column, or with something else.
    Is(&'static str, &'static str),
    IsNot(&'static str, &'static str),
    /// A batch of one message that has copies.
    OneMessageWithCopies,
    /// One of several messages that has copies.
    MessagesWithCopies,
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Drop,
    Double,
    /// So much more in each of the columns.
    Add(i64, &'static [&'static str]),
    /// An hour later.
    Later(&'static str),
    Set(&'static str, &'static str),
    /// What the first row has in the column, and the first one what this one has.
    Swap(&'static str),
    /// One of its copies becomes a batch of its own, with the same sequences.
    Split,
}

/// A file of CSV, or of a JSON object a line.
struct Table {
    json: bool,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn read(path: &Path) -> Self {
        let json = path.extension().is_some_and(|extension| extension == "jsonl");
        if !json {
            let mut reader = csv::Reader::from_path(path).unwrap();
            let texts = |record: &csv::StringRecord| record.iter().map(str::to_owned).collect();
            let columns = texts(reader.headers().unwrap());
            return Self {
                json,
                columns,
                rows: reader.records().map(|record| texts(&record.unwrap())).collect(),
            };
        }
        let text = std::fs::read_to_string(path).unwrap();
        let objects: Vec<serde_json::Map<String, Value>> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let columns = objects[0].keys().cloned().collect();
        let values =
            |object: &serde_json::Map<String, Value>| object.values().map(Value::to_string).collect();
        Self { json, columns, rows: objects.iter().map(values).collect() }
    }

    fn write(&self, path: &Path) {
        if !self.json {
            let mut writer = csv::Writer::from_path(path).unwrap();
            for record in std::iter::once(&self.columns).chain(&self.rows) {
                writer.write_record(record).unwrap();
            }
            return writer.flush().unwrap();
        }
        let object = |row: &Vec<String>| {
            let values = row.iter().map(|text| serde_json::from_str::<Value>(text).unwrap());
            Value::Object(self.columns.iter().cloned().zip(values).collect()).to_string() + "\n"
        };
        std::fs::write(path, self.rows.iter().map(object).collect::<String>()).unwrap();
    }

    fn column(&self, name: &str) -> usize {
        self.columns.iter().position(|column| column == name).unwrap()
    }

    fn find(&self, row: Row) -> usize {
        let found = match row {
            Row::Any => self.rows.len().checked_sub(1),
            Row::Is(name, value) => self.rows.iter().rposition(|row| row[self.column(name)] == value),
            Row::IsNot(name, value) => self.rows.iter().rposition(|row| row[self.column(name)] != value),
            Row::OneMessageWithCopies => self.rows.iter().rposition(|row| {
                row[self.column("messages")] == "1" && row[self.column("duplicates")] != "0"
            }),
            Row::MessagesWithCopies => self.rows.iter().rposition(|row| {
                row[self.column("messages")] != "1" && row[self.column("duplicates")] != "0"
            }),
        };
        found.unwrap_or_else(|| panic!("there is no such row: {row:?}"))
    }

    fn add(&mut self, row: usize, more: i64, names: &[&str]) {
        for name in names {
            let column = self.column(name);
            let field = &mut self.rows[row][column];
            *field = (field.parse::<Decimal>().unwrap() + Decimal::from(more)).to_string();
        }
    }

    fn damage(&mut self, row: Row, damage: Damage) {
        let victim = self.find(row);
        match damage {
            Damage::Drop => drop(self.rows.remove(victim)),
            Damage::Double => self.rows.push(self.rows[victim].clone()),
            Damage::Add(more, names) => self.add(victim, more, names),
            Damage::Later(name) => {
                let column = self.column(name);
                let field = &mut self.rows[victim][column];
                let at = DateTime::parse_from_str(field, "%Y-%m-%d %H:%M:%S%.f%#z").unwrap();
                *field = (at + TimeDelta::hours(1)).format("%Y-%m-%d %H:%M:%S%.f+00").to_string();
            }
            Damage::Set(name, value) => {
                let column = self.column(name);
                value.clone_into(&mut self.rows[victim][column]);
            }
            Damage::Swap(name) => {
                let column = self.column(name);
                let (first, others) = self.rows.split_at_mut(1);
                std::mem::swap(&mut first[0][column], &mut others[victim - 1][column]);
            }
            Damage::Split => {
                let mut part = self.rows[victim].clone();
                for (name, value) in [
                    ("id", "999999999"),
                    ("events", "1"),
                    ("recorded", "0"),
                    ("duplicates", "1"),
                    ("rejected", "0"),
                ] {
                    value.clone_into(&mut part[self.column(name)]);
                }
                self.rows.push(part);
                self.add(victim, -1, &["events", "duplicates"]);
            }
        }
    }
}

/// A ledger in which everything has happened that the auditor should know: hours that are summed into days, periods that are
/// closed and usage that came too late for them, copies, conflicts, an estimate and its correction, and what cannot be recorded.
async fn eventful(bed: &mut Bed) {
    let seed = seed("auditing");
    // So that nothing is delivered again: a batch has no event twice.
    let service = bed.serve().env("WAYBILL_ACK_WAIT_SECONDS", &LONG_ACK_WAIT_SECONDS).start();
    service.ready().await;
    bed.take_snapshots();
    Load::seeded(seed).sent(bed).await;
    bed.settled().await;
    let database = Database::connect(bed.database_url()).await.unwrap();
    let summed = compact(&database, now(), &Shutdown::new()).await.unwrap();
    assert!(summed > 0, "nothing is so old");
    let next_month = Clock::fixed(now() + TimeDelta::days(32));
    // By the database's own clock the month still runs.
    let mut owner = PgConnection::connect(bed.database_url()).await.unwrap();
    let over = "CREATE OR REPLACE FUNCTION latest_period_end() RETURNS timestamptz LANGUAGE sql
                AS $$ SELECT 'infinity'::timestamptz $$";
    sqlx::raw_sql(over).execute(&mut owner).await.unwrap();
    owner.close().await.unwrap();
    let closed = close_due(&database, &next_month, TimeDelta::zero(), "test", |_| ()).await.unwrap();
    assert!(closed.len() >= CUSTOMERS.len() && closed.iter().all(|turn| turn.outcome.is_ok()), "{closed:?}");
    database.close().await;
    Load::seeded(seed + 1).sent(bed).await;

    let name = bed.gateways[0].clone();
    let mut gateway = Gateway::new(bed, &name, "own").await;
    let first = event(&name, "own", CUSTOMERS[0], "own");
    let (mut other, mut poison) = (first.clone(), event(&name, "poison", CUSTOMERS[0], "own"));
    other["data"]["usage"] = json!({"input": 1});
    poison["subject"] = json!("nobody");
    let (mut estimate, mut correction) =
        (event(&name, "estimate", CUSTOMERS[0], "own"), event(&name, "correction", CUSTOMERS[0], "own"));
    estimate["data"]["usage_source"] = json!("estimated");
    correction["data"]["corrects"] = estimate["id"].clone();
    for (event, note) in [
        (&first, "new"),
        (&first, "copy"),
        (&other, "conflict"),
        (&poison, "poison"),
        (&estimate, "new"),
        (&correction, "new"),
    ] {
        gateway.send(event.to_string(), &[note], false).await;
    }
    gateway.send("no JSON".to_owned(), &["whole"], false).await;
    bed.settled().await;
    // Alone in its batch.
    let pair = Value::from(vec![first, event(&name, LAST_ID, CUSTOMERS[0], "own")]);
    gateway.send(pair.to_string(), &["copy", "new"], false).await;
    bed.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_ledger_passes_and_every_damage_is_found() {
    let mut bed = Bed::new("auditing").await;
    eventful(&mut bed).await;
    let verdict = bed.audit().await;
    verdict.clean();
    println!("{}", verdict.text);
    // One more snapshot, which has something in every table.
    copy(&bed.folder.join("end"), &bed.folder.join("snapshots/99999"));
    Verdict::of(&bed.folder).clean();
    for (file, row, damage, violated) in DAMAGES {
        let path = bed.folder.join(file);
        let sound = std::fs::read(&path).unwrap();
        let mut table = Table::read(&path);
        table.damage(row, damage);
        table.write(&path);
        let verdict = Verdict::of(&bed.folder);
        println!("{file} {row:?} {damage:?}: {:?}", verdict.violated);
        for invariant in violated {
            verdict.violates(invariant);
        }
        std::fs::write(&path, sound).unwrap();
    }
}
