//! The part of an image's config that a container needs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::digest::Digest;

/// What the image says about how to run it; a pod's manifest overrides it.
///
/// All of it was written by whoever made the image: to be checked where it is used, never trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments after `entrypoint`, or the whole command without one.
    pub cmd: Vec<String>,
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    /// The directory to start in.
    pub working_dir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// The signal that asks the program to leave, by name or number.
    pub stop_signal: Option<String>,
    /// The image's labels.
    pub labels: BTreeMap<String, String>,
    /// Paths the image expects to be volumes.
    pub volumes: Vec<String>,
}

/// A config document: [`Config`] and what its layers are.
pub(super) struct Document {
    pub(super) config: Config,
    pub(super) diff_ids: Vec<Digest>,
    pub(super) os: String,
    pub(super) architecture: String,
}

#[derive(Deserialize)]
struct RawDocument {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    config: Option<RawConfig>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
}

impl Document {
    /// Parses a config of either format: OCI's is docker's with fewer fields.
    pub(super) fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let raw: RawDocument = serde_json::from_slice(json)?;
        let config = raw.config.unwrap_or_default();
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Self {
            config: Config {
                entrypoint: config.entrypoint.unwrap_or_default(),
                cmd: config.cmd.unwrap_or_default(),
                env: config.env.unwrap_or_default(),
                working_dir: given(config.working_dir),
                user: given(config.user),
                stop_signal: given(config.stop_signal),
                labels: config.labels.unwrap_or_default(),
                volumes: config.volumes.unwrap_or_default().into_keys().collect(),
            },
            diff_ids: raw.rootfs.diff_ids.unwrap_or_default(),
            os: raw.os,
            architecture: raw.architecture,
        })
    }
}

/// This machine's architecture as images name it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_empty_mean_not_given() {
        let json = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},
            "config":{"Entrypoint":null,"Cmd":["sh"],"User":"","Volumes":{"/data":{}},"Labels":null}}"#;

        let document = Document::parse(json).unwrap();

        let expected =
            Config { cmd: vec!["sh".into()], volumes: vec!["/data".into()], ..Config::default() };
        assert_eq!(document.config, expected);
    }
}
