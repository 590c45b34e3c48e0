//! Days instead of hours: fewer rows, and every figure as it was, to the last digit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use waybill::clock::Clock;
use waybill::domain::ids::CustomerId;
use waybill::ingest::compaction::compact;
use waybill::ingest::posting::post_once;
use waybill::ingest::refold::{Refolded, apply};
use waybill::invoicing::{DEFAULT_GRACE, Request, close_and_finalize, preview};
use waybill::reports::verify::{self, Check};
use waybill::reports::{Dimension, UsageQuery, usage};
use waybill::shutdown::Shutdown;
use waybill::store::usage::UsageFilter;
use waybill::store::{Scope, commit, period_prices};

use crate::harness::connected;
use crate::ledger::{Ledger, Row, call, task_call, utc};

/// Every sum of this ledger is of a day that is over by then.
const LATER: &str = "2026-12-15T00:00:00Z";

/// Offsets of whole, half and quarter hours, clocks set back over 2 o'clock, by half an hour, and over midnight.
const ZONES: [&str; 6] =
    ["UTC", "Asia/Kathmandu", "Europe/Berlin", "Australia/Lord_Howe", "America/Havana", "America/Santiago"];

async fn compacted(ledger: &Ledger, now: &str) -> i64 {
    compact(&ledger.database, utc(now), &Shutdown::new()).await.unwrap()
}

async fn differing(ledger: &Ledger) -> Vec<Check> {
    let proof = verify::rebuild(&ledger.database, utc("2027-01-01T00:00:00Z"), |_| ()).await.unwrap();
    let mut checks: Vec<Check> = proof.findings.iter().map(|finding| finding.check).collect();
    checks.dedup();
    checks
}

async fn close(ledger: &Ledger, customer: CustomerId, at: &str) {
    let request = Request { customer, at: utc(at), grace: DEFAULT_GRACE, actor: "test".to_owned() };
    close_and_finalize(&ledger.database, &Clock::fixed(utc("2026-12-10T00:00:00Z")), &request).await.unwrap();
}

/// Reports over intervals that begin and end at days, at hours and between them, and drafts of both months.
async fn figures(ledger: &Ledger, customers: &[CustomerId]) -> Vec<String> {
    let mut figures = Vec::new();
    let dimensions = [
        vec![],
        vec![Dimension::Customer, Dimension::Day],
        vec![Dimension::Model, Dimension::Project, Dimension::TaskType, Dimension::Provider],
        vec![Dimension::Class, Dimension::Customer],
    ];
    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    for (from, to) in [
        ("1970-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z"),
        ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
        ("2026-10-05T07:00:00Z", "2026-10-05T09:30:00Z"),
        ("2026-10-04T18:15:00Z", "2026-10-06T18:15:00Z"),
        ("2026-10-31T13:00:00Z", "2026-11-01T05:00:00Z"),
        ("2026-11-01T04:00:00Z", "2026-11-02T04:59:00Z"),
    ] {
        for group_by in &dimensions {
            let filter = UsageFilter { from: utc(from), to: utc(to), ..UsageFilter::default() };
            let query = UsageQuery { filter, group_by: group_by.clone() };
            let report = usage(&mut tx, Scope::Everything, &query, utc(LATER)).await.unwrap();
            figures.extend(report.rows.iter().map(|row| format!("{from} {to} {row:?}")));
        }
    }
    drop(tx);
    for customer in customers {
        let mut tx = ledger.database.read(Scope::Customer(*customer)).await.unwrap();
        for at in ["2026-10-15T00:00:00Z", "2026-11-15T00:00:00Z"] {
            let draft = preview(&mut tx, *customer, utc(at), utc(LATER)).await.unwrap();
            figures.push(format!("{:?} {:?}", draft.period, draft.documents));
        }
    }
    figures
}

/// Prices over the period that count by the hour: which usage is dear depends on the order of hours.
async fn with_period_prices(ledger: &Ledger) {
    let prices = json!([
        {"name": "input", "kind": "graduated", "model": "*", "classes": ["input"], "tiers": [
            {"up_to": "2000", "factor": "1"}, {"up_to": "5000", "factor": "0.5"}, {"factor": "0.1"}],
         "valid_from": "2026-01-01T00:00:00Z"},
        // It begins within a day.
        {"name": "output", "kind": "package", "model": "gpt-5", "classes": ["output"], "size": "7", "amount": "0.50",
         "valid_from": "2026-10-05T08:00:00Z"},
    ]);
    let prices: Vec<_> = serde_json::from_value(prices).unwrap();
    let mut tx = ledger.database.begin().await.unwrap();
    period_prices::publish(&mut tx, "standard", &prices, utc(LATER), "test").await.unwrap();
    commit(tx).await.unwrap();
}

/// Usage of every customer in most hours around the days on which clocks change, in two models, projects and task types.
fn traffic(customers: &[CustomerId], round: i64) -> Vec<Row> {
    let mut rows = Vec::new();
    for (at, hours) in
        [("2026-10-04T12:00:00Z", 40), ("2026-10-24T06:00:00Z", 60), ("2026-10-31T10:00:00Z", 50)]
    {
        for hour in 0..hours {
            for (index, customer) in (0_i64..).zip(customers) {
                let minutes = (hour * 37 + index * 11 + round * 5) % 60;
                let at = (utc(at) + TimeDelta::hours(hour) + TimeDelta::minutes(minutes)).to_rfc3339();
                let row = match hour % 3 {
                    0 => Row { project: Some("support"), ..call(*customer, &at, "x", 31 + hour, 2) },
                    1 => Row {
                        rare: Some(json!({"web_search": 1})),
                        ..task_call(*customer, &at, "t", "refund", 17)
                    },
                    _ => Row { model: "tiny", ..call(*customer, &at, "x", 90 + index, 0) },
                };
                rows.push(Row { id: format!("{round}-{hour}-{index}-{at}"), ..row });
            }
        }
    }
    rows
}

#[tokio::test]
async fn every_figure_is_the_same_by_days() {
    let mut ledger = Ledger::new().await;
    with_period_prices(&ledger).await;
    let mut customers = Vec::new();
    for zone in ZONES {
        customers.push(ledger.customer(&zone.replace('/', "-"), zone).await);
    }
    ledger.record(&traffic(&customers, 0)).await;
    ledger.post().await;
    let hours = ledger.count("SELECT count(*) FROM usage_rollups").await;
    let before = figures(&ledger, &customers).await;
    assert_eq!(compacted(&ledger, LATER).await, hours);
    assert_eq!(ledger.count("SELECT count(*) FROM usage_rollups WHERE NOT whole_day").await, 0);
    let days = ledger.count("SELECT count(*) FROM usage_rollups").await;
    assert!(days * 3 < hours, "{days} rows of days, {hours} of hours");
    assert_eq!(figures(&ledger, &customers).await, before);
    assert_eq!(differing(&ledger).await, []);
    assert_eq!(compacted(&ledger, LATER).await, 0, "nothing is left");

    // Late for its day: by the hour again, beside the day, until the next round.
    ledger.record(&traffic(&customers[1..4], 1)).await;
    ledger.post().await;
    let before = figures(&ledger, &customers).await;
    assert_eq!(differing(&ledger).await, []);
    assert!(compacted(&ledger, LATER).await > 0);
    assert_eq!(ledger.count("SELECT count(*) FROM usage_rollups").await, days);
    assert_eq!(figures(&ledger, &customers).await, before);
    assert_eq!(differing(&ledger).await, []);

    // Invoices are made from days, and settled again from hours.
    for customer in &customers {
        close(&ledger, *customer, "2026-10-15T00:00:00Z").await;
    }
    assert_eq!(differing(&ledger).await, []);
    // Late for its period as well.
    ledger.record(&traffic(&customers, 2)).await;
    ledger.post().await;
    let before = figures(&ledger, &customers).await;
    assert!(compacted(&ledger, LATER).await > 0);
    assert_eq!(figures(&ledger, &customers).await, before);
    assert_eq!(differing(&ledger).await, []);
}

#[tokio::test]
async fn a_day_is_summed_36_hours_after_it_ended_in_its_zone() {
    let mut ledger = Ledger::new().await;
    let havana = ledger.customer("havana", "America/Havana").await;
    // 1 November begins at 04:00 and, after 25 hours, ends at 05:00.
    let instants = [
        "2026-11-01T03:59:59Z",
        "2026-11-01T04:00:00Z",
        "2026-11-01T05:00:00Z",
        "2026-11-02T04:59:59Z",
        "2026-11-02T05:00:00Z",
    ];
    let rows: Vec<Row> = instants.iter().map(|at| call(havana, at, at, 1, 0)).collect();
    ledger.record(&rows).await;
    ledger.post().await;
    assert_eq!(compacted(&ledger, "2026-11-02T15:59:59Z").await, 0);
    assert_eq!(compacted(&ledger, "2026-11-02T16:00:00Z").await, 1, "31 October");
    assert_eq!(compacted(&ledger, "2026-11-03T16:59:59Z").await, 0);
    assert_eq!(compacted(&ledger, "2026-11-03T17:00:00Z").await, 3, "1 November");
    let day: DateTime<Utc> =
        sqlx::query_scalar("SELECT hour FROM usage_rollups WHERE whole_day AND events = 3")
            .fetch_one(&ledger.pool)
            .await
            .unwrap();
    assert_eq!(day, utc("2026-11-01T04:00:00Z"));
    assert_eq!(compacted(&ledger, "2026-11-04T17:00:00Z").await, 1, "2 November");
    assert_eq!(differing(&ledger).await, []);
}

#[tokio::test]
async fn a_customer_whose_hours_cannot_be_summed_keeps_no_other_from_it() {
    let mut ledger = Ledger::new().await;
    let customers = [ledger.customer("acme", "UTC").await, ledger.customer("other", "UTC").await];
    for at in ["2026-10-05T01:00:00Z", "2026-10-05T02:00:00Z"] {
        ledger.record(&customers.map(|customer| call(customer, at, at, 1, 0))).await;
    }
    ledger.post().await;
    let [acme, _] = customers;
    ledger
        .run(&format!("UPDATE usage_rollups SET events = 9223372036854775807 WHERE customer_id = {acme}"))
        .await;
    assert_eq!(compacted(&ledger, LATER).await, 2, "the other's, which comes after");
}

#[tokio::test]
async fn posters_and_compactors_side_by_side_conserve_everything() {
    let mut ledger = Ledger::new().await;
    let customers =
        [ledger.customer("acme", "Europe/Berlin").await, ledger.customer("other", "Asia/Kathmandu").await];
    connected(&ledger.database).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut beside = Vec::new();
    for job in 0..5 {
        let (database, done) = (ledger.database.clone(), Arc::clone(&done));
        beside.push(tokio::spawn(async move {
            let mut worked = 0;
            while !done.load(Ordering::Relaxed) {
                worked += if job < 3 {
                    compact(&database, utc(LATER), &Shutdown::new()).await.unwrap()
                } else {
                    i64::try_from(post_once(&database).await.unwrap()).unwrap()
                };
                tokio::task::yield_now().await;
            }
            worked
        }));
    }
    let mut recorded = 0;
    for round in 0..12 {
        let rows = traffic(&customers, round);
        recorded += rows.len();
        ledger.record(&rows).await;
    }
    ledger.post().await;
    done.store(true, Ordering::Relaxed);
    let mut worked = Vec::new();
    for job in beside {
        worked.push(job.await.unwrap());
    }
    assert!(worked[..3].iter().sum::<i64>() > 0, "compacted while it was posted: {worked:?}");
    compacted(&ledger, LATER).await;
    assert_eq!(
        ledger.count("SELECT sum(events)::bigint FROM usage_rollups").await,
        i64::try_from(recorded).unwrap()
    );
    assert_eq!(ledger.count("SELECT count(*) FROM usage_rollups WHERE NOT whole_day").await, 0);
    assert_eq!(differing(&ledger).await, []);
}

#[tokio::test]
async fn damaged_days_are_found_and_put_right() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "Asia/Kathmandu").await;
    ledger.record(&traffic(&[acme], 0)).await;
    ledger.post().await;
    let damages = [
        ("UPDATE usage_rollups SET events = events + 1 WHERE whole_day", vec![Check::Days]),
        (
            "UPDATE usage_rollups SET hour = hour - interval '1 day' WHERE whole_day AND hour = (SELECT min(hour) FROM usage_rollups WHERE service_period < hour)",
            vec![Check::Days],
        ),
        ("UPDATE usage_rollups SET input = input + 1 WHERE whole_day", vec![Check::Rollups, Check::Days]),
        ("UPDATE usage_rollups SET events = events + 1 WHERE NOT whole_day", vec![Check::RebuiltRollups]),
        ("UPDATE usage_hours SET events = events + 1", vec![Check::Days, Check::RebuiltRollups]),
        ("UPDATE usage_hours SET project = 'other'", vec![Check::Days, Check::RebuiltRollups]),
        ("DELETE FROM usage_hours WHERE input = 17", vec![Check::Days, Check::RebuiltRollups]),
        ("DELETE FROM usage_rollups", vec![Check::Rollups, Check::Days, Check::RebuiltRollups]),
    ];
    for ((damage, expected), round) in damages.into_iter().zip(1..) {
        // Days, and hours that are late for them.
        compacted(&ledger, LATER).await;
        ledger.record(&traffic(&[acme], round)).await;
        ledger.post().await;
        let right = figures(&ledger, &[acme]).await;
        ledger.run(damage).await;
        assert_eq!(differing(&ledger).await, expected, "{damage}");
        assert!(
            matches!(apply(&ledger.owner().await, "test").await.unwrap(), Refolded::Replaced(_)),
            "{damage}"
        );
        assert_eq!(differing(&ledger).await, [], "{damage}");
        assert_eq!(figures(&ledger, &[acme]).await, right, "{damage}");
    }
    compacted(&ledger, LATER).await;
    close(&ledger, acme, "2026-10-15T00:00:00Z").await;
    ledger.run("UPDATE usage_rollups SET events = events + 1 WHERE whole_day").await;
    let refused = apply(&ledger.owner().await, "test").await.unwrap();
    assert!(matches!(refused, Refolded::Refused(_)), "what was billed is final: {refused:?}");
}

/// A month of one customer with 50 models in every hour.
#[tokio::test]
async fn a_months_preview_reads_a_row_per_day_and_price() {
    let ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "Europe/Berlin").await;
    ledger.open_period(acme, "Europe/Berlin", "2026-11-15T00:00:00Z").await;
    ledger
        .run(&format!(
            "INSERT INTO prices (id, book_id, provider, model, conditions_key, per, valid_from)
             SELECT 1000 + n, b.id, 'openai', 'model-' || n, '', 1000000, '2020-01-01Z'
             FROM generate_series(1, 50) n, price_books b WHERE b.kind = 'sell';
             INSERT INTO price_rates (price_id, class, rate, quoted)
             SELECT 1000 + n, class, 0.000003, 3 FROM generate_series(1, 50) n, unnest(ARRAY['input', 'output']) AS class;
             INSERT INTO usage_rollups (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id,
                 project, task_type, kind, events, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, cost,
                 charge)
             SELECT {acme}, p.start_at, p.start_at, hour, 1, 1000 + n, '', '', 'usage', 1, n, 0, 0, 0, 7, 0, 0,
                    (n + 7) * 0.000003
             FROM billing_periods p, generate_series(p.start_at, p.end_at - interval '1 hour', '1 hour') hour,
                  generate_series(1, 50) n;
             ANALYZE"
        ))
        .await;
    let draft = async |rows: i64| {
        assert_eq!(ledger.count("SELECT count(*) FROM usage_rollups").await, rows);
        let mut fastest = std::time::Duration::MAX;
        let mut drafts = Vec::new();
        for _ in 0..5 {
            let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
            let started = Instant::now();
            drafts.push(
                preview(&mut tx, acme, utc("2026-11-15T00:00:00Z"), utc(LATER)).await.unwrap().documents,
            );
            fastest = fastest.min(started.elapsed());
        }
        println!("a month's preview over {rows} rows: {fastest:?}");
        drafts.dedup();
        drafts
    };
    let by_hour = draft(30 * 24 * 50).await;
    let started = Instant::now();
    assert_eq!(compacted(&ledger, LATER).await, 30 * 24 * 50);
    println!("summed within {:?}", started.elapsed());
    ledger.run("VACUUM ANALYZE usage_rollups").await;
    assert_eq!(draft(30 * 50).await, by_hour);
}
