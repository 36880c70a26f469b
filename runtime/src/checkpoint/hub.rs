//! Checkpoints by name: a local path, or a repository of the Hugging Face Hub in its usual cache.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use super::{shards, stays_inside};
use crate::tensor_file::TensorFileError;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Tokenizers and LeRobot's processors: fetched when the repository has them.
const COMPANIONS: [&str; 5] = [
    "tokenizer.json",
    "tokenizer.model",
    "paligemma_tokenizer.model",
    "policy_preprocessor.json",
    "policy_postprocessor.json",
];

/// Attempts to go on with a broken download.
const RETRIES: usize = 3;

/// How far the download of one file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadProgress {
    /// The file, by its path in the repository.
    pub file: String,
    /// Bytes that are here.
    pub done_bytes: u64,
    /// Bytes of the file.
    pub total_bytes: u64,
}

/// A checkpoint that is neither here nor to be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The index of the shards cannot be used.
    #[error(transparent)]
    Index(#[from] TensorFileError),
    /// Neither a path that exists nor an id.
    #[error(
        "no file or folder `{reference}`, and it is no Hugging Face id (owner/name or owner/name@revision)"
    )]
    NotFound {
        /// What was asked for.
        reference: String,
    },
    /// The hub could not be asked, or a download failed.
    #[error(
        "no folder `{id}` here, and it cannot be had from the Hugging Face Hub: {reason} (a private or gated \
         repository needs HF_TOKEN). To do without the network, put {CONFIG}, {WEIGHTS} (or {INDEX} and its \
         shards), the tokenizer (tokenizer.json or paligemma_tokenizer.model) and the statistics \
         (policy_preprocessor.json, policy_postprocessor.json and their .safetensors, or \
         assets/*/norm_stats.json) of {url} into one folder and give its path, or copy {} from a machine that \
         has it", cache.display()
    )]
    Unavailable {
        /// The repository.
        id: String,
        /// Why.
        reason: String,
        /// The repository's page.
        url: String,
        /// Where the cache has, or would have, the repository.
        cache: PathBuf,
    },
    /// The repository holds no checkpoint that can be loaded.
    #[error("{id} is no checkpoint of this kind: it has no {missing}")]
    NotACheckpoint {
        /// The repository.
        id: String,
        /// The file it lacks.
        missing: String,
    },
    /// The cache cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The Hugging Face Hub and its cache on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// Folder of the cache; repositories are `models--owner--name` in it.
    pub cache: PathBuf,
    /// Address of the hub.
    pub endpoint: String,
    /// Token for private and gated repositories.
    pub token: Option<String>,
    /// Whether only the cache is used.
    pub offline: bool,
}

/// A repository at a revision.
struct Reference<'a> {
    id: &'a str,
    revision: &'a str,
}

/// Finds a checkpoint: a path that exists, or a Hugging Face id `owner/name[@revision]`, which is downloaded
/// unless the cache has it. Follows the variables of Hugging Face's own tools, see [`Hub::from_env`].
///
/// # Errors
/// Says which files to put where when the checkpoint cannot be had.
pub fn resolve(reference: &str, progress: &mut dyn FnMut(DownloadProgress)) -> Result<PathBuf, HubError> {
    Hub::from_env().resolve(reference, progress)
}

impl Hub {
    /// The hub as `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` say,
    /// with the defaults of `huggingface_hub`.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`Hub::from_env`], with the variables that `variable` gives.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let home = set("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let user = || std::env::home_dir().unwrap_or_default().join(".cache");
            set("XDG_CACHE_HOME").map_or_else(user, PathBuf::from).join("huggingface")
        });
        let saved = || std::fs::read_to_string(home.join("token")).ok();
        let token = set("HF_TOKEN").or_else(saved).map(|token| token.trim().to_owned());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = set("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()));
        Self {
            cache: set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.filter(|token| !token.is_empty()),
            offline,
        }
    }

    /// As [`resolve`], with this hub.
    ///
    /// The hub is asked first, so that a moved revision is noticed; without an answer the cache is used.
    ///
    /// # Errors
    /// Says which files to put where when the checkpoint cannot be had.
    pub fn resolve(
        &self,
        reference: &str,
        progress: &mut dyn FnMut(DownloadProgress),
    ) -> Result<PathBuf, HubError> {
        let path = Path::new(reference);
        if path.exists() {
            return Ok(path.to_owned());
        }
        let parsed = Reference::parse(reference)
            .ok_or_else(|| HubError::NotFound { reference: reference.to_owned() })?;
        let cached = self.cached(&parsed);
        if self.offline {
            let reason = || "HF_HUB_OFFLINE is set and the cache does not have all of it".to_string();
            return cached.ok_or_else(|| self.unavailable(&parsed, reason()));
        }
        match (self.download(&parsed, progress), cached) {
            (Err(HubError::Unavailable { .. }), Some(cached)) => Ok(cached),
            (result, _) => result,
        }
    }

    /// The folder of the repository in the cache.
    fn folder(&self, reference: &Reference) -> PathBuf {
        self.cache.join(reference.repo(reference.revision).folder_name())
    }

    /// The snapshot in the cache, if all weights are there.
    fn cached(&self, reference: &Reference) -> Option<PathBuf> {
        let folder = self.folder(reference);
        let commit = std::fs::read_to_string(folder.join("refs").join(reference.revision));
        let commit = commit.unwrap_or_else(|_| reference.revision.to_owned());
        let snapshot = folder.join("snapshots").join(commit.trim());
        let has = |file: &str| snapshot.join(file).is_file();
        let sharded =
            || plain_shards(&snapshot.join(INDEX)).is_ok_and(|shards| shards.iter().all(|shard| has(shard)));
        (has(CONFIG) && (has(WEIGHTS) || sharded())).then_some(snapshot)
    }

    fn download(
        &self,
        reference: &Reference,
        progress: &mut dyn FnMut(DownloadProgress),
    ) -> Result<PathBuf, HubError> {
        let failed = |error: ApiError| self.unavailable(reference, error.to_string());
        let cache = Cache::new(self.cache.clone());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_retries(RETRIES)
            .build()
            .map_err(failed)?;
        let repo = reference.repo(reference.revision);
        let info = api.repo(repo.clone()).info().map_err(failed)?;
        if !is_plain(&info.sha) {
            return Err(self.unavailable(reference, "the hub gave no commit".into()));
        }
        let files: BTreeSet<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let snapshot = self.folder(reference).join("snapshots").join(&info.sha);
        let mut fetch = |file: &str| {
            self.fetch(&api, reference, &info.sha, file, progress)
                .map_err(|error| self.unavailable(reference, format!("{file}: {error}")))
        };
        for file in files.iter().filter(|file| is_companion(file)) {
            fetch(file)?;
        }
        for file in [CONFIG, if files.contains(WEIGHTS) { WEIGHTS } else { INDEX }] {
            if !files.contains(file) {
                let missing = if file == INDEX { format!("{WEIGHTS} and no {INDEX}") } else { file.into() };
                return Err(HubError::NotACheckpoint { id: reference.id.into(), missing });
            }
            fetch(file)?;
        }
        if !files.contains(WEIGHTS) {
            for shard in plain_shards(&snapshot.join(INDEX))? {
                fetch(&shard)?;
            }
        }
        // Where the revision points to now, for the next time without a network.
        let created = cache.repo(repo).create_ref(&info.sha);
        created.map_err(|source| HubError::Io { path: self.folder(reference), source })?;
        Ok(snapshot)
    }

    fn fetch(
        &self,
        api: &Api,
        reference: &Reference,
        commit: &str,
        file: &str,
        progress: &mut dyn FnMut(DownloadProgress),
    ) -> Result<(), ApiError> {
        if self.folder(reference).join("snapshots").join(commit).join(file).is_file() {
            return Ok(());
        }
        let report =
            Report { progress, state: DownloadProgress { file: file.into(), done_bytes: 0, total_bytes: 0 } };
        api.repo(reference.repo(commit)).download_with_progress(file, report).map(|_| ())
    }

    fn unavailable(&self, reference: &Reference, reason: String) -> HubError {
        HubError::Unavailable {
            id: reference.id.into(),
            reason,
            url: format!("{}/{}", self.endpoint, reference.id),
            cache: self.folder(reference),
        }
    }
}

impl<'a> Reference<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = id.split_once('/')?;
        let plain = is_plain(owner) && is_plain(name) && revision.split('/').all(is_plain);
        plain.then_some(Self { id, revision })
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.into(), RepoType::Model, revision.into())
    }
}

/// Whether a name is safe as one part of a path and of an address.
fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// Files that are fetched when they are there: tokenizer, LeRobot's processors, openpi's statistics.
fn is_companion(file: &str) -> bool {
    let processor = file.starts_with("policy_") && file.ends_with(".safetensors") && is_plain(file);
    let statistics = file.starts_with("assets/") && file.ends_with("/norm_stats.json") && stays_inside(file);
    COMPANIONS.contains(&file) || processor || statistics
}

/// The shards that a downloaded index names, when each is safe as part of a path and of an address.
fn plain_shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    let shards = shards(index)?;
    match shards.iter().find(|shard| !is_plain(shard)) {
        Some(shard) => {
            let source = std::io::Error::other(format!("`{shard}` is no name of a shard"));
            Err(HubError::Io { path: index.to_owned(), source })
        }
        None => Ok(shards),
    }
}

/// Passes the progress of one file on.
struct Report<'a> {
    progress: &'a mut dyn FnMut(DownloadProgress),
    state: DownloadProgress,
}

impl Progress for Report<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.state.done_bytes = 0;
        self.state.total_bytes = size as u64;
        (self.progress)(self.state.clone());
    }

    fn update(&mut self, size: usize) {
        self.state.done_bytes += size as u64;
        (self.progress)(self.state.clone());
    }

    fn finish(&mut self) {}
}
