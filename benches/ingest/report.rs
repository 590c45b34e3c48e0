//! Medians of the repeats: a table for people, and one JSON object per line for scripts.

#![expect(clippy::float_arithmetic, clippy::cast_precision_loss, reason = "figures for people, no money")]

use std::collections::BTreeMap;

use crate::scenarios::{Ages, Disk, Measured};

/// Figures by run and name, one per repeat, in the order of the first.
#[derive(Default)]
pub struct Report {
    order: Vec<(&'static str, String)>,
    figures: BTreeMap<(&'static str, String), Vec<f64>>,
}

/// The metrics that scripts read: name, run and figure they are taken from, unit, decimal places.
const METRICS: [(&str, &str, &str, &str, usize); 20] = [
    ("drain_packed_vs_copy", "packed", "drain_vs_copy", "ratio", 3),
    ("drain_single_vs_copy", "single", "drain_vs_copy", "ratio", 3),
    ("live_packed_vs_tx_per_event", "packed", "live_vs_tx_per_event", "ratio", 1),
    ("live_single_vs_tx_per_event", "single", "live_vs_tx_per_event", "ratio", 1),
    ("cpu_us_per_event_packed", "packed", "live_cpu_us", "us", 2),
    ("cpu_us_per_event_single", "single", "live_cpu_us", "us", 2),
    ("recorded_p50_ms_at_10k", "packed", "recorded_p50_ms", "ms", 1),
    ("recorded_p99_ms_at_10k", "packed", "recorded_p99_ms", "ms", 1),
    ("posted_p50_ms_at_10k", "packed", "posted_p50_ms", "ms", 1),
    ("posted_p99_ms_at_10k", "packed", "posted_p99_ms", "ms", 1),
    ("recorded_single_p99_ms_at_10k", "single", "recorded_p99_ms", "ms", 1),
    ("posted_single_p99_ms_at_10k", "single", "posted_p99_ms", "ms", 1),
    ("wal_bytes_per_event", "packed", "drain_wal_bytes", "B", 0),
    ("disk_bytes_per_event", "packed", "disk_bytes", "B", 0),
    ("evidence_bytes_per_event", "packed", "disk_evidence_bytes", "B", 0),
    ("rss_mib", "packed", "rss_mib", "MiB", 0),
    ("rss_single_mib", "single", "rss_mib", "MiB", 0),
    ("throughput_at_50m_vs_empty", "v7", "filled_vs_empty", "ratio", 3),
    ("throughput_at_50m_vs_empty_random_ids", "random", "filled_vs_empty", "ratio", 3),
    ("published_singles_per_second_synced", "stream_synced", "published_singles_per_second", "1/s", 0),
];

impl Report {
    pub fn add(&mut self, run: &'static str, name: impl Into<String>, value: f64) {
        let name = name.into();
        eprintln!("{run:<8} {name:<32} {value:.3}");
        let key = (run, name);
        if !self.figures.contains_key(&key) {
            self.order.push(key.clone());
        }
        self.figures.entry(key).or_default().push(value);
    }

    pub fn drained(&mut self, run: &'static str, measured: &Measured, copied: f64) {
        self.add(run, "copy_per_second", copied);
        self.add(run, "drain_per_second", measured.per_second());
        self.add(run, "drain_vs_copy", measured.per_second() / copied);
        self.add(run, "drain_wal_bytes", measured.wal_bytes as f64 / measured.events as f64);
        self.spent(run, "drain", measured);
    }

    pub fn live(&mut self, run: &'static str, measured: &Measured, slow: f64) {
        self.add(run, "tx_per_event_per_second", slow);
        self.add(run, "live_per_second", measured.per_second());
        self.add(run, "live_vs_tx_per_event", measured.per_second() / slow);
        self.spent(run, "live", measured);
    }

    fn spent(&mut self, run: &'static str, what: &str, measured: &Measured) {
        for program in measured.cpu.keys() {
            self.add(run, format!("{what}_cpu_us {program}"), measured.cpu_micros(Some(program)));
        }
        self.add(run, format!("{what}_cpu_us"), measured.cpu_micros(None));
        self.add(run, "rss_mib", measured.rss_mib as f64);
    }

    pub fn ages(&mut self, run: &'static str, ages: Ages) {
        self.add(run, "recorded_p50_ms", ages.recorded.0);
        self.add(run, "recorded_p99_ms", ages.recorded.1);
        self.add(run, "posted_p50_ms", ages.posted.0);
        self.add(run, "posted_p99_ms", ages.posted.1);
    }

    pub fn disk(&mut self, run: &'static str, events: usize, disk: Disk) {
        let Disk { heap, indexes, rollups, tasks, evidence } = disk;
        let per_event = |bytes: i64| bytes as f64 / events as f64;
        self.add(run, "disk_bytes", per_event(heap + indexes + rollups));
        self.add(run, "disk_heap_bytes", per_event(heap));
        self.add(run, "disk_index_bytes", per_event(indexes));
        self.add(run, "disk_rollup_bytes", per_event(rollups));
        self.add(run, "disk_task_bytes", per_event(tasks));
        self.add(run, "disk_evidence_bytes", per_event(evidence));
    }

    /// Throughput into a large journal beside that into an empty one.
    pub fn large(&mut self, run: &'static str, rows: usize, empty: &Measured, filled: &Measured) {
        self.add(run, "rows", rows as f64);
        self.add(run, "drain_per_second_empty", empty.per_second());
        self.add(run, "drain_per_second_filled", filled.per_second());
        self.add(run, "filled_vs_empty", filled.per_second() / empty.per_second());
        self.add(run, "filled_wal_bytes", filled.wal_bytes as f64 / filled.events as f64);
        self.spent(run, "empty", empty);
        self.spent(run, "filled", filled);
    }

    fn median(&self, run: &'static str, name: &str) -> Option<f64> {
        let mut values = self.figures.get(&(run, name.to_owned()))?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    pub fn print(&self) {
        println!("{:<16} {:<32} {:>12} {:>12} {:>12}", "run", "figure", "median", "least", "most");
        for (run, name) in &self.order {
            let values = &self.figures[&(*run, name.clone())];
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(0.0, f64::max);
            let median = self.median(run, name).unwrap_or_default();
            println!("{run:<16} {name:<32} {median:>12.2} {least:>12.2} {most:>12.2}");
        }
        for (metric, run, name, unit, places) in METRICS {
            if let Some(value) = self.median(run, name) {
                println!(
                    r#"{{"bench":"ingest","metric":"{metric}","value":{value:.places$},"unit":"{unit}"}}"#
                );
            }
        }
    }
}
