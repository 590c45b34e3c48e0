//! The auditor itself: it finds nothing in a sound ledger, and finds each kind of damage.

use std::path::Path;

use crate::bed::{Bed, Verdict};
use crate::publisher::Load;
use crate::rounds::seed;

/// Damages that a ledger could have: the file, what is done to its lines, and the invariants that must break.
const DAMAGES: [(&str, Damage, &[&str]); 7] = [
    ("usage_events.csv", Damage::DropRow, &["I1", "I3", "I9"]),
    ("usage_events.csv", Damage::DoubleRow, &["I2", "I3", "I9"]),
    ("usage_events.csv", Damage::AddOne("input"), &["I2", "I3"]),
    ("usage_rollups.csv", Damage::AddOne("charge"), &["I3"]),
    ("tasks.csv", Damage::AddOne("output"), &["I3"]),
    ("ingest_batches.csv", Damage::DropRow, &["I9"]),
    ("gateway_sequences.csv", Damage::DropRow, &["I10"]),
];

#[derive(Debug, Clone, Copy)]
enum Damage {
    DropRow,
    DoubleRow,
    /// One more in a column.
    AddOne(&'static str),
}

impl Damage {
    fn apply(self, path: &Path) {
        let mut reader = csv::Reader::from_path(path).unwrap();
        let headers = reader.headers().unwrap().clone();
        let mut rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        let column = |name: &str| headers.iter().position(|header| header == name).unwrap();
        // A row of usage, where there are others.
        let victim = match headers.iter().position(|header| header == "kind") {
            Some(kind) => rows.iter().position(|row| &row[kind] == "usage").unwrap(),
            None => rows.len() / 2,
        };
        match self {
            Self::DropRow => drop(rows.remove(victim)),
            Self::DoubleRow => rows.push(rows[victim].clone()),
            Self::AddOne(name) => {
                let column = column(name);
                let changed = rows[victim].iter().enumerate().map(|(at, field)| {
                    let more =
                        || field.parse::<rust_decimal::Decimal>().unwrap() + rust_decimal::Decimal::ONE;
                    if at == column { more().to_string() } else { field.to_owned() }
                });
                rows[victim] = changed.collect();
            }
        }
        let mut writer = csv::Writer::from_path(path).unwrap();
        writer.write_record(&headers).unwrap();
        for row in &rows {
            writer.write_record(row).unwrap();
        }
        writer.flush().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_ledger_passes_and_every_damage_is_found() {
    let mut bed = Bed::new("auditing").await;
    let service = bed.serve().start();
    service.ready().await;
    bed.take_snapshots();
    Load::seeded(seed("auditing")).sent(&bed).await;
    bed.settled().await;
    let verdict = bed.audit().await;
    verdict.clean();
    println!("{}", verdict.text);
    for (file, damage, violated) in DAMAGES {
        let path = bed.folder.join("end").join(file);
        let sound = std::fs::read(&path).unwrap();
        damage.apply(&path);
        let verdict = Verdict::of(&bed.folder);
        for invariant in violated {
            verdict.violates(invariant);
        }
        std::fs::write(&path, sound).unwrap();
    }
}
