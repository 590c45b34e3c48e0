//! Wires the parts into a running program.
//!
//! Owns: start order, listeners, signals, the order of stopping.
//! Does not own: anything the parts do.
//! Invariants: nothing is recorded before every setting that could lose usage was found right (`/readyz` names those that are
//! not); a process that stops finishes what it has begun (soft), within the grace time (hard); it stops, and exits with
//! failure, when a part of it ends that nobody asked to.

pub mod commands;
pub mod dev;
pub mod forward;
pub mod partitions;
pub mod price_lists;
pub mod prices;
pub mod tidy;
mod watch;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use async_nats::jetstream;
use axum::serve::Listener;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::config::{DemandArgs, Durability, ListenArgs, NatsArgs, Roles, ServeArgs};
use crate::health::Health;
use crate::http::server::{CLIENTS, Limits, MONITORS};
use crate::http::{self, AppState, probes};
use crate::ingest::supervisor::{self, Current, Demands, Plan, SETTINGS};
use crate::ingest::{self, Nudge, Publisher, Recent, Recorder, StreamLimits, StreamNames};
use crate::shutdown::Shutdown;
use crate::store::{self, Database, Rights, StoreError};
use crate::telemetry;

/// What the process exits with when a connection pool is dead: a supervisor starts it again, an operator can tell it from other failures.
pub const EXIT_DEAD_POOL: u8 = 70;

/// What a command exits with whose question could not be answered: 1 is the answer no.
const EXIT_UNANSWERED: u8 = 2;

/// An ack wait that a transaction may be longer than: it may wait 10 s for a lock, and is tried again then.
const ACK_WAIT_SHORT_SECONDS: u32 = 20;

/// What to look at where the ledger cannot be reached.
const UNREACHABLE: &str = "cannot connect to PostgreSQL; check WAYBILL_DATABASE_URL";
/// What to look at where the server refuses a role: SQLSTATE of one that is not the login's, and of one that does not exist.
const ROLE_REFUSED: [&str; 2] = ["42501", "22023"];
const NO_ROLE: &str = "PostgreSQL refuses the roles of Waybill; run `waybill migrate` as the owner, which makes them, and make the login a member of them (docs/postgresql.md)";

/// How long the settings of the servers may take to be right at the start of `waybill dev`.
const SETTLED_TIMEOUT: Duration = Duration::from_secs(30);

/// How long connections to PostgreSQL may take to close at the end: with the grace time, less than a container is given.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

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
    if nats.ack_wait_seconds < ACK_WAIT_SHORT_SECONDS {
        tracing::warn!(
            ack_wait_seconds = nats.ack_wait_seconds,
            "WAYBILL_ACK_WAIT_SECONDS is short: a message whose transaction waits for a lock (10 s) and is tried again comes again meanwhile, and is recorded for nothing; set {ACK_WAIT_SHORT_SECONDS} or more"
        );
    }
    let metrics = telemetry::init_metrics().context("metrics cannot be collected")?;
    if *migrate {
        migrated(&database.database_url).await?;
    }
    let database = ledger(&database.database_url, Rights::Service).await?;
    let check = "check WAYBILL_NATS_URL";
    let context = ingest::publishing_in_time(&nats.nats_url, "waybill").await.context(check)?;
    // A connection of its own: what is published never waits for what is consumed, nor the reverse.
    let consuming = ingest::jetstream_in_time(&nats.nats_url, "waybill-consumer").await.context(check)?;
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
    let mut expected = vec![SETTINGS, watch::DATABASE];
    if roles.api {
        expected.push(watch::PUBLISHER);
    }
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
    let database = Database::connect_as(url, rights).await.map_err(|error| {
        let refused = error.sqlstate().is_some_and(|state| ROLE_REFUSED.contains(&state.as_str()));
        anyhow::Error::new(error).context(if refused { NO_ROLE } else { UNREACHABLE })
    })?;
    let current = store::settings::schema_is_current(&database).await.context(UNREACHABLE)?;
    ensure!(
        current,
        "the schema of the ledger is older than this program, or not there; run `waybill migrate` as the owner (docs/postgresql.md)"
    );
    Ok(database)
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
        let (shutdown, database) = (&self.shutdown, &self.database);
        let supervising =
            supervisor::run(plan, context, recorder.clone(), health.clone(), nudge.clone(), follow);
        shutdown.spawn_part("supervisor", supervising);
        if roles.consumer {
            let looking = watch::completeness(recorder.clone(), limits, current.clone());
            shutdown.spawn_part("completeness", looking);
        }
        if roles.jobs {
            let posting = ingest::posting::run(database.clone(), recent, shutdown.clone(), nudge.clone());
            shutdown.spawn_part("posting", posting);
            shutdown.spawn_part("replay", ingest::replay::run(recorder, nudge));
            let compacting = ingest::compaction::run(database.clone(), self.clock.clone(), shutdown.clone());
            shutdown.spawn_part("compaction", compacting);
            let tidying = tidy::run(database.clone(), self.clock.clone(), shutdown.clone());
            shutdown.spawn_part("removal of old answers", tidying);
        }
        let publisher = roles.api.then(|| self.publisher.clone());
        let watching = watch::parts(database.clone(), publisher, health, shutdown.clone());
        shutdown.spawn_part("probes", watching);
        shutdown.spawn_part("gauges", watch::sample(database.clone(), current.clone(), shutdown.clone()));
        let watching = watch::pools(database.clone(), shutdown.clone(), self.failed.clone());
        shutdown.spawn_part("watchdog of the pools", watching);
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
        serve(&self.shutdown, "API", listener, CLIENTS, router);
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
        let router = metrics_router(metrics).merge(probes::router(state));
        serve(&self.shutdown, "metrics", listener, MONITORS, router);
        Ok(address)
    }
}

/// Serves a router until a stop is asked for.
fn serve(
    shutdown: &Shutdown,
    name: &'static str,
    listener: impl Listener,
    limits: Limits,
    router: axum::Router,
) {
    let stop = shutdown.clone();
    let serving = async move { http::server::serve(limits, listener, router, stop.stopped()).await };
    shutdown.spawn_part(name, serving);
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

    /// Serves until Ctrl-C, SIGTERM, the loss of a pool or the end of a part, then stops softly; a second signal stops at
    /// once. What to exit with: [`EXIT_DEAD_POOL`] where a pool is dead, at once, because nothing can be finished without it.
    ///
    /// # Errors
    /// Where work had to be left behind, or a part had ended by itself.
    pub async fn until_stopped(mut self) -> anyhow::Result<ExitCode> {
        let failure = tokio::select! {
            asked = time_to_stop(&self.shutdown) => { asked?; None }
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
    /// Where work had to be left behind, or a part had ended by itself.
    pub async fn stop(self) -> anyhow::Result<()> {
        finish(&self.shutdown).await?;
        // A connection whose server went silent is never given back, and only the pool waits for it by now.
        tokio::select! {
            () = self.database.close() => {}
            () = tokio::time::sleep(CLOSE_PATIENCE) => {
                tracing::warn!("PostgreSQL does not answer on some connections; ending without them");
            }
            signal = signalled() => signal?,
        }
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

/// The exit code of a command that answers yes or no: 0, 1, or [`EXIT_UNANSWERED`] with the sentence of what was in its way.
pub fn answered(answer: anyhow::Result<bool>) -> ExitCode {
    match answer {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}", sentence(&error));
            ExitCode::from(EXIT_UNANSWERED)
        }
    }
}

/// Resolves with Ctrl-C or SIGTERM, as [`signalled`] does, or when a part has ended by itself.
fn time_to_stop(shutdown: &Shutdown) -> impl Future<Output = anyhow::Result<()>> {
    let asked = signalled();
    async move {
        tokio::select! {
            signal = asked => signal,
            _ = shutdown.part_ended() => Ok(()),
        }
    }
}

/// Asks everything to finish, and waits for it within the grace time and until a second signal.
///
/// # Errors
/// Where work had to be left behind, or a part had ended by itself.
async fn finish(shutdown: &Shutdown) -> anyhow::Result<()> {
    shutdown.stop();
    let drained = tokio::select! {
        drained = shutdown.drained() => drained,
        _ = signalled() => false,
    };
    if let Some(part) = shutdown.ended_part() {
        bail!(
            "stopped, because a part of the program ended by itself: {part}; the log says how. Nothing is lost: start it again"
        );
    }
    ensure!(
        drained,
        "stopped with work left behind; nothing is lost, it is taken up again at the next start"
    );
    Ok(())
}

/// Resolves with Ctrl-C or SIGTERM, which are listened for from the call on, before anybody waits: one that came between
/// would end the process at once.
fn signalled() -> impl Future<Output = anyhow::Result<()>> {
    let listening = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    async move {
        let [interrupt, terminate] = listening;
        let (mut interrupt, mut terminate) = (interrupt?, terminate?);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Shutdown, finish, time_to_stop};

    #[tokio::test]
    async fn a_part_that_ends_by_itself_stops_the_program_with_failure() {
        for panics in [false, true] {
            let shutdown = Shutdown::new();
            let other = shutdown.clone();
            shutdown.spawn_part("replay", async move { other.stopped().await });
            shutdown.spawn_part("posting", async move { assert!(!panics, "a fault") });
            time_to_stop(&shutdown).await.unwrap();
            let said = finish(&shutdown).await.unwrap_err().to_string();
            assert!(said.contains("ended by itself: posting;"), "{said}");
        }
    }

    #[tokio::test]
    async fn parts_that_end_when_they_are_asked_to_are_no_failure_but_a_panic_is() {
        for panics in [false, true] {
            let shutdown = Shutdown::new();
            let part = shutdown.clone();
            shutdown.spawn_part("posting", async move {
                part.stopped().await;
                assert!(!panics, "a fault");
            });
            assert_eq!(finish(&shutdown).await.is_err(), panics);
        }
    }
}
