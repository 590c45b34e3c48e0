//! All SQL of Waybill, one file per aggregate.
//!
//! Owns: the connection pools and as whom they work, transactions, every statement, and the mapping of rows to `domain` types.
//! Does not own: deciding anything about money or prices; it stores and sums what it is given.
//! Invariants: statements are checked against the schema at build time (the journal's binary COPY is the one
//! exception); nothing is written outside an explicit transaction; a transaction is retried as a whole by its caller,
//! never in parts; what a customer's key reads, it reads through [`Database::read`] with that customer's scope, under
//! row-level security.

pub mod api_keys;
pub mod audit;
pub mod catalog;
pub mod compaction;
pub mod completeness;
pub mod customers;
pub mod evidence;
pub mod gateways;
pub mod gauges;
pub mod idempotency;
pub mod invoices;
pub mod journal;
pub mod numeric;
pub mod partitions;
pub mod period_prices;
pub mod periods;
mod pools;
pub mod posting;
pub mod prices;
mod quantities;
pub mod rates;
pub mod rating_data;
pub mod refold;
pub mod rejections;
pub mod replay;
pub mod reports;
pub mod rerate;
mod roles;
pub mod settings;
pub mod settlement;
mod shares;
mod sockets;
pub mod tasks;
pub mod usage;
pub mod verify;
pub mod watermark;

use std::ops::{Deref, DerefMut};

use chrono::NaiveDate;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, PgPool, Postgres, Transaction};

use crate::domain::identity::EventKey;
use crate::domain::ids::CustomerId;

use pools::Returned;
pub use pools::{PoolWatch, Transactions, Underway};
use roles::Side;
pub use roles::{Rights, migrate};
use shares::{Share, Shares};

/// The migrations, embedded; shared with the tests.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// Longest statement of a customer's request, and its longest wait for a lock: less than those of finance. How many connections a
/// customer may have at a time is in [`shares`].
const CUSTOMER_STATEMENT_TIMEOUT: &str = "10s";
const CUSTOMER_LOCK_TIMEOUT: &str = "1s";

/// Why the database did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The statement failed; see [`StoreError::retryable`].
    #[error("the database refused or did not answer: {0}")]
    Database(#[source] sqlx::Error),
    /// A stored row is not what the program can read.
    #[error("{table}.{column} holds a value that does not fit: {detail}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A write touched another number of rows than it must.
    #[error("{what} changed {actual} rows instead of {expected}")]
    RowsAffected {
        /// The write.
        what: &'static str,
        /// Rows it must change.
        expected: u64,
        /// Rows it did change.
        actual: u64,
    },
    /// What stands for an estimate is not what it was when it was looked up, or cannot be taken back: the event that corrects
    /// it must not be recorded so.
    #[error("what stands for the estimate with the key {} is not what was looked up, or cannot be taken back", .0.0)]
    StandsOtherwise(EventKey),
    /// The journal has no partition for what is booked on a day: not made yet, detached, or gone.
    #[error(
        "the journal has no partition for {0}: attach it again where it was detached; until it is there, nothing booked then is recorded or posted"
    )]
    NoPartition(NaiveDate),
    /// As many reads of a customer are underway as one customer may have at a time.
    #[error("the customer has as many reads underway as it may")]
    ShareTaken,
    /// The schema could not be brought up to date.
    #[error("the schema could not be migrated: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

/// SQLSTATE classes and codes that pass by themselves: connection trouble, serialization, resources, operator
/// intervention, read-only standby, lock not available, a plan invalidated by a migration, a password that is being changed
/// and a database that is being restored.
const TRANSIENT_SQLSTATES: [&str; 11] =
    ["08", "28", "3D000", "40", "53", "57", "58", "25006", LOCK_NOT_AVAILABLE, STALE_PLAN, "XX"];

/// SQLSTATE class and start of codes of connections that are gone: connection trouble, a server or a session that was stopped.
const CONNECTION_LOST_SQLSTATES: [&str; 2] = ["08", "57P"];

/// SQLSTATE of a prepared statement that no longer returns what it did.
const STALE_PLAN: &str = "0A000";

/// SQLSTATE of a number that does not fit its type.
const NUMERIC_OUT_OF_RANGE: &str = "22003";

/// SQLSTATEs of values that the server cannot hold: U+0000 in a text or in JSON, a time outside its calendar.
const NOT_STORABLE: [&str; 3] = ["22021", "22P05", "22008"];

/// SQLSTATE of an argument that a function does not take, a time zone among them.
const INVALID_PARAMETER: &str = "22023";

/// SQLSTATE of a lock that was not to be had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// SQLSTATE of a statement that was ended because it took too long.
const QUERY_CANCELED: &str = "57014";

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let error = Self::Database(error);
        if error.sqlstate().as_deref() == Some(STALE_PLAN) {
            pools::plans_lost();
        }
        error
    }
}

impl StoreError {
    /// Whether the same transaction may succeed when tried again as a whole.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => error
                .code()
                .is_some_and(|code| TRANSIENT_SQLSTATES.iter().any(|transient| code.starts_with(transient))),
            Self::Database(_) => self.connection_lost(),
            Self::StandsOtherwise(_) | Self::NoPartition(_) | Self::ShareTaken => true,
            Self::Inconsistent { .. } | Self::RowsAffected { .. } | Self::Migrate(_) => false,
        }
    }

    /// Whether a sum is too large for what it is read as: units beyond 64 bits, an amount beyond 128.
    pub fn too_large(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::ColumnDecode { source, .. } | sqlx::Error::Decode(source)) => {
                source.is::<numeric::TooLarge>()
            }
            _ => self.sqlstate().as_deref() == Some(NUMERIC_OUT_OF_RANGE),
        }
    }

    /// Whether a value that was given is one that the server cannot hold.
    pub fn not_storable(&self) -> bool {
        self.sqlstate().is_some_and(|state| NOT_STORABLE.contains(&state.as_str()))
    }

    /// Whether the server does not know a time zone, where it says so in English: the code is shared with others.
    pub fn unknown_zone(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => {
                error.code().as_deref() == Some(INVALID_PARAMETER) && error.message().contains("time zone")
            }
            _ => false,
        }
    }

    /// Whether the connection was lost, none was to be had, or the server stopped: no fault of what it was asked.
    pub fn connection_lost(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => error
                .code()
                .is_some_and(|code| CONNECTION_LOST_SQLSTATES.iter().any(|lost| code.starts_with(lost))),
            Self::Database(
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed,
            ) => true,
            _ => false,
        }
    }

    /// Whether a lock was not to be had in time.
    pub fn lock_timed_out(&self) -> bool {
        self.sqlstate().as_deref() == Some(LOCK_NOT_AVAILABLE)
    }

    /// Whether a statement was ended because it took too long.
    pub fn timed_out(&self) -> bool {
        self.sqlstate().as_deref() == Some(QUERY_CANCELED)
    }

    /// The name of the constraint that a write broke, if that is what happened.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Database(sqlx::Error::Database(error)) => error.constraint(),
            _ => None,
        }
    }

    /// The five-character SQLSTATE, if the server gave one.
    pub fn sqlstate(&self) -> Option<String> {
        match self {
            Self::Database(sqlx::Error::Database(error)) => error.code().map(std::borrow::Cow::into_owned),
            _ => None,
        }
    }
}

/// Whose rows a read may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Finance and the program itself.
    Everything,
    /// One customer, under row-level security.
    Customer(CustomerId),
}

impl Scope {
    /// The customer it is limited to.
    pub const fn customer(self) -> Option<CustomerId> {
        match self {
            Self::Everything => None,
            Self::Customer(id) => Some(id),
        }
    }
}

/// The connection pools: recording and posting never wait for the API, and the API never for them.
#[derive(Debug, Clone)]
pub struct Database {
    ingest: Pool,
    api: Pool,
    shares: Shares,
}

/// Connections, and how many of them came back.
#[derive(Debug, Clone)]
struct Pool {
    /// What its sessions are called on the server: the side, and which process it is.
    name: String,
    connections: PgPool,
    returned: Returned,
    transactions: Transactions,
}

impl Pool {
    async fn begin(&self) -> Result<Tx, StoreError> {
        // Before anything is sent: a lost connection may swallow that too.
        let underway = self.transactions.begin();
        Ok(Tx { transaction: self.connections.begin().await?, _underway: underway, _share: None })
    }

    /// Read-only, and every statement sees the same.
    async fn begin_snapshot(&self) -> Result<Tx, StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query!("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut *tx).await?;
        Ok(tx)
    }
}

/// A transaction; dropped without [`commit`] it rolls back.
#[derive(Debug)]
pub struct Tx {
    transaction: Transaction<'static, Postgres>,
    _underway: Underway,
    /// Of the customer whose request reads.
    _share: Option<Share>,
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.transaction
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }
}

impl Tx {
    /// Rolls back, and waits until that is done.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the connection is lost; then it is rolled back too.
    pub async fn rollback(self) -> Result<(), StoreError> {
        Ok(self.transaction.rollback().await?)
    }
}

impl Database {
    /// Connects both pools with the rights of the service.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the URL is malformed, the server does not answer, or its roles are not there or not
    /// the login's.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::connect_as(url, Rights::Service).await
    }

    /// The same with other rights.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_as(url: &str, rights: Rights) -> Result<Self, StoreError> {
        let options: PgConnectOptions = url.parse()?;
        let ingest = Side::Ingest.connect(&options, rights).await?;
        let api = Side::Api.connect(&options, rights).await?;
        Ok(Self { ingest, api, shares: Shares::default() })
    }

    /// Begins a transaction of the recording side.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn begin_ingest(&self) -> Result<Tx, StoreError> {
        self.ingest.begin().await
    }

    /// Begins a writing transaction of the API side.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        self.api.begin().await
    }

    /// Begins a read-only transaction with one snapshot; in a customer's scope it runs as the role that sees only that
    /// customer's rows, and is one of the few that the customer may have at a time.
    ///
    /// # Errors
    /// [`StoreError::Database`]; [`StoreError::ShareTaken`] where the customer has them all for too long.
    pub async fn read(&self, scope: Scope) -> Result<Tx, StoreError> {
        // Before a connection is asked for: a customer that waits keeps nobody else waiting.
        let share = match scope {
            Scope::Everything => None,
            Scope::Customer(id) => Some(self.shares.take(id).await.ok_or(StoreError::ShareTaken)?),
        };
        let mut tx = Tx { _share: share, ..self.api.begin_snapshot().await? };
        if let Scope::Customer(id) = scope {
            sqlx::query!(
                "SELECT set_config('waybill.customer_id', $1, true) AS customer,
                        set_config('statement_timeout', $2, true) AS statement_timeout,
                        set_config('lock_timeout', $3, true) AS lock_timeout",
                id.to_string(),
                CUSTOMER_STATEMENT_TIMEOUT,
                CUSTOMER_LOCK_TIMEOUT
            )
            .fetch_one(&mut *tx)
            .await?;
            sqlx::query!("SET LOCAL ROLE waybill_customer").execute(&mut *tx).await?;
        }
        Ok(tx)
    }

    /// Begins a read-only transaction of the recording side with one snapshot: what recording waits for, it must not ask of
    /// connections that the API may have taken.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn read_ingest(&self) -> Result<Tx, StoreError> {
        self.ingest.begin_snapshot().await
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.api.connections.acquire().await?.ping().await?;
        Ok(())
    }

    /// Whether the recording side could commit.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn ping_ingest(&self) -> Result<(), StoreError> {
        let mut tx = self.ingest.begin().await?;
        // A read-only standby answers queries and refuses this.
        sqlx::query!("SELECT pg_current_xact_id()::text AS id").fetch_one(&mut *tx).await?;
        commit(tx).await
    }

    /// Closes both pools, waiting for what runs.
    pub async fn close(&self) {
        self.ingest.connections.close().await;
        self.api.connections.close().await;
    }
}

/// Commits, and makes sure that there was something to commit: PostgreSQL answers COMMIT of a failed transaction
/// with a silent ROLLBACK, so a statement before it asks whether the transaction still stands.
///
/// # Errors
/// [`StoreError::Database`]; on a lost connection the outcome is unknown and the caller tries the whole again.
pub async fn commit(mut tx: Tx) -> Result<(), StoreError> {
    still_stands(&mut tx).await?;
    tx.transaction.commit().await?;
    Ok(())
}

/// Asks whether a transaction still stands; to the server it is also a sign that its session is alive.
///
/// # Errors
/// [`StoreError::Database`]; on a lost connection too.
pub async fn still_stands(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("SELECT 1 AS one").fetch_one(connection).await?;
    Ok(())
}

/// Checks that a write changed as many rows as it must.
///
/// # Errors
/// [`StoreError::RowsAffected`].
pub fn ensure_affected(
    what: &'static str,
    result: &sqlx::postgres::PgQueryResult,
    expected: u64,
) -> Result<(), StoreError> {
    let actual = result.rows_affected();
    if actual == expected { Ok(()) } else { Err(StoreError::RowsAffected { what, expected, actual }) }
}
