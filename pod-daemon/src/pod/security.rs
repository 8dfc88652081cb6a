//! A container's security: what the manifest asks for, what the image says, and the defaults.

use std::{
    io::{self, Read as _},
    path::Path,
};

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{
    About,
    identity::{self, Wanted},
    ownership::{self, Policy},
};
use crate::{
    image::Image,
    node::Shared,
    sandbox::{
        Capabilities, Confinement, DEFAULT_CAPABILITIES, Identity, Users, View, apparmor,
        seccomp::{self, Profile},
        sysctl::Sysctl,
    },
};

/// The most that is read of a seccomp profile.
const PROFILE_MAX: u64 = 1 << 20;

/// Who a container is and what holds it.
pub(super) struct Security {
    pub(super) identity: Identity,
    pub(super) confinement: Confinement,
    pub(super) root: Root,
}

/// What a container may see and change of its root.
pub(super) struct Root {
    pub(super) view: View,
    pub(super) read_only: bool,
}

/// A container that cannot be started as its manifest wants it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RunsAsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})"
    )]
    ImageRunsAsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: {pod:?}, container: {container})"
    )]
    ImageUserHasName { user: String, pod: String, container: String },
    #[error("failed to read the seccomp profile `{}`", path.display())]
    ReadProfile { path: std::path::PathBuf, source: io::Error },
    #[error("seccomp profile {name:?} cannot be used")]
    Profile { name: String, source: seccomp::Error },
    /// With the remedy of the innermost cause, since that is all there is to it.
    #[error("appArmorProfile cannot be had: {0}; or remove the field")]
    AppArmor(String),
}

/// Puts everything together. What the container's own context sets goes before the pod's.
pub(super) fn of(
    shared: &Shared,
    about: &About,
    container: &Container,
    image: &Image,
) -> Result<Security, Error> {
    let none = (PodSecurityContext::default(), SecurityContext::default());
    let pod = about.spec.security_context.as_ref().unwrap_or(&none.0);
    let own = container.security_context.as_ref().unwrap_or(&none.1);
    let image_user = image.config.user.as_deref().unwrap_or_default();

    let wanted = wanted(pod, own);
    if own.run_as_non_root.or(pod.run_as_non_root).unwrap_or(false) {
        let place = || (format!("{}_{}", about.key.name, about.key.namespace), &container.name);
        not_root(wanted.user, image_user).map_err(|why| {
            let (pod, container) = place();
            why.into_error(pod, container.clone(), image_user)
        })?;
    }
    let identity = identity::resolve(&wanted, image_user, &image.layers)?;

    let privileged = own.privileged.unwrap_or(false);
    let seccomp = own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref());
    let seccomp = if privileged { Profile::Unconfined } else { profile(shared, seccomp)? };
    let apparmor = own.app_armor_profile.as_ref().or(pod.app_armor_profile.as_ref());
    let view = if privileged {
        View::Node
    } else if own.proc_mount.as_deref() == Some("Unmasked") {
        View::Proc
    } else {
        View::Masked
    };
    Ok(Security {
        identity,
        confinement: Confinement {
            capabilities: capabilities(own, shared.sandboxes.capabilities()),
            // Kubernetes leaves it off unless it is asked for; here it is on unless it is refused.
            no_new_privileges: !own.allow_privilege_escalation.unwrap_or(privileged),
            seccomp,
            apparmor: apparmor_profile(shared, apparmor, privileged)?,
        },
        root: Root { view, read_only: own.read_only_root_filesystem.unwrap_or(false) },
    })
}

/// Whether a container of the pod has the node's devices.
pub(super) fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|own| own.privileged).unwrap_or(false)
}

/// Gives a volume that containers write to the pod's group, if the pod has one. Not for the node's own
/// directories.
pub(super) fn own_volume(spec: &PodSpec, path: &Path) -> io::Result<()> {
    let Some(context) = &spec.security_context else { return Ok(()) };
    let Some(group) = context.fs_group.and_then(|group| u32::try_from(group).ok()) else {
        return Ok(());
    };
    let policy = match context.fs_group_change_policy.as_deref() {
        Some("OnRootMismatch") => Policy::OnRootMismatch,
        _ => Policy::Always,
    };
    ownership::give(path, group, policy)
}

/// The settings of the pod's namespaces: everybody's, and then the manifest's.
pub(super) fn sysctls(spec: &PodSpec) -> Vec<Sysctl> {
    let context = spec.security_context.as_ref();
    let own = context.into_iter().flat_map(|context| context.sysctls.iter().flatten());
    let own = own.filter_map(|sysctl| Sysctl::new(&sysctl.name, &sysctl.value).ok());
    let host_network = spec.host_network.unwrap_or(false);
    Sysctl::of_every_pod().into_iter().filter(|_| !host_network).chain(own).collect()
}

/// Whose user ids the pod has.
pub(super) fn users(spec: &PodSpec) -> Users {
    if spec.host_users == Some(false) { Users::Pod } else { Users::Node }
}

/// Ids were validated with the manifest, so that none is out of range here.
fn wanted(pod: &PodSecurityContext, own: &SecurityContext) -> Wanted {
    let id = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
    let mut groups: Vec<u32> =
        pod.supplemental_groups.iter().flatten().filter_map(|group| id(Some(*group))).collect();
    groups.extend(id(pod.fs_group));
    Wanted {
        user: id(own.run_as_user.or(pod.run_as_user)),
        group: id(own.run_as_group.or(pod.run_as_group)),
        groups,
        strict: pod.supplemental_groups_policy.as_deref() == Some("Strict"),
    }
}

/// Why a container's user is root, or may be.
#[derive(Debug, PartialEq, Eq)]
enum WhyRoot {
    Manifest,
    Image,
    Unknown,
}

fn not_root(user: Option<u32>, image_user: &str) -> Result<(), WhyRoot> {
    match (user, identity::numeric(image_user)) {
        (Some(0), _) => Err(WhyRoot::Manifest),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(WhyRoot::Image),
        (None, Some(_)) => Ok(()),
        (None, None) => Err(WhyRoot::Unknown),
    }
}

impl WhyRoot {
    /// In the kubelet's words, which people search for.
    fn into_error(self, pod: String, container: String, user: &str) -> Error {
        match self {
            Self::Manifest => Error::RunsAsRoot { pod, container },
            Self::Image => Error::ImageRunsAsRoot { pod, container },
            Self::Unknown => {
                let user = user.split(':').next().unwrap_or_default().to_owned();
                Error::ImageUserHasName { user, pod, container }
            }
        }
    }
}

/// The default set, with what is added and then without what is dropped, as containerd has it; `ALL`
/// comes first on either side.
fn capabilities(own: &SecurityContext, available: Capabilities) -> Capabilities {
    if own.privileged.unwrap_or(false) {
        return available;
    }
    let none = Vec::new();
    let lists = own.capabilities.as_ref();
    let add = lists.and_then(|lists| lists.add.as_ref()).unwrap_or(&none);
    let drop = lists.and_then(|lists| lists.drop.as_ref()).unwrap_or(&none);
    let is_all = |name: &String| name == "ALL" || name == "CAP_ALL";
    let of = |names: &[String]| {
        let named = names.iter().filter_map(|name| Capabilities::named(name));
        named.fold(Capabilities::NONE, Capabilities::with)
    };
    let mut set = DEFAULT_CAPABILITIES;
    if add.iter().any(is_all) {
        set = available;
    }
    if drop.iter().any(is_all) {
        set = Capabilities::NONE;
    }
    set.with(of(add)).without(of(drop))
}

/// The seccomp profile; a file is read now, so that commands in the container get the same.
fn profile(shared: &Shared, wanted: Option<&SeccompProfile>) -> Result<Profile, Error> {
    let Some(wanted) = wanted else { return Ok(Profile::RuntimeDefault) };
    match wanted.type_.as_str() {
        "Unconfined" => Ok(Profile::Unconfined),
        "Localhost" => {
            let name = wanted.localhost_profile.as_deref().unwrap_or_default();
            let folder = shared.settings.data_dir.join("seccomp");
            let text = read_below(&folder, Path::new(name))
                .map_err(|source| Error::ReadProfile { path: folder.join(name), source })?;
            let profile = Profile::Localhost(text.into());
            shared
                .sandboxes
                .check_profile(&profile)
                .map_err(|source| Error::Profile { name: name.to_owned(), source })?;
            Ok(profile)
        }
        _ => Ok(Profile::RuntimeDefault),
    }
}

/// Reads a file that is below a folder, without following a link out of it.
fn read_below(folder: &Path, name: &Path) -> io::Result<String> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, directory, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(folder, name, flags, Mode::empty(), beneath)?;
    let mut text = String::new();
    std::fs::File::from(file).take(PROFILE_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The name of a container's AppArmor profile. Without a word about it a container has the default one
/// where that can be had, and goes without where it cannot. A privileged one never has the default one,
/// but one of the node's if it names it.
fn apparmor_profile(
    shared: &Shared,
    wanted: Option<&AppArmorProfile>,
    privileged: bool,
) -> Result<Option<String>, Error> {
    let wanted = wanted.filter(|wanted| !privileged || wanted.type_ == "Localhost");
    if privileged && wanted.is_none() {
        return Ok(None);
    }
    let default = || shared.sandboxes.check_apparmor().map(|()| Some(apparmor::DEFAULT.to_owned()));
    let Some(wanted) = wanted else { return Ok(default().unwrap_or_default()) };
    let profile = match wanted.type_.as_str() {
        "Unconfined" => Ok(None),
        "Localhost" if apparmor::is_enabled() => Ok(wanted.localhost_profile.clone()),
        "Localhost" => Err(&apparmor::Error::Off),
        _ => default(),
    };
    profile.map_err(|error| Error::AppArmor(super::chain(error)))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Capabilities as Lists;

    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Capabilities {
        let owned = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        let lists = Lists { add: owned(add), drop: owned(drop) };
        let own = SecurityContext { capabilities: Some(lists), ..SecurityContext::default() };
        capabilities(&own, Capabilities::ALL)
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let named = |name| Capabilities::named(name).unwrap();
        assert_eq!(set(&[], &[]), DEFAULT_CAPABILITIES);
        assert_eq!(set(&[], &["ALL"]), Capabilities::NONE);
        assert_eq!(set(&["NET_ADMIN"], &["ALL"]), named("NET_ADMIN"));
        assert_eq!(set(&["CAP_SYS_TIME"], &[]), DEFAULT_CAPABILITIES.with(named("SYS_TIME")));
        assert_eq!(set(&["ALL"], &["SYS_ADMIN"]), Capabilities::ALL.without(named("SYS_ADMIN")));
        assert!(!set(&[], &["NET_RAW"]).contains(named("NET_RAW")));
    }

    #[test]
    fn whoever_may_not_be_root_must_be_known_not_to_be() {
        assert_eq!(not_root(Some(0), "1000"), Err(WhyRoot::Manifest));
        assert_eq!(not_root(Some(5), ""), Ok(()));
        assert_eq!(not_root(None, ""), Err(WhyRoot::Image));
        assert_eq!(not_root(None, "0:5"), Err(WhyRoot::Image));
        assert_eq!(not_root(None, "1000:0"), Ok(()));
        assert_eq!(not_root(None, "web"), Err(WhyRoot::Unknown));
    }

    #[test]
    fn a_profile_is_read_from_its_folder_only() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("seccomp");
        std::fs::create_dir_all(folder.join("own")).unwrap();
        std::fs::write(folder.join("own/web.json"), "{}").unwrap();
        std::fs::write(directory.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
        assert_eq!(read_below(&folder, Path::new("own/web.json")).unwrap(), "{}");
        for name in ["../secret", "link", "/etc/passwd", "own"] {
            assert!(read_below(&folder, Path::new(name)).is_err(), "{name}");
        }
    }
}
