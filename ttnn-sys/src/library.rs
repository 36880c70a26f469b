//! The library and the machine, before a mesh is opened.

use crate::{Arch, Error, Fabric, MeshShape, Result, bridge::ffi, error, identity};
use std::{
    env,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// The version of TT-NN that this crate is for; the patch number is free.
pub const TTNN_VERSION: &str = identity::VERSION;

/// Build ID of the library that the shim was linked with; empty where it has none.
const LINKED_BUILD_ID: &str = env!("TTNN_BUILD_ID");

/// Names the mock chips that TT-NN opens instead of real ones.
const MOCK: &str = "TT_METAL_MOCK_CLUSTER_DESC_PATH";

static MESH_IS_OPEN: AtomicBool = AtomicBool::new(false);

/// Lives as long as the process's mesh, or while there is none but TT-NN has hold of the chips.
pub(crate) struct OpenMesh;

impl OpenMesh {
    fn claim() -> Result<Self> {
        let was_open = MESH_IS_OPEN.swap(true, Ordering::AcqRel);
        if was_open { Err(Error::AlreadyOpen) } else { Ok(Self) }
    }
}

impl Drop for OpenMesh {
    /// Gives the chips back: TT-NN would hold them, against this process and others, until the process ends.
    fn drop(&mut self) {
        // It fails only where a mesh is open, and then the chips are in good hands.
        let _ = ffi::release_devices();
        MESH_IS_OPEN.store(false, Ordering::Release);
    }
}

/// What TT-NN says of the machine without opening a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Chips that can be opened.
    pub chips: usize,
    /// Their generation.
    pub arch: Arch,
}

/// Looks which chips there are, and gives them back.
///
/// # Errors
/// Where the library is not the one the program was built for, there is no chip, another process holds one, or
/// this process has a mesh open: ask the mesh then.
pub fn machine() -> Result<Machine> {
    let _claim = OpenMesh::claim()?;
    check_library()?;
    look()
}

/// Everything that can be refused before TT-NN is asked to open a mesh.
pub(crate) fn prepare(shape: MeshShape, fabric: Fabric) -> Result<OpenMesh> {
    let open = OpenMesh::claim()?;
    check_library()?;
    let Machine { chips, .. } = look()?;
    if fabric != Fabric::Disabled && is_set(MOCK) {
        return Err(Error::MockFabric);
    }
    if chips < shape.chips() {
        return Err(Error::TooFewChips { shape, present: chips });
    }
    Ok(open)
}

fn look() -> Result<Machine> {
    if is_set(MOCK) && !is_set("TT_METAL_SLOW_DISPATCH_MODE") {
        return Err(Error::MockDispatch);
    }
    let owner = ffi::chip_owner().map_err(refused)?;
    if owner.pid != 0 {
        return Err(Error::Busy { chip: owner.chip, pid: owner.pid });
    }
    let chips = ffi::device_count().map_err(refused)?;
    if chips == 0 {
        return Err(Error::NoChip);
    }
    let arch = Arch::named(&ffi::arch_name().map_err(refused)?);
    Ok(Machine { chips, arch })
}

fn refused(exception: cxx::Exception) -> Error {
    match error::message(&exception) {
        message if message.contains("No chips detected") => Error::NoChip,
        message => Error::Machine { message },
    }
}

fn is_set(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// Whether the loaded library is the one that the shim was compiled for.
fn check_library() -> Result<()> {
    let unreadable = |message: String| Error::Library { message };
    let path = ffi::library_path().map_err(|exception| unreadable(error::message(&exception)))?;
    let path = PathBuf::from(path);
    let id = identity::build_id(&path)
        .map_err(|failure| unreadable(format!("{}: {failure}", path.display())))?
        .unwrap_or_default();
    let version = path.parent().and_then(identity::version);
    check_identity(&path, version.as_deref(), &id, LINKED_BUILD_ID)
}

fn check_identity(path: &Path, version: Option<&str>, loaded: &str, linked: &str) -> Result<()> {
    // Where nothing tells the version, the builder vouched for it, and the build ID still has to match.
    if let Some(found) = version.filter(|version| !identity::is_pinned(version)) {
        return Err(Error::Version { path: path.to_owned(), found: found.to_owned() });
    }
    if loaded != linked {
        return Err(Error::Build {
            path: path.to_owned(),
            found: loaded.to_owned(),
            built: linked.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_refused() {
        let path = Path::new("/lib/_ttnncpp.so");
        for version in ["0.70.0", "0.6.9", "0.690.0", "0.81.1"] {
            let refused = check_identity(path, Some(version), "ab", "ab");
            assert!(matches!(refused, Err(Error::Version { found, .. }) if found == version), "{version}");
        }
        for version in ["0.69", "0.69.0", "0.69.12", "0.69.0-rc3"] {
            assert!(check_identity(path, Some(version), "ab", "ab").is_ok(), "{version}");
        }
    }

    #[test]
    fn another_build_is_refused() {
        let path = Path::new("/lib/_ttnncpp.so");
        assert!(matches!(check_identity(path, Some("0.69.0"), "ab", "cd"), Err(Error::Build { .. })));
        assert!(matches!(check_identity(path, None, "", "cd"), Err(Error::Build { .. })));
        assert!(check_identity(path, None, "ab", "ab").is_ok());
    }
}
