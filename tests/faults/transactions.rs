//! Transactions that are abandoned, wait for locks, or find another schema than a moment ago.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinSet;
use tokio::time::Instant;
use waybill::store::periods::CLOSE_LOCK;

use crate::api::{ask, ask_and_leave, customer_keys, finance_key, publish_canaries};
use crate::bed::{Bed, CUSTOMERS, LONG_ACK_WAIT_SECONDS, Verdict};
use crate::harness::wait_until;
use crate::protocol::Way;
use crate::proxy::Mode;
use crate::publisher::Load;
use crate::rounds::{seed, thorough};
use crate::service::{Serve, is_ready, metric};
use crate::watching::{RETRYING, caught_up, log, nothing_unearned, redelivered, said, says, unstorable};

/// Clients that go away before they are answered, and those that listen.
const HASTY_CLIENTS: usize = 200;
const PATIENT_CLIENTS: usize = 4;
/// Microseconds after which half of the hasty ones go: mostly while they wait for a connection or it is asked whether it works.
const HASTY: u64 = 5_000;
/// The same of the others: anywhere in a transaction.
const LATER: u64 = 150_000;
/// Clients that go away after all others, as many as the API has connections, some of them twice.
const LAST_CLIENTS: usize = 20;
/// How long is looked for what the last ones left: longer than a session may stand still in the middle of a transaction.
const LAST_LOOK: Duration = Duration::from_secs(8);
/// How often the control is tried: where clients are cut off is a matter of chance, and on a busy machine it may be nowhere that
/// tells.
const CONTROL_TRIES: usize = 3;
/// What is logged: what PostgreSQL warns of as well.
const WITH_NOTICES: &str = "info,async_nats=warn,sqlx=error,sqlx::postgres::notice=warn";
/// Questions that keep connections busy.
const SLOW_EXPORTS: usize = 500;
/// How far recording may fall behind because of what the API does.
const LAG_MAX: Duration = Duration::from_secs(5);

/// F35: clients go away in the middle of everything, while each statement takes its time. What the auditor says, and whether
/// a transaction was left open or used again.
async fn f35(bed: &mut Bed, serve: Serve) -> (Verdict, bool) {
    let keys = customer_keys(bed).await;
    let service = serve.env("WAYBILL_LOG", &WITH_NOTICES).start();
    service.ready().await;
    publish_canaries(bed).await;
    bed.settled().await;
    bed.take_snapshots();
    let seed = seed("f35");
    let load = Load { pause: Duration::from_millis(100), ..Load::endless(seed) }.start(bed).await;
    let mut leaked = false;
    for way in [Way::ToServer, Way::ToClient] {
        bed.postgres.set(way, Mode::Delay(Duration::from_millis(25)));
    }
    let (left, listened) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let until = Instant::now() + Duration::from_secs(if thorough() { 120 } else { 5 });
    let mut clients = JoinSet::new();
    for number in 0..HASTY_CLIENTS {
        let (http, key, left) = (service.http, keys[number % keys.len()].1.clone(), Arc::clone(&left));
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
        clients.spawn(async move {
            // Not all at once, and not so many that nobody else is ever answered.
            let mut pause = random.random_range(0..2_000);
            while Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                pause = random.random_range(1_000..5_000);
                let patience = Duration::from_micros(
                    random.random_range(0..if number % 2 == 0 { HASTY } else { LATER }),
                );
                let path = ["/v1/tasks?limit=100", "/v1/usage?group_by=model"][random.random_range(0..2)];
                if ask_and_leave(http, &key, path, patience).await.is_ok() {
                    left.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    for (own, key) in keys.iter().take(PATIENT_CLIENTS).cloned() {
        let (http, listened) = (service.http, Arc::clone(&listened));
        clients.spawn(async move {
            // Afterwards too: what a client has left behind shows to the next one.
            let mut heard = 0;
            while Instant::now() < until || heard < 5 {
                let answer = ask(http, &key, "/v1/tasks?limit=100", "application/json").await.unwrap();
                for customer in CUSTOMERS.iter().filter(|customer| **customer != own) {
                    let foreign = format!("canary-{customer}");
                    assert!(!answer.body.contains(&foreign), "{own} is told of {customer}: {}", answer.body);
                }
                if answer.status == 200 {
                    assert!(answer.body.contains(&format!("canary-{own}")), "{}", answer.body);
                    heard += 1;
                    listened.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    leaked |= left_open(bed, until).await;
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    // The last ones: nobody comes after them and uses their connections for something else.
    let mut random = StdRng::seed_from_u64(seed);
    let last = keys.iter().cycle().take(LAST_CLIENTS).map(|(_, key)| {
        let patience = Duration::from_millis(random.random_range(0..200));
        ask_and_leave(service.http, key, "/v1/tasks?limit=100", patience)
    });
    futures_util::future::join_all(last).await;
    leaked |= left_open(bed, Instant::now() + LAST_LOOK).await;
    bed.postgres.set_both(Mode::Pass);
    let (left, listened) = (left.load(Ordering::Relaxed), listened.load(Ordering::Relaxed));
    println!("{left} clients went away, {listened} answers were heard");
    assert!(left > 200 && listened > 0, "{left} went away, {listened} were heard");
    load.stop().await;
    bed.settled().await;
    let log = log(bed);
    let signs = ["25P02", "current transaction is aborted", "already a transaction in progress"];
    leaked |= signs.iter().any(|sign| log.contains(sign));
    (bed.audit().await, leaked)
}

/// Whether a session stands still in the middle of a transaction for longer than anybody needs, looked at until then.
async fn left_open(bed: &Bed, until: Instant) -> bool {
    let open = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in transaction%'
                  AND clock_timestamp() - state_change > interval '5 seconds'";
    let mut found = false;
    while Instant::now() < until {
        found |= bed.number(open).await > 0;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn f35_clients_that_go_away_leave_nothing_behind() {
    let mut bed = Bed::new("f35").await;
    let serve = bed.serve();
    let (verdict, leaked) = f35(&mut bed, serve).await;
    verdict.clean();
    assert!(!leaked, "a transaction was left open, or used again");
}

/// The control: requests that are dropped wherever they are, on connections that nobody cleans.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f35_control_dropped_requests_leave_transactions_behind() {
    for _ in 0..CONTROL_TRIES {
        let mut bed = Bed::new("f35-control").await;
        let serve = bed.serve_sabotaged("cut_short,no_rollback");
        if f35(&mut bed, serve).await.1 {
            return;
        }
    }
    panic!("nothing was left behind: the test proves nothing");
}

/// F38: another session holds what posting needs for longer than anybody waits.
#[tokio::test(flavor = "multi_thread")]
async fn f38_long_locks_delay_posting_and_nothing_else() {
    let mut bed = Bed::alone("f38").await;
    let service = bed.serve().env("WAYBILL_ACK_WAIT_SECONDS", &LONG_ACK_WAIT_SECONDS).start();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f38")).start(&bed).await;
    bed_has_periods(&bed).await;
    let mut other = PgConnection::connect(bed.database_url()).await.unwrap();
    // What posting adds to; what closing holds while no poster may work; and periods, which posting only reads.
    let locks = [
        ("LOCK TABLE usage_rollups IN EXCLUSIVE MODE".to_owned(), true),
        (format!("SELECT pg_advisory_xact_lock({CLOSE_LOCK})"), true),
        ("SELECT 1 FROM billing_periods FOR UPDATE".to_owned(), false),
    ];
    for (lock, holds_up_posting) in locks {
        let before = said(&bed, "posting failed; trying again");
        sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; {lock}"))).execute(&mut other).await.unwrap();
        let locked = Instant::now();
        if holds_up_posting {
            says(&bed, "posting failed; trying again", before).await;
            assert!(log(&bed).contains("lock timeout"));
        }
        let lag = caught_up(&bed).await;
        assert!(lag < LAG_MAX, "recording waits for what only posting needs: {lag:?}");
        if holds_up_posting {
            assert!(bed.unposted().await > 0, "posting does not wait: {lock}");
        } else {
            goes_on_posting(&bed).await;
        }
        println!("locked for {:?}: {lock}", locked.elapsed());
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    }
    load.stop().await;
    let drained = bed.settled().await;
    println!("posted {drained:?} after the lock was gone");
    assert_eq!(redelivered(&bed).await.0, 0, "messages came again");
    bed.audit().await.clean();
}

async fn bed_has_periods(bed: &Bed) {
    wait_until("something is posted", async || {
        (bed.number("SELECT count(*) FROM usage_rollups").await > 0).then_some(())
    })
    .await;
}

/// Waits until the newest batch is posted, whatever is recorded meanwhile.
async fn goes_on_posting(bed: &Bed) {
    let newest = bed.number("SELECT max(id) FROM ingest_batches").await;
    wait_until("the newest batch is posted", async || {
        let first = bed.number(
            "SELECT COALESCE(min(id), 9223372036854775807) FROM ingest_batches WHERE posted_at IS NULL",
        );
        (first.await > newest).then_some(())
    })
    .await;
}

/// F39: the API is asked more than it has connections for, and each question waits: recording does not.
#[tokio::test(flavor = "multi_thread")]
async fn f39_slow_exports_never_hold_up_recording() {
    let mut bed = Bed::alone("f39").await;
    let finance = finance_key(&bed).await;
    let service = bed.serve().start();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f39")).start(&bed).await;
    let mut usual = Duration::ZERO;
    for _ in 0..5 {
        usual = usual.max(caught_up(&bed).await);
    }
    let mut other = PgConnection::connect(bed.database_url()).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE invoices IN ACCESS EXCLUSIVE MODE").execute(&mut other).await.unwrap();
    let mut exports = JoinSet::new();
    for _ in 0..SLOW_EXPORTS {
        let (http, key) = (service.http, finance.clone());
        exports.spawn(async move { ask(http, &key, "/v1/invoices", "text/csv").await });
    }
    let mut refused = 0;
    let mut worst = Duration::ZERO;
    while !exports.is_empty() {
        worst = worst.max(caught_up(&bed).await);
        while let Some(answer) = exports.try_join_next() {
            let answer = answer.unwrap().expect("every client is answered");
            assert!(matches!(answer.status, 429 | 503) && answer.retry_after, "{answer:?}");
            refused += 1;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!(
        "{refused} exports were refused; recording was at most {worst:?} behind, {usual:?} without them"
    );
    // The clients take their share of the processors too.
    assert!(worst < LAG_MAX + 3 * usual, "recording was {worst:?} behind, {usual:?} without exports");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    exports.abort_all();
    wait_until("the API answers again", async || {
        let answer = ask(service.http, &finance, "/v1/invoices", "text/csv").await?;
        (answer.status == 200).then_some(())
    })
    .await;
    load.stop().await;
    bed.settled().await;
    bed.audit().await.clean();
}

/// F44: the partition that is booked into is not there, and the program makes it; or it is detached, and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn f44_a_missing_partition_stops_recording_and_rejects_nothing() {
    let mut bed = Bed::new("f44").await;
    let partition = current_partition(&bed).await;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP TABLE {partition}"))).execute(&bed.pool).await.unwrap();
    let service = bed.serve().start();
    service.ready().await;
    let load = Load::endless(seed("f44")).start(&bed).await;
    // It is made again where it is simply not there.
    wait_until("something is recorded", async || {
        (bed.number("SELECT count(*) FROM usage_events").await > 0).then_some(())
    })
    .await;
    let change = |how: String| {
        let pool = bed.pool.clone();
        async move { sqlx::raw_sql(AssertSqlSafe(how)).execute(&pool).await.unwrap() }
    };
    let mut left = crate::rounds::rounds(10);
    while left > 0 {
        let (partition, bounds) = booked_to(&bed).await;
        let bounds = bounds.expect("the partition is attached");
        let retries = retries(service.metrics).await;
        change(format!("ALTER TABLE usage_events DETACH PARTITION {partition}")).await;
        let missed =
            wait_until("retries are counted, and the program says that it is not ready", async || {
                // The month is over: nothing is booked there any more.
                if booked_to(&bed).await.0 != partition {
                    return Some(false);
                }
                let counted = self::retries(service.metrics).await > retries;
                (counted && is_ready(service.http).await == Some(false)).then_some(true)
            })
            .await;
        nothing_unearned(&bed).await;
        change(format!("ALTER TABLE usage_events ATTACH PARTITION {partition} {bounds}")).await;
        service.ready().await;
        caught_up(&bed).await;
        left -= u32::from(missed);
    }
    // Not before: without the partition the journal lacks what the sums have.
    bed.take_snapshots();
    load.stop().await;
    bed.settled().await;
    assert_eq!(unstorable(&bed).await, 0);
    bed.audit().await.clean();
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
async fn retries(metrics: std::net::SocketAddr) -> u64 {
    metric(metrics, "waybill_ingest_retries_total").await.unwrap_or_default() as u64
}

/// Opens today's booking date; its partition.
async fn current_partition(bed: &Bed) -> String {
    sqlx::query("SELECT open_booking_date((now() AT TIME ZONE 'UTC')::date)")
        .execute(&bed.pool)
        .await
        .unwrap();
    booked_to(bed).await.0
}

/// The partition that is booked to, and its bounds where it is attached.
async fn booked_to(bed: &Bed) -> (String, Option<String>) {
    sqlx::query_as(
        "SELECT c.relname::text, pg_get_expr(c.relpartbound, c.oid)
         FROM pg_class c, journal_clock
         WHERE c.relname = 'usage_events_' || to_char(booked_on, 'YYYY_MM')",
    )
    .fetch_one(&bed.pool)
    .await
    .unwrap()
}

/// What the database says of a statement that was prepared before the schema changed.
const LOST_PLAN: &str = "cached plan must not change result type";

/// F45: the schema changes under load, also in ways that prepared statements do not survive.
#[tokio::test(flavor = "multi_thread")]
async fn f45_a_migration_under_load_costs_a_retry_and_nothing_else() {
    let mut bed = Bed::new("f45").await;
    let service = bed.serve().supervised();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f45")).start(&bed).await;
    wait_until("copies are looked up", async || {
        (bed.number("SELECT COALESCE(sum(duplicates), 0)::bigint FROM ingest_batches").await > 0)
            .then_some(())
    })
    .await;
    let partition = current_partition(&bed).await;
    // Of a column that their look-up returns: it is prepared again only once it has failed.
    let retyped = "ALTER TABLE usage_events ALTER COLUMN source TYPE varchar";
    let changes = [
        "ALTER TABLE usage_events ADD COLUMN note text".to_owned(),
        format!("CREATE INDEX CONCURRENTLY extra ON {partition} (task_type, occurred_at)"),
        "ALTER TABLE tasks ADD COLUMN note text NOT NULL DEFAULT ''".to_owned(),
        retyped.to_owned(),
        "ALTER TABLE usage_events ALTER COLUMN source TYPE text".to_owned(),
    ];
    for change in changes {
        let lost = said(&bed, LOST_PLAN);
        sqlx::raw_sql(AssertSqlSafe(change.as_str())).execute(&bed.pool).await.unwrap();
        if change == retyped {
            says(&bed, LOST_PLAN, lost).await;
        }
        let behind = caught_up(&bed).await;
        println!("recorded again after {behind:?}");
    }
    assert!(said(&bed, RETRYING) > 0);
    load.stop().await;
    bed.settled().await;
    assert_eq!((service.restarts(), unstorable(&bed).await), (0, 0));
    bed.audit().await.clean();
}
