//! Dashboards and rules ask for what there is, in PromQL that Prometheus understands.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;

use super::{DOMAINS, tests::skip};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dashboards");

fn read(file: &str) -> String {
    fs::read_to_string(format!("{FOLDER}/{file}")).unwrap()
}

fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&read("podscope.json")).unwrap();
    dashboard["panels"].as_array().unwrap().clone()
}

/// Title and query of every target of the dashboard.
fn queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in panels() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            queries.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    queries
}

/// Names of metrics that the daemon exports, samples of histograms included.
fn exported() -> BTreeSet<String> {
    let families = DOMAINS.iter().flat_map(|domain| domain.families);
    families
        .flat_map(|f| ["", "_bucket", "_sum", "_count"].map(|s| f.name.to_owned() + s))
        .collect()
}

/// Names of Podscope's metrics in a text, be it PromQL, YAML or JSON.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| word.starts_with("podscope_") || word.starts_with("process_"))
        .collect()
}

#[test]
fn dashboard_and_rules_ask_for_exported_metrics_only() {
    let exported = exported();
    for file in ["podscope.json", "rules.yml", "rules_test.yml"] {
        let text = read(file);
        let names = names(&text);
        assert!(names.len() > 10, "{file} names {} metrics", names.len());
        let unknown: Vec<_> = names.into_iter().filter(|name| !exported.contains(*name)).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

#[test]
fn panels_do_not_overlap_and_have_ids_of_their_own() {
    let mut cells = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in panels() {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["id"]);
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(cells.insert((x, y)), "{} covers another panel", panel["title"]);
            }
        }
    }
}

#[test]
fn every_panel_has_a_description_and_a_unit() {
    for panel in panels().iter().filter(|panel| panel["type"] != "row") {
        assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')));
        let unit = &panel["fieldConfig"]["defaults"]["unit"];
        assert!(panel["type"] == "table" || unit.is_string(), "{}", panel["title"]);
    }
}

#[test]
fn promtool_understands_every_query() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("queries.yml");
    let mut rules = "groups: [{name: queries, rules: [\n".to_owned();
    for (index, (_, query)) in queries().iter().enumerate() {
        let query = query.replace("$__rate_interval", "1m");
        // JSON's strings are YAML's, too.
        rules += &format!("{{record: 'query:{index}', expr: {}}},\n", Value::from(query));
    }
    fs::write(&file, rules + "]}]\n").unwrap();

    for file in [file, format!("{FOLDER}/rules.yml").into()] {
        let promtool = Command::new("promtool").args(["check", "rules"]).arg(file).output();
        let Ok(output) = promtool else { return skip("promtool is not installed") };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn rules_fire_when_they_should() {
    let file = format!("{FOLDER}/rules_test.yml");
    let promtool = Command::new("promtool").args(["test", "rules", &file]).output();
    let Ok(output) = promtool else { return skip("promtool is not installed") };
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}
