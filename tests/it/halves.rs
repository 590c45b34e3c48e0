//! A large slice is posted in two halves: whatever becomes of one, each is added once. Periods are made before either.

use sqlx::postgres::{PgConnection, PgQueryResult};
use sqlx::{AssertSqlSafe, Connection};
use tokio::task::JoinHandle;
use waybill::clock::Clock;
use waybill::domain::ids::{BatchId, CustomerId};
use waybill::ingest::posting::{post_all, post_once};
use waybill::invoicing::rerate::{self, Request};
use waybill::reports::verify;
use waybill::store::periods::{self, CLOSE_LOCK};
use waybill::store::posting::POSTING_LOCK;

use crate::harness::wait_until;
use crate::ledger::{Ledger, Row, ended, task_call, utc};
use crate::rerate::{everything, gpt5, publish};

/// As many rows as are posted in two halves.
const ROWS: i64 = 20_000;
const AT: &str = "2026-10-02T01:00:00Z";
/// How often it is tried to have a half waited for, which itself waits no longer than a statement may for a lock.
const TRIES: usize = 5;

/// A ledger in which both of two customers have used something, and a large batch of theirs waits.
struct Waiting {
    ledger: Ledger,
    even: CustomerId,
    odd: CustomerId,
}

impl Waiting {
    async fn new() -> Self {
        let mut ledger = Ledger::new().await;
        let mut customers = [ledger.customer("acme", "UTC").await, ledger.customer("globex", "UTC").await];
        customers.sort_by_key(|customer| customer.0 % 2);
        let [even, odd] = customers;
        ledger.record(&customers.map(|customer| task_call(customer, AT, "t", "test", 1))).await;
        ledger.post().await;
        let calls: Vec<Row> = (0..ROWS)
            .map(|number| {
                let customer = if number % 5 == 0 { odd } else { even };
                Row { id: format!("call-{number}"), ..task_call(customer, AT, "t", "test", 7) }
            })
            .collect();
        ledger.record(&calls).await;
        assert_eq!(ledger.count("SELECT count(*) FROM half_postings").await, 1, "what is posted has no half");
        Self { ledger, even, odd }
    }

    /// Makes adding to a customer's tasks take longer than a session may stand still in a transaction.
    async fn slow_down(&self, customer: CustomerId) {
        let slow = format!(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(18); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE UPDATE ON tasks FOR EACH ROW WHEN (NEW.customer_id = {}) EXECUTE FUNCTION slow()",
            customer.0
        );
        self.ledger.run(&slow).await;
    }

    fn post(&self) -> JoinHandle<bool> {
        let database = self.ledger.database.clone();
        tokio::spawn(async move { post_once(&database).await.is_ok() })
    }

    /// Holds a customer's sums, so that nobody can add to them.
    async fn hold(&self, customer: CustomerId) -> PgConnection {
        let holding = format!("SELECT FROM tasks WHERE customer_id = {} FOR UPDATE", customer.0);
        self.transaction(&holding).await
    }

    async fn transaction(&self, statement: &str) -> PgConnection {
        let mut connection = self.ledger.connect().await;
        let statements = format!("BEGIN; {statement}");
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await.unwrap();
        connection
    }

    /// Restates what a customer has used at another price.
    async fn re_rate(&self, customer: CustomerId) {
        publish(&self.ledger, "standard", gpt5("2026-10-01T00:00:00Z", "4", "22", "0.02")).await;
        let request = Request { customer: Some(customer), ..everything() };
        let clock = Clock::fixed(utc("2026-11-24T00:00:00Z"));
        let rerated = rerate::apply(&self.ledger.database, &clock, &request, "test").await.unwrap();
        assert!(!rerated.batches.is_empty());
    }

    /// Waits until a session is as the condition says.
    async fn seen(&self, what: &str, condition: &str) {
        seen(&self.ledger, what, condition).await;
    }

    /// Kills the session that is as the condition says, as soon as one is, and returns when its locks are gone.
    async fn kill(&self, condition: &str) {
        let killed = killed(condition);
        wait_until(condition, async || (self.ledger.count(&killed).await == 1).then_some(())).await;
    }

    /// Waits until a query counts one session; `false` where the poster, and each half of what it posts, has ended before.
    async fn during(&self, posting: &JoinHandle<bool>, what: &str, query: &str) -> bool {
        wait_until(what, async || {
            let one = self.ledger.count(query).await == 1;
            (one || posting.is_finished()).then_some(one)
        })
        .await
    }

    /// As a release that knows no halves marks a batch.
    async fn post_as_before(&self) -> Result<PgQueryResult, sqlx::Error> {
        let mark = "UPDATE ingest_batches SET posted_at = now(), posted_closing = 0 WHERE posted_at IS NULL";
        sqlx::query(mark).execute(&self.ledger.pool).await
    }

    async fn half_is_added(&self) {
        let added = "SELECT count(*) FROM half_postings WHERE posted_closing IS NOT NULL";
        wait_until("half is added", async || (self.ledger.count(added).await == 1).then_some(())).await;
    }

    async fn verified(&self) {
        let proof =
            verify::rebuild(&self.ledger.database, utc("2026-10-03T00:00:00Z"), |_| ()).await.unwrap();
        assert_eq!(proof.findings, []);
    }

    async fn calls(&self, customer: CustomerId) -> i64 {
        let calls = format!("SELECT sum(calls)::bigint FROM tasks WHERE customer_id = {}", customer.0);
        self.ledger.count(&calls).await
    }

    /// Everything is added once.
    async fn settled(&self) {
        self.ledger.post().await;
        assert_eq!(self.ledger.count("SELECT count(*) FROM half_postings").await, 0);
        assert_eq!(
            (self.calls(self.even).await, self.calls(self.odd).await),
            (1 + ROWS / 5 * 4, 1 + ROWS / 5)
        );
        self.verified().await;
    }
}

fn pids(condition: &str) -> String {
    format!("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND {condition}")
}

/// Counts the sessions that are as the condition says.
fn sessions(condition: &str) -> String {
    format!("SELECT count(*) FROM ({}) AS s", pids(condition))
}

/// Ends them, and counts those that have.
fn killed(condition: &str) -> String {
    let pids = pids(condition);
    format!("SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, 10000)) FROM ({pids}) AS s")
}

async fn seen(ledger: &Ledger, what: &str, condition: &str) {
    let sessions = sessions(condition);
    wait_until(what, async || (ledger.count(&sessions).await == 1).then_some(())).await;
}

const WAITS_FOR_TASK: &str = "wait_event_type = 'Lock' AND query LIKE 'INSERT INTO tasks%'";
const WAITS_FOR_HALF: &str = "wait_event_type = 'Lock' AND query LIKE '%FROM half_postings%'";

/// What waits for the other half says that it is there: otherwise it would be ended as the session of a frozen program.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_that_takes_long_is_waited_for() {
    let waiting = Waiting::new().await;
    waiting.slow_down(waiting.odd).await;
    assert_eq!(post_once(&waiting.ledger.database).await.unwrap(), 1);
    waiting.settled().await;
}

/// A command goes on after a slice that was too slow for one statement, as the service does.
#[tokio::test(flavor = "multi_thread")]
async fn posting_everything_tries_again() {
    let waiting = Waiting::new().await;
    let fails_once = "CREATE SEQUENCE tries;
        CREATE FUNCTION fails_once() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            IF nextval('tries') = 1 THEN
                RAISE EXCEPTION 'too slow' USING ERRCODE = 'query_canceled';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER fails_once BEFORE UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION fails_once()";
    waiting.ledger.run(fails_once).await;
    post_all(&waiting.ledger.database).await.unwrap();
    waiting.settled().await;
}

#[tokio::test]
async fn a_half_that_is_added_stays_added_where_the_other_breaks_off() {
    let waiting = Waiting::new().await;
    let held = waiting.hold(waiting.even).await;
    let posting = waiting.post();
    waiting.half_is_added().await;
    waiting.seen("the other half waits", WAITS_FOR_TASK).await;
    waiting.kill(WAITS_FOR_TASK).await;
    assert!(!posting.await.unwrap());

    assert_eq!((waiting.calls(waiting.even).await, waiting.calls(waiting.odd).await), (1, 1 + ROWS / 5));
    waiting.verified().await;
    let mut connection = waiting.ledger.connect().await;
    let left = periods::unposted_or_half_posted(&mut connection, BatchId(0)).await.unwrap();
    assert_eq!(left, 1, "no period is closed between two halves");
    let refused = waiting.post_as_before().await.unwrap_err().to_string();
    assert!(refused.contains("half of batch"), "{refused}");
    held.close().await.unwrap();
    waiting.settled().await;
    assert_eq!(periods::unposted_or_half_posted(&mut connection, BatchId(0)).await.unwrap(), 0);
}

#[tokio::test]
async fn a_half_that_breaks_off_is_added_with_the_other_later() {
    let waiting = Waiting::new().await;
    let held = waiting.hold(waiting.odd).await;
    let posting = waiting.post();
    waiting.seen("the odd half waits", WAITS_FOR_TASK).await;
    waiting.kill(WAITS_FOR_TASK).await;
    assert!(!posting.await.unwrap());
    assert_eq!((waiting.calls(waiting.even).await, waiting.calls(waiting.odd).await), (1, 1));
    waiting.verified().await;
    held.close().await.unwrap();
    waiting.settled().await;
}

#[tokio::test]
async fn a_half_that_outlives_its_poster_is_waited_for() {
    // Between two shares of the even half, or after the last.
    let poster = killed("state = 'idle in transaction' AND query LIKE 'INSERT INTO tasks%'");
    for _ in 0..TRIES {
        let waiting = Waiting::new().await;
        let held = waiting.hold(waiting.odd).await;
        let posting = waiting.post();
        if !waiting.during(&posting, "the odd half waits", &sessions(WAITS_FOR_TASK)).await
            || !waiting.during(&posting, "the poster is killed", &poster).await
        {
            continue;
        }
        // The batch is nobody's now, and another poster takes it.
        let again = waiting.post();
        if !waiting.during(&posting, "it waits for the half", &sessions(WAITS_FOR_HALF)).await {
            continue;
        }
        held.close().await.unwrap();
        assert!(!posting.await.unwrap());
        assert!(again.await.unwrap());
        waiting.settled().await;
        return;
    }
    panic!("each time the half was gone before it was waited for");
}

#[tokio::test]
async fn while_a_poster_has_its_turn_others_leave_everything_to_it() {
    for _ in 0..TRIES {
        let mut waiting = Waiting::new().await;
        let held = waiting.hold(waiting.even).await;
        let posting = waiting.post();
        waiting.half_is_added().await;
        let later = task_call(waiting.odd, AT, "t", "test", 1);
        waiting.ledger.record(&[later]).await;
        let unposted = "SELECT count(*) FROM ingest_batches WHERE posted_at IS NULL";
        let beside = post_once(&waiting.ledger.database).await;
        if posting.is_finished() {
            // It has waited for too long.
            continue;
        }
        assert_eq!(beside.unwrap(), 0);
        assert_eq!(waiting.ledger.count(unposted).await, 2, "what nobody is at waits for the next turn");
        held.close().await.unwrap();
        posting.await.unwrap();
        waiting.ledger.post().await;
        assert_eq!(waiting.ledger.count(unposted).await, 0);
        assert_eq!(waiting.calls(waiting.odd).await, 2 + ROWS / 5);
        waiting.verified().await;
        return;
    }
    panic!("each time the poster had given up before another one looked");
}

#[tokio::test]
async fn a_poster_that_makes_billing_periods_waits_for_its_turn() {
    let mut waiting = Waiting::new().await;
    let november = task_call(waiting.even, "2026-11-02T01:00:00Z", "t", "test", 1);
    waiting.ledger.record(&[november]).await;
    let held = waiting.hold(waiting.odd).await;
    let posting = waiting.post();
    waiting.seen("the even half lacks a period", "state = 'idle in transaction (aborted)'").await;
    waiting.seen("the odd half waits", WAITS_FOR_TASK).await;
    let other = waiting.transaction(&format!("SELECT pg_advisory_xact_lock({POSTING_LOCK})")).await;
    held.close().await.unwrap();
    waiting.seen("the poster waits", "wait_event = 'advisory'").await;
    other.close().await.unwrap();
    assert!(posting.await.unwrap());
    assert_eq!(waiting.ledger.count("SELECT count(*) FROM ingest_batches WHERE posted_at IS NULL").await, 0);
    waiting.verified().await;
}

#[tokio::test]
async fn whoever_waits_for_a_turn_keeps_no_closing_waiting() {
    let waiting = Waiting::new().await;
    let other = waiting.transaction(&format!("SELECT pg_advisory_xact_lock({POSTING_LOCK})")).await;
    let database = waiting.ledger.database.clone();
    let all = tokio::spawn(async move { post_all(&database).await });
    waiting.seen("it waits", "wait_event = 'advisory'").await;
    let free = format!(
        "SELECT count(*) FILTER (WHERE pg_try_advisory_xact_lock({CLOSE_LOCK})) FROM (VALUES (1)) AS one"
    );
    assert_eq!(waiting.ledger.count(&free).await, 1);
    other.close().await.unwrap();
    all.await.unwrap().unwrap();
    assert_eq!(waiting.ledger.count("SELECT count(*) FROM ingest_batches WHERE posted_at IS NULL").await, 0);
}

#[tokio::test]
async fn a_half_has_the_reasons_of_its_adjustments() {
    let waiting = Waiting::new().await;
    waiting.re_rate(waiting.odd).await;
    let held = waiting.hold(waiting.even).await;
    let posting = waiting.post();
    let left = "SELECT count(*) FROM half_postings WHERE posted_closing IS NULL";
    wait_until("half is added", async || (waiting.ledger.count(left).await == 0).then_some(())).await;
    assert!(waiting.ledger.count("SELECT count(*) FROM adjustment_reasons").await > 0);
    waiting.verified().await;
    held.close().await.unwrap();
    // The other half may have waited for too long; then it is added now.
    posting.await.unwrap();
    waiting.settled().await;
}

#[tokio::test]
async fn a_half_with_adjustments_waits_for_nothing_that_its_poster_holds() {
    let waiting = Waiting::new().await;
    waiting.re_rate(waiting.odd).await;
    assert!(waiting.post().await.unwrap(), "neither half waits for the other");
    assert_eq!(waiting.ledger.count("SELECT count(*) FROM half_postings").await, 0);
    let transactions = "SELECT count(DISTINCT xmin::text) FROM tasks";
    assert_eq!(waiting.ledger.count(transactions).await, 2, "each half in its own");
    waiting.settled().await;
}

#[tokio::test]
async fn both_halves_are_added_by_one_connection_where_no_other_is_to_be_had() {
    let waiting = Waiting::new().await;
    let mut taken = Vec::new();
    while let Ok(tx) = waiting.ledger.database.begin_ingest().await {
        taken.push(tx);
    }
    taken.pop();
    assert!(waiting.post().await.unwrap());
    drop(taken);
    waiting.settled().await;
}

#[tokio::test]
async fn a_closing_that_waits_for_the_poster_is_not_waited_for_by_half_of_it() {
    let waiting = Waiting::new().await;
    let table = waiting.transaction("LOCK TABLE ONLY usage_events IN ACCESS EXCLUSIVE MODE").await;
    let posting = waiting.post();
    waiting.seen("the poster has begun", "wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE%'").await;
    let mut closer = waiting.ledger.connect().await;
    let closing = tokio::spawn(async move {
        periods::lock_closing(&mut closer).await.unwrap();
        closer
    });
    waiting
        .seen("a closing waits", "wait_event = 'advisory' AND query LIKE '%pg_advisory_xact_lock(%'")
        .await;
    table.close().await.unwrap();
    assert!(posting.await.unwrap());
    drop(closing.await.unwrap());
    waiting.settled().await;
}

#[tokio::test]
async fn usage_that_comes_while_periods_are_made_waits_for_periods_of_its_own() {
    let mut ledger = Ledger::new().await;
    let [first, second] = [ledger.customer("acme", "UTC").await, ledger.customer("globex", "UTC").await];
    ledger.record(&[task_call(first, AT, "t", "test", 1)]).await;
    let mut periods = ledger.connect().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE billing_periods IN SHARE MODE").execute(&mut periods).await.unwrap();
    let database = ledger.database.clone();
    let posting = tokio::spawn(async move { post_once(&database).await });
    let waits = "wait_event_type = 'Lock' AND query LIKE 'INSERT INTO billing_periods%'";
    seen(&ledger, "periods are made", waits).await;

    ledger.record(&[task_call(second, AT, "t", "test", 1)]).await;
    periods.close().await.unwrap();
    assert_eq!(posting.await.unwrap().unwrap(), 1, "the batch whose periods were made");
    assert_eq!(post_once(&ledger.database).await.unwrap(), 1);
}

#[tokio::test]
async fn a_release_that_knows_no_halves_posts_whole_batches() {
    let waiting = Waiting::new().await;
    assert_eq!(waiting.post_as_before().await.unwrap().rows_affected(), 1);
    assert_eq!(waiting.ledger.count("SELECT count(*) FROM half_postings").await, 0);
}

/// What the migration finds and mends; the ledger is made as a release before it left one.
#[tokio::test]
async fn outcomes_without_a_period_and_batches_without_a_half_are_mended_by_the_migration() {
    const MIGRATION: &str = include_str!("../../migrations/20261127000050_posting_goes_on.sql");
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "America/Sao_Paulo").await;
    ledger.run("UPDATE customers SET anchor_day = 15").await;
    let ends = |at, task, outcome| ended(acme, at, task, "refund", outcome);
    ledger
        .record(&[
            task_call(acme, "2026-08-20T00:00:00Z", "t", "refund", 1),
            ends("2026-08-21T00:00:00Z", "changes", "success"),
            // Within the hour before the next period and after it, in a zone three hours behind.
            ends("2026-10-15T02:59:59Z", "before", "success"),
            ends("2026-10-15T03:00:00Z", "after", "success"),
        ])
        .await;
    ledger.post().await;
    ledger.record(&[ends("2026-11-20T00:00:00Z", "changes", "failure")]).await;
    ledger.post().await;
    ledger.record(&[ends("2026-11-21T00:00:00Z", "unposted", "success")]).await;
    let periods =
        "SELECT string_agg(format('%s %s', extract(epoch FROM start_at), extract(epoch FROM end_at)), ','
                   ORDER BY start_at) FROM billing_periods";
    let right: String = sqlx::query_scalar(periods).fetch_one(&ledger.pool).await.unwrap();
    ledger
        .run(
            "DROP FUNCTION knows_time_zone; ALTER TABLE tasks DROP CONSTRAINT tasks_outcome_booked;
             DELETE FROM half_postings;
             UPDATE tasks SET outcome_period = CASE WHEN task_id = 'changes' THEN (SELECT min(start_at) FROM billing_periods) END;
             DELETE FROM billing_periods WHERE start_at > '2026-09-01Z'",
        )
        .await;
    ledger.run(&format!("BEGIN; {MIGRATION} COMMIT")).await;
    let mended: String = sqlx::query_scalar(periods).fetch_one(&ledger.pool).await.unwrap();
    assert_eq!(mended, right, "periods are those of the calendar");
    ledger.post().await;
    let proof = verify::rebuild(&ledger.database, utc("2026-12-03T00:00:00Z"), |_| ()).await.unwrap();
    assert_eq!(proof.findings, []);
}
