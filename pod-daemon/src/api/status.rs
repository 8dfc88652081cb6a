//! Failures as `metav1.Status` objects with the HTTP codes that Kubernetes gives them.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};

use crate::{manifest, node};

/// An answer that is not what was asked for.
#[derive(Debug)]
pub(super) struct Failure(Box<Status>);

impl Failure {
    fn new(code: StatusCode, reason: &str, message: impl Into<String>) -> Self {
        Self(Box::new(Status {
            code: Some(code.as_u16().into()),
            message: Some(message.into()),
            reason: Some(reason.to_owned()),
            status: Some("Failure".to_owned()),
            ..Status::default()
        }))
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    /// The events that were asked for are not there any more.
    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    pub(super) fn no_such_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    pub(super) fn no_such_method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// A problem of one field.
    pub(super) fn invalid(field: &str, message: &str) -> Self {
        let cause = StatusCause {
            field: Some(field.to_owned()),
            message: Some(message.to_owned()),
            reason: Some("FieldValueInvalid".to_owned()),
        };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", format!("{field}: {message}"))
            .caused_by(vec![cause])
    }

    fn about(mut self, kind: &str, name: &str) -> Self {
        let details = self.0.details.get_or_insert_default();
        details.kind = Some(kind.to_owned());
        details.name = Some(name.to_owned());
        self
    }

    fn caused_by(mut self, causes: Vec<StatusCause>) -> Self {
        self.0.details.get_or_insert_default().causes = Some(causes);
        self
    }

    pub(super) fn into_status(self) -> Status {
        *self.0
    }
}

/// The answer to a command that ended with `code`, as `kubectl exec` reads it.
pub(super) fn of_exit_code(code: i32) -> Status {
    if code == 0 {
        return Status { status: Some("Success".to_owned()), ..Status::default() };
    }
    let cause = StatusCause {
        field: None,
        message: Some(code.to_string()),
        reason: Some("ExitCode".to_owned()),
    };
    Status {
        details: Some(StatusDetails { causes: Some(vec![cause]), ..StatusDetails::default() }),
        message: Some(format!("command terminated with exit code {code}")),
        reason: Some("NonZeroExitCode".to_owned()),
        status: Some("Failure".to_owned()),
        ..Status::default()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let code = self.0.code.and_then(|code| u16::try_from(code).ok());
        let code = code.and_then(|code| StatusCode::from_u16(code).ok());
        (code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(*self.0)).into_response()
    }
}

impl From<node::Error> for Failure {
    fn from(error: node::Error) -> Self {
        let message = error.to_string();
        match error {
            node::Error::NotFound { kind, name } => {
                Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(kind, &name)
            }
            node::Error::AlreadyExists { kind, name } => {
                Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(kind, &name)
            }
            node::Error::Invalid { field, message } => Self::invalid(&field, &message),
            node::Error::Conflict { .. } => Self::conflict(message),
            node::Error::Internal { .. } => Self::internal(message),
        }
    }
}

impl From<manifest::Error> for Failure {
    fn from(error: manifest::Error) -> Self {
        let message = error.to_string();
        let manifest::Error::Invalid { problems, .. } = error else {
            return Self::bad_request(message);
        };
        let causes = problems.into_iter().map(|problem| StatusCause {
            field: Some(problem.field),
            message: Some(problem.message),
            reason: Some(problem.reason.cause().to_owned()),
        });
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).caused_by(causes.collect())
    }
}
