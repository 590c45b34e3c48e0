//! Names that calls and prices share: whatever an event may carry, a price can name.
//!
//! A name is compared byte for byte, so characters that cannot be told apart on a page are in none. What is stored already
//! is not looked at again.

/// Longest name of a provider, model or condition, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Providers by the names that gateways and instrumentations have for them, with the name that price books have.
///
/// LiteLLM's names where it has one, its makers' own names otherwise: most prices are imported from its list.
const PROVIDERS: [(&str, &str); 17] = [
    // LiteLLM
    ("gemini", "google"),
    ("cohere_chat", "cohere"),
    ("moonshot", "moonshotai"),
    ("vertex_ai_beta", "vertex_ai"),
    // OpenTelemetry's `gen_ai` conventions, `gen_ai.provider.name` and the older `gen_ai.system`
    ("gcp.gemini", "google"),
    ("gcp.gen_ai", "google"),
    ("gcp.vertex_ai", "vertex_ai"),
    ("x_ai", "xai"),
    ("mistral_ai", "mistral"),
    ("moonshot_ai", "moonshotai"),
    ("aws.bedrock", "bedrock"),
    ("azure.ai.openai", "azure"),
    ("az.ai.openai", "azure"),
    ("azure.ai.inference", "azure_ai"),
    ("az.ai.inference", "azure_ai"),
    ("ibm.watsonx.ai", "watsonx"),
    // genai-prices
    ("x-ai", "xai"),
];

/// The name that price books have for a provider; `None` where they have the one that is given.
pub fn known_provider(reported: &str) -> Option<&'static str> {
    PROVIDERS.iter().find(|(theirs, _)| *theirs == reported).map(|(_, ours)| *ours)
}

/// A byte of an id: a letter, a digit or one of `. _ : -`.
pub const fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-')
}

/// Whether a text names a provider: a machine id in lower case.
pub fn is_provider(name: &str) -> bool {
    is_machine_id(name) && !name.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Whether a text names a model: printable ASCII, without blanks at its ends.
pub fn is_model(name: &str) -> bool {
    let printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    is_sized(name) && name.bytes().all(printable) && name.trim_ascii().len() == name.len()
}

/// Whether a text is a machine id, as platforms, regions, tiers and task types are.
pub fn is_machine_id(name: &str) -> bool {
    is_sized(name) && name.bytes().all(is_id_byte)
}

const fn is_sized(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX
}

/// Names in one cell of a table: words, or lines where a name has blanks inside it.
pub fn to_cell(names: &[String]) -> String {
    if names.iter().any(|name| name.contains(' ')) {
        names.iter().flat_map(|name| [name.as_str(), "\n"]).collect()
    } else {
        names.join(" ")
    }
}

/// Names as [`to_cell`] wrote them.
pub fn from_cell(cell: &str) -> Vec<String> {
    let names: Vec<&str> =
        if cell.contains('\n') { cell.lines().collect() } else { cell.split_whitespace().collect() };
    names.into_iter().filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_provider_is_known_by_a_name_that_is_not_the_last_word() {
        for (theirs, ours) in PROVIDERS {
            assert!(is_provider(theirs) && is_provider(ours), "{theirs}");
            assert_eq!((known_provider(theirs), known_provider(ours)), (Some(ours), None), "{theirs}");
        }
    }

    #[test]
    fn cells_are_read_as_they_were_written() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        for list in [&[][..], &["a"], &["a", "b-2"], &["My Deployment"], &["My Deployment", "a", "b"]] {
            assert_eq!(from_cell(&to_cell(&names(list))), names(list));
        }
        assert_eq!(from_cell(" a  b "), names(&["a", "b"]));
    }
}
