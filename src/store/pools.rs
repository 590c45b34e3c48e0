//! Whether the connection pools still work.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection, PgPool};

use super::Database;

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

/// Finds a pool that has nothing to give and takes nothing back although the server accepts new connections: its
/// connections are lost for good (a peer that died silently, a leaked permit), and only a new process brings them back.
#[derive(Debug)]
pub struct PoolWatch {
    pools: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    name: &'static str,
    pool: PgPool,
    returned: Returned,
    returned_before: u64,
    stuck_since: Option<Instant>,
}

impl PoolWatch {
    /// Watches both pools.
    pub fn new(database: &Database) -> Self {
        let watched = |name, pool: &super::Pool| Watched {
            name,
            pool: pool.connections.clone(),
            returned: pool.returned.clone(),
            returned_before: pool.returned.so_far(),
            stuck_since: None,
        };
        Self { pools: vec![watched("ingest", &database.ingest), watched("api", &database.api)] }
    }

    /// Looks once; the name of a pool that was stuck at every look for longer than `patience`.
    pub async fn look(&mut self, patience: Duration) -> Option<&'static str> {
        for watched in &mut self.pools {
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
        timed_out && !busy && self.server_accepts().await
    }

    /// A server that is down or full is no fault of the pool.
    async fn server_accepts(&self) -> bool {
        match PgConnection::connect_with(&self.pool.connect_options()).await {
            // A connection that was opened to be closed: nothing depends on how that ends.
            Ok(connection) => connection.close().await.is_ok(),
            Err(_) => false,
        }
    }
}
