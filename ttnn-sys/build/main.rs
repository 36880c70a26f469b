//! Compiles the shim against a TT-NN SDK. Without the feature `ttnn` there is nothing to do.

#[cfg(feature = "ttnn")]
#[path = "../src/identity.rs"]
mod identity;
#[cfg(feature = "ttnn")]
mod sdk;
#[cfg(feature = "ttnn")]
mod shim;

fn main() {
    println!("cargo::rerun-if-changed=build");
    #[cfg(feature = "ttnn")]
    if let Err(reason) = sdk::find().and_then(|sdk| shim::build(&sdk)) {
        println!("cargo::error={reason}");
    }
}
