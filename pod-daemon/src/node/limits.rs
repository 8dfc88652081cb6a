//! Limits that this node can enforce, and those that it cannot.

use k8s_openapi::api::core::v1::Pod;

use super::{Error, Node, UnenforcedLimits};
use crate::pod::{self, Key};

impl Node {
    /// A limit that cannot be enforced is not a limit: refused unless the node's owner said that
    /// it may be ignored.
    pub(super) fn check_limits(&self, pod: &Pod) -> Result<(), Error> {
        let missing = pod::unenforceable(pod, self.shared.hierarchy.controllers());
        if missing.is_empty()
            && self.shared.io_device.is_none()
            && self.shared.settings.unenforced_limits == UnenforcedLimits::Deny
            && let Some(field) = pod::io_limits(pod).into_iter().next()
        {
            return Err(Error::Invalid {
                field,
                message: format!(
                    "this node cannot enforce the limit, since {} is not on a block device; put the data directory \
                     (--data-dir) on one, or start the daemon with --unenforced-limits=warn to run the pod without it",
                    self.shared.settings.data_dir.display()
                ),
            });
        }
        if let (Some((field, controller)), UnenforcedLimits::Deny) =
            (missing.first(), self.shared.settings.unenforced_limits)
        {
            return Err(Error::Invalid {
                field: field.clone(),
                message: format!(
                    "this node cannot enforce the limit, since the cgroup v2 controller `{controller}` is not \
                     available below {}; boot with systemd.unified_cgroup_hierarchy=1 (and cgroup_no_v1=all), or start \
                     the daemon with --unenforced-limits=warn to run the pod without it",
                    self.shared.hierarchy.root().display()
                ),
            });
        }
        for (field, controller) in missing {
            tracing::warn!(pod = %Key::of(pod), %field, controller, "limit is not enforced");
        }
        Ok(())
    }

    /// Namespace, pod and controller of every limit that is not enforced.
    #[must_use]
    pub fn unenforced_limits(&self) -> Vec<(String, String, String)> {
        let controllers = self.shared.hierarchy.controllers();
        let mut all = Vec::new();
        for pod in self.shared.table.snapshots() {
            let mut missing: Vec<_> = pod
                .containers
                .iter()
                .flat_map(|container| container.limits.unenforceable(controllers))
                .collect();
            missing.sort_unstable();
            missing.dedup();
            for controller in missing {
                all.push((pod.namespace.clone(), pod.name.clone(), controller.to_owned()));
            }
        }
        all
    }
}
