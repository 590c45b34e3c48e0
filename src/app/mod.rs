//! Wires the parts into a running program.
//!
//! Owns: start order, listeners, signals, the order of stopping.
//! Does not own: anything the parts do.
//! Invariants: a process that stops finishes what it has begun (soft), within the grace time (hard); it exits with
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
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::config::{ListenArgs, NatsArgs, Roles, ServeArgs};
use crate::health::Health;
use crate::http::{self, AppState};
use crate::ingest::{self, Nudge, Publisher, Recorder, StreamLimits, StreamNames, UsageStream};
use crate::shutdown::Shutdown;
use crate::store::Database;
use crate::telemetry;

/// What the process exits with when a connection pool is dead: a supervisor starts it again, an operator can tell it from other failures.
pub const EXIT_DEAD_POOL: u8 = 70;

/// Why the program ends by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// A part cannot go on, with the reason.
    Part(String),
    /// A pool lost its connections for good.
    DeadPool(&'static str),
}

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
    /// Where the metrics are.
    pub metrics_addr: SocketAddr,
    /// Asks everything to stop.
    pub shutdown: Shutdown,
    failures: mpsc::Receiver<Failure>,
}

/// Starts what the arguments ask for.
///
/// # Errors
/// A sentence for each thing that keeps it from starting.
pub async fn start(args: &ServeArgs) -> anyhow::Result<App> {
    args.check()?;
    let ServeArgs { database, nats, listen, api: _, consumer: _, jobs: _, migrate } = args;
    let roles = args.roles();
    let metrics = telemetry::init_metrics().context("metrics cannot be collected")?;
    let database = Database::connect(&database.database_url)
        .await
        .context("cannot connect to PostgreSQL; check WAYBILL_DATABASE_URL")?;
    if *migrate {
        database.migrate().await?;
    }
    let context = ingest::jetstream(&nats.nats_url, "waybill").await.context("check WAYBILL_NATS_URL")?;
    let names = names(nats);
    let stream = ingest::stream::open(&context, &names, limits(nats)).await?;
    let publisher = Publisher::new(context, &names.prefix);
    let shutdown = Shutdown::new();
    let (failed, failures) = mpsc::channel(8);
    let parts =
        Parts { database, clock: Clock::System, shutdown, publisher, stream, limits: limits(nats), failed };
    let health = parts.run(roles).await?;
    let metrics_addr = parts.listen_metrics(*listen, metrics).await?;
    let http_addr = if roles.api { Some(parts.listen_http(*listen, health).await?) } else { None };
    tracing::info!(?http_addr, %metrics_addr, ?roles, "serving");
    let Parts { database, shutdown, publisher, .. } = parts;
    let subject_prefix = names.prefix;
    Ok(App { database, publisher, subject_prefix, http_addr, metrics_addr, shutdown, failures })
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
    stream: UsageStream,
    limits: StreamLimits,
    failed: mpsc::Sender<Failure>,
}

impl Parts {
    /// Starts the background parts.
    async fn run(&self, roles: Roles) -> anyhow::Result<Health> {
        let health = Health::expecting(if roles.consumer { &["ingest", "stream"] } else { &[] });
        let nudge = Nudge::default();
        let recorder = Recorder::new(
            self.database.clone(),
            self.clock.clone(),
            &self.stream.names.prefix,
            self.shutdown.clone(),
        )
        .await?;
        if roles.consumer {
            let repaired = ingest::repair::repair(&self.stream, self.limits, &recorder).await?;
            if repaired.unaccounted > 0 {
                tracing::warn!(
                    ?repaired,
                    "the ledger lacked sequences that were acknowledged; they were read again"
                );
            }
            let consumer = ingest::consumer::run(
                self.stream.clone(),
                self.limits,
                recorder.clone(),
                health.clone(),
                nudge.clone(),
            );
            let failed = self.failed.clone();
            self.shutdown.spawn(async move {
                if let Err(error) = consumer.await {
                    // Nobody listens any more once the program stops.
                    let _ = failed.send(Failure::Part(error.to_string())).await;
                }
            });
        }
        if roles.jobs {
            self.shutdown.spawn(ingest::posting::run(
                self.database.clone(),
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
        self.shutdown.spawn(watch::sample(
            self.database.clone(),
            self.stream.clone(),
            health.clone(),
            self.shutdown.clone(),
        ));
        self.shutdown.spawn(watch::pools(self.database.clone(), self.shutdown.clone(), self.failed.clone()));
        Ok(health)
    }

    async fn listen_http(&self, listen: ListenArgs, health: Health) -> anyhow::Result<SocketAddr> {
        let listener = bind(listen.http_addr, "WAYBILL_HTTP_ADDR").await?;
        let address = listener.local_addr()?;
        let state = AppState {
            db: self.database.clone(),
            clock: self.clock.clone(),
            publisher: self.publisher.clone(),
            health,
        };
        let (router, _) = http::router(state);
        self.serve(listener, router);
        Ok(address)
    }

    async fn listen_metrics(
        &self,
        listen: ListenArgs,
        metrics: PrometheusHandle,
    ) -> anyhow::Result<SocketAddr> {
        let listener = bind(listen.metrics_addr, "WAYBILL_METRICS_ADDR").await?;
        let address = listener.local_addr()?;
        self.serve(listener, metrics_router(metrics));
        Ok(address)
    }

    fn serve(&self, listener: TcpListener, router: axum::Router) {
        let (stop, failed) = (self.shutdown.clone(), self.failed.clone());
        self.shutdown.spawn(async move {
            let stopped = async move { stop.stopped().await };
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
                let _ = failed.send(Failure::Part(error.to_string())).await;
            }
        });
    }
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
    /// Serves until Ctrl-C, SIGTERM or the failure of a part, then stops softly; a second signal stops at once. What to
    /// exit with: [`EXIT_DEAD_POOL`] where a pool is dead, at once, because nothing can be finished without it.
    ///
    /// # Errors
    /// Where a part failed, or work had to be left behind.
    pub async fn until_stopped(mut self) -> anyhow::Result<ExitCode> {
        let failure = tokio::select! {
            signal = signalled() => { signal?; None }
            failure = self.failures.recv() => failure,
        };
        match failure {
            Some(Failure::DeadPool(pool)) => {
                tracing::error!(pool, "the connections of a pool are lost; ending, to be started again");
                Ok(ExitCode::from(EXIT_DEAD_POOL))
            }
            Some(Failure::Part(reason)) => {
                tracing::error!(failure = reason, "a part of the program failed; stopping");
                self.stop().await?;
                Err(anyhow::anyhow!(reason))
            }
            None => {
                tracing::info!("stopping");
                self.stop().await?;
                Ok(ExitCode::SUCCESS)
            }
        }
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
