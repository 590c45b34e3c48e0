//! Re-rates beside recording and beside each other: recording goes on, whatever a re-rate waits for.

use chrono::{NaiveDate, NaiveTime};
use sqlx::Connection;
use waybill::clock::Clock;
use waybill::invoicing::rerate::{RerateError, apply, apply_within};
use waybill::store::{commit, journal};

use crate::harness::wait_until;
use crate::ledger::{Ledger, call, utc};
use crate::rerate::{everything, gpt5, publish};

/// When re-rates are made: a day after the booking date that is open.
const NOW: &str = "2026-11-24T00:00:00Z";
/// When that date is open.
const OPEN: &str = "2026-11-23T12:00:00Z";

/// Usage at a price that was changed since.
async fn ledger() -> Ledger {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-11-05T00:00:00Z", "a", 1_000_000, 0)]).await;
    publish(&ledger, "standard", gpt5("2026-11-02T00:00:00Z", "4", "22", "0.02")).await;
    ledger
}

/// Waits until somebody in the database waits for a lock of this kind.
async fn somebody_waits(ledger: &Ledger, kind: &str) {
    let waits = format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = '{kind}' AND NOT granted
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    );
    wait_until("somebody waits", async || (ledger.count(&waits).await > 0).then_some(())).await;
}

/// What a transaction that records does first; the date that it books on.
async fn record(ledger: &Ledger) -> NaiveDate {
    let mut tx = ledger.database.begin_ingest().await.unwrap();
    // Half of how long it waits at most.
    sqlx::raw_sql("SET LOCAL lock_timeout = '5s'").execute(&mut *tx).await.unwrap();
    let opening = journal::open(&mut tx, None).await.expect("recording goes on").unwrap();
    commit(tx).await.unwrap();
    opening.booked_on
}

#[tokio::test]
async fn a_re_rate_that_waits_for_another_keeps_no_recording_waiting() {
    let ledger = ledger().await;
    let (now, all) = (utc(NOW), everything());
    let mut first = ledger.database.begin().await.unwrap();
    let applied = apply_within(&mut first, &ledger.database, now, &all, "test").await.unwrap();
    assert_eq!(applied.groups.len(), 1);
    let clock = Clock::fixed(now);
    let beside = async {
        somebody_waits(&ledger, "advisory").await;
        record(&ledger).await;
        // A request waits a moment, and is told then.
        let mut hasty = ledger.database.begin().await.unwrap();
        let refused = apply_within(&mut hasty, &ledger.database, now, &all, "test").await;
        assert!(matches!(refused, Err(RerateError::Running)), "{refused:?}");
        drop(hasty);
        commit(first).await.unwrap();
    };
    let (second, ()) = tokio::join!(apply(&ledger.database, &clock, &all, "test"), beside);
    assert_eq!(second.unwrap().groups, [], "the first has restated it");
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events WHERE kind = 'restatement'").await, 1);
}

#[tokio::test]
async fn a_re_rate_waits_for_those_who_record_and_lets_others_record_soon() {
    let ledger = ledger().await;
    let mut recording = ledger.database.begin_ingest().await.unwrap();
    journal::open(&mut recording, None).await.unwrap();
    let clock = Clock::fixed(utc(NOW));
    let all = everything();
    let beside = async {
        somebody_waits(&ledger, "advisory").await;
        record(&ledger).await;
        // A request is told, the command goes on.
        let mut request = ledger.database.begin().await.unwrap();
        let refused = apply_within(&mut request, &ledger.database, utc(OPEN), &all, "test").await;
        assert!(matches!(refused, Err(RerateError::Recording | RerateError::Running)), "{refused:?}");
        drop(request);
        commit(recording).await.unwrap();
    };
    let (applied, ()) = tokio::join!(apply(&ledger.database, &clock, &all, "test"), beside);
    assert_eq!(applied.unwrap().groups.len(), 1);
}

#[tokio::test]
async fn the_first_re_rate_of_a_day_keeps_no_recording_waiting_until_it_commits() {
    let ledger = ledger().await;
    let today = utc(NOW).date_naive();
    let mut tx = ledger.database.begin().await.unwrap();
    apply_within(&mut tx, &ledger.database, utc(NOW), &everything(), "test").await.unwrap();
    assert_eq!(record(&ledger).await, today);
    drop(tx);

    // Of the command, whose audit row has to wait.
    let tomorrow = today.succ_opt().unwrap();
    let clock = Clock::fixed(tomorrow.and_time(NaiveTime::MIN).and_utc());
    let mut holding = ledger.connect().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE audit_log IN SHARE MODE").execute(&mut holding).await.unwrap();
    let beside = async {
        somebody_waits(&ledger, "relation").await;
        assert_eq!(record(&ledger).await, tomorrow);
        holding.close().await.unwrap();
    };
    let all = everything();
    let (applied, ()) = tokio::join!(apply(&ledger.database, &clock, &all, "test"), beside);
    assert_eq!(applied.unwrap().batches.len(), 1);
    let booked = format!("SELECT count(*) FROM usage_events WHERE booked_on = '{tomorrow}'");
    assert_eq!(ledger.count(&booked).await, 2);
}
