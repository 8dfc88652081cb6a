//! Validation of requests and limits, of containers and of whole pods.

use k8s_openapi::{
    api::core::v1::{PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use super::super::{
    amounts::{HUGE_PAGES, IO, PIDS},
    problem::Problems,
    quantity,
};

pub(super) fn of_container(resources: &ResourceRequirements, path: &str, problems: &mut Problems) {
    let path = format!("{path}.resources");
    requests_within_limits(resources, &path, problems);
    huge_pages(resources, &path, problems);
    let limits = resources.limits.iter().flatten();
    for (resource, limit) in limits.filter(|(resource, _)| needs_one(resource)) {
        if quantity::bytes(limit) == Ok(0) {
            let why = if resource == PIDS { ": the application is a process itself" } else { "" };
            problems
                .invalid(format!("{path}.limits[{resource}]"), format!("must be at least 1{why}"));
        }
    }
}

/// A limit of nothing would stop the container altogether.
fn needs_one(resource: &str) -> bool {
    resource == PIDS || IO.contains(&resource)
}

/// What a pod says for itself must leave room for what its containers say.
pub(super) fn of_pod(spec: &PodSpec, problems: &mut Problems) {
    let Some(own) = &spec.resources else { return };
    of_container(own, "spec", problems);
    let of_containers = |requests: bool, resource: &str| -> Vec<u64> {
        let containers = spec.containers.iter().filter_map(|container| {
            let resources = container.resources.as_ref()?;
            let map = if requests { &resources.requests } else { &resources.limits };
            amount(resource, map.as_ref()?.get(resource)?)
        });
        containers.collect()
    };
    for (resource, quantity) in own.requests.iter().flatten() {
        let sum: u64 = of_containers(true, resource).into_iter().fold(0, u64::saturating_add);
        if amount(resource, quantity).is_some_and(|own| own < sum) {
            problems.invalid(
                format!("spec.resources.requests[{resource}]"),
                format!(
                    "`{}` must not be less than what the containers ask for together",
                    quantity.0
                ),
            );
        }
    }
    for (resource, quantity) in own.limits.iter().flatten() {
        let most = of_containers(false, resource).into_iter().max().unwrap_or(0);
        if amount(resource, quantity).is_some_and(|own| own < most) {
            problems.invalid(
                format!("spec.resources.limits[{resource}]"),
                format!("`{}` must not be less than the limit of a container", quantity.0),
            );
        }
    }
}

fn requests_within_limits(resources: &ResourceRequirements, path: &str, problems: &mut Problems) {
    for (resource, request) in resources.requests.iter().flatten() {
        let Some(limit) = resources.limits.as_ref().and_then(|limits| limits.get(resource)) else {
            continue;
        };
        // Amounts that do not parse were reported when the fields were walked.
        if let (Some(requested), Some(limited)) =
            (amount(resource, request), amount(resource, limit))
            && requested > limited
        {
            problems.invalid(
                format!("{path}.requests[{resource}]"),
                format!("`{}` must not be more than the limit of `{}`", request.0, limit.0),
            );
        }
    }
}

/// Huge pages are set aside: there is no more and no less than what was asked for.
fn huge_pages(resources: &ResourceRequirements, path: &str, problems: &mut Problems) {
    let get = |map: &Option<std::collections::BTreeMap<String, Quantity>>, name: &str| {
        map.as_ref().and_then(|map| map.get(name)).and_then(|amount| quantity::bytes(amount).ok())
    };
    for size in HUGE_PAGES {
        let (request, limit) =
            (get(&resources.requests, size.resource), get(&resources.limits, size.resource));
        let field = format!("{path}.limits[{}]", size.resource);
        match (request, limit) {
            (None, None) => continue,
            (Some(_), None) => problems.required(field.clone()),
            (Some(request), Some(limit)) if request != limit => {
                problems.invalid(field.clone(), "must be the same as the request");
            }
            _ => {}
        }
        if !limit.unwrap_or(0).is_multiple_of(size.bytes) {
            problems.invalid(field.clone(), "must be a multiple of the size of a page");
        }
        let either = ["cpu", "memory"].iter().any(|name| {
            let has = |map: &Option<std::collections::BTreeMap<String, Quantity>>| {
                map.as_ref().is_some_and(|map| map.contains_key(*name))
            };
            has(&resources.limits) || has(&resources.requests)
        });
        if !either {
            problems.invalid(field, "needs a request of `cpu` or `memory` beside it");
        }
    }
}

fn amount(resource: &str, quantity: &Quantity) -> Option<u64> {
    match resource {
        "cpu" => quantity::millicores(quantity).ok(),
        _ => quantity::bytes(quantity).ok(),
    }
}
