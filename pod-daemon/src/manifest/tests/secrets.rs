//! Secrets, and what of a pod comes from them.

use super::*;

fn parsed(text: &str) -> Result<Secret, String> {
    let value = documents(&format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\n{text}"));
    parse_secret(value.unwrap().remove(0), Unsupported::Deny)
        .map(|(secret, _)| secret)
        .map_err(|error| error.problems()[0].to_string())
}

#[test]
fn texts_become_data() {
    let secret = parsed("data: {a: AAEC, b: eA==}\nstringData: {b: text, c: z}").unwrap();
    assert_eq!(secret.string_data, None);
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    let data = secret.data.unwrap();
    let data: Vec<_> = data.iter().map(|(key, value)| (key.as_str(), &value.0[..])).collect();
    assert_eq!(data, [("a", &[0, 1, 2][..]), ("b", b"text"), ("c", b"z")]);
}

#[test]
fn what_is_wrong_does_not_say_the_secret() {
    for (text, expected) in [
        ("data: {a: hunter2!}", "data[a]: must be Base64"),
        ("data: {a: 12345}", "data[a]: must be a string: put it in quotes"),
        ("stringData: {a: 12345}", "stringData[a]: must be a string: put it in quotes"),
        ("stringData: hunter2", "stringData: must be an object"),
        (
            "type: kubernetes.io/tls\ndata: {tls.crt: AAEC}",
            "data[tls.key]: must be there in a secret of type `kubernetes.io/tls`",
        ),
        (
            "type: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: hunter2}",
            "data[.dockerconfigjson]: must be a JSON object",
        ),
        (
            "type: kubernetes.io/basic-auth",
            "data: must have `username` or `password` in a secret of type `kubernetes.io/basic-auth`",
        ),
    ] {
        assert_eq!(parsed(text).unwrap_err(), expected, "{text}");
    }
    let large = parsed(&format!("stringData: {{a: {}}}", "x".repeat(1_048_577))).unwrap_err();
    assert_eq!(large, "data: is 1048577 bytes, and 1048576 is the most there may be");
    assert!(parsed("type: kubernetes.io/basic-auth\nstringData: {password: x}").is_ok());
}

#[test]
fn volumes_of_secrets_and_in_memory_are_checked() {
    for (volume, expected) in [
        ("emptyDir: {medium: Memory, sizeLimit: 1Mi}", ""),
        ("emptyDir: {medium: Memory}", ""),
        (
            "emptyDir: {medium: Disk}",
            "spec.volumes[0].emptyDir.medium: `Disk` is not one of `Memory`",
        ),
        (
            "emptyDir: {medium: Memory, sizeLimit: x}",
            "spec.volumes[0].emptyDir.sizeLimit: `x` is not a quantity (like 100m, 1.5, 64Mi)",
        ),
        ("secret: {secretName: a, defaultMode: 0400, items: [{key: a, path: b, mode: 0440}]}", ""),
        ("secret: {}", "spec.volumes[0].secret.secretName: is required"),
        (
            "secret: {secretName: a, items: [{key: a, path: ../b}]}",
            "spec.volumes[0].secret.items[0].path: `../b` must be a relative path without `..`",
        ),
        (
            "secret: {secretName: a}, configMap: {name: a}",
            "spec.volumes[0]: must have one source only",
        ),
    ] {
        assert_eq!(problems(web("emptyDir: {}", volume)).join("\n"), expected, "{volume}");
    }
    let (pod, _) =
        parse_pod(web("emptyDir: {}", "secret: {secretName: a}"), Unsupported::Deny).unwrap();
    let volumes = pod.spec.unwrap().volumes.unwrap();
    assert_eq!(volumes[0].secret.as_ref().unwrap().default_mode, Some(0o600));
}

#[test]
fn sources_of_variables_are_checked() {
    let field = "env: [{name: A, value: \"1\"}]";
    for (with, expected) in [
        ("env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k, optional: true}}}]", ""),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['a/b']\"}}}]", ""),
        ("envFrom: [{prefix: P_, configMapRef: {name: m}}, {secretRef: {name: s}}]", ""),
        (
            "env: [{name: A, value: x, valueFrom: {secretKeyRef: {name: s, key: k}}}]",
            "spec.containers[0].env[0].valueFrom: must not stand beside `value`",
        ),
        (
            "env: [{name: A, valueFrom: {secretKeyRef: {key: k}}}]",
            "spec.containers[0].env[0].valueFrom.secretKeyRef.name: is required",
        ),
        (
            "envFrom: [{prefix: P_}]",
            "spec.containers[0].envFrom[0]: must have one of `configMapRef` and `secretRef`",
        ),
    ] {
        assert_eq!(problems(web(field, with)).join("\n"), expected, "{with}");
    }
    let with = "env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.x}}}]";
    assert!(problems(web(field, with))[0].contains("fieldPath: `spec.x` is not one of"));
}
