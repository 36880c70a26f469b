//! Checkpoints by name, against a cache on disk and a hub on the loopback interface.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::json;
use tempfile::TempDir;
use tensact_runtime::checkpoint::hub::{DownloadProgress, Hub, HubError};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub that serves the files of one repository, `robots/pi0`, and notes what it was asked for.
struct FakeHub {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeHub {
    fn serve(files: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let files: BTreeMap<String, String> =
            files.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &files, &log);
            }
        });
        Self { endpoint, asked }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn answer(mut stream: TcpStream, files: &BTreeMap<String, String>, asked: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        headers
            .iter()
            .find_map(|line| line.to_lowercase().strip_prefix(&format!("{name}: ")).map(str::to_owned))
    };
    let path = request.split(' ').nth(1).unwrap().to_owned();
    asked.lock().unwrap().push(format!("{path} {}", header("authorization").unwrap_or_default()));
    let (status, extra, body) = if path == "/api/models/robots/pi0/revision/main" {
        let siblings: Vec<_> = files.keys().map(|name| json!({"rfilename": name})).collect();
        ("200 OK", String::new(), json!({"siblings": siblings, "sha": COMMIT}).to_string())
    } else {
        let name = path.strip_prefix(&format!("/robots/pi0/resolve/{COMMIT}/"));
        match name.and_then(|name| Some((name, files.get(name)?))) {
            None => ("404 Not Found", String::new(), String::new()),
            Some((name, text)) => {
                let range = header("range").unwrap();
                let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                let from: usize = from.parse().unwrap();
                let to: usize = to.parse().unwrap_or(text.len() - 1);
                let extra = format!(
                    "Content-Range: bytes {from}-{to}/{}\r\nETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\n",
                    text.len(),
                    name.replace('/', "-"),
                );
                ("206 Partial Content", extra, text[from..=to].to_owned())
            }
        }
    };
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
}

fn hub(endpoint: &str, cache: &Path) -> Hub {
    Hub { cache: cache.to_owned(), endpoint: endpoint.into(), token: None, offline: false }
}

fn resolve(hub: &Hub, reference: &str) -> Result<PathBuf, HubError> {
    hub.resolve(reference, &mut |_| {})
}

const FILES: [(&str, &str); 6] = [
    ("config.json", "{}"),
    ("model.safetensors", "weights"),
    ("tokenizer.json", "tokens"),
    ("assets/lab/droid/norm_stats.json", "statistics"),
    ("README.md", "not needed"),
    ("policy_preprocessor_step_5_normalizer_processor.safetensors", "state"),
];

#[test]
fn a_repository_is_downloaded_once_with_all_that_belongs_to_it() {
    let cache = TempDir::new().unwrap();
    let server = FakeHub::serve(&FILES);
    let hub = Hub { token: Some("secret".into()), ..hub(&server.endpoint, cache.path()) };
    let mut progress = Vec::new();
    let folder = hub.resolve("robots/pi0", &mut |step| progress.push(step)).unwrap();
    assert_eq!(folder, cache.path().join("models--robots--pi0/snapshots").join(COMMIT));
    for (name, text) in FILES {
        assert_eq!(
            std::fs::read_to_string(folder.join(name)).ok().as_deref(),
            (name != "README.md").then_some(text)
        );
    }
    let done = DownloadProgress { file: "model.safetensors".into(), done_bytes: 7, total_bytes: 7 };
    assert!(progress.contains(&done), "{progress:?}");
    assert!(server.asked().iter().all(|request| request.ends_with(" bearer secret")));
    assert_eq!(resolve(&hub, "robots/pi0").unwrap(), folder);
    assert_eq!(server.asked(), ["/api/models/robots/pi0/revision/main bearer secret"]);
    let offline = Hub { offline: true, ..hub };
    assert_eq!(resolve(&offline, "robots/pi0").unwrap(), folder);
    assert!(server.asked().is_empty());
}

#[test]
fn shards_are_those_of_the_index() {
    let cache = TempDir::new().unwrap();
    let index = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).to_string();
    let mut files = vec![
        ("config.json", "{}"),
        ("model.safetensors.index.json", index.as_str()),
        ("model-1.safetensors", "one"),
        ("model-2.safetensors", "two"),
        ("other.safetensors", "no shard"),
    ];
    let server = FakeHub::serve(&files);
    let folder = resolve(&hub(&server.endpoint, cache.path()), "robots/pi0").unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("model-2.safetensors")).unwrap(), "two");
    assert!(!folder.join("other.safetensors").exists());
    // An index that leaves the folder is not followed.
    let bad = json!({"weight_map": {"a": "../../escape"}}).to_string();
    files[1].1 = &bad;
    let server = FakeHub::serve(&files);
    let error = resolve(&hub(&server.endpoint, TempDir::new().unwrap().path()), "robots/pi0").unwrap_err();
    assert!(error.to_string().contains("no name of a shard"), "{error}");
}

#[test]
fn a_repository_without_weights_is_no_checkpoint() {
    let server = FakeHub::serve(&FILES[..1]);
    let error = resolve(&hub(&server.endpoint, TempDir::new().unwrap().path()), "robots/pi0").unwrap_err();
    assert!(matches!(error, HubError::NotACheckpoint { .. }), "{error}");
}

/// A cache as Python's `huggingface_hub` lays it out.
fn cache(weights: &str) -> TempDir {
    let cache = TempDir::new().unwrap();
    let repo = cache.path().join("models--robots--pi0");
    let snapshot = repo.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), COMMIT).unwrap();
    std::fs::write(snapshot.join("config.json"), "{}").unwrap();
    std::fs::write(snapshot.join(weights), "{}").unwrap();
    cache
}

/// An address where nobody answers.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn without_a_hub_the_cache_is_used() {
    let cache = cache("model.safetensors");
    let hub = hub(&nobody(), cache.path());
    let snapshot = cache.path().join("models--robots--pi0/snapshots").join(COMMIT);
    assert_eq!(resolve(&hub, "robots/pi0").unwrap(), snapshot);
    assert_eq!(resolve(&hub, &format!("robots/pi0@{COMMIT}")).unwrap(), snapshot);
    assert!(resolve(&hub, "robots/pi0@v2").is_err());
}

#[test]
fn without_a_hub_and_a_whole_cache_the_error_says_what_to_do() {
    let cache = cache("model-1.safetensors");
    for offline in [true, false] {
        let hub = Hub { offline, ..hub(&nobody(), cache.path()) };
        let error = resolve(&hub, "robots/pi0").unwrap_err().to_string();
        let repo = cache.path().join("models--robots--pi0").display().to_string();
        for part in
            ["config.json", "model.safetensors", "tokenizer.json", "norm_stats.json", "HF_TOKEN", &repo]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(error.contains("HF_HUB_OFFLINE"), offline);
    }
}

#[test]
fn a_path_is_itself_and_other_words_are_refused() {
    let folder = TempDir::new().unwrap();
    let hub = hub(&nobody(), folder.path());
    let path = folder.path().to_str().unwrap();
    assert_eq!(resolve(&hub, path).unwrap(), folder.path());
    for word in
        ["", "pi0", "a/b/c", "../pi0", "a/..", "robots/pi0@", "robots/pi0@../x", "robots/pi 0", "/no/such"]
    {
        assert!(matches!(resolve(&hub, word), Err(HubError::NotFound { .. })), "{word}");
    }
}

#[test]
fn variables_are_hugging_faces() {
    let folder = TempDir::new().unwrap();
    let home = folder.path().to_str().unwrap().to_owned();
    std::fs::write(folder.path().join("token"), "saved\n").unwrap();
    let hub = |pairs: &[(&str, &str)]| {
        let pairs: BTreeMap<String, String> =
            pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Hub::from_variables(|name| pairs.get(name).cloned())
    };
    let saved = hub(&[("HF_HOME", &home)]);
    assert_eq!((saved.cache, saved.token.as_deref()), (folder.path().join("hub"), Some("saved")));
    assert_eq!((saved.endpoint.as_str(), saved.offline), ("https://huggingface.co", false));
    let set = hub(&[
        ("HF_HOME", &home),
        ("HF_HUB_CACHE", "/cache"),
        ("HF_TOKEN", "given"),
        ("HF_ENDPOINT", "http://mirror/"),
        ("HF_HUB_OFFLINE", "True"),
    ]);
    assert_eq!((set.cache, set.token.as_deref()), (PathBuf::from("/cache"), Some("given")));
    assert_eq!((set.endpoint.as_str(), set.offline), ("http://mirror", true));
    assert_eq!(hub(&[("XDG_CACHE_HOME", "/xdg")]).cache, Path::new("/xdg/huggingface/hub"));
    assert!(!hub(&[("HF_HUB_OFFLINE", "0")]).offline);
}
