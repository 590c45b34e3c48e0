//! As whom sessions work, and what bounds them: the one place where either is set.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, Row};

use super::pools::{self, Returned, Transactions};
use super::{MIGRATOR, Pool, StoreError, sockets};

/// How long a caller waits for a connection before it is told that the database is busy.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection is replaced after this age, so that a failover is noticed everywhere.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(10);
/// Longest wait for a lock.
const LOCK_TIMEOUT: &str = "10s";
/// A transaction whose program says nothing for so long is ended: it was left behind, and its locks keep others waiting.
const IDLE_TIMEOUT: &str = "15s";
/// A connection over TCP is given up where the other side acknowledges nothing for so long.
const SILENCE_TIMEOUT: &str = "20s";
/// Takes no role, whatever the session took before.
const NO_ROLE: &str = "none";

/// With whose rights a program works on the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Of the service: recording as `waybill_ingest`, everything else as `waybill_finance`.
    Service,
    /// Of `waybill_auditor`, which reads everything and changes nothing.
    Auditor,
    /// Of the login itself, which owns the tables.
    Owner,
}

/// A side of the program, with connections of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Recording, posting and what goes with them.
    Ingest,
    /// Requests, invoices, and reads of the program itself.
    Api,
}

impl Side {
    /// What its sessions are called on the server.
    const fn name(self) -> &'static str {
        match self {
            Self::Ingest => "waybill-ingest",
            Self::Api => "waybill-api",
        }
    }

    /// How many connections it has at most.
    pub(super) const fn connections(self) -> u32 {
        match self {
            Self::Ingest => 6,
            Self::Api => 12,
        }
    }

    /// Longest statement: of recording, less than a message is waited for; of the API, less than a request is.
    const fn statement_timeout(self) -> &'static str {
        match self {
            Self::Ingest => "30s",
            Self::Api => "15s",
        }
    }

    /// How its statements are planned. Of recording as PostgreSQL decides: there are few, and the same all day. Those of the API ask
    /// for one customer or for all, for a day or for a year, and a plan for any of them, which it would take after five calls,
    /// reads everything for each; planning costs a millisecond, compiling more than it saves.
    const fn planning(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Ingest => &[],
            Self::Api => &[("plan_cache_mode", "force_custom_plan"), ("jit", "off")],
        }
    }

    const fn role(self, rights: Rights) -> &'static str {
        match (rights, self) {
            (Rights::Service, Self::Ingest) => "waybill_ingest",
            (Rights::Service, Self::Api) => "waybill_finance",
            (Rights::Auditor, _) => "waybill_auditor",
            (Rights::Owner, _) => NO_ROLE,
        }
    }

    /// Connects it. The role comes with the session, so whatever is reset in it goes back to the role.
    pub(super) async fn connect(
        self,
        options: &PgConnectOptions,
        rights: Rights,
    ) -> Result<Pool, StoreError> {
        let returned = Returned::default();
        let counted = returned.clone();
        let name = format!("{} {:08x}", self.name(), rand::random::<u32>());
        let port = options.get_port();
        let options = bounded(options, &name)
            .options([("statement_timeout", self.statement_timeout()), ("role", self.role(rights))])
            .options(self.planning().iter().copied());
        let connections = PgPoolOptions::new()
            .max_connections(self.connections())
            .min_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .max_lifetime(CONNECTION_LIFETIME)
            .after_connect(move |_, _| {
                sockets::send_at_once(port);
                Box::pin(std::future::ready(Ok(())))
            })
            .before_acquire(|_, idle| Box::pin(std::future::ready(Ok(pools::plans_hold(idle.age)))))
            .after_release(move |connection, _| {
                counted.count();
                Box::pin(async move { Ok(rolled_back(connection).await) })
            })
            .connect_with(options)
            .await?;
        Ok(Pool { name, connections, returned, transactions: Transactions::default() })
    }
}

/// A session as the login, beside those of a pool: the server shows what a session is at to its own login, not to its role.
pub(super) fn as_login(options: &PgConnectOptions, name: &str) -> PgConnectOptions {
    options.clone().application_name(name).options([("role", NO_ROLE)])
}

/// Brings the schema up to date as the login, which must own it. A migration may take as long as it needs once it has its
/// locks; it waits for them as briefly as anybody.
///
/// # Errors
/// [`StoreError::Migrate`] where a migration fails or an applied one differs from the embedded one;
/// [`StoreError::Database`] where the URL is malformed or the server does not answer.
pub async fn migrate(url: &str) -> Result<(), StoreError> {
    let options: PgConnectOptions = url.parse()?;
    let mut connection = bounded(&options, "waybill-migrate").connect().await?;
    MIGRATOR.run(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

fn bounded(options: &PgConnectOptions, name: &str) -> PgConnectOptions {
    options.clone().application_name(name).options([
        ("lock_timeout", LOCK_TIMEOUT),
        ("idle_in_transaction_session_timeout", IDLE_TIMEOUT),
        // The server waits no longer for a program that takes nothing more of an answer: none of the others ends that.
        ("tcp_user_timeout", SILENCE_TIMEOUT),
        // Of a database or a login with another default, what is looked up after the journal's lock is taken would be what was
        // there before it.
        ("default_transaction_isolation", "read committed"),
        ("timezone", "UTC"),
        ("client_min_messages", "warning"),
    ])
}

/// A request that went away in the middle of `begin` can leave a transaction open on its connection; the next user would
/// write into it and lose everything. Ends it where there is one; where that fails the connection is closed.
async fn rolled_back(connection: &mut PgConnection) -> bool {
    // Of a simple query outside of a transaction these are the same instant. A plain ROLLBACK would do, but where there is
    // nothing to roll back the server warns of it in its log, once for every request.
    let open = sqlx::raw_sql("SELECT now() < statement_timestamp()").fetch_one(&mut *connection).await;
    match open.and_then(|row| row.try_get(0)) {
        Ok(false) => true,
        // In a transaction that has failed it fails too.
        Ok(true) | Err(_) => sqlx::raw_sql("ROLLBACK").execute(connection).await.is_ok(),
    }
}
