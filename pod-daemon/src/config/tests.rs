//! Flags and the file.

use super::*;

#[test]
fn flags_win_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    fs::write(&file, "network = \"10.1.0.0/24\"\nstop-seconds = 3\nunenforced-limits = \"warn\"\n")
        .unwrap();
    let file = file.to_str().unwrap();
    let flags = Flags::parse_from([
        "pod-daemon",
        "--config",
        file,
        "--network",
        "10.2.0.0/24",
        "--cgroup-root",
        "/x",
    ]);
    let config = flags.into_config().unwrap();
    assert_eq!(config.network.to_string(), "10.2.0.0/24");
    assert_eq!(config.stop_seconds, 3);
    assert_eq!(config.unenforced_limits, UnenforcedLimits::Warn);
}

#[test]
fn a_ceiling_has_room_for_what_is_folded() {
    let ceiling = |text: &str| {
        let settings: Settings = toml::from_str(text).unwrap();
        let settings = Settings { cgroup_root: Some(PathBuf::from("/x")), ..settings };
        settings.validate().map(|config| config.hold.ceiling)
    };
    assert_eq!(ceiling("").unwrap(), 1_500_000);
    assert_eq!(ceiling("max-series = 0").unwrap(), 0);
    assert_eq!(ceiling("max-series = 5000").unwrap(), 5000);
    let error = ceiling("max-series = 50").unwrap_err().to_string();
    assert!(error.starts_with("max-series: 50 is less than"), "{error}");
}

#[test]
fn registries_are_described_in_the_file() {
    let settings = |text: &str| {
        let settings: Settings = toml::from_str(text).unwrap();
        Settings { cgroup_root: Some(PathBuf::from("/x")), ..settings }.validate()
    };
    let config = settings(
        "registry-auth-file = \"/etc/auth.json\"\nimage-gc-high-percent = 70\n\
         [[registry]]\nhost = \"docker.io\"\nmirrors = [\"mirror.example:5000\"]\n\
         [[registry]]\nhost = \"mirror.example:5000\"\nca-file = \"/etc/ca.pem\"\n",
    )
    .unwrap();
    assert_eq!(config.registries.registries.len(), 2);
    assert_eq!(config.registries.registries[0].mirrors, ["mirror.example:5000"]);
    assert_eq!(config.registries.auth_file, Some(PathBuf::from("/etc/auth.json")));
    assert_eq!(config.image_thresholds.low_percent, 70);
    for (text, problem) in [
        ("[[registry]]\nhost = \"https://a.example\"", "not a registry's host"),
        ("[[registry]]\nhost = \"a.example\"\nca-file = \"ca.pem\"", "not absolute"),
        ("[[registry]]\nhost = \"a.b\"\n[[registry]]\nhost = \"a.b\"", "two sections"),
        ("image-gc-high-percent = 50\nimage-gc-low-percent = 60", "60 is more than"),
    ] {
        let error = settings(text).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn an_unknown_key_is_an_error_that_names_it() {
    let error = toml::from_str::<Settings>("net-work = 1").unwrap_err();
    assert!(error.to_string().contains("net-work"), "{error}");
}

#[test]
fn what_is_reserved_is_written_as_in_manifests() {
    let flags = ["pod-daemon", "--cgroup-root", "/x"];
    let with =
        |more: [&'static str; 2]| Flags::parse_from(flags.into_iter().chain(more)).into_config();
    let reserve = with(["--reserve-cpu=1500m", "--reserve-disk=2Gi"]).unwrap().reserve;
    assert_eq!((reserve.cpu_millicores, reserve.disk_bytes), (1500, Some(2 << 30)));
    assert_eq!(reserve.memory_bytes, 100 << 20);
    let error = with(["--reserve-memory", "1GB"]).unwrap_err();
    assert!(error.to_string().starts_with("reserve-memory: `1GB` has an unknown"), "{error}");
}

#[test]
fn the_default_has_the_plain_names() {
    let flags = Flags::parse_from(["pod-daemon", "--cgroup-root", "/x"]);
    let mut config = flags.into_config().unwrap();
    assert_eq!(config.instance(), "");
    config.run_dir = PathBuf::from("/run/other");
    assert_eq!(config.instance().len(), 8);
}
