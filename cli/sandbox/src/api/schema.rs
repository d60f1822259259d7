//! What is known of the shape of objects: which lists merge by key, which are sets, which maps are atomic.

use super::kinds::Resource;

/// How a list field merges in server-side apply and strategic merge patches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListType {
    /// Replaced whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Items identified by these keys.
    Map(Vec<String>),
}

/// How the list at `path` (field names, `[]` for a list item, `*` for a map value) of `resource`'s objects merges.
pub fn list_type(_resource: &Resource, _path: &[String]) -> ListType {
    ListType::Atomic
}
