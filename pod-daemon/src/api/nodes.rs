//! The one node that there is.

use axum::{
    Json,
    extract::{Path, State},
};
use k8s_openapi::api::core::v1::Node;

use super::{Api, Failure, Operations, pods::List};
use crate::node::Error;

pub(super) async fn list<N: Operations>(State(api): State<Api<N>>) -> Json<List<Node>> {
    Json(List::new("NodeList", "v1", vec![api.node.object()]))
}

pub(super) async fn read<N: Operations>(
    State(api): State<Api<N>>,
    Path(name): Path<String>,
) -> Result<Json<Node>, Failure> {
    let node = api.node.object();
    if node.metadata.name.as_ref() == Some(&name) {
        Ok(Json(node))
    } else {
        Err(Error::NotFound { kind: "nodes", name }.into())
    }
}
