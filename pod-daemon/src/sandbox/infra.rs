//! The infra program of a pod, as a later daemon finds it.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

use nix::unistd::Pid;

use super::{
    Error, FIRST_KEPT, Infra, Sandboxes, clone::Process, failed_to, namespace_of,
    userns::UserNamespace,
};

impl Sandboxes {
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

/// Copies of descriptors, with numbers beyond those that they will have in the infra program.
pub(super) fn out_of_the_way(descriptors: &[BorrowedFd<'_>]) -> Result<Vec<OwnedFd>, Error> {
    let first = i32::try_from(FIRST_KEPT + descriptors.len()).unwrap_or(i32::MAX);
    descriptors
        .iter()
        .map(|descriptor| rustix::io::fcntl_dupfd_cloexec(descriptor, first))
        .collect::<Result<_, _>>()
        .map_err(|errno| {
            failed_to("copy the descriptors of", Path::new("infra"))(io::Error::from(errno))
        })
}
