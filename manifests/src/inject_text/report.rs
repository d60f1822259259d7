//! What is told about a stream: an entry for each object, or why the stream could not be handled.

use crate::settings::Refusal;

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// File or stream.
    pub source_name: String,
    /// Its document, counted from 1.
    pub document: usize,
    /// Line of the stream on which the object begins.
    pub line: usize,
    /// Kind as written; empty if there is none.
    pub kind: String,
    /// Namespace, where one is written.
    pub namespace: Option<String>,
    /// Name; empty if there is none.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It got the annotation or the proxy.
    Injected,
    /// Annotation or proxy were taken out.
    Uninjected,
    /// It has pods, but stays as it is.
    Skipped(String),
    /// It is of a kind that has no pods.
    NoPods,
}

/// Why a stream could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It could not be read.
    #[error("{source_name}: could not be read: {error}")]
    Read {
        /// File or stream.
        source_name: String,
        /// Why.
        error: std::io::Error,
    },
    /// The outcome could not be written.
    #[error("the manifests could not be written: {0}")]
    Write(std::io::Error),
    /// A document is wrong.
    #[error("{source_name}: document {document}, line {line}: {fault}")]
    Document {
        /// File or stream.
        source_name: String,
        /// The document, counted from 1.
        document: usize,
        /// Line of the stream.
        line: usize,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// What is wrong with a document.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It is not text.
    #[error("expected text in UTF-8, found other bytes")]
    NotText,
    /// It is not YAML.
    #[error("expected YAML: {0}")]
    NotYaml(String),
    /// It is something other than an object.
    #[error("expected a Kubernetes object (a map with apiVersion and kind), found {0}")]
    NotObject(&'static str),
    /// It is larger than is read at once.
    #[error("expected a document of at most {} MiB", super::split::DOCUMENT_BYTES >> 20)]
    TooLarge,
    /// Maps and lists are nested deeper than any manifest.
    #[error("expected at most {} levels of nesting", super::tree::DEPTH)]
    TooDeep,
    /// Its annotations ask for something that does not exist.
    #[error("{object}: {refusal}")]
    Refused {
        /// Kind and name.
        object: String,
        /// What is wrong.
        refusal: Box<Refusal>,
    },
    /// The sidecar could not be written as YAML.
    #[error(transparent)]
    Yaml(#[from] crate::yaml::YamlError),
}
