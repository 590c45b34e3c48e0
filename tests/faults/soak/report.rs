//! What the soak came to, as a page for people.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Command;
use std::time::Duration;

use super::samples::{Held, Sample};
use super::{LASTING, STRUCK};
use crate::publisher::now;

/// Samples of a minute: one of each is printed.
const SAMPLES_PER_ROW: usize = 12;
/// Fewer than those of a minute, which has a fault, show nothing.
const SAMPLES_MIN: usize = SAMPLES_PER_ROW;
/// Of the beginning and of the end so many parts of the samples are compared: a third.
const PARTS: usize = 3;
/// What memory may grow from the first third to the last: caches fill.
const MEMORY_GROWTH: f64 = 1.25;
const MEMORY_SLACK_MIB: u64 = 32;
/// File handles and connections that may come and go with reconnects.
const HANDLES_SLACK: u64 = 12;
const CONNECTIONS_SLACK: i64 = 6;

pub struct Report {
    pub seed: u64,
    pub most: f64,
    pub rate: u64,
    pub took: Duration,
    pub caught_up: Duration,
    pub faults: Vec<String>,
    /// How often each of the two programs was started again.
    pub restarts: [u32; 2],
    pub samples: Vec<Sample>,
    pub verdict: (bool, String),
    pub verified: (bool, String),
}

/// Which build it is: the commit, and whether something was changed since.
fn build() -> String {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return "of no commit".to_owned() };
    let changed = git(&["status", "--porcelain"]).is_none_or(|changes| !changes.is_empty());
    format!("commit {commit}{}", if changed { " with changes" } else { "" })
}

/// The middle of the values.
fn median<T: Copy + Ord + Default>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

impl Report {
    /// The first and the last third of the samples.
    fn ends(&self) -> (&[Sample], &[Sample]) {
        let part = self.samples.len() / PARTS;
        (&self.samples[..part], &self.samples[self.samples.len() - part..])
    }

    /// The same of what a program has.
    fn compare_held(&self, program: usize, figure: impl Fn(&Held) -> u64) -> (u64, u64) {
        self.compare(|sample| figure(&sample.programs[program]))
    }

    fn compare<T: Copy + Ord + Default>(&self, figure: impl Fn(&Sample) -> T) -> (T, T) {
        let (first, last) = self.ends();
        (median(first.iter().map(&figure)), median(last.iter().map(&figure)))
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let events = self.samples.last().map_or(0, |sample| sample.made);
        let Self { seed, most, rate, restarts, .. } = self;
        let (day, build) = (now().date_naive(), build());
        let minutes = self.took.as_secs_f64() / 60.0;
        writeln!(
            text,
            "# A soak: half the speed of one machine, with a fault every half a minute\n\n\
             `make soak` on two cores: PostgreSQL and NATS (`sync_interval: always`) with all they store on disk, two\n\
             `waybill serve` beside each other, everything reached through a proxy, one gateway that packs a hundred events\n\
             into a message, and sends one of fifty messages twice. Faults of a program strike one of the two, the other runs\n\
             all the time. Seed {seed}, {day}, {build}.\n\n\
             | | |\n|---|---|\n\
             | most events per second, everything posted, measured first | {most:.0} |\n\
             | events per second of the soak | {rate} |\n\
             | minutes | {minutes:.1} |\n\
             | events | {events} |\n\
             | seconds until all was recorded and posted after the last one | {:.1} |\n\
             | faults | {} |\n\
             | restarts of the program that is struck, and of the other | {}, {} |",
            self.caught_up.as_secs_f64(),
            self.faults.len(),
            restarts[STRUCK],
            restarts[LASTING],
        )
        .unwrap();
        for (what, (first, last)) in [
            (
                "MiB of memory of the program that is struck",
                self.compare_held(STRUCK, |held| held.memory_mib),
            ),
            ("file handles of it", self.compare_held(STRUCK, |held| held.handles)),
            ("MiB of memory of the other", self.compare_held(LASTING, |held| held.memory_mib)),
            ("file handles of it", self.compare_held(LASTING, |held| held.handles)),
            ("connections to PostgreSQL", self.compare(|sample| sample.connections.unsigned_abs())),
            ("MiB of memory of NATS", self.compare(|sample| sample.nats_mib)),
        ] {
            writeln!(text, "| {what}, median of the first and of the last third | {first}, {last} |")
                .unwrap();
        }
        self.write_faults(&mut text);
        self.write_samples(&mut text);
        let (_, audited) = &self.verdict;
        let (_, verified) = &self.verified;
        write!(
            text,
            "\nThe auditor:\n\n```text\n{audited}```\n\n`waybill verify`:\n\n```text\n{verified}```\n"
        )
        .unwrap();
        text
    }

    fn write_faults(&self, text: &mut String) {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for fault in &self.faults {
            *counts.entry(fault).or_default() += 1;
        }
        writeln!(text, "\n| Fault | times |\n|---|---|").unwrap();
        for (fault, times) in counts {
            writeln!(text, "| {fault} | {times} |").unwrap();
        }
    }

    fn write_samples(&self, text: &mut String) {
        writeln!(
            text,
            "\n| s | memory MiB: struck, other | handles | connections | NATS MiB | made | not confirmed | not recorded | not posted |\n\
             |---|---|---|---|---|---|---|---|---|"
        )
        .unwrap();
        let first = self.samples.first().copied().unwrap_or_default();
        for sample in self.samples.iter().step_by(SAMPLES_PER_ROW) {
            let made = i64::try_from(sample.made).unwrap_or_default();
            writeln!(
                text,
                "| {} | {}, {} | {}, {} | {} | {} | {} | {} | {} | {} |",
                sample.seconds,
                sample.programs[STRUCK].memory_mib,
                sample.programs[LASTING].memory_mib,
                sample.programs[STRUCK].handles,
                sample.programs[LASTING].handles,
                sample.connections,
                sample.nats_mib,
                sample.made - first.made,
                sample.made.saturating_sub(sample.confirmed),
                made - sample.recorded,
                sample.recorded - sample.posted,
            )
            .unwrap();
        }
    }

    /// What must hold.
    pub fn check(&self) {
        assert!(self.samples.len() >= SAMPLES_MIN, "{} samples show nothing", self.samples.len());
        assert!(!self.faults.is_empty(), "nothing has happened");
        assert!(self.verdict.0, "the auditor found something: {}", self.verdict.1);
        assert!(self.verified.0, "the ledger does not verify: {}", self.verified.1);
        assert_eq!(self.restarts[LASTING], 0, "the program that nobody struck has ended");
        let (first, last) = self.compare_held(LASTING, |held| held.memory_mib);
        let bound = (first as f64 * MEMORY_GROWTH) as u64 + MEMORY_SLACK_MIB;
        assert!(last <= bound, "memory grows from {first} to {last} MiB");
        let (first, last) = self.compare_held(LASTING, |held| held.handles);
        assert!(last <= first + HANDLES_SLACK, "file handles grow from {first} to {last}");
        let (first, last) = self.compare(|sample| sample.connections);
        assert!(last <= first + CONNECTIONS_SLACK, "connections grow from {first} to {last}");
    }
}
