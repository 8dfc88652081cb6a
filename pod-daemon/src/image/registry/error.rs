//! What can go wrong between this node and a registry.

use std::error::Error as _;

use oci_client::errors::OciDistributionError;
use serde::Deserialize;

/// A registry did not give what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub(in crate::image) kind: Kind,
    message: String,
}

/// What may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) enum Kind {
    /// Other credentials.
    Denied,
    /// Nothing: the registry has it not.
    Missing,
    /// To ask again, at once: the connection was cut.
    Cut,
    /// To ask later: the registry cannot be reached or does not work.
    Unavailable,
    /// To make the settings right.
    Settings,
    /// Nothing: the registry's answer makes no sense, or is a lie.
    Wrong,
}

/// How the distribution specification has errors.
#[derive(Deserialize)]
struct Envelope {
    errors: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Characters of a registry's message that are shown.
const MAX_MESSAGE: usize = 300;

impl Error {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(super) fn settings(message: String) -> Self {
        Self { kind: Kind::Settings, message }
    }

    pub(super) fn wrong(message: impl Into<String>) -> Self {
        Self { kind: Kind::Wrong, message: message.into() }
    }

    /// An answer with a status that is not success.
    pub(super) fn of_status(host: &str, what: &str, status: u16, body: &[u8]) -> Self {
        let kind = match status {
            401 | 403 => Kind::Denied,
            404 => Kind::Missing,
            408 | 429 | 500.. => Kind::Unavailable,
            _ => Kind::Wrong,
        };
        let remedy = match kind {
            Kind::Denied => {
                "; the credentials are missing or wrong: see registry-auth-file and \
                 imagePullSecrets"
            }
            Kind::Missing => "; is the name right?",
            _ => "",
        };
        let said = said(body).map(|said| format!(": {said}")).unwrap_or_default();
        Self::new(kind, format!("{host} answers {what} with HTTP {status}{said}{remedy}"))
    }

    /// A request that was not answered.
    pub(super) fn of_request(host: &str, error: &reqwest::Error) -> Self {
        // Its own text has the whole URL, where a redirect may have put a secret.
        let mut cause = error.source();
        let mut text = String::new();
        while let Some(error) = cause {
            let part = error.to_string();
            if !text.contains(&part) {
                text = if text.is_empty() { part } else { format!("{text}: {part}") };
            }
            cause = error.source();
        }
        if error.is_timeout() && text.is_empty() {
            text = String::from("timed out");
        }
        let text = if text.is_empty() { "it does not answer" } else { &text };
        let (kind, message) = if error.is_connect() {
            let remedy = if text.contains("certificate") {
                "; name its authority as ca-file in a [[registry]] section of the config file"
            } else {
                ""
            };
            (Kind::Unavailable, format!("cannot connect to {host}: {text}{remedy}"))
        } else if error.is_redirect() {
            (Kind::Wrong, format!("{host} redirects without an end"))
        } else {
            (Kind::Cut, format!("the connection to {host} broke: {text}"))
        };
        Self::new(kind, shortened(&message))
    }

    /// What the client says.
    pub(super) fn of_client(host: &str, what: &str, error: &OciDistributionError) -> Self {
        match error {
            OciDistributionError::RequestError(error) => Self::of_request(host, error),
            OciDistributionError::ServerError { code, message, .. } => {
                Self::of_status(host, what, *code, message.as_bytes())
            }
            OciDistributionError::UnauthorizedError { .. } => Self::of_status(host, what, 401, b""),
            OciDistributionError::AuthenticationFailure(reason) => {
                Self::of_status(host, "the request for a token", 401, reason.as_bytes())
            }
            OciDistributionError::RegistryError { envelope, .. } => {
                let codes: Vec<_> =
                    envelope.errors.iter().map(|error| format!("{:?}", error.code)).collect();
                let kind = match codes.first().map(String::as_str) {
                    Some("Unauthorized" | "Denied") => Kind::Denied,
                    Some("Toomanyrequests") => Kind::Unavailable,
                    Some("BlobUnknown" | "ManifestUnknown" | "NameUnknown" | "NotFound") => {
                        Kind::Missing
                    }
                    _ => Kind::Wrong,
                };
                let texts: Vec<_> =
                    envelope.errors.iter().map(|error| error.message.clone()).collect();
                let said = shortened(&texts.join(", "));
                Self::new(kind, format!("{host} answers {what} with an error: {said}"))
            }
            other => Self::wrong(format!(
                "{host} answers {what} as no registry does: {}",
                shortened(&other.to_string())
            )),
        }
    }
}

/// What the registry says about its error, fit for a terminal.
fn said(body: &[u8]) -> Option<String> {
    let text = match serde_json::from_slice::<Envelope>(body) {
        Ok(envelope) => {
            let texts = envelope.errors.iter().map(|item| match item.message.as_str() {
                "" => item.code.to_lowercase(),
                message => message.to_owned(),
            });
            texts.collect::<Vec<_>>().join(", ")
        }
        // A page for people, or of a proxy.
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text = shortened(text.trim());
    (!text.is_empty()).then_some(text)
}

fn shortened(text: &str) -> String {
    let mut plain: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect();
    if text.chars().count() > MAX_MESSAGE {
        plain.push_str("...");
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_message_is_shown_and_what_may_help() {
        let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        let error = Error::of_status("r.example", "the request for the manifest", 401, body);
        assert_eq!(error.kind, Kind::Denied);
        let text = error.to_string();
        assert!(text.contains("authentication required") && text.contains("imagePullSecrets"));

        let page = "<html>\x1b[2J".to_owned() + &"x".repeat(1000);
        let error = Error::of_status("r.example", "it", 502, page.as_bytes());
        assert_eq!(error.kind, Kind::Unavailable);
        let text = error.to_string();
        assert!(text.len() < 400 && !text.contains('\x1b') && text.ends_with("..."), "{text}");
    }
}
