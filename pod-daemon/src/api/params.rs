//! What a request says besides its path: query parameters and bodies.

use std::{convert::Infallible, str::FromStr};

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Query, Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::Failure;
use crate::manifest::{self, Unsupported};

/// The query parameters of a request, each of which may come several times.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// The parameter's value, unless it is missing or empty.
    pub(super) fn text(&self, name: &'static str) -> Option<&str> {
        self.all(name).find(|value| !value.is_empty())
    }

    /// Every value of the parameter.
    pub(super) fn all(&self, name: &'static str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether the parameter is on, in the words that Go's `ParseBool` takes.
    pub(super) fn flag(&self, name: &'static str) -> Result<bool, Failure> {
        match self.all(name).next() {
            None | Some("0" | "f" | "F" | "false" | "False" | "FALSE") => Ok(false),
            Some("" | "1" | "t" | "T" | "true" | "True" | "TRUE") => Ok(true),
            Some(value) => Err(Failure::bad_request(format!("{name}: `{value}` is no boolean"))),
        }
    }

    /// The parameter's value read as a `T`.
    pub(super) fn parsed<T: FromStr>(&self, name: &'static str) -> Result<Option<T>, Failure> {
        let parse = |value: &str| {
            let failure = || Failure::bad_request(format!("{name}: `{value}` cannot be read"));
            value.parse().ok().ok_or_else(failure)
        };
        self.text(name).map(parse).transpose()
    }

    /// How strict to be about unsupported fields: the client may say, else the daemon's way.
    pub(super) fn policy(&self, default: Unsupported) -> Result<Unsupported, Failure> {
        match self.text("fieldValidation") {
            None => Ok(default),
            Some("Strict") => Ok(Unsupported::Deny),
            Some("Warn" | "Ignore") => Ok(Unsupported::Warn),
            Some(other) => Err(Failure::bad_request(format!(
                "fieldValidation: `{other}` is not one of `Strict`, `Warn`, `Ignore`"
            ))),
        }
    }

    /// Refuses what would be done for real although it was only to be tried.
    pub(super) fn no_dry_run(&self) -> Result<(), Failure> {
        match self.text("dryRun") {
            None => Ok(()),
            Some(_) => Err(no_dry_run()),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(pairs)) => Ok(Self(pairs)),
            Err(rejection) => Err(Failure::bad_request(rejection.body_text())),
        }
    }
}

/// The body of a request: nothing, or one JSON or YAML document.
pub(super) struct Document(Option<Value>);

impl Document {
    /// The object that the request must bring.
    pub(super) fn required(self) -> Result<Value, Failure> {
        self.0.ok_or_else(|| Failure::bad_request("the request has no body"))
    }

    /// The `DeleteOptions` that the request may bring, if what is there, described by `found`, is what the
    /// client means to have deleted.
    pub(super) fn deletion(
        self,
        found: impl FnOnce() -> Result<ObjectMeta, Failure>,
    ) -> Result<Value, Failure> {
        let options = self.0.unwrap_or_default();
        if options["dryRun"].as_array().is_some_and(|asked| !asked.is_empty()) {
            return Err(no_dry_run());
        }
        if options["preconditions"].is_object() {
            let found = found()?;
            for (field, found_value) in
                [("uid", &found.uid), ("resourceVersion", &found.resource_version)]
            {
                let Some(expected) = options["preconditions"][field].as_str() else { continue };
                let found_value = found_value.as_deref().unwrap_or_default();
                if found_value != expected {
                    let name = found.name.as_deref().unwrap_or_default();
                    return Err(Failure::conflict(format!(
                        "\"{name}\" has the {field} {found_value}, not {expected}"
                    )));
                }
            }
        }
        Ok(options)
    }
}

fn no_dry_run() -> Failure {
    Failure::bad_request("dryRun is not supported yet")
}

impl<S: Send + Sync> FromRequest<S> for Document {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let yaml = is_yaml(request.headers());
        let body = Bytes::from_request(request, state).await.map_err(body_failure)?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(None));
        }
        if !yaml {
            return match serde_json::from_slice(&body) {
                Ok(value) => Ok(Self(Some(value))),
                Err(error) => Err(Failure::bad_request(format!("the body is not JSON: {error}"))),
            };
        }
        let text = str::from_utf8(&body)
            .map_err(|error| Failure::bad_request(format!("the body is not UTF-8: {error}")))?;
        let mut documents = manifest::documents(text)?;
        match documents.len() {
            0 | 1 => Ok(Self(documents.pop())),
            count => Err(Failure::bad_request(format!("the body has {count} documents, not one"))),
        }
    }
}

fn is_yaml(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|content_type| content_type.contains("yaml"))
}

fn body_failure(rejection: BytesRejection) -> Failure {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Failure::too_large("the body is larger than 3 MiB");
    }
    Failure::bad_request(rejection.body_text())
}

/// Names from the path: `{namespace}` and `{name}`, where the path has them.
pub(super) struct Names {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let pairs = axum::extract::RawPathParams::from_request_parts(parts, state).await;
        let mut names = Self { namespace: String::new(), name: String::new() };
        // A path that does not decode names nothing, and nothing by that name will be found.
        for (key, value) in pairs.iter().flatten() {
            match key {
                "namespace" => value.clone_into(&mut names.namespace),
                "name" => value.clone_into(&mut names.name),
                _ => {}
            }
        }
        Ok(names)
    }
}
