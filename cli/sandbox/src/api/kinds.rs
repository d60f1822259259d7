//! The one list of resources the API serves: built-in kinds here, custom ones added from CRDs at run time.

use serde_json::Value;
use std::sync::Arc;

/// A served resource: everything discovery, storage, tables and validation need to know of it.
#[derive(Debug, Clone)]
pub struct Resource {
    /// API group; empty for core.
    pub group: String,
    /// Served version.
    pub version: String,
    /// Kind, `Deployment`.
    pub kind: String,
    /// Plural, lower case, `deployments`.
    pub plural: String,
    /// Singular, `deployment`.
    pub singular: String,
    /// Short names, `deploy`.
    pub short_names: Vec<String>,
    /// Categories, `all`.
    pub categories: Vec<String>,
    /// True if its objects live in namespaces.
    pub namespaced: bool,
    /// Subresources served: `status`, `scale`, `log`, ….
    pub subresources: Vec<String>,
    /// For custom resources: the version's entry of the CRD (`schema`, `additionalPrinterColumns`, `subresources`).
    pub custom: Option<Arc<Value>>,
}

impl Resource {
    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
    /// `deployments.apps`, as in error messages.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }
}
