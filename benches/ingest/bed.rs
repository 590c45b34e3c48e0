//! Private servers, a database and a stream for each run, and the real program beside us.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream::context::DeleteStreamErrorKind;
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{Context, ErrorCode};
use chrono::DateTime;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use waybill::clock::Clock;
use waybill::dev::servers::{Keep, Options, Servers};
use waybill::domain::price::quotation::NewPrice;
use waybill::ingest::{self, Publisher, StreamLimits, StreamNames, UsageStream};
use waybill::reports::verify;
use waybill::store::customers::{NewAssignment, NewCustomer};
use waybill::store::{self, Database, catalog, commit, customers, gateways, prices};

use crate::workload::{CUSTOMERS, GATEWAY, MODELS, customer, model};

/// Bytes that a run's stream may hold, and the ack wait of its consumer.
const STREAM_BYTES: i64 = 12 << 30;
const ACK_WAIT: Duration = Duration::from_mins(1);
/// How often it is looked whether everything is posted, and how long that may take.
const POLL: Duration = Duration::from_millis(25);
const DEADLINE: Duration = Duration::from_mins(30);

/// A stream that stays. When the last stream of an account goes, the server removes the account's folder after it has
/// answered, and a stream that is made meanwhile cannot be stored ("error creating store for stream").
const KEPT: &str = "KEPT";
/// All it may hold.
const KEPT_BYTES_MAX: i64 = 4096;

/// The servers of some runs.
pub struct Bed {
    servers: Servers,
    runs: u32,
}

/// One run: a database with the catalog and nothing else, and an empty stream.
pub struct Run {
    pub database_url: String,
    pub pool: PgPool,
    pub stream: UsageStream,
    pub publisher: Publisher,
    nats_url: String,
}

/// `waybill serve`; killed when dropped.
pub struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Service {
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Bed {
    /// Starts servers; `synced` as a gateway's events need it that must survive a power failure.
    pub async fn start(synced: bool) -> Self {
        let home = std::env::temp_dir().join(format!("waybill-bench-{}", uuid::Uuid::new_v4().simple()));
        let keep = Keep::Measured { synced };
        let servers =
            Servers::start(Options { home, keep, database_url: None, nats_url: None }).await.unwrap();
        store::migrate(servers.database_url()).await.unwrap();
        let database = Database::connect(servers.database_url()).await.unwrap();
        fill_catalog(&database).await;
        database.close().await;
        let kept = Config { name: KEPT.to_owned(), max_bytes: KEPT_BYTES_MAX, ..Config::default() };
        context(&servers).await.create_stream(kept).await.unwrap();
        Self { servers, runs: 0 }
    }

    pub async fn stop(self) {
        self.servers.stop().await.unwrap();
    }

    /// A fresh database and stream.
    pub async fn run(&mut self) -> Run {
        self.runs += 1;
        let (server, template) = self.servers.database_url().rsplit_once('/').unwrap();
        let name = format!("run_{}", self.runs);
        let database_url = format!("{server}/{name}");
        let admin = PgPool::connect(&format!("{server}/postgres")).await.unwrap();
        let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&admin).await.unwrap();
        // Whatever ran before has paid for its own checkpoint.
        admin.close().await;
        let options: PgConnectOptions = database_url.parse().unwrap();
        let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
        let nats_url = self.servers.nats_url().to_owned();
        let (stream, publisher) = self.stream().await;
        Run { database_url, pool, stream, publisher, nats_url }
    }

    /// An empty stream for a run whose own another run has replaced since.
    pub async fn renew_stream(&self, run: &mut Run) {
        (run.stream, run.publisher) = self.stream().await;
    }

    async fn stream(&self) -> (UsageStream, Publisher) {
        let context = context(&self.servers).await;
        let names = StreamNames { stream: "USAGE".to_owned(), prefix: "usage.v1".to_owned() };
        remove_stream(&context, &names.stream).await;
        let stream = ingest::stream::open(&context, &names, limits()).await.unwrap();
        (stream, Publisher::new(context, &names.prefix))
    }

    /// Forces a checkpoint, which only a superuser may ask for by name: dropping a database waits for one.
    pub async fn checkpoint(&self) {
        let (server, _) = self.servers.database_url().rsplit_once('/').unwrap();
        let admin = PgPool::connect(&format!("{server}/postgres")).await.unwrap();
        for statement in ["CREATE DATABASE checkpoint", "DROP DATABASE checkpoint"] {
            sqlx::raw_sql(statement).execute(&admin).await.unwrap();
        }
        admin.close().await;
    }

    /// Removes a run's database.
    pub async fn end(&self, run: Run) {
        run.pool.close().await;
        let (server, name) = run.database_url.rsplit_once('/').unwrap();
        let admin = PgPool::connect(&format!("{server}/postgres")).await.unwrap();
        // Waits for what the service has left, and ends an automatic vacuum, which FORCE may not.
        let drop = format!("DROP DATABASE {name}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&admin).await.unwrap();
        admin.close().await;
    }
}

async fn context(servers: &Servers) -> Context {
    ingest::jetstream(servers.nats_url(), "waybill-bench").await.unwrap()
}

/// Removes a stream; the first run has none yet.
async fn remove_stream(context: &Context, name: &str) {
    if let Err(error) = context.delete_stream(name).await {
        let missing = matches!(error.kind(), DeleteStreamErrorKind::JetStream(said)
            if said.error_code() == ErrorCode::STREAM_NOT_FOUND);
        assert!(missing, "the stream of the run before cannot be removed: {error}");
    }
}

pub const fn limits() -> StreamLimits {
    StreamLimits { replicas: 1, bytes_max: STREAM_BYTES, ack_wait: ACK_WAIT }
}

impl Run {
    /// Starts the consumer and the jobs as an operator does.
    pub fn serve(&self) -> Service {
        let program = std::env::var("WAYBILL_BENCH_PROGRAM");
        let mut command = Command::new(program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_waybill").to_owned()));
        command.args(["serve", "--consumer", "--jobs", "--metrics-addr", "127.0.0.1:0"]);
        command.args(["--stream-max-bytes", &STREAM_BYTES.to_string()]);
        command.env("WAYBILL_DATABASE_URL", &self.database_url).env("WAYBILL_NATS_URL", &self.nats_url);
        command.env("WAYBILL_LOG", "warn,sqlx=error").stdin(Stdio::null()).stdout(Stdio::null());
        Service(command.spawn().unwrap())
    }

    /// Waits until so many events are recorded and posted.
    pub async fn settled(&self, events: usize) {
        let events = i64::try_from(events).unwrap();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (done, posted): (i64, bool) = sqlx::query_as(
                "SELECT COALESCE(SUM(events), 0)::bigint, COALESCE(bool_and(posted_at IS NOT NULL), true) FROM ingest_batches",
            )
            .fetch_one(&self.pool)
            .await
            .unwrap();
            if done >= events && posted {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{done} of {events} events are recorded, all posted: {posted}"
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Events that the ledger has, however they ended.
    pub async fn events(&self) -> usize {
        let events = self.number("SELECT COALESCE(sum(events), 0)::bigint FROM ingest_batches").await;
        usize::try_from(events).unwrap()
    }

    /// Proves the ledger, and that every event of the run is in it, once.
    pub async fn verify(&self, events: usize) {
        let rows = self.verify_ledger().await;
        assert_eq!(rows, i64::try_from(events).unwrap(), "every event once");
        let rejected: i64 = self.number("SELECT count(*) FROM rejections").await;
        assert_eq!(rejected, 0, "no event is rejected");
    }

    /// Proves the ledger; returns the rows of its journal.
    pub async fn verify_ledger(&self) -> i64 {
        let database = Database::connect(&self.database_url).await.unwrap();
        let verification = verify::verify(&database, Clock::System.now()).await.unwrap();
        database.close().await;
        assert!(verification.findings.is_empty(), "{:#?}", verification.findings);
        verification.extent.journal_rows
    }

    pub async fn number(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.pool).await.unwrap()
    }
}

/// Customers, a gateway, a cost book with all models, and a sell book of cost plus a fifth.
async fn fill_catalog(database: &Database) {
    let mut tx = database.begin().await.unwrap();
    gateways::create(&mut tx, GATEWAY, None).await.unwrap();
    let book = |value: Value| serde_json::from_value::<prices::NewBook>(value).unwrap();
    let cost = book(json!({"name": "bench-cost", "kind": "cost", "currency": "USD"}));
    let cost_book = prices::create_book(&mut tx, &cost, "bench").await.unwrap().info.id;
    let sell = json!({"name": "bench-sell", "kind": "sell", "currency": "USD", "base": "bench-cost", "markup": "1.2"});
    let sell_book = prices::create_book(&mut tx, &book(sell), "bench").await.unwrap().info.id;
    let new: Vec<Value> = (0..MODELS)
        .map(|number| {
            let (provider, model) = model(number);
            let rates = json!({"input": format!("{}.25", number % 9), "cache_read": "0.125", "output": format!("{}", 2 + number)});
            json!({"provider": provider, "model": model, "per": 1_000_000, "rates": rates, "valid_from": "2026-01-01T00:00:00Z", "source": "bench"})
        })
        .collect();
    let new: Vec<NewPrice> = serde_json::from_value(new.into()).unwrap();
    prices::publish(&mut tx, "bench-cost", &new, Clock::System.now(), "bench").await.unwrap();
    for number in 0..CUSTOMERS {
        let external_id = customer(number);
        let new = NewCustomer {
            external_id: &external_id,
            name: &external_id,
            time_zone: "Europe/Berlin",
            anchor_day: 1,
        };
        let id = customers::create(&mut tx, new).await.unwrap().id;
        let books = NewAssignment {
            sell_book,
            override_book: None,
            cost_book,
            valid_from: DateTime::UNIX_EPOCH,
            valid_to: None,
        };
        customers::assign(&mut tx, id, books).await.unwrap();
    }
    catalog::bump(&mut tx).await.unwrap();
    commit(tx).await.unwrap();
}
