//! A small parser of protobuf's text format: enough for descriptors, tolerant of fields it does not know.
//!
//! The crates that read text format need the compiled schema and refuse fields that are not in it; mesh graph
//! descriptors in the field use fields that their published schema lacks.

use std::ops::Range;

use crate::source::SourceError;

/// Deeper nesting than any descriptor has.
const DEPTH_MAX: usize = 32;

/// A message: fields in the order they stand in the file.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) fields: Vec<Field>,
}

/// One field of a message.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) span: Range<usize>,
    pub(super) values: Vec<Value>,
}

/// A value: the items of a list become values of one field.
#[derive(Debug)]
pub(super) enum Value {
    Scalar(String),
    Message(Message),
}

impl Message {
    /// All fields of a name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Field> {
        self.fields.iter().filter(move |field| field.name == name)
    }

    /// All messages in fields of a name, with the field they stand in.
    pub(super) fn messages<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a Field, &'a Message)> {
        self.all(name).flat_map(|field| {
            field.values.iter().filter_map(move |value| match value {
                Value::Message(message) => Some((field, message)),
                Value::Scalar(_) => None,
            })
        })
    }

    /// All scalars in fields of a name.
    pub(super) fn scalars<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.all(name).flat_map(|field| &field.values).filter_map(|value| match value {
            Value::Scalar(text) => Some(text.as_str()),
            Value::Message(_) => None,
        })
    }

    /// The last scalar of a name: text format lets a later value replace an earlier one.
    pub(super) fn scalar(&self, name: &str) -> Option<&str> {
        self.fields.iter().rfind(|field| field.name == name)?.values.iter().rev().find_map(
            |value| match value {
                Value::Scalar(text) => Some(text.as_str()),
                Value::Message(_) => None,
            },
        )
    }
}

/// Parses a whole file.
pub(super) fn parse(name: &str, text: &str) -> Result<Message, Box<SourceError>> {
    let mut parser = Parser { name, text, at: 0 };
    parser.message(None, 0)
}

struct Parser<'a> {
    name: &'a str,
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn error(&self, span: Range<usize>, message: impl Into<String>) -> Box<SourceError> {
        SourceError::new(self.name, self.text, span, message)
    }

    fn skip_space(&mut self) {
        while let Some(c) = self.text[self.at..].chars().next() {
            if c == '#' {
                self.at += self.text[self.at..].find('\n').unwrap_or(self.text.len() - self.at);
            } else if c.is_whitespace() {
                self.at += c.len_utf8();
            } else {
                break;
            }
        }
    }

    fn peek(&mut self) -> Option<char> {
        self.skip_space();
        self.text[self.at..].chars().next()
    }

    fn eat(&mut self, expected: char) -> bool {
        let found = self.peek() == Some(expected);
        if found {
            self.at += expected.len_utf8();
        }
        found
    }

    /// Fields up to `close`, or to the end of the file when there is none.
    fn message(&mut self, close: Option<char>, depth: usize) -> Result<Message, Box<SourceError>> {
        let opened = self.at.saturating_sub(1);
        if depth > DEPTH_MAX {
            return Err(self.error(opened..self.at, format!("nested more than {DEPTH_MAX} deep")));
        }
        let mut message = Message::default();
        loop {
            match (self.peek(), close) {
                (None, None) => return Ok(message),
                (None, Some(close)) => {
                    return Err(self.error(opened..opened + 1, format!("this is never closed by `{close}`")));
                }
                (Some(c), Some(close)) if c == close => {
                    self.at += c.len_utf8();
                    return Ok(message);
                }
                _ => message.fields.push(self.field(depth)?),
            }
            while self.eat(',') || self.eat(';') {}
        }
    }

    fn field(&mut self, depth: usize) -> Result<Field, Box<SourceError>> {
        self.skip_space();
        let start = self.at;
        let name = self.word();
        if name.is_empty() {
            return Err(self.error(start..start + 1, "expected the name of a field"));
        }
        let span = start..self.at;
        let colon = self.eat(':');
        let mut values = Vec::new();
        if self.eat('[') {
            while !self.eat(']') {
                values.push(self.value(depth)?);
                if !self.eat(',') && self.peek() != Some(']') {
                    return Err(self.error(self.at..self.at + 1, "expected `,` or `]` in a list"));
                }
            }
        } else if colon || matches!(self.peek(), Some('{' | '<')) {
            values.push(self.value(depth)?);
        } else {
            return Err(self.error(span, format!("expected `:` or `{{` after `{name}`")));
        }
        Ok(Field { name, span, values })
    }

    fn value(&mut self, depth: usize) -> Result<Value, Box<SourceError>> {
        if self.eat('{') {
            return self.message(Some('}'), depth + 1).map(Value::Message);
        }
        if self.eat('<') {
            return self.message(Some('>'), depth + 1).map(Value::Message);
        }
        match self.peek() {
            Some(quote @ ('"' | '\'')) => self.quoted(quote).map(Value::Scalar),
            _ => {
                let start = self.at;
                let word = self.word();
                if word.is_empty() {
                    return Err(self.error(start..start + 1, "expected a value"));
                }
                Ok(Value::Scalar(word))
            }
        }
    }

    fn word(&mut self) -> String {
        let rest = &self.text[self.at..];
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '+' | '.' | '/');
        let end = rest.find(|c: char| !plain(c)).unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_owned()
    }

    fn quoted(&mut self, quote: char) -> Result<String, Box<SourceError>> {
        let start = self.at;
        let mut out = String::new();
        let mut chars = self.text[start + 1..].char_indices();
        while let Some((offset, c)) = chars.next() {
            match c {
                '\\' => out.extend(chars.next().map(|(_, escaped)| escaped)),
                '\n' => break,
                c if c == quote => {
                    self.at = start + 1 + offset + c.len_utf8();
                    return Ok(out);
                }
                c => out.push(c),
            }
        }
        Err(self.error(start..start + 1, "this string does not end on its line"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_comments_and_both_brackets_are_read() {
        let message = parse("f", "# c\na { b: [1, 2], c: \"x\\\"y\" } a <b: -3>").unwrap();
        let inner: Vec<&Message> = message.messages("a").map(|(_, m)| m).collect();
        assert_eq!(inner[0].scalars("b").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(inner[0].scalar("c"), Some("x\"y"));
        assert_eq!(inner[1].scalar("b"), Some("-3"));
    }

    #[test]
    fn what_is_wrong_is_pointed_at() {
        for (text, line, column) in
            [("a {\n b: 1", 1, 3), ("\na: \"x\n", 2, 4), ("a: [1 2]", 1, 7), ("a b", 1, 1)]
        {
            let error = parse("f", text).unwrap_err();
            assert_eq!((error.line, error.column), (line, column), "{text:?}: {error}");
        }
        assert!(parse("f", &"a{".repeat(100_000)).unwrap_err().message.contains("deep"));
    }
}
