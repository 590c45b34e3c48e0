//! Whether the connection pools still work.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection, PgPool};

use super::Database;
use super::roles::as_login;

/// How long a new connection may take before the server counts as out of reach.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From this age on a transaction has its connection: a caller is not kept waiting for one as long.
const CONNECTED_AFTER: Duration = Duration::from_secs(5);
/// Looks in a row that must find a transaction lost: right after a server was frozen one may not have arrived yet.
const LOST_LOOKS: u32 = 3;

/// When a statement last found that a migration had changed what it returns. A prepared statement that did fails for as long
/// as its connection lives.
static PLANS_LOST: Mutex<Option<Instant>> = Mutex::new(None);

/// Connections that are open now hold statements that will never work again.
pub(super) fn plans_lost() {
    *PLANS_LOST.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
}

/// Whether a connection of this age may be used again.
pub(super) fn plans_hold(age: Duration) -> bool {
    PLANS_LOST.lock().unwrap_or_else(PoisonError::into_inner).is_none_or(|lost| age < lost.elapsed())
}

/// How many connections a pool has taken back since it was made; a clone shares it.
#[derive(Debug, Clone, Default)]
pub(super) struct Returned(Arc<AtomicU64>);

impl Returned {
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Which transactions are underway, and since when; a clone shares it.
#[derive(Debug, Clone, Default)]
pub struct Transactions(Arc<Mutex<BTreeMap<u64, Instant>>>);

/// A transaction that is underway until this is dropped.
#[derive(Debug)]
pub struct Underway {
    all: Transactions,
    number: u64,
}

impl Transactions {
    /// One more begins.
    pub fn begin(&self) -> Underway {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.with(|underway| underway.insert(number, Instant::now()));
        Underway { all: self.clone(), number }
    }

    /// How long the oldest has been underway.
    pub fn oldest(&self) -> Option<Duration> {
        self.with(|underway| underway.values().map(Instant::elapsed).max())
    }

    fn older_than(&self, age: Duration) -> i64 {
        let count = self.with(|underway| underway.values().filter(|since| since.elapsed() >= age).count());
        i64::try_from(count).unwrap_or(i64::MAX)
    }

    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<u64, Instant>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.all.with(|underway| underway.remove(&self.number));
    }
}

/// Finds a pool that only a new process brings back although the server accepts new connections: it has nothing to give and
/// takes nothing back, or one of its transactions waits for an answer that the server will never give, because it knows
/// nothing of it (a peer that died silently, a leaked permit).
#[derive(Debug)]
pub struct PoolWatch {
    pools: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    name: &'static str,
    application: String,
    pool: PgPool,
    returned: Returned,
    returned_before: u64,
    transactions: Transactions,
    stuck_since: Option<Instant>,
    lost_looks: u32,
}

impl PoolWatch {
    /// Watches both pools.
    pub fn new(database: &Database) -> Self {
        let watched = |name, pool: &super::Pool| Watched {
            name,
            application: pool.name.clone(),
            pool: pool.connections.clone(),
            returned: pool.returned.clone(),
            returned_before: pool.returned.so_far(),
            transactions: pool.transactions.clone(),
            stuck_since: None,
            lost_looks: 0,
        };
        Self { pools: vec![watched("ingest", &database.ingest), watched("api", &database.api)] }
    }

    /// Looks once; the name of a pool that was stuck at every look for longer than `patience`, or has lost a transaction
    /// that is older than half of that.
    pub async fn look(&mut self, patience: Duration) -> Option<&'static str> {
        for watched in &mut self.pools {
            watched.lost_looks = if watched.lost(patience / 2).await { watched.lost_looks + 1 } else { 0 };
            if watched.lost_looks >= LOST_LOOKS {
                return Some(watched.name);
            }
            if !watched.stuck().await {
                watched.stuck_since = None;
                continue;
            }
            if watched.stuck_since.get_or_insert_with(Instant::now).elapsed() >= patience {
                return Some(watched.name);
            }
        }
        None
    }
}

impl Watched {
    async fn stuck(&mut self) -> bool {
        let timed_out = matches!(self.pool.acquire().await, Err(sqlx::Error::PoolTimedOut));
        let returned = self.returned.so_far();
        // A pool that is merely busy takes connections back all the time.
        let busy = std::mem::replace(&mut self.returned_before, returned) != returned;
        timed_out && !busy && self.connect().await.is_some()
    }

    /// Whether a transaction has been underway for too long here that the server has no more.
    async fn lost(&self, patience: Duration) -> bool {
        if self.transactions.older_than(patience) == 0 {
            return false;
        }
        let Some(connection) = self.connect().await else { return false };
        // Those that have just begun are not counted on either side.
        let known = tokio::time::timeout(CONNECT_TIMEOUT, self.known_to_server(connection)).await;
        let Ok(Ok(known)) = known else { return false };
        known < self.transactions.older_than(CONNECTED_AFTER)
    }

    async fn known_to_server(&self, mut connection: PgConnection) -> Result<i64, sqlx::Error> {
        let known = sqlx::query_scalar!(
            r#"SELECT count(*) AS "known!" FROM pg_stat_activity
               WHERE application_name = $1 AND xact_start < clock_timestamp() - interval '1 second'"#,
            self.application
        )
        .fetch_one(&mut connection)
        .await?;
        connection.close().await?;
        Ok(known)
    }

    /// A connection of its own: a server that is down or full is no fault of the pool.
    async fn connect(&self) -> Option<PgConnection> {
        let options = as_login(self.pool.connect_options().as_ref(), "waybill-watch");
        tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_underway_until_it_is_dropped() {
        let all = Transactions::default();
        assert_eq!(all.oldest(), None);
        let one = all.begin();
        let two = all.clone().begin();
        assert_eq!(all.older_than(Duration::ZERO), 2);
        assert_eq!(all.older_than(Duration::from_hours(1)), 0);
        drop(one);
        drop(two);
        assert_eq!(all.oldest(), None);
    }
}
