//! What the supervisor looks at: the stream, its consumer, the servers' own settings; and what it says of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::watch;
use uuid::Uuid;

use super::{DATABASE_PATIENCE, Demands, LOOK_EVERY, SETTINGS, Supervisor};
use crate::ingest::settings::{self, WrongSetting};
use crate::ingest::stream::{self, UsageStream};
use crate::ingest::{IngestError, meters, monitor};
use crate::shutdown::Shutdown;
use crate::store::{self, Database, completeness};

/// How long a stream that was there may be missing before it is made anew: time to restore it from a backup.
const MISSING_PATIENCE: Duration = Duration::from_secs(20);
/// How old the last answer of a NATS server about itself may be before it counts as one that tells nothing: longer than it
/// takes to start again.
const MONITOR_STALE: Duration = Duration::from_mins(5);
/// How old the last answer of the database about itself may be: what changed since is not seen.
const LOOK_STALE: Duration = Duration::from_mins(1);

/// What a look at the stream found.
#[derive(Default)]
pub(super) struct Found {
    /// The stream, where its settings are right.
    pub stream: Option<UsageStream>,
    pub wrong: Vec<WrongSetting>,
    /// Its settings as the server gives them; null where there is none.
    pub config: Value,
}

impl Found {
    fn wrong(wrong: WrongSetting) -> Self {
        Self { wrong: vec![wrong], ..Self::default() }
    }
}

/// What a look at the database found.
#[derive(Debug, Clone)]
pub(super) struct PostgresLook {
    pub wrong: Vec<WrongSetting>,
    /// What keeps posting from going on, and not recording.
    pub unposted: Option<WrongSetting>,
    doubt: Option<&'static str>,
    /// Whether the ledger has something of a stream, whichever.
    recorded: bool,
    at: Instant,
}

impl PostgresLook {
    /// What to say where it is too long ago.
    pub fn stale(&self) -> Option<String> {
        let age = self.at.elapsed();
        (age >= LOOK_STALE).then(|| {
            format!(
                "the settings of PostgreSQL could not be looked at for {} s; the log says why",
                age.as_secs()
            )
        })
    }
}

/// Looks at the database until a stop is asked for.
pub(super) async fn watch_postgres(
    database: Database,
    durable: bool,
    shutdown: Shutdown,
    told: watch::Sender<Option<PostgresLook>>,
) {
    loop {
        let database = database.clone();
        // A task of its own: what waits for the database is left to wait, never cancelled in the middle of a statement.
        let look = tokio::spawn(async move { look_at_postgres(&database, durable).await });
        let looked = tokio::select! {
            () = shutdown.stopped() => return,
            looked = look => looked,
        };
        match looked {
            Ok(Ok(look)) => drop(told.send(Some(look))),
            Ok(Err(error)) => tracing::warn!(%error, "the settings of PostgreSQL could not be looked at"),
            Err(error) => tracing::error!(%error, "a look at the settings of PostgreSQL ended unexpectedly"),
        }
        tokio::select! {
            () = shutdown.stopped() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// By a connection of the recording side: those of the API may all be taken, and nothing is recorded before the first look.
async fn look_at_postgres(database: &Database, durable: bool) -> Result<PostgresLook, IngestError> {
    let at = Instant::now();
    let mut tx = database.read_ingest().await?;
    let look = store::settings::look(&mut tx, durable).await?;
    let wrong = look.wrong.into_iter().map(WrongSetting::from).collect();
    // No life of a stream has this name.
    let recorded = completeness::other_lives(&mut tx, Uuid::nil()).await?;
    Ok(PostgresLook {
        wrong,
        unposted: look.unposted.map(WrongSetting::from),
        doubt: look.doubt,
        recorded,
        at,
    })
}

impl Supervisor {
    /// The stream and its consumer, made where they are missing.
    pub(super) async fn look_at_stream(&mut self) -> Result<Found, IngestError> {
        let (names, limits) = (self.plan.names.clone(), self.plan.limits);
        let info = match stream::info(&self.context, &names).await {
            Ok(Some(info)) => info,
            Ok(None) => {
                if let Some(missing) = self.missing().await {
                    return Ok(Found::wrong(missing));
                }
                match stream::create(&self.context, &names, limits).await {
                    Ok(()) => stream::info(&self.context, &names).await?.unwrap_or_default(),
                    Err(error) => return refused("stream", "create", error).map(Found::wrong),
                }
            }
            // Where there was one, a server that has no JetStream for us is about to end, or to be back.
            Err(error) if !self.seen => return refused("stream", "info", error).map(Found::wrong),
            Err(error) => return Err(error),
        };
        (self.missing_since, self.seen) = (None, true);
        let config = info["config"].clone();
        if let Some(doubt) = settings::other_size(&config, &names, limits) {
            self.doubt(doubt);
        }
        let mut wrong = settings::stream(&config, &names, limits);
        let incarnation = settings::incarnation(&config).filter(|_| wrong.is_empty());
        let Some(incarnation) = incarnation else {
            // Named as well, where it answers; but not made: it would be of no life.
            if self.plan.consume
                && let Ok(Some(info)) = stream::existing_consumer(&self.context, &names).await
            {
                wrong.extend(settings::consumer(&info, limits));
            }
            return Ok(Found { stream: None, wrong, config });
        };
        let known = self.current.borrow().clone().filter(|known| known.incarnation == incarnation);
        let stream = match known {
            Some(known) => known,
            None => stream::handle(&self.context, &names, incarnation).await?,
        };
        if self.plan.consume {
            wrong = match stream.consumer_info(limits).await {
                Ok(info) => settings::consumer(&info, limits),
                Err(error) => vec![refused("consumer", "create", error)?],
            };
        }
        Ok(Found { stream: Some(stream), wrong, config })
    }

    /// What to say of a stream that is missing; `None` where it is to be made.
    async fn missing(&mut self) -> Option<WrongSetting> {
        let name = self.plan.names.stream.clone();
        let missing = |detail: &str| {
            let detail = format!("{name} does not exist{detail}");
            Some(WrongSetting { object: "stream", setting: "name".to_owned(), detail })
        };
        if !self.plan.consume {
            return missing("; a process that records makes it (`serve`, or `serve --consumer`)");
        }
        // Where this process never saw one, the ledger says whether there was one.
        if !self.seen {
            let Some(look) = self.look_at_postgres().await else {
                return missing(", and the database does not say whether it ever did");
            };
            if !look.recorded {
                return None;
            }
        }
        let since = self.missing_since.get_or_insert_with(Instant::now);
        if since.elapsed() < MISSING_PATIENCE {
            return missing(" any more; restore it now, or it is made anew");
        }
        tracing::error!(stream = name, "the stream was deleted; making it anew");
        None
    }

    /// What the NATS servers tell about themselves; one that does not answer is taken as it was. One that never answered is
    /// only in doubt where another has: a server that is away must not keep the others from recording.
    pub(super) async fn look_at_monitors(&mut self) -> Vec<WrongSetting> {
        let Demands { monitor_urls, nats_synced, .. } = self.plan.demands.clone();
        let answers = join_all(monitor_urls.iter().map(|url| monitor::varz(url))).await;
        let mut silent = Vec::new();
        for (url, answer) in monitor_urls.into_iter().zip(answers) {
            let at = monitor::shown(&url);
            match answer {
                Ok(varz) => {
                    let mut look = settings::server(&varz, nats_synced);
                    for wrong in &mut look.wrong {
                        wrong.detail = format!("{} (at {at})", wrong.detail);
                    }
                    if let Some(doubt) = look.doubt.take() {
                        self.doubt(doubt);
                    }
                    self.monitors.insert(url, (Instant::now(), look));
                }
                Err(error) if self.monitors.contains_key(&url) => {
                    tracing::debug!(at, %error, "the monitoring of NATS does not answer");
                }
                Err(error) => silent.push((at, error)),
            }
        }
        self.count_untold(silent.len(), nats_synced);
        let mut wrong: Vec<_> = self.monitors.values().flat_map(|(_, look)| look.wrong.clone()).collect();
        for (at, error) in silent {
            if self.monitors.is_empty() {
                wrong.push(WrongSetting {
                    object: "nats",
                    setting: "monitor".to_owned(),
                    detail: format!("of {at} does not answer, must: {error}"),
                });
            } else {
                self.doubt(format!(
                    "the monitoring of NATS at {at} has not answered yet: whether a power failure of that server takes confirmed events was not looked at"
                ));
            }
        }
        wrong
    }

    /// Shows how many servers have not told their settings, where they must force everything to disk; `silent` of those whose
    /// addresses we have never did.
    fn count_untold(&mut self, silent: usize, synced: bool) {
        if !synced {
            // What a power failure takes is accepted.
            return meters::unverified_servers(0);
        }
        if self.monitors.is_empty() {
            return meters::unverified_servers(silent.max(1));
        }
        let connected = self.context.client().server_info().server_id;
        let told = self.monitors.values().filter(|(at, _)| at.elapsed() < MONITOR_STALE);
        let untold = settings::untold(told.map(|(_, look)| look), &connected);
        if untold > silent {
            self.doubt(format!(
                "the addresses in WAYBILL_NATS_MONITOR_URL do not tell of all servers of NATS ({untold} are missing), or of others: whether a power failure of these takes confirmed events was not looked at"
            ));
        }
        meters::unverified_servers(untold.max(silent));
    }

    /// Whether the stream is compressed by a server that may damage it.
    pub(super) fn look_at_compression(&self, config: &Value) -> Option<WrongSetting> {
        let connected = self.context.client().server_info().version;
        let told = self.monitors.values().map(|(_, look)| look.version.as_str());
        settings::compression(config, told.chain([connected.as_str()]))
    }

    /// What the database tells about itself; `None` where it never did.
    pub(super) async fn look_at_postgres(&mut self) -> Option<PostgresLook> {
        let known = self.postgres.wait_for(Option::is_some);
        let look = tokio::time::timeout(DATABASE_PATIENCE, known).await.ok()?.ok()?.clone();
        if let Some(doubt) = look.as_ref().and_then(|look| look.doubt) {
            self.doubt(doubt.to_owned());
        }
        look
    }

    fn doubt(&mut self, doubt: String) {
        if !self.doubts.contains(&doubt) {
            tracing::warn!("{doubt}");
            self.doubts.insert(doubt);
        }
    }

    /// Says in log, metrics and health what is wrong, and what is so no more. What the last look at the database found may
    /// only keep posting from going on, or be too old.
    pub(super) fn tell(&mut self, wrong: &[WrongSetting], postgres: Option<&PostgresLook>) {
        let unposted = postgres.and_then(|look| look.unposted.as_ref());
        let wrong: BTreeSet<WrongSetting> = wrong.iter().chain(unposted).cloned().collect();
        let of = |setting: &WrongSetting| (setting.object, setting.setting.clone());
        let named: BTreeSet<_> = wrong.iter().map(of).collect();
        // One whose value changed, or that another server has, is still wrong.
        for healed in self.told.iter().filter(|told| !named.contains(&of(told))) {
            tracing::info!(object = healed.object, setting = healed.setting, "a setting is right again");
            meters::setting(healed, false);
        }
        for new in wrong.difference(&self.told) {
            let kept = if unposted == Some(new) { "posted" } else { "recorded" };
            tracing::error!(object = new.object, setting = new.setting, "usage is not {kept}: {new}");
        }
        for wrong in &wrong {
            meters::setting(wrong, true);
        }
        let mut sentences: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        sentences.extend(match postgres {
            Some(look) => look.stale(),
            None => Some("the settings of PostgreSQL could not be looked at yet".to_owned()),
        });
        if sentences.is_empty() {
            self.health.up(SETTINGS);
        } else {
            self.health.down(SETTINGS, sentences.join("; "));
        }
        self.told = wrong;
    }
}

/// What is wrong with the configuration where the server answers that it refuses what is asked for.
///
/// # Errors
/// The same error where the server did not answer that.
fn refused(object: &'static str, setting: &str, error: IngestError) -> Result<WrongSetting, IngestError> {
    match stream::refusal(&error) {
        Some(said) => {
            Ok(WrongSetting { object, setting: setting.to_owned(), detail: format!("is refused: {said}") })
        }
        None => Err(error),
    }
}
