//! What can go wrong with a policy in the kernel.

use aya::maps::MapError;
use aya::programs::ProgramError;

use crate::bpf::BpfError;

/// An error of [`super::Acl`].
#[derive(Debug, thiserror::Error)]
pub enum AclError {
    /// The programs or their maps.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The image is not one that the programs understand. The old one stays in force.
    #[error("refused a policy image: {0}; the policy in force stays")]
    Image(String),
    /// No image is installed, so there is nothing to patch.
    #[error("no policy image is installed")]
    NoImage,
    /// More networks than the tries hold. The old image stays in force.
    #[error("{count} networks do not fit into a table of {limit}; the policy in force stays")]
    TooManyNets {
        /// Networks in the image.
        count: usize,
        /// Size of a trie.
        limit: usize,
    },
}

impl From<aya::EbpfError> for AclError {
    fn from(error: aya::EbpfError) -> Self {
        Self::Bpf(error.into())
    }
}

impl From<ProgramError> for AclError {
    fn from(error: ProgramError) -> Self {
        Self::Bpf(error.into())
    }
}

impl From<MapError> for AclError {
    fn from(error: MapError) -> Self {
        Self::Bpf(error.into())
    }
}
