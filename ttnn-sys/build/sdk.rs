//! Where the headers and libraries of TT-NN are.

use crate::identity;
use std::{
    env, fs,
    path::{Path, PathBuf},
};

pub(crate) const LIBRARY: &str = "_ttnncpp.so";

/// One header of each part of an SDK that may be left out. The package tt-nn-dev 0.69 has no header of SDPA, rotary
/// embedding and sockets.
const HEADERS: [&str; 6] = [
    "ttnn/tensor/tensor.hpp",
    "tt-metalium/mesh_device.hpp",
    "umd/device/types/arch.hpp",
    "ttnn/operations/transformer/sdpa/sdpa.hpp",
    "ttnn/operations/experimental/transformer/rotary_embedding/rotary_embedding.hpp",
    "ttnn/operations/experimental/ccl/send_recv_async/send_async/send_async.hpp",
];

pub(crate) struct Sdk {
    pub(crate) includes: Vec<PathBuf>,
    pub(crate) libraries: Vec<PathBuf>,
    /// The folder of `libraries` that holds `_ttnncpp.so`.
    pub(crate) library_folder: PathBuf,
}

/// The first SDK found, checked to be whole and of the pinned version. Errors are one sentence.
pub(crate) fn find() -> Result<Sdk, String> {
    let (origin, includes, libraries) = if let Some(found) = from_folders()? {
        found
    } else if let Some(home) = variable("TT_METAL_HOME") {
        from_source_tree(Path::new(&home))
    } else {
        from_packages().ok_or(
            "no TT-NN SDK was found: set TTNN_INCLUDE_DIRS and TTNN_LIB_DIRS to its header and library folders, or \
             TT_METAL_HOME to a built source tree, or install the packages tt-metalium-dev and tt-nn-dev",
        )?
    };
    let includes = existing(includes);
    let libraries = existing(libraries);
    for header in HEADERS {
        if !includes.iter().any(|folder| folder.join(header).is_file()) {
            return Err(format!(
                "{origin}: no folder of headers holds {header}; where a package leaves it out, name the package's \
                 folders and ttnn/cpp of TT-NN's sources in TTNN_INCLUDE_DIRS, and its library folder in TTNN_LIB_DIRS"
            ));
        }
    }
    let library_folder = libraries
        .iter()
        .find(|folder| folder.join(LIBRARY).is_file())
        .ok_or_else(|| format!("{origin}: no folder of libraries holds {LIBRARY}"))?
        .clone();
    check_version(&origin, &library_folder)?;
    Ok(Sdk { includes, libraries, library_folder })
}

fn check_version(origin: &str, folder: &Path) -> Result<(), String> {
    let pinned = identity::VERSION;
    match variable("TTNN_VERSION").or_else(|| identity::version(folder)) {
        Some(version) if identity::is_pinned(&version) => Ok(()),
        Some(version) => {
            Err(format!("{origin}: this is TT-NN {version}, and the bridge is for TT-NN {pinned}"))
        }
        None => Err(format!(
            "{origin}: nothing beside {LIBRARY} in {} says which TT-NN it is: set TTNN_VERSION if you know it to be {pinned}",
            folder.display()
        )),
    }
}

type Found = (String, Vec<PathBuf>, Vec<PathBuf>);

fn from_folders() -> Result<Option<Found>, String> {
    let split = |folders: String| env::split_paths(&folders).collect();
    match (variable("TTNN_INCLUDE_DIRS"), variable("TTNN_LIB_DIRS")) {
        (None, None) => Ok(None),
        (Some(includes), Some(libraries)) => {
            Ok(Some(("TTNN_INCLUDE_DIRS and TTNN_LIB_DIRS".to_owned(), split(includes), split(libraries))))
        }
        (Some(_), None) => Err("TTNN_INCLUDE_DIRS is set without TTNN_LIB_DIRS".to_owned()),
        (None, Some(_)) => Err("TTNN_LIB_DIRS is set without TTNN_INCLUDE_DIRS".to_owned()),
    }
}

/// A tree that `build_metal.sh` was run in: its own headers, those of the libraries it fetched, and `build/lib`.
fn from_source_tree(home: &Path) -> Found {
    const OWN: [&str; 9] = [
        "ttnn/api",
        "ttnn/cpp",
        "ttnn",
        "tt_metal/api",
        "tt_metal/hostdevcommon/api",
        "tt_stl",
        "",
        "tt_metal/third_party/umd/device/api",
        "tt_metal/third_party/tracy/public",
    ];
    /// In `.cpmcache/NAME/HASH/`, where the tree's build puts what it downloads.
    const FETCHED: [(&str, &str); 6] = [
        ("fmt", "include"),
        ("nlohmann_json", "include"),
        ("enchantum", "enchantum/include"),
        ("reflect", ""),
        ("spdlog", "include"),
        ("tt-logger", "include"),
    ];
    let cache = variable("CPM_SOURCE_CACHE").map_or_else(|| home.join(".cpmcache"), PathBuf::from);
    let fetched = FETCHED.iter().flat_map(|(name, below)| {
        subfolders(&cache.join(name)).into_iter().map(move |folder| folder.join(below))
    });
    let includes = OWN.iter().map(|folder| home.join(folder)).chain(fetched).collect();
    let origin = format!("TT_METAL_HOME ({})", home.display());
    (origin, includes, vec![home.join("build/lib"), home.join("build_Release/lib")])
}

/// As the Debian packages lay them out: headers of every part in one folder, what they need in another.
fn from_packages() -> Option<Found> {
    ["/usr", "/usr/local"].iter().map(Path::new).find_map(|prefix| {
        let include = prefix.join("include");
        include.join(HEADERS[0]).is_file().then(|| {
            let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
            let libraries = vec![prefix.join(format!("lib/{arch}-linux-gnu")), prefix.join("lib")];
            let origin = format!("the packages under {}", prefix.display());
            (origin, vec![include.join("metalium-thirdparty"), include], libraries)
        })
    })
}

fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn existing(folders: Vec<PathBuf>) -> Vec<PathBuf> {
    folders.into_iter().filter(|folder| folder.is_dir()).collect()
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}
