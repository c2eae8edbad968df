//! What the engine and the store refuse, in gRPC's codes.

use portreeve_engine::cdi::CdiError;
use portreeve_engine::{EngineError, chain, shortened};
use tonic::{Code, Status};

/// The code that a kubelet acts on, and the whole error with its causes.
pub(super) fn engine(error: &EngineError) -> Status {
    let code = match error {
        EngineError::UnknownSandbox(_) | EngineError::UnknownContainer(_) | EngineError::ImageMissing { .. } => {
            Code::NotFound
        }
        EngineError::Invalid { .. } | EngineError::RunsAsRoot { .. } => Code::InvalidArgument,
        EngineError::NotByHandler { .. } => Code::Unimplemented,
        EngineError::Cdi(CdiError::Name { .. }) => Code::InvalidArgument,
        // A file that somebody may put there, or mend.
        EngineError::Cdi(_) => Code::FailedPrecondition,
        EngineError::Checkpoint { source, .. } if source.lacks_criu() => Code::Unimplemented,
        EngineError::SandboxNotReady { .. } | EngineError::WrongState { .. } => Code::FailedPrecondition,
        // What makes a probe time out rather than fail.
        EngineError::ExecTimeout { .. } => Code::DeadlineExceeded,
        EngineError::ShimLost | EngineError::ShimSilent { .. } => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, shortened(chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_what_is_wrong_and_what_takes_too_long_have_codes_of_their_own() {
        let id = "0".repeat(64);
        for (error, code) in [
            (EngineError::UnknownSandbox(id.parse().unwrap()), Code::NotFound),
            (EngineError::UnknownContainer(id.parse().unwrap()), Code::NotFound),
            (EngineError::ShimLost, Code::Unavailable),
            (EngineError::Shim("something".to_owned()), Code::Unknown),
        ] {
            let status = engine(&error);
            assert_eq!(status.code(), code);
            assert_eq!(status.message(), error.to_string());
        }
    }
}
