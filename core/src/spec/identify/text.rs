//! Text fields of wire structures: fixed size, padded with spaces or NULs, and not to be trusted.
//!
//! A peer chooses these bytes, and programs print them. Control characters could rewrite a terminal, and
//! invisible or direction-changing characters could make one name look like another, so neither passes.

/// What stands for a character that must not be printed.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// The field up to its first NUL, without trailing spaces. The exact bytes, for comparing and for sending
/// back; print [`lossy_text`] instead.
#[must_use]
pub fn trimmed(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    field[..end].trim_ascii_end()
}

/// The field as text that is safe to print: cut at the first NUL, spaces trimmed on both ends, everything that
/// is not UTF-8 or not printable replaced by U+FFFD.
#[must_use]
pub fn lossy_text(field: &[u8]) -> String {
    String::from_utf8_lossy(trimmed(field).trim_ascii_start())
        .chars()
        .map(|c| if is_printable(c) { c } else { REPLACEMENT })
        .collect()
}

/// Copies `text` into a field and fills the rest with `padding` (space for the ASCII strings of Identify
/// Controller, NUL for NQNs). Text that is too long is cut, at a character boundary.
pub fn fill(field: &mut [u8], text: &str, padding: u8) {
    let mut end = text.len().min(field.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text.as_bytes()[..end];
    let (used, rest) = field.split_at_mut(text.len());
    used.copy_from_slice(text);
    rest.fill(padding);
}

const fn is_printable(c: char) -> bool {
    !matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}'     // C0, DEL, C1
        | '\u{ad}' | '\u{61c}' | '\u{180e}'   // soft hyphen, Arabic letter mark, Mongolian vowel separator
        | '\u{200b}'..='\u{200f}'             // zero width, direction marks
        | '\u{2028}'..='\u{202e}'             // line and paragraph separators, direction overrides
        | '\u{2060}'..='\u{206f}'             // invisible operators, direction isolates
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' // byte order mark, annotations
        | '\u{e0000}'..='\u{e007f}'           // tags
    )
}
