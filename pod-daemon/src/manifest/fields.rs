//! Walks a document along its schema: unsupported and unknown fields, and wrong types.
//!
//! Works on the untyped document, since only there a misspelt field still exists, and names the
//! path of everything it complains about.

use std::fmt;

use k8s_openapi::{ByteString, apimachinery::pkg::api::resource::Quantity};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde_json::{Map, Value};

use super::{
    Unsupported,
    problem::{Problems, Reason},
    quantity,
    schema::{Rule, Type},
};

/// Yields the names of a type's fields.
pub(super) type Known = fn() -> &'static [&'static str];

/// Every field that Kubernetes knows of `T`.
pub(super) fn known<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    // A derived `Deserialize` begins by naming its fields, so that is where this one stops.
    match T::deserialize(FieldNames) {
        Err(Names(names)) => names,
        Ok(_) => &[],
    }
}

/// One document on its way through the schema.
pub(super) struct Walk {
    policy: Unsupported,
    problems: Problems,
    warnings: Vec<String>,
}

impl Walk {
    pub(super) fn new(policy: Unsupported) -> Self {
        Self { policy, problems: Problems::default(), warnings: Vec::new() }
    }

    pub(super) fn finish(self) -> (Problems, Vec<String>) {
        (self.problems, self.warnings)
    }

    /// Whether the document says that it is what is wanted.
    pub(super) fn is_a(&mut self, value: &Value, api_version: &str, kind: &str) -> bool {
        for (field, expected) in [("apiVersion", api_version), ("kind", kind)] {
            match value.get(field).and_then(Value::as_str) {
                None => self.problems.add(
                    Reason::Required,
                    field,
                    format!("is required and must be `{expected}`"),
                ),
                Some(found) => self.problems.one_of(field, found, &[expected]),
            }
        }
        self.problems.is_empty()
    }

    /// Checks the whole document and drops what does not count.
    pub(super) fn root(&mut self, value: &mut Value, schema: &'static Type) {
        self.object("", value, schema);
    }

    fn object(&mut self, path: &str, value: &mut Value, schema: &'static Type) {
        let Value::Object(fields) = value else {
            return self.wrong_type(path, value, "an object");
        };
        fields.retain(|_, value| !value.is_null());
        let names: Vec<String> = fields.keys().cloned().collect();
        for name in names {
            let keep = self.field(path, &name, fields, schema);
            if !keep {
                fields.remove(&name);
            }
        }
    }

    /// Whether the field stays.
    fn field(
        &mut self,
        parent: &str,
        name: &str,
        fields: &mut Map<String, Value>,
        schema: &'static Type,
    ) -> bool {
        let path = if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") };
        let Some(value) = fields.get_mut(name) else {
            return false;
        };
        if let Some((_, rule)) = schema.fields.iter().find(|(field, _)| *field == name) {
            return self.check(&path, value, rule);
        }
        let known = (schema.known)();
        if known.contains(&name) {
            if is_empty(value) && !schema.empty_is_set {
                return false;
            }
            let note =
                if schema.empty_is_set { " (an empty directory takes its place)" } else { "" };
            self.unsupported(Reason::Unsupported, &path, "is not supported yet", note);
        } else {
            let hint = nearest(name, known)
                .map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
            self.unsupported(Reason::Unknown, &path, &format!("is unknown{hint}"), "");
        }
        false
    }

    /// Whether the value stays.
    fn check(&mut self, path: &str, value: &mut Value, rule: &'static Rule) -> bool {
        match rule {
            Rule::Any => {}
            Rule::Ours => return false,
            Rule::Text => self.text(path, value),
            Rule::Integer => {
                if !value.is_i64() {
                    self.wrong_type(path, value, "an integer");
                }
            }
            Rule::IntegerList => {
                for (item, path) in self.list(path, value) {
                    if !item.is_i64() {
                        self.wrong_type(&path, item, "an integer");
                    }
                }
            }
            Rule::Bool => {
                if !value.is_boolean() {
                    self.wrong_type(path, value, "`true` or `false`");
                }
            }
            Rule::TextList => {
                for (item, path) in self.list(path, value) {
                    self.text(&path, item);
                }
            }
            Rule::TextMap => {
                for (key, item) in self.map(path, value) {
                    self.text(&format!("{path}[{key}]"), item);
                }
            }
            Rule::Quantities(resources) => self.quantities(path, value, resources),
            Rule::Quantity => self.quantity(path, value),
            Rule::Blobs => self.hidden(path, value, is_base64, "must be Base64"),
            Rule::Hidden => self.hidden(path, value, |_| true, ""),
            Rule::Object(schema) => self.object(path, value, schema),
            Rule::List(schema) => {
                for (item, path) in self.list(path, value) {
                    self.object(&path, item, schema);
                }
            }
            Rule::Only(accepts, what) => {
                if !accepts(value) {
                    let message = format!("{} is not supported yet, only {what}", display(value));
                    self.unsupported(Reason::Unsupported, path, &message, "");
                    return false;
                }
            }
        }
        true
    }

    fn text(&mut self, path: &str, value: &Value) {
        match value {
            Value::String(_) => {}
            Value::Bool(_) | Value::Number(_) => self.problems.add(
                Reason::Type,
                path,
                format!("must be a string, not {}: put it in quotes", display(value)),
            ),
            _ => self.wrong_type(path, value, "a string"),
        }
    }

    fn quantities(&mut self, path: &str, value: &mut Value, resources: &[&str]) {
        let mut dropped = Vec::new();
        for (resource, item) in self.map(path, value) {
            let path = format!("{path}[{resource}]");
            if !resources.contains(&resource.as_str()) {
                let message = format!(
                    "is not a resource that Podscope limits (those are {})",
                    resources.join(", ")
                );
                self.unsupported(Reason::Unsupported, &path, &message, "");
                dropped.push(resource.clone());
                continue;
            }
            self.quantity(&path, item);
        }
        if let Value::Object(map) = value {
            map.retain(|key, _| !dropped.contains(key));
        }
    }

    fn quantity(&mut self, path: &str, value: &mut Value) {
        if let Value::Number(number) = value {
            *value = Value::String(number.to_string());
        }
        match value {
            Value::String(text) => {
                if let Err(error) = quantity::bytes(&Quantity(text.clone())) {
                    self.problems.invalid(path, error.to_string());
                }
            }
            _ => self.wrong_type(path, value, "a quantity"),
        }
    }

    /// Checks a map of strings without showing any of them.
    fn hidden(&mut self, path: &str, value: &mut Value, fits: fn(&str) -> bool, must: &str) {
        if !value.is_object() {
            return self.problems.add(Reason::Type, path, "must be an object");
        }
        for (key, item) in self.map(path, value) {
            let path = format!("{path}[{key}]");
            match item {
                // Kubernetes takes a key without a value for an empty value.
                Value::Null => *item = Value::String(String::new()),
                Value::String(text) if fits(text) => {}
                Value::String(_) => self.problems.invalid(path, must),
                _ => self.problems.add(Reason::Type, path, "must be a string: put it in quotes"),
            }
        }
    }

    fn list<'v>(&mut self, path: &str, value: &'v mut Value) -> Vec<(&'v mut Value, String)> {
        if !value.is_array() {
            self.wrong_type(path, value, "a list");
        }
        let items = value.as_array_mut().into_iter().flatten().enumerate();
        items.map(|(index, item)| (item, format!("{path}[{index}]"))).collect()
    }

    fn map<'v>(&mut self, path: &str, value: &'v mut Value) -> Vec<(&'v String, &'v mut Value)> {
        if !value.is_object() {
            self.wrong_type(path, value, "an object");
        }
        value.as_object_mut().into_iter().flatten().collect()
    }

    fn wrong_type(&mut self, path: &str, value: &Value, expected: &str) {
        let message = format!("must be {expected}, not {}", display(value));
        self.problems.add(Reason::Type, path, message);
    }

    fn unsupported(&mut self, reason: Reason, path: &str, message: &str, note: &str) {
        match self.policy {
            Unsupported::Deny => self.problems.add(reason, path, message),
            Unsupported::Warn => self.warnings.push(format!("{path}: {message}, ignored{note}")),
        }
    }
}

fn is_base64(text: &str) -> bool {
    serde_json::from_value::<ByteString>(Value::String(text.to_owned())).is_ok()
}

/// Whether a value says no more than its absence.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn display(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("`{value}`"),
        Value::Number(value) => format!("`{value}`"),
        Value::String(value) if value.chars().count() <= 40 => format!("`{value}`"),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// The known name that a misspelt one was probably meant to be.
fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let folded = name.to_lowercase().replace(['_', '-'], "");
    known
        .iter()
        .map(|known| (distance(&folded, &known.to_lowercase()), *known))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, known)| *distance <= known.len() / 3)
        .map(|(_, known)| known)
}

/// Edit distance of two names.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, r) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

/// A deserialiser that learns the names of a struct's fields and gives up.
struct FieldNames;

/// How it gives up.
#[derive(Debug)]
struct Names(&'static [&'static str]);

impl std::error::Error for Names {}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("only the names of the fields were wanted")
    }
}

impl Error for Names {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl<'de> Deserializer<'de> for FieldNames {
    type Error = Names;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Names> {
        Err(Names(fields))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Names> {
        Err(Names::custom("not a struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
