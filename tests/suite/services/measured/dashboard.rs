//! The dashboard as Grafana reads it: the fields that its schema (`@grafana/schema`, the type
//! `Dashboard`) has, as far as they can be wrong here, and expressions that ask for what exists. Grafana
//! itself is in no package registry, so no test has loaded it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{documented, is_sound, read, text};
use crate::suite::Env;

/// Columns of the grid.
const COLUMNS: u64 = 24;
/// What Grafana has of its own in an expression.
const BUILT_IN: [&str; 1] = ["__rate_interval"];
const UNITS: [&str; 4] = ["ops", "reqps", "s", "short"];

fn dashboard() -> Value {
    serde_json::from_str(&read("grafana/halfmsg.json")).expect("JSON")
}

fn panels(dashboard: &Value) -> &[Value] {
    dashboard["panels"].as_array().expect("panels")
}

/// The panels that show something.
fn charts(dashboard: &Value) -> impl Iterator<Item = &Value> {
    panels(dashboard).iter().filter(|panel| panel["type"] != "row")
}

/// The expressions of the panels, with what Grafana fills in.
pub(super) fn shown() -> Vec<String> {
    let dashboard = dashboard();
    let mut found = Vec::new();
    for panel in charts(&dashboard) {
        for target in panel["targets"].as_array().unwrap_or_else(|| panic!("{panel}")) {
            let expression = text(&target["expr"], panel);
            found.push(expression.replace("$__rate_interval", "5m").replace("$job", ".+"));
        }
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

pub(crate) async fn measured_dashboard_asks_for_what_exists(_: Env) {
    let known = documented(None);
    for expression in shown() {
        is_sound(&expression, &known);
    }
}

/// What Grafana's schema asks for is there, and fits together.
pub(crate) async fn measured_dashboard_is_whole(_: Env) {
    let dashboard = dashboard();
    for name in ["title", "uid"] {
        assert!(!text(&dashboard[name], &dashboard).is_empty());
    }
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36));
    let variables = variables(&dashboard);
    let panels = panels(&dashboard);
    let ids: BTreeSet<_> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "each has an id of its own");
    let mut cells = BTreeSet::new();
    for panel in panels {
        takes_its_place(panel, &mut cells);
    }
    for panel in charts(&dashboard) {
        is_whole(panel);
        for target in panel["targets"].as_array().expect("targets") {
            asks_by_variables(target, &variables);
        }
    }
}

/// The variables' names; one is the data source that all panels name.
fn variables(dashboard: &Value) -> BTreeSet<String> {
    let list = dashboard["templating"]["list"].as_array().expect("variables");
    let names: BTreeSet<_> = list.iter().map(|one| text(&one["name"], one).to_owned()).collect();
    assert_eq!(names.len(), list.len(), "each has a name of its own");
    let known = documented(None);
    for variable in list {
        match text(&variable["type"], variable) {
            "datasource" => assert_eq!(variable["query"], "prometheus"),
            "query" => {
                assert_eq!(variable["datasource"], source());
                assert!(variable["refresh"].as_u64().is_some_and(|when| when <= 2));
                let query = text(&variable["query"], variable);
                let of = query.strip_prefix("label_values(").and_then(|of| of.strip_suffix(')'));
                let (metric, _) = of.and_then(|of| of.split_once(", ")).expect("values of a label");
                assert!(known.contains_key(metric), "{query}");
            }
            other => panic!("a variable of the type {other}"),
        }
    }
    assert!(names.contains("datasource"));
    names
}

fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

/// Within the grid, where no other panel is.
fn takes_its_place(panel: &Value, cells: &mut BTreeSet<(u64, u64)>) {
    let place = |name: &str| panel["gridPos"][name].as_u64().unwrap_or_else(|| panic!("{panel}"));
    let (x, y, w, h) = (place("x"), place("y"), place("w"), place("h"));
    assert!(w > 0 && h > 0 && x + w <= COLUMNS, "{panel}");
    assert!(panel["type"] != "row" || (w, h) == (COLUMNS, 1), "{panel}");
    for cell in (x..x + w).flat_map(|column| (y..y + h).map(move |row| (column, row))) {
        assert!(cells.insert(cell), "{} lies over another", panel["title"]);
    }
}

/// What the schema requires of a chart.
fn is_whole(panel: &Value) {
    assert_eq!(panel["type"], "timeseries");
    assert!(!text(&panel["title"], panel).is_empty());
    assert_eq!(panel["datasource"], source());
    assert!(panel["fieldConfig"]["overrides"].is_array(), "{panel}");
    let unit = text(&panel["fieldConfig"]["defaults"]["unit"], panel);
    assert!(UNITS.contains(&unit), "{unit}");
    let legend = &panel["options"]["legend"];
    assert!(legend["showLegend"] == true && legend["calcs"].is_array(), "{legend}");
    assert!(["list", "table"].contains(&text(&legend["displayMode"], legend)));
    assert!(["bottom", "right"].contains(&text(&legend["placement"], legend)));
    let tooltip = &panel["options"]["tooltip"];
    assert!(["single", "multi", "none"].contains(&text(&tooltip["mode"], tooltip)));
    assert!(["asc", "desc", "none"].contains(&text(&tooltip["sort"], tooltip)));
    let targets = panel["targets"].as_array().expect("targets");
    let names: BTreeSet<_> = targets.iter().map(|target| text(&target["refId"], target)).collect();
    assert!(!targets.is_empty() && names.len() == targets.len(), "{panel}");
}

/// Of the data source that the person chose, with no variable that there is not; the legend names
/// only labels that the expression keeps.
fn asks_by_variables(target: &Value, variables: &BTreeSet<String>) {
    assert_eq!(target["datasource"], source());
    let expression = text(&target["expr"], target);
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for rest in expression.split('$').skip(1) {
        let name: String = rest.chars().take_while(|c| is_name(*c)).collect();
        assert!(variables.contains(&name) || BUILT_IN.contains(&name.as_str()), "{expression}");
    }
    assert!(expression.contains("$job"), "{expression} is of every job");
    let kept: BTreeSet<&str> = expression
        .split("by (")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .flat_map(|labels| labels.split(", "))
        .collect();
    for label in text(&target["legendFormat"], target).split("{{").skip(1) {
        let label = label.split("}}").next().unwrap_or_default();
        assert!(kept.contains(label), "{expression} has no {label} left");
    }
}
