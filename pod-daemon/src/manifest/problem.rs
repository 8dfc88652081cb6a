//! What is wrong with a manifest: field, reason, words.

use std::fmt;

use super::Error;

/// One thing that is wrong with one field.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Path of the field, like `spec.containers[0].image`; empty for the whole object.
    pub field: String,
    /// What kind of problem it is.
    pub reason: Reason,
    /// What is wrong and, where it helps, what to write instead.
    pub message: String,
}

/// Kinds of problems, as the Kubernetes API distinguishes them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// Kubernetes knows the field, Podscope does not support it yet.
    Unsupported,
    /// Kubernetes does not know the field either.
    Unknown,
    /// The value has the wrong type.
    Type,
    /// The value is missing.
    Required,
    /// The value is malformed or out of range.
    Invalid,
    /// The value must be unique and is not.
    Duplicate,
    /// The value is not one of the allowed ones.
    NotOneOf,
}

impl Reason {
    /// The `reason` of a `metav1.StatusCause`.
    pub fn cause(self) -> &'static str {
        match self {
            Self::Unsupported | Self::Unknown => "FieldValueForbidden",
            Self::Type => "FieldValueTypeInvalid",
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotOneOf => "FieldValueNotSupported",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

/// One problem inline, several below each other.
pub(super) fn list(problems: &[Problem]) -> String {
    match problems {
        [problem] => format!(" {problem}"),
        problems => problems.iter().map(|problem| format!("\n  {problem}")).collect(),
    }
}

/// Collects problems while an object is looked at.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn add(
        &mut self,
        reason: Reason,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.0.push(Problem { field: field.into(), reason, message: message.into() });
    }

    pub(super) fn required(&mut self, field: impl Into<String>) {
        self.add(Reason::Required, field, "is required");
    }

    pub(super) fn invalid(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Reason::Invalid, field, message);
    }

    pub(super) fn duplicate(&mut self, field: impl Into<String>, value: &str) {
        self.add(Reason::Duplicate, field, format!("`{value}` is used twice"));
    }

    /// Checks that `value` is one of `allowed`.
    pub(super) fn one_of(&mut self, field: impl Into<String>, value: &str, allowed: &[&str]) {
        if !allowed.contains(&value) {
            let allowed: Vec<_> = allowed.iter().filter(|value| !value.is_empty()).collect();
            self.add(
                Reason::NotOneOf,
                field,
                format!("`{value}` is not one of {}", comma_separated(&allowed)),
            );
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_error(self, kind: &str, name: Option<&str>) -> Error {
        let object = name.map_or_else(|| kind.to_owned(), |name| format!("{kind} `{name}`"));
        Error::Invalid { object, problems: self.0 }
    }
}

fn comma_separated(values: &[&&str]) -> String {
    values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ")
}
