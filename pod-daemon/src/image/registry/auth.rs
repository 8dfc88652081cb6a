//! Credentials: the files of docker and podman, and secrets of the same form.
//!
//! They belong to a host, or to a path on one, and go nowhere else. They are never shown.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Endpoint, Error};
use crate::image::name::DOCKER;

/// One of these has every entry that is not empty.
const CREDENTIALS: [&str; 5] = ["auth", "username", "password", "identitytoken", "registrytoken"];

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RegistryAuth {
    /// Host, port and perhaps a path; `*` stands for one part of a host's name.
    place: String,
    kind: Kind,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Kind {
    Password { user: String, password: String },
    Token(String),
}

/// A text is no docker configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

/// What the entries of a text say, and what is wrong with those that are of no use.
type Entries = (Vec<RegistryAuth>, Vec<Malformed>);

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl RegistryAuth {
    /// A user's password for a registry.
    #[must_use]
    pub fn new(server: &str, user: &str, password: &str) -> Self {
        let kind = Kind::Password { user: user.to_owned(), password: password.to_owned() };
        Self { place: place(server), kind }
    }

    pub(super) fn for_client(&self) -> oci_client::secrets::RegistryAuth {
        use oci_client::secrets::RegistryAuth::{Basic, Bearer};
        match &self.kind {
            Kind::Password { user, password } => Basic(user.clone(), password.clone()),
            Kind::Token(token) => Bearer(token.clone()),
        }
    }

    /// Whether these are meant for the endpoint.
    fn fits(&self, endpoint: &Endpoint) -> bool {
        let (host, path) = self.place.split_once('/').unwrap_or((&self.place, ""));
        let fits_path = path.is_empty()
            || endpoint
                .repository
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        fits_path && fits_host(host, &endpoint.host)
    }
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryAuth").field("place", &self.place).finish_non_exhaustive()
    }
}

/// Reads what is in docker's `config.json`, podman's `auth.json`, and secrets of the types
/// `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`.
///
/// An entry that is of no use costs a warning, and no other host its credentials.
pub fn parse_docker_config(text: &str) -> Result<Vec<RegistryAuth>, Malformed> {
    let (found, problems) = entries(text)?;
    for problem in problems {
        tracing::warn!(%problem, "credentials in a secret are not used");
    }
    Ok(found)
}

fn entries(text: &str) -> Result<Entries, Malformed> {
    let not_json = |error: serde_json::Error| {
        // Neither the text nor the part of it that serde would quote.
        Malformed(format!("it is not JSON of the right form, at line {}", error.line()))
    };
    let value: Value = serde_json::from_str(text).map_err(not_json)?;
    let Value::Object(mut object) = value else {
        return Err(Malformed(String::from("it is not a JSON object")));
    };
    let object = match object.remove("auths") {
        Some(Value::Object(auths)) => auths,
        Some(Value::Null) => Map::new(),
        Some(_) => return Err(Malformed(String::from("its `auths` is not a JSON object"))),
        // The older form, which is what is in `auths`; or, since docker writes files without it
        // too, settings alone.
        None => {
            object.retain(|_, value| CREDENTIALS.iter().any(|field| value.get(field).is_some()));
            object
        }
    };
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for (server, value) in object {
        match Entry::parse(&server, value) {
            Ok(auth) => found.extend(auth),
            Err(problem) => problems.push(problem),
        }
    }
    Ok((found, problems))
}

impl Entry {
    /// Reads an entry; the error names the host, and neither the text nor a part of it.
    fn parse(server: &str, value: Value) -> Result<Option<RegistryAuth>, Malformed> {
        let wrong = |problem: &str| Malformed(format!("the entry for {server:?} {problem}"));
        serde_json::from_value::<Self>(value)
            .map_err(|_quotes_it| wrong("is not of the right form"))?
            .read(server, wrong)
    }

    fn read(
        self,
        server: &str,
        wrong: impl Fn(&str) -> Malformed,
    ) -> Result<Option<RegistryAuth>, Malformed> {
        if let Some(token) = self.registrytoken.filter(|token| !token.is_empty()) {
            return Ok(Some(RegistryAuth { place: place(server), kind: Kind::Token(token) }));
        }
        // Beside it docker writes an `auth` that has no password.
        if self.identitytoken.is_some_and(|token| !token.is_empty()) {
            return Err(wrong(
                "has an identity token; identity tokens are not supported; log in with a password",
            ));
        }
        if let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) {
            let bytes = general_purpose::STANDARD
                .decode(auth.trim())
                .map_err(|_error| wrong("has an `auth` that is not base64"))?;
            let text = String::from_utf8(bytes)
                .map_err(|_error| wrong("has an `auth` that is not UTF-8"))?;
            let (user, password) =
                text.split_once(':').ok_or_else(|| wrong("has an `auth` without a colon"))?;
            // docker pads with zero bytes.
            let password = password.trim_end_matches('\0');
            return Ok(Some(RegistryAuth::new(server, user, password)));
        }
        // With a credential helper, docker leaves an empty entry here.
        let both = self.username.zip(self.password);
        Ok(both.map(|(user, password)| RegistryAuth::new(server, &user, &password)))
    }
}

/// The credentials to try at the endpoint, one after the other: the secrets', then the node's.
pub(in crate::image) fn candidates(
    endpoint: &Endpoint,
    secrets: &[RegistryAuth],
    auth_file: Option<&Path>,
) -> Result<Vec<RegistryAuth>, Error> {
    let mut fitting: Vec<_> = secrets.iter().filter(|auth| auth.fits(endpoint)).cloned().collect();
    // The longer the path, the more it is meant.
    fitting.sort_by_key(|auth| std::cmp::Reverse(auth.place.len()));
    let (files, must_be) = match auth_file {
        Some(file) => (vec![file.to_owned()], true),
        None => (usual_files(), false),
    };
    for file in files {
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_be => continue,
            Err(error) => {
                return Err(Error::settings(format!("cannot read `{}`: {error}", file.display())));
            }
        };
        let (mut found, problems) = entries(&text)
            .map_err(|error| Error::settings(format!("`{}`: {error}", file.display())))?;
        for problem in problems {
            tracing::warn!(file = %file.display(), %problem, "credentials in a file are not used");
        }
        found.retain(|auth| auth.fits(endpoint));
        found.sort_by_key(|auth| std::cmp::Reverse(auth.place.len()));
        fitting.extend(found);
    }
    Ok(fitting)
}

/// Where podman and docker have their credentials, in podman's order.
fn usual_files() -> Vec<PathBuf> {
    let home = || env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let run = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let run = run.map(|run| run.join("containers/auth.json"));
    run.into_iter()
        .chain([
            PathBuf::from("/run/containers/0/auth.json"),
            home().join(".config/containers/auth.json"),
            PathBuf::from("/etc/containers/auth.json"),
            home().join(".docker/config.json"),
        ])
        .collect()
}

/// `https://index.docker.io/v1/` becomes `docker.io`, `https://r.example/v2/a` `r.example/a`.
fn place(server: &str) -> String {
    let text = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://"));
    let text = text.unwrap_or(server).trim_end_matches('/');
    let (host, path) = text.split_once('/').unwrap_or((text, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER,
        other => other,
    };
    let (version, rest) = path.split_once('/').unwrap_or((path, ""));
    let path = if matches!(version, "v1" | "v2") { rest } else { path };
    match path.trim_matches('/') {
        "" => host.to_owned(),
        path => format!("{host}/{path}"),
    }
}

/// As kubelet: parts are compared one by one, and `*` stands for one whole part or a piece of it.
fn fits_host(pattern: &str, host: &str) -> bool {
    fn split(text: &str) -> (&str, Option<&str>) {
        match text.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, Some(port)),
            _ => (text, None),
        }
    }
    let ((pattern, pattern_port), (host, port)) = (split(pattern), split(host));
    let parts: Vec<_> = pattern.split('.').collect();
    let own: Vec<_> = host.split('.').collect();
    pattern_port == port
        && parts.len() == own.len()
        && parts.iter().zip(own).all(|(pattern, part)| fits_part(pattern, part))
}

fn fits_part(pattern: &str, part: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern.eq_ignore_ascii_case(part),
        Some((before, after)) => {
            let rest = part.strip_prefix(before);
            rest.is_some_and(|rest| {
                (0..=rest.len()).filter_map(|at| rest.get(at..)).any(|rest| fits_part(after, rest))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Trust, *};

    fn endpoint(host: &str, repository: &str) -> Endpoint {
        let (host, repository) = (host.to_owned(), repository.to_owned());
        Endpoint { host, repository, trust: Trust::Anybody }
    }

    #[test]
    fn files_of_docker_and_podman_are_read() {
        let auth = general_purpose::STANDARD.encode("me:pa:ss");
        let text = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}},
            "r.example:5000/team":{{"username":"u","password":"p"}},"helped.example":{{}}}},
            "credsStore":"desktop"}}"#
        );
        let found = parse_docker_config(&text).unwrap();
        assert_eq!(
            found,
            [
                RegistryAuth::new("docker.io", "me", "pa:ss"),
                RegistryAuth::new("r.example:5000/team", "u", "p"),
            ]
        );
        // The older form.
        let old = format!(r#"{{"r.example":{{"auth":"{auth}","email":"x"}}}}"#);
        assert_eq!(parse_docker_config(&old).unwrap().len(), 1);
    }

    #[test]
    fn settings_beside_credentials_are_none() {
        for settings in [
            r#"{"credsStore":"desktop"}"#,
            r#"{"experimental":"enabled"}"#,
            r#"{"currentContext":"default"}"#,
            r#"{"cliPluginsExtraDirs":["/x"],"proxies":{"default":{"httpProxy":"http://p"}}}"#,
            r#"{"auths":null}"#,
            "{}",
        ] {
            let (found, problems) = entries(settings).unwrap();
            assert!(found.is_empty() && problems.is_empty(), "{settings}: {problems:?}");
        }
        let old = r#"{"experimental":"enabled","r.example":{"username":"u","password":"p"}}"#;
        assert_eq!(parse_docker_config(old).unwrap(), [RegistryAuth::new("r.example", "u", "p")]);
    }

    #[test]
    fn a_bad_entry_is_skipped_and_its_host_named() {
        for bad in [
            r#"{"auth":"hunter2"}"#,
            r#"{"auth":"aHVudGVyMg=="}"#,
            r#"{"auth":["hunter2"]}"#,
            r#"{"auth":7}"#,
            r#""hunter2""#,
        ] {
            let good = r#""r.example":{"username":"u","password":"p"}"#;
            let text = format!(r#"{{"auths":{{"bad.example":{bad},{good}}}}}"#);
            let (found, problems) = entries(&text).unwrap();
            assert_eq!(found, [RegistryAuth::new("r.example", "u", "p")], "{bad}");
            let problem = problems[0].to_string();
            assert!(problem.contains("bad.example") && !problem.contains("hunter2"), "{problem}");
        }
        // A file that is meant, and is no such file at all, is an error.
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("auth.json");
        for (text, is_good) in [("hunter2", false), ("[]", false), (r#"{"a":{"auth":7}}"#, true)] {
            fs::write(&file, text).unwrap();
            let found = candidates(&endpoint("r.example", "a"), &[], Some(&file));
            assert_eq!(found.is_ok(), is_good, "{text}");
        }
    }

    #[test]
    fn an_identity_token_is_not_taken_for_a_password() {
        // As docker writes it: a user without a password, and the token beside it.
        let auth = general_purpose::STANDARD.encode("00000000-0000-0000-0000-000000000000:");
        let text =
            format!(r#"{{"auths":{{"r.example":{{"auth":"{auth}","identitytoken":"hunter2"}}}}}}"#);
        let (found, problems) = entries(&text).unwrap();
        assert!(found.is_empty());
        let problem = problems[0].to_string();
        assert!(problem.contains("r.example") && problem.contains("not supported"), "{problem}");
        assert!(!problem.contains("hunter2"), "{problem}");
        // An empty one is none.
        let auth = general_purpose::STANDARD.encode("u:p");
        let text = format!(r#"{{"r.example":{{"auth":"{auth}","identitytoken":""}}}}"#);
        assert_eq!(entries(&text).unwrap().0, [RegistryAuth::new("r.example", "u", "p")]);
    }

    #[test]
    fn credentials_go_to_their_host_and_path_only() {
        for (server, host, repository, expected) in [
            ("r.example", "r.example", "a", true),
            ("R.Example", "r.example", "a", true),
            ("r.example", "r.example:5000", "a", false),
            ("r.example:5000", "r.example", "a", false),
            ("r.example", "evil-r.example", "a", false),
            ("r.example", "r.example.evil", "a", false),
            ("r.example/team", "r.example", "team/a", true),
            ("r.example/team", "r.example", "teammate/a", false),
            ("*.example", "r.example", "a", true),
            ("*.example", "a.r.example", "a", false),
            ("r*.example", "r1.example", "a", true),
            ("https://index.docker.io/v1/", "docker.io", "library/nginx", true),
            ("https://r.example/v2/", "r.example", "a", true),
            ("https://r.example/v2/team", "r.example", "team/a", true),
            ("r.example/v2ray", "r.example", "v2ray/a", true),
            ("r.example/v2ray", "r.example", "ray", false),
            ("r.example/v1", "r.example", "a", true),
            ("[::1]:5000", "[::1]:5000", "a", true),
        ] {
            let auth = RegistryAuth::new(server, "u", "p");
            assert_eq!(auth.fits(&endpoint(host, repository)), expected, "{server} {host}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let auth = RegistryAuth::new("r.example", "user-1", "hunter2");
        let shown = format!("{auth:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("user-1"), "{shown}");
        for text in ["hunter2", r#"{"auths":"hunter2"}"#, r#"["hunter2"]"#] {
            let error = parse_docker_config(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
