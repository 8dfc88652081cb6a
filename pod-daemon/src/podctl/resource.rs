//! What a command line names: `pods`, `po web`, `pod/web cm/conf`.

use std::fmt;

use super::{Error, client::Path};

/// A kind of object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Pod,
    ConfigMap,
    Secret,
    Event,
}

impl Kind {
    /// Reads a kind's name in the forms that kubectl takes.
    pub(super) fn parse(word: &str) -> Result<Self, Error> {
        match word.to_ascii_lowercase().as_str() {
            "pod" | "pods" | "po" => Ok(Self::Pod),
            "configmap" | "configmaps" | "cm" => Ok(Self::ConfigMap),
            "secret" | "secrets" => Ok(Self::Secret),
            "event" | "events" | "ev" => Ok(Self::Event),
            _ => Err(Error::Usage(format!(
                "there is no kind `{word}`; there are pods (po), configmaps (cm), secrets and \
                 events (ev)"
            ))),
        }
    }

    /// The kind's name in the paths of the API.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Pod => "pods",
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::Event => "events",
        }
    }

    /// The path of one object.
    pub(super) fn path(self, namespace: &str, name: &str) -> Path {
        Path::new(&["api", "v1", "namespaces", namespace, self.plural(), name])
    }

    /// The path of all objects of a namespace, or of all namespaces.
    pub(super) fn list_path(self, namespace: Option<&str>) -> Path {
        match namespace {
            Some(namespace) => Path::new(&["api", "v1", "namespaces", namespace, self.plural()]),
            None => Path::new(&["api", "v1", self.plural()]),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
            Self::Event => "event",
        })
    }
}

/// All objects of a kind, or some of them by name.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Resources {
    pub(super) kind: Kind,
    pub(super) names: Vec<String>,
}

/// Reads what a command is about, each kind once and in the order of the command line.
pub(super) fn parse(words: &[String]) -> Result<Vec<Resources>, Error> {
    let mut found: Vec<Resources> = Vec::new();
    if !words.iter().any(|word| word.contains('/')) {
        let (kind, names) = words
            .split_first()
            .ok_or_else(|| Error::Usage("name a kind, like `pods`".to_owned()))?;
        let names = names.to_vec();
        return Ok(vec![Resources { kind: Kind::parse(kind)?, names }]);
    }
    for word in words {
        let (kind, name) = word.split_once('/').ok_or_else(|| {
            Error::Usage(format!("`{word}` stands beside KIND/NAME, but is not of that form"))
        })?;
        let kind = Kind::parse(kind)?;
        if name.is_empty() {
            return Err(Error::Usage(format!("`{word}` has no name")));
        }
        match found.iter_mut().find(|resources| resources.kind == kind) {
            Some(resources) => resources.names.push(name.to_owned()),
            None => found.push(Resources { kind, names: vec![name.to_owned()] }),
        }
    }
    Ok(found)
}

/// Reads the name of a pod: `web` or `pod/web`.
pub(super) fn pod_name(word: &str) -> Result<&str, Error> {
    match word.split_once('/') {
        None => Ok(word),
        Some((kind, name)) if !name.is_empty() && Kind::parse(kind)? == Kind::Pod => Ok(name),
        Some(_) => Err(Error::Usage(format!("`{word}` does not name a pod"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<String> {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let resources = parse(&words).ok()?;
        let one = |r: &Resources| format!("{} {}", r.kind, r.names.join(","));
        Some(resources.iter().map(one).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn resources_are_read_in_kubectls_forms() {
        for (line, expected) in [
            ("pods", Some("pod ")),
            ("po web db", Some("pod web,db")),
            ("Pod web", Some("pod web")),
            ("pod/web", Some("pod web")),
            ("pod/web cm/a po/db", Some("pod web,db; configmap a")),
            ("cm", Some("configmap ")),
            ("secrets", Some("secret ")),
            ("ev", Some("event ")),
            ("", None),
            ("services", None),
            ("pod/web db", None),
            ("pod/", None),
            ("svc/web", None),
        ] {
            assert_eq!(parsed(line).as_deref(), expected, "{line}");
        }
    }
}
