//! Messages of other programs, counted by what they say.

use std::collections::BTreeMap;

use serde::Serialize;

/// Most different messages that are told apart.
const KINDS_MAX: usize = 64;

/// Words of a message that tell it from others.
const WORDS_MAX: usize = 16;

/// Letters of those words.
const LETTERS_MAX: usize = 120;

/// Letters of a line.
const LINE_MAX: usize = 160;

/// What messages beyond the most frequent ones are counted as.
const OTHERS: &str = "others";

/// Messages that begin with the same words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The first words; numbers, in which messages differ, are `#`.
    pub message: String,
    /// How many there were.
    pub count: u64,
}

/// Messages by their first words.
#[derive(Debug, Clone, Default)]
pub(super) struct Groups(BTreeMap<String, u64>);

impl Groups {
    /// Counts a message by its first words.
    pub(super) fn add(&mut self, message: &str) {
        self.count(gist(message), 1);
    }

    /// Counts a message by its first line, in which numbers matter.
    pub(super) fn add_line(&mut self, message: &str) {
        self.count(line(message), 1);
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (message, count) in other.0 {
            self.count(message, count);
        }
    }

    fn count(&mut self, message: String, count: u64) {
        let known = self.0.len() < KINDS_MAX || self.0.contains_key(&message);
        *self.0.entry(if known { message } else { OTHERS.into() }).or_default() += count;
    }

    pub(super) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// At most `most` groups, the most frequent first; the last holds what does not fit.
    pub(super) fn top(self, most: usize) -> Vec<Group> {
        let mut groups: Vec<Group> =
            self.0.into_iter().map(|(message, count)| Group { message, count }).collect();
        groups.sort_by_key(|group| (group.message == OTHERS, std::cmp::Reverse(group.count)));
        if groups.len() > most {
            let rest = groups.split_off(most.saturating_sub(1));
            let count = rest.iter().map(|group| group.count).sum();
            groups.push(Group { message: OTHERS.into(), count });
        }
        groups
    }
}

/// The first words of a message, without what differs from one to the next. Of a Python traceback, which openpi's own
/// server sends, the last line says what is wrong.
fn gist(message: &str) -> String {
    let lines = || message.lines().map(str::trim).filter(|line| !line.is_empty());
    let traceback = message.starts_with("Traceback");
    let line = if traceback { lines().next_back() } else { lines().next() }.unwrap_or("(no words)");
    let mut words = line.split_whitespace().map(without_numbers);
    let mut gist = words.by_ref().take(WORDS_MAX).collect::<Vec<_>>().join(" ");
    let mut cut = words.next().is_some();
    cut |= shorten(&mut gist, LETTERS_MAX);
    if cut { gist + " …" } else { gist }
}

/// The first line of a message, as it may stand in a terminal.
pub(super) fn line(message: &str) -> String {
    let mut line: String = message.trim().lines().next().unwrap_or_default().chars().map(harmless).collect();
    if shorten(&mut line, LINE_MAX) { line + " …" } else { line }
}

/// Whether there was something to cut off.
fn shorten(text: &mut String, letters: usize) -> bool {
    let end = text.char_indices().nth(letters).map(|(end, _)| end);
    end.inspect(|end| text.truncate(*end)).is_some()
}

/// No letter that a terminal would obey.
fn harmless(letter: char) -> char {
    if letter.is_control() { '\u{fffd}' } else { letter }
}

/// `12.5ms` as `#ms`.
fn without_numbers(word: &str) -> String {
    let mut plain = String::with_capacity(word.len());
    let mut letters = word.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter.is_ascii_digit() {
            while letters.next_if(|next| next.is_ascii_digit() || *next == '.').is_some() {}
            plain.push('#');
        } else {
            plain.push(harmless(letter));
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(message: &str, count: u64) -> Group {
        Group { message: message.into(), count }
    }

    #[test]
    fn messages_that_differ_in_numbers_are_one_group() {
        let mut groups = Groups::default();
        groups.add("12 observations wait already");
        groups.add("7 observations wait already");
        groups.add("late by 3.25ms of 5");
        assert_eq!(groups.total(), 3);
        assert_eq!(groups.top(8), [group("# observations wait already", 2), group("late by #ms of #", 1)]);
    }

    #[test]
    fn the_last_line_of_a_traceback_counts() {
        assert_eq!(
            gist("Traceback (most recent call last):\n  File \"x.py\", line 3\nKeyError: 'state'\n\n"),
            "KeyError: 'state'"
        );
    }

    #[test]
    fn long_messages_are_cut_and_cannot_steer_a_terminal() {
        assert_eq!(gist("a b c d e f g h i j k l m n o p q"), "a b c d e f g h i j k l m n o p …");
        assert_eq!(gist(&"x".repeat(200)), format!("{} …", "x".repeat(120)));
        assert_eq!(gist("red \u{1b}[31m"), "red \u{fffd}[#m");
        assert_eq!(gist(" \n"), "(no words)");
        assert_eq!(line("closed with code 1011\u{7}: x\nmore"), "closed with code 1011\u{fffd}: x");
        assert_eq!(line(&"x".repeat(200)), format!("{} …", "x".repeat(160)));
    }

    #[test]
    fn what_does_not_fit_is_counted_together() {
        let mut groups = Groups::default();
        for index in 0..100u8 {
            let name: String = [b'a' + index / 10, b'a' + index % 10].map(char::from).iter().collect();
            groups.add(&name);
        }
        groups.add("aa");
        let mut twice = groups.clone();
        twice.merge(groups);
        let top = twice.top(3);
        assert_eq!(top, [group("aa", 4), group("ab", 2), group("others", 196)]);
    }
}
