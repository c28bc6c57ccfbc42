//! What a package ships beside a binary and only the binary's own command line knows: man
//! pages and completions for bash, zsh and fish. Both binaries write theirs by a hidden
//! subcommand.

use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

/// Writes `NAME.SECTION` and a page for each subcommand into `dir/man`, and completions into
/// `dir/bash`, `dir/zsh` and `dir/fish`, under the names that those shells look for.
///
/// # Errors
/// When a file can't be written.
pub fn write(mut command: Command, section: &str, dir: &Path) -> io::Result<()> {
    let name = command.get_name().to_owned();
    for (shell, folder) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        let folder = dir.join(folder);
        std::fs::create_dir_all(&folder)?;
        clap_complete::generate_to(shell, &mut command, &name, folder)?;
    }
    let man = dir.join("man");
    std::fs::create_dir_all(&man)?;
    command.build();
    pages(&command, section, &man)
}

fn pages(command: &Command, section: &str, dir: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    // A page is named as it is looked for: `man redmeshctl-run-start`.
    let page = command.clone().name(name.clone()).disable_help_subcommand(true);
    clap_mangen::Man::new(page).section(section).generate_to(dir).map(drop)?;
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    shown.into_iter().try_for_each(|sub| pages(sub, section, dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_completions_have_the_names_that_are_looked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let hidden = Command::new("secret").hide(true);
        let inner = Command::new("run").subcommand(Command::new("start").about("Begins a thing"));
        write(Command::new("tool").subcommand(inner).subcommand(hidden), "1", dir.path()).expect("write");
        let there = |path: &str| dir.path().join(path).is_file();
        for path in [
            "man/tool.1",
            "man/tool-run.1",
            "man/tool-run-start.1",
            "bash/tool.bash",
            "zsh/_tool",
            "fish/tool.fish",
        ] {
            assert!(there(path), "{path}");
        }
        assert!(!there("man/tool-secret.1"));
        let page = std::fs::read_to_string(dir.path().join("man/tool-run-start.1")).expect("read");
        assert!(page.contains("Begins a thing"), "{page}");
    }
}
