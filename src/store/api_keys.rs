//! API keys: looked up by public id, compared by the hash of their secret, shown once.

use chrono::{DateTime, Utc};
use rand::distr::{Alphanumeric, SampleString};
use serde::Serialize;
use sqlx::PgConnection;

use super::{StoreError, customers, gateways};
use crate::domain::access::{PUBLIC_ID_CHARS, Role, SECRET_CHARS, TOKEN_PREFIX, Token};
use crate::domain::ids::{ApiKeyId, CustomerId, GatewayId};

/// Whom a key speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// One gateway.
    Gateway {
        /// Its key.
        id: GatewayId,
        /// Its name.
        name: String,
        /// Its wider acceptance window.
        backfill_from: Option<DateTime<Utc>>,
    },
    /// One customer.
    Customer {
        /// Its key.
        id: CustomerId,
        /// Its external id.
        external_id: String,
    },
    /// Finance.
    Finance,
    /// An administrator.
    Admin,
}

impl Holder {
    /// The role.
    pub const fn role(&self) -> Role {
        match self {
            Self::Gateway { .. } => Role::Gateway,
            Self::Customer { .. } => Role::Customer,
            Self::Finance => Role::Finance,
            Self::Admin => Role::Admin,
        }
    }
}

/// A key as authentication needs it.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Its key in the database.
    pub id: ApiKeyId,
    /// SHA-256 of its secret.
    pub secret_hash: [u8; 32],
    /// Whom it speaks for.
    pub holder: Holder,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// A key as lists show it.
#[derive(Debug, Clone)]
pub struct KeyRow {
    /// Its key in the database.
    pub id: ApiKeyId,
    /// The half that may be shown.
    pub public_id: String,
    /// What it is for, in words.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The gateway's name.
    pub gateway: Option<String>,
    /// The customer's external id.
    pub customer: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Whom a new key speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewHolder {
    /// One gateway.
    Gateway(GatewayId),
    /// One customer.
    Customer(CustomerId),
    /// Finance.
    Finance,
    /// An administrator.
    Admin,
}

/// A key as it is asked for; the audit log keeps it in this form.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct AskedKey<'a> {
    /// What it may do.
    pub role: Role,
    /// What it is for, in words.
    pub name: &'a str,
    /// The name of the gateway it speaks for.
    pub gateway: Option<&'a str>,
    /// The external id of the customer it speaks for.
    pub customer: Option<&'a str>,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Why there is nobody that a key could speak for.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// What was named does not go with the role, or does not exist.
    #[error("{detail}")]
    Named {
        /// What of [`AskedKey`] is wrong.
        field: &'static str,
        /// The sentence.
        detail: String,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AskedKey<'_> {
    /// Whom it speaks for. A gateway or customer beside a role that takes none is refused, never left out: whoever names one
    /// wants a key that may do no more than that.
    ///
    /// # Errors
    /// [`HolderError`].
    pub async fn holder(&self, connection: &mut PgConnection) -> Result<NewHolder, HolderError> {
        let wrong = |field, detail: String| Err(HolderError::Named { field, detail });
        match (self.role, self.gateway, self.customer) {
            (Role::Gateway, Some(name), None) => match gateways::id_of(connection, name).await? {
                Some(id) => Ok(NewHolder::Gateway(id)),
                None => wrong("gateway", format!("there is no gateway `{name}`")),
            },
            (Role::Customer, None, Some(external_id)) => {
                match customers::by_external_id(connection, external_id).await? {
                    Some(row) => Ok(NewHolder::Customer(row.id)),
                    None => wrong("customer", format!("there is no customer `{external_id}`")),
                }
            }
            (Role::Finance, None, None) => Ok(NewHolder::Finance),
            (Role::Admin, None, None) => Ok(NewHolder::Admin),
            (Role::Gateway, ..) => {
                wrong("gateway", "a key of role `gateway` names a gateway and no customer".to_owned())
            }
            (Role::Customer, ..) => {
                wrong("customer", "a key of role `customer` names a customer and no gateway".to_owned())
            }
            (Role::Finance | Role::Admin, ..) => wrong(
                "role",
                "a key of role `finance` or `admin` names neither a gateway nor a customer".to_owned(),
            ),
        }
    }
}

/// A key that was just made.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its key in the database.
    pub id: ApiKeyId,
    /// The half that may be shown.
    pub public_id: String,
    /// The whole token: shown once, never stored.
    pub token: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// The key with a public id, whatever its state.
///
/// # Errors
/// [`StoreError::Database`]; [`StoreError::Inconsistent`] where the row cannot be read.
pub async fn find(connection: &mut PgConnection, public_id: &str) -> Result<Option<Credential>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT k.id, k.secret_hash, k.role, k.expires_at, k.revoked_at,
                  k.gateway_id, g.name AS "gateway?", g.backfill_from,
                  k.customer_id, c.external_id AS "customer?"
           FROM api_keys k
           LEFT JOIN gateways g ON g.id = k.gateway_id
           LEFT JOIN customers c ON c.id = k.customer_id
           WHERE k.public_id = $1"#,
        public_id
    )
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let holder = match (role(&row.role)?, row.gateway_id, row.gateway, row.customer_id, row.customer) {
        (Role::Gateway, Some(id), Some(name), None, None) => {
            Holder::Gateway { id: GatewayId(id), name, backfill_from: row.backfill_from }
        }
        (Role::Customer, None, None, Some(id), Some(external_id)) => {
            Holder::Customer { id: CustomerId(id), external_id }
        }
        (Role::Finance, None, None, None, None) => Holder::Finance,
        (Role::Admin, None, None, None, None) => Holder::Admin,
        _ => return Err(inconsistent("role", format!("key {} has no fitting holder", row.id))),
    };
    let secret_hash = row
        .secret_hash
        .try_into()
        .map_err(|_| inconsistent("secret_hash", format!("key {} has a hash of another length", row.id)))?;
    Ok(Some(Credential {
        id: ApiKeyId(row.id),
        secret_hash,
        holder,
        expires_at: row.expires_at,
        revoked_at: row.revoked_at,
    }))
}

/// Makes a key with a random secret.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn create(
    connection: &mut PgConnection,
    holder: NewHolder,
    name: &str,
    expires_at: Option<DateTime<Utc>>,
) -> Result<NewKey, StoreError> {
    let (role, gateway, customer) = match holder {
        NewHolder::Gateway(id) => (Role::Gateway, Some(id.0), None),
        NewHolder::Customer(id) => (Role::Customer, None, Some(id.0)),
        NewHolder::Finance => (Role::Finance, None, None),
        NewHolder::Admin => (Role::Admin, None, None),
    };
    let public_id = Alphanumeric.sample_string(&mut rand::rng(), PUBLIC_ID_CHARS);
    let secret = Alphanumeric.sample_string(&mut rand::rng(), SECRET_CHARS);
    let token = format!("{TOKEN_PREFIX}{public_id}_{secret}");
    let hash = Token::parse(&token)
        .ok_or_else(|| inconsistent("public_id", "a made token must have the form of one".to_owned()))?
        .secret_hash();
    let row = sqlx::query!(
        "INSERT INTO api_keys (public_id, secret_hash, role, gateway_id, customer_id, name, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id, created_at",
        public_id,
        hash.as_slice(),
        role.as_str(),
        gateway,
        customer,
        name,
        expires_at
    )
    .fetch_one(connection)
    .await?;
    Ok(NewKey { id: ApiKeyId(row.id), public_id, token, created_at: row.created_at })
}

/// Keys by their order of making, after a key, at most `limit`; `role` narrows.
///
/// # Errors
/// [`StoreError::Database`]; [`StoreError::Inconsistent`] where a row cannot be read.
pub async fn list(
    connection: &mut PgConnection,
    role: Option<Role>,
    after: Option<ApiKeyId>,
    limit: i64,
) -> Result<Vec<KeyRow>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT k.id, k.public_id, k.name, k.role, g.name AS "gateway?", c.external_id AS "customer?",
                  k.created_at, k.expires_at, k.revoked_at
           FROM api_keys k
           LEFT JOIN gateways g ON g.id = k.gateway_id
           LEFT JOIN customers c ON c.id = k.customer_id
           WHERE ($1::text IS NULL OR k.role = $1) AND ($2::bigint IS NULL OR k.id > $2)
           ORDER BY k.id LIMIT $3"#,
        role.map(Role::as_str),
        after.map(|id| id.0),
        limit
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(KeyRow {
                id: ApiKeyId(row.id),
                public_id: row.public_id,
                name: row.name,
                role: self::role(&row.role)?,
                gateway: row.gateway,
                customer: row.customer,
                created_at: row.created_at,
                expires_at: row.expires_at,
                revoked_at: row.revoked_at,
            })
        })
        .collect()
}

/// Revokes a key, once; `false` where there is none with this public id.
///
/// # Errors
/// [`StoreError::Database`].
pub async fn revoke(
    connection: &mut PgConnection,
    public_id: &str,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let revoked = sqlx::query!(
        "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $2) WHERE public_id = $1",
        public_id,
        now
    )
    .execute(connection)
    .await?;
    Ok(revoked.rows_affected() == 1)
}

fn role(text: &str) -> Result<Role, StoreError> {
    text.parse().map_err(|error: crate::domain::access::UnknownRole| inconsistent("role", error.to_string()))
}

const fn inconsistent(column: &'static str, detail: String) -> StoreError {
    StoreError::Inconsistent { table: "api_keys", column, detail }
}
