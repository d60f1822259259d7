//! What a failure says: what was tried, on what, what came back, and what to do next.
//!
//! Commands return [`Error`]; a foreign error becomes one only by saying what was tried ([`Context::during`]), so that
//! no bare "connection refused" ever reaches a terminal.

use std::fmt;

/// How a command ended that could do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done and well.
    Well,
    /// Done, and problems were found; they have been printed.
    Problems,
}

/// The result of a command's step.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, told to a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What was tried, outermost first.
    tried: Vec<String>,
    /// What came back.
    cause: String,
    /// What to do next.
    hint: Option<String>,
    broken_pipe: bool,
}

impl Error {
    /// A failure that needs no more context than its own words.
    pub fn new(cause: impl Into<String>) -> Self {
        Self { tried: Vec::new(), cause: cause.into(), hint: None, broken_pipe: false }
    }

    /// Adds what to do next, unless something closer to the cause knew better.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Says something else to do next, if anything was to be done.
    #[must_use]
    pub fn hint_instead(mut self, hint: impl Into<String>) -> Self {
        self.hint = self.hint.map(|_| hint.into());
        self
    }

    /// Adds what was tried (`list pods in shop`), around what was said so far.
    #[must_use]
    pub fn during(mut self, tried: impl Into<String>) -> Self {
        self.tried.insert(0, tried.into());
        self
    }

    /// What came back, without what was tried.
    pub fn cause(&self) -> &str {
        self.cause.trim_end()
    }

    /// What to do next, if anything is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// True if whoever read our output has gone away: a normal end.
    pub fn is_broken_pipe(&self) -> bool {
        self.broken_pipe
    }

    /// What became of writing to stdout.
    pub fn from_stdout(cause: &std::io::Error) -> Self {
        let mut error = Self::new(cause.to_string()).during("write to stdout");
        error.broken_pipe = cause.kind() == std::io::ErrorKind::BrokenPipe;
        error
    }

    fn from_any(cause: &anyhow::Error) -> Self {
        if let Some(own) = cause.downcast_ref::<Error>() {
            return own.clone();
        }
        if let Some(kube) = cause.downcast_ref::<kube::Error>() {
            return from_kube(kube);
        }
        if let Some(kubeconfig) = cause.downcast_ref::<kube::config::KubeconfigError>() {
            return Self::new(match kubeconfig {
                kube::config::KubeconfigError::ReadConfig(cause, path) => format!("{}: {cause}", path.display()),
                other => other.to_string(),
            });
        }
        let mut words: Vec<String> = Vec::new();
        for part in cause.chain() {
            let text = part.to_string();
            // Many errors repeat their source in their own text.
            if !words.last().is_some_and(|last| last.contains(&text)) {
                words.push(text);
            }
        }
        Self::new(words.join(": "))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for tried in &self.tried {
            write!(f, "cannot {tried}: ")?;
        }
        f.write_str(self.cause())
    }
}

impl std::error::Error for Error {}

/// Turns foreign errors into [`Error`]s.
pub trait Context<T> {
    /// Says what was tried, as it would follow "cannot": `read the kubeconfig`.
    fn during<S: Into<String>>(self, tried: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<anyhow::Error>> Context<T> for std::result::Result<T, E> {
    fn during<S: Into<String>>(self, tried: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| Error::from_any(&cause.into()).during(tried()))
    }
}

/// Adds hints to results that carry an [`Error`] already.
pub trait Hint<T> {
    /// What to do next.
    fn hint<S: Into<String>>(self, hint: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Hint<T> for Result<T> {
    fn hint<S: Into<String>>(self, hint: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.hint(hint()))
    }
}

/// What the cluster said, in one line, with the usual way out.
fn from_kube(cause: &kube::Error) -> Error {
    match cause {
        kube::Error::Api(status) => {
            let error = Error::new(match (status.message.trim(), status.code) {
                ("", code) => format!("the cluster answered {code} {}", status.reason),
                (message, 0) => message.to_owned(),
                (message, code) => format!("{message} ({code})"),
            });
            match status.code {
                401 => {
                    error.hint("the cluster does not accept these credentials; renew them or choose another --context")
                }
                403 => error.hint("ask for this permission, or act as somebody who has it with --as"),
                _ => error,
            }
        }
        kube::Error::SerdeError(cause) => Error::new(format!("the answer is not what was expected: {cause}")),
        kube::Error::Auth(cause) => Error::new(innermost(cause))
            .hint("the kubeconfig's way to log in failed; try it with `kubectl auth whoami`"),
        other => Error::new(innermost(other))
            .hint("check that the cluster runs and that --kubeconfig and --context point at it"),
    }
}

/// The last words of a chain of errors: the outer ones only say that something went wrong.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_was_tried_and_what_came_back() {
        let io: std::result::Result<(), _> = Err(std::io::Error::other("no such file"));
        let error = io.during(|| "read shop.yaml").during(|| "inject").unwrap_err().hint("check the path");
        assert_eq!(error.to_string(), "cannot inject: cannot read shop.yaml: no such file");
        assert_eq!(error.hint_text(), Some("check the path"));
    }

    #[test]
    fn the_hint_closest_to_the_cause_wins() {
        let error = Error::new("x").hint("first").hint("second");
        assert_eq!(error.hint_text(), Some("first"));
    }

    #[test]
    fn what_the_cluster_refuses_is_told_in_its_words() {
        let status = kube::core::Status { message: "pods is forbidden".into(), code: 403, ..Default::default() };
        let error = Err::<(), _>(kube::Error::Api(Box::new(status))).during(|| "list pods").unwrap_err();
        assert_eq!(error.to_string(), "cannot list pods: pods is forbidden (403)");
        assert!(error.hint_text().unwrap().contains("--as"));
    }

    #[test]
    fn a_chain_is_told_without_repeating_itself() {
        let cause = anyhow::anyhow!("disk full").context("write a: disk full").context("save");
        assert_eq!(
            Err::<(), _>(cause).during(|| "stop").unwrap_err().to_string(),
            "cannot stop: save: write a: disk full"
        );
    }
}
