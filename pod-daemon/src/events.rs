//! What containers did, one by one: told as it happens, remembered for a while, and summed up when
//! somebody asks how a pod lived and died.
//!
//! Numbers are not counted here: what is lost on the way to here is missing from the story, and nowhere
//! else. Knows neither HTTP nor eBPF.

mod advice;
mod archive;
mod chronicle;
mod event;
mod reader;
mod report;
mod trace;

pub use self::{
    advice::{Advice, Nearest},
    archive::Archive,
    chronicle::{Chronicle, Filter, Ring, Subscription, Told, Whose},
    event::{Event, What},
    report::{Connections, ContainerReport, Report, Usage, VolumeReport},
    trace::{Detail, Trace, Traces},
};
pub(crate) use self::{event::booted, reader::start};
