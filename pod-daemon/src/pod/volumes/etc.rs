//! /etc/hosts, /etc/hostname and /etc/resolv.conf of a pod.

use std::{
    fmt::Write as _,
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{HostAlias, PodDNSConfig};

use super::super::About;
use crate::network;

/// Where each is in containers, and its name among the pod's files.
pub(super) const FILES: [(&str, &str); 3] =
    [("/etc/hosts", "hosts"), ("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf")];

/// The hostname of a pod: the manifest's, or the pod's name, or with the host's network its own.
pub(in crate::pod) fn hostname(about: &About, host_network: bool) -> String {
    if host_network && let Ok(name) = nix::unistd::gethostname() {
        return name.to_string_lossy().into_owned();
    }
    let name = about.spec.hostname.as_deref().unwrap_or(&about.key.name);
    // The kernel takes 64 bytes, DNS 63.
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// Writes the files; returns where each is in containers and on the host.
pub(super) fn files(
    about: &About,
    directory: &Path,
    ip: Option<Ipv4Addr>,
) -> io::Result<Vec<(&'static str, PathBuf)>> {
    fs::create_dir_all(directory)?;
    let hostname = hostname(about, ip.is_none());
    let mut hosts = match ip {
        Some(ip) => format!(
            "# Made by Podscope.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n\
             {ip}\t{hostname}\n"
        ),
        None => fs::read_to_string("/etc/hosts").unwrap_or_default(),
    };
    hosts.push_str(&aliases(about.spec.host_aliases.as_deref().unwrap_or_default()));
    // Without a cluster's DNS, ClusterFirst means the node's as well.
    let host = match (about.spec.dns_policy.as_deref(), ip) {
        (Some("None"), _) => String::new(),
        (_, Some(_)) => network::resolv_conf(),
        (_, None) => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    let resolv_conf = match &about.spec.dns_config {
        Some(config) => resolv_conf(&host, config),
        None => host,
    };
    let mut files = Vec::new();
    let texts = [hosts, format!("{hostname}\n"), resolv_conf];
    for ((target, name), text) in FILES.into_iter().zip(texts) {
        let path = directory.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        files.push((target, path));
    }
    Ok(files)
}

fn aliases(aliases: &[HostAlias]) -> String {
    let mut text = String::new();
    for HostAlias { ip, hostnames } in aliases {
        let names = hostnames.as_deref().unwrap_or_default();
        if !names.is_empty() {
            // Writing to a string does not fail.
            writeln!(text, "{ip}\t{}", names.join("\t")).ok();
        }
    }
    text
}

/// What the node's file says, and then what the manifest adds. An option of the manifest replaces
/// the node's of the same name.
fn resolv_conf(host: &str, config: &PodDNSConfig) -> String {
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    for line in host.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => servers.extend(words.next()),
            // The last line of these counts.
            Some("search" | "domain") => searches = words.collect(),
            Some("options") => options.extend(words),
            _ => {}
        }
    }
    servers.extend(config.nameservers.iter().flatten().cloned());
    searches.extend(config.searches.iter().flatten().cloned());
    for option in config.options.iter().flatten() {
        let name = option.name.as_deref().unwrap_or_default();
        options.retain(|other| other.split(':').next() != Some(name));
        match option.value.as_deref() {
            Some(value) if !value.is_empty() => options.push(format!("{name}:{value}")),
            _ => options.push(name.to_owned()),
        }
    }
    let mut text = String::new();
    if !searches.is_empty() {
        writeln!(text, "search {}", unique(searches).join(" ")).ok();
    }
    for server in unique(servers) {
        writeln!(text, "nameserver {server}").ok();
    }
    if !options.is_empty() {
        writeln!(text, "options {}", options.join(" ")).ok();
    }
    text
}

/// Each word once, where it stands first.
fn unique(words: Vec<String>) -> Vec<String> {
    let mut seen = Vec::new();
    for word in words {
        if !seen.contains(&word) {
            seen.push(word);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodDNSConfigOption;

    use super::*;

    fn texts(texts: &[&str]) -> Option<Vec<String>> {
        Some(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    fn option(name: &str, value: Option<&str>) -> PodDNSConfigOption {
        PodDNSConfigOption { name: Some(name.to_owned()), value: value.map(str::to_owned) }
    }

    #[test]
    fn what_the_manifest_says_comes_after_what_the_node_says() {
        let host = "# comment\ndomain old\nsearch example.org a\nnameserver 9.9.9.9\noptions ndots:1 edns0\n";
        let config = PodDNSConfig {
            nameservers: texts(&["9.9.9.9", "1.1.1.1"]),
            searches: texts(&["a", "b."]),
            options: Some(vec![option("ndots", Some("5")), option("rotate", None)]),
        };
        assert_eq!(
            resolv_conf(host, &config),
            "search example.org a b.\nnameserver 9.9.9.9\nnameserver 1.1.1.1\noptions edns0 ndots:5 rotate\n"
        );
        let config = PodDNSConfig { nameservers: texts(&["::1"]), ..PodDNSConfig::default() };
        assert_eq!(resolv_conf("", &config), "nameserver ::1\n");
    }

    #[test]
    fn aliases_are_lines_of_hosts() {
        let alias = |names| HostAlias { ip: "10.0.0.1".to_owned(), hostnames: texts(names) };
        assert_eq!(aliases(&[alias(&["a", "b.c"]), alias(&[])]), "10.0.0.1\ta\tb.c\n");
    }
}
