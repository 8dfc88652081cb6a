//! How a manifest names an image: a transport and a place on this machine.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::Error;

/// Where an image comes from.
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
}

impl Reference {
    /// The directory or file that is read.
    pub fn path(&self) -> &Path {
        match self {
            Self::Dir(path)
            | Self::Oci { dir: path, .. }
            | Self::OciArchive { file: path, .. }
            | Self::DockerArchive { file: path, .. } => path,
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
            _ => Err(refuse(
                "it names an image in a registry, and pulling comes later; for now use dir:ROOTFS, \
                 oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME:TAG]",
            )),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, tag) = match self {
            Self::Dir(_) => ("dir", None),
            Self::Oci { tag, .. } => ("oci", tag.as_deref()),
            Self::OciArchive { tag, .. } => ("oci-archive", tag.as_deref()),
            Self::DockerArchive { tag, .. } => ("docker-archive", tag.as_deref()),
        };
        write!(f, "{transport}:{}", self.path().display())?;
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
    fn a_registry_reference_is_an_error_that_names_the_transports() {
        for text in ["nginx", "nginx:1.27", "docker://nginx", "quay.io/a/b@sha256:00", ""] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            for part in ["pulling comes later", "dir:", "oci:", "oci-archive:", "docker-archive:"] {
                assert!(error.contains(part), "{error}");
            }
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
