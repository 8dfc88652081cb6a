//! Limits and requests of a manifest, as cgroups have them.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::{
    cgroup::Limits,
    manifest::{Amounts, IO, PIDS, demand},
};

/// A container's limits.
pub(super) fn limits(container: &Container) -> Limits {
    enforced(demand::container_limits(container))
}

/// A container's requests.
pub(super) fn requests(container: &Container) -> Limits {
    enforced(demand::container_requests(container))
}

/// Memory of a pod beside its containers': the infra program's, and the kernel's own for the pod's
/// cgroups and those of each container. Without it, containers would meet their pod's limit first.
const POD_MEMORY: u64 = 4 << 20;
const CONTAINER_MEMORY: u64 = 1 << 20;

/// The limits of the whole pod: what it says for itself, or the sum of its containers'.
pub(super) fn of_pod(spec: &PodSpec) -> Limits {
    let own = own_limits(spec);
    let mut limits = enforced(demand::limits(spec));
    if let (None, Some(pids)) = (own.pids, &mut limits.pids) {
        // The infra process is one more.
        *pids += 1;
    }
    if let (None, Some(bytes)) = (own.memory_bytes, &mut limits.memory_bytes) {
        let containers = spec.containers.len() as u64;
        *bytes = bytes.saturating_add(POD_MEMORY + containers * CONTAINER_MEMORY);
    }
    limits
}

/// What a pod says for itself. What does not parse was refused with the manifest.
fn own_limits(spec: &PodSpec) -> Amounts {
    let own = spec.resources.as_ref().and_then(|own| own.limits.as_ref());
    Amounts::read(own).unwrap_or_default()
}

/// The requests of the whole pod.
pub(super) fn requests_of_pod(spec: &PodSpec) -> Limits {
    enforced(demand::requests(spec))
}

/// What cgroups can do something about.
fn enforced(amounts: Amounts) -> Limits {
    let Amounts { cpu_millicores, memory_bytes, pids, huge_pages, io, ephemeral_bytes: _ } =
        amounts;
    Limits { cpu_millicores, memory_bytes, pids, huge_pages, io }
}

/// Paths of the limits in `pod` that need a controller which is not `available`, with it.
pub fn unenforceable(pod: &Pod, available: &BTreeSet<String>) -> Vec<(String, &'static str)> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let own = enforced(own_limits(spec));
    let containers = spec.containers.iter().enumerate();
    let containers = containers
        .map(|(index, one)| (format!("spec.containers[{index}].resources.limits"), limits(one)));
    std::iter::once(("spec.resources.limits".to_owned(), own))
        .chain(containers)
        .flat_map(|(path, limits)| {
            let missing = limits.unenforceable(available);
            missing.into_iter().map(move |controller| {
                let resource = resource_of(controller, &limits);
                (format!("{path}.{resource}"), controller)
            })
        })
        .collect()
}

/// Paths of the limits of block devices in `pod`.
pub fn io_limits(pod: &Pod) -> Vec<String> {
    let none = BTreeSet::new();
    let all = unenforceable(pod, &none).into_iter();
    all.filter(|(_, controller)| *controller == "io").map(|(path, _)| path).collect()
}

/// The resource that needs the controller.
fn resource_of(controller: &'static str, limits: &Limits) -> &'static str {
    match controller {
        "pids" => PIDS,
        "io" => limits.io.iter().position(Option::is_some).map_or("io", |at| IO[at]),
        "hugetlb" => {
            let at = limits.huge_pages.iter().position(Option::is_some);
            at.map_or("hugepages", |at| crate::manifest::HUGE_PAGES[at].resource)
        }
        controller => controller,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_may_use_more_than_its_containers_unless_it_says_so_itself() {
        let pod = |own: serde_json::Value| -> PodSpec {
            let limits = json!({"memory": "16Mi", "podscope.dev/pids": "5"});
            let containers = json!([{"name": "c", "resources": {"limits": limits}}]);
            serde_json::from_value(json!({"containers": containers, "resources": own})).unwrap()
        };
        let sum = of_pod(&pod(json!(null)));
        assert_eq!((sum.memory_bytes, sum.pids), (Some(21 << 20), Some(6)));
        let own = of_pod(&pod(json!({"limits": {"memory": "20Mi", "podscope.dev/pids": "5"}})));
        assert_eq!((own.memory_bytes, own.pids), (Some(20 << 20), Some(5)));
    }

    #[test]
    fn limits_without_a_controller_are_named_by_their_path() {
        let pod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {},
            "spec": {
                "resources": {"limits": {"podscope.dev/io-write-bps": "1Mi"}},
                "containers": [{"name": "c", "resources": {"limits": {
                    "memory": "1Gi", "hugepages-2Mi": "2Mi", "podscope.dev/pids": "7",
                }}}],
            },
        }));
        let pod: Pod = pod.unwrap();
        let available = BTreeSet::from(["pids".to_owned()]);
        let missing = unenforceable(&pod, &available);
        let paths: Vec<&str> = missing.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "spec.resources.limits.podscope.dev/io-write-bps",
                "spec.containers[0].resources.limits.memory",
                "spec.containers[0].resources.limits.hugepages-2Mi",
            ]
        );
        assert_eq!(io_limits(&pod), paths[..1]);
    }
}
