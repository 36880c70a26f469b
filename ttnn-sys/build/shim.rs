//! The compiler's and linker's part.

use crate::{
    identity,
    sdk::{LIBRARY, Sdk},
};

/// Without the ending; each has a header beside it.
const PARTS: [&str; 11] = [
    "convert",
    "elementwise",
    "library",
    "matmul",
    "mesh",
    "movement",
    "query",
    "replay",
    "socket",
    "tensor",
    "transformer",
];

pub(crate) fn build(sdk: &Sdk) -> Result<(), String> {
    let mut compiler = cxx_build::bridge("src/bridge.rs");
    compiler
        .std("c++20")
        .define("FMT_HEADER_ONLY", "1")
        // Else the header `reflect` brings its self-tests along, once in each object file.
        .define("NTEST", None)
        .flag_if_supported("-Wno-deprecated-declarations")
        // TT-NN's headers are not ours to tidy up.
        .warnings(false)
        // Of the headers it would be a hundred times the shim.
        .debug(false);
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        // What TT-NN is built with; its inline functions have to agree on the width of vectors.
        compiler.flag("-march=x86-64-v3");
    }
    compiler.includes(&sdk.includes);
    for part in PARTS {
        compiler.file(format!("src/shim/{part}.cpp"));
    }
    println!("cargo::rerun-if-changed=src/bridge.rs");
    println!("cargo::rerun-if-changed=src/shim");
    println!("cargo::rerun-if-changed=src/identity.rs");
    compiler.try_compile("ttnn_shim").map_err(|_| {
        format!(
            "the shim does not compile against these headers, as the compiler says above: they are incomplete, or of \
             another TT-NN than {}",
            identity::VERSION
        )
    })?;
    link(sdk)
}

fn link(sdk: &Sdk) -> Result<(), String> {
    for folder in &sdk.libraries {
        println!("cargo::rustc-link-search=native={}", folder.display());
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
    println!("cargo::rustc-link-lib=dylib:+verbatim={LIBRARY}");
    for library in ["tt_metal", "tt_stl", "tt-umd"] {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    // For the build scripts of programs: a run path reaches no further than the crate that sets it.
    let folders: Vec<_> = sdk.libraries.iter().map(|folder| folder.display().to_string()).collect();
    println!("cargo::metadata=lib_dirs={}", folders.join(":"));

    let library = sdk.library_folder.join(LIBRARY);
    let id = identity::build_id(&library)
        .map_err(|error| format!("{} cannot be read: {error}", library.display()))?;
    println!("cargo::rustc-env=TTNN_BUILD_ID={}", id.unwrap_or_default());
    println!("cargo::rerun-if-changed={}", library.display());
    Ok(())
}
