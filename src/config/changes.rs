//! Changes to a config: its keys, looked up with their misspellings, and `--set`.

use anyhow::{bail, Result};
use serde_json::{json, Value};

/// Refuses the first key of `value` that `schema` lacks, naming the nearest.
pub(super) fn check_keys(value: &Value, schema: &Value, path: &str) -> Result<()> {
    let (Value::Object(value), Value::Object(schema)) = (value, schema) else { return Ok(()) };
    for (key, inner) in value {
        let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match schema.get(key) {
            Some(expected) => check_keys(inner, expected, &here)?,
            None => {
                let nearest = nearest(key, schema.keys().map(String::as_str));
                bail!(
                    "unknown key `{here}`; did you mean `{}`?",
                    if path.is_empty() { nearest } else { format!("{path}.{nearest}") }
                );
            }
        }
    }
    Ok(())
}

fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    candidates.min_by_key(|c| strsim::damerau_levenshtein(name, c)).unwrap_or_default().to_string()
}

/// Lays `over` on `base`, object by object.
pub(super) fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// All paths of leaves and inner objects, dotted.
fn paths(schema: &Value, prefix: &str, out: &mut Vec<String>) {
    if let Value::Object(map) = schema {
        for (key, inner) in map {
            let here = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            paths(inner, &here, out);
            out.push(here);
        }
    }
}

/// Changes one value as `--set KEY.PATH=VALUE` says. `schema` has all keys that there are.
pub(super) fn apply(value: &mut Value, schema: &Value, change: &str) -> Result<()> {
    let Some((key, text)) = change.split_once('=') else {
        bail!("--set takes key.path=value, not `{change}`");
    };
    let (key, text) = match (key, text) {
        ("model.anchors" | "anchors", "auto") => ("model.anchors.auto", "true"),
        pair => pair,
    };
    let mut all = Vec::new();
    paths(schema, "", &mut all);
    let full = if all.iter().any(|p| p == key) {
        key.to_string()
    } else {
        let suffix = format!(".{key}");
        let fits: Vec<&String> = all.iter().filter(|p| p.ends_with(&suffix)).collect();
        match fits[..] {
            [one] => one.clone(),
            [] => {
                // The key may be shortened, so it is compared with every end of every path.
                let distance = |path: &String| {
                    let ends = path.match_indices('.').map(|(dot, _)| &path[dot + 1..]);
                    ends.chain([path.as_str()]).map(|end| strsim::damerau_levenshtein(key, end)).min()
                };
                let close = all.iter().min_by_key(|path| distance(path)).cloned().unwrap_or_default();
                bail!("--set: unknown key `{key}`; did you mean `{close}`?");
            }
            _ => {
                let names: Vec<&str> = fits.iter().map(|p| p.as_str()).collect();
                bail!("--set: `{key}` could be {}; write the whole key", names.join(" or "));
            }
        }
    };
    let new = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_string()));
    let mut layer = new;
    for part in full.rsplit('.') {
        layer = Value::Object([(part.to_string(), layer)].into_iter().collect());
    }
    check_keys(&layer, schema, "")?;
    merge(value, layer);
    if ["base", "sizes", "ratios"].iter().any(|key| full == format!("model.anchors.{key}")) {
        // Whoever gives anchors wants these.
        merge(value, json!({"model": {"anchors": {"auto": false}}}));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Experiment, HeadNorm};

    fn error(text: &str, changes: &[&str]) -> String {
        let changes: Vec<String> = changes.iter().map(|s| s.to_string()).collect();
        format!("{:#}", Config::from_json_with(text, &changes).unwrap_err())
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let text = error(r#"{"train": {"weight_decai": 1}}"#, &[]);
        assert!(text.contains("train.weight_decai") && text.contains("train.weight_decay"), "{text}");
        let text = error("{}", &["train.leraning=1"]);
        assert!(text.contains("train.leraning"), "{text}");
        let text = error("{}", &["test.nsm=1"]);
        assert!(text.contains("model.test.nms"), "{text}");
    }

    #[test]
    fn set_takes_the_whole_key_or_an_unambiguous_end() {
        let set = |c: &str| Config::from_json_with("{}", &[c.to_string()]).unwrap();
        assert_eq!(set("train.lr=0.5").train.lr, 0.5);
        assert_eq!(set("clip_norm=2").train.clip_norm, Some(2.0));
        assert_eq!(set("model.head.norm=group").model.head.norm, HeadNorm::Group);
        assert_eq!(set("anchors.ratios=[1]").model.anchors.ratios, [1.0]);
        assert!(set("model.anchors=auto").model.anchors.auto && set("anchors=auto").model.anchors.auto);
        let fitting = r#"{"model": {"anchors": {"auto": true}}}"#;
        let given = |change: &str| Config::from_json_with(fitting, &[change.to_string()]).unwrap().model.anchors.auto;
        assert!(!given("anchors.base=3") && !given("model.anchors.ratios=[1]") && !given("model.anchors.sizes=[9]"));
        assert!(given("anchors.octaves=2") && given("train.lr=1"));
        assert_eq!(set("builtin.train=7").data.builtin.unwrap().train, 7);
        let text = error("{}", &["channels=3"]);
        assert!(text.contains("model.fpn.channels") && text.contains("model.head.channels"), "{text}");
    }
}
