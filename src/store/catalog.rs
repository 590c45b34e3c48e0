//! The version of the catalog: prices, customers, gateways and assignments as one.

use sqlx::PgConnection;

use super::StoreError;

/// The current version.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn version(connection: &mut PgConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!("SELECT version FROM catalog_version").fetch_one(connection).await?)
}

/// The current version, kept so until the transaction ends: whoever counts it up waits for that. Asked for before the journal's
/// lock, because that may be waited for by somebody who holds the version.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn hold(connection: &mut PgConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!("SELECT version FROM catalog_version FOR SHARE").fetch_one(connection).await?)
}

/// Counts the version up: called in every transaction that changes what events are rated with, so that consumers load
/// the catalog again and unpriced rejections are tried again. To the microseconds of now, or by one: a database that was
/// restored, or a standby that trailed, must not come to a version again that somebody still holds another catalog of.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn bump(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let version = sqlx::query_scalar!(
        "UPDATE catalog_version
         SET version = GREATEST(version + 1, trunc(extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
         RETURNING version"
    )
    .fetch_one(connection)
    .await?;
    Ok(version)
}
