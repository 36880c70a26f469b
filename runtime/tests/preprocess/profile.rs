//! Robot profiles: those that come with the program, and what is said about wrong ones.

use proptest::prelude::*;
use tensact_runtime::preprocess::Profile;
use tensact_runtime::preprocess::profile::ProfileError;
use tensact_topology::Variant::{Pi0, Pi05};

const AVERAGE: &str = r#"
name = "mine"
[prompt]
keys = ["prompt"]
[[state]]
keys = ["state"]
dims = 2
[actions]
dims = 2
delta = { pi0 = [1, -1] }
[pi_space]
flip = [1, -1]
grippers = [1]
"#;

#[test]
fn the_openpi_robots_are_as_in_openpi() {
    let dims = |name: &str| {
        let profile = Profile::named(name).unwrap();
        (profile.state_dims(), profile.actions.dims)
    };
    assert_eq!(dims("libero"), (Some(8), Some(7)));
    assert_eq!(dims("droid"), (Some(8), Some(8)));
    assert_eq!(dims("aloha"), (Some(14), Some(14)));
    assert_eq!(dims("generic"), (None, None));
    let joints = [true; 6];
    let libero = Profile::named("libero").unwrap();
    assert_eq!(libero.delta_mask(Pi0), [joints.as_slice(), &[false]].concat());
    assert!(libero.delta_mask(Pi05).is_empty());
    let arm = [joints.as_slice(), &[false]].concat();
    assert_eq!(Profile::named("aloha").unwrap().delta_mask(Pi05), [arm.clone(), arm].concat());
    assert!(Profile::named("droid").unwrap().delta_mask(Pi0).is_empty());
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    let error = Profile::named("so100").unwrap_err().to_string();
    assert!(
        ["so100", "libero", "droid", "aloha", "generic"].iter().all(|name| error.contains(name)),
        "{error}"
    );
}

#[test]
fn errors_have_line_and_column() {
    let error =
        Profile::parse(&AVERAGE.replace("2\ndelta", "2\ndetla"), "mine.toml").unwrap_err().to_string();
    assert!(error.contains("mine.toml") && error.contains("line 10, column 1"), "{error}");
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("none.toml");
    assert!(Profile::open(&path).unwrap_err().to_string().contains("none.toml"));
    std::fs::write(&path, AVERAGE).unwrap();
    assert_eq!(Profile::open(&path).unwrap(), Profile::parse(AVERAGE, "").unwrap());
}

#[test]
fn values_that_do_not_fit_each_other_are_refused() {
    let cases = [
        ("dims = 2\n[actions]", "[actions]", "pi_space.flip"),
        ("dims = 2\n[actions]", "dims = 0\n[actions]", "at least 1"),
        ("flip = [1, -1]", "flip = [1, 2]", "1 and -1"),
        ("flip = [1, -1]", "flip = [1, -1, 1]", "as long as"),
        ("grippers = [1]", "grippers = [2]", "dimension 2"),
        ("pi0 = [1, -1]", "pi0 = [2, -1]", "covers 3"),
        ("keys = [\"state\"]", "keys = []", "at least one key"),
        ("keys = [\"prompt\"]", "keys = []", "prompt.keys"),
    ];
    assert!(Profile::parse(AVERAGE, "mine").is_ok());
    for (from, to, expected) in cases {
        let error = Profile::parse(&AVERAGE.replace(from, to), "mine").unwrap_err();
        assert!(matches!(error, ProfileError::Invalid { .. }), "{to}");
        assert!(error.to_string().contains(expected), "{to}: {error}");
    }
}

proptest! {
    #[test]
    fn damaged_profiles_never_panic(at in 0usize..200, to: char, junk: String) {
        let _ = Profile::parse(&junk, "junk");
        let damaged: String =
            AVERAGE.chars().enumerate().map(|(index, c)| if index == at { to } else { c }).collect();
        let _ = Profile::parse(&damaged, "damaged");
    }
}
