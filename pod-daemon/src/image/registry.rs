//! Registries: which hosts to ask for an image, how to reach them, and with whose credentials.

mod auth;
mod download;
mod error;
mod session;

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use oci_client::client::{Certificate, CertificateEncoding};
use serde::Deserialize;

use super::name::{DOCKER, Name};

pub use self::auth::{Malformed, RegistryAuth, parse_docker_config};
pub(super) use self::{
    auth::candidates,
    download::{Report, download},
    error::{Error, Kind},
    session::Session,
};

/// What the node's owner says about one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Registry {
    /// Host and, if it is another than the protocol's, port; as in the names of images.
    pub host: String,
    /// Hosts that have the same images and are asked first, in this order; each may be followed by
    /// a path that its repositories are below.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// Whether certificates are not verified, and plain HTTP is used where there is no TLS.
    #[serde(default)]
    pub insecure: bool,
    /// Certificates (PEM) of authorities to trust beside the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

/// Everything the node's owner says about registries.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// Those that need more than their name.
    pub registries: Vec<Registry>,
    /// The file with credentials; without one, where docker and podman have theirs.
    pub auth_file: Option<PathBuf>,
}

/// A host that may have an image.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// Host and port.
    pub(super) host: String,
    /// The repository there.
    pub(super) repository: String,
    trust: Trust,
}

/// Whom to believe to be the host.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trust {
    /// Whoever has a certificate of the system's authorities, or of these.
    Authorities(Option<PathBuf>),
    /// Whoever answers, with TLS or without.
    Anybody,
}

impl Registry {
    /// What is wrong with these settings, if anything.
    pub fn problem(&self) -> Option<String> {
        let is_host = |host: &str| {
            format!("{host}/a")
                .parse::<Name>()
                .is_ok_and(|name| name.registry() == host && name.repository() == "a")
        };
        if self.host != DOCKER && !is_host(&self.host) {
            return Some(format!(
                "{:?} is not a registry's host as in names of images, like \"registry.example:5000\"",
                self.host
            ));
        }
        let is_mirror = |mirror: &str| {
            let host = mirror.split('/').next().unwrap_or_default();
            is_host(host) && format!("{mirror}/a").parse::<Name>().is_ok()
        };
        if let Some(mirror) = self.mirrors.iter().find(|mirror| !is_mirror(mirror)) {
            return Some(format!(
                "mirror {mirror:?} is not HOST[:PORT][/PATH]; whether it is spoken to with TLS is \
                 said in a [[registry]] section of its own"
            ));
        }
        let relative = self.ca_file.as_ref().filter(|file| !file.is_absolute());
        relative.map(|file| format!("ca-file `{}` is not absolute", file.display()))
    }
}

impl Registries {
    /// Who may have this image: the mirrors, then the registry itself.
    pub(super) fn endpoints(&self, name: &Name) -> Vec<Endpoint> {
        let own = self.find(name.registry());
        let mirrors = own.iter().flat_map(|own| &own.mirrors).map(|mirror| {
            let (host, path) = mirror.split_once('/').unwrap_or((mirror, ""));
            let repository = match path {
                "" => name.repository().to_owned(),
                path => format!("{path}/{}", name.repository()),
            };
            self.endpoint(host, repository)
        });
        let own = self.endpoint(name.registry(), name.repository().to_owned());
        mirrors.chain([own]).collect()
    }

    fn endpoint(&self, host: &str, repository: String) -> Endpoint {
        let settings = self.find(host);
        let trust = match settings {
            Some(Registry { insecure: true, .. }) => Trust::Anybody,
            Some(Registry { ca_file: Some(file), .. }) => Trust::Authorities(Some(file.clone())),
            // As docker does: whoever can listen there is trusted anyway.
            _ if is_loopback(host) => Trust::Anybody,
            _ => Trust::Authorities(None),
        };
        Endpoint { host: host.to_owned(), repository, trust }
    }

    fn find(&self, host: &str) -> Option<&Registry> {
        self.registries.iter().find(|registry| registry.host == host)
    }
}

impl Endpoint {
    fn certificates(&self) -> Result<Vec<Certificate>, Error> {
        let Trust::Authorities(Some(file)) = &self.trust else { return Ok(Vec::new()) };
        let data = read(file)?;
        let certificate = Certificate { encoding: CertificateEncoding::Pem, data };
        Ok(vec![certificate])
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source: io::Error| {
        Error::settings(format!("cannot read `{}`: {source}", path.display()))
    })
}

/// Whether the host is this machine, by its name or address alone.
fn is_loopback(host: &str) -> bool {
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    };
    let address = without_port.trim_start_matches('[').trim_end_matches(']');
    without_port == "localhost"
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_first_and_have_their_own_trust() {
        let registry = |host: &str, mirrors: &[&str], insecure| Registry {
            host: host.to_owned(),
            mirrors: mirrors.iter().map(|&mirror| mirror.to_owned()).collect(),
            insecure,
            ca_file: None,
        };
        let settings = Registries {
            registries: vec![
                registry("docker.io", &["mirror.example:5000/hub", "other.example"], false),
                registry("other.example", &[], true),
            ],
            auth_file: None,
        };
        let endpoints = settings.endpoints(&"nginx".parse().unwrap());
        let shown: Vec<_> = endpoints
            .iter()
            .map(|endpoint| {
                let anybody = endpoint.trust == Trust::Anybody;
                (&*endpoint.host, &*endpoint.repository, anybody)
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("mirror.example:5000", "hub/library/nginx", false),
                ("other.example", "library/nginx", true),
                ("docker.io", "library/nginx", false),
            ]
        );
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (host, expected) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.1.2.3", true),
            ("[::1]:5000", true),
            ("localhost.example", false),
            ("127.0.0.1.example:5000", false),
            ("10.0.0.1:5000", false),
            ("[::2]:5000", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }

    #[test]
    fn settings_that_cannot_be_meant_are_named() {
        let problem = |host: &str, mirror: &str| {
            let mirrors = (!mirror.is_empty()).then(|| mirror.to_owned()).into_iter().collect();
            Registry { host: host.to_owned(), mirrors, ..Registry::default() }.problem()
        };
        assert_eq!(problem("docker.io", "m.example:5000/hub"), None);
        assert_eq!(problem("localhost:5000", ""), None);
        assert!(problem("https://a.example", "").is_some());
        assert!(problem("nginx", "").is_some());
        assert!(problem("a.example", "http://m.example").is_some());
        assert!(problem("a.example", "mirror").is_some());
    }
}
