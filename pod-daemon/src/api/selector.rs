//! `labelSelector` and `fieldSelector`.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::{Failure, params::Params};

/// Which pods are meant.
#[derive(Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(Field, bool, String)>,
}

#[derive(Debug)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Exists,
    Missing,
    In(Vec<String>),
    NotIn(Vec<String>),
}

#[derive(Debug)]
enum Field {
    Name,
    Namespace,
    Phase,
}

impl Selector {
    pub(super) fn from_params(params: &Params) -> Result<Self, Failure> {
        let labels = split(params.text("labelSelector").unwrap_or_default());
        let fields = split(params.text("fieldSelector").unwrap_or_default());
        Ok(Self {
            labels: labels.into_iter().map(requirement).collect::<Result<_, _>>()?,
            fields: fields.into_iter().map(field).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn accepts(&self, pod: &Pod) -> bool {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        self.accepts_object(&pod.metadata, phase)
    }

    /// For objects that have metadata and nothing else to select by.
    pub(super) fn accepts_metadata(&self, metadata: &ObjectMeta) -> bool {
        self.accepts_object(metadata, None)
    }

    fn accepts_object(&self, metadata: &ObjectMeta, phase: Option<&str>) -> bool {
        let fields = self.fields.iter().all(|(field, equal, expected)| {
            let value = match field {
                Field::Name => metadata.name.as_deref(),
                Field::Namespace => metadata.namespace.as_deref(),
                Field::Phase => phase,
            };
            (value.unwrap_or_default() == expected) == *equal
        });
        fields && self.accepts_labels(metadata.labels.as_ref())
    }

    fn accepts_labels(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.labels.iter().all(|Requirement { key, test }| {
            let value = labels.and_then(|labels| labels.get(key));
            match test {
                Test::Exists => value.is_some(),
                Test::Missing => value.is_none(),
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            }
        })
    }
}

/// The parts between commas, except commas in parentheses.
fn split(selector: &str) -> Vec<&str> {
    let mut inside = false;
    let parts = selector.split(|c| {
        inside = (inside || c == '(') && c != ')';
        c == ',' && !inside
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn requirement(text: &str) -> Result<Requirement, Failure> {
    let failure = || Failure::bad_request(format!("labelSelector: `{text}` cannot be read"));
    let (key, test) = if let Some((key, value)) = text.split_once("!=") {
        (key, Test::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = text.split_once('=') {
        (key, Test::In(vec![value.trim_start_matches('=').trim().to_owned()]))
    } else if let Some((left, values)) = text.split_once('(') {
        let (key, operator) = left.trim().split_once(char::is_whitespace).ok_or_else(failure)?;
        let values = values.trim().strip_suffix(')').ok_or_else(failure)?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        match operator.trim() {
            "in" => (key, Test::In(values)),
            "notin" => (key, Test::NotIn(values)),
            _ => return Err(failure()),
        }
    } else if let Some(key) = text.strip_prefix('!') {
        (key, Test::Missing)
    } else {
        (text, Test::Exists)
    };
    let key = key.trim();
    if key.is_empty() || key.contains(|c: char| c.is_whitespace() || "!()=".contains(c)) {
        return Err(failure());
    }
    Ok(Requirement { key: key.to_owned(), test })
}

fn field(text: &str) -> Result<(Field, bool, String), Failure> {
    let (name, equal, value) = if let Some((name, value)) = text.split_once("!=") {
        (name, false, value)
    } else {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            Failure::bad_request(format!("fieldSelector: `{text}` cannot be read"))
        })?;
        (name, true, value.trim_start_matches('='))
    };
    let field = match name.trim() {
        "metadata.name" => Field::Name,
        "metadata.namespace" => Field::Namespace,
        "status.phase" => Field::Phase,
        other => {
            return Err(Failure::bad_request(format!(
                "fieldSelector: `{other}` is not one of `metadata.name`, `metadata.namespace`, \
                 `status.phase`"
            )));
        }
    };
    Ok((field, equal, value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_selectors_choose_as_in_kubernetes() {
        let labels = BTreeMap::from([
            ("app".to_owned(), "web".to_owned()),
            ("tier".to_owned(), String::new()),
        ]);
        for (selector, expected) in [
            ("", true),
            ("app", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier", true),
            ("app!=web", false),
            ("app!=db", true),
            ("other!=db", true),
            ("other=db", false),
            ("!other", true),
            ("!app", false),
            ("app in (db, web),tier", true),
            ("app in (db)", false),
            ("app notin (db,web)", false),
            ("other notin (db)", true),
            ("tier=", true),
        ] {
            let labels_of = split(selector).into_iter().map(requirement);
            let selector_ =
                Selector { labels: labels_of.collect::<Result<_, _>>().unwrap(), fields: vec![] };
            assert_eq!(selector_.accepts_labels(Some(&labels)), expected, "{selector}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for selector in ["=x", "a b", "a in x", "a in (x", "a of (x)", "!", "(x)"] {
            assert!(
                split(selector)
                    .into_iter()
                    .try_for_each(|part| requirement(part).map(drop))
                    .is_err(),
                "{selector}"
            );
        }
        for selector in ["metadata.name", "spec.nodeName=a", "=a"] {
            assert!(field(selector).is_err(), "{selector}");
        }
        assert!(
            matches!(field("metadata.name!=a"), Ok((Field::Name, false, value)) if value == "a")
        );
    }
}
