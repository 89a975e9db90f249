//! An OpenAPI document as a service gives it: its operations, and what it says of their requests and
//! answers.

use std::collections::{BTreeMap, BTreeSet};

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::{Map, Value, json};

use crate::suite::services::http::Answer;
use crate::suite::services::watching;

const RESOURCE: &str = "http://contract/openapi.json";
const EVENT_STREAM: &str = "text/event-stream";
const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

/// A document whose schemas are compiled.
pub(super) struct Document {
    json: Value,
    schemas: Schemas,
    compiled: BTreeMap<String, SchemaIndex>,
    pub(super) operations: Vec<Operation>,
}

/// One method of one path.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) id: String,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) parameters: Vec<Parameter>,
    pub(super) has_body: bool,
    pub(super) token: Token,
    statuses: BTreeSet<String>,
}

/// A parameter, with its schema.
#[derive(Debug, Clone)]
pub(super) struct Parameter {
    pub(super) name: String,
    /// `path`, `query` or `header`.
    pub(super) place: String,
    pub(super) required: bool,
    pub(super) schema: Value,
    pub(super) example: Option<String>,
}

/// Whether the operators' token is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Never,
    /// Who shows one must show the right one.
    Shown,
    Needed,
}

/// A part of a JSON pointer.
fn escaped(part: &str) -> String {
    part.replace('~', "~0").replace('/', "~1")
}

impl Operation {
    fn pointer(&self) -> String {
        format!("/paths/{}/{}", escaped(&self.path), self.method)
    }

    fn of(path: &str, method: &str, json: &Value) -> Result<Self, String> {
        let what = format!("{method} {path}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let id = text(&json["operationId"]);
        let known = |name: &str| json[name].as_str().is_some_and(|text| !text.is_empty());
        if id.is_empty() || !known("summary") || json["tags"][0].as_str().is_none() {
            return Err(format!("{what} lacks operationId, summary or tags"));
        }
        let parameters = json["parameters"].as_array().cloned().unwrap_or_default();
        let parameters = parameters.iter().map(|one| Parameter {
            name: text(&one["name"]),
            place: text(&one["in"]),
            required: one["required"] == true,
            schema: one["schema"].clone(),
            example: one["example"].as_str().map(str::to_owned),
        });
        let parameters: Vec<_> = parameters.collect();
        for part in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            if !parameters.iter().any(|one| one.place == "path" && one.name == part) {
                return Err(format!("{what} does not declare {part}"));
            }
        }
        let ways = json["security"].as_array().cloned().unwrap_or_default();
        let token = match ways.iter().any(|way| way.as_object().is_some_and(Map::is_empty)) {
            _ if ways.is_empty() => Token::Never,
            true => Token::Shown,
            false => Token::Needed,
        };
        let responses = json["responses"].as_object().ok_or(format!("{what} has no answers"))?;
        Ok(Self {
            id,
            method: method.to_owned(),
            path: path.to_owned(),
            parameters,
            has_body: json["requestBody"].is_object(),
            token,
            statuses: responses.keys().cloned().collect(),
        })
    }

    /// The statuses of success.
    pub(super) fn successes(&self) -> impl Iterator<Item = u16> {
        self.statuses.iter().filter_map(|status| status.parse().ok()).filter(|status| *status < 300)
    }

    /// The parameters at this place.
    pub(super) fn at(&self, place: &str) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().filter(move |parameter| parameter.place == place)
    }
}

impl Document {
    /// Reads it, and compiles every schema in it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(json: Value) -> Result<Self, String> {
        if json["openapi"] != "3.1.0" {
            return Err(format!("it is of version {}", json["openapi"]));
        }
        let mut operations = Vec::new();
        for (path, item) in json["paths"].as_object().into_iter().flatten() {
            for (method, operation) in item.as_object().into_iter().flatten() {
                operations.push(Operation::of(path, method, operation)?);
            }
        }
        let ids: BTreeSet<_> = operations.iter().map(|operation| &operation.id).collect();
        if operations.is_empty() || ids.len() != operations.len() {
            return Err(format!("operations without an id of their own: {ids:?}"));
        }
        let mut compiler = Compiler::new();
        compiler.enable_format_assertions();
        // The data of an event are JSON within a text.
        compiler.enable_content_assertions();
        let (mut schemas, mut compiled) = (Schemas::new(), BTreeMap::new());
        compiler.add_resource(RESOURCE, json.clone()).map_err(|error| format!("{error:#}"))?;
        for pointer in schemas_in(&json, &operations) {
            let place = format!("{RESOURCE}#{pointer}");
            let index = compiler.compile(&place, &mut schemas);
            compiled.insert(pointer, index.map_err(|error| format!("{error:#}"))?);
        }
        Ok(Self { json, schemas, compiled, operations })
    }

    /// The document as it is written.
    pub(super) fn json(&self) -> &Value {
        &self.json
    }

    /// The operation of this id.
    pub(super) fn operation(&self, id: &str) -> &Operation {
        let found = self.operations.iter().find(|operation| operation.id == id);
        found.unwrap_or_else(|| panic!("the document has no {id}"))
    }

    /// The methods of each path.
    pub(super) fn paths(&self) -> BTreeMap<&str, BTreeSet<String>> {
        let mut paths: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for operation in &self.operations {
            let methods = paths.entry(&operation.path).or_default();
            methods.insert(operation.method.to_uppercase());
        }
        paths
    }

    /// The schema of the body of an operation, and the document that its references are of.
    pub(super) fn body(&self, operation: &Operation) -> Value {
        let pointer = operation.pointer() + "/requestBody/content/application~1json/schema";
        self.json.pointer(&pointer).cloned().unwrap_or_default()
    }

    /// Follows a reference, if it is one.
    pub(super) fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str().and_then(|place| place.strip_prefix('#')) {
            Some(pointer) => self.json.pointer(pointer).expect("compiled, so it is there"),
            None => schema,
        }
    }

    /// The names of which a text must be one, if it must.
    pub(super) fn names(&self, schema: &Value) -> Vec<Value> {
        let schema = self.resolved(schema);
        match (schema["enum"].as_array(), schema["oneOf"].as_array()) {
            (Some(names), _) => names.clone(),
            (None, Some(ways)) => ways.iter().flat_map(|way| self.names(way)).collect(),
            (None, None) => Vec::new(),
        }
    }

    /// Whether the document allows this body.
    pub(super) fn allows(&self, operation: &Operation, body: &Value) -> bool {
        let pointer = operation.pointer() + "/requestBody/content/application~1json/schema";
        self.schemas.validate(body, self.compiled[&pointer]).is_ok()
    }

    /// The names of the events that the stream may tell.
    pub(super) fn events(&self) -> BTreeSet<String> {
        let ways = self.json.pointer("/components/schemas/Event/oneOf").and_then(Value::as_array);
        let ways = ways.into_iter().flatten();
        let names = ways.filter_map(|way| way["properties"]["event"]["enum"][0].as_str());
        names.map(str::to_owned).collect()
    }

    /// Holds events, each the object of its fields, against the stream's schema.
    ///
    /// # Errors
    /// What differs.
    pub(super) fn judge_events(&self, events: &Value) -> Result<(), String> {
        let operation = self.operation("watch_events").pointer();
        let pointer = format!("{operation}/responses/200/content/{}/schema", escaped(EVENT_STREAM));
        let schema = self.compiled[&pointer];
        self.schemas.validate(events, schema).map_err(|error| format!("{error:#}"))
    }

    /// Holds an answer against what is documented: its status, type, headers and body.
    ///
    /// # Errors
    /// What differs.
    pub(super) fn judge(&self, operation: &Operation, answer: &Answer) -> Result<(), String> {
        let status = answer.status.to_string();
        if !operation.statuses.contains(&status) {
            return Err(format!("the status is not documented: {:?}", operation.statuses));
        }
        let pointer = format!("{}/responses/{status}", operation.pointer());
        let response = self.json.pointer(&pointer).expect("it is documented");
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            let may_lack = header["schema"]["type"].is_array();
            if !may_lack && answer.header(name).is_empty() {
                return Err(format!("the header {name} is missing"));
            }
        }
        let kind = answer.header("content-type").split(';').next().unwrap_or_default();
        if response["content"].get(kind).is_none() {
            return Err(format!("the type '{kind}' is not documented"));
        }
        let body = match kind {
            EVENT_STREAM => watching::fields_of_all(&answer.text),
            kind if kind.ends_with("json") => {
                serde_json::from_str(&answer.text).map_err(|error| error.to_string())?
            }
            _ if answer.text.is_empty() => return Err("an empty body".into()),
            _ => return Ok(()),
        };
        if kind == EVENT_STREAM && body == json!([]) {
            return Err("no event".into());
        }
        let schema = self.compiled[&format!("{pointer}/content/{}/schema", escaped(kind))];
        self.schemas.validate(&body, schema).map_err(|error| format!("{error:#}"))
    }
}

/// Where the schemas of requests and answers are.
fn schemas_in(json: &Value, operations: &[Operation]) -> Vec<String> {
    let mut found = Vec::new();
    for operation in operations {
        let base = operation.pointer();
        assert!(METHODS.contains(&operation.method.as_str()), "{}", operation.method);
        let mut contents = vec![format!("{base}/requestBody/content")];
        let answers = operation.statuses.iter();
        contents.extend(answers.map(|status| format!("{base}/responses/{status}/content")));
        for content in contents {
            for kind in json.pointer(&content).and_then(Value::as_object).into_iter().flatten() {
                found.push(format!("{content}/{}/schema", escaped(kind.0)));
            }
        }
    }
    found
}
