//! What the CNI plugin of a node and its agent say to each other: one line of JSON each way over a socket of the node,
//! one question a connection. And what the agent writes of the plugin into the node's network configuration.

use crate::names;
use serde::{Deserialize, Serialize};

/// Bytes of a question, its end of line included.
pub const QUESTION_BYTES: usize = 4 * 1024;
/// Bytes of an answer, its end of line included. Ports to leave alone are what makes one long.
pub const ANSWER_BYTES: usize = 64 * 1024;

/// The plugin's entry in a list of network plugins. What the runtime adds to it is not read here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugin {
    /// Name of the program: [`names::CNI_PLUGIN`].
    #[serde(rename = "type")]
    pub plugin: String,
    /// The agent's socket, as the node sees it.
    pub socket: String,
    /// Namespaces whose pods get their network without a question, so that a node can come back to life without its
    /// agent. Nothing in them is meshed.
    pub excluded_namespaces: Vec<String>,
}

impl Plugin {
    /// The entry of an agent that answers at the usual place.
    pub fn new(excluded_namespaces: Vec<String>) -> Self {
        Self { plugin: names::CNI_PLUGIN.to_owned(), socket: names::CNI_SOCKET.to_owned(), excluded_namespaces }
    }
}

/// What the agent is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Does this pod need a redirect?
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its uid, where the runtime tells it: a pod of the same name may have gone before.
        uid: Option<String>,
    },
    /// Is the plugin in place?
    Ready,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The pod needs none: it is not meshed, or sets its redirect itself.
    None,
    /// The pod needs the redirect that `mesh-proxy redirect` would set with these arguments.
    Redirect(Vec<String>),
    /// The plugin is in place.
    Ready,
    /// There is no answer now, and this is why.
    Unknown(String),
}
