//! Garbage collection by how full the disk is, as kubelet's.

use std::{
    collections::HashSet,
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use super::{
    Error, Images, Store, Summary,
    inventory::Freed,
    records::{Kept, seconds_since_1970},
};

/// What is left of a pull that nobody continues goes after this time even if there is room.
const STALE: Duration = Duration::from_hours(24);

/// When images go, and which.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// How full the disk may get, in percent.
    pub high_percent: u8,
    /// How full it may stay, in percent.
    pub low_percent: u8,
    /// How long an image stays in any case.
    pub minimum_age: Duration,
}

/// How full a disk is.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Bytes that it has.
    pub capacity: u64,
    /// Bytes that are free for everybody.
    pub available: u64,
}

impl Default for Thresholds {
    /// kubelet's.
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, minimum_age: Duration::from_secs(120) }
    }
}

impl Usage {
    /// Of the file system that `path` is on.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Self {
            capacity: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// Bytes that must go; nothing while the disk is not fuller than it may be.
    fn excess(self, thresholds: Thresholds) -> Option<u64> {
        let used = self.capacity.saturating_sub(self.available);
        let percent = |of: u8| self.capacity / 100 * u64::from(of.min(100));
        (self.capacity > 0 && used >= percent(thresholds.high_percent))
            .then(|| used - percent(thresholds.low_percent).min(used))
    }
}

impl Images {
    /// Makes room if the disk is fuller than it may be: images that no pod uses go, the one unused
    /// for longest first. `in_use` has the ids and references of pods' images.
    pub fn collect(
        &self,
        usage: Usage,
        thresholds: Thresholds,
        in_use: &HashSet<String>,
    ) -> Result<(), Error> {
        let inner = &self.inner;
        let store = &inner.store;
        for kept in store.kept()? {
            if is_in_use(&kept, in_use) {
                store.touch(&kept.record);
            }
        }
        let Some(excess) = usage.excess(thresholds) else {
            store.blobs.sweep(STALE);
            return Ok(());
        };
        inner.counters.collections.fetch_add(1, Ordering::Relaxed);
        let mut freed = Freed { images: 0, bytes: store.blobs.sweep(Duration::ZERO) };
        let mut candidates = store.kept()?;
        candidates.retain(|kept| !is_in_use(kept, in_use) && is_old(kept, thresholds.minimum_age));
        candidates.sort_by_key(|kept| kept.used);
        if every_user_is_known(store, in_use)? {
            freed.bytes += store.remove_layers(|_| true)?;
        }
        for candidate in candidates {
            if freed.bytes >= excess {
                break;
            }
            let reference = &candidate.record.reference;
            let one = store.remove(|kept| {
                kept.record.reference == *reference
                    && kept.record.id == candidate.record.id
                    && kept.record.replaced == candidate.record.replaced
            })?;
            freed.images += one.images;
            freed.bytes += one.bytes;
            tracing::info!(image = %reference, bytes = one.bytes, "image collected");
        }
        inner.counters.collected_images.fetch_add(freed.images, Ordering::Relaxed);
        inner.counters.collected_bytes.fetch_add(freed.bytes, Ordering::Relaxed);
        if freed.bytes < excess {
            tracing::warn!(
                wanted = excess,
                freed = freed.bytes,
                "the disk is too full, and no more images can go; add room or remove files"
            );
        }
        Ok(())
    }

    /// Removes an image under one name, and its layers if no other image has them.
    pub fn remove(&self, image: &Summary) -> Result<(), Error> {
        self.inner.store.remove(|kept| {
            kept.record.reference == image.reference
                && kept.record.replaced == image.replaced
                && kept.record.id.to_string() == image.id
        })?;
        Ok(())
    }

    /// Removes the images that no pod uses, those without a current name or all of them, and what
    /// broken pulls have left.
    pub async fn prune(&self, all: bool, in_use: HashSet<String>) -> Result<(u64, u64), Error> {
        let inner = std::sync::Arc::clone(&self.inner);
        super::blocking(move || {
            let store = &inner.store;
            let blobs = store.blobs.sweep(Duration::ZERO);
            let mut freed =
                store.remove(|kept| (all || kept.record.replaced) && !is_in_use(kept, &in_use))?;
            if every_user_is_known(store, &in_use)? {
                freed.bytes += store.remove_layers(|_| true)?;
            }
            Ok((freed.images, freed.bytes + blobs))
        })
        .await
    }
}

fn is_in_use(kept: &Kept, in_use: &HashSet<String>) -> bool {
    let record = &kept.record;
    in_use.contains(&record.id.to_string())
        || (!record.replaced && in_use.contains(&record.reference))
}

fn is_old(kept: &Kept, minimum: Duration) -> bool {
    let age = seconds_since_1970().saturating_sub(kept.record.since);
    let idle = SystemTime::now().duration_since(kept.used).unwrap_or_default();
    age >= minimum.as_secs() && idle >= minimum
}

/// Whether there is a record of every image that pods run. One that got lost would not protect its
/// layers.
fn every_user_is_known(store: &Store, in_use: &HashSet<String>) -> Result<bool, Error> {
    let known: HashSet<_> =
        store.kept()?.into_iter().map(|kept| kept.record.id.to_string()).collect();
    Ok(in_use.iter().filter(|id| id.starts_with("sha256:")).all(|id| known.contains(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_down_to_the_low_threshold() {
        let thresholds = Thresholds::default();
        let usage = |available| Usage { capacity: 1000, available };
        assert_eq!(usage(151).excess(thresholds), None);
        assert_eq!(usage(150).excess(thresholds), Some(50));
        assert_eq!(usage(0).excess(thresholds), Some(200));
        assert_eq!(Usage { capacity: 0, available: 0 }.excess(thresholds), None);
        let all = Thresholds { high_percent: 0, low_percent: 0, ..thresholds };
        assert_eq!(usage(1000).excess(all), Some(0));
    }
}
