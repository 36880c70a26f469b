//! Which TT-NN a library on disk is. The build script and the crate use the same code.

use object::{Object, ReadCache};
use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// The only version that the bridge is written for: TT-NN changes names and signatures from one to the next.
pub(crate) const VERSION: &str = "0.69";

/// The GNU build ID of the ELF file at `path`, in hex; `None` where its linker wrote none.
pub(crate) fn build_id(path: &Path) -> io::Result<Option<String>> {
    let file = ReadCache::new(File::open(path)?);
    let elf = object::File::parse(&file).map_err(io::Error::other)?;
    let id = elf.build_id().map_err(io::Error::other)?;
    Ok(id.map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// The version of the TT-NN whose libraries lie in `folder`. The libraries themselves do not carry it, so it is
/// read from what lies beside them: a wheel's metadata, a package's CMake file, or the name of `libtt-umd.so`,
/// which TT-NN 0.69 built and numbered as a part of itself.
pub(crate) fn version(folder: &Path) -> Option<String> {
    of_wheel(folder).or_else(|| of_package(folder)).or_else(|| of_umd(folder))
}

/// Whether `version` is the pinned one, whatever its patch number.
pub(crate) fn is_pinned(version: &str) -> bool {
    version.strip_prefix(VERSION).is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

/// `site-packages/ttnn-0.69.0.dist-info` for `site-packages/ttnn/build/lib`.
fn of_wheel(folder: &Path) -> Option<String> {
    names(folder.ancestors().nth(3)?)
        .find_map(|name| Some(name.strip_prefix("ttnn-")?.strip_suffix(".dist-info")?.to_owned()))
}

/// `set(PACKAGE_VERSION "0.69.0")` in `lib/cmake/tt-nn/tt-nn-config-version.cmake`.
fn of_package(folder: &Path) -> Option<String> {
    let text = fs::read_to_string(folder.join("cmake/tt-nn/tt-nn-config-version.cmake")).ok()?;
    let (_, rest) = text.split_once("set(PACKAGE_VERSION \"")?;
    Some(rest.split_once('"')?.0.to_owned())
}

/// `libtt-umd.so.0.69.0`.
fn of_umd(folder: &Path) -> Option<String> {
    names(folder)
        .filter_map(|name| Some(name.strip_prefix("libtt-umd.so.")?.to_owned()))
        .find(|version| version.matches('.').count() == 2)
}

fn names(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}
