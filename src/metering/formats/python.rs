//! A dict as Python prints it, which is how LiteLLM puts objects into span attributes, as JSON.

/// The JSON of a dict of texts, numbers, lists and dicts; `None` where it holds anything else. JSON stays what it is.
pub(super) fn json(printed: &str) -> Option<String> {
    let mut json = String::with_capacity(printed.len());
    let mut rest = printed;
    while let Some(first) = rest.chars().next() {
        let taken = match first {
            '\'' | '"' => text(rest, first, &mut json)?,
            letter if letter.is_ascii_alphabetic() => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                json.push_str(match &rest[..end] {
                    "None" | "null" => "null",
                    "True" | "true" => "true",
                    "False" | "false" => "false",
                    _ => return None,
                });
                end
            }
            digit if digit.is_ascii_digit() || digit == '-' => {
                let number = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
                let end = rest.find(|c| !number(c)).unwrap_or(rest.len());
                json.push_str(&rest[..end]);
                end
            }
            '{' | '}' | '[' | ']' | ',' | ':' | ' ' => {
                json.push(first);
                1
            }
            _ => return None,
        };
        rest = &rest[taken..];
    }
    Some(json)
}

/// Writes the text at the start as a JSON string; how many bytes it took.
fn text(printed: &str, quote: char, json: &mut String) -> Option<usize> {
    json.push('"');
    let mut characters = printed.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            end if end == quote => {
                json.push('"');
                return Some(at + 1);
            }
            '"' => json.push_str("\\\""),
            '\\' => match characters.next()?.1 {
                '\'' => json.push('\''),
                same @ ('"' | '\\' | 'n' | 'r' | 't' | 'u') => json.extend(['\\', same]),
                'x' => json.push_str("\\u00"),
                _ => return None,
            },
            other => json.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::json;

    #[test]
    fn printed_dicts_become_json() {
        let printed = r#"{'a': 1, 'b': [None, True, False, 1e-05, -2.5], 'c': {'d': "it's", 'e': 'a "b" \\ \n \xe9 \u20ac'}}"#;
        let read: Value = serde_json::from_str(&json(printed).unwrap()).unwrap();
        let expected = json!({"a": 1, "b": [null, true, false, 1e-5, -2.5], "c": {"d": "it's", "e": "a \"b\" \\ \n é €"}});
        assert_eq!(read, expected);
        let plain = r#"{"a": "b\"c", "d": [null, true, 1]}"#;
        assert_eq!(json(plain).as_deref(), Some(plain));
    }

    #[test]
    fn anything_else_is_none() {
        for printed in
            ["{'a': Usage(b=1)}", "{'a': (1, 2)}", "{'a': 'b", "{'a': nan}", "{'a': 'b\\", "{'a': '\\N{X}'}"]
        {
            assert_eq!(json(printed), None, "{printed}");
        }
    }
}
