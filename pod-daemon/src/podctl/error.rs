//! Why a command failed.

use std::{io, path::PathBuf};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;

use crate::manifest;

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens on the socket.
    #[error(
        "no daemon listens on `{}` ({source}); start it with \
         `pod-daemon`, or name its socket with --socket or PODSCOPE_SOCKET",
        socket.display()
    )]
    NoDaemon {
        /// The socket.
        socket: PathBuf,
        /// What connecting to it said.
        source: io::Error,
    },
    /// The socket is for others.
    #[error(
        "no permission to use `{}`; only root and members of the socket's group have it",
        socket.display()
    )]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
    },
    /// The daemon said no.
    #[error("{}", message(.0))]
    Refused(Box<Status>),
    /// The daemon said something that was not expected.
    #[error("the daemon's answer to `{request}` cannot be used: {problem}")]
    Answer {
        /// What it was asked.
        request: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A manifest is no manifest.
    #[error("{}: {error}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: manifest::Error,
    },
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    /// The command line asks for what does not go together.
    #[error("{0}")]
    Usage(String),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// Whether there is nobody left to read the output.
    pub(super) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    pub(super) fn exit_code(&self) -> u8 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }

    /// Whether the daemon said that there is no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.reason.as_deref() == Some("NotFound"))
    }

    /// Whether the daemon said that this field is wrong.
    pub(super) fn is_about(&self, field: &str) -> bool {
        let Self::Refused(status) = self else {
            return false;
        };
        let causes = status.details.as_ref().and_then(|details| details.causes.as_ref());
        causes.into_iter().flatten().any(|cause| cause.field.as_deref() == Some(field))
    }
}

fn message(status: &Status) -> String {
    match (&status.message, &status.reason) {
        (Some(message), _) => message.clone(),
        (None, Some(reason)) => format!("the daemon refused: {reason}"),
        (None, None) => "the daemon refused without a reason".to_owned(),
    }
}
