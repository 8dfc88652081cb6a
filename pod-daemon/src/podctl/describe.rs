//! `podctl describe`: everything about a pod or a secret, for people.

mod sheet;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStatus, EnvVar, Event, Pod, ResourceRequirements,
        Secret, Volume,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use serde_json::Value;

pub(super) use self::sheet::Sheet;
use super::{
    Error, Global, Output,
    client::Client,
    event,
    get::typed,
    human, node,
    resource::{self, Kind},
    status,
};

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// KIND [NAME...] or KIND/NAME..., or node; kinds are pods (po) and secrets
    #[arg(required = true, value_name = "RESOURCE")]
    what: Vec<String>,
}

pub(super) async fn run(
    client: &Client,
    global: &Global,
    options: Options,
    output: &mut Output,
) -> Result<u8, Error> {
    if options.what.first().is_some_and(|word| node::is_meant(word)) {
        return node::describe(client, output).await;
    }
    let now = Timestamp::now();
    let mut sheets = Vec::new();
    let mut failed = false;
    for resources in resource::parse(&options.what)? {
        let kind = resources.kind;
        if matches!(kind, Kind::ConfigMap | Kind::Event) {
            return Err(Error::Usage(
                "only pods, secrets and the node can be described; try get -o yaml".to_owned(),
            ));
        }
        let events = if kind == Kind::Pod { events(client, global).await? } else { Vec::new() };
        let sheet = |object: &Value| match kind {
            Kind::Secret => typed(object).map(|object| secret(&object)),
            _ => typed(object).map(|object| describe(&object, &events, now)),
        };
        if resources.names.is_empty() {
            let list: Value = client.get(&kind.list_path(Some(global.namespace()))).await?;
            let items = list.get("items").and_then(Value::as_array);
            for item in items.into_iter().flatten() {
                sheets.push(sheet(item)?);
            }
        }
        for name in &resources.names {
            match client.get::<Value>(&kind.path(global.namespace(), name)).await {
                Ok(object) => sheets.push(sheet(&object)?),
                Err(error) if error.is_not_found() => {
                    output.error(&error)?;
                    failed = true;
                }
                Err(error) => return Err(error),
            }
        }
    }
    output.text(&sheets.join("\n\n"))?;
    Ok(u8::from(failed))
}

/// What has happened in the namespace.
async fn events(client: &Client, global: &Global) -> Result<Vec<Event>, Error> {
    let list: Value = client.get(&Kind::Event.list_path(Some(global.namespace()))).await?;
    let items = list.get("items").and_then(Value::as_array);
    items.into_iter().flatten().map(typed).collect()
}

fn describe(pod: &Pod, events: &[Event], now: Timestamp) -> String {
    let mut sheet = Sheet::default();
    let metadata = &pod.metadata;
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    sheet.field("Name", metadata.name.as_deref().unwrap_or_default());
    sheet.field("Namespace", metadata.namespace.as_deref().unwrap_or_default());
    let node = [spec.node_name.as_deref(), status.host_ip.as_deref()];
    let node: Vec<_> = node.into_iter().flatten().collect();
    sheet.some("Node", (!node.is_empty()).then(|| node.join("/")));
    sheet.some("Created", metadata.creation_timestamp.as_ref().map(|time| human::time(time.0)));
    sheet.some("Start Time", status.start_time.as_ref().map(|time| human::time(time.0)));
    let pairs = |map: &Option<std::collections::BTreeMap<String, String>>| {
        map.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect()
    };
    sheet.list("Labels", pairs(&metadata.labels));
    sheet.list("Annotations", pairs(&metadata.annotations));
    sheet.field("Status", &status::summary(pod, now).status);
    if let Some(deadline) = &metadata.deletion_timestamp {
        let grace = metadata.deletion_grace_period_seconds.unwrap_or_default();
        sheet.field(
            "Terminating",
            &format!("gone by {} (grace period {grace}s)", human::time(deadline.0)),
        );
    }
    sheet.some("Reason", status.reason.clone());
    sheet.some("Message", status.message.clone());
    sheet.field("IP", status.pod_ip.as_deref().unwrap_or("<none>"));
    sheet.some("Host Network", spec.host_network.filter(|on| *on).map(|_| "true"));
    sheet.some("Shared PIDs", spec.share_process_namespace.filter(|on| *on).map(|_| "true"));
    sheet.some("QoS Class", status.qos_class.clone());
    let priority = spec.priority.filter(|priority| *priority != 0);
    sheet.some("Priority", priority.map(|priority| priority.to_string()));
    sheet.some("Restart Policy", spec.restart_policy.clone());
    sheet.some("Grace Period", spec.termination_grace_period_seconds.map(|s| format!("{s}s")));
    resources(spec.resources.as_ref(), &mut sheet);
    sheet.section("Containers", |sheet| {
        for container in &spec.containers {
            let statuses = status.container_statuses.iter().flatten();
            let status = statuses.into_iter().find(|status| status.name == container.name);
            sheet.section(&container.name, |sheet| self::container(container, status, sheet));
        }
    });
    if let Some(conditions) = status.conditions.filter(|conditions| !conditions.is_empty()) {
        sheet.section("Conditions", |sheet| {
            for condition in &conditions {
                let why = [condition.reason.as_deref(), condition.message.as_deref()];
                let why: Vec<&str> = why.into_iter().flatten().collect();
                let text = match why.as_slice() {
                    [] => condition.status.clone(),
                    why => format!("{} ({})", condition.status, why.join(": ")),
                };
                sheet.field(&condition.type_, &text);
            }
        });
    }
    match spec.volumes.filter(|volumes| !volumes.is_empty()) {
        Some(volumes) => sheet.section("Volumes", |sheet| {
            for volume in &volumes {
                sheet.section(&volume.name, |sheet| self::volume(volume, sheet));
            }
        }),
        None => sheet.field("Volumes", "<none>"),
    }
    let events = event::of_pod(pod, events);
    if events.is_empty() {
        sheet.field("Events", "<none>");
        return sheet.finish();
    }
    sheet.section("Events", |_| {});
    sheet.finish() + &event::table(&events, now)
}

/// The sizes of a secret's entries: what they say is for those who ask for it with `get -o yaml`.
fn secret(secret: &Secret) -> String {
    let mut sheet = Sheet::default();
    let metadata = &secret.metadata;
    sheet.field("Name", metadata.name.as_deref().unwrap_or_default());
    sheet.field("Namespace", metadata.namespace.as_deref().unwrap_or_default());
    sheet.field("Type", secret.type_.as_deref().unwrap_or_default());
    sheet.some("Immutable", secret.immutable.filter(|on| *on).map(|_| "true"));
    sheet.section("Data", |sheet| {
        for (key, value) in secret.data.iter().flatten() {
            sheet.field(key, &format!("{} bytes", value.0.len()));
        }
    });
    sheet.finish()
}

fn container(container: &Container, status: Option<&ContainerStatus>, sheet: &mut Sheet) {
    if let Some(status) = status {
        sheet.some("Container ID", status.container_id.clone());
    }
    sheet.field("Image", container.image.as_deref().unwrap_or_default());
    let id = status.map(|status| status.image_id.clone()).filter(|id| !id.is_empty());
    sheet.some("Image ID", id);
    let ports = container.ports.iter().flatten().map(|port| {
        let number =
            format!("{}/{}", port.container_port, port.protocol.as_deref().unwrap_or("TCP"));
        let host = port.host_port.map(|host| match port.host_ip.as_deref() {
            None | Some("") => format!(", host port {host}"),
            Some(ip) => format!(", host port {ip}:{host}"),
        });
        let name = port.name.as_ref().map(|name| format!(" ({name})"));
        format!("{number}{}{}", name.unwrap_or_default(), host.unwrap_or_default())
    });
    sheet.some_list("Ports", ports.collect());
    sheet.some_list("Command", container.command.clone().unwrap_or_default());
    sheet.some_list("Args", container.args.clone().unwrap_or_default());
    sheet.some("Working Dir", container.working_dir.clone());
    if let Some(status) = status {
        sheet.state("State", status.state.as_ref());
        if status.last_state.as_ref().is_some_and(|last| *last != ContainerState::default()) {
            sheet.state("Last State", status.last_state.as_ref());
        }
        sheet.field("Ready", if status.ready { "True" } else { "False" });
        sheet.field("Restart Count", &status.restart_count.to_string());
    }
    resources(container.resources.as_ref(), sheet);
    match container.env.as_deref().unwrap_or_default() {
        [] => sheet.field("Environment", "<none>"),
        variables => sheet.section("Environment", |sheet| {
            for variable in variables {
                sheet.field(&variable.name, &value(variable));
            }
        }),
    }
    let mounts = container.volume_mounts.iter().flatten().map(|mount| {
        let mode = if mount.read_only == Some(true) { "ro" } else { "rw" };
        format!("{} from {} ({mode})", mount.mount_path, mount.name)
    });
    sheet.list("Mounts", mounts.collect());
}

fn resources(resources: Option<&ResourceRequirements>, sheet: &mut Sheet) {
    if let Some(resources) = resources {
        for (title, amounts) in [("Limits", &resources.limits), ("Requests", &resources.requests)] {
            let amounts = amounts.iter().flatten();
            let amounts: Vec<(&String, &Quantity)> = amounts.collect();
            if !amounts.is_empty() {
                sheet.section(title, |sheet| {
                    for (name, amount) in amounts {
                        sheet.field(name, &amount.0);
                    }
                });
            }
        }
    }
}

/// A variable's value, or where it comes from.
fn value(variable: &EnvVar) -> String {
    let Some(source) = &variable.value_from else {
        return variable.value.clone().unwrap_or_default();
    };
    if let Some(from) = &source.config_map_key_ref {
        format!("<key {} of configmap {}>", from.key, from.name)
    } else if let Some(from) = &source.secret_key_ref {
        format!("<key {} of secret {}>", from.key, from.name)
    } else {
        let path = source.field_ref.as_ref().map(|from| from.field_path.as_str());
        format!("<{}>", path.unwrap_or_default())
    }
}

fn volume(volume: &Volume, sheet: &mut Sheet) {
    if let Some(host) = &volume.host_path {
        sheet.field("Type", "HostPath");
        sheet.field("Path", &host.path);
        sheet.some("Host Path Type", host.type_.clone());
    } else if let Some(map) = &volume.config_map {
        sheet.field("Type", "ConfigMap");
        sheet.field("Name", &map.name);
        sheet.field("Optional", if map.optional == Some(true) { "true" } else { "false" });
        let items = map.items.iter().flatten();
        let items = items.map(|item| format!("{} as {}", item.key, item.path));
        sheet.some_list("Items", items.collect());
    } else if let Some(secret) = &volume.secret {
        sheet.field("Type", "Secret");
        sheet.field("Name", secret.secret_name.as_deref().unwrap_or_default());
        sheet.field("Optional", if secret.optional == Some(true) { "true" } else { "false" });
        let items = secret.items.iter().flatten();
        let items = items.map(|item| format!("{} as {}", item.key, item.path));
        sheet.some_list("Items", items.collect());
    } else {
        sheet.field("Type", "EmptyDir");
        let source = volume.empty_dir.clone().unwrap_or_default();
        sheet.some("Medium", source.medium);
        sheet.some("Size Limit", source.size_limit.map(|limit| limit.0));
    }
}

impl Sheet {
    fn state(&mut self, title: &str, state: Option<&ContainerState>) {
        let state = state.cloned().unwrap_or_default();
        if let Some(waiting) = state.waiting {
            self.headed(title, "Waiting", |sheet| {
                sheet.some("Reason", waiting.reason);
                sheet.some("Message", waiting.message);
            });
        } else if let Some(running) = state.running {
            self.headed(title, "Running", |sheet| {
                sheet.some("Started", running.started_at.map(|time| human::time(time.0)));
            });
        } else if let Some(ended) = state.terminated {
            self.headed(title, "Terminated", |sheet| {
                sheet.some("Reason", ended.reason);
                sheet.some("Message", ended.message);
                sheet.field("Exit Code", &ended.exit_code.to_string());
                let signal = ended.signal.filter(|signal| *signal != 0);
                sheet.some("Signal", signal.map(|signal| signal.to_string()));
                sheet.some("Started", ended.started_at.map(|time| human::time(time.0)));
                sheet.some("Finished", ended.finished_at.map(|time| human::time(time.0)));
            });
        } else {
            self.field(title, "Waiting");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_described_readably() {
        let pod = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web", "tier": "front"}},
            "spec": {
                "restartPolicy": "Always",
                "containers": [{
                    "name": "nginx", "image": "dir:/srv/nginx", "args": ["-g", "daemon off;"],
                    "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}],
                    "env": [{"name": "A", "value": "1"}, {"name": "LONGER", "value": "2"}],
                    "resources": {"limits": {"cpu": "500m"}},
                    "volumeMounts": [{"name": "conf", "mountPath": "/conf", "readOnly": true}],
                }],
                "volumes": [{"name": "conf", "configMap": {"name": "nginx"}}],
            },
            "status": {
                "phase": "Running", "podIP": "10.1.2.3",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{
                    "name": "nginx", "image": "", "imageID": "", "ready": true, "restartCount": 1,
                    "state": {"running": {}},
                    "lastState": {"terminated": {"exitCode": 137, "signal": 9, "reason": "Error"}},
                }],
            },
        }));
        let text = describe(&pod.unwrap(), &[], Timestamp::UNIX_EPOCH);
        assert_eq!(
            text,
            "\
Name:            web
Namespace:       default
Labels:          app=web
                 tier=front
Annotations:     <none>
Status:          Running
IP:              10.1.2.3
Restart Policy:  Always
Containers:
  nginx:
    Image:          dir:/srv/nginx
    Ports:          80/TCP (http)
    Args:           -g
                    daemon off;
    State:          Running
    Last State:     Terminated
      Reason:       Error
      Exit Code:    137
      Signal:       9
    Ready:          True
    Restart Count:  1
    Limits:
      cpu:  500m
    Environment:
      A:       1
      LONGER:  2
    Mounts:         /conf from conf (ro)
Conditions:
  Ready:  True
Volumes:
  conf:
    Type:      ConfigMap
    Name:      nginx
    Optional:  false
Events:          <none>
"
        );
    }
}
