//! Volumes that are paths of the node.

use std::{fs, os::unix::fs::FileTypeExt as _, path::Path};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::{Error, failed_to};

/// Checks a path, and makes it if its type says so.
pub(super) fn check(volume: &str, source: &HostPathVolumeSource) -> Result<(), Error> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(failed_to(volume, "create", path))?;
        }
        "FileOrCreate" if !path.exists() => {
            fs::File::create_new(path).map_err(failed_to(volume, "create", path)).map(drop)?;
        }
        _ => {}
    }
    let metadata = fs::metadata(path).map_err(failed_to(volume, "find hostPath", path))?;
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
