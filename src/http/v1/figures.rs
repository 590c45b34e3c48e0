//! What the reports share: whose figures, of when, and money as the caller may see it.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::Response;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Serialize, Serializer};
use sqlx::PgConnection;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::ids::CustomerId;
use crate::domain::money::{Amount, Currency};
use crate::domain::tokens::{Quantities, TokenClass};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::openapi::DecimalText;
use crate::http::problem::{Problem, TOO_MANY_ROWS};
use crate::http::table::{Cells, CsvRow, Format};
use crate::reports::{Figures, ROWS_MAX, Ratio, ReportError};
use crate::store::api_keys::Holder;
use crate::store::customers::{self, CustomerRow};

/// Length of an interval whose start is not given.
const DEFAULT_INTERVAL: TimeDelta = TimeDelta::days(30);

/// When a report was asked for. It stands before the snapshot among a handler's arguments, because it is taken when its
/// turn comes: an `as_of` taken after the snapshot would promise what was recorded in between.
pub(super) struct AskedAt(pub(super) DateTime<Utc>);

impl FromRequestParts<AppState> for AskedAt {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        Ok(Self(state.clock.now()))
    }
}

/// The bounds of an interval: without `to` until now, without `from` the 30 days before.
///
/// # Errors
/// Where it is empty or runs backwards.
pub(super) fn interval(
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<(DateTime<Utc>, DateTime<Utc>), Problem> {
    let to = to.unwrap_or(now);
    let from = from.or_else(|| to.checked_sub_signed(DEFAULT_INTERVAL)).unwrap_or(DateTime::<Utc>::MIN_UTC);
    if from < to { Ok((from, to)) } else { Err(Problem::invalid("to", "must be after from")) }
}

/// The customer that is named, or the caller's own; `None` is all, which only finance gets.
///
/// # Errors
/// Not found where the caller's scope has no such customer.
pub(super) async fn customer(
    connection: &mut PgConnection,
    caller: &Caller,
    named: Option<&str>,
) -> Result<Option<CustomerId>, Problem> {
    match (named, &caller.holder) {
        (Some(name), _) => Ok(Some(find(connection, name).await?.id)),
        (None, Holder::Customer { id, .. }) => Ok(Some(*id)),
        (None, _) => Ok(None),
    }
}

/// As [`customer`], where one must be named.
///
/// # Errors
/// As [`customer`], and where finance names none.
pub(super) async fn one_customer(
    connection: &mut PgConnection,
    caller: &Caller,
    named: Option<&str>,
) -> Result<CustomerId, Problem> {
    customer(connection, caller, named)
        .await?
        .ok_or_else(|| Problem::invalid("customer", "give the external_id of a customer"))
}

/// The customer of that external id, as far as the transaction's scope shows it.
///
/// # Errors
/// Not found.
pub(super) async fn find(connection: &mut PgConnection, external_id: &str) -> Result<CustomerRow, Problem> {
    let found = customers::by_external_id(connection, external_id).await?;
    found.ok_or_else(|| Problem::not_found("customer"))
}

impl From<ReportError> for Problem {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::Store(error) => error.into(),
            ReportError::Overflow => Self::sum_too_large(error),
            ReportError::TooManyRows => Self::new(
                &TOO_MANY_ROWS,
                format!(
                    "The answer would have more than {ROWS_MAX} rows; ask for a shorter interval, for one customer, project, \
                     model or task type, or group by less."
                ),
            ),
            ReportError::NoRate { .. } => Self::internal(error),
        }
    }
}

/// Money as the caller may see it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum MoneyView {
    /// To finance.
    Finance(FinanceMoney),
    /// To a customer.
    Customer(CustomerMoney),
}

/// What usage cost us and brought in.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct FinanceMoney {
    /// What providers charge us; null where several currencies would have to be added.
    #[schema(value_type = Option<DecimalText>)]
    cost: Option<Amount>,
    /// Currency of the cost, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    cost_currency: Option<Currency>,
    /// What customers pay.
    #[schema(value_type = DecimalText)]
    charge: Amount,
    /// Charge minus cost; null across currencies.
    #[schema(value_type = Option<DecimalText>)]
    margin: Option<Amount>,
    /// Margin by charge, to four places; null where nothing was charged.
    #[schema(value_type = Option<DecimalText>)]
    margin_ratio: Option<Ratio>,
    /// Of charge, margin, and cost.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
}

/// What usage costs the customer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct CustomerMoney {
    /// Exact, before any rounding.
    #[schema(value_type = DecimalText)]
    amount: Amount,
    /// Of the amount.
    #[schema(value_type = String, example = "USD")]
    currency: Currency,
}

impl MoneyView {
    /// As this caller may see it.
    pub(super) fn new(figures: &Figures, caller: &Caller) -> Self {
        if !caller.sees_cost() {
            return Self::Customer(CustomerMoney { amount: figures.charge, currency: figures.currency });
        }
        Self::Finance(FinanceMoney {
            cost: figures.cost.map(|(cost, _)| cost),
            cost_currency: figures
                .cost
                .map(|(_, currency)| currency)
                .filter(|other| *other != figures.currency),
            charge: figures.charge,
            margin: figures.margin(),
            margin_ratio: figures.margin_ratio(),
            currency: figures.currency,
        })
    }

    /// The cells of a finance file: cost, charge, margin, `margin_ratio`, currency; of a customer's: amount, currency.
    pub(super) fn cells(&self, cells: &mut Cells) {
        match self {
            Self::Finance(money) => cells
                .maybe_value(money.cost)
                .value(money.charge)
                .maybe_value(money.margin)
                .maybe_value(money.margin_ratio)
                .value(money.currency),
            Self::Customer(money) => cells.value(money.amount).value(money.currency),
        };
    }
}

/// A row with money, which finance and customers get with different columns.
pub(super) trait MoneyRow {
    /// Finance's columns; the last are those of [`MoneyView::cells`].
    const FINANCE: &'static [&'static str];
    /// A customer's columns.
    const CUSTOMER: &'static [&'static str];

    /// The cells of either.
    fn cells(&self, cells: &mut Cells);
}

impl<V: MoneyRow> MoneyRow for &V {
    const FINANCE: &'static [&'static str] = V::FINANCE;
    const CUSTOMER: &'static [&'static str] = V::CUSTOMER;

    fn cells(&self, cells: &mut Cells) {
        (*self).cells(cells);
    }
}

/// A row as finance gets it.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct ForFinance<V>(pub(super) V);

/// A row as a customer gets it.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct ForCustomer<V>(pub(super) V);

impl<V: MoneyRow> CsvRow for ForFinance<V> {
    const HEADER: &'static [&'static str] = V::FINANCE;

    fn cells(&self, cells: &mut Cells) {
        self.0.cells(cells);
    }
}

impl<V: MoneyRow> CsvRow for ForCustomer<V> {
    const HEADER: &'static [&'static str] = V::CUSTOMER;

    fn cells(&self, cells: &mut Cells) {
        self.0.cells(cells);
    }
}

/// A report in the asked form, with the columns of the caller's role.
///
/// # Errors
/// Where it cannot be written, which is our fault.
pub(super) fn respond<V: MoneyRow>(
    format: Format,
    caller: &Caller,
    as_of: DateTime<Utc>,
    name: &str,
    body: &impl Serialize,
    rows: &[V],
) -> Result<Response, Problem> {
    if caller.sees_cost() {
        format.respond_as_of(as_of, name, body, &rows.iter().map(ForFinance).collect::<Vec<_>>())
    } else {
        format.respond_as_of(as_of, name, body, &rows.iter().map(ForCustomer).collect::<Vec<_>>())
    }
}

/// Columns, and behind them one per token class, and those of money: finance's and a customer's.
macro_rules! money_columns {
    ($($column:literal),* $(,)?) => {
        const FINANCE: &'static [&'static str] =
            &[$($column,)* "cost", "charge", "margin", "margin_ratio", "currency"];
        const CUSTOMER: &'static [&'static str] = &[$($column,)* "amount", "currency"];
    };
    (quantities: $($column:literal),* $(,)?) => {
        $crate::http::v1::figures::money_columns!(
            $($column,)* "input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning",
            "input_audio", "input_image", "input_video", "cache_read_audio", "cache_read_image", "cache_read_video",
            "output_audio", "output_image", "output_video", "request", "web_search", "code_session", "image", "page",
            "second", "character"
        );
    };
}
pub(super) use money_columns;

/// Units by class: an object without the classes that were not used.
#[derive(Debug, Clone)]
pub(super) struct QuantitiesView(pub(super) Quantities);

impl Serialize for QuantitiesView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.non_zero())
    }
}

impl PartialSchema for QuantitiesView {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .additional_properties(Some(ObjectBuilder::new().schema_type(Type::Integer)))
            .description(Some("Units by token class; classes that were not used are left out."))
            .examples([serde_json::json!({"input": 168, "cache_read": 3328})])
            .into()
    }
}

impl ToSchema for QuantitiesView {}

impl QuantitiesView {
    /// One cell per class, in the order of [`TokenClass::ALL`].
    pub(super) fn cells(&self, cells: &mut Cells) {
        for class in TokenClass::ALL {
            cells.value(self.0.get(class));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Row;

    impl MoneyRow for Row {
        money_columns!(quantities: "name");

        fn cells(&self, _: &mut Cells) {}
    }

    #[test]
    fn every_class_has_its_column() {
        let classes: Vec<&str> = TokenClass::ALL.into_iter().map(TokenClass::name).collect();
        assert_eq!(Row::CUSTOMER[1..=classes.len()], classes);
        assert_eq!(
            Row::FINANCE[classes.len() + 1..],
            ["cost", "charge", "margin", "margin_ratio", "currency"]
        );
        assert!(!Row::CUSTOMER.contains(&"cost"));
    }

    #[test]
    fn an_interval_ends_after_it_starts() {
        let at = |text: &str| -> DateTime<Utc> { text.parse().unwrap() };
        let now = at("2026-11-23T00:00:00Z");
        assert_eq!(interval(None, None, now).unwrap(), (at("2026-10-24T00:00:00Z"), now));
        assert_eq!(interval(Some(now), None, now).unwrap_err().code(), "invalid_value");
        assert!(interval(Some(now), Some(at("2026-11-23T00:00:01Z")), now).is_ok());
    }
}
