//! Any bytes as `config.json` and, after the first zero byte, as `dims.json`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tensact_runtime::config::PolicyConfig;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let mut files = bytes.splitn(2, |&byte| byte == 0);
    for name in ["config.json", "dims.json"] {
        if let Some(content) = files.next() {
            std::fs::write(folder.path().join(name), content).expect("the temporary folder has room");
        }
    }
    let _ = PolicyConfig::read(folder.path());
});
