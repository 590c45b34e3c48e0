//! Who did what through the API; append-only.

use serde_json::Value;
use sqlx::PgConnection;

use super::StoreError;

/// Writes down an act, in the transaction of its effect: `actor` is the public id of an API key or the name of a job,
/// `action` a verb with its resource (`customer.create`), `subject` what it was done to.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn record(
    connection: &mut PgConnection,
    actor: &str,
    action: &str,
    subject: &str,
    detail: Option<Value>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO audit_log (actor, action, subject, detail) VALUES ($1, $2, $3, $4)",
        actor,
        action,
        subject,
        detail
    )
    .execute(connection)
    .await?;
    Ok(())
}
