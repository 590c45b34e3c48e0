//! The soak: half the speed of this machine for half an hour, with a fault every half a minute.
//!
//! Two programs run beside each other on servers that keep what they store; all of them are reached through the proxies. One
//! is killed, frozen and stopped, the other never. Flat means that its memory and file handles, and the connections of both,
//! at the end are what they were at the beginning. The auditor compares what was sent with what is recorded, rolled up and summed per task, to the last digit.

#![expect(
    clippy::float_arithmetic,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people, no money"
)]

mod report;
mod samples;
mod sent;
mod trouble;
#[path = "../../../benches/ingest/workload.rs"]
#[expect(dead_code, reason = "the soak needs a part of it")]
mod workload;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::bed::{Bed, Catalog, Own};
use crate::dump;
use crate::rounds::{number, seed};
use report::Report;
use samples::Sampler;
use sent::Sending;
use workload::{CUSTOMERS, GATEWAY, MODELS};

/// How long it takes, unless `WAYBILL_SOAK_MINUTES` says otherwise.
const MINUTES: u64 = 30;
/// Of the two programs the one that faults strike, and the one that runs all the time.
const STRUCK: usize = 0;
const LASTING: usize = 1;
/// Events by which the speed of the machine is measured first.
const MEASURED_EVENTS: usize = 400_000;
/// What the stream may hold: all of it.
const STREAM_BYTES_MAX: i64 = 20 << 30;
/// After this a message is delivered again that a killed program had in hand.
const ACK_WAIT_SECONDS: u64 = 30;
/// How long everything may take to be recorded and posted at the end.
const SETTLE_TIMEOUT: Duration = Duration::from_mins(10);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "half an hour: make soak"]
async fn half_an_hour_of_faults_at_half_speed_loses_nothing_and_stays_flat() {
    let seed = seed("soak");
    let minutes = number::<u64>("WAYBILL_SOAK_MINUTES").unwrap_or(MINUTES);
    let catalog = Catalog {
        gateways: vec![GATEWAY.to_owned()],
        customers: (0..CUSTOMERS).map(workload::customer).collect(),
        models: (0..MODELS)
            .map(workload::model)
            .map(|(provider, model)| (provider.to_owned(), model))
            .collect(),
    };
    let own = Own {
        postgres: true,
        nats: true,
        catalog,
        stream_bytes_max: Some(STREAM_BYTES_MAX),
        ..Own::default()
    };
    let mut bed = Bed::with("soak", own).await;
    let serve = bed
        .serve()
        .env("WAYBILL_ACK_WAIT_SECONDS", &ACK_WAIT_SECONDS)
        .env("WAYBILL_LOG", &"warn,waybill::ingest::posting=debug,async_nats=error,sqlx=error");
    let services = [serve.clone(), serve].map(|serve| Arc::new(serve.supervised()));
    for service in &services {
        service.ready().await;
    }

    let mut sending = Sending::start(&bed, seed).await;
    let started = Instant::now();
    sending.publish(MEASURED_EVENTS, None).await;
    bed.settled_within(SETTLE_TIMEOUT).await;
    let most = MEASURED_EVENTS as f64 / started.elapsed().as_secs_f64();
    let rate = number("WAYBILL_SOAK_RATE").unwrap_or((most / 2.0) as u64);
    eprintln!("{most:.0} events/s at most; {rate} events/s for {minutes} minutes");

    let looking = Sampler::start(&bed, &services, &sending);
    let started = Instant::now();
    let events = usize::try_from(rate * minutes * 60).unwrap();
    let faults = {
        let publishing = sending.publish(events, Some(rate));
        tokio::pin!(publishing);
        let troubling = trouble::make(&mut bed, &services[STRUCK], seed);
        tokio::pin!(troubling);
        tokio::select! {
            () = &mut publishing => {}
            _ = &mut troubling => unreachable!("it goes on until it is told to stop"),
        }
        trouble::stop();
        troubling.await
    };
    let took = started.elapsed();
    let caught_up = bed.settled_within(SETTLE_TIMEOUT).await;
    let samples = looking.stop().await;
    sending.finish(&bed.folder.join("journals/totals.csv")).await;

    let verdict = audit(&bed).await;
    let verified = verify(&bed);
    let restarts = [STRUCK, LASTING].map(|number| services[number].restarts());
    let report = Report { seed, most, rate, took, caught_up, faults, restarts, samples, verdict, verified };
    let text = report.text();
    println!("{text}");
    if let Some(path) = std::env::var_os("WAYBILL_SOAK_REPORT") {
        std::fs::write(PathBuf::from(path), &text).unwrap();
    }
    report.check();
}

/// What the auditor says to the sums of the ledger.
async fn audit(bed: &Bed) -> (bool, String) {
    let end = bed.folder.join("end");
    dump::sums(bed.database_url(), &end).await.unwrap();
    let (last, _) = bed.stream_state().await.unwrap();
    std::fs::write(end.join("last_sequence"), last.to_string()).unwrap();
    let auditor = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/auditor/soak.py");
    let output = Command::new("python3").arg("-B").arg(auditor).arg(&bed.folder).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// `waybill verify`, past the proxies.
fn verify(bed: &Bed) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_waybill"))
        .arg("verify")
        .env("WAYBILL_DATABASE_URL", bed.database_url())
        .env("WAYBILL_LOG", "error")
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}
