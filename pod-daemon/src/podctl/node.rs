//! `podctl describe node`: what the node has, and what of it pods asked for.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::Value;

use super::{
    Error, Output,
    client::{Client, Path},
    columns::{Cell, Columns},
    get::typed,
};
use crate::manifest::{
    Demand, bytes,
    demand::{RESOURCES, Totals, Unit, display},
    millicores,
};

/// Whether a command line's word means nodes.
pub(super) fn is_meant(word: &str) -> bool {
    matches!(word.split('/').next(), Some("node" | "nodes" | "no"))
}

pub(super) async fn describe(client: &Client, output: &mut Output) -> Result<u8, Error> {
    let list: Value = client.get(&Path::new(&["api", "v1", "nodes"])).await?;
    let pods: Value = client.get(&Path::new(&["api", "v1", "pods"])).await?;
    let items = |list: &Value| list["items"].as_array().cloned().unwrap_or_default();
    let pods: Vec<Pod> = items(&pods).iter().map(typed).collect::<Result<_, _>>()?;
    for node in &items(&list) {
        show(&typed(node)?, &pods, output)?;
    }
    Ok(0)
}

fn show(node: &Node, pods: &[Pod], output: &mut Output) -> Result<(), Error> {
    let status = node.status.clone().unwrap_or_default();
    output.line(format_args!("Name:  {}", node.metadata.name.as_deref().unwrap_or_default()))?;
    for condition in status.conditions.iter().flatten() {
        let message = condition.message.as_deref().map(|text| format!(" ({text})"));
        let message = message.unwrap_or_default();
        output.line(format_args!("{}:  {}{message}", condition.type_, condition.status))?;
    }
    output.line("")?;
    let requested = requested(pods);
    let amount = |map: &Option<std::collections::BTreeMap<String, _>>, at: usize| {
        let quantity = map.as_ref().and_then(|map| map.get(RESOURCES[at].name));
        let parse = if RESOURCES[at].unit == Unit::Millicores { millicores } else { bytes };
        quantity.and_then(|quantity| parse(quantity).ok()).unwrap_or(0)
    };
    let rows = (0..RESOURCES.len()).filter_map(|at| {
        let (capacity, allocatable) =
            (amount(&status.capacity, at), amount(&status.allocatable, at));
        let asked = requested[at];
        // A machine does not have huge pages of every size.
        (capacity > 0 || asked > 0).then(|| {
            let free = allocatable.saturating_sub(asked);
            let amounts = [capacity, allocatable, asked, free];
            let cells = amounts.map(|amount| Cell::from(display(amount, RESOURCES[at].unit)));
            std::iter::once(Cell::from(RESOURCES[at].name)).chain(cells).collect()
        })
    });
    let titles = ["RESOURCE", "CAPACITY", "ALLOCATABLE", "REQUESTED", "FREE"];
    Columns::new(&titles).print(rows.collect(), output)?;
    let waiting = pods.iter().filter(|pod| is_waiting(pod)).count();
    output.line(format_args!("\nPods:  {} with a place, {waiting} waiting", pods.len() - waiting))
}

/// What pods have, as the daemon counts it.
fn requested(pods: &[Pod]) -> Totals {
    let there = pods.iter().filter(|pod| !is_waiting(pod));
    there.fold(Totals::default(), |sum, pod| {
        let demand = pod.spec.as_ref().map(Demand::of).unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let is_over = matches!(phase, Some("Succeeded" | "Failed"));
        sum.plus(if is_over { demand.of_the_ended() } else { demand }.totals)
    })
}

fn is_waiting(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut conditions = conditions;
    conditions.any(|one| one.type_ == "PodScheduled" && one.status == "False")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::manifest::demand::{CONTAINERS, CPU};

    #[test]
    fn pods_that_wait_have_nothing_and_those_that_are_over_next_to_nothing() {
        let pod = |phase: &str, scheduled: &str| -> Pod {
            let status = json!({
                "phase": phase, "conditions": [{"type": "PodScheduled", "status": scheduled}],
            });
            let containers = json!([{"name": "c", "resources": {"requests": {"cpu": "1"}}}]);
            serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {},
                "spec": {"containers": containers}, "status": status,
            }))
            .unwrap()
        };
        let pods = [pod("Running", "True"), pod("Pending", "False"), pod("Succeeded", "True")];
        let requested = requested(&pods);
        assert_eq!((requested[CPU], requested[CONTAINERS]), (1000, 2));
    }
}
