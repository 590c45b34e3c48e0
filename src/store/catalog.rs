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

/// Counts the version up: called in every transaction that changes what events are rated with, so that consumers load
/// the catalog again and unpriced rejections are tried again.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn bump(connection: &mut PgConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!("UPDATE catalog_version SET version = version + 1 RETURNING version")
        .fetch_one(connection)
        .await?)
}
