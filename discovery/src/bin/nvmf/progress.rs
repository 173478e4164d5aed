//! The progress bar: on a terminal, on stderr, and nowhere else.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over a number of bytes; `None` if it is not known how many there will be.
pub(crate) fn bar(label: &'static str, total: Option<u64>, quiet: bool) -> ProgressBar {
    if quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    // Ten times a second is enough for the eye and nothing for the I/O.
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
    let template = match total {
        Some(_) => {
            "{prefix:7} {bar:32} {binary_bytes} / {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left"
        }
        None => "{prefix:7} {spinner} {binary_bytes}  {binary_bytes_per_sec}",
    };
    // The templates are right; a plain bar would do as well.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_prefix(label)
}

/// A line for a rate that changes; `None` where nobody would see it.
pub(crate) fn live(label: &'static str) -> Option<ProgressBar> {
    if !io::stderr().is_terminal() {
        return None;
    }
    let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    let style = ProgressStyle::with_template("{prefix:7} {spinner} {msg}");
    Some(line.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())).with_prefix(label))
}
