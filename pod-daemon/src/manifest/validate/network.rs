//! Validation of host ports, name resolution and aliases, which concern the whole pod.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use k8s_openapi::api::core::v1::{ContainerPort, PodDNSConfig, PodSpec};

use super::{
    super::{names, problem::Problems},
    check,
};

/// As in Kubernetes; the C library reads no more than three.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_BYTES: usize = 2048;

pub(super) fn network(spec: &PodSpec, problems: &mut Problems) {
    let mut taken = BTreeSet::new();
    for (index, container) in spec.containers.iter().enumerate() {
        for (port_index, port) in container.ports.iter().flatten().enumerate() {
            let path = format!("spec.containers[{index}].ports[{port_index}]");
            host_port(port, &path, spec.host_network == Some(true), &mut taken, problems);
        }
    }
    let policy = spec.dns_policy.as_deref().unwrap_or_default();
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    problems.one_of("spec.dnsPolicy", policy, &policies);
    let config = spec.dns_config.as_ref();
    let servers = config.and_then(|config| config.nameservers.as_ref());
    if policy == "None" && servers.is_none_or(Vec::is_empty) {
        problems.invalid(
            "spec.dnsConfig.nameservers",
            "must have at least one, since `dnsPolicy` is `None`",
        );
    }
    if let Some(config) = config {
        dns(config, problems);
    }
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = format!("spec.hostAliases[{index}]");
        address(&alias.ip, format!("{path}.ip"), problems);
        for (index, hostname) in alias.hostnames.iter().flatten().enumerate() {
            let field = format!("{path}.hostnames[{index}]");
            check(problems, field, hostname, names::subdomain(hostname));
        }
    }
}

fn host_port<'a>(
    port: &'a ContainerPort,
    path: &str,
    host_network: bool,
    taken: &mut BTreeSet<(i32, &'a str, &'a str)>,
    problems: &mut Problems,
) {
    let host_ip = port.host_ip.as_deref().unwrap_or_default();
    if !host_ip.is_empty() && host_ip.parse::<Ipv4Addr>().is_err() {
        let message = match host_ip.parse::<IpAddr>() {
            Ok(_) => format!("`{host_ip}` is an IPv6 address; pods have IPv4 only"),
            Err(_) => format!("`{host_ip}` must be an IPv4 address"),
        };
        problems.invalid(format!("{path}.hostIP"), message);
    }
    let Some(number) = port.host_port.filter(|number| *number != 0) else { return };
    let field = format!("{path}.hostPort");
    if !(1..=65535).contains(&number) {
        return problems.invalid(field, format!("must be between 1 and 65535, not {number}"));
    }
    if host_network && number != port.container_port {
        return problems.invalid(
            field,
            format!("must be the containerPort, {}, since hostNetwork is on", port.container_port),
        );
    }
    // No address and 0.0.0.0 are the same: all of them.
    let host_ip = if host_ip == "0.0.0.0" { "" } else { host_ip };
    if !taken.insert((number, port.protocol.as_deref().unwrap_or_default(), host_ip)) {
        problems.duplicate(field, &number.to_string());
    }
}

fn dns(config: &PodDNSConfig, problems: &mut Problems) {
    let path = "spec.dnsConfig";
    let servers = config.nameservers.iter().flatten();
    for (index, server) in servers.clone().enumerate() {
        address(server, format!("{path}.nameservers[{index}]"), problems);
    }
    at_most(servers.count(), MAX_NAMESERVERS, format!("{path}.nameservers"), problems);
    let searches = config.searches.iter().flatten();
    let mut bytes = 0;
    for (index, search) in searches.clone().enumerate() {
        let field = format!("{path}.searches[{index}]");
        bytes += search.len() + 1;
        // `.` alone means that names are looked up as they are.
        let name = search.strip_suffix('.').unwrap_or(search);
        if search != "." {
            check(problems, field, search, names::search_domain(name));
        }
    }
    at_most(searches.count(), MAX_SEARCHES, format!("{path}.searches"), problems);
    if bytes > MAX_SEARCH_BYTES + 1 {
        let message = format!("must be no more than {MAX_SEARCH_BYTES} characters together");
        problems.invalid(format!("{path}.searches"), message);
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        let field = format!("{path}.options[{index}]");
        let texts = [&option.name, &option.value].into_iter().flatten();
        if option.name.as_deref().is_none_or(str::is_empty) {
            problems.required(format!("{field}.name"));
        } else if texts.into_iter().any(|text| text.contains(char::is_whitespace)) {
            problems.invalid(field, "must not contain white space");
        }
    }
}

fn at_most(count: usize, max: usize, field: String, problems: &mut Problems) {
    if count > max {
        problems.invalid(field, format!("are {count}, and {max} is the most there may be"));
    }
}

fn address(text: &str, field: String, problems: &mut Problems) {
    if text.parse::<IpAddr>().is_err() {
        problems.invalid(field, format!("`{text}` must be an IP address"));
    }
}
