//! Text to documents: YAML or JSON, one or many, lists flattened.

use serde_json::Value;
use serde_saphyr::{MessageFormatter as _, UserMessageFormatter};

use super::Error;

/// Every object in the text, in its order.
///
/// Empty documents are skipped. Objects of kind `List`, `PodList` and so on are replaced by their
/// items.
pub fn documents(text: &str) -> Result<Vec<Value>, Error> {
    let roots = if text.trim_start().starts_with('{') {
        // JSON is YAML, but JSON's own parser takes tabs and repeated objects as well, and its
        // messages are about JSON. YAML in braces remains possible.
        json(text).or_else(|error| yaml(text).or(Err(error)))
    } else {
        yaml(text)
    };
    let mut objects = Vec::new();
    for root in roots? {
        flatten(root, &mut objects);
    }
    Ok(objects)
}

fn json(text: &str) -> Result<Vec<Value>, Error> {
    serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().map_err(
        |error: serde_json::Error| {
            let message = error.to_string();
            let place = format!(" at line {} column {}", error.line(), error.column());
            Error::Syntax {
                line: u64::try_from(error.line()).unwrap_or_default(),
                column: u64::try_from(error.column()).unwrap_or_default(),
                message: message.strip_suffix(&place).unwrap_or(&message).to_owned(),
            }
        },
    )
}

fn yaml(text: &str) -> Result<Vec<Value>, Error> {
    let options = serde_saphyr::options! {
        // `defaultMode: 0644` is octal to every other tool that reads these files.
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let (line, column) =
            error.location().map_or((1, 1), |location| (location.line(), location.column()));
        let message = UserMessageFormatter.format_message(&error);
        let message = message.lines().next().unwrap_or_default();
        Error::Syntax { line, column, message: message.to_owned() }
    })
}

/// Puts the object, or the items of the list that it is, at the end of `objects`.
fn flatten(mut root: Value, objects: &mut Vec<Value>) {
    if root.is_null() {
        return;
    }
    let list = super::kind(&root).and_then(|kind| kind.strip_suffix("List")).map(str::to_owned);
    let (Some(kind), Some(Value::Array(items))) = (list, root.get_mut("items").map(Value::take))
    else {
        return objects.push(root);
    };
    let version = root.get("apiVersion").cloned();
    for mut item in items {
        // Items of a typed list need not repeat what the list says.
        if let Value::Object(fields) = &mut item
            && !kind.is_empty()
        {
            fields.entry("kind").or_insert_with(|| kind.clone().into());
            if let Some(version) = &version {
                fields.entry("apiVersion").or_insert_with(|| version.clone());
            }
        }
        flatten(item, objects);
    }
}
