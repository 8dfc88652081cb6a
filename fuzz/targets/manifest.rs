//! Text that says it is a manifest: it is refused, or what it became is a manifest, too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pod_daemon::manifest::{self, Unsupported};

fuzz_target!(|text: &str| {
    let Ok(documents) = manifest::documents(text) else { return };
    for value in documents {
        for policy in [Unsupported::Deny, Unsupported::Warn] {
            if let Ok((pod, _)) = manifest::parse_pod(value.clone(), policy) {
                let again = serde_json::to_value(&pod).expect("a pod can be written");
                let (again, _) = manifest::parse_pod(again, Unsupported::Deny)
                    .expect("what was accepted is accepted again");
                assert_eq!(again, pod, "defaults are filled in once");
            }
            if let Ok((map, _)) = manifest::parse_config_map(value.clone(), policy) {
                let again = serde_json::to_value(&map).expect("a config map can be written");
                let (again, _) = manifest::parse_config_map(again, Unsupported::Deny)
                    .expect("what was accepted is accepted again");
                assert_eq!(again, map, "defaults are filled in once");
            }
            if let Ok((secret, _)) = manifest::parse_secret(value.clone(), policy) {
                let again = serde_json::to_value(&secret).expect("a secret can be written");
                let (again, _) = manifest::parse_secret(again, Unsupported::Deny)
                    .expect("what was accepted is accepted again");
                assert_eq!(again, secret, "defaults are filled in once");
            }
        }
    }
});
