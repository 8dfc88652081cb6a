//! Host ports, name resolution, aliases.

use super::*;

/// What is wrong with a pod whose spec has these lines, and whose port has these fields.
fn with(spec: &str, port: &str) -> String {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  {spec}\n  containers:\n  \
         - {{name: a, image: 'dir:/', ports: [{{containerPort: 80{port}}}]}}\n"
    );
    problems(documents(&text).unwrap().remove(0)).join("\n")
}

#[test]
fn host_ports_are_checked() {
    for (port, expected) in [
        (", hostPort: 8080", ""),
        (", hostPort: 8080, hostIP: 127.0.0.1, protocol: UDP", ""),
        (", hostPort: 0", ""),
        (", hostPort: 70000", "hostPort: must be between 1 and 65535, not 70000"),
        (", hostPort: 1, hostIP: a", "hostIP: `a` must be an IPv4 address"),
        (", hostPort: 1, hostIP: '::1'", "hostIP: `::1` is an IPv6 address; pods have IPv4 only"),
        (", hostPort: 1}, {containerPort: 81, hostPort: 1", "hostPort: `1` is used twice"),
        (", hostPort: 1}, {containerPort: 81, hostPort: 1, protocol: UDP", ""),
        (", hostPort: 1, hostIP: 10.0.0.1}, {containerPort: 81, hostPort: 1, hostIP: 10.0.0.2", ""),
    ] {
        let found = with("restartPolicy: Never", port);
        assert!(found.ends_with(expected) && found.is_empty() == expected.is_empty(), "{found}");
    }
}

#[test]
fn on_the_hosts_network_a_port_is_the_hosts() {
    assert_eq!(with("hostNetwork: true", ""), "");
    assert_eq!(
        with("hostNetwork: true", ", hostPort: 81"),
        "spec.containers[0].ports[0].hostPort: must be the containerPort, 80, since hostNetwork is on"
    );
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {hostNetwork: true, \
                containers: [{name: a, image: 'dir:/', ports: [{containerPort: 80}]}]}}";
    let (pod, _) = parse_pod(documents(text).unwrap().remove(0), Unsupported::Deny).unwrap();
    let ports = pod.spec.unwrap().containers.remove(0).ports.unwrap();
    assert_eq!(ports[0].host_port, Some(80));
}

#[test]
fn name_resolution_is_checked() {
    let many = |count: usize| {
        (0..count).map(|number| format!("10.0.0.{number}")).collect::<Vec<_>>().join(", ")
    };
    for (spec, expected) in [
        ("dnsPolicy: ClusterFirstWithHostNet".to_owned(), ""),
        ("dnsPolicy: Default\n  dnsConfig: {searches: [a.b., _x.y, .]}".to_owned(), ""),
        ("dnsPolicy: None\n  dnsConfig: {nameservers: ['::1']}".to_owned(), ""),
        (
            "dnsPolicy: Some".to_owned(),
            "spec.dnsPolicy: `Some` is not one of `ClusterFirst`, `ClusterFirstWithHostNet`, \
             `Default`, `None`",
        ),
        (
            "dnsPolicy: None".to_owned(),
            "spec.dnsConfig.nameservers: must have at least one, since `dnsPolicy` is `None`",
        ),
        (
            "dnsConfig: {nameservers: [a]}".to_owned(),
            "spec.dnsConfig.nameservers[0]: `a` must be an IP address",
        ),
        (
            format!("dnsConfig: {{nameservers: [{}]}}", many(4)),
            "spec.dnsConfig.nameservers: are 4, and 3 is the most there may be",
        ),
        (
            "dnsConfig: {searches: ['a b']}".to_owned(),
            "spec.dnsConfig.searches[0]: `a b` must consist of lower case letters, digits, `-`, `_` \
             and `.`, and each part must start and end with a letter, digit or `_`",
        ),
        (
            "dnsConfig: {options: [{value: '1'}]}".to_owned(),
            "spec.dnsConfig.options[0].name: is required",
        ),
        (
            "dnsConfig: {options: [{name: \"a\\nnameserver\"}]}".to_owned(),
            "spec.dnsConfig.options[0]: must not contain white space",
        ),
        ("hostAliases: [{ip: 10.0.0.1, hostnames: [a, b.c]}]".to_owned(), ""),
        (
            "hostAliases: [{ip: x, hostnames: [a]}]".to_owned(),
            "spec.hostAliases[0].ip: `x` must be an IP address",
        ),
    ] {
        assert_eq!(with(&spec, ""), expected, "{spec}");
    }
    assert!(
        with("hostAliases: [{ip: 10.0.0.1, hostnames: [\"a\\nb\"]}]", "").contains("hostnames[0]")
    );
}
