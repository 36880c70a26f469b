//! What can go wrong, with TT-NN's own words where it is TT-NN that refuses.

use crate::{DataType, MeshShape, identity::VERSION};
use std::path::PathBuf;

/// Why something did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library that was loaded is of another version than the bridge is written for.
    #[error("{path} is TT-NN {found}, and this program is built for TT-NN {VERSION}: install that version", path = path.display())]
    Version {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The library that was loaded is of the right version, but another build than the program was compiled
    /// against; C++ does not promise that the two fit.
    #[error(
        "{path} is another build of TT-NN (build ID {found}) than this program was compiled against (build ID \
         {built}): build the program again, or load the library it was built with",
        path = path.display()
    )]
    Build {
        /// The library.
        path: PathBuf,
        /// Build ID of the library that was loaded.
        found: String,
        /// Build ID of the library that was linked.
        built: String,
    },
    /// TT-NN cannot say what is loaded.
    #[error("the TT-NN library cannot be examined: {message}")]
    Library {
        /// Why not.
        message: String,
    },
    /// There is no chip.
    #[error(
        "TT-NN finds no chip: check that the driver is loaded, that /dev/tenstorrent is there and that this user \
         may open it"
    )]
    NoChip,
    /// TT-NN cannot find out which chips there are.
    #[error(
        "TT-NN cannot look for chips: {message} (it reads TT_METAL_RUNTIME_ROOT, TT_VISIBLE_DEVICES and \
         TT_METAL_MOCK_CLUSTER_DESC_PATH)"
    )]
    Machine {
        /// TT-NN's message.
        message: String,
    },
    /// Mock chips that would be opened in a way that ends the process.
    #[error(
        "mock chips are named by TT_METAL_MOCK_CLUSTER_DESC_PATH, and TT-NN {VERSION} runs them with \
         TT_METAL_SLOW_DISPATCH_MODE=1 only: set it, or unset the first for real chips"
    )]
    MockDispatch,
    /// A fabric between mock chips, which would end the process.
    #[error("mock chips of TT-NN {VERSION} have no fabric: open them with Fabric::Disabled")]
    MockFabric,
    /// Another process holds a chip. TT-NN would wait for it without end.
    #[error(
        "chip {chip} is in use by process {pid}: stop that process, or leave the chip out with TT_VISIBLE_DEVICES"
    )]
    Busy {
        /// The chip's number under /dev/tenstorrent.
        chip: i32,
        /// The process that holds it.
        pid: i32,
    },
    /// The machine has fewer chips than the mesh.
    #[error("a {shape} mesh needs {needed} chips, and TT-NN finds {present}", needed = shape.chips())]
    TooFewChips {
        /// The mesh asked for.
        shape: MeshShape,
        /// Chips that TT-NN finds.
        present: usize,
    },
    /// TT-NN holds all chips of a machine together, so a process opens one mesh at a time.
    #[error("this process has a mesh open already: divide it into submeshes, or close it first")]
    AlreadyOpen,
    /// TT-NN does not open the mesh.
    #[error("TT-NN does not open a {shape} mesh: {message}")]
    Open {
        /// The mesh asked for.
        shape: MeshShape,
        /// TT-NN's message.
        message: String,
    },
    /// Work was given to a mesh that is divided into submeshes: both would use the same memory.
    #[error("{operation}: this mesh is divided into submeshes; work belongs on them")]
    Divided {
        /// The operation.
        operation: &'static str,
    },
    /// A mesh that has had work cannot be divided, because its tensors would lie under the submeshes' own.
    #[error("a mesh that has had work cannot be divided into submeshes: divide it right after it was opened")]
    InUse,
    /// Two submeshes would share a chip, and each would take the chip's memory for its own.
    #[error("a {shape} submesh at row {row}, column {col} overlaps another submesh")]
    Overlap {
        /// The submesh asked for.
        shape: MeshShape,
        /// Its first row in the parent.
        row: u32,
        /// Its first column in the parent.
        col: u32,
    },
    /// TT-NN refuses an operation or fails in it.
    #[error("{operation}: {message}")]
    Operation {
        /// The operation.
        operation: &'static str,
        /// TT-NN's message, without the backtrace.
        message: String,
    },
    /// An argument that TT-NN would take, and compute something else than was meant.
    #[error("{operation}: {message}")]
    Argument {
        /// The operation.
        operation: &'static str,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// An operation was given tensors of different meshes.
    #[error("{operation}: the tensors lie on different meshes")]
    OtherMesh {
        /// The operation.
        operation: &'static str,
    },
    /// An operation that takes a list of tensors was given none.
    #[error("{operation}: there is no tensor in the list")]
    NoTensor {
        /// The operation.
        operation: &'static str,
    },
    /// Host data does not fill the tensor.
    #[error("{operation}: a tensor of shape {shape:?} holds {expected} values, and {found} were given")]
    Length {
        /// The operation.
        operation: &'static str,
        /// The tensor's shape.
        shape: Vec<u32>,
        /// Values in it.
        expected: u64,
        /// Values given.
        found: u64,
    },
    /// Host data of this kind does not go into, or come from, a tensor of that data type.
    #[error("{operation}: the tensor is {found:?}, and only {allowed:?} will do")]
    DataType {
        /// The operation.
        operation: &'static str,
        /// The tensor's type.
        found: DataType,
        /// Types that would do.
        allowed: &'static [DataType],
    },
}

/// The result of everything that reaches TT-NN.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn operation(operation: &'static str, exception: &cxx::Exception) -> Self {
        Self::Operation { operation, message: message(exception) }
    }
}

/// What TT-NN says, on one line and without the backtrace that it appends.
pub(crate) fn message(exception: &cxx::Exception) -> String {
    without_backtrace(exception.what())
}

fn without_backtrace(text: &str) -> String {
    let said = text.split_once("\nbacktrace:").map_or(text, |(before, _)| before);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" ").replace(" info: ", ": ")
}

#[cfg(test)]
mod tests {
    use super::without_backtrace;

    #[test]
    fn a_message_loses_its_backtrace_and_line_breaks() {
        let text = "TT_FATAL @ /src/matmul.cpp:12: a == b\ninfo:\nThe widths differ: 1 and 2\nbacktrace:\n --- f\n --- g";
        assert_eq!(
            without_backtrace(text),
            "TT_FATAL @ /src/matmul.cpp:12: a == b: The widths differ: 1 and 2"
        );
        assert_eq!(without_backtrace("plain"), "plain");
    }
}
