//! Names of images in registries, as docker reads them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{digest::Digest, error::Error};

/// Docker's registry, which is meant where a name has none.
pub(super) const DOCKER: &str = "docker.io";
/// Where docker's registry keeps images whose name has one part only.
const LIBRARY: &str = "library";
/// As the distribution specification and docker have it.
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// The full name of an image in a registry: `docker.io/library/nginx:latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Name {
    /// Host and port: `docker.io`, `localhost:5000`, `[::1]:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path within the registry: `library/nginx`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `latest` if the name has neither tag nor digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// What the manifest must hash to, if the name says so.
    pub(super) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository, without tag and digest.
    #[must_use]
    pub fn family(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse =
            |problem: &str| Error::Reference { text: text.to_owned(), problem: problem.to_owned() };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|_malformed| {
                    refuse("what follows `@` must be sha256: and 64 lower-case hexadecimal digits")
                })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match rest[last..].split_once(':') {
            Some((name, tag)) => (&rest[..last + name.len()], Some(tag)),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse(
                "a tag has up to 128 letters, digits, `_`, `.` and `-`, and begins with none of \
                 the last two",
            ));
        }
        // Only what looks like a host is one: `a/b` is a user's image in docker's registry.
        let (registry, path) = match path.split_once('/') {
            Some((host, path)) if is_host_like(host) => (host, path),
            _ => (DOCKER, path),
        };
        if !is_host(registry) {
            return Err(refuse("its registry is not a host name with or without a port"));
        }
        let registry = match registry {
            "index.docker.io" | "registry-1.docker.io" => DOCKER,
            other => other,
        };
        let repository = match (registry, path) {
            (DOCKER, path) if !path.contains('/') => format!("{LIBRARY}/{path}"),
            (_, path) => path.to_owned(),
        };
        if path.is_empty()
            || repository.len() > MAX_REPOSITORY
            || !repository.split('/').all(is_component)
        {
            return Err(refuse(
                "a repository's name is made of lower-case letters and digits, with single `.`, \
                 `_`, `-` or `/` between them; local images are dir:ROOTFS, oci:DIR[:TAG], \
                 oci-archive:FILE[:TAG] and docker-archive:FILE[:NAME:TAG]",
            ));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest"),
            (tag, _) => tag,
        };
        let registry = registry.to_owned();
        Ok(Self { registry, repository, tag: tag.map(str::to_owned), digest })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.to_string()
    }
}

fn is_host_like(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':']) || text.contains(char::is_uppercase)
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_name = |host: &str| {
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        host.len() <= 253 && host.split('.').all(is_label)
    };
    let is_address = |host: &str| {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
    };
    port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
        && (is_name(host) || is_address(host))
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'))
}

/// Letters and digits with separators between them: one `.`, one or two `_`, any number of `-`.
fn is_component(text: &str) -> bool {
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let separators = text.split(|c: char| c.is_ascii() && is_alphanumeric(c as u8));
    let mut separators = separators.filter(|separator| !separator.is_empty());
    text.bytes().next().is_some_and(is_alphanumeric)
        && text.bytes().last().is_some_and(is_alphanumeric)
        && separators.all(|separator| {
            matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let hash = "0".repeat(64);
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/library/nginx:a", "docker.io/library/nginx:a"),
            ("quay.io/a/b/c:v1", "quay.io/a/b/c:v1"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a:b", "localhost:5000/a:b"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("a__b/c-.d", ""),
            ("a__b/c---d", "docker.io/a__b/c---d:latest"),
        ] {
            if full.is_empty() {
                text.parse::<Name>().unwrap_err();
                continue;
            }
            assert_eq!(text.parse::<Name>().unwrap().to_string(), full);
            let digested = format!("{text}@sha256:{hash}");
            let expected = format!("{}@sha256:{hash}", full.trim_end_matches(":latest"));
            assert_eq!(digested.parse::<Name>().unwrap().to_string(), expected);
            // What is shown can be read again.
            assert_eq!(expected.parse::<Name>().unwrap().to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_reason() {
        let long = "a".repeat(256);
        let tag = format!("a:{}", "b".repeat(129));
        for (text, problem) in [
            ("", "repository's name"),
            ("Nginx", "repository's name"),
            ("a/Nginx", "repository's name"),
            ("a//b", "repository's name"),
            ("../etc/passwd", "registry is not a host"),
            ("quay.io/../b", "repository's name"),
            ("quay.io/", "repository's name"),
            ("a.b", ""),
            ("a:", "a tag has"),
            ("a:-b", "a tag has"),
            (&tag, "a tag has"),
            (&long, "repository's name"),
            ("a@sha256:00", "64 lower-case"),
            ("a@md5:00", "64 lower-case"),
            ("host:0/a", "not a host name"),
            ("host:99999/a", "not a host name"),
            ("ho_st.x/a", "not a host name"),
            ("http://host/a", "not a host name"),
            ("a b", "repository's name"),
            ("a?x=y", "repository's name"),
            ("a%2fb", "repository's name"),
        ] {
            match text.parse::<Name>() {
                Ok(name) => assert!(problem.is_empty(), "{name}"),
                Err(error) => assert!(error.to_string().contains(problem), "{text}: {error}"),
            }
        }
    }
}
