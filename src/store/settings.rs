//! Which settings of the PostgreSQL server would lose recorded usage, or keep the program from working, and whether it has the
//! time zones of all customers.

use sqlx::PgConnection;

use super::roles::Side;
use super::{Database, MIGRATOR, Scope, StoreError};

/// The oldest server that the schema works with.
const VERSION_LEAST: i32 = 150_000;
/// Connections that one process needs: its pools, and one for its watchdog.
const CONNECTIONS_LEAST: i64 = Side::Ingest.connections() as i64 + Side::Api.connections() as i64 + 1;

/// SQLSTATE of a table that does not exist, and of one that the role may not read: before the schema had roles.
const NO_MIGRATIONS: [&str; 2] = ["42P01", "42501"];

/// A setting of the server that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongServer {
    /// Its name.
    pub setting: &'static str,
    /// What it is and what it must be.
    pub detail: String,
}

/// What the server says about itself.
#[derive(Debug, Default)]
pub struct ServerSettings {
    /// What is wrong.
    pub wrong: Vec<WrongServer>,
    /// What keeps posting from going on. Recording needs none of it.
    pub unposted: Option<WrongServer>,
    /// What should be better: a sentence for the log.
    pub doubt: Option<&'static str>,
}

/// As this session has them, with what its role and database set.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
struct Settings {
    version: i32,
    fsync: bool,
    full_page_writes: bool,
    synchronous_commit: String,
    zero_damaged_pages: bool,
    ignore_checksum_failure: bool,
    data_checksums: bool,
    encoding: String,
    standby: bool,
    read_only: bool,
    row_security: bool,
    replication_role: String,
    /// Roles of the service that row-level security does not hold for.
    unbound_roles: Option<String>,
    connections: i64,
    /// Zones of customers that the server does not know.
    unknown_zones: Option<String>,
}

/// Looks at the settings of the server; `durable` asks that a power failure takes no committed transaction.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn look(connection: &mut PgConnection, durable: bool) -> Result<ServerSettings, StoreError> {
    let settings = sqlx::query_as!(
        Settings,
        r#"SELECT current_setting('server_version_num')::integer AS "version!",
                  current_setting('fsync')::boolean AS "fsync!",
                  current_setting('full_page_writes')::boolean AS "full_page_writes!",
                  current_setting('synchronous_commit') AS "synchronous_commit!",
                  current_setting('zero_damaged_pages')::boolean AS "zero_damaged_pages!",
                  current_setting('ignore_checksum_failure')::boolean AS "ignore_checksum_failure!",
                  current_setting('data_checksums')::boolean AS "data_checksums!",
                  current_setting('server_encoding') AS "encoding!",
                  pg_is_in_recovery() AS "standby!",
                  current_setting('default_transaction_read_only')::boolean AS "read_only!",
                  current_setting('row_security')::boolean AS "row_security!",
                  current_setting('session_replication_role') AS "replication_role!",
                  (SELECT string_agg(rolname::text, ', ' ORDER BY rolname) FROM pg_roles
                   WHERE rolname IN ('waybill_customer', 'waybill_ingest', 'waybill_finance')
                     AND (rolsuper OR rolbypassrls)) AS unbound_roles,
                  -- What the server, the database and the role allow, whichever is least.
                  LEAST(current_setting('max_connections')::bigint
                            - current_setting('superuser_reserved_connections')::bigint
                            - COALESCE(current_setting('reserved_connections', true), '0')::bigint,
                        (SELECT NULLIF(datconnlimit, -1) FROM pg_database WHERE datname = current_database()),
                        (SELECT NULLIF(rolconnlimit, -1) FROM pg_roles WHERE rolname = session_user)) AS "connections!",
                  (SELECT string_agg(zone, ', ' ORDER BY zone) FROM (SELECT DISTINCT time_zone FROM customers) AS used (zone)
                   WHERE NOT knows_time_zone(zone)) AS unknown_zones"#
    )
    .fetch_one(connection)
    .await?;
    Ok(settings.judged(durable))
}

/// Whether the schema has every migration that this program knows; one that has more is of a newer release, and is fine.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn schema_is_current(database: &Database) -> Result<bool, StoreError> {
    let mut tx = database.read(Scope::Everything).await?;
    let newest = sqlx::query_scalar!("SELECT max(version) FROM _sqlx_migrations WHERE success")
        .fetch_one(&mut *tx)
        .await
        .map_err(StoreError::from);
    match newest {
        Ok(newest) => Ok(newest >= MIGRATOR.iter().map(|migration| migration.version).max()),
        Err(error) if error.sqlstate().is_some_and(|state| NO_MIGRATIONS.contains(&state.as_str())) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

impl Settings {
    fn judged(&self, durable: bool) -> ServerSettings {
        let mut wrong = Vec::new();
        let mut refuse = |setting, is_wrong: bool, detail: String| {
            if is_wrong {
                wrong.push(WrongServer { setting, detail });
            }
        };
        let version = format!("is {}, must be {VERSION_LEAST} or more", self.version);
        refuse("server_version_num", self.version < VERSION_LEAST, version);
        let accepted = "(WAYBILL_POSTGRES_DURABILITY=any accepts that)";
        let off =
            format!("is off, must be on: a power failure would take recorded usage or damage it {accepted}");
        refuse("fsync", durable && !self.fsync, off.clone());
        refuse("full_page_writes", durable && !self.full_page_writes, off);
        refuse(
            "synchronous_commit",
            durable && ["off", "local"].contains(&self.synchronous_commit.as_str()),
            format!(
                "is {}, must be on: a failure would take usage whose messages are acknowledged {accepted}",
                self.synchronous_commit
            ),
        );
        let hides = "is on, must be off: it turns damaged pages into missing usage";
        refuse("zero_damaged_pages", self.zero_damaged_pages, hides.to_owned());
        refuse("ignore_checksum_failure", self.ignore_checksum_failure, hides.to_owned());
        let encoding = format!("is {}, must be UTF8: make the database anew with it", self.encoding);
        refuse("server_encoding", self.encoding != "UTF8", encoding);
        let standby = "is on: this is a standby, which takes no usage; waiting until it is promoted or the address leads to the primary";
        refuse("in_recovery", self.standby, standby.to_owned());
        let read_only = "is on, must be off for the role and the database of Waybill";
        refuse("default_transaction_read_only", self.read_only, read_only.to_owned());
        let row_security = "is off, must be on for the role and the database of Waybill";
        refuse("row_security", !self.row_security, row_security.to_owned());
        refuse(
            "session_replication_role",
            self.replication_role != "origin",
            format!(
                "is {}, must be origin for the role and the database of Waybill: triggers guard what is final",
                self.replication_role
            ),
        );
        refuse(
            "roles",
            self.unbound_roles.is_some(),
            format!(
                "{} may see every customer's rows, must not: ALTER ROLE ... NOSUPERUSER NOBYPASSRLS",
                self.unbound_roles.as_deref().unwrap_or_default()
            ),
        );
        refuse(
            "max_connections",
            self.connections < CONNECTIONS_LEAST,
            format!(
                "leaves {} connections, must leave {CONNECTIONS_LEAST}, and as many for each further process of Waybill",
                self.connections
            ),
        );
        let doubt = (durable && !self.data_checksums).then_some(
            "PostgreSQL has no data checksums: a damaged disk would not be noticed; make it with initdb --data-checksums, or run pg_checksums --enable",
        );
        let unposted = self.unknown_zones.as_ref().map(|zones| WrongServer {
            setting: "time_zone",
            detail: format!(
                "of customers is {zones}, which the server does not know: install the zones that it lacks (Debian has older names in tzdata-legacy), or use the image it had before"
            ),
        });
        ServerSettings { wrong, unposted, doubt }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Settings {
        Settings {
            version: 170_002,
            fsync: true,
            full_page_writes: true,
            synchronous_commit: "on".to_owned(),
            zero_damaged_pages: false,
            ignore_checksum_failure: false,
            data_checksums: true,
            encoding: "UTF8".to_owned(),
            standby: false,
            read_only: false,
            row_security: true,
            replication_role: "origin".to_owned(),
            unbound_roles: None,
            connections: 97,
            unknown_zones: None,
        }
    }

    fn named(settings: &Settings, durable: bool) -> Vec<&'static str> {
        settings.judged(durable).wrong.into_iter().map(|wrong| wrong.setting).collect()
    }

    #[test]
    fn every_wrong_setting_is_named() {
        let none: [&str; 0] = [];
        assert_eq!(named(&good(), true), none);
        assert!(good().judged(true).doubt.is_none());
        let lossy = Settings {
            fsync: false,
            full_page_writes: false,
            synchronous_commit: "local".to_owned(),
            data_checksums: false,
            ..good()
        };
        assert_eq!(named(&lossy, true), ["fsync", "full_page_writes", "synchronous_commit"]);
        assert_eq!(named(&lossy, false), none, "nobody asked for more");
        assert!(lossy.judged(true).doubt.is_some());
        let broken = Settings {
            version: 140_011,
            zero_damaged_pages: true,
            ignore_checksum_failure: true,
            encoding: "SQL_ASCII".to_owned(),
            standby: true,
            read_only: true,
            row_security: false,
            replication_role: "replica".to_owned(),
            unbound_roles: Some("waybill_customer".to_owned()),
            connections: 10,
            ..good()
        };
        assert_eq!(
            named(&broken, false),
            [
                "server_version_num",
                "zero_damaged_pages",
                "ignore_checksum_failure",
                "server_encoding",
                "in_recovery",
                "default_transaction_read_only",
                "row_security",
                "session_replication_role",
                "roles",
                "max_connections"
            ]
        );
    }

    #[test]
    fn zones_that_the_server_does_not_know_keep_posting_and_not_recording() {
        assert_eq!(good().judged(true).unposted, None);
        let older = Settings { unknown_zones: Some("NZ, US/Eastern".to_owned()), ..good() };
        let ServerSettings { wrong, unposted, .. } = older.judged(true);
        assert_eq!(wrong, []);
        assert!(unposted.is_some_and(|unposted| unposted.detail.contains("NZ, US/Eastern")));
    }
}
