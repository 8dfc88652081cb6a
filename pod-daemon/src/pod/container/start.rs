//! What starts the processes of a container: its runs, and commands in it.

use std::{
    fs, io,
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, chown},
    },
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{net::unix::pipe, sync::oneshot};

use super::{
    super::{
        About, chain, command, environment, logs,
        sandbox::{self, Sandbox},
        security::{self, Root, Security},
        volumes,
    },
    Started,
    ended::{Failure, UNKNOWN},
};
use crate::{
    fault,
    image::Image,
    manifest,
    node::{Exec, Shared},
    pidfd::Pidfd,
    sandbox::{Command, ContainerSpec, Identity, Infra, Process, Rootfs, Stdio},
};

/// How long the files of an earlier run stay after the next one's start.
const CLEANUP_DELAY: Duration = Duration::from_secs(1);

/// Starts a run; blocks.
pub(super) fn start(
    shared: &Shared,
    about: &About,
    sandbox: &Sandbox,
    index: usize,
    run: u32,
    image: Arc<Image>,
) -> Result<Started, Failure> {
    let place = sandbox.ground.place(index);
    let spec = &about.spec.containers[index];
    let infra = sandbox.infra().ok_or_else(no_sandbox)?;
    let (command, root) = resolve(shared, about, sandbox, index, &image)?;
    let failed = |error: &io::Error| Failure::new("CreateContainerError", error);
    let containers = sandbox::directory(shared, about).join("containers").join(&spec.name);
    let scratch = containers.join(run.to_string());
    fault::at("scratch").map_err(|error| failed(&error))?;
    // A daemon that was killed may have begun this run, and overlayfs takes no used directory.
    match fs::remove_dir_all(&scratch) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&error)),
        _ => {}
    }
    fs::create_dir_all(&scratch).map_err(|error| failed(&error))?;
    for name in ["upper", "work"] {
        fs::create_dir(scratch.join(name)).map_err(|error| failed(&error))?;
    }
    // The root is as the directory that is on top.
    if let Some(layer) = image.layers.last() {
        give_away(layer, &scratch.join("upper")).map_err(|error| failed(&error))?;
    }
    let output = sandbox.output(index);
    let [standard, error] = output.writers().map_err(|error| failed(&error))?;
    let stdio = Stdio { input: None, output: Some(standard), error: Some(error) };
    let directory =
        logs::directory(&shared.settings.log_dir, &about.key, &about.uid).join(&spec.name);
    fault::at("log").map_err(|error| failed(&error))?;
    let output =
        output.copy(&directory, run, shared.settings.log_limits).map_err(|error| failed(&error))?;

    place.probe.await_run(run).map_err(|error| Failure::new("CreateContainerError", &error))?;
    let Root { view, read_only } = root;
    let rootfs = Rootfs { layers: image.layers.clone(), scratch, read_only, view };
    let binds = sandbox.volumes.binds(spec, read_only);
    let announce = |mounts: &[(usize, u32)]| {
        if let Err(error) = place.probe.set_mounts(mounts) {
            tracing::error!(error = chain(&error), "file operations count as `other`");
        }
    };
    let introduce = |pid| {
        // Then the first exec in the container tells.
        if let Err(error) = place.probe.introduce(run, pid) {
            tracing::debug!(error = chain(&error), "the probes do not know the process");
        }
    };
    let container = ContainerSpec {
        rootfs: &rootfs,
        binds: &binds,
        command: &command,
        stdio: &stdio,
        announce: &announce,
        introduce: &introduce,
    };
    match shared.sandboxes.start_container(&infra, place.cgroup.as_fd(), &container) {
        Ok(process) => {
            tokio::spawn(remove_earlier_runs(containers, run, Arc::downgrade(&infra)));
            Ok(Started { image, command, process, output })
        }
        Err(error) => {
            let message = command::explain(&command, &error);
            Err(Failure { reason: "StartError", message, image: false })
        }
    }
}

/// Makes a directory's owner and mode those of another.
fn give_away(from: &Path, to: &Path) -> io::Result<()> {
    let about = fs::metadata(from)?;
    chown(to, Some(about.uid()), Some(about.gid()))?;
    fs::set_permissions(to, about.permissions())
}

/// What runs in a container, and as whom; and what it may do to its root.
pub(super) fn resolve(
    shared: &Shared,
    about: &About,
    sandbox: &Sandbox,
    index: usize,
    image: &Image,
) -> Result<(Command, Root), Failure> {
    let spec = &about.spec.containers[index];
    let failed = |error: &dyn std::error::Error| Failure::new("CreateContainerConfigError", error);
    let infra = sandbox.infra().ok_or_else(no_sandbox)?;
    let security = security::of(shared, about, spec, image).map_err(|error| failed(&error))?;
    let Security { identity, confinement, root } = security;
    let identity = Identity { base: infra.user_base(), ..identity };
    let host_network = about.spec.host_network.unwrap_or(false);
    let hostname = volumes::hostname(about, host_network);
    let variables = environment::of(shared, about, sandbox.ip(), spec)
        // What is missing may come, as an image may.
        .map_err(|error| Failure { image: true, ..failed(&error) })?;
    let command = command::of(spec, image, identity, confinement, &hostname, &variables)
        .map_err(|error| failed(&error))?;
    let score = manifest::oom_score_adj(&about.spec, index, shared.memory_bytes());
    Ok((Command { oom_score_adj: Some(score), ..command }, root))
}

fn no_sandbox() -> Failure {
    Failure::internal("the pod's sandbox is gone")
}

/// Starts a command in a running container; blocks.
pub(super) fn exec(
    shared: &Shared,
    sandbox: &Sandbox,
    index: usize,
    container: &Process,
    command: &Command,
    stdin: bool,
) -> Result<Exec, String> {
    let text = |error: io::Error| error.to_string();
    let own = &sandbox.ground.place(index).cgroup;
    let nested = own.nested(container.pid);
    let cgroup = nested.as_ref().unwrap_or(own).as_fd();
    let (output, output_writer) = crate::sandbox::pipe().map_err(text)?;
    let (errors, error_writer) = crate::sandbox::pipe().map_err(text)?;
    let (input, input_writer) = if stdin {
        crate::sandbox::pipe().map(|(r, w)| (Some(r), Some(w))).map_err(text)?
    } else {
        (None, None)
    };
    let stdio = Stdio { input, output: Some(output_writer), error: Some(error_writer) };
    let process = shared
        .sandboxes
        .exec(container, cgroup, command, &stdio)
        .map_err(|error| command::explain(command, &error))?;
    drop(stdio);
    let pidfd = Pidfd::new(&process.pidfd).inspect_err(|_error| process.abandon()).map_err(text)?;
    let (report, status) = oneshot::channel();
    let (alive, gone) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let code = tokio::select! {
            status = pidfd.wait() => status,
            // The client has dropped its end.
            _ = gone => {
                process.signal(libc::SIGKILL).ok();
                pidfd.wait().await
            }
        };
        report.send(code.ok().flatten().map_or(UNKNOWN, |(code, _)| code)).ok();
    });
    Ok(Exec {
        stdin: input_writer.map(pipe::Sender::from_owned_fd).transpose().map_err(text)?,
        stdout: pipe::Receiver::from_owned_fd(output).map_err(text)?,
        stderr: pipe::Receiver::from_owned_fd(errors).map_err(text)?,
        status,
        _alive: alive,
    })
}

/// Removes what earlier runs of a container changed, which no later run sees. A later run may
/// have begun already. Not at once: a restart should not wait for the disk, and a program that fails
/// often fails soon after its start.
async fn remove_earlier_runs(containers: PathBuf, run: u32, infra: Weak<Infra>) {
    tokio::time::sleep(CLEANUP_DELAY).await;
    // What is left of a pod goes with the pod.
    if infra.strong_count() > 0 {
        tokio::task::spawn_blocking(move || remove_runs_before(&containers, run)).await.ok();
    }
}

fn remove_runs_before(containers: &Path, run: u32) {
    for entry in fs::read_dir(containers).into_iter().flatten().flatten() {
        let is_earlier = |name: &str| name.parse::<u32>().is_ok_and(|number| number < run);
        if entry.file_name().to_str().is_some_and(is_earlier)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            // The pod's removal takes what is left.
            tracing::debug!(path = %entry.path().display(), %error, "files of an earlier run stay");
        }
    }
}
