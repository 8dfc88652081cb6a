//! Manifests as people write them, and what they hear about them.

mod damage;
mod network;
mod secrets;

use super::*;

const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  containers:
  - name: nginx
    image: dir:/srv/nginx
    command: [nginx]
    args: ["-g", daemon off;]
    env: [{name: A, value: "1"}]
    ports: [{name: http, containerPort: 80}]
    resources: {limits: {cpu: 0.5, memory: 64Mi, podscope.dev/pids: 20}}
    volumeMounts:
    - {name: cache, mountPath: /cache}
    - {name: conf, mountPath: /etc/nginx, readOnly: yes}
  volumes:
  - {name: cache, emptyDir: {}}
  - {name: conf, configMap: {name: nginx, defaultMode: 0440, items: [{key: a, path: b/a}]}}
  - {name: host, hostPath: {path: /srv, type: Directory}}
  - {name: nothing}
"#;

/// `WEB` with one thing put in place of another.
fn web(replace: &str, with: &str) -> Value {
    assert!(WEB.contains(replace), "{replace}");
    documents(&WEB.replacen(replace, with, 1)).unwrap().remove(0)
}

/// Everything that is wrong with the pod, one problem per line.
fn problems(value: Value) -> Vec<String> {
    match parse_pod(value, Unsupported::Deny) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems().iter().map(Problem::to_string).collect(),
    }
}

#[test]
fn an_ordinary_pod_is_accepted_and_defaulted() {
    let (pod, warnings) = parse_pod(web("web", "web"), Unsupported::Deny).unwrap();

    assert_eq!(warnings, [""; 0]);
    assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
    let spec = pod.spec.unwrap();
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    assert_eq!(spec.termination_grace_period_seconds, Some(30));
    let container = &spec.containers[0];
    assert_eq!(container.image_pull_policy.as_deref(), Some("IfNotPresent"));
    assert_eq!(container.ports.as_ref().unwrap()[0].protocol.as_deref(), Some("TCP"));
    assert_eq!(container.volume_mounts.as_ref().unwrap()[1].read_only, Some(true));
    let resources = container.resources.as_ref().unwrap();
    assert_eq!(millicores(&resources.limits.as_ref().unwrap()["cpu"]), Ok(500));
    assert_eq!(bytes(&resources.requests.as_ref().unwrap()["memory"]), Ok(64 << 20));
    assert_eq!(bytes(&resources.limits.as_ref().unwrap()[PIDS]), Ok(20));
    let volumes = spec.volumes.unwrap();
    assert_eq!(volumes[1].config_map.as_ref().unwrap().default_mode, Some(0o440));
    assert_eq!(volumes[2].host_path.as_ref().unwrap().type_.as_deref(), Some("Directory"));
    assert!(volumes[3].empty_dir.is_some());
}

#[test]
fn what_is_wrong_is_named_by_its_path() {
    for (replace, with, expected) in [
        // Unsupported and unknown fields.
        (
            "    command:",
            "    lifecycle: {preStop: {exec: {command: [x]}}}\n    command:",
            "spec.containers[0].lifecycle.preStop: is not supported yet",
        ),
        (
            "    image:",
            "    imge: x\n    image:",
            "spec.containers[0].imge: is unknown, did you mean `image`?",
        ),
        ("  volumes:", "  colour: red\n  volumes:", "spec.colour: is unknown"),
        (
            "  volumes:",
            "  restart_policy: Never\n  volumes:",
            "spec.restart_policy: is unknown, did you mean `restartPolicy`?",
        ),
        ("emptyDir: {}", "ephemeral: {}", "spec.volumes[0].ephemeral: is not supported yet"),
        (
            "    command:",
            "    securityContext: {seLinuxOptions: {level: s0}}\n    command:",
            "spec.containers[0].securityContext.seLinuxOptions: is not supported yet",
        ),
        (
            "value: \"1\"",
            "valueFrom: {fieldRef: {fieldPath: metadata.name}, resourceFieldRef: {resource: cpu}}",
            "spec.containers[0].env[0].valueFrom.resourceFieldRef: is not supported yet",
        ),
        (
            "cpu: 0.5",
            "nvidia.com/gpu: 1",
            "spec.containers[0].resources.limits[nvidia.com/gpu]: is not a resource that Podscope \
             limits (those are cpu, memory, ephemeral-storage, podscope.dev/pids, hugepages-64Ki, \
             hugepages-2Mi, hugepages-32Mi, hugepages-1Gi, podscope.dev/io-read-bps, \
             podscope.dev/io-write-bps, podscope.dev/io-read-iops, podscope.dev/io-write-iops)",
        ),
        (
            "  volumes:",
            "  nodeName: elsewhere\n  volumes:",
            "spec.nodeName: `elsewhere` is not supported yet, only the name of this host is",
        ),
        // Types.
        (
            "value: \"1\"",
            "value: 1",
            "spec.containers[0].env[0].value: must be a string, not `1`: put it in quotes",
        ),
        ("[nginx]", "nginx", "spec.containers[0].command: must be a list, not `nginx`"),
        (
            "containerPort: 80",
            "containerPort: http",
            "spec.containers[0].ports[0].containerPort: must be an integer, not `http`",
        ),
        (
            "readOnly: yes",
            "readOnly: 1",
            "spec.containers[0].volumeMounts[1].readOnly: must be `true` or `false`, not `1`",
        ),
        (
            "emptyDir: {}",
            "emptyDir: [1]",
            "spec.volumes[0].emptyDir: must be an object, not a list",
        ),
        (
            "{app: web}",
            "{app: 1}",
            "metadata.labels[app]: must be a string, not `1`: put it in quotes",
        ),
        // Values.
        ("kind: Pod", "kind: Service", "kind: `Service` is not one of `Pod`"),
        ("apiVersion: v1\n", "", "apiVersion: is required and must be `v1`"),
        ("name: web", "namespace: web", "metadata.name: is required"),
        (
            "name: web",
            "name: Web",
            "metadata.name: `Web` must consist of lower case letters, digits, `-` and `.`, and \
             each part must start and end with a letter or digit",
        ),
        ("image: dir:/srv/nginx", "image: \"\"", "spec.containers[0].image: is required"),
        ("- name: nginx\n    ", "- ", "spec.containers[0].name: is required"),
        (
            "mountPath: /cache",
            "mountPath: cache",
            "spec.containers[0].volumeMounts[0].mountPath: `cache` must be an absolute path \
             without `..`",
        ),
        (
            "mountPath: /cache",
            "mountPath: //etc/./nginx/",
            "spec.containers[0].volumeMounts[1].mountPath: `/etc/nginx` is used twice",
        ),
        (
            "mountPath: /cache",
            "mountPath: /",
            "spec.containers[0].volumeMounts[0].mountPath: must not be the root of the container",
        ),
        (
            "{name: cache, mount",
            "{name: cash, mount",
            "spec.containers[0].volumeMounts[0].name: `cash` is not one of the pod's volumes",
        ),
        ("name: nothing", "name: host", "spec.volumes[3].name: `host` is used twice"),
        (
            "containerPort: 80",
            "containerPort: 65536",
            "spec.containers[0].ports[0].containerPort: must be between 1 and 65535, not 65536",
        ),
        (
            "containerPort: 80",
            "containerPort: 80, protocol: tcp",
            "spec.containers[0].ports[0].protocol: `tcp` is not one of `TCP`, `UDP`, `SCTP`",
        ),
        (
            "  volumes:",
            "  restartPolicy: Sometimes\n  volumes:",
            "spec.restartPolicy: `Sometimes` is not one of `Always`, `OnFailure`, `Never`",
        ),
        (
            "memory: 64Mi",
            "memory: 64MB",
            "spec.containers[0].resources.limits[memory]: `64MB` has an unknown unit (known are n \
             u m k M G T P E, Ki to Ei, e3)",
        ),
        (
            "resources: {",
            "resources: {requests: {cpu: 600m}, ",
            "spec.containers[0].resources.requests[cpu]: `600m` must not be more than the limit \
             of `0.5`",
        ),
        (
            "pids: 20",
            "pids: 0",
            "spec.containers[0].resources.limits[podscope.dev/pids]: must be at least 1: the \
             application is a process itself",
        ),
        (
            "pids: 20",
            "pids: 20, podscope.dev/io-read-bps: 0",
            "spec.containers[0].resources.limits[podscope.dev/io-read-bps]: must be at least 1",
        ),
        (
            "pids: 20",
            "pids: 20, hugepages-2Mi: 3Mi",
            "spec.containers[0].resources.limits[hugepages-2Mi]: must be a multiple of the size \
             of a page",
        ),
        (
            "  volumes:",
            "  resources: {limits: {cpu: 100m}}\n  volumes:",
            "spec.resources.limits[cpu]: `100m` must not be less than the limit of a container",
        ),
        (
            "  volumes:",
            "  resources: {requests: {cpu: 100m}}\n  volumes:",
            "spec.resources.requests[cpu]: `100m` must not be less than what the containers ask \
             for together",
        ),
        (
            "emptyDir: {}",
            "emptyDir: {sizeLimit: 1MB}",
            "spec.volumes[0].emptyDir.sizeLimit: `1MB` has an unknown unit (known are n u m k M G \
             T P E, Ki to Ei, e3)",
        ),
        (
            "  volumes:",
            "  priority: 1000000001\n  volumes:",
            "spec.priority: must be at most 1000000000, not 1000000001",
        ),
        (
            "  volumes:",
            "  priorityClassName: system-node-critical\n  priority: 7\n  volumes:",
            "spec.priority: must be 2000001000, as spec.priorityClassName has it, not 7",
        ),
        (
            "  volumes:",
            "  preemptionPolicy: Sometimes\n  volumes:",
            "spec.preemptionPolicy: `Sometimes` is not one of `PreemptLowerPriority`, `Never`",
        ),
        (
            "path: /srv",
            "path: /srv/../etc",
            "spec.volumes[2].hostPath.path: `/srv/../etc` must be an absolute path without `..`",
        ),
        (
            "path: b/a",
            "path: ../a",
            "spec.volumes[1].configMap.items[0].path: `../a` must be a relative path without `..`",
        ),
        (
            "0440",
            "0o1000",
            "spec.volumes[1].configMap.defaultMode: must be between 0 and 0777 (511), not 512",
        ),
        (
            "name: nothing",
            "name: nothing, emptyDir: {}, hostPath: {path: /}",
            "spec.volumes[3]: must have one source only",
        ),
        (
            "  volumes:",
            "  terminationGracePeriodSeconds: -1\n  volumes:",
            "spec.terminationGracePeriodSeconds: must be between 0 and 4294967295, not -1",
        ),
    ] {
        assert_eq!(problems(web(replace, with)), [expected], "{with}");
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: x, labels: {a: \"-\"}}, \
                spec: {initContainers: [{name: i}], containers: [{nam: a}]}}";
    let error = parse_pod(documents(text).unwrap().remove(0), Unsupported::Deny).unwrap_err();
    let text = error.to_string();
    let mut lines: Vec<_> = text.lines().collect();
    lines[1..].sort_unstable();
    assert_eq!(
        lines,
        [
            "pod `x` is invalid:",
            "  metadata.labels[a]: `-` must consist of letters, digits, `-`, `_` and `.`, and \
             start and end with a letter or digit",
            "  spec.containers[0].image: is required",
            "  spec.containers[0].nam: is unknown, did you mean `name`?",
            "  spec.containers[0].name: is required",
            "  spec.initContainers: is not supported yet",
        ]
    );
}

#[test]
fn a_pod_needs_a_container() {
    let value = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": []},
    });
    assert_eq!(problems(value), ["spec.containers: must have at least one container"]);
    let value = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
    assert_eq!(problems(value), ["spec: is required"]);
}

#[test]
fn unsupported_fields_can_be_warnings() {
    let with = "    livenessProbe: {httpGet: {port: 80}}\n    imge: x\n    command:";
    let (pod, warnings) = parse_pod(web("    command:", with), Unsupported::Warn).unwrap();
    assert_eq!(
        warnings,
        [
            "spec.containers[0].imge: is unknown, did you mean `image`?, ignored",
            "spec.containers[0].livenessProbe: is not supported yet, ignored",
        ]
    );
    assert_eq!(pod.spec.unwrap().containers[0].liveness_probe, None);

    let (pod, warnings) =
        parse_pod(web("emptyDir: {}", "nfs: {server: a, path: /}"), Unsupported::Warn).unwrap();
    assert_eq!(
        warnings,
        ["spec.volumes[0].nfs: is not supported yet, ignored (an empty directory takes its place)"]
    );
    assert!(pod.spec.unwrap().volumes.unwrap()[0].empty_dir.is_some());

    // What is wrong rather than unsupported stays an error.
    assert!(parse_pod(web("name: web", "name: Web"), Unsupported::Warn).is_err());
}

#[test]
fn fields_that_change_nothing_pass() {
    for extra in [
        "automountServiceAccountToken: false",
        "serviceAccountName: default",
        "enableServiceLinks: true",
        "schedulerName: default-scheduler",
        "securityContext: {}",
        "dnsPolicy: Default",
        "tolerations: [{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 300}]",
        "nodeSelector: {kubernetes.io/os: linux}",
        "initContainers: []",
        "imagePullSecrets: null",
        "priority: 0",
        "priority: 1000",
        "priorityClassName: system-node-critical",
        "preemptionPolicy: Never",
        "resources: {limits: {cpu: 2, memory: 1Gi}}",
        "os: {name: linux}",
        "hostPID: false",
    ] {
        let value = web("  volumes:", &format!("  {extra}\n  volumes:"));
        assert_eq!(problems(value), [""; 0], "{extra}");
    }
}

#[test]
fn an_exported_pod_can_be_applied_again() {
    let (mut pod, _) = parse_pod(web("web", "web"), Unsupported::Deny).unwrap();
    pod.metadata.uid = Some("0".to_owned());
    pod.metadata.resource_version = Some("7".to_owned());
    pod.status = Some(k8s_openapi::api::core::v1::PodStatus::default());
    let exported = serde_saphyr::to_string(&pod).unwrap();

    let value = documents(&exported).unwrap().remove(0);
    let (again, warnings) = parse_pod(value, Unsupported::Deny).unwrap();

    assert_eq!(warnings, [""; 0]);
    assert_eq!(again.metadata.uid, None);
    assert_eq!(again.spec, pod.spec);
}

#[test]
fn documents_of_every_form_are_found() {
    let names = |text: &str| {
        let documents = documents(text).unwrap();
        documents.iter().map(|value| name(value).unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(""), [""; 0]);
    assert_eq!(names("# nothing\n---\n---\n# more\n"), [""; 0]);
    assert_eq!(names("metadata: {name: a}\n---\n\n---\nmetadata: {name: b}\n...\n"), ["a", "b"]);
    assert_eq!(
        names("\t{\"metadata\":\n\t{\"name\": \"a\"}}\n{\"metadata\": {\"name\": \"b\"}}"),
        ["a", "b"]
    );
    assert_eq!(names("{metadata: {name: a}}"), ["a"]);
    assert_eq!(names("base: &x {name: a}\nmetadata: {<<: *x, labels: {}}"), ["a"]);
    assert_eq!(
        names(
            "{kind: List, items: [{metadata: {name: a}}, {kind: List, items: [{metadata: {name: b}}]}]}"
        ),
        ["a", "b"]
    );
    let list =
        documents("{apiVersion: v1, kind: PodList, items: [{metadata: {name: a}}]}").unwrap();
    assert_eq!(kind(&list[0]), Some("Pod"));
    assert_eq!(list[0]["apiVersion"], "v1");
}

#[test]
fn a_syntax_error_names_its_place() {
    for (text, place) in [
        ("a: 1\nb: [1, 2\nc: 3\n", "line "),
        ("a: 1\na: 2\n", "line 2, column 1: "),
        ("a: b\n c: d\n", "line 2, column "),
        ("{\"a\": 1,\n \"b\" 2}", "line 2, column 6: "),
        ("a: *missing", "line 1, column 4: "),
    ] {
        let error = documents(text).unwrap_err().to_string();
        assert!(error.starts_with(place), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn config_maps_are_checked_too() {
    let check = |text: &str| {
        let value =
            documents(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\n{text}"));
        match parse_config_map(value.unwrap().remove(0), Unsupported::Deny) {
            Ok(_) => String::new(),
            Err(error) => error.problems()[0].to_string(),
        }
    };
    assert_eq!(check("data: {a.txt: x}\nbinaryData: {b: AAEC}"), "");
    assert_eq!(check("data: {a: 1}"), "data[a]: must be a string, not `1`: put it in quotes");
    assert_eq!(check("data: {a: x}\nbinaryData: {a: AAEC}"), "binaryData[a]: `a` is used twice");
    assert!(check("data: {a/b: x}").starts_with("data[a/b]: must consist of"));
    assert_eq!(check("binaryData: {b: '*'}"), "binaryData[b]: must be Base64");
    assert_eq!(
        check(&format!("data: {{a: {}}}", "x".repeat(1_048_577))),
        "data: is 1048577 bytes, and 1048576 is the most there may be"
    );
}
