//! The Gemma tokenizer, from Hugging Face's `tokenizer.json` or a SentencePiece `.model` file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::{sentencepiece, synthetic};

/// Names a tokenizer is looked for in a folder, in this order.
pub const FILES: [&str; 3] = ["tokenizer.json", "paligemma_tokenizer.model", "tokenizer.model"];

/// What to use instead.
const ADVICE: &str =
    "Use that of google/paligemma-3b-pt-224 (tokenizer.json) or openpi's paligemma_tokenizer.model";

/// Text to token ids of the model.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
    vocab: usize,
}

/// A tokenizer that cannot be loaded, or text that cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The folder holds none of [`FILES`].
    #[error(
        "no tokenizer in {}: looked for {}. Put the tokenizer of google/paligemma-3b-pt-224 \
         (tokenizer.json) or openpi's paligemma_tokenizer.model there", folder.display(), FILES.join(", ")
    )]
    NotFound {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no tokenizer.
    #[error("{} is not a usable tokenizer: {reason}. {ADVICE}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A tokenizer, but not of the Gemma family.
    #[error("{} is not a Gemma tokenizer: it has no token <bos>. {ADVICE}", path.display())]
    NotGemma {
        /// The file.
        path: PathBuf,
    },
    /// The vocabulary is larger than the model's table.
    #[error(
        "{} has ids up to {largest}, but the model's vocabulary is {vocab}; this tokenizer belongs to \
         another model", path.display()
    )]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// Largest id of the tokenizer.
        largest: u32,
        /// Rows of the model's token table.
        vocab: usize,
    },
    /// The vocabulary is too small even for the tokenizer of synthetic policies.
    #[error(
        "the model's vocabulary is {vocab}, and the synthetic tokenizer needs at least {}: name a tokenizer",
        synthetic::SMALLEST_VOCAB
    )]
    NoSynthetic {
        /// Rows of the model's token table.
        vocab: usize,
    },
    /// The text holds a special token that the model has no row for, such as PaliGemma's `<image>`.
    #[error("the text gives token {id}, but the model's vocabulary is {vocab}")]
    OutOfVocabulary {
        /// The token.
        id: u32,
        /// Rows of the model's token table.
        vocab: usize,
    },
    /// The tokenizer failed on a text.
    #[error("cannot tokenise the instruction: {reason}")]
    Encode {
        /// Why.
        reason: String,
    },
}

impl Tokenizer {
    /// Loads a tokenizer from a file, or from the first of [`FILES`] in a folder, for a model whose token table
    /// has `vocab` rows.
    ///
    /// # Errors
    /// When there is no such file, it is damaged, not of the Gemma family, or too large for the model.
    pub fn open(path: &Path, vocab: usize) -> Result<Self, TokenizerError> {
        if path.is_dir() {
            let file = FILES.iter().map(|name| path.join(name)).find(|file| file.is_file());
            let file = file.ok_or_else(|| TokenizerError::NotFound { folder: path.to_owned() })?;
            return Self::open(&file, vocab);
        }
        let bytes =
            std::fs::read(path).map_err(|source| TokenizerError::Read { path: path.to_owned(), source })?;
        let sentencepiece = path.extension().is_some_and(|extension| extension == "model");
        let inner = shielded(|| match sentencepiece {
            true => sentencepiece::tokenizer(&bytes),
            false => tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| error.to_string()),
        });
        Self::loaded(inner, path, vocab)
    }

    /// The tokenizer of synthetic policies, for a model whose token table has `vocab` rows.
    ///
    /// # Errors
    /// When the table is too small for it.
    pub fn synthetic(vocab: usize) -> Result<Self, TokenizerError> {
        let json = synthetic::tokenizer_json(vocab).ok_or(TokenizerError::NoSynthetic { vocab })?;
        let inner = tokenizers::Tokenizer::from_bytes(&json).map_err(|error| error.to_string());
        Self::loaded(inner, Path::new("the synthetic tokenizer"), vocab)
    }

    fn loaded(
        inner: Result<tokenizers::Tokenizer, String>,
        path: &Path,
        vocab: usize,
    ) -> Result<Self, TokenizerError> {
        let mut inner = inner.map_err(|reason| TokenizerError::Format { path: path.to_owned(), reason })?;
        // SentencePiece, and so openpi, reads "<eos>" in an instruction as plain text.
        inner.set_encode_special_tokens(true);
        // Padding and length are the prompt's business.
        inner.with_padding(None);
        let _ = inner.with_truncation(None);
        Self::checked(inner, path, vocab)
    }

    fn checked(inner: tokenizers::Tokenizer, path: &Path, vocab: usize) -> Result<Self, TokenizerError> {
        let bos =
            inner.token_to_id("<bos>").ok_or_else(|| TokenizerError::NotGemma { path: path.to_owned() })?;
        // Added tokens may lie above the table: PaliGemma's <image> (257152) does.
        let largest = inner.get_vocab(false).into_values().max().unwrap_or(0).max(bos);
        if largest as usize >= vocab {
            return Err(TokenizerError::Vocabulary { path: path.to_owned(), largest, vocab });
        }
        Ok(Self { inner, bos, vocab })
    }

    /// The token that begins every sequence.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// Tokens of a text, without beginning or end of sequence. Special tokens in the text are plain text.
    ///
    /// # Errors
    /// When the tokenizer fails, or gives an id the model has no row for.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = shielded(|| self.inner.encode_fast(text, false).map_err(|error| error.to_string()))
            .map_err(|reason| TokenizerError::Encode { reason })?;
        match encoding.get_ids().iter().find(|&&id| id as usize >= self.vocab) {
            Some(&id) => Err(TokenizerError::OutOfVocabulary { id, vocab: self.vocab }),
            None => Ok(encoding.get_ids().to_vec()),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer[{} tokens, bos {}]", self.inner.get_vocab_size(true), self.bos)
    }
}

/// Runs a call into the tokenizer crate, which panics on some damaged files, and makes a panic an error.
fn shielded<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // Nothing that the call touched is used after a panic but the tokenizer's cache, which only misses entries.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err("the tokenizer library panicked".into()))
}
