//! What is measured: the services expose what docs/metrics.md says and nothing else, the alert rules
//! name only what exists, and are all that the table says. [`dashboard`]: what Grafana is given.

pub(crate) mod dashboard;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::{Value, json};

use super::shop::Shop;
use crate::suite::{Env, PATIENCE, until};

/// Some gauges are set every 5 s.
const EXPOSED_WITHIN: Duration = Duration::from_secs(120);
/// What Prometheus itself adds to every series.
const ADDED_LABELS: [&str; 2] = ["job", "instance"];

/// What Prometheus itself says of each process that it scrapes.
const UP: &str = "up";
/// What the names of our alerts begin with.
const ALERT: &str = "Halfmsg";

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
        until(EXPOSED_WITHIN, &format!("the metrics of {service}"), async || {
            let answer = match service {
                "order-svc" => shop.get("/metrics").await,
                _ => shop.get_stock("/metrics").await,
            };
            let text = answer.expect(200).text;
            let exposed = exposed(&text);
            if exposed != documented {
                return Err(difference(&documented, &exposed));
            }
            if service == "order-svc" { plausible(&text, shop.held_up().len()) } else { Ok(()) }
        })
        .await;
    }
}

/// One message was delivered, within two minutes of its commit; two were stored; nothing is behind. It is
/// counted when its acknowledgement has come, which others may see sooner. Of orders that were held up there may
/// be one of each more.
fn plausible(text: &str, held_up: usize) -> Result<(), String> {
    let most = |least: usize| least as f64..=(least + held_up) as f64;
    let value = |sample: &str| {
        let line = text.lines().find(|line| line.starts_with(sample));
        let line = line.unwrap_or_else(|| panic!("no {sample} in {text}"));
        line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")
    };
    let stored = value("halfmsg_prepare_seconds_count ");
    assert!(most(2).contains(&stored), "{stored} with {held_up} held up");
    assert!(value("halfmsg_commit_to_delivered_seconds_sum ") < PATIENCE.as_secs_f64());
    assert_eq!(value("halfmsg_parked_total{reason=\"max_checks\"} "), 0.0);
    let mut lags = text.lines().filter(|line| line.starts_with("halfmsg_resolver_lag_records{"));
    let one_is_delivered = most(1).contains(&value("halfmsg_commit_to_delivered_seconds_count "));
    let nothing_is_behind = lags.clone().count() > 0 && lags.all(|line| line.ends_with(" 0"));
    if one_is_delivered && nothing_is_behind { Ok(()) } else { Err(text.to_owned()) }
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
    /// The metrics that were asked for.
    seen: BTreeSet<String>,
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
        let of = self.expression;
        let name = selector.name.as_deref().unwrap_or_else(|| panic!("no name in {of}"));
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let histogram = base.and_then(|base| self.known.get(base));
        let histogram = histogram.filter(|metric| metric.kind == "histogram");
        if name == UP {
            self.seen.insert(name.to_owned());
            return;
        }
        self.seen.insert(if histogram.is_some() { base.unwrap_or(name) } else { name }.to_owned());
        let metric = histogram;
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

/// Every expression parses, and every metric and label in it exists; the metrics.
fn is_sound(expression: &str, known: &Metrics) -> BTreeSet<String> {
    let parsed = parser::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    let mut selectors = Selectors { known, expression, seen: BTreeSet::new() };
    let _ = walk_expr(&mut selectors, &parsed);
    assert!(!selectors.seen.is_empty(), "{expression} selects nothing");
    selectors.seen
}

fn text<'a>(value: &'a Value, of: &Value) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("a text is missing in {of}"))
}

pub(crate) async fn measured_rules_ask_for_what_exists(_: Env) {
    let known = documented(None);
    let rules = read("alerts/halfmsg.rules.yaml");
    let rules: Value = serde_yaml_ng::from_str(&rules).expect("YAML");
    let mut names = BTreeSet::new();
    let mut watched = BTreeSet::new();
    for group in rules["groups"].as_array().expect("groups") {
        for rule in group["rules"].as_array().expect("rules") {
            let asked = is_sound(text(&rule["expr"], rule), &known);
            let alerts = alerts();
            let is_told = |metric: &String| metric == UP || alerts.contains_key(metric);
            assert!(asked.iter().any(is_told), "{rule}");
            watched.extend(asked);
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
    // What the table tells one to alert on has a rule, or names the metric whose rule catches it.
    for (metric, when) in alerts() {
        for part in when.split("; ") {
            let by = part.split('`').skip(1).step_by(2).any(|code| watched.contains(code));
            assert!(watched.contains(&metric) || by, "{metric}: no rule for '{part}'");
        }
    }
}

/// The last column of the table, where it says something.
fn alerts() -> BTreeMap<String, String> {
    let text = read("metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let alerts = rows.map(|cells| (cells[0].trim_end_matches('`').to_owned(), cells[5].to_owned()));
    alerts.filter(|(_, when)| !when.is_empty()).collect()
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
    let rules: Vec<_> = dashboard::shown().into_iter().enumerate().map(rule).collect();
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
    // Who is called by an alert finds it there; and none is there that does not exist.
    let alerts = rule_names();
    let said: BTreeSet<_> = text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let missing: Vec<_> = alerts.difference(&said).collect();
    assert!(missing.is_empty(), "docs/operations.md says nothing of {missing:?}");
    let unknown = said.iter().filter(|word| word.starts_with(ALERT) && !alerts.contains(*word));
    assert_eq!(unknown.count(), 0, "{said:?}");
}

/// The names of all alerts.
fn rule_names() -> BTreeSet<String> {
    let rules: Value = serde_yaml_ng::from_str(&read("alerts/halfmsg.rules.yaml")).expect("YAML");
    let groups = rules["groups"].as_array().expect("groups").iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
    rules.map(|rule| text(&rule["alert"], rule).to_owned()).collect()
}
