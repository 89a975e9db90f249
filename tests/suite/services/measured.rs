//! What is measured: the services expose what docs/metrics.md says and nothing else, and the
//! dashboard and the alert rules name only what exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::{Value, json};

use super::shop::Shop;
use crate::suite::{Env, until};

/// Some gauges are set every 5 s.
const EXPOSED_WITHIN: Duration = Duration::from_secs(40);
/// What Prometheus itself adds to every series.
const ADDED_LABELS: [&str; 2] = ["job", "instance"];

/// Names another promtool than the one in the path.
const PROMTOOL: &str = "HALFMSG_TEST_PROMTOOL";

/// Type and labels of a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

type Metrics = BTreeMap<String, Metric>;

fn docs(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(docs(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The rows of the table that this service exposes; of all services, those of any.
fn documented(service: Option<&str>) -> Metrics {
    let text = read("metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut found = Metrics::new();
    for row in rows {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [name, kind, labels, by, meaning, ..] = cells[..] else { panic!("a row: {row}") };
        assert!(!meaning.is_empty(), "{name} has no meaning");
        assert!(["order-svc", "stock-svc", "both"].contains(&by), "{name} is exposed by {by}");
        if service.is_some_and(|service| by != service && by != "both") {
            continue;
        }
        let labels = labels.split(", ").filter(|label| !label.is_empty());
        let labels = labels.map(str::to_owned).collect();
        let metric = Metric { kind: kind.to_owned(), labels };
        let before = found.insert(name.trim_end_matches('`').to_owned(), metric);
        assert!(before.is_none(), "{name} has two rows");
    }
    assert!(found.len() > 2, "the table is read");
    found
}

/// What the text of a service exposes: names as they are asked for, of histograms the common part.
fn exposed(text: &str) -> Metrics {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let types: BTreeMap<&str, &str> = types.collect();
    let mut found = Metrics::new();
    for sample in text.lines().filter(|line| !line.starts_with('#')) {
        let end = sample.find(['{', ' ']).expect("a sample has a value");
        let (name, rest) = sample.split_at(end);
        let name_of = |kind: &str, suffixes: &[&str]| {
            let base = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix))?;
            (types.get(base) == Some(&kind)).then_some(base)
        };
        let histogram = name_of("histogram", &["_bucket", "_sum", "_count"]);
        let counter = name_of("counter", &["_total"]).map(|_| name);
        let (name, kind) = match (histogram, counter) {
            (Some(base), _) => (base, "histogram"),
            (None, Some(name)) => (name, "counter"),
            (None, None) => (name, *types.get(name).unwrap_or_else(|| panic!("{sample}"))),
        };
        // A route has braces too.
        let labels = rest.rsplit_once('}').map_or("", |(labels, _)| &labels[1..]);
        // No value of ours has a quote within.
        let labels =
            labels.split("\",").filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()));
        let labels: BTreeSet<String> = labels.filter(|label| label != "le").collect();
        let metric = Metric { kind: kind.to_owned(), labels };
        let known = found.entry(name.to_owned()).or_insert_with(|| metric.clone());
        assert_eq!(*known, metric, "{sample}");
    }
    found
}

/// In both directions, after one order that stands and one that is restored.
pub(crate) async fn measured_as_documented(env: Env) {
    let shop = Shop::open(env).await;
    shop.seed("apple", 100, 100).await;
    shop.place(&[("apple", 1)]).send().await.expect(201);
    let failed = shop.place(&[("apple", 1)]).fault("after-deduct").send().await.expect(500);
    let order = shop.becomes(failed.order_id(), "void").await;
    shop.stock_is("apple", 99).await;
    shop.half_is(order["transaction_id"].as_str().expect("a half message"), "committed").await;
    for service in ["order-svc", "stock-svc"] {
        let documented = documented(Some(service));
        let text = until(EXPOSED_WITHIN, &format!("the metrics of {service}"), async || {
            let answer = match service {
                "order-svc" => shop.get("/metrics").await,
                _ => shop.get_stock("/metrics").await,
            };
            let text = answer.expect(200).text;
            let exposed = exposed(&text);
            if exposed == documented { Ok(text) } else { Err(difference(&documented, &exposed)) }
        })
        .await;
        if service == "order-svc" {
            plausible(&text);
        }
    }
}

/// One message was delivered, within a minute of its commit; two were stored; nothing is behind.
fn plausible(text: &str) {
    let value = |sample: &str| {
        let line = text.lines().find(|line| line.starts_with(sample));
        let line = line.unwrap_or_else(|| panic!("no {sample} in {text}"));
        line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")
    };
    assert_eq!(value("halfmsg_prepare_seconds_count "), 2.0);
    assert_eq!(value("halfmsg_commit_to_delivered_seconds_count "), 1.0);
    assert!(value("halfmsg_commit_to_delivered_seconds_sum ") < 60.0);
    assert_eq!(value("halfmsg_parked_total{reason=\"max_checks\"} "), 0.0);
    let lags = text.lines().filter(|line| line.starts_with("halfmsg_resolver_lag_records{"));
    assert!(lags.clone().count() > 0 && lags.clone().all(|line| line.ends_with(" 0")), "{text}");
}

fn difference(documented: &Metrics, exposed: &Metrics) -> String {
    let differs = |one: &Metrics, other: &Metrics| -> Vec<String> {
        let other = |name: &String| other.get(name);
        let differing = one.iter().filter(|(name, metric)| other(name) != Some(*metric));
        differing.map(|(name, metric)| format!("{name} {metric:?}")).collect()
    };
    format!(
        "only docs/metrics.md has {:#?}, only the service has {:#?}",
        differs(documented, exposed),
        differs(exposed, documented)
    )
}

/// Looks at every selector of an expression.
struct Selectors<'a> {
    known: &'a Metrics,
    expression: &'a str,
    seen: usize,
}

impl ExprVisitor for Selectors<'_> {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, Self::Error> {
        match expression {
            Expr::VectorSelector(selector) => self.exists(selector),
            Expr::MatrixSelector(matrix) => self.exists(&matrix.vs),
            _ => {}
        }
        Ok(true)
    }
}

impl Selectors<'_> {
    fn exists(&mut self, selector: &VectorSelector) {
        self.seen += 1;
        let of = self.expression;
        let name = selector.name.as_deref().unwrap_or_else(|| panic!("no name in {of}"));
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let histogram = base.and_then(|base| self.known.get(base));
        let metric = histogram.filter(|metric| metric.kind == "histogram");
        let metric = metric.or_else(|| self.known.get(name));
        let metric = metric.unwrap_or_else(|| panic!("{name} does not exist, in {of}"));
        assert!(metric.kind != "histogram" || base.is_some(), "{name} has no samples, in {of}");
        for matcher in &selector.matchers.matchers {
            let label = &matcher.name;
            let is_known = metric.labels.contains(label) || ADDED_LABELS.contains(&label.as_str());
            assert!(is_known, "{name} has no label {label}, in {of}");
        }
    }
}

/// Every expression parses, and every metric and label in it exists.
fn is_sound(expression: &str, known: &Metrics) {
    let parsed = parser::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    let mut selectors = Selectors { known, expression, seen: 0 };
    let _ = walk_expr(&mut selectors, &parsed);
    assert!(selectors.seen > 0, "{expression} selects nothing");
}

fn text<'a>(value: &'a Value, of: &Value) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("a text is missing in {of}"))
}

pub(crate) async fn measured_dashboard_asks_for_what_exists(_: Env) {
    let known = documented(None);
    let dashboard: Value = serde_json::from_str(&read("grafana/halfmsg.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_i64()).collect();
    assert_eq!(ids.len(), panels.len(), "each has an id of its own");
    for expression in shown() {
        is_sound(&expression, &known);
    }
}

/// The expressions of the dashboard's panels, with what Grafana fills in.
fn shown() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("grafana/halfmsg.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let mut found = Vec::new();
    for panel in panels.filter(|panel| panel["type"] != "row") {
        for target in panel["targets"].as_array().unwrap_or_else(|| panic!("{panel}")) {
            let expression = text(&target["expr"], panel);
            found.push(expression.replace("$__rate_interval", "5m").replace("$job", ".+"));
        }
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

pub(crate) async fn measured_rules_ask_for_what_exists(_: Env) {
    let known = documented(None);
    let rules = read("alerts/halfmsg.rules.yaml");
    let rules: Value = serde_yaml_ng::from_str(&rules).expect("YAML");
    let mut names = BTreeSet::new();
    for group in rules["groups"].as_array().expect("groups") {
        for rule in group["rules"].as_array().expect("rules") {
            is_sound(text(&rule["expr"], rule), &known);
            let name = text(&rule["alert"], rule);
            assert!(names.insert(name.to_owned()), "{name} is there twice");
            for annotation in ["summary", "description"] {
                assert!(!text(&rule["annotations"][annotation], rule).is_empty());
            }
            assert!(["page", "ticket"].contains(&text(&rule["labels"]["severity"], rule)));
            let duration = rule["for"].as_str().unwrap_or("1m");
            let number = duration.strip_suffix(['s', 'm', 'h']).and_then(|n| n.parse::<u32>().ok());
            assert!(number.is_some(), "{name} waits for {duration}");
        }
    }
    assert!(names.len() > 10, "{names:?}");
}

/// Prometheus's own tool takes the rules; each fires in one case and stays silent in another.
pub(crate) async fn measured_rules_fire_and_stay_silent(_: Env) {
    let parsed = |file: &str| -> Value { serde_yaml_ng::from_str(&read(file)).expect("YAML") };
    let (rules, cases) = (parsed("alerts/halfmsg.rules.yaml"), parsed("alerts/halfmsg.tests.yaml"));
    let groups = rules["groups"].as_array().expect("groups").iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
    let wanted: BTreeSet<_> = rules
        .map(|rule| text(&rule["alert"], rule).to_owned())
        .flat_map(|name| [(name.clone(), true), (name, false)])
        .collect();
    let cases = cases["tests"].as_array().expect("cases").iter();
    let cases = cases.flat_map(|case| case["alert_rule_test"].as_array().expect("an alert"));
    let fires = |case: &Value| case["exp_alerts"].as_array().is_some_and(|all| !all.is_empty());
    let tested: BTreeSet<_> =
        cases.map(|case| (text(&case["alertname"], case).to_owned(), fires(case))).collect();
    assert_eq!(tested, wanted, "a case in which it fires (true) and one in which it does not");
    promtool(&["check", "rules", "halfmsg.rules.yaml"]);
    promtool(&["test", "rules", "halfmsg.tests.yaml"]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let panels = directory.path().join("panels.yaml");
    fs::write(&panels, as_rules().to_string()).expect("a file of rules");
    promtool(&["check", "rules", panels.to_str().expect("a path of text")]);
}

/// The dashboard's expressions as rules, which is what promtool reads; JSON is YAML.
fn as_rules() -> Value {
    let rule = |(at, expression): (usize, String)| json!({"record": format!("panel_{at}"), "expr": expression});
    let rules: Vec<_> = shown().into_iter().enumerate().map(rule).collect();
    json!({"groups": [{"name": "panels", "rules": rules}]})
}

fn promtool(arguments: &[&str]) {
    let name = std::env::var(PROMTOOL).unwrap_or_else(|_| "promtool".into());
    let output = Command::new(&name).args(arguments).current_dir(docs("alerts")).output();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "{name}: {error}: it comes with Prometheus; run the real tier with scripts/test, which \
             fetches it, or name it with {PROMTOOL}"
        )
    });
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("SUCCESS"), "{arguments:?}: {said}");
}

/// A metric that an operator is told to watch exists.
pub(crate) async fn measured_as_operations_say(_: Env) {
    let known = documented(None);
    let text = read("operations.md");
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let metrics: BTreeSet<_> = words.filter(|word| word.starts_with("halfmsg_")).collect();
    assert!(metrics.len() > 5, "{metrics:?}");
    for metric in metrics {
        assert!(known.contains_key(metric), "{metric} is not in docs/metrics.md");
    }
}
