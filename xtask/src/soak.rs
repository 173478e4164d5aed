//! `cargo xtask soak`: random I/O under random harm, in a release build.

use anyhow::Result;

use crate::shell;

pub(crate) fn main(args: &[String]) -> Result<()> {
    let mut command =
        shell::cargo(["run", "--release", "--quiet", "--package", "nvmf-tests", "--bin", "soak", "--"])?;
    shell::run(command.args(args))
}
