//! PostgreSQL that dies, hangs, is full, refuses, or turns out to be an older one.

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::AssertSqlSafe;
use tokio::time::Instant;

use crate::api::{ask, customer_keys};
use crate::bed::{Bed, FULL_BATCH_SECONDS, Own};
use crate::harness::wait_until;
use crate::protocol::Way;
use crate::proxy::{End, Mode};
use crate::publisher::{Load, Sending};
use crate::rounds::{rounds, seed, thorough};
use crate::servers::{Volume, address_of, copy, own_mounts};
use crate::service::{Supervised, is_ready};
use crate::watching::{
    RETRYING, accounted, caught_up, nothing_lacked, nothing_unearned, recording, said, says, server_log,
    unstorable,
};

/// How long an answer of the API may take while the database gives none.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// Longest until readiness says so: it is looked every two seconds, the database has two seconds to answer, and the machine is busy.
const NOT_READY_WITHIN: Duration = Duration::from_secs(7);
/// What the program ends with when the connections of a pool are lost for good.
const DEAD_POOL: i32 = 70;
/// How soon it does.
const ENDED_WITHIN: Duration = Duration::from_mins(2);
/// Fewer tries to connect in two seconds than this are none without a pause.
const TRIES_MAX: usize = 60;
/// What the system says of a name that nobody knows.
const NOT_RESOLVED: &str = "failed to lookup address";
/// The names of hosts as the program is given them, and while nobody knows that of the database.
const HOSTS: &str = "127.0.0.1 localhost ledger.test\n";
const NO_HOSTS: &str = "127.0.0.1 localhost\n";
/// That names are looked for nowhere else: a name server that answers nothing would keep each look-up waiting. Where the system
/// has no list of sources it asks name servers, of which there are none then.
const ONLY_HOSTS: [(&str, &str); 2] = [
    ("/etc/nsswitch.conf", "hosts: files\n"),
    ("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"),
];
/// Data, one segment of WAL, and little else.
const SMALL_MIB: u32 = 160;

pub fn own_postgres() -> Own {
    Own { postgres: true, ..Own::default() }
}

/// A program that records what comes without end, and has caught up with it. The backlog of minutes comes in full batches,
/// none of which may come again before it is recorded.
async fn caught_up_under_load(bed: &mut Bed, name: &str) -> (Supervised, Sending) {
    let service = bed.serve().env("WAYBILL_ACK_WAIT_SECONDS", &FULL_BATCH_SECONDS).supervised();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed(name)).start(bed).await;
    caught_up(bed).await;
    (service, load)
}

/// F26: the path to PostgreSQL is silent, and later it is not: nothing is lost, nobody has to do anything.
#[tokio::test(flavor = "multi_thread")]
async fn f26_a_silent_path_to_postgres_is_waited_out() {
    let mut bed = Bed::new("f26").await;
    let (service, load) = caught_up_under_load(&mut bed, "f26").await;
    bed.postgres.set_both(Mode::Blackhole);
    let http = service.now(|service| service.http);
    wait_until("the program says that it is not ready", async || {
        (is_ready(http).await == Some(false)).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(if thorough() { 600 } else { 2 })).await;
    nothing_unearned(&bed).await;
    bed.postgres.set_both(Mode::Pass);
    service.ready().await;
    caught_up(&bed).await;
    load.stop().await;
    bed.settled().await;
    let ends = service.ends();
    assert!(ends.iter().all(|end| end.code() == Some(DEAD_POOL)), "{ends:?}");
    bed.audit().await.clean();
}

/// F26: no connection that was open ever carries anything again, and new ones do. The client would wait for ever for what a
/// lost transaction has come to: the program ends with a code of its own, and whoever looks after it starts it again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-faults"]
async fn f26_connections_that_stay_dead_end_the_program_which_is_started_again() {
    let mut bed = Bed::new("f26-dead").await;
    let (service, load) = caught_up_under_load(&mut bed, "f26-dead").await;
    let held = bed.postgres.hold(Way::ToServer, recording).reached("a transaction is under way").await;
    bed.postgres.silence();
    held.release();
    let silent = Instant::now();
    while service.ends().is_empty() {
        assert!(silent.elapsed() < ENDED_WITHIN, "the program stays with dead connections");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("ended after {:?}", silent.elapsed());
    service.ready().await;
    caught_up(&bed).await;
    load.stop().await;
    bed.settled().await;
    let ends: Vec<_> = service.ends().iter().map(std::process::ExitStatus::code).collect();
    assert_eq!(ends, [Some(DEAD_POOL)]);
    nothing_lacked(&bed);
    bed.audit().await.clean();
}

/// F29: the process behind one connection is killed in the middle of a transaction, and PostgreSQL restarts all of them.
#[tokio::test(flavor = "multi_thread")]
async fn f29_a_killed_backend_costs_a_retry_and_nothing_else() {
    let mut bed = Bed::with("f29", own_postgres()).await;
    let service = bed.serve().supervised();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f29")).start(&bed).await;
    for _ in 0..rounds(30) {
        let before = said(&bed, RETRYING);
        let held =
            bed.postgres.hold(Way::ToServer, recording).reached("a recording transaction is under way").await;
        let backend: i32 = sqlx::query_scalar(
            "SELECT pid FROM pg_stat_activity
             WHERE application_name LIKE 'waybill-ingest%' AND state = 'idle in transaction' AND query LIKE 'SELECT 1%'",
        )
        .fetch_one(&bed.pool)
        .await
        .unwrap();
        kill(Pid::from_raw(backend), Signal::SIGKILL).unwrap();
        held.release();
        says(&bed, RETRYING, before).await;
        caught_up(&bed).await;
    }
    load.stop().await;
    bed.settled().await;
    assert_eq!(service.restarts(), 0);
    nothing_lacked(&bed);
    bed.audit().await.clean();
}

/// F30: all of PostgreSQL is killed in the middle of a transaction, and started again a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn f30_postgres_killed_hard_loses_nothing() {
    let mut bed = Bed::with("f30", own_postgres()).await;
    let service = bed.serve().supervised();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f30")).start(&bed).await;
    for _ in 0..rounds(30) {
        let before = said(&bed, RETRYING);
        let held =
            bed.postgres.hold(Way::ToServer, recording).reached("a recording transaction is under way").await;
        bed.own_postgres.as_mut().unwrap().kill().await;
        held.release();
        says(&bed, RETRYING, before).await;
        tokio::time::sleep(Duration::from_secs(if thorough() { 5 } else { 1 })).await;
        start_again(&mut bed).await;
        caught_up(&bed).await;
    }
    load.stop().await;
    bed.settled().await;
    assert_eq!(service.restarts(), 0);
    nothing_lacked(&bed);
    bed.audit().await.clean();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f30_control_what_failed_and_is_acknowledged_is_lost() {
    let mut bed = Bed::with("f30-control", own_postgres()).await;
    let service = bed.serve_sabotaged("ack_failed,no_repair").start();
    service.ready().await;
    let load = Load::endless(seed("f30-control")).start(&bed).await;
    let held = bed.postgres.hold(Way::ToServer, recording).reached("a transaction is under way").await;
    bed.own_postgres.as_mut().unwrap().kill().await;
    held.release();
    load.goes_on(30).await;
    start_again(&mut bed).await;
    load.stop().await;
    bed.acknowledged().await;
    bed.posted().await;
    bed.audit().await.violates("I1");
}

/// Starts the bed's PostgreSQL again, where the proxy and the test itself find it.
pub async fn start_again(bed: &mut Bed) {
    let before = address_of(bed.database_url());
    let server = bed.own_postgres.as_mut().unwrap();
    server.start_again().await;
    assert_eq!(server.address(), before, "its port is free again");
}

pub async fn ack_floor(bed: &Bed) -> Option<u64> {
    Some(bed.consumer_info().await?.ack_floor.stream_sequence)
}

/// Waits until nothing is committed any more; how many sequences are.
async fn still(bed: &Bed) -> i64 {
    wait_until("nothing is committed any more", async || {
        let before = accounted(bed).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        (accounted(bed).await? == before).then_some(before)
    })
    .await
}

/// F32: PostgreSQL stands still: no message is acknowledged, the API says so soon, and all goes on afterwards.
async fn f32(seconds: u64) {
    let mut bed = Bed::alone_with("f32", own_postgres()).await;
    let keys = customer_keys(&bed).await;
    let (service, load) = caught_up_under_load(&mut bed, "f32").await;
    let http = service.now(|service| service.http);
    assert_eq!(ask(http, &keys[0].1, "/v1/tasks", "application/json").await.unwrap().status, 200);
    // What is on its way is committed before it stands still, and nothing after it.
    bed.postgres.set_both(Mode::Blackhole);
    let committed = still(&bed).await;
    let frozen = Instant::now();
    bed.own_postgres.as_ref().unwrap().freeze();
    bed.postgres.set_both(Mode::Pass);
    let asked = Instant::now();
    let answers = futures_util::future::join_all((0..20).map(|number| {
        let key = &keys[number % keys.len()].1;
        ask(http, key, "/v1/tasks", "application/json")
    }));
    for answer in answers.await {
        let answer = answer.unwrap();
        assert!(answer.status == 503 && answer.retry_after, "{answer:?}");
    }
    let took = asked.elapsed();
    assert!(took < REFUSED_WITHIN, "the answers took {took:?}");
    wait_until("it is not ready", async || is_ready(http).await.filter(|ready| !ready)).await;
    let took = asked.elapsed();
    assert!(took < NOT_READY_WITHIN, "it was ready for {took:?}");
    bed.is_alone_no_longer();
    tokio::time::sleep(Duration::from_secs(seconds).saturating_sub(frozen.elapsed())).await;
    let (floor, (last, _)) = (ack_floor(&bed).await.unwrap(), bed.stream_state().await.unwrap());
    assert!(i64::try_from(floor).unwrap() <= committed, "{floor} acknowledged, {committed} committed");
    assert!(last > committed, "nothing waited");
    bed.own_postgres.as_ref().unwrap().thaw();
    service.ready().await;
    caught_up(&bed).await;
    load.stop().await;
    bed.settled().await;
    let ends = service.ends();
    assert!(ends.iter().all(|end| end.code() == Some(DEAD_POOL)), "{ends:?}");
    bed.audit().await.clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn f32_a_frozen_postgres_is_waited_out() {
    f32(if thorough() { 30 } else { 6 }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-faults"]
async fn f32_a_postgres_frozen_for_minutes_is_waited_out() {
    f32(300).await;
}

/// F33: the volume of the data is full: transactions fail, nothing is acknowledged, and it drains once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn f33_a_full_data_volume_stops_recording_and_loses_nothing() {
    let Some(volume) = Volume::mount(SMALL_MIB) else { return };
    let mut bed =
        Bed::with("f33", Own { postgres: true, postgres_volume: Some(volume), ..Own::default() }).await;
    // As in production, the log of the database has a volume of its own: a full one stops the whole server (F30).
    let elsewhere = bed.folder.join("pg_wal");
    bed.own_postgres.as_mut().unwrap().stop().await;
    move_wal(&bed.own_postgres.as_ref().unwrap().data(), &elsewhere);
    start_again(&mut bed).await;
    let service = bed.serve().supervised();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f33")).start(&bed).await;
    caught_up(&bed).await;
    let ballast = bed.own_postgres.as_ref().unwrap().volume().unwrap().fill();
    says(&bed, "No space left on device", 0).await;
    says(&bed, RETRYING, 0).await;
    let http = service.now(|service| service.http);
    wait_until("the program says that it is not ready", async || {
        (is_ready(http).await == Some(false)).then_some(())
    })
    .await;
    nothing_unearned(&bed).await;
    std::fs::remove_file(ballast).unwrap();
    service.ready().await;
    caught_up(&bed).await;
    load.stop().await;
    bed.settled().await;
    assert_eq!((service.restarts(), unstorable(&bed).await), (0, 0));
    bed.audit().await.clean();
}

fn move_wal(data: &Path, elsewhere: &Path) {
    copy(&data.join("pg_wal"), elsewhere);
    std::fs::remove_dir_all(data.join("pg_wal")).unwrap();
    std::os::unix::fs::symlink(elsewhere, data.join("pg_wal")).unwrap();
}

/// F43: the database takes no writes, as a standby does: that passes, and is no fault of an event.
#[tokio::test(flavor = "multi_thread")]
async fn f43_a_read_only_database_is_waited_out() {
    let mut bed = Bed::new("f43").await;
    let mut service = bed.serve().start();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f43")).start(&bed).await;
    caught_up(&bed).await;
    alter_database(&bed, "SET default_transaction_read_only = on").await;
    bed.postgres.end_all(End::Cut);
    says(&bed, "read-only transaction", 0).await;
    service.refuses(&["postgres default_transaction_read_only is on"]).await;
    alter_database(&bed, "RESET default_transaction_read_only").await;
    bed.postgres.end_all(End::Cut);
    service.ready().await;
    caught_up(&bed).await;
    load.stop().await;
    bed.settled().await;
    assert!(service.ended().is_none(), "the program has ended");
    assert_eq!(unstorable(&bed).await, 0);
    nothing_lacked(&bed);
    bed.audit().await.clean();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f43_control_what_a_read_only_database_refuses_and_is_acknowledged_is_lost() {
    let mut bed = Bed::new("f43-control").await;
    let service = bed.serve_sabotaged("ack_failed,no_repair").start();
    service.ready().await;
    let load = Load::endless(seed("f43-control")).start(&bed).await;
    caught_up(&bed).await;
    alter_database(&bed, "SET default_transaction_read_only = on").await;
    bed.postgres.end_all(End::Cut);
    load.goes_on(60).await;
    alter_database(&bed, "RESET default_transaction_read_only").await;
    bed.postgres.end_all(End::Cut);
    load.stop().await;
    bed.acknowledged().await;
    bed.posted().await;
    bed.audit().await.violates("I1");
}

/// Changes the bed's database; on a connection that was open before.
async fn alter_database(bed: &Bed, change: &str) {
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&bed.pool).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("ALTER DATABASE {name} {change}"))).execute(&bed.pool).await.unwrap();
}

/// F46: there are no connections left, nobody is let in, nobody is there: all of it passes, and is no fault of an event.
#[tokio::test(flavor = "multi_thread")]
async fn f46_refused_connections_are_waited_out() {
    let mut bed = Bed::with("f46", own_postgres()).await;
    let service = bed.serve().supervised();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f46")).start(&bed).await;
    caught_up(&bed).await;
    let password: String = {
        let authority = bed.database_url().split_once("://").unwrap().1.split('@').next().unwrap().to_owned();
        authority.split_once(':').unwrap().1.to_owned()
    };
    // The test's own connection is the only one that stays.
    let mut connection = bed.pool.acquire().await.unwrap();
    let name: String =
        sqlx::query_scalar("SELECT current_database()").fetch_one(&mut *connection).await.unwrap();
    let faults = [
        (
            "too many connections",
            format!("ALTER DATABASE {name} CONNECTION LIMIT 1"),
            format!("ALTER DATABASE {name} CONNECTION LIMIT -1"),
        ),
        (
            "password authentication failed",
            "ALTER ROLE CURRENT_USER PASSWORD 'rotated'".to_owned(),
            format!("ALTER ROLE CURRENT_USER PASSWORD '{password}'"),
        ),
    ];
    for (says_so, inject, heal) in faults {
        sqlx::raw_sql(AssertSqlSafe(inject)).execute(&mut *connection).await.unwrap();
        bed.postgres.end_all(End::Reset);
        let refused = || server_log(&bed).matches(says_so).count();
        wait_until("the server refuses somebody", async || (refused() > 0).then_some(())).await;
        says(&bed, RETRYING, said(&bed, RETRYING)).await;
        let before = refused();
        // Every part of the program tries again, none without a pause.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let tries = refused() - before;
        println!("{tries} tries in two seconds: {says_so}");
        assert!(tries < TRIES_MAX, "{tries} tries in two seconds: {says_so}");
        sqlx::raw_sql(AssertSqlSafe(heal)).execute(&mut *connection).await.unwrap();
        service.ready().await;
        caught_up(&bed).await;
    }
    drop(connection);
    let before = said(&bed, RETRYING);
    bed.own_postgres.as_mut().unwrap().stop().await;
    says(&bed, RETRYING, before).await;
    start_again(&mut bed).await;
    service.ready().await;
    caught_up(&bed).await;
    load.stop().await;
    bed.settled().await;
    assert_eq!((service.restarts(), unstorable(&bed).await), (0, 0));
    nothing_lacked(&bed);
    bed.audit().await.clean();
}

/// F46: the database's name cannot be resolved for a while.
#[tokio::test(flavor = "multi_thread")]
async fn f46_a_name_that_nobody_knows_for_a_while_is_waited_out() {
    let Some(own_mounts) = own_mounts() else { return };
    let mut bed = Bed::new("f46-name").await;
    let mut serve = bed.serve();
    let (hosts, script) = (bed.folder.join("hosts"), bed.folder.join("with-hosts"));
    std::fs::write(&hosts, HOSTS).unwrap();
    let mut mounts = format!("mount --bind {} /etc/hosts", hosts.display());
    for (path, text) in ONLY_HOSTS.iter().filter(|(path, _)| Path::new(path).exists()) {
        let own = bed.folder.join(Path::new(path).file_name().unwrap());
        std::fs::write(&own, text).unwrap();
        write!(mounts, " && mount --bind {} {path}", own.display()).unwrap();
    }
    let text = format!(
        "#!/bin/sh\nexec {} sh -c '{mounts} && exec \"$0\" \"$@\"' '{}' \"$@\"\n",
        own_mounts.join(" "),
        serve.program.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    serve.program = script;
    let url = bed.postgres.in_front_of(bed.database_url()).replace("127.0.0.1:", "ledger.test:");
    let service = serve.env("WAYBILL_DATABASE_URL", &format!("{url}?sslmode=disable")).supervised();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f46-name")).start(&bed).await;
    caught_up(&bed).await;
    // The file stays the same one: it is mounted.
    std::fs::write(&hosts, NO_HOSTS).unwrap();
    bed.postgres.end_all(End::Reset);
    says(&bed, NOT_RESOLVED, 0).await;
    says(&bed, RETRYING, 0).await;
    let before = said(&bed, NOT_RESOLVED);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let tries = said(&bed, NOT_RESOLVED) - before;
    println!("{tries} tries in two seconds: {NOT_RESOLVED}");
    assert!(tries < TRIES_MAX, "{tries} tries in two seconds: {NOT_RESOLVED}");
    std::fs::write(&hosts, HOSTS).unwrap();
    service.ready().await;
    caught_up(&bed).await;
    load.stop().await;
    bed.settled().await;
    assert_eq!((service.restarts(), unstorable(&bed).await), (0, 0));
    nothing_lacked(&bed);
    bed.audit().await.clean();
}
