//! The command line.

use clap::builder::styling::{AnsiColor, Styles};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

#[cfg(feature = "pcie")]
use crate::commands::bind;
use crate::commands::{
    config, connect_all, copy, dim, discover, generate, hostnqn, identify, list, list_subsys, monitor, perf,
    reset, share, verify,
};
#[cfg(feature = "tcp")]
use crate::commands::{demo, target};
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  nvmf demo                               see it work, on this machine alone
  nvmf discover -t tcp -a 192.0.2.1       what is offered there? (port 8009)
  nvmf monitor -t tcp -a 192.0.2.1        and what changes from now on?
  nvmf list -t tcp -a 192.0.2.1 -s 4420   attach all of it and list the namespaces
  TRID=nvme+tcp://192.0.2.1:4420/nqn.2024-01.com.example:disk
  nvmf identify $TRID                     what is that controller?
  nvmf read $TRID --length 1MiB --output head.img
  nvmf perf $TRID -q 1 -t 10              how fast is it?

Controllers are named by a TRID (transport identifier) in either form, or by nvme-cli's options:
  'trtype:tcp traddr:192.0.2.1 trsvcid:4420 subnqn:nqn.2024-01.com.example:disk'
  nvme+tcp://192.0.2.1:4420/nqn.2024-01.com.example:disk
  -t tcp -a 192.0.2.1 -s 4420 -n nqn.2024-01.com.example:disk

Exit codes:
  0  it worked
  1  data did not match, an I/O failed, or a local file could not be used
  2  the command line makes no sense, or not for this namespace
  3  the target could not be reached or attached, or was lost";

/// A user-space NVMe initiator over PCIe, RDMA and TCP: discovers, reads, writes, verifies and measures. Needs no kernel driver, and
/// over TCP no root.
#[derive(Parser, Debug)]
#[command(name = "nvmf", version, styles = STYLES, max_term_width = 120, after_help = EXAMPLES)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Log to stderr: -v what happens, -vv details, -vvv everything. RUST_LOG, if set, decides instead
    #[arg(short, long, action = ArgAction::Count, global = true, display_order = 900)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    #[cfg(feature = "tcp")]
    Demo(demo::Args),
    Discover(discover::Args),
    ConnectAll(connect_all::Args),
    Monitor(monitor::Args),
    Dim(dim::Args),
    List(list::Args),
    ListSubsys(list_subsys::Args),
    #[cfg(feature = "pcie")]
    Bind(bind::BindArgs),
    #[cfg(feature = "pcie")]
    Unbind(bind::UnbindArgs),
    Identify(identify::Args),
    Read(copy::ReadArgs),
    Write(copy::WriteArgs),
    Verify(verify::Args),
    Perf(perf::Args),
    Reset(reset::ResetArgs),
    SubsystemReset(reset::SubsystemResetArgs),
    Config(config::Args),
    ShowHostnqn(hostnqn::ShowArgs),
    GenHostnqn(hostnqn::GenArgs),
    Completions(generate::CompletionsArgs),
    #[command(hide = true)]
    Man(generate::ManArgs),
    Share(share::Args),
    #[cfg(feature = "tcp")]
    Target(target::Args),
}

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Cyan.on_default());

/// The grammar. Options of `perf` are those of spdk_nvme_perf, which has other uses for some letters of nvme-cli.
pub(crate) fn grammar() -> clap::Command {
    Cli::command().mut_subcommand("perf", |perf| {
        let without =
            ["transport", "traddr", "hostnqn", "host_traddr", "hostid", "reconnect_delay", "ctrl_loss_tmo"];
        let perf = without
            .into_iter()
            .chain(["keep_alive_tmo"])
            .fold(perf, |perf, option| perf.mut_arg(option, |arg| arg.short(None)));
        perf.mut_arg("hdr_digest", |arg| arg.short('H').visible_alias("enable-tcp-hdgst").short_alias('g'))
            .mut_arg("data_digest", |arg| arg.short('I').visible_alias("enable-tcp-ddgst").short_alias('G'))
    })
}

/// Reads the command line of this process. Prints help where asked for.
pub(crate) fn parse() -> Result<Cli, Failure> {
    let matches = grammar().try_get_matches();
    matches.and_then(|matches| Cli::from_arg_matches(&matches)).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Ok(()) => Failure::silent(0),
            Err(error) => Failure::stdout(&error),
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // To stderr; there is nobody else to tell.
            let _ = error.print();
            Failure::silent(2)
        }
        _ => Failure::usage(usage_line(&error)),
    })
}

/// Commands of nvme-cli for which there is another one here, or none.
fn instead_of(command: &str) -> Option<&'static str> {
    Some(match command {
        "connect" | "disconnect" | "disconnect-all" => {
            "a controller belongs to the program that attaches it, and is let go of with it; `nvmf identify`, `read` and \
             `list` attach for as long as they run, `nvmf share` for other processes, and `nvme` is for the kernel"
        }
        "id-ctrl" | "id-ns" | "list-ns" | "list-ctrl" => "`nvmf identify` shows controllers and namespaces",
        "show-topology" => "`nvmf list-subsys` shows subsystems and paths",
        _ => return None,
    })
}

/// clap's message without the usage text: what is wrong, and its tip.
fn usage_line(error: &clap::Error) -> String {
    if let (ErrorKind::InvalidSubcommand, Some(ContextValue::String(command))) =
        (error.kind(), error.get(ContextKind::InvalidSubcommand))
        && let Some(instead) = instead_of(command)
    {
        return format!("there is no `{command}` here: {instead}");
    }
    let text = error.render().to_string();
    let message = text.split("\nUsage:").next().unwrap_or_default();
    let message = message.split("\nFor more information").next().unwrap_or_default();
    let mut parts = message.trim().trim_start_matches("error: ").split("\n\n").map(str::trim);
    let mut line = parts.next().unwrap_or_default().to_owned();
    for part in parts.filter(|part| !part.is_empty()) {
        line.push_str("; ");
        line.push_str(part.trim_start_matches("tip: "));
    }
    line.push_str("; try --help");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str]) -> Result<Cli, String> {
        let words = ["nvmf"].iter().chain(line);
        grammar()
            .try_get_matches_from(words)
            .and_then(|matches| Cli::from_arg_matches(&matches))
            .map_err(|error| usage_line(&error))
    }

    #[test]
    fn grammar_is_sound() {
        grammar().debug_assert();
    }

    #[test]
    fn addresses_in_every_form() {
        let forms: &[&[&str]] = &[
            &["trtype:tcp traddr:127.0.0.1 trsvcid:4420 subnqn:nqn.a"],
            &["trtype:tcp", "traddr:127.0.0.1", "trsvcid:4420", "subnqn:nqn.a"],
            &["nvme+tcp://127.0.0.1:4420/nqn.a"],
            &["nvme+tcp://127.0.0.1", "--nqn", "nqn.a"],
            &["-t", "tcp", "-a", "127.0.0.1", "-s", "4420", "-n", "nqn.a"],
            &["--transport=tcp", "--traddr=127.0.0.1", "--nqn=nqn.a"],
        ];
        for form in forms {
            let line: Vec<&str> = ["identify"].iter().chain(*form).copied().collect();
            let Command::Identify(args) = parsed(&line).unwrap().command else { panic!("{line:?}") };
            let trid = args.connect.trid().unwrap();
            assert_eq!(trid.to_uri(), "nvme+tcp://127.0.0.1:4420/nqn.a", "{line:?}");
        }
    }

    #[test]
    fn discovery_goes_to_port_8009() {
        let Command::Discover(args) = parsed(&["discover", "-t", "tcp", "-a", "::1"]).unwrap().command else {
            panic!()
        };
        assert_eq!(args.discovery.connect.trid().unwrap().trsvcid(), "8009");
        let line = ["discover", "-t", "tcp", "-a", "::1", "-s", "4420"];
        let Command::Discover(args) = parsed(&line).unwrap().command else { panic!() };
        assert_eq!(args.discovery.connect.trid().unwrap().trsvcid(), "4420");
    }

    #[test]
    fn wrong_addresses_are_usage_errors() {
        let cases: &[(&[&str], &str)] = &[
            (&["identify"], "no controller is named; give a TRID"),
            (
                &["identify", "-t", "tcpp", "-a", "::1"],
                "--transport tcpp: no such transport; did you mean tcp?",
            ),
            (&["identify", "-t", "token-ring", "-a", "x"], "no such transport; there are tcp, "),
            (
                &["identify", "-t", "fc", "-a", "nn-0x1:pn-0x2"],
                "--transport fc: not in this program, which has tcp",
            ),
            (&["identify", "-t", "tcp", "-a", "::1", "-s", "x"], "--trsvcid: "),
            (&["identify", "-t", "tcp", "-a", "10.0.0.300/8"], "--traddr: "),
            (
                &["identify", "nvme+tcp://[::1]/nqn.a", "-n", "nqn.b"],
                "contradicts the TRID, which names nqn.a",
            ),
            (&["identify", "trtype:tcp traddr:::1 nqn:x"], "did you mean \"subnqn\"?"),
            (&["identify", "nvme+tcp://[::1]/nqn.a", "-w", "x y"], "--host-traddr: "),
        ];
        for (line, expected) in cases {
            let Command::Identify(args) = parsed(line).unwrap().command else { panic!("{line:?}") };
            let failure = args.connect.trid().unwrap_err();
            assert_eq!(failure.code(), 2, "{line:?}");
            assert!(failure.line().unwrap().contains(expected), "{line:?}: {failure:?}");
        }
    }

    #[test]
    fn missing_subsystem_hints_at_discovery() {
        let Command::Identify(args) = parsed(&["identify", "nvme+tcp://[::1]"]).unwrap().command else {
            panic!()
        };
        let failure = args.connect.attach(1).unwrap_err();
        assert_eq!(failure.code(), 2);
        let line = failure.line().unwrap();
        assert!(line.contains("no subsystem is named; add -n NQN"), "{line}");
        assert!(line.contains("`nvmf discover -t tcp -a ::1` lists what is there"), "{line}");
    }

    #[test]
    fn grammar_errors_fit_on_one_line() {
        let cases: &[(&[&str], &str)] = &[
            (&["discover", "-t", "tcp"], "required arguments were not provided: --traddr <ADDR>; try --help"),
            (&["discover", "nvme+tcp://h", "-t", "tcp", "-a", "h"], "cannot be used with"),
            (
                &["read", "x", "--length", "1MB"],
                "invalid value '1MB' for '--length <SIZE>': MB may mean 1000s or 1024s",
            ),
            (
                &["discover", "--traddrr", "x"],
                "unexpected argument '--traddrr' found; a similar argument exists: '--traddr'",
            ),
            (&["discovr"], "unrecognized subcommand 'discovr'; a similar subcommand exists: 'discover'"),
            (&["disconnect-all"], "there is no `disconnect-all` here: a controller belongs to the program"),
            (&["id-ctrl", "/dev/nvme0"], "`nvmf identify`"),
            (&["perf", "x", "-w", "trim"], "possible values: read, write, randread, randwrite, rw, randrw"),
            (&["perf", "x", "-c", "0"], "names no CPU"),
            (&["perf", "x", "-c", "1", "--threads", "2"], "cannot be used with"),
            (&["perf", "x", "-t", "0"], "must be more than 0 seconds"),
        ];
        for (line, expected) in cases {
            let error = Failure::usage(parsed(line).unwrap_err());
            let text = error.line().unwrap();
            assert!(text.contains(expected), "{line:?}: {text}");
            assert!(!text.contains('\n') && !text.contains("Usage:") && !text.starts_with("error"), "{text}");
        }
    }

    #[test]
    fn perf_says_that_its_t_is_no_transport() {
        let error = parsed(&["perf", "-t", "tcp", "-a", "::1"]).unwrap_err();
        assert!(error.contains("say --transport tcp --traddr ADDR"), "{error}");
        let error = parsed(&["perf", "-t", "soon"]).unwrap_err();
        assert!(error.contains("not a number of seconds"), "{error}");
    }

    #[test]
    fn perf_takes_the_letters_of_spdk_nvme_perf() {
        let line = [
            "perf",
            "nvme+tcp://h/nqn.a",
            "-q",
            "32",
            "-o",
            "4096",
            "-w",
            "randrw",
            "-M",
            "70",
            "-t",
            "5",
            "-P",
            "2",
            "--yes",
        ];
        let Command::Perf(args) = parsed(&line).unwrap().command else { panic!() };
        assert_eq!(
            args.settings().unwrap().to_string(),
            "randrw (70 % reads), 4 KiB, queue depth 32 x 2 queue pairs"
        );
        let line = "perf --io-depth 8 -r nvme+tcp://h/nqn.a -r nvme+tcp://h/nqn.b --io-size 4096 --io-pattern rw \
                    --rwmixread 0 --time 1 -a 2 -c 0x5 --num-qpairs 3 -H -I -E -LL -C 4 -d 100 --yes";
        let line: Vec<&str> = line.split_whitespace().collect();
        let Command::Perf(args) = parsed(&line).unwrap().command else { panic!() };
        let settings = args.settings().unwrap();
        let text = "rw (0 % reads), 4 KiB, queue depth 8 x 3 queue pairs x 2 threads, sleeping";
        assert_eq!(settings.to_string(), text);
        assert_eq!((settings.cpus, settings.detail, settings.number_ios), (vec![0, 2], 2, Some(100)));
    }

    #[test]
    fn recovery_options_have_the_names_of_nvme_cli() {
        let line =
            ["verify", "nvme+tcp://h/nqn.a", "-c", "2", "-l", "-1", "--fast_io_fail_tmo", "5", "-k", "0"];
        parsed(&line).unwrap();
        let line = ["perf", "nvme+tcp://h/nqn.a", "--reconnect-delay", "2", "--ctrl-loss-tmo", "-1"];
        parsed(&line).unwrap();
        let error = parsed(&["verify", "nvme+tcp://h/nqn.a", "--ctrl-loss-tmo", "60"]).unwrap_err();
        assert!(error.contains("--reconnect-delay"), "{error}");
    }

    /// Every command, with its subcommands, and what leads to it.
    fn commands(command: &clap::Command, path: &str) -> Vec<(String, clap::Command)> {
        command
            .get_subcommands()
            .flat_map(|sub| {
                let path = format!("{path} {}", sub.get_name());
                let mut all = commands(sub, &path);
                all.insert(0, (path, sub.clone()));
                all
            })
            .collect()
    }

    /// The words of a line of a shell that begins with `nvmf`, up to a pipe, a redirection or a comment.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote, mut gap) = (Vec::new(), None::<String>, None, 0);
        for c in line.chars() {
            gap = if c == ' ' { gap + 1 } else { 0 };
            match (quote, c) {
                // Two spaces set off a remark.
                (None, _) if gap == 2 => break,
                (None, '|' | '>' | ';' | '#') => break,
                (None, ' ') => words.extend(word.take()),
                (None, '\'' | '"') => {
                    word.get_or_insert_default();
                    quote = Some(c);
                }
                (Some(open), _) if c == open => quote = None,
                _ => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        words
    }

    /// Examples of a help text: what runs this program in the lines behind "Examples:".
    fn examples(command: &clap::Command) -> Vec<String> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let listed = help.lines().skip_while(|line| *line != "Examples:").skip(1);
        listed
            .take_while(|line| line.starts_with(' '))
            .filter_map(|line| {
                let line = line.trim().trim_start_matches("sudo ");
                let piped = line.find("| nvmf ").map(|at| at + 2);
                let at = if line.starts_with("nvmf ") { Some(0) } else { piped };
                at.map(|at| line[at..].to_owned())
            })
            .collect()
    }

    #[test]
    fn examples_of_every_help_text_are_understood() {
        let mut built = grammar();
        built.build();
        let mut all = commands(&built, "nvmf");
        all.insert(0, ("nvmf".to_owned(), built.clone()));
        for (path, command) in all {
            let examples = examples(&command);
            assert!(
                examples.iter().any(|line| line.starts_with(&path)),
                "`{path} --help` has no example of it"
            );
            for example in examples {
                let words = words(&example.replace("$TRID", "nvme+tcp://192.0.2.1/nqn.a"));
                if let Err(error) = grammar().try_get_matches_from(&words) {
                    panic!("`{path} --help`: {example}: {}", usage_line(&error));
                }
            }
        }
    }

    #[test]
    fn wrong_words_are_answered_with_the_nearest() {
        for (line, expected) in [
            (&["discovr"][..], "'discover'"),
            (&["show-hostnq"], "'show-hostnqn'"),
            (&["discover", "--tradr", "::1"], "'--traddr'"),
            (&["config", "shw"], "'show'"),
            (&["discover", "-o", "jsn"], "'json'"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains("similar") && error.contains(expected), "{line:?}: {error}");
        }
    }

    /// Every help text as it is printed 100 columns wide.
    #[test]
    fn help() {
        let mut grammar = grammar().term_width(100);
        grammar.build();
        insta::assert_snapshot!("help", grammar.render_help());
        for (path, command) in commands(&grammar, "nvmf") {
            let name = path.trim_start_matches("nvmf ").replace(' ', "_");
            insta::assert_snapshot!(format!("help_{name}"), command.term_width(100).render_help());
        }
    }
}
