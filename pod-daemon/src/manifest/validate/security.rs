//! Validation of the security contexts of pods and containers.

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, PodSpec, SeccompProfile, SecurityContext, Sysctl,
};

use super::super::problem::Problems;
use crate::sandbox::{Capabilities, sysctl};

/// The highest id that Kubernetes takes.
const MAX_ID: i64 = i32::MAX as i64;

const PROFILES: [&str; 3] = ["RuntimeDefault", "Unconfined", "Localhost"];

pub(super) fn pod(spec: &PodSpec, problems: &mut Problems) {
    let own_users = spec.host_users == Some(false);
    if own_users && spec.host_network == Some(true) {
        problems.invalid(
            "spec.hostUsers",
            "must not be `false` with the host's network: root of the pod is nobody there",
        );
    }
    let Some(context) = &spec.security_context else { return };
    let path = "spec.securityContext";
    for (field, value) in [
        ("runAsUser", context.run_as_user),
        ("runAsGroup", context.run_as_group),
        ("fsGroup", context.fs_group),
    ] {
        id(&format!("{path}.{field}"), value, own_users, problems);
    }
    for (index, group) in context.supplemental_groups.iter().flatten().enumerate() {
        id(&format!("{path}.supplementalGroups[{index}]"), Some(*group), own_users, problems);
    }
    let policy = context.supplemental_groups_policy.as_deref();
    let field = format!("{path}.supplementalGroupsPolicy");
    choice(field, policy, &["Merge", "Strict"], problems);
    let policy = context.fs_group_change_policy.as_deref();
    let field = format!("{path}.fsGroupChangePolicy");
    choice(field, policy, &["Always", "OnRootMismatch"], problems);
    profiles(context.seccomp_profile.as_ref(), context.app_armor_profile.as_ref(), path, problems);
    let host_network = spec.host_network.unwrap_or(false);
    sysctls(context.sysctls.iter().flatten(), &format!("{path}.sysctls"), host_network, problems);
}

pub(super) fn container(
    container: &Container,
    spec: &PodSpec,
    path: &str,
    problems: &mut Problems,
) {
    let Some(context) = &container.security_context else { return };
    let path = format!("{path}.securityContext");
    let own_users = spec.host_users == Some(false);
    id(&format!("{path}.runAsUser"), context.run_as_user, own_users, problems);
    id(&format!("{path}.runAsGroup"), context.run_as_group, own_users, problems);
    profiles(context.seccomp_profile.as_ref(), context.app_armor_profile.as_ref(), &path, problems);
    capabilities(context, &path, problems);
    if context.allow_privilege_escalation == Some(false) {
        let added = context.capabilities.iter().flat_map(|lists| lists.add.iter().flatten());
        let is_admin = |name: &String| matches!(name.as_str(), "SYS_ADMIN" | "CAP_SYS_ADMIN");
        if context.privileged == Some(true) {
            problems.invalid(
                format!("{path}.allowPrivilegeEscalation"),
                "cannot be `false` with `privileged: true`",
            );
        } else if added.into_iter().any(is_admin) {
            problems.invalid(
                format!("{path}.allowPrivilegeEscalation"),
                "cannot be `false` with the capability SYS_ADMIN added",
            );
        }
    }
    let mount = context.proc_mount.as_deref();
    choice(format!("{path}.procMount"), mount, &["Default", "Unmasked"], problems);
    if mount == Some("Unmasked") && !own_users {
        problems.invalid(
            format!("{path}.procMount"),
            "`Unmasked` takes `hostUsers: false`: else the container could change the node through /proc",
        );
    }
}

/// An id, and one that the pod's user namespace has if it has one.
fn id(field: &str, value: Option<i64>, own_users: bool, problems: &mut Problems) {
    let max = if own_users { 65_535 } else { MAX_ID };
    if let Some(value) = value.filter(|value| !(0..=max).contains(value)) {
        problems.invalid(field, format!("must be between 0 and {max}, not {value}"));
    }
}

/// Checks a field that has one of a few values, or none.
fn choice(field: String, value: Option<&str>, choices: &[&str], problems: &mut Problems) {
    if let Some(value) = value {
        problems.one_of(field, value, choices);
    }
}

fn profiles(
    seccomp: Option<&SeccompProfile>,
    apparmor: Option<&AppArmorProfile>,
    path: &str,
    problems: &mut Problems,
) {
    if let Some(profile) = seccomp {
        let path = format!("{path}.seccompProfile");
        let file = localhost(&profile.type_, profile.localhost_profile.as_deref(), &path, problems);
        if let Some(file) = file
            && (file.starts_with('/') || file.split('/').any(|part| part == ".."))
        {
            problems.invalid(
                format!("{path}.localhostProfile"),
                "must be a path below the daemon's folder of profiles, without `..`",
            );
        }
    }
    if let Some(profile) = apparmor {
        let path = format!("{path}.appArmorProfile");
        let name = localhost(&profile.type_, profile.localhost_profile.as_deref(), &path, problems);
        if let Some(name) = name
            && (name.trim() != name || name.len() > 4095 || name.contains(char::is_control))
        {
            problems.invalid(format!("{path}.localhostProfile"), "is not the name of a profile");
        }
    }
}

/// Checks a profile's type; returns what `Localhost` names.
fn localhost<'a>(
    kind: &str,
    name: Option<&'a str>,
    path: &str,
    problems: &mut Problems,
) -> Option<&'a str> {
    if kind.is_empty() {
        problems.required(format!("{path}.type"));
        return None;
    }
    problems.one_of(format!("{path}.type"), kind, &PROFILES);
    let field = format!("{path}.localhostProfile");
    match (kind == "Localhost", name.filter(|name| !name.is_empty())) {
        (true, None) => problems.required(field),
        (true, Some(name)) => return Some(name),
        (false, Some(_)) => problems.invalid(field, "goes with `type: Localhost` only"),
        (false, None) => {}
    }
    None
}

fn capabilities(context: &SecurityContext, path: &str, problems: &mut Problems) {
    let Some(lists) = &context.capabilities else { return };
    for (list, names) in [("add", &lists.add), ("drop", &lists.drop)] {
        for (index, name) in names.iter().flatten().enumerate() {
            let known = Capabilities::named(name).is_some();
            if !known && name != "ALL" && name != "CAP_ALL" {
                problems.invalid(
                    format!("{path}.capabilities.{list}[{index}]"),
                    format!("`{name}` is not a capability: use a name like NET_ADMIN, or ALL"),
                );
            }
        }
    }
}

fn sysctls<'a>(
    sysctls: impl Iterator<Item = &'a Sysctl>,
    path: &str,
    host_network: bool,
    problems: &mut Problems,
) {
    let mut seen = std::collections::BTreeSet::new();
    for (index, sysctl) in sysctls.enumerate() {
        let path = format!("{path}[{index}]");
        match sysctl::Sysctl::new(&sysctl.name, &sysctl.value) {
            Err(problem) if problem.is_about_value() => {
                problems.invalid(format!("{path}.value"), problem.to_string());
            }
            Err(problem) => problems.invalid(format!("{path}.name"), problem.to_string()),
            Ok(parsed) if host_network && parsed.is_of_the_network() => problems.invalid(
                format!("{path}.name"),
                format!(
                    "`{}` must not be set with `hostNetwork`: it would be the host's",
                    sysctl.name
                ),
            ),
            Ok(parsed) => {
                if !seen.insert(parsed.name().to_path_buf()) {
                    problems.duplicate(format!("{path}.name"), &sysctl.name);
                }
            }
        }
    }
}
