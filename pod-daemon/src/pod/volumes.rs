//! A pod's volumes and the files that kubelet, too, puts into every container.

mod etc;
mod host_path;
mod objects;
mod versions;

use std::{
    collections::BTreeMap,
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, Volume};

pub(super) use self::etc::hostname;
use super::{About, Waiting, ground, sandbox, security};
use crate::{manifest, node::Shared, sandbox::Bind};

/// The file system in memory that has a pod's secrets. Names of volumes do not begin so.
const SECRETS: &str = "_secrets";

/// What the secrets of one volume may take in memory: a secret and its next version, in whole pages.
const SECRET_BYTES: u64 = 16 << 20;

/// Host paths of a pod's volumes and files.
#[derive(Debug)]
pub(super) struct Volumes {
    /// By name; whether the volume is read-only for everybody.
    sources: BTreeMap<String, (PathBuf, bool)>,
    /// `/etc/...` in the container to the file on the host.
    files: Vec<(&'static str, PathBuf)>,
}

/// A volume cannot be made.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("volume {volume:?}: failed to {action} `{}`", path.display())]
    Io { volume: String, action: &'static str, path: PathBuf, source: io::Error },
    #[error("volume {volume:?}: {kind} {name:?} not found; apply it, and the pod goes on")]
    NoObject { volume: String, kind: &'static str, name: String },
    #[error("volume {volume:?}: {kind} {name:?} has no key {key:?}")]
    NoKey { volume: String, kind: &'static str, name: String, key: String },
    #[error("volume {volume:?}: hostPath `{}` is not a {expected}", path.display())]
    Type { volume: String, path: PathBuf, expected: &'static str },
    #[error("volume {volume:?}")]
    Memory { volume: String, source: crate::sandbox::Error },
}

/// Makes what is not there yet; may be called again.
pub(super) fn make(
    shared: &Shared,
    about: &About,
    ip: Option<Ipv4Addr>,
) -> Result<Volumes, Waiting> {
    let fail = |error: Error| Waiting::new("FailedMount", &error);
    let mut sources = BTreeMap::new();
    for volume in about.spec.volumes.iter().flatten() {
        let source = if let Some(host) = &volume.host_path {
            host_path::check(&volume.name, host).map_err(fail)?;
            (PathBuf::from(&host.path), false)
        } else if let Some(path) = place_of_object(shared, about, volume).map_err(fail)? {
            objects::fill(shared, about, volume, &path).map_err(fail)?;
            (path, true)
        } else {
            let path = empty_dir(shared, about, volume).map_err(fail)?;
            let action = "give to the pod's group";
            security::own_volume(&about.spec, &path)
                .map_err(|error| fail(failed_to(&volume.name, action, &path)(error)))?;
            (path, false)
        };
        sources.insert(volume.name.clone(), source);
    }
    let files = etc::files(about, &sandbox::directory(shared, about).join("etc"), ip)
        .map_err(|error| Waiting::new("FailedCreatePodSandBox", &error))?;
    Ok(Volumes { sources, files })
}

/// Where the volumes and files are that [`make`] has made.
pub(super) fn find(shared: &Shared, about: &About) -> Volumes {
    let volumes = about.spec.volumes.iter().flatten().map(|volume| {
        let name = &volume.name;
        let source = if let Some(host) = &volume.host_path {
            (PathBuf::from(&host.path), false)
        } else if volume.secret.is_some() {
            (shared.memory.place(&about.uid, SECRETS).join(name), true)
        } else if is_in_memory(volume) {
            (shared.memory.place(&about.uid, name), false)
        } else {
            (directory_of(shared, about, name), volume.config_map.is_some())
        };
        (name.clone(), source)
    });
    let etc = sandbox::directory(shared, about).join("etc");
    let files = etc::FILES.map(|(target, name)| (target, etc.join(name)));
    Volumes { sources: volumes.collect(), files: files.into() }
}

/// A path on the file system of each volume, by the volume's name in the metrics, and of the containers'
/// own files. Those on the same file system have the same path, as far as that is known without a look.
pub(super) fn filesystems(shared: &Shared, about: &About) -> Vec<(String, PathBuf)> {
    let disk = &shared.settings.data_dir;
    let volumes = about.spec.volumes.iter().flatten().map(|volume| {
        let path = if let Some(host) = &volume.host_path {
            PathBuf::from(&host.path)
        } else if volume.secret.is_some() {
            shared.memory.place(&about.uid, SECRETS)
        } else if is_in_memory(volume) {
            shared.memory.place(&about.uid, &volume.name)
        } else {
            disk.clone()
        };
        (ground::volume_label(&volume.name), path)
    });
    std::iter::once((ground::ROOTFS.to_owned(), disk.clone())).chain(volumes).collect()
}

/// How many of these there are.
pub(super) fn count(about: &About) -> usize {
    1 + about.spec.volumes.as_ref().map_or(0, Vec::len)
}

/// Brings what came from config maps and secrets up to date. What cannot be stays as it was.
pub(super) fn refresh(shared: &Shared, about: &About) {
    for volume in about.spec.volumes.iter().flatten() {
        let result = place_of_object(shared, about, volume).and_then(|path| match path {
            Some(path) => objects::fill(shared, about, volume, &path),
            None => Ok(()),
        });
        if let Err(error) = result {
            let error = super::chain(&error);
            tracing::warn!(pod = %about.key, %error, "a volume keeps what it has");
        }
    }
}

/// Removes a pod's file systems in memory. Its other volumes are directories among its files.
pub(super) fn remove(shared: &Shared, about: &About) {
    if let Err(error) = shared.memory.remove(&about.uid) {
        let error = super::chain(&error);
        tracing::warn!(pod = %about.key, %error, "left behind; the next start removes it");
    }
}

impl Volumes {
    /// What is mounted into a container, in mount order; files that look as its image's can be written to
    /// as those can.
    pub(super) fn binds(&self, container: &Container, root_is_read_only: bool) -> Vec<Bind> {
        let names = ground::mounted_volumes(container);
        let mut binds: Vec<Bind> = container
            .volume_mounts
            .iter()
            .flatten()
            .filter_map(|mount| {
                let (source, read_only) = self.sources.get(&mount.name)?;
                let position = names.iter().position(|name| *name == mount.name)?;
                Some(Bind {
                    source: source.clone(),
                    target: PathBuf::from(&mount.mount_path),
                    read_only: *read_only || mount.read_only.unwrap_or(false),
                    // The root filesystem is volume 0.
                    volume: Some(position + 1),
                })
            })
            .collect();
        for (target, source) in &self.files {
            if !binds.iter().any(|bind| bind.target == Path::new(target)) {
                binds.push(Bind {
                    source: source.clone(),
                    target: PathBuf::from(target),
                    read_only: root_is_read_only,
                    volume: None,
                });
            }
        }
        // A mount below another one's target comes after it.
        binds.sort_by_key(|bind| bind.target.components().count());
        binds
    }
}

/// Where the files of a config map or a secret go: those of secrets into memory. `None` for volumes
/// of other kinds.
fn place_of_object(
    shared: &Shared,
    about: &About,
    volume: &Volume,
) -> Result<Option<PathBuf>, Error> {
    if volume.config_map.is_some() {
        return Ok(Some(directory_of(shared, about, &volume.name)));
    }
    if volume.secret.is_none() {
        return Ok(None);
    }
    let all = about.spec.volumes.iter().flatten();
    let secrets = all.filter(|volume| volume.secret.is_some()).count() as u64;
    let memory = shared
        .memory
        .volume(&about.uid, SECRETS, Some(SECRET_BYTES.saturating_mul(secrets)))
        .map_err(|source| Error::Memory { volume: volume.name.clone(), source })?;
    Ok(Some(memory.join(&volume.name)))
}

/// An empty directory: among the pod's files, or in memory.
fn empty_dir(shared: &Shared, about: &About, volume: &Volume) -> Result<PathBuf, Error> {
    let name = &volume.name;
    if !is_in_memory(volume) {
        let path = directory_of(shared, about, name);
        // Anybody may write, since anybody may be the container's user.
        directory(name, &path, 0o777)?;
        return Ok(path);
    }
    let limit = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref());
    // What validation has let through can be read.
    let asked = limit.and_then(|limit| manifest::bytes(limit).ok());
    let limit = manifest::demand::limits(&about.spec).memory_bytes;
    let bytes = [asked, limit].into_iter().flatten().filter(|bytes| *bytes > 0).min();
    shared
        .memory
        .volume(&about.uid, name, bytes)
        .map_err(|source| Error::Memory { volume: name.clone(), source })
}

fn is_in_memory(volume: &Volume) -> bool {
    let medium = volume.empty_dir.as_ref().and_then(|source| source.medium.as_deref());
    medium == Some("Memory")
}

fn directory_of(shared: &Shared, about: &About, volume: &str) -> PathBuf {
    sandbox::directory(shared, about).join("volumes").join(volume)
}

/// Makes a directory with exactly this mode, whatever the umask.
fn directory(volume: &str, path: &Path, mode: u32) -> Result<(), Error> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(failed_to(volume, "make", path))
}

fn failed_to(
    volume: &str,
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> Error + use<> {
    let (volume, path) = (volume.to_owned(), path.to_path_buf());
    move |source| Error::Io { volume, action, path, source }
}
