//! What a test asks of its daemon, and what it waits for.

use std::{
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use serde_json::Value;

use super::Daemon;
use crate::{
    Metrics, binary, eventually,
    http::{self, Answer},
    manifest,
    program::{self, Output},
    seconds, state,
};

impl Daemon {
    /// Asks the API.
    #[track_caller]
    #[must_use]
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let body = body.map(Value::to_string).unwrap_or_default();
        http::unix(&self.socket(), method, path, &body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()))
    }

    /// Runs `podctl`.
    #[track_caller]
    #[must_use]
    pub fn podctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary("podctl"));
        command.args(arguments).env("PODSCOPE_SOCKET", self.socket());
        program::run(&mut command, seconds(40))
    }

    /// Scrapes /metrics.
    #[track_caller]
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.scrape("/metrics")
    }

    /// Scrapes a page.
    #[track_caller]
    #[must_use]
    pub fn scrape(&self, page: &str) -> Metrics {
        let answer = http::tcp(self.metrics, page).expect("scrape");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Metrics::parse(answer.body).since(self.skipped.clone())
    }

    /// Applies a manifest.
    #[track_caller]
    pub fn apply(&self, manifest: &Value) {
        let path = format!("/api/v1/namespaces/default/{}", plural(manifest));
        let answer = self.api("POST", &path, Some(manifest));
        assert_eq!(answer.status, 201, "{}", answer.body);
    }

    /// Replaces an object that is there by one with the same name.
    #[track_caller]
    pub fn replace(&self, manifest: &Value) {
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/default/{}/{name}", plural(manifest));
        let answer = self.api("PUT", &path, Some(manifest));
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    /// Starts a pod.
    #[track_caller]
    pub fn run(&self, pod: manifest::Pod) {
        self.apply(&pod.into_value(&self.image()));
    }

    /// Why a pod is refused.
    #[track_caller]
    #[must_use]
    pub fn refused(&self, pod: manifest::Pod) -> String {
        let pod = pod.into_value(&self.image());
        let answer = self.api("POST", "/api/v1/namespaces/default/pods", Some(&pod));
        assert!(answer.status >= 400, "it was admitted: {}", answer.body);
        answer.json()["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The pod as the API has it; null if it is not there.
    #[track_caller]
    #[must_use]
    pub fn pod(&self, name: &str) -> Value {
        let answer = self.api("GET", &format!("/api/v1/namespaces/default/pods/{name}"), None);
        if answer.status == 200 { answer.json() } else { Value::Null }
    }

    /// Waits until the pod is as it should be.
    #[track_caller]
    pub fn wait_for(&self, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + seconds(20);
        loop {
            let pod = self.pod(name);
            if is(&pod) {
                return pod;
            }
            assert!(
                Instant::now() < deadline,
                "pod {name} is never {what}: {:#}\n{}",
                pod["status"],
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until all containers of the pod run.
    #[track_caller]
    pub fn wait_ready(&self, name: &str) -> Value {
        self.wait_for(name, "ready", |pod| {
            let containers = pod["status"]["containerStatuses"].as_array();
            containers.is_some_and(|all| {
                !all.is_empty() && all.iter().all(|container| container["ready"] == true)
            })
        })
    }

    /// Waits until the pod is over; returns it.
    #[track_caller]
    pub fn wait_over(&self, name: &str) -> Value {
        self.wait_for(name, "over", |pod| {
            pod["status"]["phase"] == "Succeeded" || pod["status"]["phase"] == "Failed"
        })
    }

    /// Runs a pod of one container to its end, and returns what it wrote. The pod stays.
    #[track_caller]
    pub fn output_of(&self, pod: manifest::Pod, name: &str) -> String {
        self.run(pod);
        self.wait_over(name);
        self.logs(name, "")
    }

    /// What a container has written; the query may name the container.
    #[track_caller]
    #[must_use]
    pub fn logs(&self, name: &str, query: &str) -> String {
        let path = format!("/api/v1/namespaces/default/pods/{name}/log?{query}");
        let answer = self.api("GET", &path, None);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// Waits until a container has written this.
    #[track_caller]
    pub fn wait_logged(&self, name: &str, query: &str, text: &str) -> String {
        self.wait_ready_or_over(name);
        eventually(&format!("{name} writes {text:?}"), seconds(20), || {
            Some(self.logs(name, query)).filter(|log| log.contains(text))
        })
    }

    #[track_caller]
    fn wait_ready_or_over(&self, name: &str) {
        self.wait_for(name, "started", |pod| {
            let phase = pod["status"]["phase"].as_str().unwrap_or("Pending");
            phase != "Pending"
        });
    }

    /// Deletes a pod and waits until it is gone.
    #[track_caller]
    pub fn delete(&self, name: &str) {
        let path = format!("/api/v1/namespaces/default/pods/{name}");
        let answer = self.api("DELETE", &path, None);
        assert!(answer.status < 300, "{}", answer.body);
        self.wait_for(name, "gone", Value::is_null);
    }

    /// The folder of a pod's own files.
    #[must_use]
    pub fn files_of(&self, pod: &Value) -> PathBuf {
        self.folder.join("data/pods").join(pod["metadata"]["uid"].as_str().unwrap_or_default())
    }

    /// The cgroup of a container, or of the infra program as `_infra`.
    #[must_use]
    pub fn cgroup(&self, pod: &Value, container: &str) -> PathBuf {
        self.cgroups.join(pod["metadata"]["uid"].as_str().unwrap_or_default()).join(container)
    }

    /// The first process of a container.
    #[track_caller]
    #[must_use]
    pub fn pid_of(&self, pod: &Value, container: &str) -> Pid {
        let list = self.cgroup(pod, container).join("cgroup.procs");
        let first = state::pids(&list).first().copied();
        Pid::from_raw(first.unwrap_or_else(|| panic!("no process in {}", list.display())))
    }
}

/// The kind of a manifest in the paths of the API.
fn plural(manifest: &Value) -> &'static str {
    match manifest["kind"].as_str() {
        Some("Pod") => "pods",
        Some("Secret") => "secrets",
        _ => "configmaps",
    }
}
