//! HuJSON: JSON with comments and trailing commas. Every value keeps its place in the text.
//!
//! Total: any input yields a value or an error, in time and stack that are bounded. Duplicate keys are
//! errors, because half of the readers would take the first value and half the last.

use crate::error::{Lines, PolicyError, Span};

/// Deepest nesting of arrays and objects.
pub const MAX_DEPTH: usize = 64;

/// Longest text in bytes.
pub const MAX_BYTES: usize = 64 << 20;

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it stands.
    pub span: Span,
}

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number as it is written.
    Number(String),
    /// A string, unescaped.
    String(String),
    /// An array.
    Array(Vec<Node>),
    /// An object, members in the order of the text.
    Object(Vec<Member>),
}

impl Value {
    /// What to call it in a message.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }
}

/// A member of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The name, unescaped.
    pub key: String,
    /// Where the name stands.
    pub key_span: Span,
    /// The value.
    pub node: Node,
}

/// Reads one document.
pub fn parse(text: &str) -> Result<Node, PolicyError> {
    if text.len() > MAX_BYTES {
        let message = format!("the policy is longer than {} MiB", MAX_BYTES >> 20);
        return Err(Parser::new("").fail(Span::default(), message, None));
    }
    let mut parser = Parser::new(text);
    if text.starts_with('\u{feff}') {
        parser.at = '\u{feff}'.len_utf8();
    }
    let node = parser.value(0)?;
    parser.skip_blank()?;
    if parser.at < text.len() {
        let span = parser.here();
        let hint = "the document is one object; is a closing brace too early?".to_owned();
        return Err(parser.fail(span, "unexpected text after the end of the document", Some(hint)));
    }
    Ok(node)
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, bytes: text.as_bytes(), at: 0 }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// The character at the current place.
    fn here(&self) -> Span {
        let length = self.text.get(self.at..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
        Span { start: self.at, end: self.at + length }
    }

    fn fail(&self, span: Span, message: impl Into<String>, hint: Option<String>) -> PolicyError {
        let lines = Lines::new(self.text);
        let (line, column) = lines.position(span.start);
        let (path, message) = (String::new(), message.into());
        PolicyError { line, column, path, snippet: lines.snippet(span), message, hint }
    }

    /// White space and comments.
    fn skip_blank(&mut self) -> Result<(), PolicyError> {
        loop {
            match self.peek() {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                Some(b'/') => self.comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn comment(&mut self) -> Result<(), PolicyError> {
        let start = self.at;
        let rest = &self.text[start..];
        if rest.starts_with("//") {
            self.at += rest.find('\n').map_or(rest.len(), |newline| newline + 1);
            return Ok(());
        }
        if let Some(body) = rest.strip_prefix("/*") {
            let Some(length) = body.find("*/") else {
                return Err(self.fail(Span { start, end: start + 2 }, "this comment never ends", None));
            };
            self.at += length + 4;
            return Ok(());
        }
        Err(self.fail(self.here(), "expected a comment after \"/\"", None))
    }

    fn value(&mut self, depth: usize) -> Result<Node, PolicyError> {
        self.skip_blank()?;
        let start = self.at;
        let value = match self.peek() {
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.array(depth)?,
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b'a'..=b'z' | b'A'..=b'Z') => self.word()?,
            Some(b'\'') => {
                let hint = "strings are written in double quotes".to_owned();
                return Err(self.fail(self.here(), "unexpected quote", Some(hint)));
            }
            Some(_) => return Err(self.fail(self.here(), "expected a value", None)),
            None => return Err(self.fail(self.here(), "the text ends where a value should be", None)),
        };
        Ok(Node { value, span: Span { start, end: self.at } })
    }

    fn enter(&mut self, depth: usize) -> Result<(), PolicyError> {
        if depth >= MAX_DEPTH {
            return Err(self.fail(self.here(), format!("nested deeper than {MAX_DEPTH} levels"), None));
        }
        self.at += 1;
        Ok(())
    }

    /// After a member or element: a comma, or the closing bracket (returns true).
    fn separator(&mut self, close: u8, opened: usize) -> Result<bool, PolicyError> {
        self.skip_blank()?;
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(false)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(true)
            }
            Some(_) => {
                let message = format!("expected \",\" or \"{}\"", char::from(close));
                Err(self.fail(self.here(), message, Some("is a comma missing before this?".to_owned())))
            }
            None => {
                let (line, _) = Lines::new(self.text).position(opened);
                let message =
                    format!("the text ends before the \"{}\" that closes line {line}", char::from(close));
                Err(self.fail(self.here(), message, None))
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, PolicyError> {
        let opened = self.at;
        self.enter(depth)?;
        let mut items = Vec::new();
        loop {
            self.skip_blank()?;
            if self.peek() == Some(b']') {
                self.at += 1;
                return Ok(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            if self.separator(b']', opened)? {
                return Ok(Value::Array(items));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, PolicyError> {
        let opened = self.at;
        self.enter(depth)?;
        let mut members: Vec<Member> = Vec::new();
        let mut seen = std::collections::HashMap::new();
        loop {
            self.skip_blank()?;
            match self.peek() {
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Value::Object(members));
                }
                Some(b'"') => {}
                _ => return Err(self.fail(self.here(), "expected a name in double quotes or \"}\"", None)),
            }
            let start = self.at;
            let key = self.string()?;
            let key_span = Span { start, end: self.at };
            if let Some(first) = seen.insert(key.clone(), start) {
                let (line, _) = Lines::new(self.text).position(first);
                let hint = format!("the first one is on line {line}; merge the two");
                return Err(self.fail(key_span, format!("duplicate key \"{key}\""), Some(hint)));
            }
            self.skip_blank()?;
            if self.peek() != Some(b':') {
                return Err(self.fail(self.here(), format!("expected \":\" after \"{key}\""), None));
            }
            self.at += 1;
            let node = self.value(depth + 1)?;
            members.push(Member { key, key_span, node });
            if self.separator(b'}', opened)? {
                return Ok(Value::Object(members));
            }
        }
    }

    fn word(&mut self) -> Result<Value, PolicyError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_')) {
            self.at += 1;
        }
        match &self.text[start..self.at] {
            "null" => Ok(Value::Null),
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            word => {
                let message = format!("unexpected word \"{word}\"");
                let hint = Some("strings are written in double quotes".to_owned());
                Err(self.fail(Span { start, end: self.at }, message, hint))
            }
        }
    }

    /// RFC 8259 section 6: no leading zeros, no bare signs or points.
    fn number(&mut self) -> Result<Value, PolicyError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')) {
            self.at += 1;
        }
        let text = &self.text[start..self.at];
        if is_number(text) {
            return Ok(Value::Number(text.to_owned()));
        }
        Err(self.fail(Span { start, end: self.at }, format!("\"{text}\" is not a number"), None))
    }

    fn string(&mut self) -> Result<String, PolicyError> {
        let start = self.at;
        self.at += 1;
        let mut result = String::new();
        loop {
            let plain = self.at;
            while let Some(byte) = self.peek()
                && !matches!(byte, b'"' | b'\\' | 0..0x20)
            {
                self.at += 1;
            }
            // Only ASCII bytes end the run, so both ends are character boundaries.
            result.push_str(&self.text[plain..self.at]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(result);
                }
                Some(b'\\') => result.push(self.escape()?),
                Some(_) => {
                    let span = Span { start, end: self.at };
                    let hint = "is the closing quote missing?".to_owned();
                    return Err(self.fail(span, "line break or control character in a string", Some(hint)));
                }
                None => {
                    return Err(self.fail(Span { start, end: self.at }, "this string never ends", None));
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char, PolicyError> {
        let start = self.at;
        self.at += 1;
        let Some(byte) = self.peek() else {
            return Err(self.fail(Span { start, end: self.at }, "this string never ends", None));
        };
        let end = self.here().end;
        self.at += 1;
        match byte {
            b'"' | b'\\' | b'/' => Ok(char::from(byte)),
            b'b' => Ok('\u{8}'),
            b'f' => Ok('\u{c}'),
            b'n' => Ok('\n'),
            b'r' => Ok('\r'),
            b't' => Ok('\t'),
            b'u' => self.unicode_escape(start),
            _ => Err(self.fail(Span { start, end }, "unknown escape in a string", None)),
        }
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = self.bytes.get(self.at..self.at + 4)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let value = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        self.at += 4;
        Some(value)
    }

    fn unicode_escape(&mut self, start: usize) -> Result<char, PolicyError> {
        let mut code = self.hex4();
        if let Some(high @ 0xd800..=0xdbff) = code {
            code = None;
            if self.bytes.get(self.at..self.at + 2) == Some(b"\\u") {
                self.at += 2;
                if let Some(low @ 0xdc00..=0xdfff) = self.hex4() {
                    code = Some(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
                }
            }
        }
        code.and_then(char::from_u32)
            .ok_or_else(|| self.fail(Span { start, end: self.at }, "invalid \\u escape in a string", None))
    }
}

fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let exponent_digits = exponent.map(|exponent| exponent.strip_prefix(['+', '-']).unwrap_or(exponent));
    digits(whole)
        && (whole.len() == 1 || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent_digits.is_none_or(digits)
}
