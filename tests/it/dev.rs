//! `waybill dev` as somebody starts it for the first time.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use uuid::Uuid;
use waybill::clock::Clock;
use waybill::dev::demo;
use waybill::dev::keys::DevEnv;

use crate::harness::{TestBed, wait_until, wait_until_within};
use crate::program::free_address;

/// Events of the demo.
const DEMO_EVENTS: i64 = 4_000;
/// How long servers may take to start, and the demo to be loaded.
const LOADED_WITHIN: Duration = Duration::from_mins(2);
/// How long it may take to end: 20 s for what runs, 5 s for connections, and for each server what it may take.
const ENDED_WITHIN: Duration = Duration::from_mins(3);
/// What it says then.
const LOADED: &str = "4000 events in ";

/// A folder that is removed when dropped.
struct Home(PathBuf);

impl Home {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("waybill-dev-{}", Uuid::new_v4().simple())))
    }

    /// A variable of its `dev.env`.
    fn variable(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.0.join("dev.env")).unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn dev(home: &Path, http: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
    command.arg("dev").env("WAYBILL_HOME", home).env("WAYBILL_HTTP_ADDR", http.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

/// Asks it to stop, and waits until it has.
async fn terminated(mut child: Child) -> Option<i32> {
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), Signal::SIGTERM).unwrap();
    wait_until_within("it ends", ENDED_WITHIN, async || child.try_wait().unwrap()).await.code()
}

/// Starts it, waits until it has loaded the demo, counts what is recorded, and stops it.
async fn loads(home: &Home) -> i64 {
    let mut child = dev(&home.0, free_address()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let loaded = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.starts_with(LOADED) {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(LOADED_WITHIN, loaded).await.unwrap(), "it ended before that");
    let url = home.variable("WAYBILL_DATABASE_URL").unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let recorded = "SELECT count(*) FROM (SELECT DISTINCT source, id FROM usage_events) AS events";
    let recorded: i64 = sqlx::query_scalar(recorded).fetch_one(&mut connection).await.unwrap();
    wait_until("that it is loaded is noted", async || {
        home.variable("WAYBILL_DEMO_BEGUN").is_none().then_some(())
    })
    .await;
    // What it shows is read to the end: else it would wait for that.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    assert_eq!(terminated(child).await, Some(0));
    recorded
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_a_first_start_did_not_load_is_loaded_by_the_next() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut first = dev(&home.0, taken.local_addr().unwrap());
    let first = first.stderr(Stdio::piped()).output().await.unwrap();
    let said = String::from_utf8(first.stderr).unwrap();
    assert_eq!(first.status.code(), Some(1), "{said}");
    assert!(said.contains("set WAYBILL_HTTP_ADDR to a free address"), "{said}");
    let begun = home.variable("WAYBILL_DEMO_BEGUN").unwrap();
    assert_eq!(loads(&home).await, DEMO_EVENTS);
    // As if it had been killed before it knew that everything is there: the same events again, which count once.
    let env = home.0.join("dev.env");
    let text = std::fs::read_to_string(&env).unwrap();
    std::fs::write(&env, format!("{text}WAYBILL_DEMO_BEGUN={begun}\n")).unwrap();
    assert_eq!(loads(&home).await, DEMO_EVENTS);
}

/// Whether there is a demo to load, as a start finds it out; what there is then of gateways and customers.
async fn begins(bed: &TestBed, env: &mut DevEnv) -> (bool, i64, i64) {
    demo::starter_book(&bed.database, Clock::System.now()).await.unwrap();
    let begun = demo::begin(&bed.database, env, Clock::System.now()).await.unwrap();
    let mut connection = PgConnection::connect(&bed.database_url).await.unwrap();
    let made = "SELECT (SELECT count(*) FROM gateways), (SELECT count(*) FROM customers)";
    let (gateways, customers) = sqlx::query_as(made).fetch_one(&mut connection).await.unwrap();
    (begun.is_some(), gateways, customers)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_gets_into_no_ledger_in_use_whatever_the_home_was_used_with() {
    let recorded =
        "INSERT INTO ingest_batches (origin, incarnation, sequences, messages, events, recorded, duplicates, rejected, rows, booked_on)
         VALUES ('stream', gen_random_uuid(), '{[1,2)}', 1, 1, 1, 0, 0, 1, '2026-11-23')";
    let home = Home::new();
    std::fs::create_dir_all(&home.0).unwrap();
    let mut env = DevEnv::load(&home.0);
    let own = TestBed::new().await;
    assert_eq!(begins(&own, &mut env).await, (true, 1, 3));
    let marked = home.variable("WAYBILL_DEMO_BEGUN");
    for gateway in [false, true] {
        let other = TestBed::new().await;
        other.run(recorded).await;
        if gateway {
            other.run("INSERT INTO gateways (name) VALUES ('gw-eu-1')").await;
        }
        assert_eq!(begins(&other, &mut env).await, (false, i64::from(gateway), 0));
        assert_eq!(home.variable("WAYBILL_DEMO_BEGUN"), marked);
    }
    // Its own goes on, unless it has been put to another use.
    own.run(recorded).await;
    assert_eq!(begins(&own, &mut env).await, (true, 1, 3));
    own.run("UPDATE gateways SET name = 'gw-own'").await;
    assert_eq!(begins(&own, &mut env).await, (false, 1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_it_is_told_to_while_it_starts() {
    let home = Home::new();
    // Lets everybody in and answers nobody.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let child = dev(&home.0, free_address())
        .env("WAYBILL_DATABASE_URL", format!("postgres://somebody:else@{address}/none"))
        .env("WAYBILL_NATS_URL", format!("nats://{address}"))
        .spawn()
        .unwrap();
    let connection = silent.accept().await.unwrap();
    assert_eq!(terminated(child).await, Some(0));
    drop(connection);
}
