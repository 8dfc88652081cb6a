//! Settings that are several flags together, and what may be wrong with them.

use std::time::Duration;

use super::{Error, Settings};
use crate::{
    image::{Registries, Registry, Thresholds},
    metrics::Hold,
};

impl Settings {
    pub(super) fn thresholds(&self) -> Result<Thresholds, Error> {
        let default = Thresholds::default();
        let high_percent = self.image_gc_high_percent.unwrap_or(default.high_percent);
        let low_percent =
            self.image_gc_low_percent.unwrap_or_else(|| default.low_percent.min(high_percent));
        let minimum_age = self.image_gc_minimum_age_seconds.map(Duration::from_secs);
        let minimum_age = minimum_age.unwrap_or(default.minimum_age);
        if high_percent > 100 || low_percent > high_percent {
            return Err(Error::Value {
                setting: "image-gc-low-percent",
                problem: format!(
                    "{low_percent} is more than image-gc-high-percent, {high_percent}, or that is \
                     more than 100"
                ),
            });
        }
        Ok(Thresholds { high_percent, low_percent, minimum_age })
    }

    pub(super) fn registries(&self) -> Result<Registries, Error> {
        let wrong = |problem| Error::Value { setting: "registry", problem };
        if let Some(problem) = self.registry.iter().find_map(Registry::problem) {
            return Err(wrong(problem));
        }
        for (index, registry) in self.registry.iter().enumerate() {
            if self.registry[..index].iter().any(|other| other.host == registry.host) {
                return Err(wrong(format!("{:?} has two sections", registry.host)));
            }
        }
        Ok(Registries {
            registries: self.registry.clone(),
            auth_file: self.registry_auth_file.clone(),
        })
    }

    pub(super) fn hold(&self) -> Result<Hold, Error> {
        let usual = Hold::default();
        let ceiling = self.max_series.unwrap_or(usual.ceiling);
        let least = Hold::least_ceiling();
        if (1..least).contains(&ceiling) {
            return Err(Error::Value {
                setting: "max-series",
                problem: format!(
                    "{ceiling} is less than {least}, which those may have into which others are folded"
                ),
            });
        }
        let time = self.hold_seconds.map_or(usual.time, Duration::from_secs);
        Ok(Hold { time, ceiling, ..usual })
    }
}
