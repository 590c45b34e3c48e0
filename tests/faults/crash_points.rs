//! F47: the program is killed at every point of recording and of posting, again and again.

use std::fmt::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::bed::{Bed, FULL_BATCH_SECONDS, Verdict};
use crate::protocol::{Kind, Message, Way};
use crate::proxy::{End, Hold};
use crate::publisher::Load;
use crate::rounds::{rounds, seed, thorough};
use crate::service::Serve;
use crate::watching::{nothing_lacked, something_lacks};

/// Acknowledgements that arrive before the kill among them.
const ACKS_BEFORE: u32 = 2;
/// Pause between two messages of a gateway: enough of them at any time, not too many in the end.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the program is killed: when this message of its is about to go its way.
#[derive(Clone, Copy)]
struct Point {
    name: &'static str,
    proxy: Carries,
    way: Way,
    matches: fn(&Message) -> bool,
}

#[derive(Clone, Copy)]
enum Carries {
    Postgres,
    Nats,
}

const fn statement(name: &'static str, matches: fn(&Message) -> bool) -> Point {
    Point { name, proxy: Carries::Postgres, way: Way::ToServer, matches }
}

const fn answer(name: &'static str, matches: fn(&Message) -> bool) -> Point {
    Point { name, proxy: Carries::Postgres, way: Way::ToClient, matches }
}

fn recording(message: &Message) -> bool {
    message.follows("FROM journal_clock, catalog_version") && !message.follows("FROM rejections r JOIN")
}

fn posting(message: &Message) -> bool {
    message.follows("INSERT INTO usage_rollups")
}

/// Recording, in the order in which it happens. The numbers are those of the argument per crash point.
const RECORDING: [Point; 17] = [
    Point {
        name: "C1 a message is fetched",
        proxy: Carries::Nats,
        way: Way::ToClient,
        matches: Message::is_delivery,
    },
    statement("C3 BEGIN is done, the journal's lock is not taken", |m| {
        m.is_statement("pg_advisory_xact_lock_shared") && m.transaction.len() == 1
    }),
    statement("C3 before the booking date is read", |m| {
        m.is_statement("FROM journal_clock, catalog_version")
    }),
    statement("C4 before the look-up", |m| m.is_statement("WHERE event_key = ANY") && recording(m)),
    statement("C5 before the batch row", |m| m.is_statement("INSERT INTO ingest_batches") && recording(m)),
    statement("C5 before the COPY", |m| m.is_statement("COPY usage_events")),
    statement("C5 in the COPY", |m| m.kind == Kind::CopyData && m.follows("COPY usage_events")),
    statement("C5 before the end of the COPY", |m| {
        m.kind == Kind::CopyDone && m.follows("COPY usage_events")
    }),
    statement("C6 before rejections", |m| m.is_statement("COPY rejections")),
    statement("C6 in the COPY of rejections", |m| m.kind == Kind::CopyData && m.follows("COPY rejections")),
    statement("C6 before the payload", |m| m.is_statement("INSERT INTO batch_payloads") && recording(m)),
    statement("C7 before the gateways' counts", |m| {
        m.is_statement("INSERT INTO gateway_sequences") && recording(m)
    }),
    statement("C8 before it asks whether the transaction stands", |m| {
        m.is_statement("SELECT 1 AS one") && recording(m)
    }),
    statement("C8 before COMMIT", |m| m.is_statement("COMMIT") && recording(m)),
    answer("C9 COMMIT is done, its answer underway", |m| m.completes("COMMIT") && recording(m)),
    Point {
        name: "C10 before the first ack",
        proxy: Carries::Nats,
        way: Way::ToServer,
        matches: Message::is_ack,
    },
    Point { name: "C11 after some acks", proxy: Carries::Nats, way: Way::ToServer, matches: after_some_acks },
];

/// Posting, in the order in which it happens.
const POSTING: [Point; 7] = [
    statement("P1 before the slice is taken", |m| {
        m.is_statement("FROM ingest_batches WHERE posted_at IS NULL ORDER BY id LIMIT")
    }),
    statement("P2 before the rollups", |m| m.is_statement("INSERT INTO usage_rollups")),
    statement("P3 before the tasks", |m| m.is_statement("INSERT INTO tasks") && posting(m)),
    statement("P4 before it is marked posted", |m| {
        m.is_statement("UPDATE ingest_batches SET posted_at") && posting(m)
    }),
    statement("P5 before it asks whether the transaction stands", |m| {
        m.is_statement("SELECT 1 AS one") && posting(m)
    }),
    statement("P6 before COMMIT", |m| m.is_statement("COMMIT") && posting(m)),
    answer("P7 COMMIT is done, its answer underway", |m| m.completes("COMMIT") && posting(m)),
];

fn half(message: &Message) -> bool {
    message.follows("UPDATE half_postings")
}

/// Posting half of a large slice on a connection of its own, in the order in which it happens.
const HALF_POSTING: [Point; 7] = [
    statement("H1 before the odd half is taken", |m| m.is_statement("FROM half_postings")),
    statement("H2 before it is marked", |m| m.is_statement("UPDATE half_postings")),
    statement("H3 before its COMMIT", |m| m.is_statement("COMMIT") && half(m)),
    answer("H4 its COMMIT is done, the answer underway", |m| m.completes("COMMIT") && half(m)),
    statement("H5 before the halves are forgotten", |m| m.is_statement("DELETE FROM half_postings")),
    statement("H6 before the slice is marked posted", |m| {
        m.is_statement("UPDATE ingest_batches SET posted_at") && posting(m)
    }),
    statement("H7 before its COMMIT", |m| m.is_statement("COMMIT") && m.follows("DELETE FROM half_postings")),
];

fn after_some_acks(message: &Message) -> bool {
    static ACKS: AtomicU32 = AtomicU32::new(0);
    message.is_ack() && ACKS.fetch_add(1, Ordering::Relaxed) % (ACKS_BEFORE + 1) == ACKS_BEFORE
}

fn hold(bed: &Bed, point: Point) -> Hold {
    match point.proxy {
        Carries::Postgres => bed.postgres.hold(point.way, point.matches),
        Carries::Nats => bed.nats.hold(point.way, point.matches),
    }
}

/// Kills the program at the point, so often.
async fn kill_at(bed: &Bed, serve: &Serve, point: Point, rounds: u32) {
    for _ in 0..rounds {
        let reaching = hold(bed, point);
        let mut service = serve.start();
        let message = reaching.reached(point.name).await;
        service.kill();
        message.end(End::Cut);
    }
}

/// Kills the program so often at each of the points, then lets one finish.
async fn crash(bed: &mut Bed, serve: Serve, points: &[Point], rounds: u32) -> Verdict {
    let serve = serve.roles(&["--consumer", "--jobs"]);
    bed.take_snapshots();
    let load = Load { pause: PAUSE, ..Load::endless(seed(points[0].name)) }.start(bed).await;
    for point in points {
        kill_at(bed, &serve, *point, rounds).await;
    }
    load.stop().await;
    let _service = serve.start();
    bed.acknowledged().await;
    bed.posted().await;
    bed.audit().await
}

/// One after the other in a short run; in a thorough one each has a ledger of its own, whose copies are counted.
async fn every_point(name: &str, points: &[Point]) {
    if !thorough() {
        let mut bed = Bed::new(name).await;
        let serve = bed.serve();
        crash(&mut bed, serve, points, rounds(1)).await.clean();
        return nothing_lacked(&bed);
    }
    let mut table = format!("{:>6} {:>8} {:>8} {:>8}  killed\n", "rounds", "recorded", "copies", "batches");
    for point in points {
        let mut bed = Bed::new(name).await;
        let serve = bed.serve();
        let rounds = rounds(100);
        crash(&mut bed, serve, &[*point], rounds).await.clean();
        nothing_lacked(&bed);
        let copies = bed.number("SELECT sum(duplicates)::bigint FROM ingest_batches").await;
        let recorded = bed.number("SELECT sum(recorded)::bigint FROM ingest_batches").await;
        let batches = bed.number("SELECT count(*) FROM ingest_batches").await;
        writeln!(table, "{rounds:>6} {recorded:>8} {copies:>8} {batches:>8}  {}", point.name).unwrap();
    }
    println!("{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f47_killed_at_every_point_of_recording() {
    every_point("f47-recording", &RECORDING).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f47_killed_at_every_point_of_posting() {
    every_point("f47-posting", &POSTING).await;
}

/// A ledger with a large slice that nobody has posted.
async fn large_slice(name: &str) -> Bed {
    let bed = Bed::new(name).await;
    let load = Load { messages: 800, events_max: 40, pause: Duration::ZERO, ..Load::seeded(seed(name)) };
    load.sent(&bed).await;
    let serve = bed.serve().env("WAYBILL_ACK_WAIT_SECONDS", &FULL_BATCH_SECONDS);
    let mut recording = serve.roles(&["--consumer"]).start();
    bed.acknowledged().await;
    recording.kill();
    bed
}

#[tokio::test(flavor = "multi_thread")]
async fn f47_killed_at_every_point_of_posting_in_halves() {
    let mut bed = large_slice("f47-halves").await;
    let posting = bed.serve().roles(&["--jobs"]);
    for point in HALF_POSTING {
        bed.take_snapshots();
        kill_at(&bed, &posting, point, rounds(100)).await;
        bed.audit().await.clean();
    }
    let _service = posting.start();
    bed.posted().await;
    bed.audit().await.clean();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f47_control_a_half_that_nobody_marks_is_added_twice() {
    let mut bed = large_slice("f47-control-halves").await;
    let posting = bed.serve_sabotaged("half_unmarked").roles(&["--jobs"]);
    kill_at(&bed, &posting, HALF_POSTING[4], 1).await;
    let _service = posting.start();
    bed.posted().await;
    bed.audit().await.violates("I3");
}

/// The point whose name begins so.
fn point(name: &str) -> Point {
    *RECORDING.iter().chain(&POSTING).find(|point| point.name.starts_with(name)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f47_control_acks_before_the_commit_lose_events() {
    let mut bed = Bed::new("f47-control-acks").await;
    let serve = bed.serve_sabotaged("ack_first,no_repair");
    crash(&mut bed, serve, &[point("C8 before COMMIT")], 3).await.violates("I1");
}

/// The same, where a repair heals it before the auditor comes: the program has said so.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f47_control_acks_before_the_commit_show_where_a_repair_heals_them() {
    let mut bed = Bed::new("f47-control-healed").await;
    let serve = bed.serve_sabotaged("ack_first");
    crash(&mut bed, serve, &[point("C8 before COMMIT")], 3).await;
    something_lacks(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f47_control_a_batch_marked_before_it_is_folded_is_missing_in_the_sums() {
    let mut bed = Bed::new("f47-control-posting").await;
    let serve = bed.serve_sabotaged("post_apart");
    let verdict = crash(&mut bed, serve, &[point("P2")], 2).await;
    verdict.violates("I3");
    verdict.violates("I12");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f47_control_without_the_look_up_events_are_recorded_twice() {
    let mut bed = Bed::new("f47-control-double").await;
    let serve = bed.serve_sabotaged("double");
    crash(&mut bed, serve, &[point("C9")], 2).await.violates("I2");
}
