//! What is published beside the program is what the program does.

use std::path::Path;

#[test]
fn the_openapi_document_is_the_routers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
    let published = std::fs::read_to_string(path).unwrap();
    let routed = waybill::http::openapi::openapi_json().unwrap();
    assert!(
        published.trim_end() == routed.trim_end(),
        "openapi/openapi.json is not what the router says: run `make openapi`"
    );
}
