//! Options for what to do when a controller is lost, with nvme-cli's names.

use std::time::Duration;

use clap::Args;
use nvmf_core::{CommandError, ControllerOptions, IoQpair};

use crate::size::{parse_seconds, parse_seconds_or_none};

const RECOVERY: &str = "When the controller is lost";

/// What to do when the controller is lost.
#[derive(Args, Clone, Debug)]
pub(crate) struct RecoveryArgs {
    /// Connect again when the controller is lost: at once, then with this pause between attempts
    #[arg(short = 'c', long, value_name = "SECONDS", value_parser = parse_seconds, help_heading = RECOVERY)]
    reconnect_delay: Option<Duration>,

    /// Give the controller up when it is lost for so long; -1 is never
    #[arg(short = 'l', long, value_name = "SECONDS", value_parser = parse_limit, default_value = "600")]
    #[arg(allow_hyphen_values = true, requires = "reconnect_delay", help_heading = RECOVERY)]
    ctrl_loss_tmo: Limit,

    /// Fail I/O when the controller is lost for so long; -1 is only when it is given up
    #[arg(long, alias = "fast_io_fail_tmo", value_name = "SECONDS", value_parser = parse_limit)]
    #[arg(default_value = "-1", allow_hyphen_values = true, requires = "reconnect_delay", help_heading = RECOVERY)]
    fast_io_fail_tmo: Limit,

    /// Keep alive timeout: how soon a silent loss is noticed; 0 is off
    #[arg(short = 'k', long, value_name = "SECONDS", value_parser = parse_seconds_or_none)]
    #[arg(default_value = "10", help_heading = RECOVERY)]
    keep_alive_tmo: Duration,
}

/// A time, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limit(pub(crate) Option<Duration>);

pub(crate) fn parse_limit(text: &str) -> Result<Limit, String> {
    match text {
        "-1" => Ok(Limit(None)),
        _ => parse_seconds_or_none(text).map(|time| Limit(Some(time))),
    }
}

impl RecoveryArgs {
    pub(crate) fn apply(&self, options: &mut ControllerOptions) {
        options.reconnect_delay = self.reconnect_delay;
        options.ctrl_loss_timeout = self.ctrl_loss_tmo.0;
        options.fast_io_fail_timeout = self.fast_io_fail_tmo.0;
        options.keep_alive_timeout = self.keep_alive_tmo;
    }
}

/// Whether an I/O failed because the connection was lost, and the queue pair will have another one.
pub(crate) fn comes_back(qpair: &IoQpair, error: CommandError) -> bool {
    !matches!(error, CommandError::Status(_)) && (qpair.is_reconnecting() || qpair.is_connected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        assert_eq!(parse_limit("-1"), Ok(Limit(None)));
        assert_eq!(parse_limit("0"), Ok(Limit(Some(Duration::ZERO))));
        assert_eq!(parse_limit("1.5"), Ok(Limit(Some(Duration::from_millis(1500)))));
        assert!(parse_limit("-2").is_err() && parse_limit("x").is_err());
    }
}
