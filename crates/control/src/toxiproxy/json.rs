//! JSON as Go's `encoding/json` reads and writes it: clients show these texts to people, and tests compare them.
//!
//! Only the first value of a body counts; where it is broken, the message names the byte and what was being read.
//! Sources: the grammar of RFC 8259 and the documented messages of Go's decoder.

/// Values inside values: more than any call has, and little enough for any stack. Go itself gives up at 10,000.
const DEPTH_MAX: usize = 500;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    False,
    True,
    /// As written.
    Number(String),
    Text(String),
    Array(Vec<Value>),
    /// In the order written; a key may come twice.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// Go's word for what it is.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::False | Self::True => "bool",
            Self::Number(_) => "number",
            Self::Text(_) => "string",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
        }
    }
}

/// The first value of a body.
pub(super) fn first_value(body: &[u8]) -> Result<Value, String> {
    let mut reader = Reader { body, at: 0, depth: 0 };
    reader.skip_space();
    if reader.peek().is_none() {
        return Err("EOF".to_owned());
    }
    reader.value()
}

/// Each byte that is no part of a character is one U+FFFD.
fn utf8(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

fn unexpected(byte: u8, what: &str) -> String {
    format!("invalid character {} {what}", quoted_byte(byte))
}

/// A byte as Go quotes the character with its number.
fn quoted_byte(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        0x07 => r"'\a'".to_owned(),
        0x08 => r"'\b'".to_owned(),
        0x09 => r"'\t'".to_owned(),
        0x0a => r"'\n'".to_owned(),
        0x0b => r"'\v'".to_owned(),
        0x0c => r"'\f'".to_owned(),
        0x0d => r"'\r'".to_owned(),
        0x00..=0x1f | 0x7f => format!(r"'\x{byte:02x}'"),
        0x80..=0xa0 | 0xad => format!(r"'\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

struct Reader<'a> {
    body: &'a [u8],
    at: usize,
    depth: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    /// The next byte, or the message for a body that ends here.
    fn take(&mut self) -> Result<u8, String> {
        let byte = self.peek().ok_or_else(|| "unexpected EOF".to_owned())?;
        self.at += 1;
        Ok(byte)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// The next byte that is no space.
    fn take_past_space(&mut self) -> Result<u8, String> {
        self.skip_space();
        self.take()
    }

    fn value(&mut self) -> Result<Value, String> {
        match self.take_past_space()? {
            b'{' => self.deeper(Self::object),
            b'[' => self.deeper(Self::array),
            b'"' => self.text().map(Value::Text),
            b't' => self.word("true").map(|()| Value::True),
            b'f' => self.word("false").map(|()| Value::False),
            b'n' => self.word("null").map(|()| Value::Null),
            byte @ (b'-' | b'0'..=b'9') => self.number(byte).map(Value::Number),
            byte => Err(unexpected(byte, "looking for beginning of value")),
        }
    }

    fn deeper(&mut self, read: fn(&mut Self) -> Result<Value, String>) -> Result<Value, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("exceeded max depth".to_owned());
        }
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn object(&mut self) -> Result<Value, String> {
        let mut members = Vec::new();
        loop {
            match self.take_past_space()? {
                b'"' => {}
                b'}' if members.is_empty() => return Ok(Value::Object(members)),
                byte => return Err(unexpected(byte, "looking for beginning of object key string")),
            }
            let key = self.text()?;
            match self.take_past_space()? {
                b':' => {}
                byte => return Err(unexpected(byte, "after object key")),
            }
            members.push((key, self.value()?));
            match self.take_past_space()? {
                b',' => {}
                b'}' => return Ok(Value::Object(members)),
                byte => return Err(unexpected(byte, "after object key:value pair")),
            }
        }
    }

    fn array(&mut self) -> Result<Value, String> {
        let mut items = Vec::new();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value()?);
            match self.take_past_space()? {
                b',' => {}
                b']' => return Ok(Value::Array(items)),
                byte => return Err(unexpected(byte, "after array element")),
            }
        }
    }

    /// After the opening quote.
    fn text(&mut self) -> Result<String, String> {
        let mut bytes = Vec::new();
        loop {
            match self.take()? {
                b'"' => return Ok(utf8(&bytes)),
                b'\\' => {
                    let escaped = self.escaped()?;
                    bytes.extend_from_slice(escaped.encode_utf8(&mut [0; 4]).as_bytes());
                }
                byte @ 0..=0x1f => return Err(unexpected(byte, "in string literal")),
                byte => bytes.push(byte),
            }
        }
    }

    /// After a backslash.
    fn escaped(&mut self) -> Result<char, String> {
        Ok(match self.take()? {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.code(),
            byte @ (b'"' | b'\\' | b'/') => char::from(byte),
            byte => return Err(unexpected(byte, "in string escape code")),
        })
    }

    /// After `\u`. Half of a pair alone becomes U+FFFD.
    fn code(&mut self) -> Result<char, String> {
        let first = self.four_digits()?;
        if let 0xd800..=0xdbff = first
            && self.body.get(self.at..self.at + 2) == Some(br"\u")
        {
            let before = self.at;
            self.at += 2;
            let second = self.four_digits()?;
            if let 0xdc00..=0xdfff = second {
                let pair = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(pair).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = before;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn four_digits(&mut self) -> Result<u32, String> {
        (0..4).try_fold(0, |code, _| {
            let byte = self.take()?;
            let digit = char::from(byte).to_digit(16);
            let digit = digit.ok_or_else(|| unexpected(byte, r"in \u hexadecimal character escape"))?;
            Ok(code * 16 + digit)
        })
    }

    /// After its first letter.
    fn word(&mut self, word: &str) -> Result<(), String> {
        for expected in word.bytes().skip(1) {
            let byte = self.take()?;
            if byte != expected {
                let what = format!("in literal {word} (expecting {})", quoted_byte(expected));
                return Err(unexpected(byte, &what));
            }
        }
        Ok(())
    }

    /// After its first byte.
    fn number(&mut self, first: u8) -> Result<String, String> {
        let start = self.at - 1;
        let first = if first == b'-' { self.digit("in numeric literal")? } else { first };
        if first != b'0' {
            self.skip_digits();
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digit("after decimal point in numeric literal")?;
            self.skip_digits();
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digit("in exponent of numeric literal")?;
            self.skip_digits();
        }
        Ok(String::from_utf8_lossy(&self.body[start..self.at]).into_owned())
    }

    fn digit(&mut self, what: &str) -> Result<u8, String> {
        match self.take()? {
            byte @ b'0'..=b'9' => Ok(byte),
            byte => Err(unexpected(byte, what)),
        }
    }

    fn skip_digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }
}

/// A text with its quotes, safe inside HTML as Go writes it.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// A number of 32 bits in its shortest form: `1`, `0.2`, `1e-7`, `1e+21`.
pub(super) fn float(number: f32) -> String {
    let size = number.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = format!("{number:e}");
        return if size < 1.0 { text } else { text.replace('e', "e+") };
    }
    number.to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wrong(body: &str) -> String {
        first_value(body.as_bytes()).expect_err(body)
    }

    #[test]
    fn what_is_broken_is_told_in_gos_words() {
        for (body, told) in [
            ("", "EOF"),
            (" \n", "EOF"),
            ("{", "unexpected EOF"),
            ("{\"a\":1", "unexpected EOF"),
            ("[1,", "unexpected EOF"),
            ("\"a", "unexpected EOF"),
            ("tru", "unexpected EOF"),
            ("-", "unexpected EOF"),
            ("x", "invalid character 'x' looking for beginning of value"),
            ("{a", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("{\"a\"1}", "invalid character '1' after object key"),
            ("{\"a\":1 2}", "invalid character '2' after object key:value pair"),
            ("{\"a\":01}", "invalid character '1' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("trux", "invalid character 'x' in literal true (expecting 'e')"),
            ("nill", "invalid character 'i' in literal null (expecting 'u')"),
            ("fa'", "invalid character '\\'' in literal false (expecting 'l')"),
            ("\"\n\"", "invalid character '\\n' in string literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("\"\\u12g4\"", "invalid character 'g' in \\u hexadecimal character escape"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1e+x", "invalid character 'x' in exponent of numeric literal"),
            ("\u{e4}", "invalid character 'Ã' looking for beginning of value"),
            ("\u{1}", "invalid character '\\x01' looking for beginning of value"),
            ("\u{7}", "invalid character '\\a' looking for beginning of value"),
            ("\u{8}", "invalid character '\\b' looking for beginning of value"),
            ("\u{b}", "invalid character '\\v' looking for beginning of value"),
            ("\u{c}", "invalid character '\\f' looking for beginning of value"),
            ("{\t\r\\", "invalid character '\\\\' looking for beginning of object key string"),
            ("\"\t", "invalid character '\\t' in string literal"),
            ("\"\r", "invalid character '\\r' in string literal"),
            (&"[".repeat(501), "exceeded max depth"),
        ] {
            assert_eq!(wrong(body), told, "{body:?}");
        }
        assert_eq!(first_value(b"\x80").unwrap_err(), "invalid character '\\u0080' looking for beginning of value");
    }

    #[test]
    fn only_the_first_value_counts() {
        let object = Value::Object(vec![("a".into(), Value::Array(vec![]))]);
        assert_eq!(first_value(b" {\"a\":[ ]}garbage"), Ok(object));
        assert_eq!(first_value(b"{}"), Ok(Value::Object(vec![])));
        assert_eq!(first_value(b"12 x"), Ok(Value::Number("12".into())));
        assert_eq!(first_value(b"12x"), Ok(Value::Number("12".into())));
        assert_eq!(first_value(b"null}"), Ok(Value::Null));
        assert_eq!(first_value(b"\"a\"\""), Ok(Value::Text("a".into())));
        assert_eq!(first_value(b"-0.5e-3"), Ok(Value::Number("-0.5e-3".into())));
        assert_eq!(first_value(b"false"), Ok(Value::False));
        assert_eq!(first_value(b"[true,null]x"), Ok(Value::Array(vec![Value::True, Value::Null])));
    }

    #[test]
    fn texts_are_read_with_every_escape() {
        let text = |body: &[u8]| match first_value(body) {
            Ok(Value::Text(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(text(br#""a\"\\\/\b\f\n\r\t""#), "a\"\\/\u{8}\u{c}\n\r\t");
        assert_eq!(text("\"\\u00e4\\ud83d\\ude00ä\"".as_bytes()), "ä😀ä");
        assert_eq!(text(br#""\ud83dx\ud83d\u0041\udc00""#), "\u{fffd}x\u{fffd}A\u{fffd}");
        assert_eq!(text(b"\"\xff\""), "\u{fffd}");
        // What is cut short is as many as it has bytes, and so is what no character begins with.
        assert_eq!(
            text(b"\"a\xf0\x9f\x98b\xe2\x82\\u00e4\xed\xa0\x80\""),
            "a\u{fffd}\u{fffd}\u{fffd}b\u{fffd}\u{fffd}\u{e4}\u{fffd}\u{fffd}\u{fffd}"
        );
    }

    #[test]
    fn what_is_written_is_what_go_writes() {
        assert_eq!(quote("a\"\\\n\r\t<>&\u{2028}\u{1}ä"), r#""a\"\\\n\r\t\u003c\u003e\u0026\u2028\u0001ä""#);
        for (number, text) in [
            (1.0, "1"),
            (0.2, "0.2"),
            (0.123_456_79, "0.12345679"),
            (-1.0, "-1"),
            (5.0, "5"),
            (0.0, "0"),
            (1e-7, "1e-7"),
            (1e21, "1e+21"),
            (1e20, "100000000000000000000"),
        ] {
            assert_eq!(float(number), text);
        }
        assert_eq!(Value::Null.kind(), "null");
    }

    /// The same value, as another reader of JSON sees it.
    fn same(ours: &Value, theirs: &serde_json::Value) -> bool {
        use serde_json::Value as Theirs;
        match (ours, theirs) {
            (Value::Null, Theirs::Null) | (Value::True, Theirs::Bool(true)) | (Value::False, Theirs::Bool(false)) => {
                true
            }
            (Value::Number(ours), Theirs::Number(theirs)) => ours.parse::<f64>().ok() == theirs.as_f64(),
            (Value::Text(ours), Theirs::String(theirs)) => ours == theirs,
            (Value::Array(ours), Theirs::Array(theirs)) => {
                ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| same(ours, theirs))
            }
            (Value::Object(ours), Theirs::Object(theirs)) => theirs.iter().all(|(key, theirs)| {
                let last = ours.iter().rev().find(|(ours, _)| ours == key);
                last.is_some_and(|(_, ours)| same(ours, theirs))
            }),
            _ => false,
        }
    }

    proptest! {
        /// What another reader takes, we take, as the same; what it refuses, we take only for what follows the value.
        #[test]
        fn it_reads_what_others_read(body in "[\\[\\]{}\",:\\\\ntrue0-9.eE+ -]{0,24}|[{]\"[a-c]\":[\\[\"0-9nul ,\\]]{0,9}[}]") {
            let theirs = serde_json::from_str::<serde_json::Value>(&body);
            let ours = first_value(body.as_bytes());
            match (&ours, &theirs) {
                (Ok(ours), Ok(theirs)) => prop_assert!(same(ours, theirs), "{ours:?} {theirs:?}"),
                // A number too large for it is none to it, nor is `00`, which is a 0 and what follows it.
                (Ok(_), Err(error)) => {
                    let told = error.to_string();
                    let known = ["trailing characters", "out of range", "invalid number"];
                    prop_assert!(known.iter().any(|known| told.contains(known)), "{body:?}: {told}");
                }
                (Err(told), Ok(theirs)) => prop_assert!(false, "{told}: {theirs:?}"),
                (Err(_), Err(_)) => {}
            }
        }

        #[test]
        fn no_bytes_stop_it(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = first_value(&body);
        }

        #[test]
        fn what_is_quoted_is_read_back(text in any::<String>()) {
            prop_assert_eq!(first_value(quote(&text).as_bytes()), Ok(Value::Text(text)));
        }
    }
}
