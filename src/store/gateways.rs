//! Gateways, and the holes in their own counts.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::StoreError;
use crate::domain::ids::GatewayId;

/// A gateway.
#[derive(Debug, Clone)]
pub struct GatewayRow {
    /// Its key.
    pub id: GatewayId,
    /// Its name, the last token of its subject.
    pub name: String,
    /// Its wider acceptance window.
    pub backfill_from: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Events it has counted that never arrived, up to 2^63 - 1.
    pub missing: i64,
    /// Events that carried the number of another.
    pub repeated: i64,
    /// Events whose number is not followed, because it opened too many epochs or left too many holes.
    pub unfollowed: i64,
}

/// Consecutive numbers of a gateway's own count that never arrived.
#[derive(Debug, Clone)]
pub struct HoleRow {
    /// Whose.
    pub gateway: GatewayId,
    /// The count's epoch.
    pub epoch: String,
    /// First missing number.
    pub first: i64,
    /// Last missing number.
    pub last: i64,
}

/// Makes a gateway.
///
/// # Errors
/// [`StoreError::Database`] with the constraint `gateways_name_key` where the name is taken.
pub async fn create(
    connection: &mut PgConnection,
    name: &str,
    backfill_from: Option<DateTime<Utc>>,
) -> Result<GatewayRow, StoreError> {
    let row = sqlx::query_as!(
        GatewayRow,
        r#"INSERT INTO gateways (name, backfill_from) VALUES ($1, $2)
           RETURNING id AS "id: GatewayId", name, backfill_from, created_at, 0::bigint AS "missing!",
                     0::bigint AS "repeated!", 0::bigint AS "unfollowed!""#,
        name,
        backfill_from
    )
    .fetch_one(connection)
    .await?;
    Ok(row)
}

/// The key of the gateway with a name.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn id_of(connection: &mut PgConnection, name: &str) -> Result<Option<GatewayId>, StoreError> {
    let id = sqlx::query_scalar!(r#"SELECT id AS "id: GatewayId" FROM gateways WHERE name = $1"#, name)
        .fetch_optional(connection)
        .await?;
    Ok(id)
}

/// Gateways in order of their names, after one, at most `limit`; `name` narrows to one.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn list(
    connection: &mut PgConnection,
    name: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<GatewayRow>, StoreError> {
    let rows = sqlx::query_as!(
        GatewayRow,
        r#"SELECT g.id AS "id: GatewayId", g.name, g.backfill_from, g.created_at,
                  -- A few jumps to absurd numbers add up to more than 64 bits hold.
                  LEAST(COALESCE((SELECT SUM(upper(hole) - lower(hole))
                                  FROM gateway_sequences s,
                                       unnest(int8multirange(int8range(1, upper(s.seen))) - s.seen) AS hole
                                  WHERE s.gateway_id = g.id), 0), 9223372036854775807)::bigint AS "missing!",
                  COALESCE((SELECT SUM(repeated) FROM gateway_sequences s WHERE s.gateway_id = g.id), 0)::bigint
                      AS "repeated!",
                  COALESCE((SELECT events FROM gateway_floods f WHERE f.gateway_id = g.id), 0) AS "unfollowed!"
           FROM gateways g
           WHERE ($1::text IS NULL OR g.name = $1) AND ($2::text IS NULL OR g.name > $2)
           ORDER BY g.name LIMIT $3"#,
        name,
        after,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// How far the counts of gateways had come when they were looked at, epoch by epoch; only those in which something was missing:
/// below the end of another nothing ever will be.
#[derive(Debug, Clone, Default)]
pub struct Heads {
    gateways: Vec<i32>,
    epochs: Vec<String>,
    /// The number after the last one.
    ends: Vec<i64>,
}

/// How far the counts have come in which something is missing.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn heads(connection: &mut PgConnection) -> Result<Heads, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT gateway_id, epoch, upper(seen) AS "end!" FROM gateway_sequences
           WHERE NOT isempty(seen) AND NOT seen @> int8range(1, upper(seen))"#
    )
    .fetch_all(connection)
    .await?;
    let mut heads = Heads::default();
    for row in rows {
        heads.gateways.push(row.gateway_id);
        heads.epochs.push(row.epoch);
        heads.ends.push(row.end);
    }
    Ok(heads)
}

/// The gateways in order of their names, each with how many of its numbers are missing below what its counts had come to then.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn missing_below(
    connection: &mut PgConnection,
    heads: &Heads,
) -> Result<Vec<(String, i64)>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT g.name, LEAST(COALESCE(h.numbers, 0), 9223372036854775807)::bigint AS "missing!"
           FROM gateways g
           LEFT JOIN (SELECT s.gateway_id, SUM(upper(hole) - lower(hole)) AS numbers
                      FROM unnest($1::integer[], $2::text[], $3::bigint[]) AS k (gateway_id, epoch, end_at)
                      JOIN gateway_sequences s ON s.gateway_id = k.gateway_id AND s.epoch = k.epoch,
                           unnest(int8multirange(int8range(1, k.end_at)) - s.seen) AS hole
                      GROUP BY s.gateway_id) h ON h.gateway_id = g.id
           ORDER BY g.name"#,
        &heads.gateways,
        &heads.epochs,
        &heads.ends
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.name, row.missing)).collect())
}

/// Holes of some gateways, in order of gateway, epoch and number, at most `limit` of each.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn holes(
    connection: &mut PgConnection,
    gateways: &[GatewayId],
    limit: i64,
) -> Result<Vec<HoleRow>, StoreError> {
    let gateways: Vec<i32> = gateways.iter().map(|id| id.0).collect();
    let rows = sqlx::query_as!(
        HoleRow,
        r#"SELECT g.id AS "gateway!: GatewayId", h.epoch AS "epoch!", h.first AS "first!", h.last AS "last!"
           FROM unnest($1::integer[]) AS g(id),
                LATERAL (SELECT s.epoch, lower(hole) AS first, upper(hole) - 1 AS last
                         FROM gateway_sequences s, unnest(int8multirange(int8range(1, upper(s.seen))) - s.seen) AS hole
                         WHERE s.gateway_id = g.id
                         ORDER BY s.epoch, hole LIMIT $2) AS h
           ORDER BY 1, 2, 3"#,
        &gateways,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Sets the wider acceptance window, or takes it away; `false` where there is no such gateway.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn set_backfill(
    connection: &mut PgConnection,
    name: &str,
    backfill_from: Option<DateTime<Utc>>,
) -> Result<bool, StoreError> {
    let result = sqlx::query!("UPDATE gateways SET backfill_from = $2 WHERE name = $1", name, backfill_from)
        .execute(connection)
        .await?;
    Ok(result.rows_affected() == 1)
}
