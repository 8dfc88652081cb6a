//! The kernel tests: scenarios with a real daemon on a real kernel.
//!
//! `cargo xtask test` runs them on this host and in VMs. Each starts a daemon of its own, and
//! checks at its end that nothing is left behind.
#![allow(clippy::print_stdout, reason = "what a test says is shown with its result")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

mod admission;
mod adoption;
mod cache;
mod cadvisor;
mod ceiling;
mod chaos;
mod churn;
mod clients;
mod cost;
mod disk;
mod drops;
mod events;
mod exactness;
mod exemplars;
mod files;
mod governor;
mod held;
mod hostports;
mod idle;
mod kernels;
mod lifecycle;
mod limits;
mod network;
mod operations;
mod processes;
mod prometheus;
mod reconcile;
mod recovery;
mod registry;
mod restarts;
mod security;
mod tcp;
mod trace;
mod traffic;
mod volumes;
