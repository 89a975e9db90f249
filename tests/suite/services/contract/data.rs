//! Values that a schema allows, and values that it does not, made from the schema alone. The same in
//! every run.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::document::Document;
use crate::suite::random::Random;

/// Where a sku, a name or a list may be long, it is not longer than this: limits are tried alone.
const LONGEST: u64 = 12;

/// Makes values.
pub(super) struct Data<'a> {
    pub(super) document: &'a Document,
    pub(super) random: Random,
    made: u64,
}

impl<'a> Data<'a> {
    pub(super) fn new(document: &'a Document, seed: u64) -> Self {
        Self { document, random: Random::new(seed), made: 0 }
    }

    /// A value that the schema allows.
    pub(super) fn valid(&mut self, schema: &Value) -> Value {
        let schema = self.document.resolved(schema);
        if let Some(all) = schema["enum"].as_array() {
            return all[self.below(all.len())].clone();
        }
        if let Some(ways) = schema["oneOf"].as_array() {
            let way = self.below(ways.len());
            return self.valid(&ways[way]);
        }
        let kinds = kinds(schema);
        let kind = kinds[self.below(kinds.len())].clone();
        match kind.as_str() {
            "null" => Value::Null,
            "boolean" => json!(self.random.chance(50)),
            "integer" => self.integer(schema),
            "string" => json!(self.text(schema)),
            "array" => {
                let least = schema["minItems"].as_u64().unwrap_or(0);
                let count = least + self.random.below(3);
                (0..count).map(|_| self.valid(&schema["items"])).collect()
            }
            "object" => self.object(schema),
            other => panic!("no values of the type '{other}' are made: {schema}"),
        }
    }

    fn object(&mut self, schema: &Value) -> Value {
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let mut made = Map::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            if required.contains(&json!(name)) || self.random.chance(50) {
                made.insert(name.clone(), self.valid(property));
            }
        }
        Value::Object(made)
    }

    fn integer(&mut self, schema: &Value) -> Value {
        let least = schema["minimum"].as_i64().unwrap_or(-5);
        let most = schema["maximum"].as_i64().unwrap_or(least + 1_000);
        match self.random.below(4) {
            0 => json!(least),
            1 => json!(most),
            _ => {
                let width = u64::try_from(most - least).expect("a range").saturating_add(1);
                json!(least + i64::try_from(self.random.below(width)).expect("within the range"))
            }
        }
    }

    /// A text of letters and digits, different each time: it fits every pattern of ours that is no
    /// list of names, of which the first is taken.
    fn text(&mut self, schema: &Value) -> String {
        self.made += 1;
        match schema["format"].as_str() {
            Some("uuid") => {
                return Uuid::from_u64_pair(self.random.below(u64::MAX), self.made).to_string();
            }
            Some("date-time") => {
                return format!("2026-01-{:02}T12:00:00Z", 1 + self.random.below(28));
            }
            _ => {}
        }
        let pattern = schema["pattern"].as_str().unwrap_or_default();
        if let Some(names) = pattern.strip_prefix("^(").and_then(|rest| rest.strip_suffix(")$")) {
            return names.split('|').next().unwrap_or_default().to_owned();
        }
        if pattern.starts_with("^[0-9]{1,17}[.]") {
            return format!("{}.{:032x}", 1_700_000_000_000_000_u64 + self.made, self.made);
        }
        let most = schema["maxLength"].as_u64().unwrap_or(LONGEST);
        let length = match self.random.below(6) {
            0 => most,
            _ => self.random.below(LONGEST.min(most)) + 1,
        };
        let letters =
            format!("{}x{}", self.made, "a".repeat(usize::try_from(length).expect("short")));
        letters.chars().take(usize::try_from(length.max(5).min(most)).expect("short")).collect()
    }

    fn below(&mut self, count: usize) -> usize {
        let count = u64::try_from(count).expect("a small number");
        usize::try_from(self.random.below(count)).expect("a small number")
    }

    /// The value with one thing changed, in every way that might be forbidden. Whether it is, the
    /// schema has to say.
    pub(super) fn changed(&mut self, schema: &Value, value: &Value) -> Vec<Value> {
        let schema = self.document.resolved(schema).clone();
        let mut all = vec![
            Value::Null,
            json!(true),
            json!(-1),
            json!(0),
            json!(1.5),
            json!(u64::MAX),
            json!(""),
            json!("nonsense"),
            json!("a\u{0}b"),
            json!("ä b/c"),
            json!([]),
            json!([1]),
            json!({}),
            json!({"nonsense": 1}),
        ];
        for (limit, sign) in [("minimum", -1), ("maximum", 1)] {
            // Numbers from 2^53 on are two apart for whom counts with floating point.
            let step = |limit: i64| if limit.unsigned_abs() >= 1 << 53 { 2 * sign } else { sign };
            all.extend(schema[limit].as_i64().map(|limit| json!(limit + step(limit))));
        }
        if let Some(most) = schema["maxLength"].as_u64() {
            all.push(json!("a".repeat(usize::try_from(most).expect("short") + 1)));
        }
        if let Some(most) = schema["maxItems"].as_u64() {
            let many: Vec<_> = (0..=most).map(|_| self.valid(&schema["items"])).collect();
            all.push(many.into());
        }
        if let Value::Object(members) = value {
            let mut more = members.clone();
            more.insert("nonsense".into(), json!(1));
            all.push(more.into());
            for (name, member) in members {
                let mut less = members.clone();
                less.remove(name);
                all.push(less.into());
                for changed in self.changed(&schema["properties"][name], member) {
                    let mut other = members.clone();
                    other.insert(name.clone(), changed);
                    all.push(other.into());
                }
            }
        }
        if let Value::Array(entries) = value
            && let Some(first) = entries.first()
        {
            for changed in self.changed(&schema["items"], first) {
                let mut other = entries.clone();
                other[0] = changed;
                all.push(other.into());
            }
        }
        all
    }

    /// Texts for a parameter that its schema does not allow.
    pub(super) fn unfit(&self, schema: &Value) -> Vec<String> {
        let schema = self.document.resolved(schema);
        let mut all: Vec<String> = Vec::new();
        let numeric = kinds(schema).iter().any(|kind| kind == "integer");
        let bounded = ["enum", "pattern", "format"].iter().any(|name| schema.get(*name).is_some());
        if numeric || bounded {
            // A text without a schema of its own allows any; what is meant is for the service to say.
            all.extend(["a\u{0}b".into(), String::new(), "\u{7f}".into()]);
        }
        if numeric || schema.get("enum").is_some() || schema.get("format").is_some() {
            all.extend(["nonsense".into(), "1.5".into(), "99999999999999999999999".into()]);
        }
        for (limit, step) in [("minimum", -1), ("maximum", 1)] {
            all.extend(schema[limit].as_i64().map(|limit| (limit + step).to_string()));
        }
        if let Some(most) = schema["maxLength"].as_u64() {
            all.push("a".repeat(usize::try_from(most).expect("short") + 1));
        }
        all
    }
}

fn kinds(schema: &Value) -> Vec<String> {
    match &schema["type"] {
        Value::String(kind) => vec![kind.clone()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => panic!("a schema without a type: {schema}"),
    }
}
