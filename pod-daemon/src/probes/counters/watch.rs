//! Who has a slot, and what is told of it one by one.

use pod_ebpf::event::Watch;

use super::{Error, Keys};

impl Keys {
    /// Who has a slot, or had it last.
    pub(super) fn owner(&self, slot: u32) -> u32 {
        self.watches.get(&slot, 0).unwrap_or(Watch::NONE).owner
    }

    /// Says who has a slot, and what is told of it.
    pub(super) fn set_watch(&mut self, slot: u32, watch: Watch) -> Result<(), Error> {
        self.watches
            .set(slot, &watch, 0)
            .map_err(|source| Error::Map { action: "choose what is told of a container", source })
    }

    /// Lets be told of a slot what is told of every one; under a new owner, if it has none.
    pub(super) fn watch(&mut self, slot: u32) -> Result<(), Error> {
        let owner = match self.owner(slot) {
            0 => {
                self.next_owner += 1;
                self.next_owner - 1
            }
            owner => owner,
        };
        self.set_watch(slot, Watch { kinds: Watch::USUAL, owner })
    }
}
