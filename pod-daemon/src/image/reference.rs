//! How a manifest names an image: in a registry, or by a transport and a place on this machine.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{Error, name::Name};

/// Where an image comes from.
///
/// What begins with none of the transports is a name in a registry.
///
/// As in skopeo and podman, the first `:` after the transport ends the path (a `dir:` has no tag,
/// so there it does not).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// `dir:ROOTFS`: a directory that is the root file system, without a config.
    Dir(PathBuf),
    /// `oci:DIR[:TAG]`: an OCI image layout.
    Oci {
        /// The directory with `index.json` and `blobs/`.
        dir: PathBuf,
        /// The `org.opencontainers.image.ref.name` to pick; needless if there is one image only.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: an OCI image layout in a tar, compressed or not.
    OciArchive {
        /// The tar.
        file: PathBuf,
        /// As for [`Reference::Oci`].
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:NAME:TAG]`: what `docker save` writes.
    DockerArchive {
        /// The tar.
        file: PathBuf,
        /// The repository tag to pick, such as `busybox:1.36`; needless if there is one image only.
        tag: Option<String>,
    },
    /// `[REGISTRY/]NAME[:TAG][@DIGEST]`: an image in a registry.
    Registry(Name),
}

impl Reference {
    /// The directory or file that is read, unless the image is in a registry.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Dir(path)
            | Self::Oci { dir: path, .. }
            | Self::OciArchive { file: path, .. }
            | Self::DockerArchive { file: path, .. } => Some(path),
            Self::Registry(_) => None,
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse =
            |problem| Error::Reference { text: text.to_owned(), problem: String::from(problem) };
        // A daemon's working directory is an accident, so relative paths would mean something else
        // after each restart.
        let absolute = |path: &str| {
            let path = PathBuf::from(path);
            if path.is_absolute() { Ok(path) } else { Err(refuse("its path must be absolute")) }
        };
        let with_tag = |rest: &str| match rest.split_once(':') {
            Some((_, "")) => Err(refuse("its tag is empty")),
            Some((path, tag)) => Ok((absolute(path)?, Some(tag.to_owned()))),
            None => Ok((absolute(rest)?, None)),
        };

        if text.contains(|c: char| c.is_control()) {
            return Err(refuse("it contains a control character"));
        }
        match text.split_once(':') {
            Some(("dir", rest)) => absolute(rest).map(Self::Dir),
            Some(("oci", rest)) => with_tag(rest).map(|(dir, tag)| Self::Oci { dir, tag }),
            Some(("oci-archive", rest)) => {
                with_tag(rest).map(|(file, tag)| Self::OciArchive { file, tag })
            }
            Some(("docker-archive", rest)) => {
                with_tag(rest).map(|(file, tag)| Self::DockerArchive { file, tag })
            }
            _ => text.parse().map(Self::Registry),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, tag) = match self {
            Self::Dir(path) => ("dir", path, None),
            Self::Oci { dir, tag } => ("oci", dir, tag.as_deref()),
            Self::OciArchive { file, tag } => ("oci-archive", file, tag.as_deref()),
            Self::DockerArchive { file, tag } => ("docker-archive", file, tag.as_deref()),
            Self::Registry(name) => return name.fmt(f),
        };
        write!(f, "{transport}:{}", path.display())?;
        tag.map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_displayed_as_it_was_written() {
        for text in [
            "dir:/a:b/c",
            "oci:/images/web",
            "oci:/images/web:v1",
            "oci-archive:/web.tar:v1",
            "docker-archive:/web.tar",
            "docker-archive:/web.tar:docker.io/library/busybox:1.36",
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_docker_archive_keeps_the_colon_of_its_tag() {
        let reference: Reference = "docker-archive:/web.tar:web:v1".parse().unwrap();
        let (file, tag) = ("/web.tar".into(), Some("web:v1".to_owned()));
        assert_eq!(reference, Reference::DockerArchive { file, tag });
    }

    #[test]
    fn what_has_no_transport_is_a_name_in_a_registry() {
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            // Not the transport: a registry may be called so, with a port.
            ("oci.example:5000/a", "oci.example:5000/a:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert!(matches!(reference, Reference::Registry(_)), "{reference:?}");
            assert_eq!(reference.to_string(), full);
        }
        for text in ["docker://nginx", "Nginx", ""] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.starts_with("invalid image"), "{error}");
        }
    }

    #[test]
    fn a_relative_path_and_an_empty_tag_are_errors() {
        for (text, problem) in [
            ("dir:rootfs", "must be absolute"),
            ("oci::v1", "must be absolute"),
            ("oci:/x:", "tag is empty"),
            ("dir:/x\n", "control character"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}
