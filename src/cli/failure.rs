//! How a command fails: an exit code for programs, words for people.

use std::process::ExitCode;

use halfmsg_consumer::DeadLetterError;
use halfmsg_kafka::TopicError;
use halfmsg_producer::{AdminError, StartError};
use serde_json::json;

use super::output::Output;

/// The exit codes, as `halfmsg --help` and the README give them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    KafkaAway = 5,
    Incomplete = 6,
    Unseen = 7,
}

/// Why a command did not do what it was asked for, or is not known to have done it.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    code: String,
    detail: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { exit, code: code.into(), detail: detail.into() }
    }

    /// Something that the caller got wrong.
    pub(crate) fn usage(detail: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", detail)
    }

    /// Anything else.
    pub(crate) fn failed(error: impl std::fmt::Display) -> Self {
        Self::new(Exit::Failed, "failed", error.to_string())
    }

    /// Says it on standard error.
    pub(crate) fn report(self, output: Output) -> ExitCode {
        match output {
            Output::Text => eprintln!("halfmsg: {}", self.detail),
            Output::Json => eprintln!("{}", json!({ "code": self.code, "detail": self.detail })),
        }
        ExitCode::from(self.exit as u8)
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        let exit = match &error {
            AdminError::NotFound(_) | AdminError::NoTopic(_) => Exit::NotFound,
            AdminError::Contradiction { .. }
            | AdminError::NeedsForce { .. }
            | AdminError::AlreadyClosed { .. }
            | AdminError::NotParked(_)
            | AdminError::NotOpen(_)
            | AdminError::Stopped(_)
            | AdminError::Refused(_) => Exit::Refused,
            AdminError::Invalid(_) => Exit::Usage,
            AdminError::Unreachable(_) => Exit::KafkaAway,
            AdminError::Incomplete(_) => Exit::Incomplete,
            AdminError::Unavailable(_) => Exit::Failed,
            AdminError::Unseen(_) => Exit::Unseen,
        };
        Self::new(exit, error.code(), error.to_string())
    }
}

impl From<TopicError> for Failure {
    fn from(error: TopicError) -> Self {
        let (exit, code) = match &error {
            TopicError::Unknown(_) => (Exit::NotFound, "no_topic"),
            TopicError::Refused { .. } | TopicError::Forbidden { .. } => (Exit::Refused, "refused"),
            error if error.is_passing() => (Exit::KafkaAway, "kafka_unavailable"),
            _ => (Exit::Failed, "wrong_setting"),
        };
        Self::new(exit, code, error.to_string())
    }
}

impl From<DeadLetterError> for Failure {
    fn from(error: DeadLetterError) -> Self {
        let (exit, code) = match &error {
            DeadLetterError::NotFound(_) => (Exit::NotFound, "not_found"),
            DeadLetterError::NotOpen { .. } => (Exit::Refused, "not_open"),
            DeadLetterError::BeingTried(_) => (Exit::Refused, "being_tried"),
            DeadLetterError::NoHandler { .. } => (Exit::Refused, "no_handler"),
            DeadLetterError::Database(_) => (Exit::Failed, "failed"),
        };
        Self::new(exit, code, error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Config(error) => Self::usage(error.to_string()),
            other => Self::failed(other),
        }
    }
}

impl From<halfmsg_service_kit::Mistakes> for Failure {
    fn from(mistakes: halfmsg_service_kit::Mistakes) -> Self {
        Self::usage(mistakes.to_string())
    }
}
