//! A pod's sandbox: its network, its infra program, and its files.

use std::{
    io,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container, ContainerPort};

use super::{
    About, Waiting,
    ground::Ground,
    logs::{self, Output, Outputs},
    record::{ProcessRecord, SandboxRecord},
    security,
    volumes::{self, Volumes},
};
use crate::{
    fault,
    network::{Port, Protocol},
    node::{PodSnapshot, Shared},
    pidfd::Pidfd,
    sandbox::{Infra, NetworkMode, OwnNamespaces, remove_all},
};

/// What containers of a pod share. It can be made anew in a living pod.
pub(super) struct Sandbox {
    shared: Arc<Shared>,
    about: Arc<About>,
    pub(super) ground: Arc<Ground>,
    pub(super) volumes: Volumes,
    outputs: Outputs,
    ip: Option<Ipv4Addr>,
    /// Gone when the sandbox is stopped: its descriptors keep the namespaces alive.
    infra: Mutex<Option<Arc<Infra>>>,
}

impl Sandbox {
    /// Makes the pod's files and network, and starts the infra program.
    pub(super) fn make(
        shared: Arc<Shared>,
        about: Arc<About>,
        ground: Arc<Ground>,
    ) -> Result<Self, Waiting> {
        let fail = |error: &dyn std::error::Error| Waiting::new("FailedCreatePodSandBox", error);
        let host_network = about.spec.host_network.unwrap_or(false);
        fault::at("address").map_err(|error| fail(&error))?;
        let ip = if host_network {
            None
        } else {
            Some(shared.network.allocate(&about.uid).map_err(|error| fail(&error))?)
        };
        fault::at("volumes").map_err(|error| fail(&error))?;
        let volumes = volumes::make(&shared, &about, ip)?;
        fault::at("ports").map_err(|error| fail(&error))?;
        if let Some(ip) = ip {
            let ports = host_ports(&about.spec.containers);
            shared.network.publish(&about.uid, ip, &ports).map_err(|error| fail(&error))?;
        }
        let hostname = volumes::hostname(&about, host_network);
        let connect =
            |namespace: std::os::fd::BorrowedFd<'_>| shared.network.connect(&about.uid, namespace);
        let network = if host_network { NetworkMode::Host } else { NetworkMode::Pod(&connect) };
        let share_pids = about.spec.share_process_namespace.unwrap_or(false);
        let cgroup = std::os::fd::AsFd::as_fd(ground.infra());
        fault::at("output").map_err(|error| fail(&error))?;
        let outputs = Outputs::new(about.spec.containers.len()).map_err(|error| fail(&error))?;
        let kept = outputs.descriptors();
        let own = OwnNamespaces {
            share_pids,
            sysctls: security::sysctls(&about.spec),
            users: security::users(&about.spec),
        };
        let infra = shared
            .sandboxes
            .start_infra(cgroup, &hostname, &network, &own, &kept)
            .map_err(|error| fail(&error));
        let infra = match infra {
            Ok(infra) => infra,
            Err(waiting) => {
                // A veth that was made before the failure must not be in the way of the next try,
                // and ports must not lead nowhere.
                shared.network.disconnect(&about.uid).ok();
                return Err(waiting);
            }
        };
        if !host_network {
            ground.watch_network(Some(infra.network()));
        }
        let infra = Mutex::new(Some(Arc::new(infra)));
        Ok(Self { shared, about, ground, volumes, outputs, ip, infra })
    }

    /// Takes over a sandbox of an earlier daemon; `None` if its infra program does not run any more.
    pub(super) fn adopt(
        shared: Arc<Shared>,
        about: Arc<About>,
        ground: Arc<Ground>,
        record: &SandboxRecord,
    ) -> Result<Option<Self>, crate::sandbox::Error> {
        let SandboxRecord { ip, infra } = *record;
        if let Some(ip) = ip {
            shared.network.adopt(&about.uid, ip, &host_ports(&about.spec.containers));
        }
        let share_pids = about.spec.share_process_namespace.unwrap_or(false);
        let Some(infra) = shared.sandboxes.adopt_infra(infra.pid(), infra.start(), share_pids)?
        else {
            return Ok(None);
        };
        let Ok(outputs) = Outputs::adopt(infra.process.pid, about.spec.containers.len()) else {
            // It has just ended, or is none of this version's.
            return Ok(None);
        };
        if ip.is_some() {
            ground.watch_network(Some(infra.network()));
        }
        let volumes = volumes::find(&shared, &about);
        let infra = Mutex::new(Some(Arc::new(infra)));
        Ok(Some(Self { shared, about, ground, volumes, outputs, ip, infra }))
    }

    /// What a later daemon needs to take it over; `None` if it is stopped.
    pub(super) fn record(&self) -> Option<SandboxRecord> {
        let infra = ProcessRecord::of(self.infra()?.process.pid)?;
        Some(SandboxRecord { ip: self.ip, infra })
    }

    /// The pipes of a container.
    pub(super) fn output(&self, index: usize) -> Arc<Output> {
        self.outputs.container(index)
    }

    pub(super) fn ip(&self) -> Option<Ipv4Addr> {
        self.ip
    }

    /// The infra program, while it runs.
    pub(super) fn infra(&self) -> Option<Arc<Infra>> {
        self.infra.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Completes when the infra program has ended.
    pub(super) fn infra_ended(&self) -> Option<impl Future<Output = ()> + 'static> {
        let infra = self.infra()?;
        let pidfd = Pidfd::new(&infra.process.pidfd).ok()?;
        Some(async move {
            pidfd.wait().await.ok();
        })
    }

    pub(super) fn kill_containers(&self) {
        self.ground.kill_containers();
    }

    /// Ends the infra program and takes the pod off the network, after a last look at what goes with
    /// it. The containers must be dead.
    pub(super) fn stop(&self, last: &PodSnapshot) {
        self.shared.look(last);
        self.ground.kill_infra();
        let infra = self.infra.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.ground.watch_network(None);
        drop(infra);
        if let Err(error) = self.shared.network.disconnect(&self.about.uid) {
            tracing::warn!(pod = %self.about.key, %error, "interface left behind");
        }
    }
}

/// The ports of the node that lead to containers. What validation has let through is in range.
fn host_ports(containers: &[Container]) -> Vec<Port> {
    let ports = containers.iter().flat_map(|container| &container.ports).flatten();
    let port = |port: &ContainerPort| {
        let host_ip = port.host_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
        Some(Port {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            },
            host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
            host_port: u16::try_from(port.host_port?).ok().filter(|number| *number != 0)?,
            pod_port: u16::try_from(port.container_port).ok()?,
        })
    };
    ports.filter_map(port).collect()
}

/// Where a pod's files are.
pub(super) fn directory(shared: &Shared, about: &About) -> PathBuf {
    shared.pod_directory(&about.uid)
}

/// Removes a pod's files and logs, and gives its address back.
pub(super) fn remove_traces(shared: &Shared, about: &About) {
    shared.network.release(&about.uid);
    volumes::remove(shared, about);
    let logs = logs::directory(&shared.settings.log_dir, &about.key, &about.uid);
    for path in [directory(shared, about), logs] {
        // The kernel lets go of a dead container's overlay a moment after its last process.
        for _ in 0..10 {
            match remove_all(&path) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "files are still in use");
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        if path.exists() {
            tracing::warn!(path = %path.display(), "files left behind; the next start removes them");
        }
    }
}
