//! Connections to PostgreSQL that die silently, those that are only slow, and transactions that cannot be committed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use waybill::store::{Database, PoolWatch, commit};

use crate::harness::{TestBed, wait_until};

/// Longer than the slow transaction, and than the pool needs to replace its idle connections.
const PATIENCE: Duration = Duration::from_secs(12);

/// Passes bytes both ways; connections that were made before `silent` was set pass nothing any more and stay open.
async fn proxy(server: String, silent: Arc<AtomicBool>) -> SocketAddr {
    async fn pass(
        mut from: impl AsyncReadExt + Unpin,
        mut to: impl AsyncWriteExt + Unpin,
        silent: &AtomicBool,
    ) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            if !silent.load(Ordering::Relaxed) && to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
        // What has died silently does not say that it is closed either.
        if silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            // One that is made after the others fell silent is a good one.
            let silent = if silent.load(Ordering::Relaxed) { Arc::default() } else { silent.clone() };
            let back = silent.clone();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::spawn(async move { pass(from_client, to_server, &silent).await });
            tokio::spawn(async move { pass(from_server, to_client, &back).await });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_the_server_knows_nothing_of_is_found_and_a_slow_one_is_not() {
    let bed = TestBed::new().await;
    let silent = Arc::new(AtomicBool::new(false));
    let (before, rest) = bed.database_url.rsplit_once('@').unwrap();
    let (server, name) = rest.split_once('/').unwrap();
    let address = proxy(server.to_owned(), silent.clone()).await;
    let database = Database::connect(&format!("{before}@{address}/{name}")).await.unwrap();
    let mut watch = PoolWatch::new(&database);

    // Slow: the server works at it for longer than any look.
    let mut slow = database.begin_ingest().await.unwrap();
    let slept = tokio::spawn(async move {
        sqlx::raw_sql("SELECT pg_sleep(10)").execute(&mut *slow).await.unwrap();
        slow.rollback().await.unwrap();
    });
    while !slept.is_finished() {
        assert_eq!(watch.look(PATIENCE).await, None, "a slow transaction is not lost");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    slept.await.unwrap();

    // Lost: nothing of it arrives any more, and the server gives it up in a while.
    let mut lost = database.begin_ingest().await.unwrap();
    silent.store(true, Ordering::Relaxed);
    let waiting = tokio::spawn(async move { sqlx::raw_sql("SELECT 1").execute(&mut *lost).await.is_ok() });
    wait_until("the lost transaction is found", async || {
        (watch.look(PATIENCE).await == Some("ingest")).then_some(())
    })
    .await;
    assert!(!waiting.is_finished(), "the client itself would wait for ever");
    waiting.abort();
}

/// PostgreSQL answers such a COMMIT with a rollback, and the client takes that for done.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_failed_statement_nobody_has_looked_at_is_not_committed() {
    let bed = TestBed::new().await;
    let mut tx = bed.database.begin().await.unwrap();
    assert!(sqlx::raw_sql("SELECT 1 / 0").execute(&mut *tx).await.is_err());
    assert!(commit(tx).await.is_err());
}
