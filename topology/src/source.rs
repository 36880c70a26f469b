//! Errors that point into a file a user wrote.

use std::ops::Range;

use miette::{Diagnostic, NamedSource, SourceSpan};

/// Largest descriptor or deployment file that is read: the biggest public one has 60 kB.
pub const FILE_BYTES_MAX: usize = 4 << 20;

/// What is wrong in a file, where, and what to do about it.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{file}:{line}:{column}: {message}")]
pub struct SourceError {
    /// Name of the file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    #[help]
    pub help: Option<String>,
    #[source_code]
    text: NamedSource<String>,
    #[label("here")]
    span: SourceSpan,
}

impl SourceError {
    /// An error at a byte range of `text`; a range outside it is moved to its end.
    pub fn new(file: &str, text: &str, span: Range<usize>, message: impl Into<String>) -> Box<Self> {
        let start = floor_char(text, span.start.min(text.len()));
        let end = floor_char(text, span.end.clamp(start, text.len()));
        let (line, column) = line_column(text, start);
        Box::new(Self {
            file: file.to_owned(),
            line,
            column,
            message: message.into(),
            help: None,
            text: NamedSource::new(file, text.to_owned()),
            span: (start..end).into(),
        })
    }

    /// The same error with advice.
    pub fn with_help(mut self: Box<Self>, help: impl Into<String>) -> Box<Self> {
        self.help = Some(help.into());
        self
    }
}

/// Line and column, both from 1, of a byte offset.
pub(crate) fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..floor_char(text, offset.min(text.len()))];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Byte offset of the start of a line counted from 1, and of the line's end.
pub(crate) fn line_span(text: &str, line: usize) -> Range<usize> {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let length = text[start..].find('\n').unwrap_or(text.len() - start);
    start..start + length
}

fn floor_char(text: &str, mut offset: usize) -> usize {
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// The candidate nearest to what was written, if one is near enough to be meant.
pub(crate) fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(written, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(3) / 2)
        // Of two equally near, the one that begins the same.
        .min_by_key(|(distance, candidate)| (*distance, usize::MAX - common_start(written, candidate)))
        .map(|(_, candidate)| candidate)
}

fn common_start(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count()
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_and_stay_in_the_text() {
        assert_eq!(line_column("a\näb", 4), (2, 2));
        let error = SourceError::new("f", "ä", 1..9, "no");
        assert_eq!((error.line, error.column), (1, 1));
        assert_eq!(line_span("a\nbc\n", 2), 2..4);
        assert_eq!(line_span("a", 9), 1..1);
    }

    #[test]
    fn a_slip_of_the_pen_is_recognised() {
        assert_eq!(nearest("galaxy-hb", ["galaxy-wh", "galaxy-bh", "p150a"]), Some("galaxy-wh"));
        assert_eq!(nearest("p150", ["n150", "p150a"]), Some("p150a"));
        assert_eq!(nearest("zzzzzz", ["p150a"]), None);
    }
}
