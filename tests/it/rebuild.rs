//! The journal folded again: the sums are what it gives to the last column, and what is not is found and put right.

use std::time::Duration;

use serde_json::json;
use waybill::clock::Clock;
use waybill::domain::ids::CustomerId;
use waybill::ingest::posting::post_once;
use waybill::ingest::refold::{Refolded, apply};
use waybill::invoicing::{DEFAULT_GRACE, Request, close_and_finalize};
use waybill::reports::verify::{self, Check};

use crate::ledger::{Ledger, Row, call, ended, task_call, utc};

/// What is compared row by row.
const REBUILT: [Check; 3] = [Check::RebuiltRollups, Check::RebuiltTasks, Check::RebuiltReasons];

async fn differing(ledger: &Ledger) -> Vec<Check> {
    let proof = verify::rebuild(&ledger.database, utc("2027-01-01T00:00:00Z"), |_| ()).await.unwrap();
    assert!(REBUILT.iter().all(|check| proof.checks.contains(check)));
    let mut checks: Vec<Check> = proof.findings.iter().map(|finding| finding.check).collect();
    checks.dedup();
    checks
}

/// Everything in the sums, as text.
async fn sums(ledger: &Ledger) -> Vec<String> {
    let rows = "SELECT to_jsonb(r)::text FROM usage_rollups r UNION ALL SELECT to_jsonb(t)::text FROM tasks t
                UNION ALL SELECT to_jsonb(a)::text FROM adjustment_reasons a ORDER BY 1";
    sqlx::query_scalar(rows).fetch_all(&ledger.pool).await.unwrap()
}

async fn close(ledger: &Ledger, customer: CustomerId, at: &str, now: &str) {
    let request = Request { customer, at: utc(at), grace: DEFAULT_GRACE, actor: "test".to_owned() };
    close_and_finalize(&ledger.database, &Clock::fixed(utc(now)), &request).await.unwrap();
}

/// A closed October, late usage of it in November, a task over both, and an open November.
async fn two_months() -> Ledger {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "Asia/Kathmandu").await;
    let searching = Row {
        rare: Some(json!({"web_search": 2})),
        project: Some("support"),
        ..task_call(acme, "2026-10-02T01:00:00Z", "t", "refund", 9)
    };
    ledger.record(&[searching, ended(acme, "2026-10-03T02:00:00Z", "t", "refund", "success")]).await;
    ledger.post().await;
    close(&ledger, acme, "2026-10-03T01:00:00Z", "2026-11-02T00:00:00Z").await;
    ledger
        .record(&[
            call(acme, "2026-10-30T01:10:00Z", "late", 100, 1),
            ended(acme, "2026-10-30T02:00:00Z", "u", "refund", "failure"),
        ])
        .await;
    ledger
        .record(&[
            call(acme, "2026-11-02T01:10:00Z", "a", 7, 1),
            call(acme, "2026-11-02T05:10:00Z", "b", 70, 2),
            Row { model: "tiny", ..task_call(acme, "2026-11-03T01:00:00Z", "t", "refund", 4) },
            Row {
                rare: Some(json!({"web_search": 5})),
                ..task_call(acme, "2026-11-03T01:00:00Z", "u", "refund", 4)
            },
        ])
        .await;
    ledger.post().await;
    ledger.record(&[call(acme, "2026-11-04T01:00:00Z", "unposted", 4, 4)]).await;
    ledger
}

#[tokio::test]
async fn every_differing_column_of_an_open_period_is_found_and_put_right() {
    let ledger = two_months().await;
    assert_eq!(differing(&ledger).await, []);
    let right = sums(&ledger).await;
    let owner = ledger.owner().await;
    let Refolded::Replaced(nothing) = apply(&owner, "test").await.unwrap() else { panic!("replaced") };
    assert!(nothing.nothing());
    let open = "booked_period = '2026-10-31T18:15:00Z'";
    for (damage, expected) in [
        // Sums per price stay what they are: only row by row this is seen.
        (format!("UPDATE usage_rollups SET hour = hour + interval '1 hour' WHERE {open} AND input = 7"), vec![Check::RebuiltRollups]),
        (format!("UPDATE usage_rollups SET project = 'other' WHERE {open}"), vec![Check::RebuiltRollups]),
        (format!("UPDATE usage_rollups SET task_type = 'other' WHERE {open}"), vec![Check::RebuiltRollups]),
        (format!("UPDATE usage_rollups SET events = events + 1 WHERE {open}"), vec![Check::RebuiltRollups]),
        (format!("UPDATE usage_rollups SET input = input + CASE WHEN input = 7 THEN 1 ELSE -1 END WHERE {open} AND input IN (7, 70)"),
            vec![Check::RebuiltRollups]),
        (format!("UPDATE usage_rollups SET service_period = booked_period WHERE {open}"), vec![Check::Periods, Check::RebuiltRollups]),
        (format!("UPDATE usage_rollups SET charge = charge + 0.000000000000001 WHERE {open}"), vec![Check::Rollups, Check::RebuiltRollups]),
        (format!("UPDATE usage_rollups SET rare = rare_add(rare, '{{\"page\": 1}}') WHERE {open} AND rare IS NOT NULL"),
            vec![Check::Rollups, Check::RebuiltRollups]),
        (format!("DELETE FROM usage_rollups WHERE {open}"), vec![Check::Rollups, Check::RebuiltRollups]),
        ("UPDATE tasks SET calls = calls + 1".to_owned(), vec![Check::RebuiltTasks]),
        ("UPDATE tasks SET models = '{}'".to_owned(), vec![Check::RebuiltTasks]),
        ("UPDATE tasks SET parent = 'another'".to_owned(), vec![Check::RebuiltTasks]),
        ("UPDATE tasks SET last_event_at = last_event_at + interval '1 microsecond'".to_owned(), vec![Check::RebuiltTasks]),
        ("UPDATE tasks SET last_batch = first_batch".to_owned(), vec![Check::RebuiltTasks]),
        ("UPDATE tasks SET rare = NULL WHERE task_id = 'u'".to_owned(), vec![Check::Tasks, Check::RebuiltTasks]),
        ("UPDATE tasks SET outcome = 'success' WHERE task_id = 'u'".to_owned(), vec![Check::Tasks, Check::RebuiltTasks]),
        ("DELETE FROM tasks WHERE task_id = 'u'".to_owned(), vec![Check::Tasks, Check::RebuiltTasks]),
        ("INSERT INTO adjustment_reasons SELECT customer_id, '2026-10-31T18:15:00Z', service_period, sell_price_id, 1, '2026-11-23', 'none'
          FROM usage_rollups LIMIT 1".to_owned(), vec![Check::RebuiltReasons]),
    ] {
        ledger.run(&damage).await;
        assert_eq!(differing(&ledger).await, expected, "{damage}");
        let Refolded::Replaced(replaced) = apply(&owner, "test").await.unwrap() else { panic!("{damage}") };
        assert!(!replaced.nothing(), "{damage}");
        assert_eq!(differing(&ledger).await, [], "{damage}");
        assert_eq!(sums(&ledger).await, right, "{damage}");
    }
    assert_eq!(ledger.count("SELECT count(*) FROM audit_log WHERE action = 'sums.rebuild'").await, 18);
}

#[tokio::test]
async fn what_a_closed_period_was_billed_by_is_never_replaced() {
    let ledger = two_months().await;
    let closed = "booked_period = '2026-09-30T18:15:00Z'";
    for (damage, expected) in [
        (format!("UPDATE usage_rollups SET events = events + 1 WHERE {closed}"), vec![Check::RebuiltRollups]),
        (
            format!("UPDATE usage_rollups SET hour = hour + interval '1 hour' WHERE {closed}"),
            vec![Check::RebuiltRollups],
        ),
        // Late usage in the period that was closed before it came.
        (
            "UPDATE usage_rollups SET booked_period = service_period".to_owned(),
            vec![Check::InvoiceLines, Check::RebuiltRollups],
        ),
        (
            "UPDATE tasks SET outcome_period = '2026-10-31T18:15:00Z' WHERE task_id = 't'".to_owned(),
            vec![Check::RebuiltTasks],
        ),
        (
            "UPDATE tasks SET outcome_period = '2026-09-30T18:15:00Z' WHERE task_id = 'u'".to_owned(),
            vec![Check::RebuiltTasks],
        ),
    ] {
        let ledger = two_months().await;
        ledger.run(&damage).await;
        // So that there would be something to replace.
        ledger.run("UPDATE tasks SET calls = 99 WHERE task_id = 'u'").await;
        let damaged = sums(&ledger).await;
        let mut found = differing(&ledger).await;
        found.retain(|check| expected.contains(check));
        assert_eq!(found, expected, "{damage}");
        let Refolded::Refused(rows) = apply(&ledger.owner().await, "test").await.unwrap() else {
            panic!("{damage}")
        };
        assert!(!rows.is_empty(), "{damage}");
        assert_eq!(sums(&ledger).await, damaged, "{damage}");
    }
    // A closed period does not keep an open one from being put right.
    ledger.run("UPDATE tasks SET calls = 99").await;
    assert!(matches!(apply(&ledger.owner().await, "test").await.unwrap(), Refolded::Replaced(_)));
    assert_eq!(differing(&ledger).await, []);
}

#[tokio::test]
async fn what_would_differ_afterwards_too_is_not_replaced() {
    let ledger = two_months().await;
    ledger
        .run(
            "CREATE FUNCTION damage() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.calls := 99; RETURN NEW; END $$;
             CREATE TRIGGER damage BEFORE INSERT OR UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION damage();
             UPDATE tasks SET calls = 99 WHERE task_id = 'u'",
        )
        .await;
    let damaged = sums(&ledger).await;
    let refolded = apply(&ledger.owner().await, "test").await.unwrap();
    assert!(matches!(&refolded, Refolded::Vain(rows) if !rows.is_empty()), "{refolded:?}");
    assert_eq!(sums(&ledger).await, damaged);
}

#[tokio::test]
async fn a_customer_whose_closed_period_differs_keeps_no_other_from_being_put_right() {
    let mut ledger = two_months().await;
    let other = ledger.customer("other", "UTC").await;
    ledger.record(&[task_call(other, "2026-11-03T01:00:00Z", "o", "refund", 4)]).await;
    ledger.post().await;
    ledger.run("UPDATE usage_rollups SET events = events + 1; UPDATE tasks SET calls = 99").await;
    let refolded = apply(&ledger.owner().await, "test").await.unwrap();
    let Refolded::Partly(replaced, left) = refolded else { panic!("{refolded:?}") };
    assert_eq!((replaced.rollups, replaced.tasks), (1, 1), "all of the other's");
    assert!(!left.is_empty());
    let right = format!("SELECT calls FROM tasks WHERE customer_id = {other}");
    assert_eq!(ledger.count(&right).await, 1);
    let left = format!("SELECT count(*) FROM tasks WHERE customer_id <> {other} AND calls <> 99");
    assert_eq!(ledger.count(&left).await, 0, "what may have been billed otherwise is left");
}

#[tokio::test]
async fn posters_that_are_cut_off_leave_what_the_journal_gives() {
    let mut ledger = Ledger::new().await;
    let (acme, other) = (
        ledger.customer("acme", "Europe/Berlin").await,
        ledger.customer("other", "Australia/Lord_Howe").await,
    );
    let outcomes = ["success", "failure", "abandoned"].into_iter().cycle();
    for (batch, outcome) in (0..60).zip(outcomes) {
        let minute = |add: i32| {
            format!(
                "2026-10-{:02}T{:02}:{:02}:00Z",
                1 + batch % 28,
                (batch * 7 + add) % 24,
                (batch * 13 + add) % 60
            )
        };
        ledger
            .record(&[
                call(acme, &minute(0), &format!("a{batch}"), i64::from(batch) + 1, 3),
                Row { rare: Some(json!({"web_search": 1})), ..task_call(acme, &minute(1), "t", "refund", 5) },
                task_call(other, &minute(2), "t", "refund", 11),
                ended(other, &minute(3), "t", "refund", outcome),
            ])
            .await;
    }
    // A dropped future ends its transaction wherever it is, as a crash does.
    for cut in 0..40_u64 {
        let database = ledger.database.clone();
        let beside = tokio::spawn(async move { post_once(&database).await });
        let cut_off = tokio::time::timeout(Duration::from_micros(cut * 250), post_once(&ledger.database));
        drop(cut_off.await);
        beside.abort();
        if cut == 20 {
            ledger.post().await;
            close(&ledger, acme, "2026-10-03T01:00:00Z", "2026-11-02T00:00:00Z").await;
        }
        ledger.record(&[call(acme, "2026-10-30T01:10:00Z", &format!("late{cut}"), 100, 1)]).await;
    }
    ledger.post().await;
    assert_eq!(differing(&ledger).await, []);
    let late = "SELECT count(*) FROM usage_rollups WHERE booked_period > service_period";
    assert_eq!(ledger.count(late).await, 1);
}
