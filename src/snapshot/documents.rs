//! A text of several YAML documents, split without parsing them: one broken document costs only itself, and one that did
//! not change need not be parsed again.

/// One document, and the line and the character of it at which its text begins, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    pub text: &'a str,
    pub line: u32,
    /// Not 1 where it begins behind its separator.
    pub column: u32,
}

const SEPARATOR: &str = "---";

/// The documents of a text, in order; those that hold nothing but blanks and comments are left out. A text of JSON is one
/// document, or several between `---` lines like YAML.
pub fn documents(text: &str) -> impl Iterator<Item = Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Documents { rest: text, line: 1, column: 1 }.filter(|document| !is_blank(document.text))
}

struct Documents<'a> {
    rest: &'a str,
    line: u32,
    column: u32,
}

impl<'a> Iterator for Documents<'a> {
    type Item = Document<'a>;

    fn next(&mut self) -> Option<Document<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let (whole, first) = (self.rest, (self.line, self.column));
        let mut end = 0;
        for line in whole.split_inclusive('\n') {
            self.line += 1;
            if let Some(length) = separator(line) {
                self.rest = &whole[end + length..];
                (self.line, self.column) = match length < line.len() {
                    true => (self.line - 1, 1 + SEPARATOR.len() as u32),
                    false => (self.line, 1),
                };
                return Some(trimmed(&whole[..end], first));
            }
            end += line.len();
        }
        self.rest = "";
        Some(trimmed(whole, first))
    }
}

/// Without the blank lines and comments in front, so that `line` is where the document is seen to begin.
fn trimmed(text: &str, (mut line, mut column): (u32, u32)) -> Document<'_> {
    let mut start = 0;
    for part in text.split_inclusive('\n') {
        let content = part.trim();
        // A directive says only which YAML it is.
        if !content.is_empty() && !part.starts_with('%') && !content.starts_with('#') {
            break;
        }
        start += part.len();
        (line, column) = (line + 1, 1);
    }
    Document { text: &text[start..], line, column }
}

/// How much of a line ends the document: all of it after `---` or `...`, unless the next one begins on it.
fn separator(line: &str) -> Option<usize> {
    let text = line.trim_end();
    let rest = text.strip_prefix(SEPARATOR).or_else(|| text.strip_prefix("..."))?;
    if rest.is_empty() || (rest.starts_with([' ', '\t']) && rest.trim_start().starts_with('#')) {
        return Some(line.len());
    }
    (text.starts_with(SEPARATOR) && rest.starts_with([' ', '\t'])).then_some(SEPARATOR.len())
}

fn is_blank(text: &str) -> bool {
    text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<(u32, &str)> {
        documents(text).map(|document| (document.line, document.text)).collect()
    }

    #[test]
    fn documents_know_their_first_line() {
        assert_eq!(
            split("a: 1\n---\n\n# about b\nb: 2\n--- # end\n# nothing\n---\nc: 3"),
            [(1, "a: 1\n"), (5, "b: 2\n"), (9, "c: 3")]
        );
    }

    #[test]
    fn a_document_may_begin_on_its_separator() {
        assert_eq!(
            split("\u{feff}%YAML 1.2\n---\na: 1\n--- {b: 2}\n...\n---\r\nc: 3\n"),
            [(3, "a: 1\n"), (4, " {b: 2}\n"), (7, "c: 3\n")]
        );
        let columns =
            documents("a: 1\n--- {b: 2}\n--- {c: 3}\n--- # d\nd: 4\n").map(|document| document.column);
        assert_eq!(columns.collect::<Vec<_>>(), [1, 4, 4, 1]);
    }

    #[test]
    fn dashes_inside_of_a_value_do_not_split() {
        let text = "a: |\n  ---\n  x\nb: ----\nc: '---x'\n";
        assert_eq!(split(text), [(1, text)]);
    }

    #[test]
    fn nothing_gives_nothing() {
        assert!(split("").is_empty() && split("\n# only\n---\n---\n").is_empty());
    }
}
