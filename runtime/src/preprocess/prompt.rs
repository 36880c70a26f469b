//! The instruction as tokens, as openpi `models/tokenizer.py` (`PaligemmaTokenizer`) writes it.

use tensact_topology::Variant;

use super::tokenizer::{Tokenizer, TokenizerError};

/// Bins that π0.5 puts a normalised state value in.
const BINS: f64 = 256.0;

/// An instruction as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Tokens, beginning-of-sequence first, no padding.
    pub tokens: Vec<u32>,
    /// How many tokens there were before the instruction was cut, if it was.
    pub cut_from: Option<usize>,
}

/// Writes and tokenises the instruction of a policy, cut to `limit` tokens.
///
/// `state` is the normalised state; π0 leaves it out of the text.
///
/// # Errors
/// When the tokenizer fails.
pub fn encode(
    variant: Variant,
    tokenizer: &Tokenizer,
    text: &str,
    state: &[f64],
    limit: usize,
) -> Result<Prompt, TokenizerError> {
    let mut tokens = vec![tokenizer.bos()];
    match variant {
        Variant::Pi0 => {
            tokens.extend(tokenizer.encode(&clean(text))?);
            // By itself, so that it never merges with the text. LeRobot encodes "{text}\n" at once.
            tokens.extend(tokenizer.encode("\n")?);
        }
        Variant::Pi05 => tokens.extend(tokenizer.encode(&with_state(text, state))?),
    }
    let all = tokens.len();
    tokens.truncate(limit);
    Ok(Prompt { tokens, cut_from: (all > limit).then_some(all) })
}

/// The text of π0.5: instruction and state.
///
/// Only the robot's own dimensions are written, as openpi and LeRobot since 0.5 do; LeRobot 0.4 wrote the zeros
/// of the padding to 32 too.
pub fn with_state(text: &str, state: &[f64]) -> String {
    let bins: Vec<String> = state.iter().map(|&value| bin(value).to_string()).collect();
    format!("Task: {}, State: {};\nAction: ", clean(text), bins.join(" "))
}

/// The bin of a normalised state value: `np.digitize(s, np.linspace(-1, 1, 257)[:-1]) - 1`.
///
/// Values below -1 are bin -1 and values above 1 are bin 255, as in openpi and LeRobot.
fn bin(value: f64) -> i32 {
    let half = BINS / 2.0;
    ((value * half).floor() + half).clamp(-1.0, BINS - 1.0) as i32
}

/// The instruction on one line: Python's `strip`, then spaces for underscores and newlines. LeRobot does this for
/// π0.5 only.
fn clean(text: &str) -> String {
    // Python also strips the four ASCII separators, which are no White_Space in Unicode.
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)).replace(['_', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From numpy: `np.digitize(x, np.linspace(-1, 1, 257)[:-1]) - 1`.
    #[test]
    fn bins_are_numpys() {
        let cases = [
            (-2.0, -1),
            (-1.000_000_1, -1),
            (-1.0, 0),
            (-0.9999, 0),
            (-0.992_187_5, 1),
            (-1e-40, 127),
            (0.0, 128),
            (1e-40, 128),
            (0.5, 192),
            (0.992_187_4, 254),
            (0.992_187_5, 255),
            (1.0, 255),
            (7.0, 255),
        ];
        for (value, expected) in cases {
            assert_eq!(bin(value), expected, "{value}");
        }
    }

    #[test]
    fn text_is_cleaned_and_carries_the_state() {
        assert_eq!(clean(" \x1fpick_up\nthe  block \n"), "pick up the  block");
        assert_eq!(with_state("fold_it\n", &[-1.5, 0.0, 1.0]), "Task: fold it, State: -1 128 255;\nAction: ");
    }
}
