//! What a container runs, from its manifest and its image.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Container as Spec;

use super::chain;
use crate::{
    image::Image,
    manifest::expand,
    sandbox::{Command, Confinement, DEFAULT_PATH, EXECUTE, Error as SandboxError, Identity},
};

/// There is nothing to run.
#[derive(Debug, thiserror::Error)]
#[error("neither the manifest nor the image says what to run; set `command`")]
pub(super) struct NoCommand;

/// The command of a container: the manifest's, or else the image's. `own` are the manifest's
/// variables.
pub(super) fn of(
    spec: &Spec,
    image: &Image,
    identity: Identity,
    confinement: Confinement,
    hostname: &str,
    own: &BTreeMap<String, String>,
) -> Result<Command, NoCommand> {
    let mut environment: BTreeMap<String, String> = BTreeMap::new();
    for variable in &image.config.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        environment.insert(name.to_owned(), value.to_owned());
    }
    environment.insert("HOSTNAME".to_owned(), hostname.to_owned());
    environment.extend(own.clone());
    environment.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
    let usual = if identity.user == 0 { "/root" } else { "/" };
    let home = identity.home.as_deref().unwrap_or(usual);
    environment.entry("HOME".to_owned()).or_insert_with(|| home.to_owned());

    let expanded = |list: &[String]| list.iter().map(|text| expand(text, own)).collect::<Vec<_>>();
    let (program, arguments) = (spec.command.as_deref(), spec.args.as_deref());
    let mut line = match program {
        Some(program) if !program.is_empty() => expanded(program),
        _ => image.config.entrypoint.clone(),
    };
    match (program, arguments) {
        (_, Some(arguments)) if !arguments.is_empty() => line.extend(expanded(arguments)),
        (None | Some([]), _) => line.extend(image.config.cmd.iter().cloned()),
        _ => {}
    }
    if line.is_empty() {
        return Err(NoCommand);
    }
    let directory = spec.working_dir.as_deref().or(image.config.working_dir.as_deref());
    Ok(Command {
        arguments: line,
        environment: environment
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        directory: directory.filter(|directory| !directory.is_empty()).unwrap_or("/").to_owned(),
        identity,
        confinement,
        oom_score_adj: None,
    })
}

/// Why a container's program did not start, in the words that people search for.
pub(super) fn explain(command: &Command, error: &SandboxError) -> String {
    let program = command.arguments.first().map_or("", String::as_str);
    match error {
        SandboxError::Process(failure) if failure.step == EXECUTE => match failure.errno {
            nix::errno::Errno::ENOENT if !program.contains('/') => {
                format!("exec: {program:?}: executable file not found in $PATH")
            }
            nix::errno::Errno::ENOENT => format!(
                "exec: {program:?}: no such file or directory (neither it nor the interpreter that it names may be missing from the image)"
            ),
            errno => format!("exec: {program:?}: {}", errno.desc()),
        },
        error => chain(error),
    }
}

/// The number of a signal by name (with or without SIG) or number.
pub(super) fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = if text.starts_with("SIG") { text.to_owned() } else { format!("SIG{text}") };
    name.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entrypoint: &[&str], cmd: &[&str]) -> Image {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let config = crate::image::Config {
            entrypoint: owned(entrypoint),
            cmd: owned(cmd),
            ..Default::default()
        };
        Image { id: String::new(), layers: Vec::new(), config }
    }

    fn line(command_: Option<&[&str]>, args: Option<&[&str]>) -> Vec<String> {
        let owned = |list: Option<&[&str]>| {
            list.map(|list| list.iter().map(|text| (*text).to_owned()).collect())
        };
        let spec = Spec { command: owned(command_), args: owned(args), ..Spec::default() };
        let image = image(&["/entry"], &["cmd"]);
        let (identity, confinement) = (Identity::default(), Confinement::default());
        of(&spec, &image, identity, confinement, "host", &BTreeMap::new()).unwrap().arguments
    }

    #[test]
    fn command_and_args_override_as_in_kubernetes() {
        assert_eq!(line(None, None), ["/entry", "cmd"]);
        assert_eq!(line(Some(&["/own"]), None), ["/own"]);
        assert_eq!(line(None, Some(&["arg"])), ["/entry", "arg"]);
        assert_eq!(line(Some(&["/own"]), Some(&["arg"])), ["/own", "arg"]);
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal_number("SIGQUIT"), Some(libc::SIGQUIT));
        assert_eq!(signal_number("TERM"), Some(libc::SIGTERM));
        assert_eq!(signal_number("9"), Some(9));
        assert_eq!(signal_number("99"), None);
        assert_eq!(signal_number("nonsense"), None);
    }
}
