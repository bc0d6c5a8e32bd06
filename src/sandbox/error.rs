//! Why a sandbox could not be made. Every error names the wall or limit, the cause and the mend; none holds a host path.

use thiserror::Error;

/// Why `Runtime::create` failed.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum SandboxError {
    /// A required wall could not be built: RPC error 1200.
    #[error("the wall `{wall}` can't be built on this host: {cause}")]
    IsolationUnavailable {
        /// Which wall.
        wall: String,
        /// The step, call and errno.
        cause: String,
        /// What the operator can do.
        mend: String,
    },
    /// A limit that the request named can't be held here: RPC error 1201.
    #[error("the limit `{limit}` can't be enforced on this host: {cause}")]
    LimitUnenforceable {
        /// Which limit.
        limit: String,
        /// Why.
        cause: String,
        /// What the operator can do.
        mend: String,
    },
    /// No such image in the store: RPC error 1103.
    #[error("there is no image `{image}`")]
    ImageNotFound {
        /// The name asked for.
        image: String,
    },
    /// The runtime is here and can't serve this: RPC error 1101.
    #[error("the runtime {runtime} can't serve this: {cause}")]
    RuntimeUnusable {
        /// `type` on the wire.
        runtime: String,
        /// Why, with the mend.
        cause: String,
    },
    /// Descriptors, uid ranges, memory or the launcher's queue are used up: RPC error 1302.
    #[error("the server can't take another sandbox now: {cause}")]
    Busy {
        /// What is used up.
        cause: String,
    },
    /// Anything else: RPC error 1500; the text goes to the log only.
    #[error("making a sandbox failed: {0}")]
    Internal(String),
}
