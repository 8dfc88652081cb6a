//! Podscope: runs pods and sees everything they do.
//!
//! - [`node`]: the operations, free of HTTP and command-line concerns.
//! - [`pod`]: one pod's life, from the first cgroup to the last.
//! - [`sandbox`], [`cgroup`], [`network`], [`image`]: what a pod is made of.
//! - [`events`]: what containers did, one by one.
//! - [`probes`]: the eBPF programs and their counters.
//! - [`metrics`], [`api`]: what Prometheus and clients see of it; [`podctl`] is such a client.
//! - [`manifest`], [`config`]: what people write.
//! - [`daemon`]: puts all of it together.

pub mod daemon;

pub mod node;
pub mod pod;

pub mod events;

pub mod cgroup;
pub mod image;
pub mod network;
mod pidfd;
pub mod sandbox;

pub mod probes;

pub mod api;
pub mod metrics;
pub mod podctl;

pub mod config;
pub mod fault;
pub mod manifest;
