//! The OpenAPI document: made from the router, completed with what is true of every operation.

use utoipa::openapi::path::{HttpMethod, Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Required};
use utoipa::{OpenApi, PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use super::problem::{FieldError, ProblemBody};
use super::{AppState, probes, v1};

/// Where problems are described in the document.
const PROBLEM_REF: &str = "#/components/schemas/Problem";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Waybill",
        description = "Token metering and billing. Money is a decimal string with a `currency` beside it in the same object; times are RFC 3339 in UTC; \
            intervals are half-open, `from` inside and `to` outside. Errors are `application/problem+json` with a stable `code`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    security(("bearer" = [])),
    tags(
        (name = "events", description = "Publish usage (gateways)"),
        (name = "customers", description = "Whom we bill, and by which price books"),
        (name = "gateways", description = "Who publishes usage"),
        (name = "prices", description = "Price books, dated prices, quotes"),
        (name = "api-keys", description = "Who may call"),
        (name = "rejections", description = "Events that could not be recorded: see why, replay, discard"),
        (name = "tasks", description = "What each task cost"),
        (name = "reports", description = "Usage, cost per task, margin"),
        (name = "invoices", description = "Preview, finalize and read invoices"),
        (name = "operation", description = "Probes"),
    )
)]
struct Document;

/// Every route with its documentation.
pub(super) fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi()).merge(probes::routes()).merge(v1::routes())
}

/// The document as `openapi/openapi.json` holds it.
///
/// # Errors
/// Never in practice: the document is plain data.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    complete(documented().into_openapi()).to_pretty_json().map(|json| json + "\n")
}

/// Adds what is true of every operation, so that no handler has to repeat it: the key, the problems, the idempotency.
pub(super) fn complete(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let bearer = Http::builder()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("wb_<public id>_<secret>")
        .description(Some("An API key; its role decides what it may call."))
        .build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    components.schemas.insert(ProblemBody::name().into_owned(), ProblemBody::schema());
    components.schemas.insert(FieldError::name().into_owned(), FieldError::schema());
    for (path, item) in &mut document.paths.paths {
        let operations = [
            (HttpMethod::Get, &mut item.get),
            (HttpMethod::Post, &mut item.post),
            (HttpMethod::Put, &mut item.put),
            (HttpMethod::Patch, &mut item.patch),
            (HttpMethod::Delete, &mut item.delete),
        ];
        for (method, operation) in operations {
            if let Some(operation) = operation.as_mut().filter(|_| path.starts_with("/v1/")) {
                complete_operation(path, &method, operation);
            }
        }
    }
    document
}

/// Paths of operations that change nothing, or nothing twice, although they have a body: the first computes, and events have an
/// identity of their own, which makes sending them again safe.
const KEYLESS: [&str; 2] = ["/v1/prices/quote", "/v1/events"];
/// Paths of operations whose body names an object that may not be found.
const NAMED_IN_BODY: [&str; 2] = ["/v1/invoices/finalize", "/v1/rerates"];
/// The one list whose `customer` is only a text to compare with: what is rejected may name anybody.
const CUSTOMER_IS_TEXT: &str = "/v1/rejections";

fn complete_operation(path: &str, method: &HttpMethod, operation: &mut Operation) {
    let has_body = *method != HttpMethod::Get;
    let takes_key = has_body && !KEYLESS.contains(&path);
    add_problem(operation, "400", "The request or its body is not valid");
    add_problem(operation, "401", "No valid API key");
    add_problem(operation, "403", "The key's role may not do this");
    let names_customer = has_parameter(operation, "customer") && path != CUSTOMER_IS_TEXT;
    if path.contains('{') || names_customer || NAMED_IN_BODY.contains(&path) {
        add_problem(operation, "404", "No such object, or it is another customer's");
    }
    if offers_csv(operation) {
        add_problem(operation, "406", "Neither JSON nor CSV is accepted");
    }
    if has_body {
        add_problem(operation, "408", "The body did not arrive within 10 s");
        add_problem(operation, "413", "The body is too large");
        add_problem(operation, "415", "The body's form is not supported");
    }
    if takes_key {
        let conflict = "The object's state does not allow it, or the same `Idempotency-Key` still runs";
        add_problem(operation, "409", conflict);
        let reused = "A value is not possible, or the `Idempotency-Key` was used for another request";
        add_problem(operation, "422", reused);
        let key = idempotency_key(has_parameter(operation, "dry_run"));
        operation.parameters.get_or_insert_default().push(RefOr::T(key));
    } else {
        add_problem(operation, "422", "A value is not possible, or the answer would be too large");
        if path != "/v1/events" {
            let share = "The customer has as many requests underway as it may; try again after `Retry-After`";
            add_problem(operation, "429", share);
        }
    }
    add_problem(operation, "500", "Our fault");
    let unavailable =
        "The database or the stream does not answer, or not in time; try again after `Retry-After`";
    add_problem(operation, "503", unavailable);
}

fn has_parameter(operation: &Operation, name: &str) -> bool {
    let named =
        |parameter: &RefOr<Parameter>| matches!(parameter, RefOr::T(parameter) if parameter.name == name);
    operation.parameters.iter().flatten().any(named)
}

fn offers_csv(operation: &Operation) -> bool {
    let csv = |response: &RefOr<Response>| matches!(response, RefOr::T(response) if response.content.contains_key("text/csv"));
    operation.responses.responses.values().any(csv)
}

fn add_problem(operation: &mut Operation, status: &str, description: &str) {
    operation.responses.responses.entry(status.to_owned()).or_insert_with(|| {
        let content = ContentBuilder::new().schema(Some(Ref::new(PROBLEM_REF))).build();
        let problem =
            ResponseBuilder::new().description(description).content("application/problem+json", content);
        problem.build().into()
    });
}

fn idempotency_key(dry_run: bool) -> Parameter {
    let mut description =
        "Your own key of this request, 1 to 255 characters. The same request with the same key has its effect once within 24 hours, and gets the first \
         answer again with `Idempotent-Replayed: true`."
            .to_owned();
    if dry_run {
        description.push_str(" The answer of a dry run is not kept: it is computed each time.");
    }
    ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(
            ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(255)),
        ))
        .build()
}

/// The schema of a decimal string, for amounts and rates.
#[derive(Debug)]
pub struct DecimalText;

impl PartialSchema for DecimalText {
    fn schema() -> RefOr<utoipa::openapi::Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^-?[0-9]+(\\.[0-9]+)?$"))
            .examples(["0.0136"])
            .description(Some("Exact decimal as a string; never a float."))
            .into()
    }
}

impl ToSchema for DecimalText {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn document() -> Value {
        serde_json::from_str(&openapi_json().unwrap()).unwrap()
    }

    fn operations(document: &Value) -> Vec<(String, String, &Value)> {
        let paths = document["paths"].as_object().unwrap();
        let each = paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().iter();
            methods.map(|(method, operation)| (path.clone(), method.clone(), operation))
        });
        each.collect()
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_a_tag_and_a_summary() {
        let document = document();
        let mut names = BTreeSet::new();
        for (path, method, operation) in operations(&document) {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} is used twice");
            let verb = name.split('_').next().unwrap();
            let known = [
                "get", "list", "create", "update", "delete", "replay", "discard", "publish", "revoke", "run",
                "preview", "finalize",
            ];
            assert!(known.contains(&verb), "{method} {path}: {name} starts with no known verb");
            assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{method} {path}");
            assert_eq!(operation["tags"].as_array().unwrap().len(), 1, "{method} {path}");
        }
    }

    #[test]
    fn every_list_can_be_had_as_csv() {
        let document = document();
        for (path, _, operation) in operations(&document) {
            if operation["operationId"].as_str().unwrap().starts_with("list_") {
                assert!(operation["responses"]["200"]["content"]["text/csv"].is_object(), "{path}");
            }
        }
    }

    #[test]
    fn operations_name_the_answers_that_they_give() {
        let document = document();
        let statuses = |method: &str, path: &str| -> Vec<String> {
            let responses = document["paths"][path][method]["responses"].as_object().unwrap();
            let refusals = responses.keys().filter(|status| !status.starts_with('2'));
            refusals.cloned().collect::<BTreeSet<_>>().into_iter().collect()
        };
        for (method, path, expected) in [
            ("get", "/v1/customers", "400 401 403 406 422 429 500 503"),
            ("get", "/v1/usage", "400 401 403 404 406 422 429 500 503"),
            ("get", "/v1/tasks/{id}", "400 401 403 404 422 429 500 503"),
            ("get", "/v1/rejections", "400 401 403 406 422 429 500 503"),
            ("post", "/v1/customers", "400 401 403 408 409 413 415 422 500 503"),
            ("post", "/v1/invoices/finalize", "400 401 403 404 408 409 413 415 422 500 503"),
            ("post", "/v1/rerates", "400 401 403 404 408 409 413 415 422 500 503"),
            ("post", "/v1/prices/quote", "400 401 403 408 413 415 422 429 500 503"),
            ("post", "/v1/events", "400 401 403 408 413 415 422 500 503"),
        ] {
            assert_eq!(statuses(method, path).join(" "), expected, "{method} {path}");
        }
        for (path, method, operation) in operations(&document) {
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let named = |name: &str| parameters.iter().find(|parameter| parameter["name"] == name);
            let keyed = named("Idempotency-Key");
            if method != "get" {
                assert_eq!(keyed.is_some(), operation["responses"]["409"].is_object(), "{path}");
            }
            if let Some(key) = keyed {
                let told = key["description"].as_str().unwrap().contains("dry run");
                assert_eq!(told, named("dry_run").is_some(), "{path}");
            }
        }
    }

    #[test]
    fn every_reference_has_a_target() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(target)) = fields.get("$ref") {
                        found.insert(target.clone());
                    }
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(
            found.contains(PROBLEM_REF)
                || operations(&document).iter().all(|(path, ..)| !path.starts_with("/v1"))
        );
        for target in found {
            assert!(document.pointer(target.strip_prefix('#').unwrap()).is_some(), "{target} leads nowhere");
        }
    }
}
