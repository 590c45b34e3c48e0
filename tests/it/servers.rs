//! The private servers: what they keep, whom they let in, and that they end.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::{self, stream};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;
use waybill::dev::DevError;
use waybill::dev::servers::{Keep, Options, Servers};
use waybill::domain::ids::CustomerId;
use waybill::store::{Database, Scope, migrate};

use crate::harness::{TestBed, wait_until_within};
use crate::private_nats::start_where_they_were;

/// How long servers may take to end, one after the other.
const ENDED_WITHIN: Duration = Duration::from_mins(2);

/// A folder that is removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("waybill-home-{}", Uuid::new_v4().simple())))
    }

    fn options(&self) -> Options {
        Options { home: self.0.clone(), keep: Keep::Durable, database_url: None, nats_url: None }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn port(url: &str) -> u16 {
    let (_, rest) = url.rsplit_once(':').expect("a port");
    rest.split('/').next().expect("a port").parse().expect("a port")
}

fn listens(url: &str) -> bool {
    TcpStream::connect(("127.0.0.1", port(url))).is_ok()
}

/// Servers that nobody waits for have ended.
async fn both_ended(database_url: &str, nats_url: &str) {
    wait_until_within("both have ended", ENDED_WITHIN, async || {
        (!listens(database_url) && !listens(nats_url)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_home_keeps_its_data_and_addresses() {
    let folder = Folder::new();
    let servers = Servers::start(folder.options()).await.expect("starts in an empty folder");
    let (database_url, nats_url) = (servers.database_url().to_owned(), servers.nats_url().to_owned());
    migrate(&database_url).await.expect("the owner, who is no superuser, can migrate");
    let database =
        Database::connect(&database_url).await.expect("lets the owner in, as the roles of the service");
    database.close().await;
    let client = waybill::ingest::connect(&nats_url, ConnectOptions::new()).await.expect("lets us in");
    let config =
        stream::Config { name: "KEPT".to_owned(), subjects: vec!["kept".to_owned()], ..Default::default() };
    let context = jetstream::new(client);
    context.create_stream(config).await.expect("has a store");
    context.publish("kept", "1".into()).await.expect("sent").await.expect("stored");

    let second = Servers::start(folder.options()).await.expect_err("one process per home");
    assert!(matches!(second, DevError::Busy { .. }), "{second}");

    servers.stop().await.expect("ends");
    assert!(!listens(&database_url) && !listens(&nats_url), "both have ended when stop returns");

    // As from a shell that has read the `dev.env` of the run before.
    let given = Options {
        database_url: Some(database_url.clone()),
        nats_url: Some(nats_url.clone()),
        ..folder.options()
    };
    let servers = start_where_they_were(given, |servers| {
        (servers.database_url(), servers.nats_url()) == (&*database_url, &*nats_url)
    })
    .await;
    let database = Database::connect(&database_url).await.expect("the same password");
    drop(database.read(Scope::Everything).await.expect("the schema is there"));
    database.close().await;
    let client = waybill::ingest::connect(&nats_url, ConnectOptions::new()).await.expect("the same password");
    let mut kept = jetstream::new(client).get_stream("KEPT").await.expect("the stream is there");
    assert_eq!(kept.info().await.expect("answers").state.messages, 1);
    servers.stop().await.expect("ends");
}

#[tokio::test]
async fn a_home_with_one_port_for_two_listeners_starts_with_another_for_one_of_them() {
    let folder = Folder::new();
    // No PostgreSQL is needed.
    let options = || Options { database_url: Some(String::new()), ..folder.options() };
    let path = folder.0.join("servers.json");
    let ports = || {
        let text = std::fs::read_to_string(&path).expect("is there");
        let state: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
        (state["nats_port"].clone(), state["nats_monitor_port"].clone(), state)
    };
    Servers::start(options()).await.expect("starts").stop().await.expect("ends");
    let (kept, _, mut state) = ports();
    state["nats_monitor_port"] = kept.clone();
    std::fs::write(&path, state.to_string()).expect("is written");
    let servers = start_where_they_were(options(), |servers| port(servers.nats_url()) == kept).await;
    servers.stop().await.expect("ends");
    let (client, monitor, _) = ports();
    assert_eq!(client, kept);
    assert_ne!(monitor, kept);
}

#[tokio::test]
async fn servers_that_are_dropped_end_as_well() {
    let folder = Folder::new();
    let servers = Servers::start(folder.options()).await.expect("starts");
    let (database_url, nats_url) = (servers.database_url().to_owned(), servers.nats_url().to_owned());
    drop(servers);
    both_ended(&database_url, &nats_url).await;
}

#[tokio::test]
async fn killed_with_force_nothing_stays_behind() {
    let mut waybill = Command::new(env!("CARGO_BIN_EXE_waybill"))
        .args([
            "dev",
            "exec",
            "--",
            "sh",
            "-c",
            "echo $WAYBILL_TEST_DATABASE_URL; echo $WAYBILL_TEST_NATS_URL; cat",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("runs");
    let mut lines = BufReader::new(waybill.stdout.take().expect("piped")).lines();
    let database_url = lines.next().expect("a line").expect("text");
    let nats_url = lines.next().expect("a line").expect("text");
    assert!(listens(&database_url) && listens(&nats_url));
    waybill.kill().expect("is killed");
    waybill.wait().expect("has ended");
    both_ended(&database_url, &nats_url).await;
}

#[tokio::test]
async fn a_command_gets_its_exit_code_and_signals_through() {
    let exec = |script: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
        command.args(["dev", "exec", "--", "sh", "-c", script]).stdin(Stdio::null()).stderr(Stdio::null());
        command
    };
    assert_eq!(exec("exit 3").status().expect("runs").code(), Some(3));
    let output = exec("(sleep 60; echo late) & exit 5").output().expect("runs");
    assert_eq!(
        (output.status.code(), &*output.stdout),
        (Some(5), &b""[..]),
        "nothing of the command is left"
    );
    let threads = |command: &mut Command| {
        let output = command.output().expect("runs").stdout;
        String::from_utf8(output).expect("text").trim().parse::<usize>().expect("a number")
    };
    let mut told = exec("echo $RUST_TEST_THREADS");
    assert!((1..=6).contains(&threads(told.env_remove("RUST_TEST_THREADS"))));
    assert_eq!(threads(told.env("RUST_TEST_THREADS", "9")), 9);
    // The command's parent is waybill: asked to end, it passes that on.
    let output =
        exec("trap 'echo told; exit 4' TERM; kill -TERM $PPID; while :; do sleep 0.1; done").output();
    let output = output.expect("runs");
    assert_eq!((output.status.code(), &*output.stdout), (Some(4), &b"told\n"[..]));
}

#[tokio::test]
async fn nobody_gets_in_without_the_password() {
    let bed = TestBed::new().await;
    let (scheme, rest) = bed.nats_url.split_once("://").expect("a URL");
    let (_, host) = rest.split_once('@').expect("a password");
    assert!(waybill::ingest::connect(&format!("{scheme}://{host}"), ConnectOptions::new()).await.is_err());
    assert!(
        waybill::ingest::connect(&format!("nats://waybill:wrong@{host}"), ConnectOptions::new())
            .await
            .is_err()
    );
    let (_, database) = bed.database_url.rsplit_once('@').expect("a password");
    for user in ["waybill", "waybill:wrong", "postgres", "postgres:postgres"] {
        assert!(PgConnection::connect(&format!("postgres://{user}@{database}")).await.is_err(), "{user}");
    }
}

#[tokio::test]
async fn every_test_has_a_database_and_a_stream_of_its_own() {
    let (one, two) = (TestBed::new().await, TestBed::new().await);
    let mut connection = PgConnection::connect(&one.database_url).await.expect("answers");
    sqlx::raw_sql("CREATE TABLE only_here ()").execute(&mut connection).await.expect("made");
    let mut connection = PgConnection::connect(&two.database_url).await.expect("answers");
    assert!(sqlx::raw_sql("SELECT FROM only_here").execute(&mut connection).await.is_err());
    // The owner is no superuser: it can still act as the role of a customer's requests.
    drop(two.database.read(Scope::Customer(CustomerId(1))).await.expect("takes the role"));

    let mut streams = Vec::new();
    for bed in [&one, &two] {
        let (name, subjects) = (bed.stream.clone(), vec![format!("{}.*", bed.subject_prefix)]);
        let config = stream::Config { name, subjects, ..Default::default() };
        let context = jetstream::new(bed.nats.clone());
        streams.push(context.create_stream(config).await.expect("made"));
    }
    let sent =
        jetstream::new(one.nats.clone()).publish(format!("{}.gw", one.subject_prefix), "1".into()).await;
    sent.expect("sent").await.expect("stored");
    assert_eq!(streams[0].info().await.expect("answers").state.messages, 1);
    assert_eq!(streams[1].info().await.expect("answers").state.messages, 0);
}
