//! A workload file's text (TOML) as a [`Workload`]. Pure.
//!
//! A mistake is told by line, column and field, whoever finds it: the parser, the shape
//! below, or [`Workload::check`]. Only what passes the check comes out.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use redmesh_api::workload::{Keys, Pick, SIZES_MAX, ValueBytes, Verb, Workload};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess, Unexpected, Visitor};
use toml::de::{DeTable, DeValue};

/// What ends a message about the form of a file.
const SEE_FORM: &str = "`redmeshctl run workloads cache` prints a file of the right form";

/// What is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {problem}")]
pub struct Mistake {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// Field, value, what is wrong with it, and the remedy.
    pub problem: String,
}

impl Mistake {
    fn at(text: &str, byte: usize, problem: String) -> Self {
        let before = text.get(..byte).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            line: 1 + before.matches('\n').count(),
            column: 1 + before[line_start..].chars().count(),
            problem,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default)]
    seed: u64,
    ttl: Option<u32>,
    fields: Option<u16>,
    keys_per_command: Option<u16>,
    keys: KeysTable,
    value: ValueTable,
    // A tree has the order of `Verb::ALL`, so that what is drawn doesn't depend on the
    // order of lines.
    mix: BTreeMap<Verb, u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysTable {
    kind: Kind,
    count: Option<u64>,
    pick: Option<PickName>,
    exponent: Option<f64>,
    wrap: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Counter,
    Pool,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PickName {
    Uniform,
    Zipf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueTable {
    bytes: Bytes,
}

struct Bytes(ValueBytes);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Span {
    min: u32,
    max: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Size {
    bytes: u32,
    weight: u32,
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(BytesVisitor).map(Self)
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = ValueBytes;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(
            "a number of bytes, { min = N, max = N }, a list of { bytes = N, weight = N }, or \"key-twice\"",
        )
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<ValueBytes, E> {
        let bytes = u32::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))?;
        Ok(ValueBytes::Fixed(bytes))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<ValueBytes, E> {
        let bytes =
            u32::try_from(number).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))?;
        Ok(ValueBytes::Fixed(bytes))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ValueBytes, E> {
        match text {
            "key-twice" => Ok(ValueBytes::KeyTwice),
            other => Err(E::invalid_value(Unexpected::Str(other), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ValueBytes, A::Error> {
        let Span { min, max } = Span::deserialize(MapAccessDeserializer::new(map))?;
        Ok(ValueBytes::Uniform { min, max })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ValueBytes, A::Error> {
        let mut sizes = Vec::new();
        while let Some(Size { bytes, weight }) = list.next_element()? {
            if sizes.len() == SIZES_MAX {
                return Err(A::Error::custom(format!("more than {SIZES_MAX} sizes: leave some out")));
            }
            sizes.push((bytes, weight));
        }
        Ok(ValueBytes::Weighted(sizes))
    }
}

/// The workload that `text` describes; it passes [`Workload::check`].
///
/// # Errors
/// The first mistake.
pub fn parse(text: &str) -> Result<Workload, Mistake> {
    let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    let table = DeTable::parse(text).map_err(|error| {
        Mistake::at(text, start(&error), format!("{}; {SEE_FORM}", one_line(error.message())))
    })?;
    let file = File::deserialize(toml::de::Deserializer::from(table.clone())).map_err(|error| {
        let field = error.span().and_then(|span| field_at(table.get_ref(), &span));
        let field = field.map_or(String::new(), |field| format!("{field}: "));
        Mistake::at(text, start(&error), format!("{field}{}; {SEE_FORM}", one_line(error.message())))
    })?;
    let wrong = |field: &str, problem: &str| {
        Mistake::at(text, locate(table.get_ref(), field), format!("{field}: {problem}"))
    };
    let workload = file.into_workload().map_err(|(field, problem)| wrong(field, &problem))?;
    workload.check().map_err(|error| wrong(error.field, &error.problem))?;
    Ok(workload)
}

impl File {
    /// A field that has no meaning beside the others is refused: whoever wrote it meant
    /// something by it.
    fn into_workload(self) -> Result<Workload, (&'static str, String)> {
        let keys = self.keys.into_keys()?;
        let has = |verbs: [Verb; 2]| verbs.iter().any(|verb| self.mix.contains_key(verb));
        for (field, width, verbs) in [
            ("fields", self.fields, [Verb::Hset, Verb::Hgetall]),
            ("keys_per_command", self.keys_per_command, [Verb::Mset, Verb::Mget]),
        ] {
            if let Some(width) = width.filter(|_| !has(verbs)) {
                let [a, b] = verbs.map(Verb::name);
                return Err((
                    field,
                    format!("{width} is for {a} and {b}, and [mix] has neither: leave it out"),
                ));
            }
        }
        Ok(Workload {
            name: self.name,
            seed: self.seed,
            keys,
            value: self.value.bytes.0,
            mix: self.mix.into_iter().collect(),
            ttl_s: self.ttl,
            fields: self.fields.unwrap_or(1),
            keys_per_command: self.keys_per_command.unwrap_or(1),
        })
    }
}

impl KeysTable {
    fn into_keys(self) -> Result<Keys, (&'static str, String)> {
        let only_for = |field, value: String, whose: &str| {
            Err((field, format!("{value} has a meaning for {whose} alone: leave it out")))
        };
        match self.kind {
            Kind::Counter => {
                if let Some(count) = self.count {
                    return only_for("keys.count", count.to_string(), "kind = \"pool\"");
                }
                if self.pick.is_some() {
                    return only_for("keys.pick", "it".to_owned(), "kind = \"pool\"");
                }
                if let Some(exponent) = self.exponent {
                    return only_for("keys.exponent", exponent.to_string(), "kind = \"pool\"");
                }
                Ok(Keys::Counter { wrap: self.wrap })
            }
            Kind::Pool => {
                if let Some(wrap) = self.wrap {
                    return only_for("keys.wrap", wrap.to_string(), "kind = \"counter\"");
                }
                let count = self
                    .count
                    .ok_or(("keys.count", "missing: say how many keys there are, count = N".to_owned()))?;
                let pick = match (self.pick, self.exponent) {
                    (Some(PickName::Uniform), None) => Pick::Uniform,
                    (Some(PickName::Zipf), Some(exponent)) => Pick::Zipf { exponent },
                    (Some(PickName::Uniform), Some(exponent)) => {
                        return only_for("keys.exponent", exponent.to_string(), "pick = \"zipf\"");
                    }
                    (Some(PickName::Zipf), None) => {
                        let problem = "missing: pick = \"zipf\" needs one, like exponent = 0.99";
                        return Err(("keys.exponent", problem.to_owned()));
                    }
                    (None, _) => {
                        let problem = "missing: say pick = \"uniform\" or pick = \"zipf\"";
                        return Err(("keys.pick", problem.to_owned()));
                    }
                };
                Ok(Keys::Pool { count, pick })
            }
        }
    }
}

/// Where `field` ("keys.count") stands, a byte's index; where it would stand if it is
/// missing.
fn locate(table: &DeTable<'_>, field: &str) -> usize {
    let mut found = None;
    let mut here = Some(table);
    for part in field.split('.') {
        let Some((key, value)) = here.and_then(|table| entry(table, part)) else { break };
        found = Some(key.start);
        here = value.as_table();
    }
    // A missing time to live is missed by the command that needs it.
    let missed_by = || {
        let (key, mix) = entry(table, "mix")?;
        let command = mix.as_table().and_then(|mix| entry(mix, Verb::Expire.name()));
        Some(command.map_or(key, |(command, _)| command).start)
    };
    found.or_else(missed_by).unwrap_or(0)
}

fn entry<'t, 'i>(table: &'t DeTable<'i>, name: &str) -> Option<(Range<usize>, &'t DeValue<'i>)> {
    table
        .iter()
        .find(|(key, _)| key.get_ref().as_ref() == name)
        .map(|(key, value)| (key.span(), value.get_ref()))
}

/// The innermost field whose key or value `span` lies in.
fn field_at(table: &DeTable<'_>, span: &Range<usize>) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let inner = value.get_ref().as_table().and_then(|table| field_at(table, span));
        let name = key.get_ref();
        let within = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
        match inner {
            Some(inner) => Some(format!("{name}.{inner}")),
            None => (within(key.span()) || within(value.span())).then(|| name.to_string()),
        }
    })
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}
