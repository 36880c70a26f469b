//! A small tokenizer for synthetic checkpoints, of the same make as Gemma's.

use std::collections::BTreeMap;

use serde_json::json;

/// Where Gemma's newline is, and so this tokenizer's.
const NEWLINE: usize = 108;

/// First of the 256 byte tokens.
const BYTES: usize = NEWLINE + 1;

/// Smallest vocabulary that holds all single letters and bytes.
pub const SMALLEST_VOCAB: usize = BYTES + 256;

/// Words that get a token of their own while there is room, the most common ones first.
const WORDS: &str = "the pick up block red Task State Action put place and in on to of a move open close drawer \
    box cup bowl plate green blue left right fold towel push pull stack cube gripper arm robot table from into";

/// The `tokenizer.json` of a Gemma-like tokenizer with fewer than or exactly `vocab` tokens; the same for the
/// same number.
///
/// `<pad>`, `<eos>`, `<bos>` and `<unk>` are 0 to 3, then printable ASCII, the newline (108), the bytes, and as
/// many common words as there is room for.
///
/// `None` when `vocab` is below [`SMALLEST_VOCAB`].
pub fn tokenizer_json(vocab: usize) -> Option<String> {
    if vocab < SMALLEST_VOCAB {
        return None;
    }
    let mut pieces: Vec<String> = ["<pad>", "<eos>", "<bos>", "<unk>", "▁"].map(String::from).into();
    pieces.extend((b'!'..=b'~').map(|letter| char::from(letter).to_string()));
    pieces.extend((pieces.len()..NEWLINE).map(|id| format!("<unused{id}>")));
    pieces.push("\n".into());
    pieces.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let merges = add_words(&mut pieces, vocab);
    let ids: BTreeMap<&str, usize> =
        pieces.iter().enumerate().map(|(id, piece)| (piece.as_str(), id)).collect();
    let special: Vec<_> = pieces[..4].iter().enumerate().map(|(id, piece)| special(id, piece)).collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "vocab": ids, "merges": merges,
        },
    });
    Some(tokenizer.to_string())
}

fn special(id: usize, content: &str) -> serde_json::Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

/// Adds words letter by letter, each with its space in front, until the vocabulary is full.
fn add_words(pieces: &mut Vec<String>, vocab: usize) -> Vec<String> {
    let mut merges = Vec::new();
    for word in WORDS.split_whitespace() {
        let mut left = "▁".to_string();
        for letter in word.chars() {
            let joined = format!("{left}{letter}");
            if !pieces.contains(&joined) {
                if pieces.len() == vocab {
                    return merges;
                }
                merges.push(format!("{left} {letter}"));
                pieces.push(joined.clone());
            }
            left = joined;
        }
    }
    merges
}
