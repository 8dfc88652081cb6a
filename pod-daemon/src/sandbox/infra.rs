//! The infra program of a pod: what holds the pod's namespaces.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::Pid,
};
use rustix::mount::MountAttrFlags;

use super::{
    Capabilities, Error, FIRST_KEPT, Sandboxes,
    child::{Plan, Program, Strings},
    clone::{self, Process},
    failed_to, mount, namespace_of, on_thread, open_path, own_namespace, rootfs, seccomp,
    sysctl::{self, Sysctl},
    userns::{self, UserNamespace},
};
use crate::{fault, manifest::INFRA_OOM_SCORE_ADJ};

/// The user that the infra program runs as: nobody's.
const INFRA_USER: u32 = 65_535;

/// The infra container of a pod.
#[derive(Debug)]
pub struct Infra {
    /// The process.
    pub process: Process,
    mount: OwnedFd,
    network: OwnedFd,
    ipc: OwnedFd,
    uts: OwnedFd,
    pub(super) pid: Option<OwnedFd>,
    pub(super) users: Option<UserNamespace>,
}

/// Where a pod's network comes from.
pub enum NetworkMode<'a> {
    /// The host's own.
    Host,
    /// A new namespace, to be configured by this function, which runs in it.
    Pod(&'a (dyn Fn(BorrowedFd<'_>) -> io::Result<()> + Sync)),
}

/// What a pod has for itself, and its containers have in common.
#[derive(Debug)]
pub struct OwnNamespaces {
    /// Whether the containers see each other's processes.
    pub share_pids: bool,
    /// Settings of the kernel.
    pub sysctls: Vec<Sysctl>,
    /// Whose user ids.
    pub users: Users,
}

/// Whose user ids a pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Users {
    /// The node's.
    Node,
    /// Its own.
    Pod,
}

impl Sandboxes {
    /// Starts the infra container of a pod in `cgroup`. It keeps the descriptors `kept` open, from
    /// number [`FIRST_KEPT`] on.
    pub fn start_infra(
        &self,
        cgroup: BorrowedFd<'_>,
        hostname: &str,
        network: &NetworkMode<'_>,
        own: &OwnNamespaces,
        kept: &[BorrowedFd<'_>],
    ) -> Result<Infra, Error> {
        on_thread("infra", || {
            let here = Path::new("namespaces");
            let kept = out_of_the_way(kept)?;
            fault::at("infra namespaces").map_err(failed_to("make", here))?;
            self.enter_template()?;
            let mut flags = CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
            if matches!(network, NetworkMode::Pod(_)) {
                flags |= CloneFlags::CLONE_NEWNET;
            }
            let unshared =
                |flags| unshare(flags).map_err(|errno| failed_to("unshare", here)(errno.into()));
            unshared(CloneFlags::CLONE_NEWNS)?;
            let OwnNamespaces { share_pids, sysctls, users } = own;
            let users = match users {
                Users::Node => {
                    unshared(flags)?;
                    None
                }
                // Namespaces belong to the user namespace that their maker is in.
                Users::Pod => Some(self.make_users(cgroup, flags)?),
            };
            nix::unistd::sethostname(hostname).map_err(|errno| {
                failed_to("set the hostname", Path::new(hostname))(errno.into())
            })?;
            let owner = users.as_ref().map_or(0, UserNamespace::base).to_string();
            let memory = mount::new(
                "tmpfs",
                &[("mode", "1777"), ("size", "65536k"), ("uid", &owner), ("gid", &owner)],
                MountAttrFlags::MOUNT_ATTR_NOSUID
                    | MountAttrFlags::MOUNT_ATTR_NODEV
                    | MountAttrFlags::MOUNT_ATTR_NOEXEC,
            );
            let target = Path::new(rootfs::SHARED_MEMORY);
            memory
                .and_then(|memory| mount::attach(memory, open_path(target)?))
                .map_err(failed_to("mount", target))?;
            let (network_namespace, ipc, uts, mount) = (
                own_namespace("net")?,
                own_namespace("ipc")?,
                own_namespace("uts")?,
                own_namespace("mnt")?,
            );
            if let NetworkMode::Pod(configure) = network {
                configure(network_namespace.as_fd())
                    .map_err(failed_to("configure the network of", Path::new(hostname)))?;
            }
            sysctl::apply(sysctls, users.as_ref().map(UserNamespace::base))?;
            let mut plan = self.infra_plan()?;
            plan.kept = kept.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
            plan.user_namespace = userns::descriptor(users.as_ref());
            fault::at("infra process").map_err(failed_to("start", here))?;
            let process = self.spawn(&mut plan, cgroup, true, &|_pid| {})?;
            let pid = share_pids.then(|| namespace_of(process.pid, "pid")).transpose();
            let pid = pid.inspect_err(|_error| process.abandon())?;
            Ok(Infra { process, mount, network: network_namespace, ipc, uts, pid, users })
        })
    }

    fn infra_plan(&self) -> Result<Plan, Error> {
        Ok(Plan {
            mounts: None,
            // Its thread's has the pods' files and the node's /proc, and who may trace the infra program in
            // a shared PID namespace may look at its root.
            root: Some(self.nothing.as_raw_fd()),
            directory: c"/".to_owned(),
            stdio: [self.null.as_raw_fd(); 3],
            kept: Vec::new(),
            user_namespace: None,
            namespaces: 0,
            keeps_identity: false,
            user: INFRA_USER,
            group: INFRA_USER,
            groups: Vec::new(),
            capabilities: 0,
            no_new_privileges: true,
            ignored_signals: self.ignored_signals,
            filter: self.filters.of(&seccomp::Profile::RuntimeDefault, Capabilities::NONE)?,
            open_files: Some(self.open_files),
            locked_memory: self.locked_memory,
            oom_score: Some(self.oom_scores.prepare(INFRA_OOM_SCORE_ADJ)),
            program: Program::Descriptor(self.infra.as_raw_fd()),
            arguments: Strings::new(vec![c"infra".to_owned()]),
            environment: Strings::new(Vec::new()),
            error: None,
        })
    }

    /// Makes a user namespace, and `others` that belong to it, which the calling thread joins.
    ///
    /// A thread of a daemon cannot be in another user namespace than the rest of it, so a process
    /// makes them at birth. It holds them until there are descriptors.
    fn make_users(
        &self,
        cgroup: BorrowedFd<'_>,
        others: CloneFlags,
    ) -> Result<UserNamespace, Error> {
        userns::check_kernel()?;
        let range = self.ids.take().ok_or(Error::NoIds)?;
        let mut plan = self.infra_plan()?;
        plan.namespaces = (CloneFlags::CLONE_NEWUSER | others).bits();
        plan.keeps_identity = true;
        // It is gone in a moment.
        plan.oom_score = None;
        let holder = clone::spawn(&mut plan, cgroup, false)?;
        let users = UserNamespace::give_ids(holder.pid, range).and_then(|users| {
            setns(&holder.pidfd, others).map_err(|errno| {
                failed_to("join the namespaces of", Path::new("users"))(errno.into())
            })?;
            Ok(users)
        });
        holder.abandon();
        users
    }

    /// Takes over the infra program of an earlier daemon; `None` if it does not run any more.
    /// `start_time` tells it from another process with its pid.
    pub fn adopt_infra(
        &self,
        pid: Pid,
        start_time: u64,
        share_pids: bool,
    ) -> Result<Option<Infra>, Error> {
        let process = Process::adopt(pid, start_time)
            .map_err(failed_to("find the infra program", Path::new("/proc")))?;
        let Some(process) = process else { return Ok(None) };
        let namespace = |kind| namespace_of(pid, kind);
        let namespaces = || {
            let pids = share_pids.then(|| namespace("pid")).transpose()?;
            let (mount, network) = (namespace("mnt")?, namespace("net")?);
            Ok::<_, Error>((mount, network, namespace("ipc")?, namespace("uts")?, pids))
        };
        let namespaces = namespaces();
        let users = UserNamespace::of(pid, &self.ids);
        if !process.is_alive() {
            // What was opened may be another process's.
            return Ok(None);
        }
        let (mount, network, ipc, uts, pid) = namespaces?;
        Ok(Some(Infra { process, mount, network, ipc, uts, pid, users: users? }))
    }
}

impl Infra {
    /// Joins what all containers of a pod share.
    pub(super) fn join(&self, extra: CloneFlags) -> Result<(), Error> {
        let mut namespaces = vec![
            (&self.network, CloneFlags::CLONE_NEWNET),
            (&self.ipc, CloneFlags::CLONE_NEWIPC),
            (&self.uts, CloneFlags::CLONE_NEWUTS),
        ];
        if extra.contains(CloneFlags::CLONE_NEWNS) {
            namespaces.push((&self.mount, CloneFlags::CLONE_NEWNS));
        }
        if let Some(pid) = &self.pid {
            namespaces.push((pid, CloneFlags::CLONE_NEWPID));
        }
        for (namespace, kind) in namespaces {
            setns(namespace, kind).map_err(|errno| {
                failed_to("join a namespace of", Path::new("infra"))(errno.into())
            })?;
        }
        Ok(())
    }

    /// What root of the pod is on the node.
    #[must_use]
    pub fn user_base(&self) -> u32 {
        self.users.as_ref().map_or(0, UserNamespace::base)
    }

    /// The pod's network namespace.
    #[must_use]
    pub fn network(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }
}

/// Copies of descriptors, with numbers beyond those that they will have in the infra program.
fn out_of_the_way(descriptors: &[BorrowedFd<'_>]) -> Result<Vec<OwnedFd>, Error> {
    let first = i32::try_from(FIRST_KEPT + descriptors.len()).unwrap_or(i32::MAX);
    descriptors
        .iter()
        .map(|descriptor| rustix::io::fcntl_dupfd_cloexec(descriptor, first))
        .collect::<Result<_, _>>()
        .map_err(|errno| {
            failed_to("copy the descriptors of", Path::new("infra"))(io::Error::from(errno))
        })
}
