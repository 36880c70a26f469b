//! Progress bars on the error stream: shown to people, silent in pipes.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over bytes.
pub(super) fn bytes(total: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(what.to_owned());
    styled(bar, "{msg} {wide_bar} {bytes}/{total_bytes} {eta}")
}

/// A bar over things that are counted.
pub(super) fn count(total: usize, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(total as u64).with_message(what.to_owned());
    styled(bar, "{msg} {wide_bar} {pos}/{len} {eta}")
}

/// A bar that shows how busy something is, in percent, and with how many requests now (its prefix).
pub(super) fn share(what: &str) -> ProgressBar {
    let bar = ProgressBar::new(100).with_message(what.to_owned());
    styled(bar, "{msg:12} {bar:40} {pos:>3} % busy, {prefix} now")
}

/// A spinner with the time that has passed, for work whose end is not known.
pub(super) fn spinner(what: &str) -> ProgressBar {
    let spinner =
        styled(ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}").with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
