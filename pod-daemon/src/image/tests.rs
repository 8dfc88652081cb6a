//! Images made by hand: each transport, what a layer becomes on disk, and what must be refused.

mod docker;
mod fixtures;
mod hostile;
mod hub;
mod inventory;
mod layers;
mod power;
mod pull;
mod transports;
