//! /metrics/cadvisor: what the kubelet serves there, for the dashboards and rules that exist.
//!
//! The names, labels and units are cAdvisor's, whatever Podscope would have called them. The numbers
//! are read from the cgroups and from the pods' network namespaces when they are asked for, and by
//! no one but who asks for this page.

mod cpu;
mod disk;
mod document;
mod interface;
mod machine;
mod memory;
mod network;
mod process;
mod reading;
#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;

pub use self::document::documentation;
use self::reading::Cgroup;
pub(super) use self::reading::Reading;
use super::{
    base::Base,
    family::{Domain, Origin, Part},
    sheet::Sheet,
};

pub(super) static DOMAINS: [Domain<Source>; 7] = [
    cpu::CPU,
    cpu::PRESSURE,
    memory::DOMAIN,
    network::DOMAIN,
    disk::DOMAIN,
    process::DOMAIN,
    machine::DOMAIN,
];

/// The origins of cAdvisor's metrics.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// No labels of its own.
    Node(fn(&Reading, &mut Sheet<'_>)),
    /// Labels that tell what the cgroup is: a container's, an infra program's, a pod's.
    Cgroup(fn(&Cgroup, &mut Sheet<'_>)),
}

impl Origin for Source {
    type Reading = Reading;

    fn labels(self) -> &'static [&'static str] {
        match self {
            Self::Node(_) => &[],
            Self::Cgroup(_) => &reading::LABELS,
        }
    }

    fn each(self, reading: &Reading, part: Part<'_>) {
        match self {
            Self::Node(write) => part(Base::Values(&[]), &|sheet| write(reading, sheet)),
            Self::Cgroup(write) => {
                for cgroup in reading.cgroups() {
                    let values = cgroup.labels.each_ref().map(String::as_str);
                    part(Base::Values(&values), &|sheet| {
                        write(cgroup, sheet);
                    });
                }
            }
        }
    }
}
