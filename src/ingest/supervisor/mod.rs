//! Keeps recording going: looks at everything that recording depends on (`looks`), pauses it while a setting is wrong, and
//! starts it again, on another life of the stream or another connection where that is needed.

mod looks;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::connection;
use super::consumer::{self, Ended, SILENT, STREAM};
use super::life::{self, Life};
use super::pace::Nudge;
use super::pipeline::INGEST;
use super::record::Recorder;
use super::settings::{ServerSettings, WrongSetting};
use super::stream::{self, StreamLimits, StreamNames, UsageStream};
use super::{IngestError, meters};
use crate::health::Health;
use looks::{Found, PostgresLook, watch_postgres};

/// How often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a look waits for the database before it goes on without its answer.
const DATABASE_PATIENCE: Duration = Duration::from_secs(3);
/// How long every look must find the stream rolled back: a leader that has just been elected may not have all of it yet.
const CONFIRM_AFTER: Duration = Duration::from_secs(2);
/// How long the server may not answer before another connection is tried.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(30);
/// How long a transaction that records may take before it counts as stuck; it is waited for all the same.
const RECORDING_PATIENCE: Duration = Duration::from_secs(15);
/// Pause after recording ended with an error.
const SESSION_RETRY: Duration = Duration::from_secs(1);
/// What the health of the stream says where a session could not begin or go on; one that hears of the stream takes it back.
const NOT_STARTED: &str = "recording could not be started; the log says why";
/// The part of the program's health that names wrong settings.
pub const SETTINGS: &str = "settings";

/// What recording needs, and from where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The NATS server.
    pub nats_url: String,
    /// The stream's names.
    pub names: StreamNames,
    /// How the stream is stored and delivered.
    pub limits: StreamLimits,
    /// What is demanded of the servers.
    pub demands: Demands,
    /// Whether this process records; one that does not looks all the same.
    pub consume: bool,
}

/// What is demanded of the servers.
#[derive(Debug, Clone, Default)]
pub struct Demands {
    /// Where the NATS servers tell about themselves.
    pub monitor_urls: Vec<String>,
    /// Whether NATS must force each message to disk.
    pub nats_synced: bool,
    /// Whether PostgreSQL must force each commit to disk.
    pub postgres_durable: bool,
}

/// The stream in its present life; empty until it was found good once.
pub type Current = watch::Receiver<Option<UsageStream>>;

/// Supervises until a stop is asked for; `current` follows the stream.
pub async fn run(
    plan: Plan,
    context: Context,
    recorder: Recorder,
    health: Health,
    nudge: Nudge,
    current: watch::Sender<Option<UsageStream>>,
) {
    if plan.demands.nats_synced && plan.demands.monitor_urls.is_empty() {
        tracing::warn!(
            "WAYBILL_NATS_MONITOR_URL is not set: whether a power failure of NATS takes confirmed events was not looked at"
        );
    }
    meters::expect_lives();
    let (told, postgres) = watch::channel(None);
    let shutdown = recorder.shutdown().clone();
    let durable = plan.demands.postgres_durable;
    let looking = watch_postgres(recorder.database().clone(), durable, shutdown.clone(), told);
    shutdown.spawn_part("look at PostgreSQL", looking);
    let mut supervisor = Supervisor {
        plan,
        context,
        recorder,
        health,
        nudge,
        current,
        postgres,
        monitors: BTreeMap::new(),
        told: BTreeSet::new(),
        doubts: BTreeSet::new(),
        session: None,
        life_look: None,
        announced: None,
        seen: false,
        missing_since: None,
        unreachable_since: None,
        rolled_back_since: None,
        starved: 0,
    };
    loop {
        // Nothing in a turn writes to the database: it may be left where it is.
        let pause = tokio::select! {
            () = shutdown.stopped() => break,
            pause = Box::pin(supervisor.turn()) => pause,
        };
        tokio::select! {
            () = shutdown.stopped() => break,
            () = supervisor.session_ended() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    // It stops by itself, with what it has in hand recorded.
    if let Some(session) = supervisor.session.take() {
        supervisor.ended(session.task.await);
    }
}

/// Recording from one life of the stream over one connection.
struct Session {
    incarnation: Uuid,
    pause: CancellationToken,
    task: JoinHandle<Result<Ended, IngestError>>,
}

struct Supervisor {
    plan: Plan,
    context: Context,
    recorder: Recorder,
    health: Health,
    nudge: Nudge,
    current: watch::Sender<Option<UsageStream>>,
    /// The last answer of the database about itself.
    postgres: watch::Receiver<Option<PostgresLook>>,
    /// The last answer of each NATS server about itself, by its address, and when it came.
    monitors: BTreeMap<String, (Instant, ServerSettings)>,
    /// What is known to be wrong.
    told: BTreeSet<WrongSetting>,
    /// What was said once.
    doubts: BTreeSet<String>,
    session: Option<Session>,
    life_look: Option<JoinHandle<Result<(Uuid, Life), IngestError>>>,
    /// The life that was last found to be new.
    announced: Option<Uuid>,
    /// Whether there was a stream once.
    seen: bool,
    missing_since: Option<Instant>,
    unreachable_since: Option<Instant>,
    /// Since when every look found the stream shorter than the ledger, or other than it.
    rolled_back_since: Option<Instant>,
    /// Sessions in a row that got nothing although messages waited.
    starved: u32,
}

impl Supervisor {
    /// Looks at everything once and does what follows from it; returns when to look again.
    async fn turn(&mut self) -> Duration {
        // Here, and not where the end of a session is waited for: that is given up for the next look.
        if self.starved > 1 {
            self.connect_anew().await;
        }
        // Only a session takes it back; without one, what is underway is a replay.
        if self.plan.consume
            && self.recorder.oldest_attempt().is_some_and(|underway| underway >= RECORDING_PATIENCE)
        {
            self.health.down(INGEST, "the database does not answer");
        }
        let found = match self.look_at_stream().await {
            Ok(found) => found,
            Err(error) => return self.unreachable(&error).await,
        };
        self.unreachable_since = None;
        let Found { stream, mut wrong, config } = found;
        wrong.extend(self.look_at_monitors().await);
        wrong.extend(self.look_at_compression(&config));
        let postgres = self.look_at_postgres().await;
        wrong.extend(postgres.iter().flat_map(|look| look.wrong.clone()));
        self.tell(&wrong, postgres.as_ref());
        let Some(stream) = stream.filter(|_| wrong.is_empty() && postgres.is_some()) else {
            self.pause();
            self.waits("recording waits for the settings");
            return LOOK_EVERY;
        };
        match self.life(&stream).await {
            Some(Life::RolledBack { recorded, last }) => {
                self.pause();
                if self.rolled_back_since.get_or_insert_with(Instant::now).elapsed() < CONFIRM_AFTER {
                    return CONFIRM_AFTER;
                }
                self.roll_on(&stream, recorded, last).await
            }
            Some(life) => {
                self.rolled_back_since = None;
                self.announce(&stream, life);
                self.go_on(stream);
                LOOK_EVERY
            }
            // The database does not answer. What runs may go on; nothing new starts.
            None => {
                self.waits("recording waits for the database");
                LOOK_EVERY
            }
        }
    }

    /// Says why nothing is taken from the stream, although it answers.
    fn waits(&self, why: &str) {
        if self.plan.consume && self.session.is_none() {
            self.health.down(STREAM, why);
        }
    }

    /// What the stream is to the ledger; `None` where the database or the stream does not say in time.
    async fn life(&mut self, stream: &UsageStream) -> Option<Life> {
        let (looked_at, database) = (stream.clone(), self.recorder.database().clone());
        // A task of its own: what waits for the database is left to wait, never cancelled.
        let mut look = self.life_look.take().unwrap_or_else(|| {
            tokio::spawn(async move { Ok((looked_at.incarnation, life::look(&looked_at, &database).await?)) })
        });
        match tokio::time::timeout(DATABASE_PATIENCE, &mut look).await {
            Ok(Ok(Ok((incarnation, life)))) => (incarnation == stream.incarnation).then_some(life),
            Ok(Ok(Err(error))) => {
                tracing::warn!(%error, "the stream could not be compared with the ledger");
                None
            }
            Ok(Err(_)) => None,
            Err(_) => {
                self.life_look = Some(look);
                None
            }
        }
    }

    /// The stream counts again: what it holds now is another life of it.
    async fn roll_on(&mut self, stream: &UsageStream, recorded: i64, last: i64) -> Duration {
        tracing::error!(
            stream = self.plan.names.stream,
            recorded,
            last,
            "the stream was restored to an older state, or lost its end: it gives sequences again that the ledger has recorded; reading it from its first message as a new life. Have the gateways publish again what is not settled"
        );
        self.rolled_back_since = None;
        match stream::begin_new_life(&self.context, &self.plan.names, stream.incarnation).await {
            Ok(()) => Duration::ZERO,
            Err(error) => {
                tracing::warn!(%error, "the stream's new life could not be marked; trying again");
                LOOK_EVERY
            }
        }
    }

    fn announce(&mut self, stream: &UsageStream, life: Life) {
        if let Life::New { others: true } = life
            && self.announced != Some(stream.incarnation)
        {
            self.announced = Some(stream.incarnation);
            meters::new_life();
            tracing::error!(
                stream = self.plan.names.stream,
                incarnation = %stream.incarnation,
                "the stream is another than before: its sequences count from the start, all of it is read"
            );
        }
    }

    /// Records from this stream, if that is not what runs already.
    fn go_on(&mut self, stream: UsageStream) {
        self.current.send_if_modified(|current| {
            let other = current.as_ref().is_none_or(|current| current.incarnation != stream.incarnation);
            if other {
                *current = Some(stream.clone());
            }
            other
        });
        if !self.plan.consume {
            return;
        }
        if let Some(session) = &self.session {
            if session.incarnation != stream.incarnation {
                self.pause();
            }
            return;
        }
        let pause = CancellationToken::new();
        let incarnation = stream.incarnation;
        let run = consumer::run(
            stream,
            self.plan.limits,
            self.recorder.clone(),
            self.health.clone(),
            self.nudge.clone(),
            pause.clone(),
        );
        let task = self.recorder.shutdown().spawn(run);
        self.session = Some(Session { incarnation, pause, task });
    }

    /// Takes nothing new; what was taken is recorded.
    fn pause(&self) {
        if let Some(session) = &self.session {
            session.pause.cancel();
        }
    }

    /// Resolves when the session that runs has ended, and takes note of how.
    async fn session_ended(&mut self) {
        let Some(session) = &mut self.session else { return std::future::pending().await };
        let ended = (&mut session.task).await;
        self.session = None;
        let failed = !matches!(ended, Ok(Ok(_)));
        self.ended(ended);
        if failed {
            tokio::time::sleep(SESSION_RETRY).await;
        }
    }

    fn ended(&mut self, ended: Result<Result<Ended, IngestError>, tokio::task::JoinError>) {
        match ended {
            Ok(Ok(Ended::Starved { received })) => {
                self.starved = if received { 1 } else { self.starved + 1 };
                meters::rebuilt("subscription");
                tracing::error!("messages wait, but none is delivered; subscribing anew");
            }
            Ok(Ok(Ended::Stopped | Ended::Paused | Ended::OtherLife)) => self.starved = 0,
            Ok(Err(error)) => {
                self.health.down(STREAM, NOT_STARTED);
                tracing::warn!(%error, "recording could not go on; trying again");
            }
            Err(error) => {
                self.health.down(STREAM, NOT_STARTED);
                tracing::error!(%error, "recording ended unexpectedly; starting it again");
            }
        }
    }

    /// The server does not answer: its settings stay as they were known.
    async fn unreachable(&mut self, error: &IngestError) -> Duration {
        tracing::warn!(%error, "the stream could not be looked at");
        // A session that runs says so itself once it hears of the stream again. Without one, the next look does.
        self.health.down(if self.plan.consume { STREAM } else { SETTINGS }, SILENT);
        let since = self.unreachable_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= CONNECTION_PATIENCE {
            self.unreachable_since = None;
            self.connect_anew().await;
        }
        LOOK_EVERY
    }

    /// Tries another connection; the old one is kept where there is none.
    async fn connect_anew(&mut self) {
        self.starved = 0;
        match connection::jetstream(&self.plan.nats_url, "waybill-consumer").await {
            Ok(context) => {
                tracing::warn!("using another connection to NATS");
                meters::rebuilt("connection");
                self.pause();
                self.context = context;
                self.current.send_replace(None);
            }
            Err(error) => tracing::warn!(%error, "no other connection to NATS can be made"),
        }
    }
}
