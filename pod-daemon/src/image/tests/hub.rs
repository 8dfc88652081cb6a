//! A registry in this process that does as it is told, and writes down what it was asked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Method, Request, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose};
use serde_json::json;
use tokio_util::bytes::Bytes;

use super::fixtures::{Layer, MANIFEST, config};
use crate::image::digest::Digest;

/// A registry on a port of its own.
#[derive(Clone)]
pub(super) struct Hub {
    pub(super) host: String,
    state: Arc<Mutex<Inner>>,
}

#[derive(Default)]
pub(super) struct Inner {
    blobs: HashMap<String, Bytes>,
    manifests: HashMap<String, (String, Bytes)>,
    pub(super) rules: Rules,
    pub(super) requests: Vec<Asked>,
    open: usize,
    pub(super) most_open: usize,
}

/// What is sent instead of these bytes.
pub(super) type Lie = fn(&[u8]) -> Vec<u8>;

/// How the registry behaves.
#[derive(Clone, Default)]
pub(super) struct Rules {
    /// Blobs end after so many bytes, so many times.
    pub(super) cut: Option<(usize, usize)>,
    /// Bytes that are sent for every layer instead of its own.
    pub(super) lie: Option<Lie>,
    /// Where blobs really are.
    pub(super) redirect: Option<String>,
    pub(super) access: Access,
    /// What `Docker-Content-Digest` says of manifests.
    pub(super) digest_header: Option<String>,
    /// `HEAD` is no method here.
    pub(super) no_head: bool,
    /// Ranges are ignored.
    pub(super) no_ranges: bool,
    /// Answers take this long.
    pub(super) delay_ms: u64,
    /// Every answer has this status.
    pub(super) status: Option<u16>,
}

#[derive(Clone, Default)]
pub(super) enum Access {
    #[default]
    Anybody,
    Basic(&'static str),
    /// Tokens are had for this password, at this host or here.
    Token(&'static str, Option<String>),
}

/// A request, as far as tests look at it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) authorization: Option<String>,
}

impl Hub {
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let hub = Self { host, state: Arc::default() };
        let router = Router::new().fallback(answer).with_state(hub.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        hub
    }

    pub(super) fn state(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap()
    }

    pub(super) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host)
    }

    /// Stores an image, and returns the digest of its manifest.
    pub(super) fn push(&self, repository: &str, tag: &str, layers: &[Layer]) -> Digest {
        let config = self.blob(&config(layers));
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| {
                let (digest, size) = self.blob(&layer.blob);
                json!({"mediaType": layer.media_type, "digest": digest.to_string(), "size": size})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.0.to_string(),
                "size": config.1,
            },
            "layers": layers,
        });
        self.document(repository, tag, MANIFEST, manifest.to_string().as_bytes())
    }

    /// Stores a document under a tag and under its digest.
    pub(super) fn document(&self, repository: &str, tag: &str, kind: &str, json: &[u8]) -> Digest {
        let digest = Digest::of(json);
        let mut state = self.state();
        for name in [tag.to_owned(), digest.to_string()] {
            let path = format!("/v2/{repository}/manifests/{name}");
            state.manifests.insert(path, (kind.to_owned(), Bytes::copy_from_slice(json)));
        }
        digest
    }

    fn blob(&self, bytes: &[u8]) -> (Digest, usize) {
        let digest = Digest::of(bytes);
        self.state().blobs.insert(digest.to_string(), Bytes::copy_from_slice(bytes));
        (digest, bytes.len())
    }

    pub(super) fn rules(&self, rules: Rules) {
        self.state().rules = rules;
    }

    /// The requests since the last time.
    pub(super) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().requests)
    }

    /// How often manifests were asked about and asked for since the last time.
    pub(super) fn asked_manifests(&self) -> [usize; 2] {
        let asked = self.asked();
        [Method::HEAD, Method::GET].map(|method| {
            let is_meant =
                |asked: &&Asked| asked.method == method && asked.path.contains("/manifests/");
            asked.iter().filter(is_meant).count()
        })
    }

    /// The requests for blobs since the last time.
    pub(super) fn asked_blobs(&self) -> Vec<Asked> {
        let asked = self.asked().into_iter();
        asked.filter(|asked| asked.path.contains("/blobs/")).collect()
    }
}

async fn answer(State(hub): State<Hub>, request: Request<Body>) -> Response {
    let text = |headers: &HeaderMap, name| Some(headers.get(name)?.to_str().ok()?.to_owned());
    let headers = request.headers();
    let asked = Asked {
        method: request.method().clone(),
        path: request.uri().to_string(),
        range: text(headers, header::RANGE),
        authorization: text(headers, header::AUTHORIZATION),
    };
    let delay = {
        let mut state = hub.state();
        state.requests.push(asked.clone());
        state.open += 1;
        state.most_open = state.most_open.max(state.open);
        state.rules.delay_ms
    };
    tokio::time::sleep(std::time::Duration::from_millis(delay)).await;
    let mut state = hub.state();
    state.open -= 1;
    respond(&hub.host, &mut state, &asked)
}

fn respond(host: &str, state: &mut Inner, asked: &Asked) -> Response {
    let rules = state.rules.clone();
    if let Some(status) = rules.status {
        return (StatusCode::from_u16(status).unwrap(), "the registry is ill").into_response();
    }
    if rules.no_head && asked.method == Method::HEAD {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let path = asked.path.split('?').next().unwrap();
    let given = asked.authorization.as_deref();
    let basic = |password: &str| {
        Some(format!("Basic {}", general_purpose::STANDARD.encode(format!("user:{password}"))))
    };
    if path == "/token" {
        let Access::Token(password, _) = rules.access else { unreachable!("nobody said so") };
        return if given == basic(password).as_deref() {
            axum::Json(json!({"token": "secret-token"})).into_response()
        } else {
            denied("Basic realm=\"token\"", "wrong password")
        };
    }
    match &rules.access {
        Access::Anybody => {}
        Access::Basic(password) if given == basic(password).as_deref() => {}
        Access::Basic(_) => return denied("Basic realm=\"hub\"", "authentication required"),
        Access::Token(..) if given == Some("Bearer secret-token") => {}
        Access::Token(_, elsewhere) => {
            let host = elsewhere.as_deref().unwrap_or(host);
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"hub\"");
            return denied(&challenge, "authentication required");
        }
    }
    if path == "/v2/" {
        return "{}".into_response();
    }
    if let Some((kind, json)) = state.manifests.get(path) {
        let digest = rules.digest_header.unwrap_or_else(|| Digest::of(json).to_string());
        let headers = [("content-type", kind.clone()), ("docker-content-digest", digest)];
        return (headers, json.clone()).into_response();
    }
    let digest = path.rsplit('/').next().unwrap();
    if let Some(place) = rules.redirect {
        return (StatusCode::TEMPORARY_REDIRECT, [("location", format!("http://{place}{path}"))])
            .into_response();
    }
    let Some(bytes) = state.blobs.get(digest).cloned() else {
        let error = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no such thing"}]});
        return (StatusCode::NOT_FOUND, axum::Json(error)).into_response();
    };
    // Configs are true, or there would be no layers to lie about.
    let bytes = match rules.lie {
        Some(lie) if !bytes.starts_with(b"{") => Bytes::from(lie(&bytes)),
        _ => bytes,
    };
    let from = asked.range.as_deref().filter(|_| !rules.no_ranges);
    let from = from.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let start = from.unwrap_or(0_usize).min(bytes.len());
    let rest = bytes.slice(start..);
    let status = if from.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let length = rest.len();
    let body = match &mut state.rules.cut {
        Some((at, times)) if *times > 0 && *at < length && !bytes.starts_with(b"{") => {
            *times -= 1;
            let pieces = [Ok(rest.slice(..*at)), Err(std::io::Error::other("cut"))];
            // A piece and its end in one go would be one answer that is never sent.
            let pieces = futures_util::stream::iter(pieces);
            let pieces = futures_util::StreamExt::then(pieces, |piece| async move {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                piece
            });
            Body::from_stream(pieces)
        }
        _ => Body::from(rest),
    };
    (status, [("content-length", length.to_string())], body).into_response()
}

fn denied(challenge: &str, message: &str) -> Response {
    let error = json!({"errors": [{"code": "UNAUTHORIZED", "message": message}]});
    (StatusCode::UNAUTHORIZED, [("www-authenticate", challenge)], axum::Json(error)).into_response()
}

impl Hub {
    /// The size of a manifest.
    pub(super) fn state_size(&self, repository: &str, digest: &Digest) -> usize {
        self.state().manifests[&format!("/v2/{repository}/manifests/{digest}")].1.len()
    }
}
