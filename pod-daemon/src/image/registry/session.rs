//! One registry, one repository, one user: asks for manifests and blobs.
//!
//! Nothing is shared between sessions, so that no pod pulls with another pod's credentials. A
//! redirect to another host is followed without them.

use std::{sync::Once, time::Duration};

use futures_util::{StreamExt as _, stream::BoxStream};
use oci_client::{
    Reference, RegistryOperation,
    client::{BlobResponse, ClientConfig, ClientProtocol},
    secrets::RegistryAuth as ClientAuth,
};
use reqwest::{
    Method, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use tokio_util::bytes::Bytes;

use super::{Endpoint, Error, RegistryAuth, Trust, error::Kind};
use crate::image::{digest::Digest, files::MAX_DOCUMENT};

const USER_AGENT: &str = concat!("podscope/", env!("CARGO_PKG_VERSION"));

/// A host that is there answers within this time.
const CONNECT: Duration = Duration::from_secs(15);
/// So long nothing may come before the connection counts as broken.
const SILENCE: Duration = Duration::from_secs(60);

/// Of an error's text, which nobody should have to read whole.
const MAX_ERROR: usize = 16 << 10;

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A conversation with a registry about one repository.
pub(in crate::image) struct Session {
    host: String,
    /// Without a tag.
    reference: Reference,
    url: String,
    client: oci_client::Client,
    http: reqwest::Client,
    auth: ClientAuth,
    token: Option<String>,
}

/// A document, and what the registry says about it.
pub(in crate::image) struct Manifest {
    pub(in crate::image) json: Vec<u8>,
    pub(in crate::image) media_type: Option<String>,
    pub(in crate::image) digest: Digest,
}

/// The bytes of a blob from some position on.
pub(in crate::image) struct Rest {
    /// The registry began at the beginning, whatever it was asked for.
    pub(in crate::image) whole: bool,
    pub(in crate::image) bytes: BoxStream<'static, std::io::Result<Bytes>>,
}

impl Session {
    /// Connects, and gets a token if the registry wants one.
    pub(in crate::image) async fn open(
        endpoint: &Endpoint,
        auth: Option<&RegistryAuth>,
    ) -> Result<Self, Error> {
        use_ring();
        let host = endpoint.host.clone();
        // Reads the system's certificates, some hundred files.
        let for_scheme = |is_tls| {
            let endpoint = endpoint.clone();
            tokio::task::spawn_blocking(move || clients(&endpoint, is_tls))
        };
        let broken = |_panic| Error::wrong("the client for registries panicked");
        let reference = Reference::with_tag(host, endpoint.repository.clone(), "latest".to_owned());
        let mut is_tls = true;
        let (mut client, mut http) = for_scheme(is_tls).await.map_err(broken)??;
        if endpoint.trust == Trust::Anybody {
            let probe = http.get(format!("https://{}/v2/", reference.resolve_registry()));
            if probe.send().await.is_err_and(|error| error.is_connect()) {
                is_tls = false;
                (client, http) = for_scheme(is_tls).await.map_err(broken)??;
            }
        }
        let scheme = if is_tls { "https" } else { "http" };
        let url =
            format!("{scheme}://{}/v2/{}", reference.resolve_registry(), reference.repository());
        let auth = auth.map_or(ClientAuth::Anonymous, RegistryAuth::for_client);
        let token = client.auth(&reference, &auth, RegistryOperation::Pull).await;
        let token =
            token.map_err(|error| Error::of_client(&endpoint.host, "the first request", &error))?;
        Ok(Self { host: endpoint.host.clone(), reference, url, client, http, auth, token })
    }

    /// Who is asked.
    pub(in crate::image) fn host(&self) -> &str {
        &self.host
    }

    /// Reads the manifest or index of a tag, or that with a digest.
    pub(in crate::image) async fn manifest(&self, tag_or_digest: &str) -> Result<Manifest, Error> {
        let what = format!("the request for {}:{tag_or_digest}", self.reference.repository());
        let failed = |error: reqwest::Error| Error::of_request(&self.host, &error);
        let mut answer = self.ask(Method::GET, tag_or_digest).await.map_err(failed)?;
        let status = answer.status();
        if !status.is_success() {
            let (body, _) = read(&mut answer, MAX_ERROR).await.map_err(failed)?;
            return Err(Error::of_status(&self.host, &what, status.as_u16(), &body));
        }
        let media_type = header(&answer, CONTENT_TYPE.as_str());
        let media_type =
            media_type.map(|text| text.split(';').next().unwrap_or_default().trim().to_owned());
        let promised = promised(&answer);
        let most = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
        let (json, is_whole) = read(&mut answer, most).await.map_err(failed)?;
        if !is_whole {
            return Err(Error::wrong(format!(
                "{} answers {what} with more than {MAX_DOCUMENT} bytes; no manifest is that large",
                self.host
            )));
        }
        let digest = Digest::of(&json);
        let asked = tag_or_digest.parse::<Digest>().ok();
        if let Some(expected) = asked.or(promised).filter(|expected| *expected != digest) {
            return Err(Error::wrong(format!(
                "{} answers {what} with a document whose digest is {digest}, not {expected}",
                self.host
            )));
        }
        Ok(Manifest { json, media_type, digest })
    }

    /// The digest of a tag's manifest or index, if the registry tells it by itself. Registries that
    /// limit pulls do not count this question.
    pub(in crate::image) async fn digest(&self, tag_or_digest: &str) -> Option<Digest> {
        let answer = self.ask(Method::HEAD, tag_or_digest).await.ok()?;
        promised(&answer).filter(|_| answer.status().is_success())
    }

    async fn ask(
        &self,
        method: Method,
        tag_or_digest: &str,
    ) -> Result<reqwest::Response, reqwest::Error> {
        let url = format!("{}/manifests/{tag_or_digest}", self.url);
        let ask = || self.http.request(method.clone(), &url).header(ACCEPT, MANIFESTS);
        let request = match &self.token {
            Some(token) => ask().bearer_auth(token),
            None => ask(),
        };
        let answer = request.send().await?;
        if answer.status() == StatusCode::UNAUTHORIZED
            && self.token.is_none()
            && let ClientAuth::Basic(user, password) = &self.auth
        {
            return ask().basic_auth(user, Some(password)).send().await;
        }
        Ok(answer)
    }

    /// Reads a blob from `offset` on.
    pub(in crate::image) async fn blob(&self, digest: &Digest, offset: u64) -> Result<Rest, Error> {
        let text = digest.to_string();
        // Even from the beginning as a range, since the client would hash a whole blob once more.
        let answer =
            self.client.pull_blob_stream_partial(&self.reference, text.as_str(), offset, None);
        match answer.await {
            Ok(BlobResponse::Full(stream)) => Ok(Rest { whole: true, bytes: stream.boxed() }),
            Ok(BlobResponse::Partial(stream)) => Ok(Rest { whole: false, bytes: stream.boxed() }),
            Err(error) => {
                Err(Error::of_client(&self.host, &format!("the request for {digest}"), &error))
            }
        }
    }
}

/// Clients that trust as the settings say, and whose names are resolved without the C library,
/// which in a static program cannot load its plug-ins for that.
fn clients(
    endpoint: &Endpoint,
    is_tls: bool,
) -> Result<(oci_client::Client, reqwest::Client), Error> {
    let extra = endpoint.certificates()?;
    // Without TLS nothing is verified, and there may be no certificates on this node to verify by.
    let anybody = endpoint.trust == Trust::Anybody || !is_tls;
    let mut http = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .danger_accept_invalid_certs(anybody);
    let unusable = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        Error::new(
            Kind::Settings,
            format!(
                "TLS to {} cannot be used: {text}; install ca-certificates, or name a ca-file in a \
                 [[registry]] section of the config file",
                endpoint.host
            ),
        )
    };
    for certificate in &extra {
        let bundle = reqwest::Certificate::from_pem_bundle(&certificate.data);
        http = http.tls_certs_merge(bundle.map_err(|error| unusable(&error))?);
    }
    let config = ClientConfig {
        protocol: if is_tls { ClientProtocol::Https } else { ClientProtocol::Http },
        accept_invalid_certificates: anybody,
        extra_root_certificates: extra,
        connect_timeout: Some(CONNECT),
        read_timeout: Some(SILENCE),
        user_agent: USER_AGENT,
        ..ClientConfig::default()
    };
    let client = oci_client::Client::try_from(config).map_err(|error| unusable(&error))?;
    Ok((client, http.build().map_err(|error| unusable(&error))?))
}

/// Lets rustls compute with ring, which unlike its alternative needs no build tools but a compiler.
fn use_ring() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Somebody may have chosen before, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

fn header(answer: &reqwest::Response, name: &str) -> Option<String> {
    Some(answer.headers().get(name)?.to_str().ok()?.trim().to_owned())
}

/// The digest that a registry says its answer has.
fn promised(answer: &reqwest::Response) -> Option<Digest> {
    header(answer, "docker-content-digest")?.parse().ok()
}

/// Reads a body up to a limit, and tells whether that was all of it.
async fn read(
    answer: &mut reqwest::Response,
    most: usize,
) -> Result<(Vec<u8>, bool), reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        let room = most - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            return Ok((body, false));
        }
    }
    Ok((body, true))
}
