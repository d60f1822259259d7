//! Why a request or connection could not be served: the code the client sees, whether anything was delivered, and the
//! underlying cause for the log.

use mesh_api::MeshError;
use std::fmt;

/// The error type of things that can fail for many reasons.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A failed attempt to have a request or connection served by an endpoint.
#[derive(Debug)]
pub struct Failure {
    /// What the client is told.
    pub code: MeshError,
    /// What had reached the endpoint by then.
    pub delivered: Delivered,
    /// The cause, for the log.
    pub source: BoxError,
}

/// What an endpoint may have seen of a request when an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// Nothing: another attempt is always safe.
    Nothing,
    /// Perhaps all of it: only an idempotent request may be sent again.
    Maybe,
}

impl Failure {
    /// A failure before anything of the request left the proxy.
    pub fn undelivered(code: MeshError, source: impl Into<BoxError>) -> Self {
        Self { code, delivered: Delivered::Nothing, source: source.into() }
    }

    /// A failure after the request, or part of it, had been written.
    pub fn delivered(code: MeshError, source: impl Into<BoxError>) -> Self {
        Self { code, delivered: Delivered::Maybe, source: source.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, Chain(&*self.source))
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// An error with all its causes, on one line.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_reads_with_its_code_and_all_its_causes() {
        let refused = Failure::undelivered(MeshError::ConnectFailed, "refused");
        assert_eq!(refused.to_string(), "connect-failed: refused");
        let reset = Failure::delivered(MeshError::ResetBeforeResponse, refused);
        assert_eq!(reset.to_string(), "reset-before-response: connect-failed: refused: refused");
    }
}
