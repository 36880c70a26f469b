//! SentencePiece `.model` files as a tokenizer of the `tokenizers` crate, without the C++ library.
//!
//! The messages are the fields of SentencePiece's `sentencepiece_model.proto` that encoding needs. Merges follow
//! from the scores as in Hugging Face's `convert_slow_tokenizer.py`.

use std::collections::HashSet;

use prost::Message;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Precompiled, Prepend, Replace, Sequence, Strip};
use tokenizers::{AddedToken, NormalizerWrapper, Tokenizer};

use Kind::{Normal, Unknown, UserDefined};

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// Longest piece that is accepted, in bytes; Gemma's longest has 93.
const LONGEST_PIECE: usize = 1024;

/// A `.model` file.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

/// One entry of the vocabulary; its place is its id.
#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(enumeration = "Kind", optional, tag = "3", default = "Normal")]
    kind: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(enumeration = "Algorithm", optional, tag = "3", default = "Unigram")]
    algorithm: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Algorithm {
    Unigram = 1,
    Bpe = 2,
    Word = 3,
    Char = 4,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    character_map: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

/// Builds the tokenizer that encodes as this `.model` file does.
///
/// Control symbols such as `<eos>` are never found in text, as in SentencePiece.
///
/// # Errors
/// Says why the bytes are no `.model` file, or what in it is not supported.
pub(super) fn tokenizer(bytes: &[u8]) -> Result<Tokenizer, String> {
    let model = Model::decode(bytes).map_err(|error| format!("not a SentencePiece model: {error}"))?;
    let trainer = model.trainer.clone().unwrap_or_default();
    let normalizer = model.normalizer.clone().unwrap_or_default();
    let user_defined: Vec<&str> = model.of_kind(&[UserDefined]).map(Piece::piece).collect();
    if trainer.algorithm() != Algorithm::Bpe || trainer.whitespace_as_suffix() {
        return Err("only BPE models with whitespace as prefix, such as Gemma's, are supported".into());
    }
    if normalizer.add_dummy_prefix() && !user_defined.is_empty() {
        return Err("user-defined symbols together with a dummy prefix are not supported".into());
    }
    let mut tokenizer = Tokenizer::new(model.bpe(trainer.byte_fallback())?);
    tokenizer.with_normalizer(Some(normalizer.sequence()?));
    // Found in the normalised text and before any merge, the longest first.
    let added: Vec<AddedToken> =
        user_defined.iter().map(|symbol| AddedToken::from(*symbol, false).normalized(true)).collect();
    tokenizer.add_tokens(&added);
    Ok(tokenizer)
}

impl Model {
    fn of_kind(&self, kinds: &[Kind]) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(|piece| kinds.contains(&piece.kind()))
    }

    fn bpe(&self, byte_fallback: bool) -> Result<BPE, String> {
        let vocab: Vocab =
            (0..).zip(&self.pieces).map(|(id, piece)| (piece.piece().to_owned(), id)).collect();
        if vocab.len() != self.pieces.len() {
            return Err("the vocabulary holds a piece twice".into());
        }
        if let Some(piece) = self.pieces.iter().find(|piece| piece.piece().len() > LONGEST_PIECE) {
            return Err(format!("a piece has {} bytes, more than {LONGEST_PIECE}", piece.piece().len()));
        }
        let unknown = self.of_kind(&[Unknown]).next().ok_or("the vocabulary has no unknown piece")?;
        BPE::builder()
            .vocab_and_merges(vocab, self.merges())
            .unk_token(unknown.piece().to_owned())
            .fuse_unk(true)
            .byte_fallback(byte_fallback)
            .build()
            .map_err(|error| error.to_string())
    }

    /// Every way to make a piece of two, the best-scored piece first.
    ///
    /// SentencePiece takes the leftmost of equal pieces however they are made; here the longer left part wins.
    fn merges(&self) -> Vec<(String, String)> {
        let pieces: HashSet<&str> = self.of_kind(&[Normal, UserDefined]).map(Piece::piece).collect();
        let mut merges = Vec::new();
        for piece in self.of_kind(&[Normal, UserDefined]) {
            let text = piece.piece();
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if pieces.contains(left) && pieces.contains(right) {
                    merges.push((piece.score(), left, right));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.len().cmp(&a.1.len())));
        merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
    }
}

impl Normalizer {
    /// SentencePiece's normaliser, in its order.
    fn sequence(&self) -> Result<Sequence, String> {
        let mut steps: Vec<NormalizerWrapper> = Vec::new();
        let replace = |pattern, with: &str| Replace::new(pattern, with).map_err(|error| error.to_string());
        if !self.character_map().is_empty() {
            let map = Precompiled::from(self.character_map()).map_err(|error| format!("{error:?}"))?;
            steps.push(map.into());
        }
        if self.remove_extra_whitespaces() {
            steps.push(Strip::new(true, true).into());
            steps.push(replace(ReplacePattern::Regex(" {2,}".into()), " ")?.into());
        }
        if self.add_dummy_prefix() {
            steps.push(Prepend::new(" ".into()).into());
        }
        if self.escape_whitespaces() {
            steps.push(replace(ReplacePattern::String(" ".into()), SPACE)?.into());
        }
        Ok(Sequence::new(steps))
    }
}
