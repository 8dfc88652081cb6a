//! The node as Kubernetes shows it.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Node as Object, NodeCondition, NodeStatus},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use super::Node;
use crate::manifest::demand::{RESOURCES, Totals, Unit};

impl Node {
    /// This node, with what it has and what of that is for pods.
    #[must_use]
    pub fn object(&self) -> Object {
        let occupancy = self.admission().occupancy();
        let pressure = self.admission().pressure();
        let condition =
            |name: &str, holds: bool, reason: &str, message: Option<String>| NodeCondition {
                type_: name.to_owned(),
                status: if holds { "True" } else { "False" }.to_owned(),
                reason: Some(reason.to_owned()),
                message,
                ..NodeCondition::default()
            };
        let disk = match pressure {
            Some(why) => condition("DiskPressure", true, "DiskBelowReserve", Some(why)),
            None => condition("DiskPressure", false, "DiskSufficient", None),
        };
        Object {
            metadata: ObjectMeta {
                name: Some(self.shared.settings.name.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
            status: Some(NodeStatus {
                capacity: Some(quantities(occupancy.capacity)),
                allocatable: Some(quantities(occupancy.allocatable)),
                conditions: Some(vec![disk, condition("Ready", true, "DaemonReady", None)]),
                ..NodeStatus::default()
            }),
        }
    }
}

/// Exact amounts.
fn quantities(totals: Totals) -> BTreeMap<String, Quantity> {
    let all = RESOURCES.iter().enumerate();
    all.map(|(at, resource)| {
        let suffix = if resource.unit == Unit::Millicores { "m" } else { "" };
        (resource.name.to_owned(), Quantity(format!("{}{suffix}", totals[at])))
    })
    .collect()
}
