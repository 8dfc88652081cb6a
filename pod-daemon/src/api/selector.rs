//! `labelSelector` and `fieldSelector`.

use std::collections::BTreeMap;

use k8s_openapi::{
    Metadata,
    api::core::v1::{ConfigMap, Event, Pod, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{Failure, params::Params};

/// The fields that every object can be selected by.
const METADATA: [&str; 2] = ["metadata.name", "metadata.namespace"];

/// What can be selected.
pub(super) trait Selectable: Metadata<Ty = ObjectMeta> {
    /// Its fields beside those of every object.
    const FIELDS: &'static [&'static str] = &[];

    /// The value of one of them.
    fn field(&self, _name: &str) -> Option<&str> {
        None
    }
}

impl Selectable for ConfigMap {}

impl Selectable for Secret {
    const FIELDS: &'static [&'static str] = &["type"];

    fn field(&self, _name: &str) -> Option<&str> {
        self.type_.as_deref()
    }
}

impl Selectable for Pod {
    /// Those of Kubernetes.
    const FIELDS: &'static [&'static str] = &[
        "spec.hostNetwork",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.nominatedNodeName",
        "status.phase",
        "status.podIP",
    ];

    fn field(&self, name: &str) -> Option<&str> {
        let (spec, status) = (self.spec.as_ref(), self.status.as_ref());
        match name {
            "spec.hostNetwork" if spec?.host_network == Some(true) => Some("true"),
            "spec.hostNetwork" => Some("false"),
            "spec.nodeName" => spec?.node_name.as_deref(),
            "spec.restartPolicy" => spec?.restart_policy.as_deref(),
            "spec.schedulerName" => spec?.scheduler_name.as_deref(),
            "spec.serviceAccountName" => spec?.service_account_name.as_deref(),
            "status.nominatedNodeName" => status?.nominated_node_name.as_deref(),
            "status.phase" => status?.phase.as_deref(),
            "status.podIP" => status?.pod_ip.as_deref(),
            _ => None,
        }
    }
}

impl Selectable for Event {
    const FIELDS: &'static [&'static str] = &[
        "involvedObject.apiVersion",
        "involvedObject.fieldPath",
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.uid",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ];

    fn field(&self, name: &str) -> Option<&str> {
        let about = &self.involved_object;
        let value = match name {
            "involvedObject.apiVersion" => &about.api_version,
            "involvedObject.fieldPath" => &about.field_path,
            "involvedObject.kind" => &about.kind,
            "involvedObject.name" => &about.name,
            "involvedObject.namespace" => &about.namespace,
            "involvedObject.uid" => &about.uid,
            "reason" => &self.reason,
            "reportingComponent" => &self.reporting_component,
            "source" => &self.source.as_ref()?.component,
            "type" => &self.type_,
            _ => &None,
        };
        value.as_deref()
    }
}

/// Which objects are meant.
#[derive(Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    /// Names, whether the value is to be this one, and the value.
    fields: Vec<(&'static str, bool, String)>,
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

impl Selector {
    /// The objects of the type `T` that a request is about.
    pub(super) fn of<T: Selectable>(params: &Params) -> Result<Self, Failure> {
        let labels = split(params.text("labelSelector").unwrap_or_default());
        let fields = split(params.text("fieldSelector").unwrap_or_default());
        Ok(Self {
            labels: labels.into_iter().map(requirement).collect::<Result<_, _>>()?,
            fields: fields.into_iter().map(field::<T>).collect::<Result<_, _>>()?,
        })
    }

    /// Whether it accepts everything.
    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn accepts<T: Selectable>(&self, object: &T) -> bool {
        let metadata = object.metadata();
        let fields = self.fields.iter().all(|(name, equal, expected)| {
            let value = match *name {
                "metadata.name" => metadata.name.as_deref(),
                "metadata.namespace" => metadata.namespace.as_deref(),
                name => object.field(name),
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

fn field<T: Selectable>(text: &str) -> Result<(&'static str, bool, String), Failure> {
    let (name, equal, value) = if let Some((name, value)) = text.split_once("!=") {
        (name, false, value)
    } else {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            Failure::bad_request(format!("fieldSelector: `{text}` cannot be read"))
        })?;
        (name, true, value.trim_start_matches('='))
    };
    let known = METADATA.iter().chain(T::FIELDS);
    let Some(name) = known.clone().find(|known| **known == name.trim()) else {
        let known: Vec<_> = known.map(|name| format!("`{name}`")).collect();
        return Err(Failure::bad_request(format!(
            "fieldSelector: `{}` is not one of {}",
            name.trim(),
            known.join(", ")
        )));
    };
    Ok((name, equal, value.trim().to_owned()))
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
        for selector in ["metadata.name", "spec.volumes=a", "=a"] {
            assert!(field::<Pod>(selector).is_err(), "{selector}");
        }
        assert!(matches!(
            field::<Pod>("metadata.name!=a"),
            Ok(("metadata.name", false, value)) if value == "a"
        ));
        assert!(field::<Event>("status.phase=a").is_err());
    }
}
