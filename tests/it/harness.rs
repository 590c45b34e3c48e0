//! What a test over real servers stands on: a database and stream names of its own, and waiting for conditions.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use uuid::Uuid;
use waybill::store::Database;

/// How long a condition may take to hold.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// The clocks of tests stand at dates of their own: the journal takes what it is asked to, and any period may be over;
/// [`TestBed::bound_dates`] undoes it. Only the owner can do this.
const UNBOUND_DATES: &str = "ALTER FUNCTION latest_booking_date() RENAME TO true_latest_booking_date;
    CREATE FUNCTION latest_booking_date() RETURNS date LANGUAGE sql AS $$ SELECT 'infinity'::date $$;
    ALTER FUNCTION latest_period_end() RENAME TO true_latest_period_end;
    CREATE FUNCTION latest_period_end() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'infinity'::timestamptz $$";
const BOUND_DATES: &str = "DROP FUNCTION latest_booking_date(); DROP FUNCTION latest_period_end();
    ALTER FUNCTION true_latest_booking_date() RENAME TO latest_booking_date;
    ALTER FUNCTION true_latest_period_end() RENAME TO latest_period_end";
/// A stream that stays. When the last stream of an account goes, the server removes the account's folder after it has
/// answered, and a stream that is made meanwhile cannot be stored ("error creating store for stream").
const KEPT: &str = "KEPT";
/// All it may hold.
const KEPT_BYTES_MAX: i64 = 4096;
/// How many connections recording and posting have.
pub const INGEST_CONNECTIONS: usize = 6;
/// How many the API has.
pub const API_CONNECTIONS: usize = 12;
/// Pause between two looks at it.
const POLL: Duration = Duration::from_millis(20);

/// One test's part of the servers; removed when dropped.
pub struct TestBed {
    /// The test's own migrated, empty database.
    pub database_url: String,
    /// Connected to it.
    pub database: Database,
    /// The NATS server that all tests share.
    pub nats_url: String,
    /// Connected to that.
    pub nats: async_nats::Client,
    /// The name of the test's own stream, which it has yet to make.
    pub stream: String,
    /// What the subjects of that stream begin with, instead of `usage.v1`.
    pub subject_prefix: String,
    admin_url: String,
    database_name: String,
}

impl TestBed {
    /// A fresh one.
    pub async fn new() -> Self {
        let template_url = address("WAYBILL_TEST_DATABASE_URL");
        let nats_url = address("WAYBILL_TEST_NATS_URL");
        let (server, template) = template_url.rsplit_once('/').expect("the URL ends with a database");
        let id = Uuid::new_v4().simple();
        let database_name = format!("test_{id}");
        let (admin_url, database_url) = (format!("{server}/postgres"), format!("{server}/{database_name}"));
        administer(&admin_url, &format!("CREATE DATABASE {database_name} TEMPLATE {template}")).await;
        administer(&database_url, UNBOUND_DATES).await;
        let nats = waybill::ingest::connect(&nats_url, ConnectOptions::new()).await.expect("NATS answers");
        let kept = Config { name: KEPT.to_owned(), max_bytes: KEPT_BYTES_MAX, ..Config::default() };
        jetstream::new(nats.clone()).get_or_create_stream(kept).await.expect("the stream that stays is made");
        Self {
            database: Database::connect(&database_url).await.expect("the test's database answers"),
            nats,
            stream: format!("TEST_{id}"),
            subject_prefix: format!("test.{id}.usage.v1"),
            database_url,
            nats_url,
            admin_url,
            database_name,
        }
    }

    /// Lets the journal take no booking dates but those that it takes in production.
    pub async fn bound_dates(&self) {
        self.run(BOUND_DATES).await;
    }

    /// Undoes [`Self::bound_dates`].
    pub async fn unbound_dates(&self) {
        self.run(UNBOUND_DATES).await;
    }

    /// Runs statements in the test's own database, as its owner.
    pub async fn run(&self, statements: &str) {
        administer(&self.database_url, statements).await;
    }
}

impl Drop for TestBed {
    fn drop(&mut self) {
        let (admin_url, nats_url) = (self.admin_url.clone(), self.nats_url.clone());
        let (database_name, stream) = (self.database_name.clone(), self.stream.clone());
        let remove = async move {
            remove_database(&admin_url, &database_name).await;
            if let Ok(client) = waybill::ingest::connect(&nats_url, ConnectOptions::new()).await {
                // A test that made no stream has none to delete.
                jetstream::new(client).delete_stream(stream).await.ok();
            }
        };
        // The runtime of the test may be ending; this one is its own.
        let thread = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(remove);
        });
        let removed = thread.join().is_ok() || std::thread::panicking();
        assert!(removed, "the test's database could not be removed");
    }
}

/// Has every connection made, one after the other: of many callers that come at once on one thread, each would wait for the
/// handshakes of all, and no longer than it may.
///
/// # Panics
/// Where one cannot be made.
pub async fn connected(database: &Database) {
    let mut open = Vec::new();
    for _ in 0..INGEST_CONNECTIONS {
        open.push(database.begin_ingest().await.expect("a connection"));
    }
    for _ in 0..API_CONNECTIONS {
        open.push(database.begin().await.expect("a connection"));
    }
    for transaction in open {
        transaction.rollback().await.expect("given back");
    }
}

/// Waits until `condition` gives a value.
///
/// # Panics
/// Where it has not within the deadline.
pub async fn wait_until<T>(what: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    wait_until_within(what, DEADLINE, condition).await
}

/// The same with another deadline, for what includes a long wait of the program.
///
/// # Panics
/// Where it has not within that.
pub async fn wait_until_within<T>(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", limit.as_secs());
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until nothing is left to do. What there is may take its time, as long as what is left of it changes.
///
/// # Panics
/// Where it does not change within the deadline.
pub async fn wait_until_done(what: &str, mut left: impl AsyncFnMut() -> Option<String>) {
    let (mut before, mut since) = (None, Instant::now());
    while let Some(left) = left().await {
        if before.as_ref() != Some(&left) {
            since = Instant::now();
        }
        assert!(since.elapsed() < DEADLINE, "nothing was done for {} s: {what}: {left}", DEADLINE.as_secs());
        before = Some(left);
        tokio::time::sleep(POLL).await;
    }
}

/// Whether everything is to be run, as `make test-faults` does, and nothing may be left out.
pub fn everything() -> bool {
    std::env::var_os("WAYBILL_FAULTS").is_some_and(|value| value == "all")
}

/// Addresses that were free a moment ago, no two of them the same. They are of a loopback host that nobody else has: what is
/// free on 127.0.0.1 may be taken by the next outgoing connection before a server listens there.
///
/// # Panics
/// Where there is none.
pub fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    let [second, third, fourth, ..] = Uuid::new_v4().into_bytes();
    let host = Ipv4Addr::new(127, second | 1, third, fourth.clamp(1, 254));
    let listeners = [(); N].map(|()| TcpListener::bind((host, 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("its address"))
}

/// The whole answer to a plain GET; `None` where nobody answers.
pub async fn get(address: SocketAddr, path: &str) -> Option<String> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    tokio::time::timeout(ANSWER, asked).await.ok()?.ok()
}

/// The address of a server.
pub fn address(variable: &str) -> String {
    let value = std::env::var_os(variable).and_then(|value| value.into_string().ok());
    value.unwrap_or_else(|| {
        panic!("{variable} is not set: run `make test`, or `cargo run -- dev exec -- cargo test`")
    })
}

/// An autovacuum that is at it is another role's process, which the login may not end, and is over soon.
async fn remove_database(url: &str, name: &str) {
    let deadline = Instant::now() + DEADLINE;
    let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
    while let Err(error) = try_administer(url, &drop).await {
        assert!(Instant::now() < deadline, "the test's database could not be removed: {error}");
        tokio::time::sleep(POLL).await;
    }
}

async fn administer(url: &str, statement: &str) {
    try_administer(url, statement).await.expect("the statement is done");
}

async fn try_administer(url: &str, statement: &str) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.map(drop)
}
