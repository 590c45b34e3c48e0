//! Private PostgreSQL and NATS servers: what `waybill dev` and the tests run on.
//!
//! Owns: finding or fetching the programs, the home folder with data, logs and passwords, start and end.
//! Does not own: schema and stream, which are made by those who use them.
//! Invariants: one process per home; ports and passwords of a home stay the same as long as they can; servers listen on
//! the loopback interface only, with passwords; they end with this process, however that ends.

mod binaries;
mod nats;
mod packages;
mod postgres;
mod process;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::nats::Nats;
use self::postgres::Postgres;
use self::process::{Account, Guard};
use crate::dev::traffic::GATEWAY;
use crate::dev::{DevError, write_for_owner};
use crate::domain::identity::hex;

/// How long a process that was killed a moment ago may still hold a home.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the guard of such a process may take to end its servers.
const GUARD_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether a home outlives its servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Data is kept, and survives a crash of the machine.
    Durable,
    /// For tests: fast, without care for crashes, and the home is removed at the end.
    Throwaway,
    /// For benchmarks: PostgreSQL as durable, and as large, as in production; removed at the end.
    Measured {
        /// Whether NATS forces each message to disk before it confirms it.
        synced: bool,
    },
}

impl Keep {
    /// Whether the home is removed at the end.
    const fn removed(self) -> bool {
        matches!(self, Self::Throwaway | Self::Measured { .. })
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder for data, logs and passwords; made where it does not exist.
    pub home: PathBuf,
    /// Whether it outlives the servers.
    pub keep: Keep,
    /// An existing PostgreSQL database to use as it is instead of a private server. An address of this home's own server is
    /// none: a shell that has read the `dev.env` of an earlier run hands it over.
    pub database_url: Option<String>,
    /// An existing NATS server to use as it is instead of a private one; the same is true of it.
    pub nats_url: Option<String>,
}

/// Running servers; when dropped without [`Servers::stop`] they end as well, a moment later.
#[derive(Debug)]
pub struct Servers {
    home: PathBuf,
    keep: Keep,
    database_url: String,
    nats_url: String,
    state: State,
    postgres: Option<Postgres>,
    nats: Option<Nats>,
    guard: Guard,
    // Held until the end.
    _lock: File,
}

impl Servers {
    /// Starts what is not given, and waits until it answers.
    ///
    /// # Errors
    /// [`DevError`], with a sentence that says what to do.
    pub async fn start(options: Options) -> Result<Self, DevError> {
        let Options { home, keep, database_url, nats_url } = options;
        let home = std::path::absolute(&home).map_err(DevError::io("cannot find", &home))?;
        let account = Account::for_postgres()?;
        let logs = home.join("logs");
        std::fs::create_dir_all(&logs).map_err(DevError::io("cannot create", &logs))?;
        if let Account::Other { .. } = account {
            process::permit(&home, 0o711)?;
        }
        let running = lock(&home, "lock", LOCK_TIMEOUT).await?;
        let ending = lock(&home, "guard.lock", GUARD_TIMEOUT).await?;
        let mut state = State::load(&home)?;
        // Nobody else's servers have the passwords of this home.
        let database_url = database_url.filter(|url| !url.contains(&state.postgres_password));
        let nats_url = nats_url.filter(|url| !url.contains(&state.nats_password));
        postgres::place(&home, &mut state, account).await?;
        let guard = Guard::start(&state.postgres_data(&home), &home, keep.removed(), ending)?;

        let mut postgres = None;
        if database_url.is_none() {
            postgres = Some(Postgres::start(&home, &mut state, account, keep).await?);
        }
        let mut nats = None;
        if nats_url.is_none() {
            nats = Some(Nats::start(&home, &mut state, keep).await?);
        }
        let database_url = database_url.unwrap_or_else(|| match keep {
            Keep::Measured { .. } => state.database_url_by_socket(),
            Keep::Durable | Keep::Throwaway => state.database_url(),
        });
        let nats_url = nats_url.unwrap_or_else(|| state.nats_url());
        Ok(Self { home, keep, database_url, nats_url, state, postgres, nats, guard, _lock: running })
    }

    /// The database, owned by a role that is no superuser.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// The NATS server, with the password in it.
    pub fn nats_url(&self) -> &str {
        &self.nats_url
    }

    /// The private NATS server as the demo's gateway reaches it, with its password in it; `None` where the server is not ours.
    pub fn nats_gateway_url(&self) -> Option<String> {
        self.nats.as_ref().map(|_| self.state.nats_gateway_url())
    }

    /// Where the private NATS server tells about itself, without a password; `None` where the server is not ours.
    pub fn nats_monitor_url(&self) -> Option<String> {
        self.nats.as_ref().map(|_| self.state.nats_monitor_url())
    }

    /// Resolves, with the reason, when a private server ends by itself.
    pub async fn exited(&mut self) -> DevError {
        match (&mut self.postgres, &mut self.nats) {
            (Some(postgres), Some(nats)) => tokio::select! {
                error = postgres.exited() => error,
                error = nats.exited() => error,
            },
            (Some(postgres), None) => postgres.exited().await,
            (None, Some(nats)) => nats.exited().await,
            (None, None) => std::future::pending().await,
        }
    }

    /// Ends the private servers and waits until they have; a throwaway home is removed.
    ///
    /// # Errors
    /// [`DevError`] of the first server that did not end as asked; the others are ended all the same.
    pub async fn stop(self) -> Result<(), DevError> {
        let Self { home, keep, state, postgres, nats, guard, .. } = self;
        let nats = match nats {
            Some(nats) => nats.stop().await,
            None => Ok(()),
        };
        let postgres = match postgres {
            Some(postgres) => postgres.stop().await,
            None => Ok(()),
        };
        guard.dismiss().await;
        if keep.removed() {
            for folder in state.postgres_elsewhere.iter().chain([&home]) {
                std::fs::remove_dir_all(folder).map_err(DevError::io("cannot remove", folder))?;
            }
        }
        nats.and(postgres)
    }
}

/// The NATS server's program, fetched where it is missing.
///
/// # Errors
/// [`DevError`] where it can be had nowhere.
pub async fn nats_program() -> Result<PathBuf, DevError> {
    binaries::nats().await
}

/// What a home remembers from one run to the next.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    postgres_port: u16,
    postgres_password: String,
    /// The folder with the data directory, where that is not the home.
    postgres_elsewhere: Option<PathBuf>,
    nats_port: u16,
    nats_monitor_port: u16,
    nats_password: String,
    /// Of the user of the demo's gateway; a home of an earlier release has none yet.
    #[serde(default = "password")]
    nats_gateway_password: String,
    /// Of the user who looks after the server; a home of an earlier release has none yet.
    #[serde(default = "password")]
    nats_admin_password: String,
}

impl State {
    /// Reads it, or makes a new one.
    fn load(home: &Path) -> Result<Self, DevError> {
        let path = Self::path(home);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| DevError::io("cannot read", &path)(error.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self {
                postgres_port: 0,
                postgres_password: password(),
                postgres_elsewhere: None,
                nats_port: 0,
                nats_monitor_port: 0,
                nats_password: password(),
                nats_gateway_password: password(),
                nats_admin_password: password(),
            }),
            Err(error) => Err(DevError::io("cannot read", &path)(error)),
        }
    }

    /// Writes it, for its owner only, whole or not at all.
    fn save(&self, home: &Path) -> Result<(), DevError> {
        write_for_owner(&Self::path(home), |file| Ok(serde_json::to_writer_pretty(file, self)?))
    }

    fn path(home: &Path) -> PathBuf {
        home.join("servers.json")
    }

    fn postgres_data(&self, home: &Path) -> PathBuf {
        self.postgres_elsewhere.as_deref().unwrap_or(home).join("postgres")
    }

    fn database_url(&self) -> String {
        let Self { postgres_password: password, postgres_port: port, .. } = self;
        format!("postgres://waybill:{password}@{}:{port}/waybill", process::LOOPBACK)
    }

    /// As a program on the same machine reaches it. A measurement compares with bare connections of sqlx, which over TCP wait
    /// up to 40 ms at the end of each COPY, as those of the service do not (`store::sockets`).
    fn database_url_by_socket(&self) -> String {
        let Self { postgres_password: password, postgres_port: port, .. } = self;
        format!("postgres://waybill:{password}@%2Ftmp:{port}/waybill")
    }

    fn nats_url(&self) -> String {
        let Self { nats_password: password, nats_port: port, .. } = self;
        format!("nats://waybill:{password}@{}:{port}", process::LOOPBACK)
    }

    fn nats_monitor_url(&self) -> String {
        format!("http://{}:{}", process::LOOPBACK, self.nats_monitor_port)
    }

    fn nats_gateway_url(&self) -> String {
        let Self { nats_gateway_password: password, nats_port: port, .. } = self;
        format!("nats://{GATEWAY}:{password}@{}:{port}", process::LOOPBACK)
    }
}

/// Holds a file of the home locked for as long as the returned handle, or a copy of it, is open.
async fn lock(home: &Path, name: &str, timeout: Duration) -> Result<File, DevError> {
    let path = home.join(name);
    let file = File::create(&path).map_err(DevError::io("cannot write", &path))?;
    let locked = process::until(timeout, async || match file.try_lock() {
        Ok(()) => Ok(Ok(())),
        Err(TryLockError::WouldBlock) => Err(()),
        Err(TryLockError::Error(error)) => Ok(Err(error)),
    });
    match locked.await {
        Ok(Ok(())) => Ok(file),
        Ok(Err(error)) => Err(DevError::io("cannot lock", &path)(error)),
        Err(()) => Err(DevError::Busy { home: home.to_owned() }),
    }
}

/// A password that needs no quoting anywhere.
fn password() -> String {
    hex(&rand::random::<[u8; 16]>())
}

/// A short name for a path.
fn fingerprint(path: &Path) -> String {
    hex(&Sha256::digest(path.as_os_str().as_encoded_bytes())[..6])
}
