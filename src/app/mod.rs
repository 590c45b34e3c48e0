//! Wires the parts into a running program.
//!
//! Owns: start order, listeners, signals, the order of stopping.
//! Does not own: anything the parts do.
//! Invariants: nothing is recorded before every setting that could lose usage was found right (`/readyz` names those that are
//! not); a process that stops finishes what it has begun (soft), within the grace time (hard); it exits with
//! failure when a part, not a signal, ended it.

pub mod commands;
pub mod dev;
pub mod forward;
pub mod partitions;
pub mod price_lists;
pub mod prices;
mod watch;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use axum::serve::Listener;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::config::{DemandArgs, Durability, ListenArgs, NatsArgs, Roles, ServeArgs};
use crate::health::Health;
use crate::http::{self, AppState, probes};
use crate::ingest::supervisor::{self, Current, Demands, Plan, SETTINGS};
use crate::ingest::{self, Nudge, Publisher, Recent, Recorder, StreamLimits, StreamNames};
use crate::shutdown::Shutdown;
use crate::store::{self, Database, Rights, StoreError};
use crate::telemetry;

/// What the process exits with when a connection pool is dead: a supervisor starts it again, an operator can tell it from other failures.
pub const EXIT_DEAD_POOL: u8 = 70;

/// What to look at where the ledger cannot be reached.
const UNREACHABLE: &str = "cannot connect to PostgreSQL; check WAYBILL_DATABASE_URL";
/// What to look at where the server refuses a role: SQLSTATE of one that is not the login's, and of one that does not exist.
const ROLE_REFUSED: [&str; 2] = ["42501", "22023"];
const NO_ROLE: &str = "PostgreSQL refuses the roles of Waybill; run `waybill migrate` as the owner, which makes them, and make the login a member of them (docs/postgresql.md)";

/// How long the settings of the servers may take to be right at the start of `waybill dev`.
const SETTLED_TIMEOUT: Duration = Duration::from_secs(30);

/// The pool whose connections are lost for good.
#[derive(Debug)]
struct DeadPool(&'static str);

/// A running program.
#[derive(Debug)]
pub struct App {
    /// The ledger.
    pub database: Database,
    /// Publishes to the stream.
    pub publisher: Publisher,
    /// What the stream's subjects start with.
    pub subject_prefix: String,
    /// Where the API listens, where it does.
    pub http_addr: Option<SocketAddr>,
    /// Where the metrics are, and the probes.
    pub metrics_addr: SocketAddr,
    /// Asks everything to stop.
    pub shutdown: Shutdown,
    current: Current,
    health: Health,
    failures: mpsc::Receiver<DeadPool>,
}

/// Starts what the arguments ask for.
///
/// # Errors
/// A sentence for each thing that keeps it from starting.
pub async fn start(args: &ServeArgs) -> anyhow::Result<App> {
    args.check()?;
    let ServeArgs { database, nats, demands, listen, api: _, consumer: _, jobs: _, migrate } = args;
    let roles = args.roles();
    let metrics = telemetry::init_metrics().context("metrics cannot be collected")?;
    if *migrate {
        migrated(&database.database_url).await?;
    }
    let database = ledger(&database.database_url, Rights::Service).await?;
    let check = "check WAYBILL_NATS_URL";
    let context = ingest::jetstream(&nats.nats_url, "waybill").await.context(check)?;
    // A connection of its own: what is published never waits for what is consumed, nor the reverse.
    let consuming = ingest::jetstream(&nats.nats_url, "waybill-consumer").await.context(check)?;
    let names = names(nats);
    let publisher = Publisher::new(context, &names.prefix);
    let shutdown = Shutdown::new();
    let recorder = Recorder::new(database.clone(), Clock::System, &names.prefix, shutdown.clone()).await?;
    let subject_prefix = names.prefix.clone();
    let plan = Plan {
        nats_url: nats.nats_url.clone(),
        names,
        limits: limits(nats),
        demands: self::demands(demands),
        consume: roles.consumer,
    };
    let (failed, failures) = mpsc::channel(8);
    let parts = Parts { database, clock: Clock::System, shutdown, publisher, failed };
    let mut expected = vec![SETTINGS, probes::DATABASE];
    if roles.consumer {
        expected.extend(["ingest", "stream"]);
    }
    let health = Health::expecting(&expected);
    // The listeners first: what is wrong with the rest is told there.
    let state = parts.state(health.clone());
    let metrics_addr = parts.listen_metrics(*listen, metrics, state.clone()).await?;
    let http_addr = if roles.api { Some(parts.listen_http(*listen, state).await?) } else { None };
    let current = parts.run(roles, plan, consuming, recorder, health.clone());
    tracing::info!(?http_addr, %metrics_addr, ?roles, "serving");
    let Parts { database, shutdown, publisher, .. } = parts;
    Ok(App {
        database,
        publisher,
        subject_prefix,
        http_addr,
        metrics_addr,
        shutdown,
        current,
        health,
        failures,
    })
}

/// Connects to the ledger.
async fn ledger(url: &str, rights: Rights) -> anyhow::Result<Database> {
    Database::connect_as(url, rights).await.map_err(|error| {
        let refused = error.sqlstate().is_some_and(|state| ROLE_REFUSED.contains(&state.as_str()));
        anyhow::Error::new(error).context(if refused { NO_ROLE } else { UNREACHABLE })
    })
}

/// Brings the schema up to date.
async fn migrated(url: &str) -> anyhow::Result<()> {
    store::migrate(url).await.map_err(|error| match error {
        StoreError::Migrate(_) => error.into(),
        _ => anyhow::Error::new(error).context(UNREACHABLE),
    })
}

fn demands(args: &DemandArgs) -> Demands {
    Demands {
        monitor_urls: args.nats_monitor_urls().map(ToOwned::to_owned).collect(),
        nats_synced: args.nats_durability == Durability::Always,
        postgres_durable: args.postgres_durability == Durability::Always,
    }
}

fn limits(nats: &NatsArgs) -> StreamLimits {
    StreamLimits {
        replicas: usize::from(nats.stream_replicas),
        bytes_max: nats.stream_max_bytes,
        ack_wait: Duration::from_secs(nats.ack_wait_seconds.into()),
    }
}

fn names(nats: &NatsArgs) -> StreamNames {
    StreamNames { stream: nats.stream.clone(), prefix: nats.subject_prefix.clone() }
}

struct Parts {
    database: Database,
    clock: Clock,
    shutdown: Shutdown,
    publisher: Publisher,
    failed: mpsc::Sender<DeadPool>,
}

impl Parts {
    /// Starts the background parts.
    fn run(
        &self,
        roles: Roles,
        plan: Plan,
        context: jetstream::Context,
        recorder: Recorder,
        health: Health,
    ) -> Current {
        let (nudge, recent) = (Nudge::default(), Recent::default());
        let recorder = if roles.jobs { recorder.keeping(recent.clone()) } else { recorder };
        let (follow, current) = tokio::sync::watch::channel(None);
        let limits = plan.limits;
        self.shutdown.spawn(supervisor::run(
            plan,
            context,
            recorder.clone(),
            health.clone(),
            nudge.clone(),
            follow,
        ));
        if roles.consumer {
            self.shutdown.spawn(watch::completeness(recorder.clone(), limits, current.clone()));
        }
        if roles.jobs {
            self.shutdown.spawn(ingest::posting::run(
                self.database.clone(),
                recent,
                self.shutdown.clone(),
                nudge.clone(),
            ));
            self.shutdown.spawn(ingest::replay::run(recorder, nudge));
            self.shutdown.spawn(ingest::compaction::run(
                self.database.clone(),
                self.clock.clone(),
                self.shutdown.clone(),
            ));
        }
        self.shutdown.spawn(watch::parts(self.database.clone(), health, self.shutdown.clone()));
        self.shutdown.spawn(watch::sample(self.database.clone(), current.clone(), self.shutdown.clone()));
        self.shutdown.spawn(watch::pools(self.database.clone(), self.shutdown.clone(), self.failed.clone()));
        current
    }

    /// What the listeners answer from.
    fn state(&self, health: Health) -> AppState {
        AppState::new(self.database.clone(), self.clock.clone(), self.publisher.clone(), health)
    }

    async fn listen_http(&self, listen: ListenArgs, state: AppState) -> anyhow::Result<SocketAddr> {
        let listener = bind(listen.http_addr, "WAYBILL_HTTP_ADDR").await?;
        let address = listener.local_addr()?;
        let (router, _) = http::router(state);
        serve(&self.shutdown, listener, router);
        Ok(address)
    }

    async fn listen_metrics(
        &self,
        listen: ListenArgs,
        metrics: PrometheusHandle,
        state: AppState,
    ) -> anyhow::Result<SocketAddr> {
        let listener = bind(listen.metrics_addr, "WAYBILL_METRICS_ADDR").await?;
        let address = listener.local_addr()?;
        serve(&self.shutdown, listener, metrics_router(metrics).merge(probes::router(state)));
        Ok(address)
    }
}

/// Serves a router until a stop is asked for.
fn serve(shutdown: &Shutdown, listener: impl Listener, router: axum::Router) {
    let stop = shutdown.clone();
    shutdown.spawn(async move { http::server::serve(listener, router, stop.stopped()).await });
}

/// Serves the metrics as Prometheus reads them.
fn metrics_router(metrics: PrometheusHandle) -> axum::Router {
    let render = move || {
        let text = metrics.render();
        async move { ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], text) }
    };
    axum::Router::new().route("/metrics", axum::routing::get(render))
}

async fn bind(address: SocketAddr, variable: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; set {variable} to a free address"))
}

impl App {
    /// Waits until the stream is there and every setting was found right.
    ///
    /// # Errors
    /// Names what is wrong where that takes longer than [`SETTLED_TIMEOUT`].
    pub async fn settled(&mut self) -> anyhow::Result<()> {
        let good = self.current.wait_for(Option::is_some);
        if let Ok(Ok(_)) = tokio::time::timeout(SETTLED_TIMEOUT, good).await {
            return Ok(());
        }
        let wrong = self.health.parts().remove(SETTINGS).flatten();
        Err(anyhow::anyhow!(wrong.unwrap_or_else(|| "the stream does not answer".to_owned())))
    }

    /// Serves until Ctrl-C, SIGTERM or the loss of a pool, then stops softly; a second signal stops at once. What to
    /// exit with: [`EXIT_DEAD_POOL`] where a pool is dead, at once, because nothing can be finished without it.
    ///
    /// # Errors
    /// Where work had to be left behind.
    pub async fn until_stopped(mut self) -> anyhow::Result<ExitCode> {
        let failure = tokio::select! {
            signal = signalled() => { signal?; None }
            failure = self.failures.recv() => failure,
        };
        if let Some(DeadPool(pool)) = failure {
            tracing::error!(pool, "the connections of a pool are lost; ending, to be started again");
            return Ok(ExitCode::from(EXIT_DEAD_POOL));
        }
        tracing::info!("stopping");
        self.stop().await?;
        Ok(ExitCode::SUCCESS)
    }

    /// Finishes what runs and closes everything.
    ///
    /// # Errors
    /// Where work had to be left behind after the grace time, or because a second signal came.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.stop();
        let drained = tokio::select! {
            drained = self.shutdown.drained() => drained,
            _ = signalled() => false,
        };
        anyhow::ensure!(
            drained,
            "stopped with work left behind; nothing is lost, it is taken up again at the next start"
        );
        self.database.close().await;
        Ok(())
    }
}

/// An error for people: its sentence, and those of its causes that say something new.
pub fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said {
        said if said.is_empty() => cause,
        said if said.contains(&cause) => said,
        said => format!("{said}: {cause}"),
    })
}

/// Resolves with Ctrl-C or SIGTERM.
async fn signalled() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Ok(())
}
