//! What can go wrong with an image.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{registry, unpack};

/// An image could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text does not name an image this daemon can use.
    #[error("invalid image {text:?}: {problem}")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An operation on a file failed.
    #[error("failed to {action} `{}`", path.display())]
    Io {
        /// The operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image is not what its format demands, or does not contain what was asked for.
    #[error("{image}: {problem}")]
    Image {
        /// The reference.
        image: String,
        /// What is wrong and, where there is one, the remedy.
        problem: String,
    },
    /// A document of the image is not the JSON it should be.
    #[error("{image}: failed to parse {document}")]
    Json {
        /// The reference.
        image: String,
        /// The document's path in the image.
        document: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A layer was refused or could not be written.
    #[error("{image}: failed to unpack layer {layer}")]
    Layer {
        /// The reference.
        image: String,
        /// The layer's path in the image.
        layer: String,
        /// Why.
        source: unpack::Error,
    },
    /// A registry did not give what it was asked for.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// Something else went wrong first, and is the error to report.
    #[error("{image}: the pull was given up")]
    GivenUp {
        /// The reference.
        image: String,
    },
    /// Podscope itself failed.
    #[error("an operation on images panicked")]
    Panicked,
}

/// For `map_err`: names the operation and the file.
pub(super) fn failed_to<E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source: source.into() }
}
