//! The node's own addresses, and when they change.

use std::{io, net::IpAddr, thread, time::Duration};

use super::netlink::{AddressChanges, Netlink};

/// What changes within this time is told together.
const PAUSE: Duration = Duration::from_millis(500);

/// How long is waited after a failure.
const LONG_PAUSE: Duration = Duration::from_secs(30);

/// Calls `tell` with all addresses of the node, now and whenever they have changed, for as long as the
/// process lives.
pub(super) fn watch(tell: impl Fn(&[IpAddr]) + Send + 'static) -> io::Result<()> {
    // In this order, so that no change is missed.
    let mut changes = AddressChanges::open()?;
    let mut host = Netlink::open()?;
    tell(&host.addresses()?);
    let watch = move || {
        loop {
            let told = changes.wait().and_then(|()| {
                thread::sleep(PAUSE);
                changes.forget()?;
                tell(&host.addresses()?);
                Ok(())
            });
            if let Err(error) = told {
                tracing::warn!(%error, "the node's addresses are not known to the probes");
                thread::sleep(LONG_PAUSE);
            }
        }
    };
    thread::Builder::new().name("addresses".to_owned()).spawn(watch).map(drop)
}
