//! The roles of the database: what each may do, what each is refused, and what bounds its sessions.

use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};
use waybill::domain::ids::{BatchId, CustomerId};
use waybill::store::{Database, Rights, Scope, StoreError, journal, posting};

use crate::harness::TestBed;
use crate::ledger::{Ledger, Row, task_call};

const INGEST: &str = "waybill_ingest";
const FINANCE: &str = "waybill_finance";
const AUDITOR: &str = "waybill_auditor";
const CUSTOMER: &str = "waybill_customer";
const ROLES: [&str; 4] = [INGEST, FINANCE, AUDITOR, CUSTOMER];
/// SQLSTATE of what a role may not do.
const REFUSED: &str = "42501";
/// SQLSTATE with which a trigger keeps rows as they are.
const FINAL: &str = "23001";

/// Tables whose rows are final from the start, for everybody.
const APPEND_ONLY: [&str; 15] = [
    "usage_events",
    "batch_payloads",
    "corrections",
    "rerates",
    "audit_log",
    "invoices",
    "invoice_line_items",
    "task_charges",
    "price_rates",
    "price_book_markups",
    "markup_changes",
    "markup_change_models",
    "period_price_tiers",
    "archived_months",
    "archived_rollups",
];

/// A row of usage, as recording adds it.
const USAGE: &str = "INSERT INTO usage_events (booked_on, event_key, part, kind, batch_id, stream_seq, event_index, customer_id,
        gateway_id, occurred_at, source, id, content_hash, provider, model, cost_price_id, sell_price_id)
    SELECT booked_on, gen_random_uuid(), 0, 'usage', batch_id, 99, 0, customer_id, gateway_id, occurred_at, source, 'new',
        content_hash, provider, model, cost_price_id, sell_price_id FROM usage_events LIMIT 1";
/// One row of a re-rate.
const RESTATEMENT: &str = "INSERT INTO usage_events (booked_on, event_key, part, kind, restates, batch_id, stream_seq, event_index,
        customer_id, gateway_id, occurred_at, source, id, content_hash, provider, model, cost_price_id, sell_price_id)
    SELECT booked_on, event_key, 2001, 'restatement', 0, batch_id, stream_seq, event_index, customer_id, gateway_id, occurred_at,
        source, id, content_hash, provider, model, cost_price_id, sell_price_id FROM usage_events WHERE kind = 'usage' LIMIT 1";

fn batch(origin: &str) -> String {
    format!(
        "INSERT INTO ingest_batches (origin, messages, events, recorded, duplicates, rejected, rows, booked_on)
         VALUES ('{origin}', 0, 0, 0, 0, 0, 0, '2026-11-23')"
    )
}

/// A ledger with something in it.
async fn ledger() -> Ledger {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "Europe/Berlin").await;
    let searching = Row {
        rare: Some(json!({"web_search": 2})),
        ..task_call(acme, "2026-11-20T01:00:00Z", "t", "refund", 9)
    };
    ledger.record(&[searching]).await;
    ledger.post().await;
    ledger
}

/// What becomes of a statement of a role: its SQLSTATE, or `None` where it is done. Nothing of it stays.
async fn outcome(pool: &PgPool, role: &str, statement: &str) -> Option<String> {
    let mut tx = pool.begin().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("SET LOCAL ROLE {role}"))).execute(&mut *tx).await.unwrap();
    let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *tx).await;
    let state = done.err().map(|error| {
        let code = error.as_database_error().and_then(|error| error.code().map(String::from));
        code.unwrap_or_else(|| panic!("{role}: {statement}: {error}"))
    });
    tx.rollback().await.unwrap();
    state
}

async fn names(pool: &PgPool, query: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_all(pool).await.unwrap()
}

const NOTHING: [&str; 0] = [];

const KEY: &str = "INSERT INTO api_keys (public_id, secret_hash, role, name) VALUES ('aaaaaaaaaaaa', sha256(''), 'admin', 'x')";

#[tokio::test]
async fn every_role_does_its_work_and_is_refused_the_rest() {
    let ledger = ledger().await;
    let (recorded, rerated) = (batch("replay"), batch("rerate"));
    let posted = rerated
        .replace("booked_on)", "booked_on, posted_at, posted_closing)")
        .replace("-23')", "-23', now(), 0)");
    let closed_period =
        "INSERT INTO billing_periods (customer_id, start_at, end_at, state, closed_at, closing)
        SELECT id, '2020-01-01Z', '2020-02-01Z', 'closed', now(), 7 FROM customers";
    let audit = "INSERT INTO audit_log (actor, action, subject) VALUES ('a', 'b', 'c')";
    for (role, statement, allowed) in [
        // Recording and posting.
        (INGEST, USAGE, true),
        (INGEST, &recorded, true),
        (INGEST, "UPDATE ingest_batches SET posted_at = NULL, posted_closing = NULL", true),
        (INGEST, "UPDATE ingest_batches SET rows = rows + 1", false),
        (INGEST, "DELETE FROM ingest_batches", false),
        (INGEST, "UPDATE rejections SET raw = ''", false),
        (INGEST, "DELETE FROM rejections", false),
        (INGEST, "UPDATE tasks SET calls = calls + 1", true),
        (INGEST, "DELETE FROM tasks", false),
        (INGEST, "DELETE FROM adjustment_reasons", false),
        (
            INGEST,
            "INSERT INTO billing_periods (customer_id, start_at, end_at) SELECT id, '2020-01-01Z', '2020-02-01Z' FROM customers",
            true,
        ),
        (INGEST, closed_period, false),
        (INGEST, "UPDATE billing_periods SET state = 'open'", false),
        (INGEST, "UPDATE customers SET closed_through = now()", false),
        (INGEST, "UPDATE journal_clock SET booked_on = booked_on + 1", false),
        (INGEST, "SELECT open_booking_date(DATE '2027-01-01')", true),
        (INGEST, "SELECT make_journal_partition(DATE '2027-01-01')", false),
        (INGEST, "SELECT drop_journal_partition(DATE '2026-11-01')", false),
        (INGEST, "DROP TABLE usage_events_2026_11", false),
        (INGEST, "SELECT FROM usage_events_2026_11", false),
        (INGEST, audit, true),
        (INGEST, "SELECT FROM audit_log", false),
        (INGEST, "SELECT FROM invoices", false),
        (INGEST, "INSERT INTO invoice_series (series, last_number) VALUES ('x', 1)", false),
        (INGEST, "SELECT FROM api_keys", false),
        (INGEST, KEY, false),
        (INGEST, "INSERT INTO prices (id) VALUES (7)", false),
        (INGEST, "UPDATE book_assignments SET valid_to = now()", false),
        // Customers, prices, invoices.
        (FINANCE, "UPDATE customers SET name = 'x'", true),
        (FINANCE, "UPDATE customers SET external_id = 'x'", false),
        (FINANCE, "DELETE FROM customers", false),
        (FINANCE, "UPDATE customers SET time_zone = 'UTC'", false),
        (FINANCE, KEY, true),
        (FINANCE, "UPDATE api_keys SET secret_hash = sha256('')", false),
        (FINANCE, "DELETE FROM api_keys", false),
        (FINANCE, "UPDATE prices SET superseded_at = now()", true),
        (FINANCE, "UPDATE prices SET model = 'x'", false),
        (FINANCE, "DELETE FROM prices", false),
        (FINANCE, "UPDATE model_aliases SET superseded_at = now()", true),
        (FINANCE, "UPDATE model_aliases SET model = 'x'", false),
        (FINANCE, "DELETE FROM model_aliases", false),
        (FINANCE, "SELECT FROM price_books FOR UPDATE", true),
        (FINANCE, "UPDATE price_books SET currency = 'EUR'", false),
        (FINANCE, "INSERT INTO invoice_series (series, last_number) VALUES ('x', 1)", true),
        (FINANCE, "DELETE FROM invoice_series", false),
        (FINANCE, "UPDATE invoices SET status = 'void'", false),
        (FINANCE, audit, true),
        (FINANCE, closed_period, true),
        (FINANCE, "DELETE FROM billing_periods", false),
        (FINANCE, "UPDATE rejections SET replay_requested = true", true),
        (FINANCE, "UPDATE rejections SET raw = ''", false),
        // Re-rates are added to the journal, and nothing else is.
        (FINANCE, RESTATEMENT, true),
        (FINANCE, USAGE, false),
        (FINANCE, &rerated, true),
        (FINANCE, &recorded, false),
        (FINANCE, &posted, false),
        (FINANCE, "UPDATE ingest_batches SET posted_at = NULL, posted_closing = NULL", false),
        (FINANCE, "INSERT INTO usage_events_2026_11 SELECT * FROM usage_events", false),
        (FINANCE, "UPDATE usage_rollups SET charge = 0", false),
        (FINANCE, "UPDATE tasks SET charge = 0", false),
        (FINANCE, "SELECT summarize_journal_batches()", false),
        // Reading.
        (AUDITOR, "SELECT FROM usage_events, invoices, api_keys, audit_log, differing_rollups", true),
        (AUDITOR, audit, false),
        (AUDITOR, USAGE, false),
        (AUDITOR, &rerated, false),
        (AUDITOR, "UPDATE customers SET name = 'x'", false),
        (AUDITOR, "DELETE FROM idempotency_keys", false),
        (AUDITOR, "SELECT open_booking_date(DATE '2027-01-01')", false),
        (AUDITOR, "SELECT refresh_journal_statistics()", false),
        (AUDITOR, "SELECT nextval(pg_get_serial_sequence('prices', 'id'))", false),
        (CUSTOMER, "SELECT FROM usage_events", true),
        (CUSTOMER, "SELECT FROM api_keys", false),
        (CUSTOMER, "SELECT FROM rejections", false),
        (CUSTOMER, "SELECT FROM gateways", false),
        (CUSTOMER, USAGE, false),
        (CUSTOMER, "SELECT open_booking_date(DATE '2027-01-01')", false),
    ] {
        let state = outcome(&ledger.pool, role, statement).await;
        let expected = (!allowed).then(|| REFUSED.to_owned());
        assert_eq!(state, expected, "{role}: {statement}");
    }
}

#[tokio::test]
async fn nobody_changes_what_is_final() {
    let ledger = ledger().await;
    for table in APPEND_ONLY {
        for role in ROLES {
            for statement in [format!("DELETE FROM {table}"), format!("TRUNCATE {table} CASCADE")] {
                let state = outcome(&ledger.pool, role, &statement).await;
                assert_eq!(state.as_deref(), Some(REFUSED), "{role}: {statement}");
            }
        }
    }
    // No column of them, in their partitions neither.
    let tables = APPEND_ONLY.map(|table| format!("'{table}'::regclass")).join(", ");
    let given = format!(
        "SELECT format('%s %s', role, c.oid::regclass) FROM pg_class c, unnest('{{{}}}'::text[]) AS role
         WHERE (c.oid IN ({tables}) OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'usage_events'::regclass))
           AND has_any_column_privilege(role, c.oid, 'UPDATE')",
        ROLES.join(",")
    );
    assert_eq!(names(&ledger.pool, &given).await, NOTHING);
    // The owner has the right, and is refused by the journal itself.
    for statement in
        ["UPDATE usage_events SET charge = 0", "DELETE FROM usage_events", "UPDATE audit_log SET actor = 'x'"]
    {
        if statement.contains("audit_log") {
            ledger.run("INSERT INTO audit_log (actor, action, subject) VALUES ('a', 'b', 'c')").await;
        }
        let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&ledger.pool).await.unwrap_err();
        assert_eq!(done.as_database_error().unwrap().code().unwrap(), FINAL, "{statement}");
    }
}

#[tokio::test]
async fn roles_own_nothing_and_see_every_row_but_a_customer() {
    let ledger = ledger().await;
    let able = "SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'waybill\\_%'
        AND (rolcanlogin OR rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)";
    assert_eq!(names(&ledger.pool, able).await, NOTHING);
    let there = "SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'waybill\\_%' ORDER BY rolname";
    assert_eq!(names(&ledger.pool, there).await, [AUDITOR, CUSTOMER, FINANCE, INGEST]);
    let owned = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE r.rolname LIKE 'waybill\\_%'";
    assert_eq!(names(&ledger.pool, owned).await, NOTHING);
    for role in ROLES {
        let made = outcome(&ledger.pool, role, "CREATE TABLE theirs ()").await;
        assert_eq!(made.as_deref(), Some(REFUSED), "{role}");
    }

    // What a migration adds must be given to them too.
    let protected = "SELECT oid::regclass::text FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relrowsecurity ORDER BY 1";
    let protected = names(&ledger.pool, protected).await;
    assert!(protected.len() > 15, "{protected:?}");
    for table in &protected {
        let all = ledger.count(&format!("SELECT count(*) FROM {table}")).await;
        for role in [INGEST, FINANCE, AUDITOR] {
            let readable =
                format!("SELECT has_table_privilege('{role}', '{table}', 'SELECT')::integer::bigint");
            if role == INGEST && ledger.count(&readable).await == 0 {
                continue;
            }
            let mut tx = ledger.pool.begin().await.unwrap();
            sqlx::raw_sql(AssertSqlSafe(format!("SET LOCAL ROLE {role}"))).execute(&mut *tx).await.unwrap();
            let seen: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
                .fetch_one(&mut *tx)
                .await
                .unwrap();
            assert_eq!(seen, all, "{role}: {table}");
        }
    }
    let unread = "SELECT c.oid::regclass::text FROM pg_class c, unnest('{waybill_finance,waybill_auditor}'::text[]) AS role
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT has_table_privilege(role, c.oid, 'SELECT')";
    assert_eq!(names(&ledger.pool, unread).await, NOTHING);
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events").await, 1, "there is something to see");
    let mut tx = ledger.pool.begin().await.unwrap();
    sqlx::raw_sql("SET LOCAL ROLE waybill_customer").execute(&mut *tx).await.unwrap();
    let seen: i64 =
        sqlx::query_scalar("SELECT count(*) FROM usage_events").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(seen, 0, "a customer that is not named sees nothing");
}

#[tokio::test]
async fn halves_are_expected_by_recording_and_marked_by_posting_alone() {
    let ledger = ledger().await;
    for (role, statement, allowed) in [
        (INGEST, "UPDATE half_postings SET posted_closing = 0", true),
        (INGEST, "DELETE FROM half_postings", true),
        (INGEST, "INSERT INTO half_postings SELECT id FROM ingest_batches", false),
        (FINANCE, "UPDATE half_postings SET posted_closing = 0", false),
        (FINANCE, "DELETE FROM half_postings", false),
    ] {
        let refused = outcome(&ledger.pool, role, statement).await;
        assert_eq!(refused.is_none(), allowed, "{role}: {statement}");
    }
}

#[tokio::test]
async fn what_runs_with_the_owners_rights_is_not_for_everybody() {
    let ledger = ledger().await;
    let privileged = "SELECT oid::regprocedure::text FROM pg_proc
        WHERE prosecdef AND pronamespace = 'public'::regnamespace ORDER BY 1";
    let expected = [
        "expect_half_posting()",
        "open_booking_date(date)",
        "refresh_journal_statistics()",
        "summarize_journal_batches()",
    ];
    assert_eq!(names(&ledger.pool, privileged).await, expected);
    let loose = "SELECT oid::regprocedure::text FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace
        AND (proconfig IS DISTINCT FROM '{\"search_path=public, pg_temp\"}'
             OR has_function_privilege('waybill_customer', oid, 'EXECUTE') OR has_function_privilege('waybill_auditor', oid, 'EXECUTE'))";
    assert_eq!(names(&ledger.pool, loose).await, NOTHING);
    // What they are made of is the owner's alone.
    let parts = "SELECT oid::regprocedure::text FROM pg_proc
        WHERE proname IN ('make_journal_partition', 'make_journal_partition_ahead', 'true_latest_booking_date')
          AND has_function_privilege('waybill_ingest', oid, 'EXECUTE')";
    assert_eq!(names(&ledger.pool, parts).await, NOTHING);

    // A table of the caller's that hides the owner's is passed by.
    let mut session = ledger.pool.acquire().await.unwrap();
    sqlx::raw_sql(
        "SET ROLE waybill_ingest; CREATE TEMPORARY TABLE journal_clock (only_row boolean PRIMARY KEY, booked_on date);
         SELECT open_booking_date(DATE '2027-01-01'); RESET ROLE",
    )
    .execute(&mut *session)
    .await
    .unwrap();
    assert_eq!(
        ledger.count("SELECT count(*) FROM public.journal_clock WHERE booked_on = '2027-01-01'").await,
        1
    );
    // Partitions that the service asks for are the owner's.
    let owners = "SELECT DISTINCT tableowner::text FROM pg_tables WHERE tablename LIKE 'usage_events_2027%'";
    let owner = names(&ledger.pool, "SELECT current_user::text").await;
    assert_eq!(names(&ledger.pool, owners).await, owner);

    let mut tx = ledger.database.begin_ingest().await.unwrap();
    posting::summarize(&mut tx).await.unwrap();
}

#[tokio::test]
async fn nothing_is_copied_into_a_partition_that_is_not_in_the_journal() {
    let ledger = ledger().await;
    let day = "2026-11-23".parse().unwrap();
    let copied = async || {
        let mut tx = ledger.database.begin_ingest().await.unwrap();
        journal::copy_events(&mut tx, BatchId(1), day, std::iter::empty()).await
    };
    assert_eq!(copied().await.unwrap(), 0);
    // It is a table still, and the role may add to it.
    ledger.run("ALTER TABLE usage_events DETACH PARTITION usage_events_2026_11").await;
    let error = copied().await.unwrap_err();
    assert!(matches!(error, StoreError::NoPartition(missing) if missing == day), "{error}");
    assert!(error.retryable(), "it is no fault of the events: none is rejected for it");
}

/// The role of a session and its bounds.
async fn bounds(connection: &mut sqlx::PgConnection) -> [String; 4] {
    let (role, statement, lock, idle) = sqlx::query_as::<_, (String, String, String, String)>(
        "SELECT current_user::text, current_setting('statement_timeout'), current_setting('lock_timeout'),
                current_setting('idle_in_transaction_session_timeout')",
    )
    .fetch_one(connection)
    .await
    .unwrap();
    [role, statement, lock, idle]
}

#[tokio::test]
async fn what_is_looked_up_is_what_is_there_whatever_the_database_has_for_its_default() {
    let bed = TestBed::new().await;
    let database = bed.database_url.rsplit_once('/').unwrap().1;
    bed.run(&format!("ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")).await;
    let database = Database::connect(&bed.database_url).await.unwrap();
    for mut tx in [database.begin_ingest().await.unwrap(), database.begin().await.unwrap()] {
        let isolation: String = sqlx::query_scalar("SELECT current_setting('transaction_isolation')")
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        assert_eq!(isolation, "read committed");
    }
}

#[tokio::test]
async fn sessions_have_the_role_and_the_bounds_of_their_side() {
    let bed = TestBed::new().await;
    let mut tx = bed.database.begin_ingest().await.unwrap();
    assert_eq!(bounds(&mut tx).await, [INGEST, "30s", "10s", "15s"]);
    // What is reset goes back to the role, not to the login.
    sqlx::raw_sql("RESET ROLE").execute(&mut *tx).await.unwrap();
    assert_eq!(bounds(&mut tx).await[0], INGEST);
    let mut tx = bed.database.begin().await.unwrap();
    assert_eq!(bounds(&mut tx).await, [FINANCE, "15s", "10s", "15s"]);
    let finance = bed.database.read(Scope::Everything).await.unwrap();
    drop(finance);
    // However often a connection serves a customer, the next request is finance's again.
    for _ in 0..20 {
        let mut tx = bed.database.read(Scope::Customer(CustomerId(1))).await.unwrap();
        assert_eq!(bounds(&mut tx).await, [CUSTOMER, "10s", "1s", "15s"]);
        tx.rollback().await.unwrap();
        let mut tx = bed.database.read(Scope::Everything).await.unwrap();
        assert_eq!(bounds(&mut tx).await, [FINANCE, "15s", "10s", "15s"]);
        tx.rollback().await.unwrap();
    }
    for (rights, role) in [(Rights::Auditor, AUDITOR), (Rights::Owner, "waybill")] {
        let database = Database::connect_as(&bed.database_url, rights).await.unwrap();
        for mut tx in [database.begin_ingest().await.unwrap(), database.begin().await.unwrap()] {
            assert_eq!(bounds(&mut tx).await[0], role);
        }
    }
}
