//! Just enough of Rust's lexical structure to tell code from comments and literals.

/// `text` with comments and the contents of string, byte string and character literals replaced by spaces; lines stay where they are.
pub(super) fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => block_comment_end(bytes, at),
            b'"' => string_end(bytes, at + 1),
            b'r' if !in_word(bytes, at) => raw_string_end(bytes, at).unwrap_or(at),
            b'\'' => char_end(bytes, at).unwrap_or(at),
            _ => at,
        };
        blank(&mut out, at, end);
        at = end.max(at + 1);
    }
    // Only whole literals and comments were blanked, bytewise: what is left of the text is still UTF-8.
    String::from_utf8_lossy(&out).into_owned()
}

/// True when `word` stands in `line` as a whole word.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word))
}

fn blank(out: &mut [u8], from: usize, to: usize) {
    for byte in &mut out[from..to] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

/// True when the byte before `at` belongs to an identifier (`br"…"` is the exception: the `b` is part of the literal).
fn in_word(bytes: &[u8], at: usize) -> bool {
    let before = |n: usize| at.checked_sub(n).map(|index| bytes[index]);
    let word = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let prefix = matches!(before(1), Some(b'b' | b'c')) && !word(before(2));
    word(before(1)) && !prefix
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| at + n)
}

fn block_comment_end(bytes: &[u8], at: usize) -> usize {
    let mut depth = 0_usize;
    let mut index = at;
    while index + 1 < bytes.len() {
        match &bytes[index..index + 2] {
            b"/*" => (depth, index) = (depth + 1, index + 2),
            b"*/" => {
                (depth, index) = (depth - 1, index + 2);
                if depth == 0 {
                    return index;
                }
            }
            _ => index += 1,
        }
    }
    bytes.len()
}

/// From just behind the opening quote to just behind the closing one.
fn string_end(bytes: &[u8], from: usize) -> usize {
    let mut index = from;
    while index < bytes.len() {
        match bytes[index] {
            b'\\' => index += 2,
            b'"' => return index + 1,
            _ => index += 1,
        }
    }
    bytes.len()
}

fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at + 1..].iter().take_while(|&&b| b == b'#').count();
    let open = at + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let closing: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = &bytes[open + 1..];
    let length = body.windows(closing.len()).position(|window| window == closing);
    Some(length.map_or(bytes.len(), |n| open + 1 + n + closing.len()))
}

/// A character literal; a lifetime (`'a`) is not one.
fn char_end(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at + 1) == Some(&b'\\') {
        let close = bytes.get(at + 3..)?.iter().position(|&b| b == b'\'')?;
        return Some(at + 3 + close + 1);
    }
    // One character of up to four bytes, then the closing quote.
    let width = match bytes.get(at + 1)? {
        0..=0x7f => 1,
        0x80..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xff => 4,
    };
    (bytes.get(at + 1 + width) == Some(&b'\'')).then_some(at + width + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_vanish_and_code_stays() {
        let text =
            "let a = \"unsafe // x\"; // unsafe\nlet b = 'u'; /* unsafe /* nested */ still */ unsafe {}\n";
        let code = code_only(text);
        assert_eq!(code.lines().count(), 2);
        assert_eq!(code.len(), text.len());
        let lines: Vec<&str> = code.lines().collect();
        assert!(!has_word(lines[0], "unsafe") && lines[0].starts_with("let a = "));
        assert!(lines[1].ends_with("unsafe {}"));
        assert_eq!(lines[1].matches("unsafe").count(), 1);
    }

    #[test]
    fn raw_strings_lifetimes_and_escapes() {
        let code = code_only(
            "fn f<'a>(x: &'a str) { r#\"unsafe \" \"#; br\"unsafe\"; '\\''; \"\\\"unsafe\"; attr(); }",
        );
        assert!(!has_word(&code, "unsafe"));
        assert!(code.contains("fn f<'a>(x: &'a str) {") && code.ends_with("attr(); }"));
        assert!(code_only("let r#unsafe_ish = for_r\"x\";").contains("r#unsafe_ish"));
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("unsafe fn", "unsafe") && has_word("(unsafe)", "unsafe"));
        assert!(!has_word("forbid(unsafe_code)", "unsafe") && !has_word("not_unsafe", "unsafe"));
    }
}
