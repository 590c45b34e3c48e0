//! The private PostgreSQL server.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::process::Child;

use super::process::{self, Account};
use super::{Keep, State, binaries};
use crate::dev::DevError;
use crate::store::StoreError;

/// How it is called in messages.
pub(super) const NAME: &str = "PostgreSQL";
/// The role that owns the database, and the database: neither a superuser nor owned by one.
const OWNER: &str = "waybill";

/// Where the data directory goes when PostgreSQL's user cannot enter the home.
const ELSEWHERE: &str = "/var/tmp";

/// What the extension of a data directory begins with until it is complete.
const UNFINISHED: &str = "new-";

/// Settings of every private server: loopback only, no Unix socket in its home (paths are limited to 107 bytes).
const SETTINGS: [&str; 9] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "timezone=UTC",
    "log_timezone=UTC",
    "password_encryption=scram-sha-256",
    "max_connections=200",
    "max_locks_per_transaction=256", // a statement over a partitioned table locks each partition
    "log_lock_waits=on",
    "jit=off", // compiling costs more than it saves in short statements
];
/// Further settings where data is kept.
const DURABLE: [&str; 5] =
    ["fsync=on", "synchronous_commit=on", "full_page_writes=on", "shared_buffers=256MB", "max_wal_size=4GB"];
/// Further settings where data is thrown away at the end: nothing of it has to survive a crash.
const THROWAWAY: [&str; 5] = [
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "shared_buffers=128MB",
    "autovacuum_naptime=5min",
];

/// Further settings for measurements: those of production on a machine of this size, and what a measurement reads.
const MEASURED: [&str; 10] = [
    "unix_socket_directories=/tmp", // how a program on the same machine connects
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "shared_buffers=4GB",
    "max_wal_size=16GB",
    "wal_compression=lz4",
    "checkpoint_timeout=15min",
    "wal_buffers=64MB",
    "track_commit_timestamp=on", // when an event was recorded, and when it was posted
];

/// Settles where the data directory is: in the home, or, where PostgreSQL's user cannot enter that, in a folder that it
/// can, which `state` then remembers.
pub(super) async fn place(home: &Path, state: &mut State, account: Account) -> Result<(), DevError> {
    if state.postgres_elsewhere.is_none() && !account.can_enter(home).await {
        let beside = Path::new(ELSEWHERE).join(format!("waybill-{}", super::fingerprint(home)));
        std::fs::create_dir_all(&beside).map_err(DevError::io("cannot create", &beside))?;
        process::permit(&beside, 0o711)?;
        state.postgres_elsewhere = Some(beside);
        state.save(home)?;
    }
    Ok(())
}

/// A running server.
#[derive(Debug)]
pub(super) struct Postgres {
    child: Child,
    log: PathBuf,
}

impl Postgres {
    /// Starts the server on the data directory of `state`, which is made where it does not exist.
    pub(super) async fn start(
        home: &Path,
        state: &mut State,
        account: Account,
        keep: Keep,
    ) -> Result<Self, DevError> {
        let data = state.postgres_data(home);
        process::stop_left_behind(NAME, &data.join("postmaster.pid"), &data, Signal::SIGINT).await?;
        let programs = binaries::postgres(account, &data, major(&data)).await?;
        if !data.join("PG_VERSION").exists() {
            create(&programs, &data, account, state, keep).await?;
        }
        process::persist(async || Self::launch(home, state, account, &programs, keep).await).await
    }

    async fn launch(
        home: &Path,
        state: &mut State,
        account: Account,
        programs: &Path,
        keep: Keep,
    ) -> Result<Self, DevError> {
        state.postgres_port = process::free_port(state.postgres_port)?;
        state.save(home)?;
        let mut command = account.command(programs.join("postgres"));
        command.arg("-D").arg(state.postgres_data(home)).args(["-p", &state.postgres_port.to_string()]);
        for setting in SETTINGS.iter().chain(further(keep)) {
            command.args(["-c", setting]);
        }
        let log = home.join("logs").join("postgres.log");
        let mut child = process::spawn(command, &log)?;
        let options: PgConnectOptions = state.database_url().parse().map_err(StoreError::from)?;
        process::ready(NAME, &mut child, &log, async || {
            let mut connection =
                PgConnection::connect_with(&options).await.map_err(|error| error.to_string())?;
            connection.ping().await.map_err(|error| error.to_string())
        })
        .await?;
        Ok(Self { child, log })
    }

    /// Ends it, closing open connections.
    pub(super) async fn stop(self) -> Result<(), DevError> {
        process::stop(self.child, NAME, Signal::SIGINT).await
    }

    /// Resolves when it ends by itself.
    pub(super) async fn exited(&mut self) -> DevError {
        self.child.wait().await.ok();
        process::exited(NAME, &self.log)
    }
}

const fn further(keep: Keep) -> &'static [&'static str] {
    match keep {
        Keep::Durable => &DURABLE,
        Keep::Throwaway => &THROWAWAY,
        Keep::Measured { .. } => &MEASURED,
    }
}

/// The major version that wrote a data directory.
fn major(data: &Path) -> Option<u32> {
    std::fs::read_to_string(data.join("PG_VERSION")).ok()?.trim().parse().ok()
}

/// Removes what killed runs have left unfinished, as far as nothing of theirs still writes to it.
fn remove_unfinished(data: &Path) {
    let (Some(home), Some(name)) = (data.parent(), data.file_name()) else { return };
    let unfinished = format!("{}.{UNFINISHED}", name.to_string_lossy());
    for entry in std::fs::read_dir(home).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&unfinished) {
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Makes the data directory beside its place and moves it there when it is complete. The owner's role and database
/// are made without a server, by the one user who needs no password; over the network nobody is a superuser.
async fn create(
    programs: &Path,
    data: &Path,
    account: Account,
    state: &State,
    keep: Keep,
) -> Result<(), DevError> {
    remove_unfinished(data);
    let new = data.with_extension(format!("{UNFINISHED}{}", super::password()));
    std::fs::create_dir_all(&new).map_err(DevError::io("cannot create", &new))?;
    process::permit(&new, 0o700)?;
    account.own(&new)?;

    let mut initdb = account.command(programs.join("initdb"));
    initdb.arg("-D").arg(&new).args(["-U", "postgres", "-A", "reject", "-E", "UTF8"]);
    initdb.args(["--no-locale", "--data-checksums", "--no-instructions"]);
    if keep == Keep::Throwaway {
        initdb.arg("--no-sync");
    }
    process::output(initdb).await?;

    let rules = new.join("pg_hba.conf");
    let rule = "host all all 127.0.0.1/32 scram-sha-256\nlocal all all scram-sha-256\n";
    std::fs::write(&rules, rule).map_err(DevError::io("cannot write", &rules))?;

    let mut single = account.command(programs.join("postgres"));
    single.args(["--single", "-D"]).arg(&new).args(["-c", "password_encryption=scram-sha-256"]);
    if keep == Keep::Throwaway {
        single.args(["-c", "fsync=off"]);
    }
    single.args(["-c", "exit_on_error=on", "postgres"]);
    let statements = format!(
        "CREATE ROLE {OWNER} LOGIN NOSUPERUSER CREATEDB CREATEROLE PASSWORD '{}'\nCREATE DATABASE {OWNER} OWNER {OWNER}\n",
        state.postgres_password
    );
    process::output_of(single, &statements).await?;
    std::fs::rename(&new, data).map_err(DevError::io("cannot move", &new))
}
