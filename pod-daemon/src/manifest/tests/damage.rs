//! Manifests that were damaged: whatever is wrong with one, it is an error and no panic.

use super::*;

/// Manifests damaged at random: whatever comes, the answer is a pod or an error.
#[test]
fn no_damage_makes_it_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below).unwrap()).unwrap()
    };
    const BITS: [&str; 24] = [
        "{", "}", "[", "]", ":", "\n", "  ", "- ", "null", "-1", "1e99", "&a ", "*a", "!!int ",
        "é", "\"", "'", "|\n", "? ", "<<: ", "~", "\u{0}", "#", "---\n",
    ];
    for _ in 0..300 {
        let mut text = WEB.to_owned();
        for _ in 0..=random(3) {
            let at = text.char_indices().nth(random(text.chars().count())).unwrap().0;
            let until =
                text[at..].char_indices().nth(random(6)).map_or(text.len(), |(i, _)| at + i);
            text.replace_range(at..until, BITS[random(BITS.len())]);
        }
        for policy in [Unsupported::Deny, Unsupported::Warn] {
            for value in documents(&text).unwrap_or_default() {
                drop(parse_pod(value.clone(), policy));
                drop(parse_config_map(value, policy));
            }
        }
    }
}

/// The same for the parsed document: every value in turn replaced by every kind of value.
#[test]
fn no_value_makes_it_panic() {
    fn places(value: &Value, at: String, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let key = key.replace('~', "~0").replace('/', "~1");
                    places(value, format!("{at}/{key}"), found);
                }
            }
            Value::Array(items) => {
                for (index, value) in items.iter().enumerate() {
                    places(value, format!("{at}/{index}"), found);
                }
            }
            _ => {}
        }
        found.push(at);
    }
    let document = web("web", "web");
    let mut found = Vec::new();
    places(&document, String::new(), &mut found);
    for place in found {
        for value in [
            serde_json::json!(null),
            serde_json::json!(true),
            serde_json::json!(-9_223_372_036_854_775_808_i64),
            serde_json::json!(1e300),
            serde_json::json!(""),
            serde_json::json!("\u{0}é/../"),
            serde_json::json!([]),
            serde_json::json!([null, 1]),
            serde_json::json!({}),
            serde_json::json!({"": {"": []}}),
        ] {
            let mut document = document.clone();
            *document.pointer_mut(&place).unwrap() = value;
            drop(parse_pod(document.clone(), Unsupported::Deny));
            drop(parse_pod(document, Unsupported::Warn));
        }
    }
}
