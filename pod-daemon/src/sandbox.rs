//! Starting processes in namespaces: the infra program, containers, and commands in containers.
//!
//! The only module that calls clone, setns and mount. Each start runs on a thread of its own: the
//! thread takes on the namespaces, makes the mounts with ordinary code, and then clones a process
//! that inherits them. The thread ends; the process remains.

pub mod apparmor;
mod capabilities;
mod child;
mod clone;
mod confinement;
mod infra;
mod memory;
mod mount;
mod oom_score;
mod rootfs;
mod seal;
pub mod seccomp;
pub mod sysctl;
mod template;
mod userns;

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sched::{CloneFlags, setns, unshare},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::Pid,
};
use rustix::{fs::Uid, process::Rlimit};

use self::{
    apparmor::DefaultProfile,
    child::{Plan, Program, Strings},
    oom_score::OomScores,
    seccomp::Filters,
};
pub use self::{
    capabilities::{Capabilities, DEFAULT as DEFAULT_CAPABILITIES},
    child::{EXECUTE, FIRST_KEPT, Failure},
    clone::{Process, start_time, wait},
    confinement::{Confinement, View},
    infra::{Infra, NetworkMode, OwnNamespaces, Users},
    memory::Memory,
    mount::{mount_bpf, remove_all, unmount},
    rootfs::{Bind, Rootfs},
    seal::run_sealed,
};
use crate::fault;

/// The infra program, built by the build script.
pub static PAUSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// A sandbox cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Preparing the file system or the namespaces failed.
    #[error("failed to {action} `{}`", path.display())]
    Prepare {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A step between clone and exec failed.
    #[error(transparent)]
    Process(#[from] Failure),
    /// The seccomp profile cannot be used.
    #[error(transparent)]
    Seccomp(#[from] seccomp::Error),
    /// A container is to have what the daemon has not.
    #[error(
        "the daemon itself lacks the capabilities {0}; start it with them, or do not ask for them"
    )]
    Capabilities(Capabilities),
    /// Every range of user ids is taken.
    #[error("no user ids are left for a pod with `hostUsers: false`; delete such pods")]
    NoIds,
    /// Two pods would have the same user ids.
    #[error("the user ids from {0} on belong to another pod")]
    IdsTaken(u32),
    /// The kernel is too old for user namespaces.
    #[error(
        "`hostUsers: false` takes Linux 5.19 for the ids of files in an image, and this node runs {0}"
    )]
    OldKernel(String),
    /// A string contains a zero byte.
    #[error("{0} contains a zero byte")]
    ZeroByte(&'static str),
    /// The thread died.
    #[error("the thread that makes sandboxes panicked")]
    Panicked,
}

/// How this node's pods are started.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The limit that pods get, in bytes.
    pub locked_memory: Rlimit,
    /// Pods with user ids of their own have those from here on.
    pub first_user_id: u32,
}

/// What every start on this node shares.
#[derive(Debug)]
pub struct Sandboxes {
    /// A mount namespace with next to nothing in it. Pods' namespaces are copies of it, so that
    /// they cost the same however many mounts the host has, and hold none of them.
    template: OwnedFd,
    data: PathBuf,
    /// The infra program, sealed: it cannot be changed through `/proc/PID/exe`.
    infra: OwnedFd,
    /// A file system that nothing is in and nothing can be put into.
    nothing: OwnedFd,
    null: OwnedFd,
    oom_scores: OomScores,
    open_files: (u64, u64),
    locked_memory: (u64, u64),
    /// Paths of this node's /sys that containers do not see.
    masked_sys: Vec<PathBuf>,
    filters: Filters,
    ignored_signals: u64,
    apparmor: DefaultProfile,
    /// What the daemon can give away.
    capabilities: Capabilities,
    ids: Arc<userns::Ranges>,
}

/// Who a process runs as.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// The user's home, if the image says where.
    pub home: Option<String>,
    /// What root of the pod is on the node: 0, or with a user namespace something else.
    pub base: u32,
}

/// A command line with everything that it needs to run.
#[derive(Clone, Debug)]
pub struct Command {
    /// Program and arguments; the program is looked up in the environment's PATH.
    pub arguments: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Absolute.
    pub directory: String,
    /// Who runs it.
    pub identity: Identity,
    /// What it may do.
    pub confinement: Confinement,
    /// How early the kernel is to kill it when the node has no memory left (-1000 to 1000); as early
    /// as the daemon if `None`.
    pub oom_score_adj: Option<i32>,
}

/// Standard streams of a process; what is absent is /dev/null.
#[derive(Debug, Default)]
pub struct Stdio {
    /// To be read by the process.
    pub input: Option<OwnedFd>,
    /// To be written by the process.
    pub output: Option<OwnedFd>,
    /// To be written by the process.
    pub error: Option<OwnedFd>,
}

/// What a container is started from.
pub struct ContainerSpec<'a> {
    /// Its root.
    pub rootfs: &'a Rootfs,
    /// What is mounted into it, in this order.
    pub binds: &'a [Bind],
    /// What runs in it.
    pub command: &'a Command,
    /// Its standard streams.
    pub stdio: &'a Stdio,
    /// Is told where the volumes are mounted, before the exec.
    pub announce: Announce<'a>,
    /// Is told the process, before the exec.
    pub introduce: Introduce<'a>,
}

/// Takes volume indexes and the ids of their mounts.
pub type Announce<'a> = &'a (dyn Fn(&[(usize, u32)]) + Sync);

/// Takes a process of the daemon's PID namespace.
pub type Introduce<'a> = &'a (dyn Fn(Pid) + Sync);

impl Sandboxes {
    /// Prepares what every start shares. `data` holds all scratch directories, `run` any directory.
    pub fn new(data: &Path, run: &Path, settings: Settings) -> Result<Self, Error> {
        let Settings { locked_memory, first_user_id } = settings;
        let failed = |action: &'static str| failed_to(action, Path::new("memfd:infra"));
        let infra = memfd_create(c"infra", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(|errno| failed("create")(errno.into()))?;
        let mut file = File::from(infra);
        file.write_all(PAUSE).map_err(failed("write"))?;
        // Whoever may not read a program cannot look into a process of it: in a shared PID namespace,
        // what the infra program holds open is out of the containers' reach.
        file.set_permissions(fs::Permissions::from_mode(0o111)).map_err(failed("protect"))?;
        let seals = SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| failed("seal")(errno.into()))?;
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(failed_to("open", Path::new("/dev/null")))?;
        let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        rootfs::make_skeleton(data).map_err(failed_to("make mount points in", data))?;
        let (data, run) = (data.to_path_buf(), run.to_path_buf());
        let template = on_thread("template", || template::make(&data, &run))?;
        Ok(Self {
            template,
            data,
            infra: file.into(),
            nothing: mount::empty().map_err(failed_to("mount", Path::new("tmpfs")))?,
            null: null.into(),
            oom_scores: OomScores::open().map_err(failed_to("open", Path::new("/proc")))?,
            open_files: (limits.current.unwrap_or(1024), limits.maximum.unwrap_or(1_048_576)),
            locked_memory: (
                locked_memory.current.unwrap_or(libc::RLIM_INFINITY),
                locked_memory.maximum.unwrap_or(libc::RLIM_INFINITY),
            ),
            masked_sys: rootfs::masked_sys(),
            filters: Filters::default(),
            ignored_signals: child::ignored_signals(),
            apparmor: DefaultProfile::prepare(),
            capabilities: Capabilities::of_this_thread(),
            ids: userns::Ranges::new(first_user_id),
        })
    }

    /// Starts a container of the pod that `infra` holds. Returns when its program has been exec'ed.
    pub fn start_container(
        &self,
        infra: &Infra,
        cgroup: BorrowedFd<'_>,
        spec: &ContainerSpec<'_>,
    ) -> Result<Process, Error> {
        let ContainerSpec { rootfs, binds, command, stdio, announce, introduce } = spec;
        on_thread("container", || {
            self.apparmor.set_on_exec(command.confinement.apparmor.as_deref())?;
            let users = infra.users.as_ref();
            let sources = rootfs::Sources::open(rootfs, binds, &self.data, users)?;
            let scratch = rootfs.scratch.strip_prefix(&self.data).unwrap_or(&rootfs.scratch);
            unshare(CloneFlags::CLONE_FS)
                .map_err(|errno| failed_to("unshare", Path::new("fs"))(errno.into()))?;
            infra.join(CloneFlags::CLONE_NEWNS)?;
            unshare(CloneFlags::CLONE_NEWNS)
                .map_err(|errno| failed_to("unshare", Path::new("mnt"))(errno.into()))?;
            let mounts = own_namespace("mnt")?;
            fault::at("mounts").map_err(failed_to("mount", scratch))?;
            let root = rootfs::stage(&sources, scratch, users)?;
            let directory = &*command.directory;
            let masked = &self.masked_sys;
            let prepared =
                rootfs::complete(root, &sources, rootfs, binds, directory, masked, users)?;
            mount::pivot(&prepared.root).map_err(failed_to("pivot to", Path::new("/")))?;
            // Copies of shared mounts are still members of the host's peer groups.
            mount::make_private().map_err(failed_to("make private", Path::new("/")))?;
            announce(&prepared.mounts);
            let mut plan = self.plan(command, stdio)?;
            plan.user_namespace = userns::descriptor(users);
            plan.mounts = Some(prepared.child_mounts());
            fault::at("container process").map_err(failed_to("start", scratch))?;
            let process = self.spawn(&mut plan, cgroup, infra.pid.is_none(), introduce)?;
            Ok(Process { _mounts: Some(mounts), ..process })
        })
    }

    /// Starts a command in the namespaces of a container's first process.
    pub fn exec(
        &self,
        container: &Process,
        cgroup: BorrowedFd<'_>,
        command: &Command,
        stdio: &Stdio,
    ) -> Result<Process, Error> {
        on_thread("exec", || {
            self.apparmor.set_on_exec(command.confinement.apparmor.as_deref())?;
            // All at once and by pidfd (Linux 5.8): the pid may be somebody else's by now.
            let all = CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWCGROUP
                | CloneFlags::CLONE_NEWPID;
            unshare(CloneFlags::CLONE_FS).and_then(|()| setns(&container.pidfd, all)).map_err(
                |errno| failed_to("join the namespaces of", Path::new("container"))(errno.into()),
            )?;
            let mut plan = self.plan(command, stdio)?;
            if command.identity.base != 0 {
                plan.user_namespace = Some(container.pidfd.as_raw_fd());
            }
            self.spawn(&mut plan, cgroup, false, &|_pid| {})
        })
    }

    /// How many processes have the daemon's `oom_score_adj` since the kernel refused theirs.
    #[must_use]
    pub fn oom_scores_refused(&self) -> u64 {
        self.oom_scores.refused()
    }

    fn spawn(
        &self,
        plan: &mut Plan,
        cgroup: BorrowedFd<'_>,
        new_pid_namespace: bool,
        introduce: Introduce<'_>,
    ) -> Result<Process, Error> {
        let score = plan.oom_score.clone();
        let start = || clone::spawn(plan, cgroup, new_pid_namespace);
        Ok(self.oom_scores.around(score, introduce, start)?)
    }

    /// The capabilities that a container can have at most.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Whether processes can be started with this seccomp profile.
    pub fn check_profile(&self, profile: &seccomp::Profile) -> Result<(), seccomp::Error> {
        self.filters.of(profile, Capabilities::NONE).map(drop)
    }

    /// Whether processes can be started with the AppArmor profile [`apparmor::DEFAULT`].
    pub fn check_apparmor(&self) -> Result<(), &apparmor::Error> {
        self.apparmor.outcome()
    }

    fn enter_template(&self) -> Result<(), Error> {
        unshare(CloneFlags::CLONE_FS)
            .and_then(|()| setns(&self.template, CloneFlags::CLONE_NEWNS))
            .map_err(|errno| failed_to("join", Path::new("template"))(errno.into()))
    }

    fn plan(&self, command: &Command, stdio: &Stdio) -> Result<Plan, Error> {
        let strings = |what: &'static str, texts: &[String]| {
            texts
                .iter()
                .map(|text| CString::new(text.as_str()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_zero| Error::ZeroByte(what))
        };
        let stream = |stream: &Option<OwnedFd>| stream.as_ref().unwrap_or(&self.null).as_raw_fd();
        let program = command.arguments.first().map_or("", String::as_str);
        let Confinement { capabilities, no_new_privileges, seccomp, apparmor: _ } =
            &command.confinement;
        let missing = capabilities.without(self.capabilities);
        if missing != Capabilities::NONE {
            return Err(Error::Capabilities(missing));
        }
        // Programs open /dev/stdout anew, which takes an owner's rights to the pipe.
        let owner = Uid::from_raw(command.identity.base + command.identity.user);
        for stream in [&stdio.input, &stdio.output, &stdio.error].into_iter().flatten() {
            rustix::fs::fchown(stream, Some(owner), None).map_err(|errno| {
                failed_to("give away", Path::new("standard streams"))(errno.into())
            })?;
        }
        Ok(Plan {
            mounts: None,
            directory: CString::new(command.directory.as_str())
                .map_err(|_zero| Error::ZeroByte("the working directory"))?,
            stdio: [stream(&stdio.input), stream(&stdio.output), stream(&stdio.error)],
            kept: Vec::new(),
            root: None,
            user_namespace: None,
            namespaces: 0,
            keeps_identity: false,
            user: command.identity.user,
            group: command.identity.group,
            groups: command.identity.groups.clone(),
            capabilities: capabilities.bits(),
            no_new_privileges: *no_new_privileges,
            ignored_signals: self.ignored_signals,
            filter: self.filters.of(seccomp, *capabilities)?,
            open_files: Some(self.open_files),
            locked_memory: self.locked_memory,
            oom_score: command.oom_score_adj.map(|score| self.oom_scores.prepare(score)),
            program: Program::Paths(strings(
                "the command",
                &candidates(program, &command.environment),
            )?),
            arguments: Strings::new(strings("the command", &command.arguments)?),
            environment: Strings::new(strings("the environment", &command.environment)?),
            error: None,
        })
    }
}

/// Paths to try for `program`, as `execvp` does.
fn candidates(program: &str, environment: &[String]) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    environment
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH)
        .split(':')
        .filter(|directory| !directory.is_empty() && !program.is_empty())
        .map(|directory| format!("{directory}/{program}"))
        .collect()
}

/// PATH of containers whose image does not set one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

/// A namespace of the calling thread.
fn own_namespace(kind: &str) -> Result<OwnedFd, Error> {
    open_namespace(Path::new("/proc/thread-self/ns").join(kind))
}

/// A namespace of a process.
fn namespace_of(pid: Pid, kind: &str) -> Result<OwnedFd, Error> {
    open_namespace(PathBuf::from(format!("/proc/{pid}/ns/{kind}")))
}

fn open_namespace(path: PathBuf) -> Result<OwnedFd, Error> {
    File::open(&path).map(OwnedFd::from).map_err(failed_to("open namespace", &path))
}

/// Runs `work` on a thread of its own, whose namespaces die with it.
fn on_thread<T: Send>(
    name: &str,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, work)
            .map_err(failed_to("start a thread for", Path::new(name)))?
            .join()
            .unwrap_or(Err(Error::Panicked))
    })
}

/// A pipe whose both ends are close-on-exec: `(reader, writer)`.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: `ends` has room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel stored two new descriptors there.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

fn failed_to(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Prepare { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_up_in_the_path_of_its_environment() {
        let environment = ["PATH=/bin:/usr/bin".to_owned()];
        assert_eq!(candidates("sh", &environment), ["/bin/sh", "/usr/bin/sh"]);
        assert_eq!(candidates("./sh", &environment), ["./sh"]);
        assert_eq!(candidates("sh", &[]).len(), 6);
        assert!(candidates("", &environment).is_empty());
    }
}
