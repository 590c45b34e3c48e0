//! Who calls: API keys as Bearer tokens, and roles as types.

use std::marker::PhantomData;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

use super::AppState;
use super::problem::{FORBIDDEN, Problem, UNAUTHENTICATED};
use crate::domain::access::{Role, Token};
use crate::domain::ids::ApiKeyId;
use crate::store::api_keys::{self, Holder};
use crate::store::{Scope, Tx};

/// A caller whose key was checked.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The key in the database.
    pub key: ApiKeyId,
    /// The half of the key that may be shown and logged; the actor in the audit log.
    pub public_id: String,
    /// Whom it speaks for.
    pub holder: Holder,
    /// What cursors are bound with.
    pub(super) secret_hash: [u8; 32],
}

impl Caller {
    /// What this caller may see: a customer its own rows under row-level security, finance everything.
    ///
    /// A gateway sees nothing of customers; no operation that reads them admits its role.
    pub const fn scope(&self) -> Scope {
        match &self.holder {
            Holder::Customer { id, .. } => Scope::Customer(*id),
            Holder::Gateway { .. } | Holder::Finance | Holder::Admin => Scope::Everything,
        }
    }

    /// Whether cost and margin may be shown.
    pub const fn sees_cost(&self) -> bool {
        matches!(self.holder, Holder::Finance | Holder::Admin)
    }
}

/// The roles that may call an operation; implemented by the marker types of this module.
pub trait Access: Send + Sync + 'static {
    /// The roles.
    const ROLES: &'static [Role];
}

macro_rules! access {
    ($($(#[$doc:meta])* $name:ident: $($role:ident)|+;)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Access for $name {
            const ROLES: &'static [Role] = &[$(Role::$role),+];
        }
    )+};
}

access! {
    /// Gateways only: nobody else can say what a gateway saw.
    Gateway: Gateway;
    /// Gateways for their own, finance and admins for all.
    GatewayOrFinance: Gateway | Finance | Admin;
    /// Customers for their own, finance and admins for all.
    Reader: Customer | Finance | Admin;
    /// Finance, and admins.
    Finance: Finance | Admin;
    /// Admins only.
    Admin: Admin;
}

/// Proof that the caller's role is one of `R`'s: a handler's signature says who may call it.
#[derive(Debug, Clone)]
pub struct Auth<R> {
    /// The caller.
    pub caller: Caller,
    access: PhantomData<R>,
}

impl<R: Access> FromRequestParts<AppState> for Auth<R> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let caller = authenticate(state, bearer(&parts.headers)?).await?;
        let role = caller.holder.role();
        if !R::ROLES.contains(&role) {
            tracing::warn!(api_key.id = %caller.public_id, %role, "operation refused to this role");
            let allowed: Vec<&str> = R::ROLES.iter().map(|role| role.as_str()).collect();
            return Err(Problem::new(
                &FORBIDDEN,
                format!("A key of role `{role}` may not do this; it takes {}.", allowed.join(" or ")),
            ));
        }
        Ok(Self { caller, access: PhantomData })
    }
}

/// A read of the caller: its key checked, and a snapshot of what it may see.
#[derive(Debug)]
pub struct Read<R> {
    /// The caller.
    pub caller: Caller,
    /// A read-only transaction in the caller's scope.
    pub tx: Tx,
    access: PhantomData<R>,
}

impl<R: Access> FromRequestParts<AppState> for Read<R> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let Auth { caller, access } = Auth::<R>::from_request_parts(parts, state).await?;
        let tx = state.db.read(caller.scope()).await?;
        Ok(Self { caller, tx, access })
    }
}

/// Checks a token (`wb_…`) and says whose it is.
///
/// # Errors
/// The same problem for a token that is malformed, unknown, or has another secret; one that says so where the secret is
/// right but the key is revoked or expired; 503 where the database does not answer.
pub async fn authenticate(state: &AppState, token: &str) -> Result<Caller, Problem> {
    let token = Token::parse(token).ok_or_else(refused)?;
    let mut tx = state.db.read(Scope::Everything).await?;
    let found = api_keys::find(&mut tx, token.public_id).await?;
    // The same work whether the public id exists or not.
    let presented = token.secret_hash();
    let stored = found.as_ref().map_or([0; 32], |credential| credential.secret_hash);
    let same: bool = presented.ct_eq(&stored).into();
    let credential = found.filter(|_| same).ok_or_else(refused)?;
    if credential.revoked_at.is_some() {
        return Err(Problem::new(&UNAUTHENTICATED, "This API key was revoked."));
    }
    if credential.expires_at.is_some_and(|at| at <= state.clock.now()) {
        return Err(Problem::new(&UNAUTHENTICATED, "This API key has expired."));
    }
    Ok(Caller {
        key: credential.id,
        public_id: token.public_id.to_owned(),
        holder: credential.holder,
        secret_hash: credential.secret_hash,
    })
}

/// The token of the one Authorization header.
fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(refused()) };
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(refused)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token) } else { Err(refused()) }
}

fn refused() -> Problem {
    Problem::new(&UNAUTHENTICATED, "Send one header `Authorization: Bearer wb_…` with a valid API key.")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (header::AUTHORIZATION, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn one_bearer_header_is_taken() {
        assert_eq!(bearer(&headers(&["Bearer wb_x"])).unwrap(), "wb_x");
        assert_eq!(bearer(&headers(&["bearer wb_x"])).unwrap(), "wb_x");
    }

    #[test]
    fn anything_else_is_unauthenticated() {
        let cases: [&[&'static str]; 5] =
            [&[], &["Basic d2I6eA=="], &["wb_x"], &["Bearer"], &["Bearer wb_x", "Bearer wb_x"]];
        for case in cases {
            assert_eq!(bearer(&headers(case)).unwrap_err().code(), "unauthenticated", "{case:?}");
        }
    }
}
