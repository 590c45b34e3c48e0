//! Several workers in each other's way, and statements that fail in the middle of a transaction.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{Bed, Verdict};
use crate::harness::wait_until;
use crate::protocol::{Kind, Message, Way};
use crate::publisher::{Gateway, Load, now};
use crate::rounds::{rounds, seed};
use crate::service::Serve;
use crate::watching::{RETRYING, log, nothing_lacked, nothing_unearned, redelivered, repeated, said, says};

/// Events of a message whose copies meet: enough for two COPYs to overlap.
const MEETING: usize = 490;
/// The message of a COPY that it is stopped at, so that two of them go on together. The server writes the keys of so few
/// rows only at the end of the COPY.
const COPY_MESSAGE: u32 = 3;
/// Meetings until keys in two orders are bound to have met in a deadlock: about one in three does.
const CONTROL_ROUNDS: u32 = 30;
/// Sessions that wait for another one.
const LOCK_WAITS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
/// How long the other worker may take to come as far: it comes late, or not at all, where one worker got both messages.
const MEET_WITHIN: Duration = Duration::from_secs(5);

/// F50: a worker is frozen in its transaction, another takes its messages over, the first one wakes up.
async fn f50(bed: &mut Bed, serve: Serve, until_its_session_ends: bool) -> Verdict {
    let serve = serve.roles(&["--consumer", "--jobs"]);
    bed.take_snapshots();
    Load::seeded(seed("f50")).sent(bed).await;
    let recorded = bed.postgres.hold(Way::ToServer, |m| m.is_statement("INSERT INTO batch_payloads"));
    let zombie = serve.start();
    let held = recorded.reached("the first worker has copied its events").await;
    zombie.freeze();
    held.release();
    let _other = serve.start();
    wait_until(
        "the other worker gets what the first one has, and waits for its locks or has gone on without",
        async || {
            let there = bed.number(LOCK_WAITS).await > 0
                || bed.number("SELECT count(*) FROM ingest_batches").await > 0;
            (there && repeated(bed).await.0 > 0).then_some(())
        },
    )
    .await;
    if until_its_session_ends {
        bed.settled().await;
    }
    zombie.thaw();
    bed.settled().await;
    // It has nothing left to do, or its copies would come later.
    bed.acknowledged().await;
    assert!(redelivered(bed).await.0 > 0, "nothing was taken over");
    assert!(zombie.terminate().success(), "the worker that woke up goes on as any other");
    bed.audit().await
}

#[tokio::test(flavor = "multi_thread")]
async fn f50_a_worker_that_wakes_up_after_another_took_over_records_nothing_twice() {
    for _ in 0..rounds(30) {
        let mut bed = Bed::new("f50").await;
        let serve = bed.serve();
        f50(&mut bed, serve, false).await.clean();
        nothing_lacked(&bed);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-faults"]
async fn f50_a_worker_frozen_for_longer_than_its_session_lives_records_nothing_twice() {
    for _ in 0..rounds(5) {
        let mut bed = Bed::new("f50-long").await;
        let serve = bed.serve();
        f50(&mut bed, serve, true).await.clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f50_control_without_the_look_up_both_workers_record() {
    let mut bed = Bed::new("f50-control").await;
    let serve = bed.serve_sabotaged("double");
    f50(&mut bed, serve, false).await.violates("I2");
}

/// Events that two messages carry, the other way round in the second.
fn meeting(gateway: &str, round: u32) -> (Value, Value) {
    let made = now();
    let event = |number: usize| {
        json!({"specversion": "1.0", "id": format!("{round}-{number}"), "source": gateway, "type": "llm.usage.v1",
               "subject": "acme", "time": made.to_rfc3339(),
               "data": {"provider": "openai", "model": "gpt-5", "usage": {"input": number, "output": 1},
                        "attributes": {"project": "p".repeat(60)}}})
    };
    let events: Vec<Value> = (0..MEETING).map(event).collect();
    let reversed: Vec<Value> = events.iter().rev().cloned().collect();
    (events.into(), reversed.into())
}

/// Whether a message is in the middle of its connection's COPY.
fn in_its_copy() -> impl Fn(&Message) -> bool + Send + 'static {
    let copied = Mutex::new(HashMap::new());
    move |message| {
        if message.kind != Kind::CopyData {
            return false;
        }
        let mut copied = copied.lock().unwrap();
        let messages: &mut u32 = copied.entry(message.connection).or_default();
        *messages += 1;
        *messages == COPY_MESSAGE
    }
}

/// F36: two workers record copies of the same events at the same time; returns how many deadlocks there were.
async fn f36(bed: &mut Bed, one: Serve, other: Serve, rounds: u32) -> (Verdict, i64) {
    let (one, other) = (one.start(), other.start());
    one.ready().await;
    other.ready().await;
    bed.take_snapshots();
    let gateway = bed.gateways[0].clone();
    let mut first = Gateway::new(bed, &gateway, "first").await;
    let mut second = Gateway::new(bed, &gateway, "second").await;
    let mut met = 0;
    for round in 0..rounds {
        let (events, reversed) = meeting(&gateway, round);
        let [one_copies, other_copies] = [(); 2].map(|()| bed.postgres.hold(Way::ToServer, in_its_copy()));
        // Both workers wait for a message: each gets one.
        let (notes, copies) = (vec!["new"; MEETING], vec!["copy"; MEETING]);
        tokio::join!(
            first.send(events.to_string(), &notes, true),
            second.send(reversed.to_string(), &copies, true)
        );
        let waiting = one_copies.reached("a worker is in its COPY").await;
        let other = tokio::time::timeout(MEET_WITHIN, other_copies.reached("so is the other")).await;
        if other.is_ok() {
            wait_until("both have copied, or one waits for the other", async || {
                let both = bed
                    .number("SELECT count(*) FROM pg_stat_progress_copy WHERE datname = current_database() AND tuples_processed > 100")
                    .await
                    == 2;
                (both || bed.number(LOCK_WAITS).await > 0).then_some(())
            })
            .await;
        }
        met += u32::from(other.is_ok());
        drop((waiting, other));
        bed.settled().await;
    }
    assert!(met > 0, "the workers never met");
    println!("f36: the workers met in {met} of {rounds} rounds");
    // A worker tells of its deadlocks when it is idle.
    assert!(one.terminate().success() && other.terminate().success());
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    (bed.audit().await, bed.number(deadlocks).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_workers_with_copies_of_the_same_events_never_deadlock() {
    let mut bed = Bed::new("f36").await;
    let (one, other) = (bed.serve(), bed.serve());
    let (verdict, deadlocks) = f36(&mut bed, one, other, rounds(100).max(5)).await;
    verdict.clean();
    assert_eq!(deadlocks, 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f36_control_keys_in_two_orders_deadlock_and_are_tried_again() {
    let mut bed = Bed::new("f36-control").await;
    let (one, other) = (bed.serve(), bed.serve_sabotaged("reversed"));
    let (verdict, deadlocks) = f36(&mut bed, one, other, CONTROL_ROUNDS).await;
    assert!(deadlocks > 0, "keys in two orders should meet in a deadlock");
    verdict.clean();
}

/// Makes every third statement on a table fail as a deadlock or a serialization failure would, the first one among them: a
/// sequence counts on where its transaction is rolled back.
const FAIL_SOMETIMES: &str = "
    CREATE SEQUENCE statements;
    CREATE FUNCTION fail_sometimes() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    DECLARE turn bigint := nextval('statements') % 6;
    BEGIN
        IF turn = 1 THEN RAISE EXCEPTION 'told to' USING ERRCODE = '40P01'; END IF;
        IF turn = 4 THEN RAISE EXCEPTION 'told to' USING ERRCODE = '40001'; END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER fail_sometimes BEFORE INSERT OR UPDATE ON %TABLE% FOR EACH STATEMENT EXECUTE FUNCTION fail_sometimes()";

/// F36: transactions fail in the middle. What the auditor says, and how often the program said that it tries again.
async fn failing_sometimes(bed: &mut Bed, serve: Serve, table: &str) -> (Verdict, usize) {
    let trigger = FAIL_SOMETIMES.replace("%TABLE%", table);
    sqlx::raw_sql(sqlx::AssertSqlSafe(trigger)).execute(&bed.pool).await.unwrap();
    let service = serve.start();
    service.ready().await;
    bed.take_snapshots();
    Load::seeded(seed("f36-injected")).sent(bed).await;
    // Nothing settles where batches are lost: everything is acknowledged, and then it is judged.
    bed.acknowledged().await;
    bed.posted().await;
    (bed.audit().await, said(bed, RETRYING))
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_transactions_that_fail_now_and_then_are_tried_again_as_a_whole() {
    // The last statement that records, and the first one; the latter's table is written by posting too.
    for table in ["batch_payloads", "ingest_batches"] {
        let mut bed = Bed::new("f36-injected").await;
        let serve = bed.serve();
        let (verdict, retries) = failing_sometimes(&mut bed, serve, table).await;
        println!("f36: {retries} retries where {table} fails");
        assert!(retries > 0, "no transaction failed");
        verdict.clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f36_control_a_batch_that_failed_and_is_acknowledged_is_lost() {
    for table in ["batch_payloads", "ingest_batches"] {
        let mut bed = Bed::new("f36-control-lost").await;
        let serve = bed.serve_sabotaged("ack_failed,no_repair");
        let (verdict, _) = failing_sometimes(&mut bed, serve, table).await;
        verdict.violates("I1");
        verdict.violates("I9");
    }
}

/// Makes the database refuse some events.
async fn refuse_some(bed: &Bed) {
    let refuse = "ALTER TABLE usage_events ADD CONSTRAINT refused CHECK (task_id <> 'task-13')";
    sqlx::raw_sql(refuse).execute(&bed.pool).await.unwrap();
}

/// F37: the database refuses some events in the middle of their batches.
async fn f37(bed: &mut Bed, serve: Serve) -> Verdict {
    refuse_some(bed).await;
    let service = serve.start();
    service.ready().await;
    bed.take_snapshots();
    Load::seeded(seed("f37")).sent(bed).await;
    bed.acknowledged().await;
    bed.posted().await;
    bed.audit().await
}

#[tokio::test(flavor = "multi_thread")]
async fn f37_an_event_that_the_database_refuses_takes_none_of_its_neighbours_with_it() {
    let mut bed = Bed::new("f37").await;
    let serve = bed.serve();
    f37(&mut bed, serve).await.clean_but_refused();
    nothing_lacked(&bed);
    let neighbours = "SELECT count(*) FROM rejections
                      WHERE reason = 'unstorable' AND position('\"task-13\"'::bytea IN raw) = 0";
    assert_eq!(bed.number(neighbours).await, 0, "rejections that the database would not have refused");
}

/// F37: code that goes on after a failed statement. The commit asks first whether the transaction stands: nothing counts as
/// recorded, and nothing is acknowledged, until a program without that fault comes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f37_a_swallowed_error_is_found_at_the_commit() {
    let mut bed = Bed::new("f37-swallowed").await;
    refuse_some(&bed).await;
    let mut swallowing = bed.serve_sabotaged("swallow").start();
    swallowing.ready().await;
    bed.take_snapshots();
    Load::seeded(seed("f37-swallowed")).sent(&bed).await;
    says(&bed, RETRYING, 0).await;
    assert!(log(&bed).contains("current transaction is aborted"), "{}", bed.folder.display());
    nothing_unearned(&bed).await;
    swallowing.kill();
    let service = bed.serve().start();
    service.ready().await;
    bed.acknowledged().await;
    bed.posted().await;
    nothing_lacked(&bed);
    bed.audit().await.clean_but_refused();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f37_control_an_error_that_is_swallowed_loses_the_batch() {
    let mut bed = Bed::new("f37-control").await;
    let serve = bed.serve_sabotaged("swallow,unasked,no_repair");
    let verdict = f37(&mut bed, serve).await;
    verdict.violates("I1");
    verdict.violates("I9");
}
