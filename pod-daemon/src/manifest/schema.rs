//! Which fields Podscope honours, as data.
//!
//! The names that Kubernetes knows come from the k8s-openapi types, so only what is honoured is
//! listed here. Everything else that Kubernetes knows is "not supported yet", and the rest is
//! unknown. Fields that are unset (`null`), or empty where empty means unset, are always accepted.
//!
//! Fields that change nothing on a node like this one, and that people's manifests carry:
//!
//! | field | accepted when | because |
//! |---|---|---|
//! | `status`, `metadata.{uid, resourceVersion, generation, creationTimestamp, managedFields, selfLink}` | always, dropped | exported manifests carry them, the daemon sets them |
//! | `spec.automountServiceAccountToken` | `false` | there are no service accounts |
//! | `spec.serviceAccountName`, `serviceAccount` | `default` | the same |
//! | `spec.enableServiceLinks` | always | there are no services to link |
//! | `spec.schedulerName` | `default-scheduler` | this node is the only candidate |
//! | `spec.nodeName` | name of this host | it is where the pod runs |
//! | `spec.nodeSelector` | `kubernetes.io/os`, `arch`, `hostname` that fit this host | the same |
//! | `spec.tolerations` | always | the node has no taints |
//! | `spec.priorityClassName` | `system-node-critical`, `system-cluster-critical` | those that Kubernetes is born with |
//! | `spec.os` | `linux` | |
//! | `spec.hostPID`, `hostIPC`, `setHostnameAsFQDN` | `false` | that is how pods run |
//! | `terminationMessagePath`, `terminationMessagePolicy` | at their defaults | the file is not read yet |
//! | `stdin`, `stdinOnce`, `tty` | `false` | that is how containers run |
//! | `volumeMounts[].mountPropagation`, `recursiveReadOnly` | `None`, `Disabled` | that is how mounts are made |

use k8s_openapi::{
    api::core::v1::{
        AppArmorProfile, Capabilities, ConfigMap, ConfigMapEnvSource, ConfigMapKeySelector,
        ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvFromSource,
        EnvVar, EnvVarSource, HostAlias, HostPathVolumeSource, KeyToPath, Lifecycle,
        LocalObjectReference, ObjectFieldSelector, Pod, PodDNSConfig, PodDNSConfigOption, PodOS,
        PodSecurityContext, PodSpec, ResourceRequirements, SeccompProfile, Secret, SecretEnvSource,
        SecretKeySelector, SecretVolumeSource, SecurityContext, Sysctl, Toleration, Volume,
        VolumeMount,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use super::{
    amounts,
    fields::{Known, known},
};

/// A kind of object: what Kubernetes knows of it and what is honoured.
pub(super) struct Type {
    /// Every field that Kubernetes knows.
    pub(super) known: Known,
    /// The fields that are honoured.
    pub(super) fields: &'static [(&'static str, Rule)],
    /// Whether `{}` counts as set: in a volume it chooses the kind of volume.
    pub(super) empty_is_set: bool,
}

/// What a field may hold.
pub(super) enum Rule {
    Text,
    Integer,
    IntegerList,
    Bool,
    TextList,
    TextMap,
    Quantities(&'static [&'static str]),
    Quantity,
    /// Strings of Base64.
    Blobs,
    /// Strings that no message may show.
    Hidden,
    Object(&'static Type),
    List(&'static Type),
    /// Taken as it is.
    Any,
    /// Set by the daemon, so dropped.
    Ours,
    /// Honoured only where the test agrees; the text says for what.
    Only(fn(&Value) -> bool, &'static str),
}

use Rule::{
    Any, Blobs, Bool, Hidden, Integer, IntegerList, List, Object, Only, Ours, Quantities, Quantity,
    Text, TextList, TextMap,
};

const fn of(known: Known, fields: &'static [(&'static str, Rule)]) -> Type {
    Type { known, fields, empty_is_set: false }
}

const FALSE: Rule = Only(|value| value == false, "`false` is");
const DEFAULT_ACCOUNT: Rule = Only(|value| value == "default", "`default` is");

/// `v1.Pod`.
pub(super) static POD: Type = of(
    known::<Pod>,
    &[
        ("apiVersion", Text),
        ("kind", Text),
        ("metadata", Object(&METADATA)),
        ("spec", Object(&POD_SPEC)),
        ("status", Ours),
    ],
);

/// `v1.ConfigMap`.
pub(super) static CONFIG_MAP: Type = of(
    known::<ConfigMap>,
    &[
        ("apiVersion", Text),
        ("kind", Text),
        ("metadata", Object(&METADATA)),
        ("data", TextMap),
        ("binaryData", Blobs),
        ("immutable", Bool),
    ],
);

/// `v1.Secret`.
pub(super) static SECRET: Type = of(
    known::<Secret>,
    &[
        ("apiVersion", Text),
        ("kind", Text),
        ("metadata", Object(&METADATA)),
        ("type", Text),
        ("data", Blobs),
        ("stringData", Hidden),
        ("immutable", Bool),
    ],
);

static METADATA: Type = of(
    known::<ObjectMeta>,
    &[
        ("name", Text),
        ("namespace", Text),
        ("labels", TextMap),
        ("annotations", TextMap),
        ("uid", Ours),
        ("resourceVersion", Ours),
        ("generation", Ours),
        ("creationTimestamp", Ours),
        ("managedFields", Ours),
        ("selfLink", Ours),
    ],
);

static POD_SPEC: Type = of(
    known::<PodSpec>,
    &[
        ("containers", List(&CONTAINER)),
        ("volumes", List(&VOLUME)),
        ("restartPolicy", Text),
        ("terminationGracePeriodSeconds", Integer),
        ("hostname", Text),
        ("shareProcessNamespace", Bool),
        ("hostNetwork", Bool),
        ("automountServiceAccountToken", FALSE),
        ("serviceAccountName", DEFAULT_ACCOUNT),
        ("serviceAccount", DEFAULT_ACCOUNT),
        ("enableServiceLinks", Bool),
        ("schedulerName", Only(|value| value == "default-scheduler", "`default-scheduler` is")),
        ("nodeName", Only(is_this_host, "the name of this host is")),
        ("nodeSelector", Only(selects_this_host, "the os, arch and hostname of this host are")),
        ("tolerations", List(&TOLERATION)),
        ("priority", Integer),
        (
            "priorityClassName",
            Only(
                |value| value.as_str().is_some_and(|name| priority_of(name).is_some()),
                "`system-node-critical` and `system-cluster-critical` are; set `priority`",
            ),
        ),
        ("preemptionPolicy", Text),
        ("resources", Object(&RESOURCES)),
        ("dnsPolicy", Text),
        ("dnsConfig", Object(&DNS)),
        ("hostAliases", List(&HOST_ALIAS)),
        ("imagePullSecrets", List(&REFERENCE)),
        ("os", Object(&OS)),
        ("hostPID", FALSE),
        ("hostIPC", FALSE),
        ("setHostnameAsFQDN", FALSE),
        ("hostUsers", Bool),
        ("securityContext", Object(&POD_SECURITY)),
    ],
);

static OS: Type = of(known::<PodOS>, &[("name", Only(|value| value == "linux", "`linux` is"))]);

static DNS: Type = of(
    known::<PodDNSConfig>,
    &[("nameservers", TextList), ("searches", TextList), ("options", List(&DNS_OPTION))],
);

static DNS_OPTION: Type = of(known::<PodDNSConfigOption>, &[("name", Text), ("value", Text)]);

static HOST_ALIAS: Type = of(known::<HostAlias>, &[("ip", Text), ("hostnames", TextList)]);

static REFERENCE: Type = of(known::<LocalObjectReference>, &[("name", Text)]);

static POD_SECURITY: Type = of(
    known::<PodSecurityContext>,
    &[
        ("runAsUser", Integer),
        ("runAsGroup", Integer),
        ("runAsNonRoot", Bool),
        ("fsGroup", Integer),
        ("fsGroupChangePolicy", Text),
        ("supplementalGroups", IntegerList),
        ("supplementalGroupsPolicy", Text),
        ("seccompProfile", Object(&SECCOMP)),
        ("appArmorProfile", Object(&APPARMOR)),
        ("sysctls", List(&SYSCTL)),
    ],
);

static SECCOMP: Type = of(known::<SeccompProfile>, &[("type", Text), ("localhostProfile", Text)]);

static APPARMOR: Type = of(known::<AppArmorProfile>, &[("type", Text), ("localhostProfile", Text)]);

static SYSCTL: Type = of(known::<Sysctl>, &[("name", Text), ("value", Text)]);

static CAPABILITIES: Type = of(known::<Capabilities>, &[("add", TextList), ("drop", TextList)]);

static TOLERATION: Type = of(
    known::<Toleration>,
    &[("effect", Any), ("key", Any), ("operator", Any), ("tolerationSeconds", Any), ("value", Any)],
);

static CONTAINER: Type = of(
    known::<Container>,
    &[
        ("name", Text),
        ("image", Text),
        ("imagePullPolicy", Text),
        ("command", TextList),
        ("args", TextList),
        ("env", List(&ENV)),
        ("envFrom", List(&ENV_FROM)),
        ("workingDir", Text),
        ("volumeMounts", List(&MOUNT)),
        ("ports", List(&PORT)),
        ("resources", Object(&RESOURCES)),
        ("lifecycle", Object(&LIFECYCLE)),
        ("securityContext", Object(&SECURITY)),
        (
            "terminationMessagePath",
            Only(|value| value == "/dev/termination-log", "`/dev/termination-log` is"),
        ),
        ("terminationMessagePolicy", Only(|value| value == "File", "`File` is")),
        ("stdin", FALSE),
        ("stdinOnce", FALSE),
        ("tty", FALSE),
    ],
);

static LIFECYCLE: Type = of(known::<Lifecycle>, &[]);

static SECURITY: Type = of(
    known::<SecurityContext>,
    &[
        ("allowPrivilegeEscalation", Bool),
        ("privileged", Bool),
        ("readOnlyRootFilesystem", Bool),
        ("runAsUser", Integer),
        ("runAsGroup", Integer),
        ("runAsNonRoot", Bool),
        ("capabilities", Object(&CAPABILITIES)),
        ("procMount", Text),
        ("seccompProfile", Object(&SECCOMP)),
        ("appArmorProfile", Object(&APPARMOR)),
    ],
);

static ENV: Type =
    of(known::<EnvVar>, &[("name", Text), ("value", Text), ("valueFrom", Object(&VALUE_FROM))]);

static VALUE_FROM: Type = of(
    known::<EnvVarSource>,
    &[
        ("configMapKeyRef", Object(&CONFIG_KEY)),
        ("secretKeyRef", Object(&SECRET_KEY)),
        ("fieldRef", Object(&FIELD)),
    ],
);

static CONFIG_KEY: Type =
    of(known::<ConfigMapKeySelector>, &[("name", Text), ("key", Text), ("optional", Bool)]);

static SECRET_KEY: Type =
    of(known::<SecretKeySelector>, &[("name", Text), ("key", Text), ("optional", Bool)]);

static FIELD: Type = of(
    known::<ObjectFieldSelector>,
    &[("apiVersion", Only(|value| value == "v1", "`v1` is")), ("fieldPath", Text)],
);

static ENV_FROM: Type = of(
    known::<EnvFromSource>,
    &[("prefix", Text), ("configMapRef", Object(&CONFIG_ENV)), ("secretRef", Object(&SECRET_ENV))],
);

static CONFIG_ENV: Type = of(known::<ConfigMapEnvSource>, &[("name", Text), ("optional", Bool)]);

static SECRET_ENV: Type = of(known::<SecretEnvSource>, &[("name", Text), ("optional", Bool)]);

static MOUNT: Type = of(
    known::<VolumeMount>,
    &[
        ("name", Text),
        ("mountPath", Text),
        ("readOnly", Bool),
        ("mountPropagation", Only(|value| value == "None", "`None` is")),
        ("recursiveReadOnly", Only(|value| value == "Disabled", "`Disabled` is")),
    ],
);

static PORT: Type = of(
    known::<ContainerPort>,
    &[
        ("name", Text),
        ("containerPort", Integer),
        ("protocol", Text),
        ("hostPort", Integer),
        ("hostIP", Text),
    ],
);

const AMOUNTS: Rule = Quantities(amounts::NAMES);

static RESOURCES: Type =
    of(known::<ResourceRequirements>, &[("limits", AMOUNTS), ("requests", AMOUNTS)]);

static VOLUME: Type = Type {
    known: known::<Volume>,
    fields: &[
        ("name", Text),
        ("emptyDir", Object(&EMPTY_DIR)),
        ("hostPath", Object(&HOST_PATH)),
        ("configMap", Object(&CONFIG_VOLUME)),
        ("secret", Object(&SECRET_VOLUME)),
    ],
    empty_is_set: true,
};

static EMPTY_DIR: Type =
    of(known::<EmptyDirVolumeSource>, &[("medium", Text), ("sizeLimit", Quantity)]);

static HOST_PATH: Type = of(known::<HostPathVolumeSource>, &[("path", Text), ("type", Text)]);

static CONFIG_VOLUME: Type = of(
    known::<ConfigMapVolumeSource>,
    &[("name", Text), ("items", List(&ITEM)), ("defaultMode", Integer), ("optional", Bool)],
);

static SECRET_VOLUME: Type = of(
    known::<SecretVolumeSource>,
    &[("secretName", Text), ("items", List(&ITEM)), ("defaultMode", Integer), ("optional", Bool)],
);

static ITEM: Type = of(known::<KeyToPath>, &[("key", Text), ("path", Text), ("mode", Integer)]);

/// The priority of a class that Kubernetes is born with.
pub(super) fn priority_of(class: &str) -> Option<i32> {
    match class {
        "system-cluster-critical" => Some(2_000_000_000),
        "system-node-critical" => Some(2_000_001_000),
        _ => None,
    }
}

fn is_this_host(value: &Value) -> bool {
    nix::unistd::gethostname().is_ok_and(|name| name.to_str() == value.as_str())
}

fn selects_this_host(value: &Value) -> bool {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    value.as_object().is_some_and(|selector| {
        selector.iter().all(|(key, value)| match key.as_str() {
            "kubernetes.io/os" => value == "linux",
            "kubernetes.io/arch" => value == arch,
            "kubernetes.io/hostname" => is_this_host(value),
            _ => false,
        })
    })
}
