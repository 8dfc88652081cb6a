//! The power is cut before each operation on disk in turn: whatever is left then, no image is ever
//! wrong, and the next pull succeeds.

use std::{fs, time::Duration};

use super::{
    fixtures::{assert_is_two_layers, two_layers},
    hub::Hub,
};
use crate::image::{
    Image, Images, PullError, PullPolicy, Reference, Registries, Settings, Store, Thresholds,
    Usage, disk::power,
};

/// The backoff is none: each attempt is to be made.
fn open(dir: &std::path::Path) -> Images {
    let auth_file = dir.with_extension("auth.json");
    fs::write(&auth_file, r#"{"auths":{}}"#).unwrap();
    let registries = Registries { registries: Vec::new(), auth_file: Some(auth_file) };
    let settings = Settings { registries, backoff: Duration::ZERO };
    Images::new(Store::open(dir).unwrap(), settings)
}

async fn pull(images: &Images, reference: &Reference) -> Result<Image, PullError> {
    images.ensure(reference, PullPolicy::IfNotPresent, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_never_leaves_a_wrong_image() {
    let hub = Hub::start().await;
    hub.push("app", "v1", &two_layers());
    let reference: Reference = hub.name("app:v1").parse().unwrap();
    let place = tempfile::tempdir().unwrap();

    let mut cuts = 0;
    for left in 0.. {
        let dir = place.path().join(left.to_string());
        let images = open(&dir);
        power::cut_after(&dir, left);
        let cut = pull(&images, &reference).await;
        drop(images);
        let steps = power::restore();
        if cut.is_ok() && steps < left {
            // Nothing was cut any more.
            break;
        }
        cuts += 1;
        // What has a name is right, or is not believed.
        let images = open(&dir);
        let known = images.ensure(&reference, PullPolicy::Never, &[]).await;
        match &known {
            Ok(image) => assert_is_two_layers(image),
            Err(error) => assert_eq!(error.reason, "ErrImageNeverPull", "cut {left}"),
        }
        assert!(cut.is_err() || known.is_ok(), "an image that was there is gone: cut {left}");
        let image = pull(&images, &reference).await.unwrap_or_else(|error| {
            panic!("after cut {left}, which gave {cut:?}: {error}");
        });
        assert_is_two_layers(&image);
        // And in the end there is nothing but the image.
        let full = Usage { capacity: 100, available: 0 };
        let thresholds =
            Thresholds { minimum_age: Duration::from_secs(3600), ..Thresholds::default() };
        images.collect(full, thresholds, &[image.id.clone()].into()).unwrap();
        let count = |name: &str| fs::read_dir(dir.join(name)).unwrap().count();
        let counts = ["layers", "records", "tmp", "images", "blobs/sha256"].map(count);
        assert_eq!(counts, [2, 2, 0, 1, 0], "cut {left}");
    }
    // Three blobs, two layers and a record take more operations than these.
    assert!(cuts > 20, "{cuts}");
}
