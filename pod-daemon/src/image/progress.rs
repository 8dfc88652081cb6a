//! How far a pull is, layer by layer.

use tokio::sync::watch;

use super::digest::Digest;

/// A layer of an image that is being pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The beginning of its digest.
    pub id: String,
    /// What happens to it.
    pub phase: Phase,
    /// Bytes that are here.
    pub current: u64,
    /// Bytes that it has; 0 if that is not known.
    pub total: u64,
}

/// What happens to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing yet.
    Waiting,
    /// Its blob comes from the registry.
    Downloading,
    /// Its blob is here and verified.
    Downloaded,
    /// It becomes a directory.
    Unpacking,
    /// It is ready.
    Done,
    /// It was here before.
    Present,
    /// It is no layer but an image of an archive, and left out because it has no name there.
    Skipped,
}

/// Where a pull tells how far it is; clones tell the same listeners.
#[derive(Clone, Debug)]
pub struct Progress(watch::Sender<Vec<Layer>>);

impl Phase {
    /// In one word, for people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting",
            Self::Downloading => "Downloading",
            Self::Downloaded => "Downloaded",
            Self::Unpacking => "Unpacking",
            Self::Done => "Done",
            Self::Present => "Already exists",
            Self::Skipped => "Skipped: it has no name",
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }
}

impl Progress {
    /// The state now and all later ones; a slow listener sees fewer of them.
    #[must_use]
    pub fn listen(&self) -> watch::Receiver<Vec<Layer>> {
        self.0.subscribe()
    }

    /// Begins, perhaps anew.
    pub(super) fn begin(&self, layers: impl IntoIterator<Item = (String, u64)>) {
        let layers = layers.into_iter().map(|(id, total)| Layer {
            id,
            phase: Phase::Waiting,
            current: 0,
            total,
        });
        self.0.send_replace(layers.collect());
    }

    pub(super) fn phase(&self, index: usize, phase: Phase) {
        self.change(index, |layer| {
            layer.phase = phase;
            if matches!(phase, Phase::Downloaded | Phase::Done | Phase::Present) {
                layer.current = layer.total;
            }
        });
    }

    /// Tells that an image is left out.
    pub(super) fn skip(&self, id: String) {
        let skipped = Layer { id, phase: Phase::Skipped, current: 0, total: 0 };
        self.0.send_modify(|layers| layers.push(skipped));
    }

    pub(super) fn bytes(&self, index: usize, current: u64) {
        self.change(index, |layer| layer.current = current);
    }

    fn change(&self, index: usize, change: impl FnOnce(&mut Layer)) {
        self.0.send_modify(|layers| {
            if let Some(layer) = layers.get_mut(index) {
                change(layer);
            }
        });
    }
}

/// What a layer is called in progress and in lists: enough of its digest to tell it from others.
pub(super) fn short(digest: &Digest) -> String {
    digest.hex()[..12].to_owned()
}
