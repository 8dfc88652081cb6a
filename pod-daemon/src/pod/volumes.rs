//! A pod's volumes and the files that kubelet, too, puts into every container.

use std::{
    collections::BTreeMap,
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{ConfigMapVolumeSource, Container, HostPathVolumeSource};

use super::{About, Waiting, ground, sandbox, security};
use crate::{network, node::Shared, sandbox::Bind};

/// Files in every container that the pod's directory holds.
const ETC_FILES: [(&str, &str); 3] =
    [("/etc/hosts", "hosts"), ("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf")];

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
    #[error("volume {volume:?}: configmap {name:?} not found; apply it, and the pod goes on")]
    NoConfigMap { volume: String, name: String },
    #[error("volume {volume:?}: configmap {name:?} has no key {key:?}")]
    NoKey { volume: String, name: String, key: String },
    #[error("volume {volume:?}: hostPath `{}` is not a {expected}", path.display())]
    Type { volume: String, path: PathBuf, expected: &'static str },
}

/// Makes what is not there yet; may be called again.
pub(super) fn make(
    shared: &Shared,
    about: &About,
    ip: Option<Ipv4Addr>,
) -> Result<Volumes, Waiting> {
    let base = sandbox::directory(shared, about);
    let fail = |error: Error| Waiting::new("FailedMount", &error);
    let mut sources = BTreeMap::new();
    for volume in about.spec.volumes.iter().flatten() {
        let path = base.join("volumes").join(&volume.name);
        let source = if let Some(host) = &volume.host_path {
            host_path(&volume.name, host).map_err(fail)?;
            (PathBuf::from(&host.path), false)
        } else if let Some(map) = &volume.config_map {
            config_map(shared, about, &volume.name, map, &path).map_err(fail)?;
            (path, true)
        } else {
            // Anybody may write, since anybody may be the container's user.
            directory(&volume.name, &path, 0o777).map_err(fail)?;
            (path, false)
        };
        if volume.host_path.is_none() {
            security::own_volume(&about.spec, &source.0, source.1).map_err(|error| {
                fail(Error::Io {
                    volume: volume.name.clone(),
                    action: "give to the pod's group",
                    path: source.0.clone(),
                    source: error,
                })
            })?;
        }
        sources.insert(volume.name.clone(), source);
    }
    let files = etc_files(about, &base.join("etc"), ip)
        .map_err(|error| Waiting::new("FailedCreatePodSandBox", &error))?;
    Ok(Volumes { sources, files })
}

/// Where the volumes and files are that [`make`] has made.
pub(super) fn find(shared: &Shared, about: &About) -> Volumes {
    let base = sandbox::directory(shared, about);
    let volumes = about.spec.volumes.iter().flatten().map(|volume| {
        let source = match (&volume.host_path, &volume.config_map) {
            (Some(host), _) => (PathBuf::from(&host.path), false),
            (None, map) => (base.join("volumes").join(&volume.name), map.is_some()),
        };
        (volume.name.clone(), source)
    });
    let etc = base.join("etc");
    let files = ETC_FILES.map(|(target, name)| (target, etc.join(name)));
    Volumes { sources: volumes.collect(), files: files.into() }
}

impl Volumes {
    /// What is mounted into a container, in mount order.
    pub(super) fn binds(&self, container: &Container) -> Vec<Bind> {
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
                    read_only: false,
                    volume: None,
                });
            }
        }
        // A mount below another one's target comes after it.
        binds.sort_by_key(|bind| bind.target.components().count());
        binds
    }
}

/// The hostname of a pod: the manifest's, or the pod's name, or with the host's network its own.
pub(super) fn hostname(about: &About, host_network: bool) -> String {
    if host_network && let Ok(name) = nix::unistd::gethostname() {
        return name.to_string_lossy().into_owned();
    }
    let name = about.spec.hostname.as_deref().unwrap_or(&about.key.name);
    // The kernel takes 64 bytes, DNS 63.
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// /etc/hosts, /etc/hostname and /etc/resolv.conf.
fn etc_files(
    about: &About,
    directory: &Path,
    ip: Option<Ipv4Addr>,
) -> io::Result<Vec<(&'static str, PathBuf)>> {
    fs::create_dir_all(directory)?;
    let hostname = hostname(about, ip.is_none());
    let hosts = match ip {
        Some(ip) => format!(
            "# Made by Podscope.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n\
             {ip}\t{hostname}\n"
        ),
        None => fs::read_to_string("/etc/hosts").unwrap_or_default(),
    };
    let resolv_conf = match ip {
        Some(_) => network::resolv_conf(),
        None => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    let mut files = Vec::new();
    let texts = [hosts, format!("{hostname}\n"), resolv_conf];
    for ((target, name), text) in ETC_FILES.into_iter().zip(texts) {
        let path = directory.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        files.push((target, path));
    }
    Ok(files)
}

/// Checks a hostPath, and makes it if its type says so.
fn host_path(volume: &str, source: &HostPathVolumeSource) -> Result<(), Error> {
    let path = Path::new(&source.path);
    let failed = |action| {
        let (volume, path) = (volume.to_owned(), path.to_path_buf());
        move |source| Error::Io { volume, action, path, source }
    };
    let kind = source.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(failed("create"))?;
        }
        "FileOrCreate" if !path.exists() => {
            fs::File::create_new(path).map_err(failed("create")).map(drop)?;
        }
        _ => {}
    }
    let metadata = fs::metadata(path).map_err(failed("find hostPath"))?;
    let file_type = metadata.file_type();
    let (fits, expected) = match kind {
        "Directory" | "DirectoryOrCreate" => (file_type.is_dir(), "directory"),
        "File" | "FileOrCreate" => (file_type.is_file(), "file"),
        "Socket" => (file_type.is_socket(), "socket"),
        "CharDevice" => (file_type.is_char_device(), "character device"),
        "BlockDevice" => (file_type.is_block_device(), "block device"),
        _ => (true, ""),
    };
    if fits {
        Ok(())
    } else {
        Err(Error::Type { volume: volume.to_owned(), path: path.to_path_buf(), expected })
    }
}

/// Writes a config map's entries as kubelet does: files in a directory of their own, reached
/// through links that can be switched to a new version at once.
fn config_map(
    shared: &Shared,
    about: &About,
    volume: &str,
    source: &ConfigMapVolumeSource,
    path: &Path,
) -> Result<(), Error> {
    let name = &source.name;
    let optional = source.optional.unwrap_or(false);
    let map = match shared.config_map(&about.key.namespace, name) {
        Some(map) => map,
        None if optional => return directory(volume, path, 0o755),
        None => {
            return Err(Error::NoConfigMap { volume: volume.to_owned(), name: name.clone() });
        }
    };
    let text = map.data.unwrap_or_default();
    let binary = map.binary_data.unwrap_or_default();
    let content = |key: &str| {
        text.get(key)
            .map(|text| text.as_bytes())
            .or_else(|| binary.get(key).map(|data| data.0.as_slice()))
    };
    let mode = |mode: Option<i32>| {
        mode.or(source.default_mode).and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644)
    };
    // Path below the volume, contents, mode.
    let mut entries = Vec::new();
    match &source.items {
        Some(items) => {
            for item in items {
                match content(&item.key) {
                    Some(data) => entries.push((item.path.as_str(), data, mode(item.mode))),
                    None if optional => {}
                    None => {
                        let (volume, name, key) =
                            (volume.to_owned(), name.clone(), item.key.clone());
                        return Err(Error::NoKey { volume, name, key });
                    }
                }
            }
        }
        None => {
            for key in text.keys().chain(binary.keys()) {
                if let Some(data) = content(key) {
                    entries.push((key, data, mode(None)));
                }
            }
        }
    }
    write_entries(volume, path, &entries)
}

fn write_entries(volume: &str, path: &Path, entries: &[(&str, &[u8], u32)]) -> Result<(), Error> {
    let failed = |action, path: &Path| {
        let (volume, path) = (volume.to_owned(), path.to_path_buf());
        move |source| Error::Io { volume, action, path, source }
    };
    // Made from scratch: a pod that waited may have left a part of it.
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", path)(error));
        }
        _ => directory(volume, path, 0o755)?,
    }
    let version = path.join("..version-1");
    directory(volume, &version, 0o755)?;
    for (name, data, mode) in entries {
        let file = version.join(name);
        if let Some(parent) = file.parent() {
            directory(volume, parent, 0o755)?;
        }
        fs::write(&file, data)
            .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(*mode)))
            .map_err(failed("write", &file))?;
        let top = Path::new(name).iter().next().map(PathBuf::from).unwrap_or_default();
        let link = path.join(&top);
        match symlink(Path::new("..data").join(&top), &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("link", &link)(error));
            }
            _ => {}
        }
    }
    let data = path.join("..data");
    symlink("..version-1", &data).map_err(failed("link", &data))
}

/// Makes a directory with exactly this mode, whatever the umask.
fn directory(volume: &str, path: &Path, mode: u32) -> Result<(), Error> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|source| Error::Io {
            volume: volume.to_owned(),
            action: "make",
            path: path.to_path_buf(),
            source,
        })
}
