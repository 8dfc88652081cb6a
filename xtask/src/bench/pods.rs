//! The daemon's API as the benchmarks need it: over one connection, without anything between.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::{daemon::Daemon, http::Client, stop};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// The channel that tells how a command ended.
const STATUS: u8 = 3;

const PATIENCE: Duration = Duration::from_secs(60);

/// A connection with the daemon.
pub(super) struct Pods {
    client: Client<UnixStream>,
    socket: PathBuf,
}

impl Pods {
    pub(super) fn connect(daemon: &Daemon) -> anyhow::Result<Self> {
        let socket = daemon.socket();
        Ok(Self { client: Client::unix(&socket)?, socket })
    }

    pub(super) fn create(&mut self, pod: &Value) -> anyhow::Result<()> {
        let answer = self.client.request("POST", PODS, &pod.to_string())?;
        answer.text().map(drop).context("create a pod")
    }

    /// Deletes a pod at once and waits until nothing of it is left.
    pub(super) fn delete(&mut self, name: &str) -> anyhow::Result<()> {
        let path = format!("{PODS}/{name}?gracePeriodSeconds=0");
        self.client.request("DELETE", &path, "")?.text().context("delete a pod")?;
        let deadline = Instant::now() + PATIENCE;
        let path = format!("{PODS}/{name}");
        while self.client.request("GET", &path, "")?.status != 404 {
            ensure!(Instant::now() < deadline, "pod {name} stays after it was deleted");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Begins to delete a pod.
    pub(super) fn delete_soon(&mut self, name: &str) -> anyhow::Result<()> {
        let path = format!("{PODS}/{name}?gracePeriodSeconds=0");
        self.client.request("DELETE", &path, "")?.text().map(drop).context("delete a pod")
    }

    /// All pods.
    pub(super) fn list(&mut self) -> anyhow::Result<Vec<Value>> {
        let list = self.client.request("GET", PODS, "")?.text()?;
        let list: Value = serde_json::from_str(&list).context("read a list of pods")?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    pub(super) fn phase(&mut self, name: &str) -> anyhow::Result<String> {
        let pod = self.client.request("GET", &format!("{PODS}/{name}"), "")?.text()?;
        let pod: Value = serde_json::from_str(&pod).context("read a pod")?;
        Ok(pod["status"]["phase"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until the pod is in this phase.
    pub(super) fn wait_for(&mut self, name: &str, phase: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.phase(name)?;
            if now == phase {
                return Ok(());
            }
            stop::check()?;
            if now == "Failed" || Instant::now() >= deadline {
                let pod = self.client.request("GET", &format!("{PODS}/{name}"), "")?.text()?;
                bail!("pod {name} is {now} and not {phase}: {pod}");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs `/bin/true` in a pod's container, and takes the time until it is known how it ended.
    pub(super) fn exec_true(&self, name: &str) -> anyhow::Result<Duration> {
        self.exec(name, &["/bin/true"])
    }

    /// Runs a command in a pod's container, and takes the time until it is known how it ended.
    pub(super) fn exec(&self, name: &str, command: &[&str]) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let mut client = Client::unix(&self.socket)?;
        let command: String = command.iter().map(|word| format!("command={word}&")).collect();
        client.send(&format!(
            "GET {PODS}/{name}/exec?{command}stdout=true&stderr=true HTTP/1.1\r\n\
             Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: cG9kc2NvcGUgYmVuY2htYQ==\r\n\
             Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
        ))?;
        let (status, _) = client.head()?;
        ensure!(status == 101, "exec was answered with {status}");
        loop {
            let message = read_message(&mut client)?;
            if message.first() == Some(&STATUS) {
                let elapsed = start.elapsed();
                let status: Value =
                    serde_json::from_slice(&message[1..]).context("read how exec ended")?;
                ensure!(status["status"] == "Success", "exec ended with {status}");
                return Ok(elapsed);
            }
        }
    }

    /// The address of a pod.
    pub(super) fn ip(&mut self, name: &str) -> anyhow::Result<String> {
        let pod = self.client.request("GET", &format!("{PODS}/{name}"), "")?.text()?;
        let pod: Value = serde_json::from_str(&pod).context("read a pod")?;
        pod["status"]["podIP"].as_str().map(str::to_owned).context("find a pod's address")
    }
}

/// One message of a server, which does not mask and here does not need to fragment.
fn read_message(client: &mut Client<UnixStream>) -> anyhow::Result<Vec<u8>> {
    let header = client.exactly(2)?;
    let length = match header[1] {
        126 => {
            let bytes = client.exactly(2)?;
            usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))
        }
        length @ ..126 => usize::from(length),
        _ => bail!("a message is longer than expected"),
    };
    ensure!(header[0] == 0x82, "a message is not what was expected: {:#x}", header[0]);
    client.exactly(length)
}

/// A pod of one container that sees `shared` as /out.
pub(super) fn pod(
    name: &str,
    rootfs: &Path,
    command: &[&str],
    policy: &str,
    shared: &Path,
) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "restartPolicy": policy,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main",
                "image": format!("dir:{}", rootfs.display()),
                "command": command,
                "volumeMounts": [{ "name": "out", "mountPath": "/out" }],
            }],
            "volumes": [{ "name": "out", "hostPath": { "path": shared, "type": "Directory" } }],
        },
    })
}
