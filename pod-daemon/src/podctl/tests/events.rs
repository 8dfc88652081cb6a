//! `podctl events`, `explain` and `trace` against the API of a node that is none.

use jiff::Timestamp;
use serde_json::Value;

use super::{podctl, serve};
use crate::{
    api::Operations as _,
    events::{Event, What, Whose},
};

fn exec(second: i64, container: &str, program: &str) -> Event {
    Event {
        time: Timestamp::from_second(second).unwrap(),
        namespace: "default".to_owned(),
        pod: "web".to_owned(),
        container: Some(container.to_owned()),
        what: What::Exec {
            pid: 7,
            parent: 3,
            parent_name: "sh".to_owned(),
            uid: 0,
            argv: vec![program.to_owned(), "-v".to_owned()],
            truncated: false,
        },
    }
}

#[tokio::test]
async fn events_are_shown_in_columns_or_as_lines_of_json() {
    let served = serve();
    let chronicle = served.node.chronicle();
    let whose = Whose {
        namespace: "default".to_owned(),
        pod: "web".to_owned(),
        uid: "u".to_owned(),
        container: "app".to_owned(),
    };
    chronicle.introduce(1, whose);
    chronicle.tell("u", exec(1, "app", "/bin/one"));
    chronicle.tell("u", exec(2, "other", "/bin/two"));

    let shown = podctl(&served, "events web").await;
    assert_eq!((shown.code, &*shown.err), (0, ""));
    let lines: Vec<&str> = shown.out.lines().collect();
    assert_eq!(lines.len(), 3, "{}", shown.out);
    assert!(lines[0].starts_with("TIME           KIND              POD"), "{}", lines[0]);
    assert!(lines[1].ends_with("app         /bin/one -v   (pid 7 of sh[3])"), "{}", lines[1]);

    let shown = podctl(&served, "events -A -c other -o json").await;
    let event: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!((&event["container"], &event["argv"][0]), (&"other".into(), &"/bin/two".into()));
    let shown = podctl(&served, "events web --kind exit").await;
    assert!(shown.err.contains("not found"), "{shown:?}");
    let shown = podctl(&served, "events -n other").await;
    assert_eq!((shown.code, &*shown.err), (0, "No events found\n"));
    let shown = podctl(&served, "events --kind fork").await;
    assert!(shown.err.contains("`fork` is not one of exec, exit"), "{shown:?}");
}

#[tokio::test]
async fn what_is_not_there_is_neither_explained_nor_traced() {
    let served = serve();
    for line in ["explain nobody", "trace nobody"] {
        let shown = podctl(&served, line).await;
        assert_eq!((shown.code, &*shown.out), (1, ""), "{line}");
        assert!(shown.err.contains("\"nobody\" not found"), "{shown:?}");
    }
}
