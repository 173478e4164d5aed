//! What the guest's init says on the serial line, between the scripts' own output.
//!
//! ```text
//! @@vm begin NAME            a script starts
//! @@vm kernel                what follows, up to `end`, is the kernel log since `begin` (only after a failure)
//! @@vm end NAME RC SECONDS   it ended; RC 137 with a deadline message when it was killed
//! @@vm disk CLAIM            a place of a disk holds certain data in the end (`disk.rs`); printed by a script
//! @@vm done                  the plan is through
//! ```

/// A line of the guest's output, understood.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Line<'a> {
    Begin(&'a str),
    Kernel,
    End { name: &'a str, code: i32, seconds: f64 },
    Disk(&'a str),
    Done,
    Text(&'a str),
}

pub(super) fn parse(line: &str) -> Line<'_> {
    let line = line.trim_end_matches('\r');
    let Some(rest) = line.strip_prefix("@@vm ") else { return Line::Text(line) };
    if let Some(claim) = rest.strip_prefix("disk ") {
        return Line::Disk(claim);
    }
    let words: Vec<&str> = rest.split_whitespace().collect();
    match words.as_slice() {
        ["begin", name] => Line::Begin(name),
        ["kernel"] => Line::Kernel,
        ["done"] => Line::Done,
        ["end", name, code, seconds] => match (code.parse(), seconds.parse()) {
            (Ok(code), Ok(seconds)) => Line::End { name, code, seconds },
            _ => Line::Text(line),
        },
        _ => Line::Text(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_and_text() {
        assert_eq!(parse("@@vm begin io"), Line::Begin("io"));
        assert_eq!(parse("@@vm end io 137 3.25\r"), Line::End { name: "io", code: 137, seconds: 3.25 });
        assert_eq!(parse("@@vm end io x 3"), Line::Text("@@vm end io x 3"));
        assert_eq!(parse("hello @@vm done"), Line::Text("hello @@vm done"));
        assert_eq!(parse("@@vm done"), Line::Done);
        assert_eq!(parse("@@vm disk h0 0 1 ab\r"), Line::Disk("h0 0 1 ab"));
    }
}
