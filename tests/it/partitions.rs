//! Old months of the journal are dropped, and every sum is proven as before.

use std::time::Duration;

use chrono::NaiveDate;
use serde_json::{Value, json};
use waybill::clock::Clock;
use waybill::domain::ids::CustomerId;
use waybill::ingest::compaction::compact;
use waybill::ingest::partitions::{Outcome, Request as Dropping, drop_before, list};
use waybill::ingest::refold::{Refolded, apply};
use waybill::invoicing::rerate::{self, RerateError};
use waybill::invoicing::{DEFAULT_GRACE, Request, close_and_finalize, preview};
use waybill::reports::verify::{self, Check};
use waybill::shutdown::Shutdown;
use waybill::store::partitions::Obstacle;
use waybill::store::{Scope, commit, journal, tasks};

use crate::harness::wait_until;
use crate::http_bed::Api;
use crate::ledger::{Ledger, Row, call, ended, task_call, utc};
use crate::world::{Outcome as Ended, World};

fn day(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

async fn differing(ledger: &Ledger) -> Vec<Check> {
    let proof = verify::rebuild(&ledger.database, utc("2027-01-01T00:00:00Z"), |_| ()).await.unwrap();
    let mut checks: Vec<Check> = proof.findings.iter().map(|finding| finding.check).collect();
    checks.dedup();
    checks
}

async fn close(ledger: &Ledger, customer: CustomerId, at: &str) {
    let request = Request { customer, at: utc(at), grace: DEFAULT_GRACE, actor: "test".to_owned() };
    close_and_finalize(&ledger.database, &Clock::fixed(utc("2026-11-20T00:00:00Z")), &request).await.unwrap();
}

/// Everything in the sums and on invoices, as text.
async fn sums(ledger: &Ledger) -> Vec<String> {
    let rows = "SELECT to_jsonb(r)::text FROM usage_rollups r UNION ALL SELECT to_jsonb(h)::text FROM usage_hours h
                UNION ALL SELECT to_jsonb(t)::text FROM tasks t UNION ALL SELECT to_jsonb(l)::text FROM invoice_line_items l ORDER BY 1";
    sqlx::query_scalar(rows).fetch_all(&ledger.pool).await.unwrap()
}

async fn dropped(ledger: &Ledger, before: &str, apply: bool) -> Vec<(String, Outcome)> {
    let request = Dropping { before: day(before), estimates_stand: false, apply };
    let done = drop_before(&ledger.owner().await, request, "test").await.unwrap();
    done.into_iter().map(|(month, outcome)| (month.first_day.to_string(), outcome)).collect()
}

async fn obstacles(ledger: &Ledger, month: &str) -> Vec<Obstacle> {
    let listed = list(&ledger.database).await.unwrap();
    listed.into_iter().find(|(listed, _)| listed.first_day == day(month)).expect("the month").1
}

/// Usage recorded in July, August and November, closed up to October: late usage, a task over all three, outcomes that replace
/// each other, and a re-rate in November of what was recorded in August.
async fn half_a_year() -> (Ledger, CustomerId) {
    half_a_year_in(Ledger::new().await).await
}

async fn half_a_year_in(mut ledger: Ledger) -> (Ledger, CustomerId) {
    ledger.run("SELECT open_booking_date(DATE '2026-07-10')").await;
    let acme = ledger.customer("acme", "Europe/Berlin").await;
    let searching = |at: &str, id: &str| Row {
        rare: Some(json!({"web_search": 2})),
        id: id.to_owned(),
        ..task_call(acme, at, "long", "research", 7)
    };
    ledger
        .record_on(
            day("2026-07-10"),
            &[
                searching("2026-07-10T01:00:00Z", "a"),
                task_call(acme, "2026-07-10T02:00:00Z", "short", "refund", 5),
                ended(acme, "2026-07-10T03:00:00Z", "short", "refund", "failure"),
                ended(acme, "2026-07-10T04:00:00Z", "short", "refund", "success"),
            ],
        )
        .await;
    ledger.post().await;
    close(&ledger, acme, "2026-07-10T00:00:00Z").await;
    ledger
        .record_on(
            day("2026-08-03"),
            &[
                call(acme, "2026-07-31T23:30:00Z", "late", 100, 3),
                searching("2026-08-03T01:00:00Z", "b"),
                Row { model: "tiny", ..task_call(acme, "2026-08-03T02:00:00Z", "long", "research", 9) },
            ],
        )
        .await;
    ledger.post().await;
    for month in ["2026-08-10T00:00:00Z", "2026-09-10T00:00:00Z"] {
        close(&ledger, acme, month).await;
    }
    ledger
        .record(&[
            searching("2026-11-20T01:00:00Z", "c"),
            ended(acme, "2026-11-20T02:00:00Z", "long", "research", "success"),
        ])
        .await;
    ledger.post().await;
    (ledger, acme)
}

#[tokio::test]
async fn what_is_dropped_stays_in_every_sum_and_is_proven() {
    let (mut ledger, acme) = half_a_year().await;
    compact(&ledger.database, utc("2026-11-23T00:00:00Z"), &Shutdown::new()).await.unwrap();
    let before = sums(&ledger).await;
    assert_eq!(differing(&ledger).await, []);
    let (july, august) = ("2026-07-01".to_owned(), "2026-08-01".to_owned());
    assert_eq!(
        dropped(&ledger, "2026-09-01", false).await,
        [(july.clone(), Outcome::Possible), (august.clone(), Outcome::Possible)]
    );
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events").await, 9, "a dry run drops nothing");
    assert_eq!(
        dropped(&ledger, "2026-09-01", true).await,
        [(july, Outcome::Dropped), (august, Outcome::Dropped)]
    );
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events").await, 2);
    assert_eq!(
        ledger.count("SELECT count(*) FROM pg_class WHERE relname LIKE 'usage_events_2026_0%'").await,
        0
    );
    assert_eq!(ledger.count("SELECT count(*) FROM audit_log WHERE action = 'journal.drop'").await, 2);
    assert_eq!(sums(&ledger).await, before);
    assert_eq!(differing(&ledger).await, []);
    assert_eq!(dropped(&ledger, "2026-09-01", true).await, [], "they are gone");

    // The task goes on, and usage of dropped months may come late still.
    ledger
        .record(&[
            task_call(acme, "2026-11-21T01:00:00Z", "long", "research", 11),
            ended(acme, "2026-11-21T02:00:00Z", "short", "refund", "failure"),
            call(acme, "2026-07-31T23:30:00Z", "later still", 1, 1),
        ])
        .await;
    ledger.post().await;
    close(&ledger, acme, "2026-10-10T00:00:00Z").await;
    assert_eq!(differing(&ledger).await, []);
    let mut tx = ledger.database.read(Scope::Customer(acme)).await.unwrap();
    let long = tasks::get(&mut tx, acme, "long").await.unwrap().unwrap();
    assert_eq!((long.calls, long.extent.first_booked_on), (5, day("2026-07-10")));
    let draft =
        preview(&mut tx, acme, utc("2026-11-10T00:00:00Z"), utc("2026-11-23T00:00:00Z")).await.unwrap();
    assert_eq!(draft.documents.len(), 1);
    drop(tx);

    // What is archived takes part in every proof.
    for (damage, expected) in [
        ("UPDATE tasks SET calls = calls + 1 WHERE task_id = 'short'", vec![Check::RebuiltTasks]),
        ("UPDATE tasks SET rare = NULL WHERE task_id = 'long'", vec![Check::Tasks, Check::RebuiltTasks]),
        ("UPDATE tasks SET models = '{gpt-5}' WHERE task_id = 'long'", vec![Check::RebuiltTasks]),
        ("UPDATE tasks SET first_batch = 2", vec![Check::RebuiltTasks]),
        (
            "UPDATE usage_rollups SET events = 2 WHERE NOT whole_day AND booked_period = '2026-10-31T23:00Z'",
            vec![Check::RebuiltRollups],
        ),
    ] {
        ledger.run(damage).await;
        assert_eq!(differing(&ledger).await, expected, "{damage}");
        assert!(
            matches!(apply(&ledger.owner().await, "test").await.unwrap(), Refolded::Replaced(_)),
            "{damage}"
        );
        assert_eq!(differing(&ledger).await, [], "{damage}");
    }
    for (damage, expected) in [
        ("UPDATE archived_months SET rows = rows + 1", vec![Check::Batches]),
        ("UPDATE ingest_batches SET rows = rows + 1 WHERE booked_on < '2026-08-01'", vec![Check::Batches]),
        (
            "UPDATE archived_rollups SET charge = charge + 0.000000000000001",
            vec![Check::Rollups, Check::RebuiltRollups],
        ),
        ("UPDATE archived_rollups SET rare = NULL", vec![Check::Rollups, Check::RebuiltRollups]),
        ("UPDATE archived_tasks SET input = input + 1", vec![Check::Tasks, Check::RebuiltTasks]),
        ("UPDATE archived_tasks SET rare = NULL", vec![Check::Tasks, Check::RebuiltTasks]),
        ("UPDATE archived_outcomes SET ended_at = '2026-11-30Z'", vec![Check::Tasks, Check::RebuiltTasks]),
    ] {
        let refused = sqlx::raw_sql(damage).execute(&ledger.pool).await;
        let archive = damage.starts_with("UPDATE archived");
        assert_eq!(refused.is_err(), archive, "{damage}");
        if archive {
            let table = damage.split(' ').nth(1).unwrap();
            let (copy, back) = (
                format!("kept_{table}"),
                format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept_{table}"),
            );
            ledger
                .run(&format!(
                    "CREATE TABLE {copy} AS SELECT * FROM {table}; ALTER TABLE {table} DISABLE TRIGGER USER; {damage}"
                ))
                .await;
            assert_eq!(differing(&ledger).await, expected, "{damage}");
            let restore = if table == "archived_months" {
                "UPDATE archived_months SET rows = rows - 1".to_owned()
            } else {
                back
            };
            ledger
                .run(&format!("{restore}; DROP TABLE {copy}; ALTER TABLE {table} ENABLE TRIGGER USER"))
                .await;
        } else {
            assert_eq!(differing(&ledger).await, expected, "{damage}");
            ledger.run("UPDATE ingest_batches SET rows = rows - 1 WHERE booked_on < '2026-08-01'").await;
        }
        assert_eq!(differing(&ledger).await, [], "{damage}");
    }
}

/// The one rejection, open, of an event of this time that came in November.
async fn reject(ledger: &Ledger, event_time: &str) {
    ledger
        .run(&format!(
            "DELETE FROM rejections;
             INSERT INTO rejections (batch_id, incarnation, stream_seq, event_index, subject, raw, reason, detail, event_time,
                 received_at, catalog_version)
             SELECT 1, incarnation, 1, 7, 's', '', 'unpriced', 'd', '{event_time}', '2026-11-20', 1
             FROM ingest_batches LIMIT 1"
        ))
        .await;
}

#[tokio::test]
async fn a_month_that_is_needed_is_not_dropped() {
    let (mut ledger, acme) = half_a_year().await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, []);
    assert_eq!(obstacles(&ledger, "2026-11-01").await, [Obstacle::Horizon { horizon: day("2026-09-22") }]);
    // The horizon ends with the last day of a month: 62 days before 2 October it begins on 1 August.
    ledger.run("UPDATE journal_clock SET booked_on = '2026-10-01'").await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, [Obstacle::Horizon { horizon: day("2026-07-31") }]);
    ledger.run("UPDATE journal_clock SET booked_on = '2026-10-02'").await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, []);
    ledger.run("UPDATE journal_clock SET booked_on = '2026-11-23'").await;

    ledger.run("UPDATE gateways SET backfill_from = '2026-07-31T23:59:59Z'").await;
    let backfill = Obstacle::Backfill { gateway: "gw-1".to_owned(), from: utc("2026-07-31T23:59:59Z") };
    assert_eq!(obstacles(&ledger, "2026-07-01").await, [backfill]);
    ledger.run("UPDATE gateways SET backfill_from = '2026-08-01'").await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, []);
    ledger.run("UPDATE gateways SET backfill_from = NULL").await;

    // What was rejected is of July by its own time, whenever it came; it may have been ahead of its booking date.
    reject(&ledger, "2026-08-01T00:04:59Z").await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, [Obstacle::OpenRejections(1)]);
    reject(&ledger, "2026-08-01T00:05:00Z").await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, []);
    // Or it is an event of July that was sent again with another time: copies of it are told for 62 days, until 2 October.
    ledger
        .run("UPDATE rejections SET reason = 'conflict', event_source = 'gw-1', event_id = 'a', event_time = '2026-08-02'")
        .await;
    for (received_at, event_time) in [("2026-08-02", "event_time"), ("2026-10-01T23:59:59Z", "NULL")] {
        ledger
            .run(&format!("UPDATE rejections SET received_at = '{received_at}', event_time = {event_time}"))
            .await;
        assert_eq!(obstacles(&ledger, "2026-07-01").await, [Obstacle::OpenRejections(1)], "{received_at}");
    }
    ledger.run("UPDATE rejections SET received_at = '2026-10-02'").await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, []);
    // As an earlier release left it.
    ledger.run("UPDATE rejections SET received_at = NULL").await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, [Obstacle::OpenRejections(1)]);
    ledger.run("UPDATE rejections SET resolved_at = now(), resolution = 'discarded'").await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, []);
    ledger.run("DELETE FROM rejections").await;

    // Recorded in July and not posted, then posted to an open period.
    ledger.record_on(day("2026-07-11"), &[call(acme, "2026-07-11T00:00:00Z", "x", 1, 0)]).await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, [Obstacle::Unposted(1)]);
    ledger.post().await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, [Obstacle::OpenPeriods { customers: 1 }]);
    // No month goes before an older one.
    assert_eq!(obstacles(&ledger, "2026-08-01").await, []);
    let refused = Outcome::Refused(vec![Obstacle::OpenPeriods { customers: 1 }]);
    assert_eq!(dropped(&ledger, "2026-09-01", true).await, [("2026-07-01".to_owned(), refused)]);
    close(&ledger, acme, "2026-10-10T00:00:00Z").await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, []);

    ledger
        .run(
            "ALTER TABLE usage_events DISABLE TRIGGER USER; UPDATE usage_events SET estimated = true WHERE id = 'x';
             ALTER TABLE usage_events ENABLE TRIGGER USER",
        )
        .await;
    assert_eq!(obstacles(&ledger, "2026-07-01").await, [Obstacle::OpenEstimates(1)]);
    let request = Dropping { before: day("2026-08-01"), estimates_stand: true, apply: true };
    let done = drop_before(&ledger.owner().await, request, "test").await.unwrap();
    assert_eq!(done[0].1, Outcome::Dropped);
    assert_eq!(differing(&ledger).await, []);

    // What is of a dropped month is refused for good, and keeps no other month.
    for (time, kept) in [("2026-08-01T00:04:59Z", false), ("2026-08-01T00:05:00Z", true)] {
        reject(&ledger, time).await;
        let found = obstacles(&ledger, "2026-08-01").await;
        assert_eq!(found.contains(&Obstacle::OpenRejections(1)), kept, "{time}: {found:?}");
    }
}

#[tokio::test]
async fn a_reader_is_waited_for_and_recording_goes_on() {
    let (mut ledger, acme) = half_a_year().await;
    let mut reader = ledger.pool.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM usage_events").fetch_one(&mut *reader).await.unwrap();
    let owner = ledger.owner().await;
    let request = Dropping { before: day("2026-08-01"), estimates_stand: false, apply: true };
    let drop = tokio::spawn(async move { drop_before(&owner, request, "test").await.unwrap() });
    for call_number in 0..5 {
        wait_until("the drop waits for its lock", async || {
            let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation WHERE c.relname LIKE 'usage_events%' AND NOT l.granted
                           AND l.mode = 'AccessExclusiveLock'";
            (ledger.count(waiting).await > 0).then_some(())
        })
        .await;
        // Held up for a second at most.
        let row = call(acme, "2026-11-22T00:00:00Z", &format!("beside {call_number}"), 1, 0);
        tokio::time::timeout(Duration::from_secs(5), ledger.record(&[row])).await.expect("recording goes on");
    }
    assert!(!drop.is_finished());
    reader.rollback().await.unwrap();
    let done = drop.await.unwrap();
    assert_eq!(done[0].1, Outcome::Dropped);
    ledger.post().await;
    assert_eq!(differing(&ledger).await, []);
}

#[tokio::test]
async fn what_was_re_rated_before_is_proven_and_what_is_archived_is_not_re_rated() {
    let (ledger, _) = half_a_year().await;
    // Dearer from the beginning; the re-rate is booked in November.
    let dearer = json!([{"provider": "openai", "model": "gpt-5", "per": 1_000_000, "valid_from": "2026-06-01T00:00:00Z",
                         "rates": {"input": "6", "output": "44"}, "fees": {"web_search": "0.04"}}]);
    let dearer: Vec<_> = serde_json::from_value(dearer).unwrap();
    let mut tx = ledger.database.begin().await.unwrap();
    let now = utc("2026-11-20T00:00:00Z");
    waybill::store::prices::publish(&mut tx, "standard", &dearer, now, "test").await.unwrap();
    commit(tx).await.unwrap();
    let mut request = rerate::Request {
        from: utc("2026-07-01T00:00:00Z"),
        to: utc("2026-12-01T00:00:00Z"),
        customer: None,
        provider: None,
        model: None,
        reason: Some("dearer".to_owned()),
    };
    let clock = Clock::fixed(utc("2026-11-23T12:00:00Z"));
    let rerated = rerate::apply(&ledger.database, &clock, &request, "test").await.unwrap();
    assert!(!rerated.batches.is_empty());
    ledger.post().await;
    assert_eq!(differing(&ledger).await, []);
    let done = dropped(&ledger, "2026-09-01", true).await;
    assert_eq!(done.iter().filter(|(_, outcome)| *outcome == Outcome::Dropped).count(), 2);
    assert_eq!(differing(&ledger).await, []);
    let again = rerate::apply(&ledger.database, &clock, &request, "test").await;
    assert!(matches!(again, Err(RerateError::Archived(from)) if from == day("2026-09-02")), "{again:?}");
    request.from = utc("2026-09-02T00:00:00Z");
    let again = rerate::apply(&ledger.database, &clock, &request, "test").await.unwrap();
    assert!(again.batches.is_empty());
}

#[tokio::test]
async fn an_event_of_an_archived_month_is_never_taken_again() {
    let world = World::start().await;
    world.backfill("gw-1", utc("2026-07-01T00:00:00Z")).await;
    let event = |id: &str, time: &str| {
        json!({"specversion": "1.0", "id": id, "source": "gw-1", "type": "llm.usage.v1", "subject": "acme", "time": time,
               "data": {"provider": "openai", "model": "gpt-5", "usage": {"input": 1}}})
    };
    let before = world.publish("gw-1", &event("before", "2026-07-15T00:00:00Z")).await;
    world.settled().await;
    // The consumer has read the catalog; dropping makes it read it again.
    world
        .bed
        .run(
            "INSERT INTO archived_months (month, batches, rows) VALUES ('2026-07-01', 0, 0);
             UPDATE catalog_version SET version = version + 1",
        )
        .await;
    let old = world.publish("gw-1", &event("old", "2026-08-01T00:04:59Z")).await;
    let kept = world.publish("gw-1", &event("kept", "2026-08-01T00:05:00Z")).await;
    world.settled().await;
    let mut outcomes = Vec::new();
    for sequence in [before, old, kept] {
        outcomes.extend(world.outcomes(sequence, 1).await);
    }
    assert_eq!(outcomes, [Ended::Recorded, Ended::Rejected("too_old"), Ended::Recorded]);
    // Nor where finance waives the window.
    sqlx::query("UPDATE rejections SET window_waived = true, replay_requested = true")
        .execute(&world.pool)
        .await
        .unwrap();
    wait_until("it was tried again", async || {
        let tried: i64 =
            sqlx::query_scalar("SELECT count(*) FROM rejections WHERE attempts > 1 AND NOT replay_requested")
                .fetch_one(&world.pool)
                .await
                .unwrap();
        (tried == 1).then_some(())
    })
    .await;
    assert_eq!(world.open_rejections().await, ["too_old"]);
    world.stop_consumers().await;
}

#[tokio::test]
async fn answers_say_what_is_archived() {
    let api = Api::start().await;
    let (ledger, _) = half_a_year_in(Ledger::beside(&api.bed).await).await;
    let (finance, admin) = (&api.keys.finance, &api.keys.admin);
    let task = async || api.get(finance, "/v1/tasks/long?customer=acme").await.json();
    let whole = task().await;
    assert_eq!(whole["has_archived_steps"], Value::Bool(false));
    assert_eq!(whole["steps"].as_array().unwrap().len(), 5);
    assert_eq!(dropped(&ledger, "2026-09-01", true).await.len(), 2);
    let rest = task().await;
    assert_eq!(rest["has_archived_steps"], Value::Bool(true));
    assert_eq!(rest["steps"].as_array().unwrap().len(), 2);
    assert_eq!((&rest["calls"], &rest["cost"]), (&whole["calls"], &whole["cost"]));
    let gone = api.get(finance, "/v1/events/gw-1/a").await;
    assert_eq!(gone.status.as_u16(), 404);
    assert!(gone.text.contains("recorded before 2026-09-01"), "{}", gone.text);
    let early = json!({"name": "gw-2", "backfill_from": "2026-08-31T00:00:00Z"});
    let refused = api.post(admin, "/v1/gateways", &early).await;
    assert!(refused.status.is_client_error() && refused.text.contains("2026-09-01"), "{}", refused.text);
    let kept = json!({"name": "gw-2", "backfill_from": "2026-09-01T00:00:00Z"});
    assert_eq!(api.post(admin, "/v1/gateways", &kept).await.status.as_u16(), 201);
}

/// The partitions of the journal from a month on.
async fn partitions_from(ledger: &Ledger, name: &str) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits
         WHERE inhparent = 'usage_events'::regclass AND inhrelid::regclass::text >= $1 ORDER BY 1",
    )
    .bind(name)
    .fetch_all(&ledger.pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_month_begins_while_somebody_reads_the_journal() {
    let ledger = Ledger::new().await;
    // As a pg_dump does for hours.
    let mut reader = ledger.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE usage_events IN ACCESS SHARE MODE").execute(&mut *reader).await.unwrap();
    let mut tx = ledger.database.begin_ingest().await.unwrap();
    sqlx::query("SET LOCAL lock_timeout = '2s'").execute(&mut *tx).await.unwrap();
    journal::switch_date(&mut tx, day("2027-03-01")).await.expect("nobody is in the way");
    commit(tx).await.unwrap();
    assert_eq!(
        partitions_from(&ledger, "usage_events_2027").await,
        ["usage_events_2027_03", "usage_events_2027_04"]
    );
    reader.rollback().await.unwrap();
}

#[tokio::test]
async fn the_month_after_is_made_another_day_where_its_lock_is_taken() {
    let ledger = Ledger::new().await;
    let open = async |date: &str| {
        let mut tx = ledger.database.begin_ingest().await.unwrap();
        journal::switch_date(&mut tx, day(date)).await.expect("the month itself is there");
        commit(tx).await.unwrap();
    };
    let mut holder = ledger.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE ONLY usage_events IN SHARE UPDATE EXCLUSIVE MODE")
        .execute(&mut *holder)
        .await
        .unwrap();
    open("2026-12-01").await;
    assert_eq!(partitions_from(&ledger, "usage_events_2026_12").await, ["usage_events_2026_12"]);
    holder.rollback().await.unwrap();
    open("2026-12-02").await;
    assert_eq!(
        partitions_from(&ledger, "usage_events_2026_12").await,
        ["usage_events_2026_12", "usage_events_2027_01"]
    );
}

/// Everything that tells partitions from each other, without their names.
async fn shape(ledger: &Ledger, partition: &str) -> Vec<String> {
    let shape = "SELECT replace(what, $1, '') FROM (
            SELECT format('column %s %s %s', to_jsonb(a) - '{attrelid,attcacheoff}'::text[], pg_get_expr(d.adbin, d.adrelid),
                          col_description(a.attrelid, a.attnum)) AS what
            FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attrelid = $1::regclass AND a.attnum > 0
            UNION ALL
            SELECT format('constraint %s %s %s %s %s %s', conname, pg_get_constraintdef(oid), convalidated, conislocal,
                          coninhcount, connoinherit)
            FROM pg_constraint WHERE conrelid = $1::regclass
            UNION ALL
            SELECT format('index %s %s %s', pg_get_indexdef(x.indexrelid), i.inhparent::regclass, x.indisvalid)
            FROM pg_index x LEFT JOIN pg_inherits i ON i.inhrelid = x.indexrelid WHERE x.indrelid = $1::regclass
            UNION ALL
            SELECT format('trigger %s %s %s', pg_get_triggerdef(t.oid), t.tgenabled, p.tgrelid::regclass)
            FROM pg_trigger t LEFT JOIN pg_trigger p ON p.oid = t.tgparentid WHERE t.tgrelid = $1::regclass
            UNION ALL
            SELECT format('table %s %s %s %s', relowner::regrole, relacl, reloptions, relrowsecurity)
            FROM pg_class WHERE oid = $1::regclass) AS shape ORDER BY 1";
    sqlx::query_scalar(shape).bind(partition).fetch_all(&ledger.pool).await.unwrap()
}

#[tokio::test]
async fn a_partition_that_is_attached_is_as_one_that_postgresql_makes_itself() {
    let ledger = Ledger::new().await;
    ledger
        .run(
            "CREATE TABLE made PARTITION OF usage_events FOR VALUES FROM ('2030-01-01') TO ('2030-02-01')
                 WITH (autovacuum_vacuum_insert_scale_factor = 0.02);
             GRANT INSERT ON made TO waybill_ingest;
             ALTER INDEX made_batch_id_idx SET (autosummarize = off)",
        )
        .await;
    let made = shape(&ledger, "made").await;
    assert!(made.iter().any(|what| what.starts_with("trigger")) && made.len() > 50, "{made:#?}");
    assert_eq!(shape(&ledger, "usage_events_2026_11").await, made);
}
