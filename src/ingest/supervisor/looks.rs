//! What the supervisor looks at: the stream, its consumer, the servers' own settings; and what it says of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{DATABASE_PATIENCE, LOOK_EVERY, SETTINGS, Supervisor};
use crate::ingest::settings::{self, WrongSetting};
use crate::ingest::stream::{self, UsageStream};
use crate::ingest::{IngestError, meters, monitor};
use crate::store::{self, Database, Scope};

/// How long a stream that was there may be missing before it is made anew: time to restore it from a backup.
const MISSING_PATIENCE: Duration = Duration::from_secs(20);

/// What a look found.
pub(super) struct Found {
    /// The stream, where its settings are right.
    pub stream: Option<UsageStream>,
    pub wrong: Vec<WrongSetting>,
}

/// What a look at the database found.
#[derive(Debug, Clone, Default)]
pub(super) struct PostgresLook {
    pub wrong: Vec<WrongSetting>,
    doubt: Option<&'static str>,
}

/// Looks at the database until nobody listens.
pub(super) async fn watch_postgres(
    database: Database,
    durable: bool,
    told: watch::Sender<Option<PostgresLook>>,
) {
    while !told.is_closed() {
        match look_at_postgres(&database, durable).await {
            Ok(look) => drop(told.send(Some(look))),
            Err(error) => tracing::warn!(%error, "the settings of PostgreSQL could not be looked at"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look_at_postgres(database: &Database, durable: bool) -> Result<PostgresLook, IngestError> {
    let mut tx = database.read(Scope::Everything).await?;
    let look = store::settings::look(&mut tx, durable).await?;
    let wrong = look.wrong.into_iter().map(WrongSetting::from).collect();
    Ok(PostgresLook { wrong, doubt: look.doubt })
}

impl Supervisor {
    /// The stream and its consumer, made where they are missing.
    pub(super) async fn look_at_stream(&mut self) -> Result<Found, IngestError> {
        let (names, limits) = (self.plan.names.clone(), self.plan.limits);
        let mut info = stream::info(&self.context, &names).await?;
        if info.is_none() {
            if let Some(missing) = self.missing() {
                return Ok(Found { stream: None, wrong: vec![missing] });
            }
            stream::create(&self.context, &names, limits).await?;
            info = stream::info(&self.context, &names).await?;
        }
        (self.missing_since, self.seen) = (None, true);
        let info = info.unwrap_or_default();
        let mut wrong = settings::stream(&info["config"], &names, limits);
        let incarnation = settings::incarnation(&info["config"]).filter(|_| wrong.is_empty());
        let Some(incarnation) = incarnation else { return Ok(Found { stream: None, wrong }) };
        let known = self.current.borrow().clone().filter(|known| known.incarnation == incarnation);
        let stream = match known {
            Some(known) => known,
            None => stream::handle(&self.context, &names, incarnation).await?,
        };
        if self.plan.consume {
            wrong = settings::consumer(&stream.consumer_info(limits).await?, limits);
        }
        Ok(Found { stream: Some(stream), wrong })
    }

    /// What to say of a stream that is gone; `None` where it is to be made.
    fn missing(&mut self) -> Option<WrongSetting> {
        if !self.seen {
            return None;
        }
        let name = &self.plan.names.stream;
        let since = self.missing_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= MISSING_PATIENCE {
            tracing::error!(stream = name, "the stream was deleted; making it anew");
            return None;
        }
        Some(WrongSetting {
            object: "stream",
            setting: "name".to_owned(),
            detail: format!("{name} does not exist any more; restore it now, or it is made anew"),
        })
    }

    /// What the NATS servers tell about themselves; one that does not answer is taken as it was.
    pub(super) async fn look_at_monitors(&mut self) -> Vec<WrongSetting> {
        for url in self.plan.demands.monitor_urls.clone() {
            match monitor::varz(&url).await {
                Ok(varz) => {
                    let look = settings::server(&varz, self.plan.demands.nats_synced);
                    look.doubt.into_iter().for_each(|doubt| self.doubt(doubt));
                    self.monitors.insert(url, look.wrong);
                }
                Err(error) if self.monitors.contains_key(&url) => {
                    tracing::debug!(url, %error, "the monitoring of NATS does not answer");
                }
                Err(error) => {
                    let never = WrongSetting {
                        object: "nats",
                        setting: "monitor".to_owned(),
                        detail: format!("of {url} does not answer, must: {error}"),
                    };
                    return vec![never];
                }
            }
        }
        self.monitors.values().flatten().cloned().collect()
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

    /// Says in log, metrics and health what is wrong, and what is so no more.
    pub(super) fn tell(&mut self, wrong: &[WrongSetting]) {
        let wrong: BTreeSet<WrongSetting> = wrong.iter().cloned().collect();
        for healed in self.told.difference(&wrong) {
            tracing::info!(object = healed.object, setting = healed.setting, "a setting is right again");
            meters::setting(healed, false);
        }
        for new in wrong.difference(&self.told) {
            tracing::error!(object = new.object, setting = new.setting, "usage is not recorded: {new}");
        }
        for wrong in &wrong {
            meters::setting(wrong, true);
        }
        if wrong.is_empty() {
            self.health.up(SETTINGS);
        } else {
            let sentences: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            self.health.down(SETTINGS, sentences.join("; "));
        }
        self.told = wrong;
    }
}
