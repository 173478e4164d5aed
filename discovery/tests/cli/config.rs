//! Configuration files, host names, completions and man pages.

use std::path::PathBuf;

use crate::support::{NQN, nvmf, target};

/// A file of its own folder, removed at the end of the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("nvmf-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn name(&self) -> std::path::Display<'_> {
        self.0.display()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // A leftover under the temporary directory harms nobody.
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

#[test]
fn discover_asks_what_is_configured() {
    let (one, two) = (target(), target());
    let gone = "127.0.0.1 -s 1";
    let text = format!(
        "# two that are there, one that is not\n-t tcp -a 127.0.0.1 -s {}\n-t tcp -a {gone}\n-t tcp -a 127.0.0.1 -s {}\n",
        one.port, two.port
    );
    let file = File::new("discovery.conf", &text);
    let run = nvmf(&[&"discover", &"-J", &file.name()]);
    let printed = String::from_utf8(run.stdout.clone()).unwrap();
    for port in [&one.port, &two.port] {
        assert!(printed.contains(&format!("trsvcid: {port}\nsubnqn:  {NQN}\n")), "{printed}");
    }
    assert!(run.failed(3).contains("127.0.0.1"));
    let ini = File::new(
        "nvme-fabrics.conf",
        &format!(
            "[Discovery Controller]\ncontroller = transport=tcp;traddr=127.0.0.1;trsvcid={}\n",
            one.port
        ),
    );
    let json = nvmf(&[&"discover", &"--config", &ini.name(), &"-o", &"json"]).json();
    assert_eq!(json["records"][0]["subnqn"], NQN);
    let tls =
        File::new("tls.conf", &format!("--transport=tcp --traddr=127.0.0.1 --trsvcid={} --tls\n", one.port));
    let error = nvmf(&[&"discover", &"-J", &tls.name()]).failed(2);
    assert!(error.contains("tls.conf:1 asks for TLS"), "{error}");
}

#[test]
fn config_is_shown_and_checked() {
    let file = File::new(
        "nvme-fabrics.conf",
        "[Host]\nhostnqn = nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555\n\
         kxchap-secret = DHHC-1:00:b3VyIHNlY3JldCwgdGhhdCBpcyBub3QgdG9sZCB5b3U1nCvm:\n\
         [Subsystem]\nnqn = nqn.2024-01.com.example:disk\ncontroller = transport=tcp;traddr=192.0.2.1\n",
    );
    let text = nvmf(&[&"config", &"show", &"-J", &file.name()]).text();
    for (name, width, value, origin) in [
        ("hostid", 18, "11111111-2222-3333-4444-555555555555", "2 (host)"),
        ("dhchap-secret", 14, "<secret>", "3 (host)"),
        ("traddr", 14, "192.0.2.1", "6"),
    ] {
        let row = format!("{name:<width$} {value:<40} {}:{origin}", file.name());
        assert!(text.lines().any(|line| line.trim() == row), "{row}\n{text}");
    }
    let json = nvmf(&[&"config", &"show", &"-J", &file.name(), &"-o", &"json"]).json();
    let controller = &json["hosts"][0]["subsystems"][0]["controllers"][0];
    assert_eq!(controller["transport"]["value"], "tcp");
    assert_eq!(controller["dhchap-secret"]["value"], "<secret>");
    assert_eq!(nvmf(&[&"config", &"validate", &"-J", &file.name()]).text(), format!("{}: OK\n", file.name()));

    let wrong = File::new("wrong.conf", "[Subsystem]\ncontroler = x\ncontroller = transport=tcp\n");
    let run = nvmf(&[&"config", &"validate", &"--config", &wrong.name()]);
    let expected = format!(
        "{0}:2: warning: unknown key \"controler\" is passed over; did you mean \"controller\"?\n\
         {0}:3: a controller needs transport and traddr\n{0}:1: [Subsystem] needs an nqn\n\
         {0}:1: warning: the section has no controller that could be connected to\n",
        wrong.name()
    );
    assert_eq!(String::from_utf8_lossy(&run.stdout), expected);
    assert!(run.failed(2).contains("2 errors in the configuration"));
    assert!(
        nvmf(&[&"config", &"show", &"-J", &wrong.name()])
            .failed(2)
            .contains("wrong.conf:3: a controller needs")
    );
}

#[test]
fn host_names() {
    let shown = nvmf(&[&"show-hostnqn"]).text();
    assert!(shown.starts_with("nqn.") && shown.ends_with('\n') && shown.lines().count() == 1, "{shown:?}");
    assert_eq!(nvmf(&[&"show-hostnqn"]).text(), shown, "every process has the same");
    let made = nvmf(&[&"gen-hostnqn"]).text();
    assert!(made.starts_with("nqn.2014-08.org.nvmexpress:uuid:") && made.len() == 32 + 36 + 1, "{made:?}");
}

#[test]
fn completions_and_man_pages() {
    for (shell, expected) in
        [("bash", "complete -F _nvmf"), ("zsh", "#compdef nvmf"), ("fish", "complete -c nvmf")]
    {
        let text = nvmf(&[&"completions", &shell]).text();
        assert!(
            text.contains(expected) && text.contains("discover") && text.contains("trsvcid"),
            "{shell}: {text}"
        );
    }
    let folder = File::new("man", "");
    let dir = folder.0.with_file_name("man1");
    assert_eq!(nvmf(&[&"man", &dir.display()]).text(), "");
    for (page, expected) in [
        ("nvmf.1", "nvmf\\-discover(1)"),
        ("nvmf-discover.1", "\\-\\-traddr"),
        ("nvmf-config-show.1", "nvmf config show"),
    ] {
        let text = std::fs::read_to_string(dir.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(expected), "{page}: {text}");
        assert!(text.contains("\n.SH EXAMPLES\n.nf\n  nvmf "), "{page}: {text}");
    }
}
