//! A secret as it is stored, of which a crash may have left half.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pod_daemon::node::secrets;

fuzz_target!(|json: &[u8]| {
    let Ok(first) = secrets::parse(json) else { return };
    let again = |(_, secret)| {
        let json = serde_json::to_vec(&secret).expect("a secret can be written");
        secrets::parse(&json).expect("and read")
    };
    // Written times have whole seconds.
    let second = again(first);
    assert_eq!(again(second.clone()), second);
});
