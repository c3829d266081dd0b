//! Text → tokens of CEL. Literals are decoded here, once.

use super::refused::Refused;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'s> {
    Name(&'s str),
    /// Between backticks: a field whose name is no name.
    Field(&'s str),
    /// Without its sign, which is an operator.
    Int(u64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Symbol(&'static str),
    End,
}

/// Longer ones first.
const SYMBOLS: &[&str] = &[
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ",", ".", "(", ")",
    "[", "]", "{", "}",
];

/// All tokens with their places, the last of them [`Token::End`].
pub(super) fn tokens(source: &str) -> Result<Vec<(Token<'_>, usize)>, Refused> {
    let mut lexer = Lexer { source, at: 0 };
    let mut all = Vec::new();
    loop {
        lexer.skip();
        let at = lexer.at;
        let token = lexer.next()?;
        let is_end = token == Token::End;
        all.push((token, at));
        if is_end {
            return Ok(all);
        }
    }
}

/// Where the brace is that closes one which opened before `source`. What follows it need not be CEL.
pub(super) fn closing_brace(source: &str) -> Result<usize, Refused> {
    let mut lexer = Lexer { source, at: 0 };
    let mut open = 0_usize;
    loop {
        lexer.skip();
        let at = lexer.at;
        match lexer.next()? {
            Token::Symbol("{") => open += 1,
            Token::Symbol("}") if open == 0 => return Ok(at),
            Token::Symbol("}") => open -= 1,
            Token::End => return Err(Refused::at(0, "the ${ before this is not closed by a }")),
            _ => {}
        }
    }
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']).len();
            self.at += blank;
            if !self.rest().starts_with("//") {
                return;
            }
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    fn next(&mut self) -> Result<Token<'s>, Refused> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        if let Some(literal) = self.quoted()? {
            return Ok(literal);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            self.at += end;
            return Ok(Token::Name(&rest[..end]));
        }
        if first == '`' {
            let end = rest[1..].find(['`', '\n', '\r']).filter(|end| rest[1 + end..].starts_with('`'));
            let end =
                end.ok_or_else(|| Refused::at(self.at, "the backtick that opens here is not closed"))?;
            self.at += end + 2;
            return Ok(Token::Field(&rest[1..=end]));
        }
        let second_is_digit = rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        if first.is_ascii_digit() || (first == '.' && second_is_digit) {
            return self.number();
        }
        let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) else {
            let hint = if first == '=' { "; to compare, write ==" } else { "" };
            return Err(Refused::at(self.at, format!("found {first:?}, which is no part of CEL{hint}")));
        };
        self.at += symbol.len();
        Ok(Token::Symbol(symbol))
    }

    fn number(&mut self) -> Result<Token<'s>, Refused> {
        let (rest, start) = (self.rest(), self.at);
        let bytes = rest.as_bytes();
        let run =
            |from: usize, is: fn(&u8) -> bool| from + bytes[from..].iter().take_while(|b| is(b)).count();
        if rest.starts_with("0x") || rest.starts_with("0X") {
            let end = run(2, u8::is_ascii_hexdigit);
            let value = u64::from_str_radix(&rest[2..end], 16);
            return self.integer(value.ok(), end, start);
        }
        let mut end = run(0, u8::is_ascii_digit);
        let mut is_double = false;
        if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
            end = run(end + 1, u8::is_ascii_digit);
            is_double = true;
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let digits = run((end + 1 + sign).min(bytes.len()), u8::is_ascii_digit);
            if digits > end + 1 + sign {
                end = digits;
                is_double = true;
            }
        }
        if !is_double {
            return self.integer(rest[..end].parse().ok(), end, start);
        }
        self.at += end;
        self.no_word_follows(start)?;
        rest[..end].parse().map(Token::Double).map_err(|_| too_large(start))
    }

    fn integer(&mut self, value: Option<u64>, end: usize, start: usize) -> Result<Token<'s>, Refused> {
        self.at += end;
        let value = value.ok_or_else(|| too_large(start))?;
        let is_unsigned = self.rest().starts_with(['u', 'U']);
        self.at += usize::from(is_unsigned);
        self.no_word_follows(start)?;
        Ok(if is_unsigned { Token::Uint(value) } else { Token::Int(value) })
    }

    fn no_word_follows(&self, start: usize) -> Result<(), Refused> {
        if self.rest().starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
            return Err(Refused::at(start, "this is neither a number nor a name"));
        }
        Ok(())
    }

    /// A literal of text or bytes, where one begins here.
    fn quoted(&mut self) -> Result<Option<Token<'s>>, Refused> {
        let start = self.at;
        let prefix = self.rest().bytes().take_while(|byte| matches!(byte, b'r' | b'R' | b'b' | b'B')).count();
        let (marks, rest) = self.rest().split_at(prefix.min(2));
        let marks = marks.to_ascii_lowercase();
        let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| rest.starts_with(*quote));
        let (Some(quote), "" | "r" | "b" | "rb" | "br") = (quote, &*marks) else { return Ok(None) };
        self.at += marks.len() + quote.len();
        let (is_raw, is_bytes) = (marks.contains('r'), marks.contains('b'));
        let mut text = Vec::new();
        loop {
            if self.rest().starts_with(quote) {
                self.at += quote.len();
                break;
            }
            let Some(next) =
                self.rest().chars().next().filter(|c| quote.len() == 3 || !matches!(c, '\n' | '\r'))
            else {
                return Err(Refused::at(start, "the quotes that open here are not closed"));
            };
            if next == '\\' && !is_raw {
                self.escape(is_bytes, &mut text)?;
                continue;
            }
            text.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
            self.at += next.len_utf8();
        }
        if is_bytes {
            return Ok(Some(Token::Bytes(text)));
        }
        let text = String::from_utf8(text).expect("characters were put into it, each whole");
        Ok(Some(Token::Text(text)))
    }

    fn escape(&mut self, is_bytes: bool, text: &mut Vec<u8>) -> Result<(), Refused> {
        let start = self.at;
        let wrong = || Refused::at(start, "this is no escape of CEL; a backslash is written \\\\");
        let rest = &self.rest()[1..];
        let mark = rest.chars().next().ok_or_else(wrong)?;
        let simple = match mark {
            'a' => Some(7),
            'b' => Some(8),
            'f' => Some(12),
            'n' => Some(10),
            'r' => Some(13),
            't' => Some(9),
            'v' => Some(11),
            '\\' | '?' | '"' | '\'' | '`' => Some(mark as u8),
            _ => None,
        };
        if let Some(byte) = simple {
            text.push(byte);
            self.at += 2;
            return Ok(());
        }
        let (skip, digits, radix) = match mark {
            'x' | 'X' => (1, 2, 16),
            'u' if !is_bytes => (1, 4, 16),
            'U' if !is_bytes => (1, 8, 16),
            '0'..='3' => (0, 3, 8),
            _ => return Err(wrong()),
        };
        let digits = rest.get(skip..skip + digits).filter(|text| text.chars().all(|c| c.is_digit(radix)));
        let digits = digits.ok_or_else(wrong)?;
        let value = u32::from_str_radix(digits, radix).map_err(|_| wrong())?;
        if is_bytes {
            text.push(u8::try_from(value).map_err(|_| wrong())?);
        } else {
            let character = char::from_u32(value)
                .ok_or_else(|| Refused::at(start, "this escape stands for no character of Unicode"))?;
            text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
        self.at += 1 + skip + digits.len();
        Ok(())
    }
}

fn too_large(at: usize) -> Refused {
    Refused::at(at, "this number has no value of 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(source: &str) -> Result<Token<'_>, String> {
        let mut all = tokens(source).map_err(|refused| refused.to_string())?;
        assert_eq!(all.len(), 2, "{source}: {all:?}");
        Ok(all.swap_remove(0).0)
    }

    #[test]
    fn literals_are_decoded() {
        let text = |text: &str| Ok(Token::Text(text.into()));
        for (source, token) in [
            ("0x1F", Ok(Token::Int(31))),
            ("18446744073709551615u", Ok(Token::Uint(u64::MAX))),
            ("1.5e-3", Ok(Token::Double(0.0015))),
            (".5", Ok(Token::Double(0.5))),
            (r#""a\"b""#, text("a\"b")),
            (r"'\x41\101\u0041\U00000041\n'", text("AAAA\n")),
            (r"r'\n'", text("\\n")),
            ("'''a'b\n'''", text("a'b\n")),
            ("\"\"\"\"\"\"", text("")),
            (r"b'\xff\377é'", Ok(Token::Bytes(vec![0xff, 0xff, 0xc3, 0xa9]))),
            (r"rb'\x'", Ok(Token::Bytes(b"\\x".to_vec()))),
            ("b // not a literal", Ok(Token::Name("b"))),
        ] {
            assert_eq!(one(source), token, "{source}");
        }
    }

    #[test]
    fn what_is_no_token_is_told_with_its_place() {
        for (source, message) in [
            ("'abc", "the quotes that open here are not closed (line 1, column 1)"),
            ("'a\nb'", "the quotes that open here are not closed (line 1, column 1)"),
            (r"'\d'", r"this is no escape of CEL; a backslash is written \\ (line 1, column 2)"),
            (r"'\ud800'", "this escape stands for no character of Unicode (line 1, column 2)"),
            ("1\n= 2", "found '=', which is no part of CEL; to compare, write == (line 2, column 1)"),
            ("99999999999999999999", "this number has no value of 64 bits (line 1, column 1)"),
            ("12abc", "this is neither a number nor a name (line 1, column 1)"),
            ("0x", "this number has no value of 64 bits (line 1, column 1)"),
        ] {
            let refused = tokens(source).expect_err(source).seen_in(source);
            assert_eq!(refused.to_string(), message, "{source}");
        }
    }
}
