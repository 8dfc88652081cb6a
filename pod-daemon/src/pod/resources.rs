//! Limits and requests of a manifest.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{
    cgroup::Limits,
    manifest::{PIDS, QuantityError, bytes, millicores},
    node::Error,
};

/// A container's limits.
pub(super) fn limits(container: &Container) -> Result<Limits, Error> {
    of(container.resources.as_ref().and_then(|resources| resources.limits.as_ref()))
}

/// A container's requests.
pub(super) fn requests(container: &Container) -> Result<Limits, Error> {
    of(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
}

fn of(quantities: Option<&BTreeMap<String, Quantity>>) -> Result<Limits, Error> {
    let number = |resource: &str, parse: fn(&Quantity) -> Result<u64, QuantityError>| {
        quantities.and_then(|quantities| quantities.get(resource)).map(parse).transpose().map_err(
            |error| Error::Invalid { field: resource.to_owned(), message: error.to_string() },
        )
    };
    Ok(Limits {
        cpu_millicores: number("cpu", millicores)?,
        memory_bytes: number("memory", bytes)?,
        pids: number(PIDS, bytes)?,
    })
}

/// Paths of the limits in `pod` that need a controller which is not `available`, with it.
pub fn unenforceable(
    pod: &Pod,
    available: &BTreeSet<String>,
) -> Result<Vec<(String, &'static str)>, Error> {
    let mut missing = Vec::new();
    for (index, container) in pod.spec.iter().flat_map(|spec| &spec.containers).enumerate() {
        for controller in limits(container)?.unenforceable(available) {
            let resource = if controller == "pids" { PIDS } else { controller };
            missing.push((
                format!("spec.containers[{index}].resources.limits.{resource}"),
                controller,
            ));
        }
    }
    Ok(missing)
}

/// The limits of the whole pod: the sum of its containers', where each has one.
pub(super) fn of_pod(containers: &[Container]) -> Result<Limits, Error> {
    let mut sum = Limits { cpu_millicores: Some(0), memory_bytes: Some(0), pids: Some(0) };
    for container in containers {
        sum = sum.plus(limits(container)?);
    }
    // The infra process is one more.
    sum.pids = sum.pids.map(|pids| pids + 1);
    Ok(sum)
}

/// The requests of the whole pod: the sum of its containers'. One that asks for nothing adds
/// nothing.
pub(super) fn requests_of_pod(containers: &[Container]) -> Result<Limits, Error> {
    let mut cpu = None;
    for container in containers {
        let asked = requests(container)?.cpu_millicores.or(limits(container)?.cpu_millicores);
        cpu = match (cpu, asked) {
            (Some(sum), Some(more)) => Some(sum + more),
            (sum, more) => sum.or(more),
        };
    }
    Ok(Limits { cpu_millicores: cpu, ..Limits::default() })
}
