//! What the subcommands other than `serve` and `dev` do.

use anyhow::Context;

use crate::config::{DatabaseArgs, KeyArgs, NatsArgs};
use crate::domain::access::Role;
use crate::store::api_keys::{self, NewHolder};
use crate::store::{Database, commit, customers, gateways};

/// Connects to the ledger of a one-off command.
///
/// # Errors
/// A sentence that says which setting to check.
pub async fn database(args: &DatabaseArgs) -> anyhow::Result<Database> {
    Database::connect(&args.database_url).await.context("cannot connect to PostgreSQL; check WAYBILL_DATABASE_URL")
}

/// Brings the schema up to date.
///
/// # Errors
/// Where a migration fails.
pub async fn migrate(args: &DatabaseArgs) -> anyhow::Result<()> {
    database(args).await?.migrate().await?;
    println!("The schema is up to date.");
    Ok(())
}

/// Makes an API key and prints its token, once.
///
/// # Errors
/// Where the role needs a gateway or a customer that is not named or does not exist.
pub async fn create_key(args: &KeyArgs) -> anyhow::Result<()> {
    let database = database(&args.database).await?;
    let mut tx = database.begin().await?;
    let holder = match args.role {
        Role::Admin => NewHolder::Admin,
        Role::Finance => NewHolder::Finance,
        Role::Gateway => {
            let name = args.gateway.as_deref().context("a gateway key needs --gateway NAME")?;
            let gateway = gateways::by_name(&mut tx, name).await?;
            NewHolder::Gateway(gateway.with_context(|| format!("there is no gateway `{name}`"))?.id)
        }
        Role::Customer => {
            let external_id = args.customer.as_deref().context("a customer key needs --customer EXTERNAL_ID")?;
            let customer = customers::by_external_id(&mut tx, external_id).await?;
            NewHolder::Customer(customer.with_context(|| format!("there is no customer `{external_id}`"))?.id)
        }
    };
    let key = api_keys::create(&mut tx, holder, &args.name, None).await?;
    commit(tx).await?;
    println!("{}", key.token);
    Ok(())
}
