//! Files that Tenstorrent's own tools write about a machine, and which preset they describe.

mod cluster;
mod embed;
mod mesh_graph;
mod recognise;
mod textproto;

use std::path::{Path, PathBuf};

pub use cluster::{BoardType, Cluster};
pub use mesh_graph::{ChannelPolicy, Mesh, MeshDescriptor, MeshGraph, MeshId};
pub use recognise::Recognition;

use crate::source::{FILE_BYTES_MAX, SourceError};

/// Why a file could not be used.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ReadError {
    /// The file could not be read at all.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than any descriptor or deployment can be.
    #[error("{} has {bytes} bytes; files above {FILE_BYTES_MAX} are not read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Something in the file is wrong.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Source(#[from] Box<SourceError>),
}

/// A machine, read from a file of either format.
#[derive(Debug, Clone, PartialEq)]
pub enum Descriptor {
    /// A cluster descriptor: the real chips and links.
    Cluster(Cluster),
    /// A mesh graph descriptor: the logical shape.
    MeshGraph(MeshGraph),
}

impl Descriptor {
    /// Reads a `.textproto` as a mesh graph descriptor and anything else as a cluster descriptor.
    ///
    /// # Errors
    /// When the file cannot be read, or is no descriptor; the error names the line.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let text = read_text(path)?;
        let name = path.display().to_string();
        if path.extension().is_some_and(|extension| extension == "textproto") {
            Ok(Descriptor::MeshGraph(MeshGraph::parse(&name, &text)?))
        } else {
            Ok(Descriptor::Cluster(Cluster::parse(&name, &text)?))
        }
    }

    /// The machine as a board.
    pub fn board(&self) -> crate::Board {
        match self {
            Descriptor::Cluster(cluster) => cluster.board(),
            Descriptor::MeshGraph(graph) => graph.board(),
        }
    }

    /// Which preset this is, or how it differs from the nearest.
    pub fn recognise(&self) -> Recognition {
        match self {
            Descriptor::Cluster(cluster) => recognise::cluster(cluster),
            Descriptor::MeshGraph(graph) => recognise::mesh_graph(graph),
        }
    }
}

/// Reads a file of bounded size as text.
pub(crate) fn read_text(path: &Path) -> Result<String, ReadError> {
    let io = |source| ReadError::Io { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > FILE_BYTES_MAX as u64 {
        return Err(ReadError::TooLarge { path: path.to_owned(), bytes });
    }
    std::fs::read_to_string(path).map_err(io)
}
