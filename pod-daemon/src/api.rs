//! The control API: Kubernetes' core/v1 paths and shapes over a unix socket.
//!
//! Translates between HTTP and [`Operations`]; knows nothing about how pods run. Whoever may
//! connect may do everything: access is the socket's file mode.

mod discovery;
mod exec;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod images;
mod log;
mod nodes;
mod objects;
mod observed;
mod operations;
mod params;
mod pods;
mod selector;
mod status;
mod stream;
mod usage;
mod watch;

use std::io;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, Secret};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use self::status::Failure;
pub use self::{images::ImageOperations, operations::Operations};
use crate::manifest::Unsupported;

/// As in Kubernetes: larger than the largest config map by a margin.
const MAX_BODY_BYTES: usize = 3 << 20;

/// What every request handler needs.
#[derive(Clone)]
struct Api<N> {
    node: N,
    policy: Unsupported,
    shutdown: CancellationToken,
}

/// Answers requests on `listener` until `shutdown`, then ends watches and streams and returns.
pub async fn serve<N: Operations>(
    listener: UnixListener,
    node: N,
    policy: Unsupported,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = router(Api { node, policy, shutdown: shutdown.clone() });
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

fn router<N: Operations>(api: Api<N>) -> Router {
    let pod = get(observed::read::<N, Pod>).delete(pods::delete::<N>);
    let map = get(objects::read::<N, ConfigMap>)
        .put(objects::replace::<N, ConfigMap>)
        .delete(objects::delete::<N, ConfigMap>);
    let secret = get(objects::read::<N, Secret>)
        .put(objects::replace::<N, Secret>)
        .delete(objects::delete::<N, Secret>);
    let namespaced = Router::new()
        .route("/pods", get(observed::list::<N, Pod>).post(pods::create::<N>))
        .route("/pods/{name}", pod)
        .route("/pods/{name}/log", get(log::read::<N>))
        .route("/pods/{name}/exec", get(exec::upgrade::<N>).merge(post(exec::refuse::<N>)))
        .route(
            "/configmaps",
            get(objects::list::<N, ConfigMap>).post(objects::create::<N, ConfigMap>),
        )
        .route("/configmaps/{name}", map)
        .route("/events", get(observed::list::<N, Event>))
        .route("/events/{name}", get(observed::read::<N, Event>))
        .route("/secrets", get(objects::list::<N, Secret>).post(objects::create::<N, Secret>))
        .route("/secrets/{name}", secret);
    let metrics = Router::new()
        .route("/", get(discovery::metrics_resources))
        .route("/pods", get(usage::list_all::<N>))
        .route("/namespaces/{namespace}/pods", get(usage::list::<N>))
        .route("/namespaces/{namespace}/pods/{name}", get(usage::read::<N>));
    let own = Router::new()
        .route("/events", get(stream::events::<N>))
        .route("/namespaces/{namespace}/events", get(stream::events::<N>))
        .route("/namespaces/{namespace}/pods/{name}/events", get(stream::events::<N>))
        .route("/namespaces/{namespace}/pods/{name}/explain", get(stream::explain::<N>))
        .route("/namespaces/{namespace}/pods/{name}/trace", get(stream::trace::<N>));
    let images = Router::new()
        .route("/", get(images::list::<N>).post(images::load::<N>).delete(images::prune::<N>))
        .route(
            "/{name}",
            get(images::read::<N>).post(images::pull::<N>).delete(images::remove::<N>),
        );
    Router::new()
        .route("/healthz", get("ok"))
        .route("/livez", get("ok"))
        .route("/readyz", get("ok"))
        .route("/version", get(discovery::version))
        .route("/api", get(discovery::core_versions))
        .route("/api/v1", get(discovery::core_resources))
        .route("/api/v1/pods", get(observed::list_all::<N, Pod>))
        .route("/api/v1/events", get(observed::list_all::<N, Event>))
        .route("/api/v1/nodes", get(nodes::list::<N>))
        .route("/api/v1/nodes/{name}", get(nodes::read::<N>))
        .route("/api/v1/configmaps", get(objects::list_all::<N, ConfigMap>))
        .route("/api/v1/secrets", get(objects::list_all::<N, Secret>))
        .nest("/api/v1/namespaces/{namespace}", namespaced)
        .route("/apis", get(discovery::groups))
        .route("/apis/metrics.k8s.io", get(discovery::metrics_group))
        .nest("/apis/metrics.k8s.io/v1beta1", metrics)
        .nest("/apis/podscope.dev/v1", own)
        .nest("/podscope/v1/images", images)
        .fallback(|| async { Failure::no_such_path() })
        .method_not_allowed_fallback(|| async { Failure::no_such_method() })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(api)
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
