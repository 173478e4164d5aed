//! `nvmf completions` and `nvmf man`: what is made from the grammar of the command line.

use std::path::{Path, PathBuf};

use clap::Command;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap_complete::Shell;

use super::print;
use crate::failure::Failure;

/// Print completions for a shell
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf completions bash > ~/.local/share/bash-completion/completions/nvmf
  nvmf completions zsh > ~/.zfunc/_nvmf            with ~/.zfunc in fpath
  nvmf completions fish > ~/.config/fish/completions/nvmf.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_parser = PossibleValuesParser::new(["bash", "zsh", "fish"]).try_map(|name| name.parse::<Shell>()))]
    shell: Shell,
}

/// Write the man pages into a folder
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The folder; it is made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut crate::cli::grammar(), "nvmf", &mut text);
    print(text)
}

pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    std::fs::create_dir_all(&args.dir).map_err(|error| Failure::file("making", &args.dir, &error))?;
    let mut grammar = crate::cli::grammar();
    grammar.build();
    page(&grammar, "nvmf", &args.dir)
}

/// clap_mangen's page with what follows the options under a name that people look for, its lines left as they are.
fn with_examples(page: &str) -> String {
    const AS_RENDERED: &str = "\n.SH EXTRA\nExamples:\n";
    let Some((before, examples)) = page.split_once(AS_RENDERED) else { return page.to_owned() };
    let (examples, after) = examples.split_at(examples.find("\n.SH ").unwrap_or(examples.trim_end().len()));
    format!("{before}\n.SH EXAMPLES\n.nf\n{examples}\n.fi{after}")
}

/// The page of a command, and those of its subcommands: `nvmf.1`, `nvmf-config.1`, `nvmf-config-show.1`.
fn page(command: &Command, name: &str, dir: &Path) -> Result<(), Failure> {
    let subcommands = || command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help");
    let path = dir.join(format!("{name}.1"));
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone().display_name(name.to_owned()))
        .render(&mut text)
        .and_then(|()| std::fs::write(&path, with_examples(&String::from_utf8_lossy(&text))))
        .map_err(|error| Failure::file("writing", &path, &error))?;
    subcommands().try_for_each(|command| page(command, &format!("{name}-{}", command.get_name()), dir))
}

#[cfg(test)]
mod tests {
    use super::with_examples;

    #[test]
    fn examples_keep_their_lines() {
        let page = ".SH OPTIONS\nx\n.SH EXTRA\nExamples:\n  a   b\n\nc\n.SH VERSION\nv1\n";
        let expected = ".SH OPTIONS\nx\n.SH EXAMPLES\n.nf\n  a   b\n\nc\n.fi\n.SH VERSION\nv1\n";
        assert_eq!(with_examples(page), expected);
        let last = ".SH EXTRA\nExamples:\n  a\n";
        assert_eq!(with_examples(&format!("x\n{last}")), "x\n.SH EXAMPLES\n.nf\n  a\n.fi\n");
        assert_eq!(with_examples("x\n"), "x\n");
    }
}
