//! The kernel tests: scenarios with a real daemon on a real kernel.
//!
//! `cargo xtask test` runs them on this host and in VMs. Each starts a daemon of its own, and
//! checks at its end that nothing is left behind.

mod exactness;
mod files;
mod lifecycle;
mod limits;
mod network;
mod prometheus;
mod recovery;
mod restarts;
mod security;
