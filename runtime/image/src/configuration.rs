//! Image configurations: what a container needs of them is kept, and that is bounded; the rest
//! (labels, history, ports) stays in the blob.
//!
//! Source: OCI image-spec `config.md`; Docker image spec v1.2.

use std::{fmt, sync::Arc};

use oci_spec::image::{Arch, Config, ImageConfiguration, Os};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::{digest::Digest, manifest::MAX_LAYERS, platform::Platform};

/// Most variables, arguments or volumes of one image.
const MAX_WORDS: usize = 10_000;
/// Most bytes of all that is kept of one configuration; an honest one has a few KiB.
const MAX_TEXT: usize = 1 << 20;

/// What is needed of an image's configuration.
#[derive(Debug, Clone)]
pub(crate) struct ImageConfig {
    /// Platform, user, variables, arguments, volumes, directory and stop signal.
    pub(crate) parsed: Arc<ImageConfiguration>,
    /// Lowest first.
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) created: Option<jiff::Timestamp>,
}

#[derive(Deserialize)]
struct Raw {
    architecture: String,
    os: String,
    variant: Option<String>,
    created: Option<String>,
    config: Option<RawConfig>,
    rootfs: RawRoot,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    user: Option<String>,
    env: Option<Words<MAX_WORDS>>,
    entrypoint: Option<Words<MAX_WORDS>>,
    cmd: Option<Words<MAX_WORDS>>,
    volumes: Option<Words<MAX_WORDS>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RawRoot {
    diff_ids: Words<MAX_LAYERS>,
}

/// A list of words, or the keys of an object: the first `MAX` of them, and how many there are.
struct Words<const MAX: usize> {
    kept: Vec<String>,
    count: usize,
}

impl<'de, const MAX: usize> Deserialize<'de> for Words<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordsVisitor::<MAX>)
    }
}

struct WordsVisitor<const MAX: usize>;

impl<'de, const MAX: usize> Visitor<'de> for WordsVisitor<MAX> {
    type Value = Words<MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings, or an object")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut words = Words { kept: Vec::new(), count: 0 };
        while words.count < MAX
            && let Some(word) = list.next_element()?
        {
            words.kept.push(word);
            words.count += 1;
        }
        while words.count >= MAX && list.next_element::<IgnoredAny>()?.is_some() {
            words.count += 1;
        }
        Ok(words)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut words = Words { kept: Vec::new(), count: 0 };
        while words.count < MAX
            && let Some((word, IgnoredAny)) = map.next_entry()?
        {
            words.kept.push(word);
            words.count += 1;
        }
        while words.count >= MAX && map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            words.count += 1;
        }
        Ok(words)
    }
}

impl<const MAX: usize> Words<MAX> {
    fn take(self, what: &str) -> Result<Vec<String>, String> {
        match self.count {
            count if count > MAX => Err(format!("has {count} {what}, more than {MAX}")),
            _ => Ok(self.kept),
        }
    }
}

/// Reads a configuration.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfig, String> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| format!("is not valid: {e}"))?;
    let diff_ids = raw.rootfs.diff_ids.take("layers")?;
    let diff_ids = diff_ids
        .iter()
        .map(|id| id.parse::<Digest>().map_err(|e| format!("has a bad diff id: {e}")))
        .collect::<Result<Vec<_>, _>>()?;
    let created = raw.created.and_then(|t| t.parse().ok());
    let mut parsed = ImageConfiguration::default();
    parsed.set_architecture(Arch::from(raw.architecture.as_str()));
    parsed.set_os(Os::from(raw.os.as_str()));
    let mut text = raw.architecture.len() + raw.os.len() + raw.variant.as_ref().map_or(0, String::len);
    parsed.set_variant(raw.variant);
    if let Some(raw) = raw.config {
        let words = |words: Option<Words<MAX_WORDS>>, what| words.map(|w| w.take(what)).transpose();
        let lists = [
            words(raw.env, "environment variables")?,
            words(raw.entrypoint, "words of its entrypoint")?,
            words(raw.cmd, "words of its command")?,
            words(raw.volumes, "volumes")?,
        ];
        let texts = [raw.user, raw.working_dir, raw.stop_signal];
        text += lists.iter().flatten().flatten().chain(texts.iter().flatten()).map(String::len).sum::<usize>();
        let ([env, entrypoint, cmd, volumes], [user, working_dir, stop_signal]) = (lists, texts);
        let mut config = Config::default();
        config.set_env(env);
        config.set_entrypoint(entrypoint);
        config.set_cmd(cmd);
        config.set_volumes(volumes);
        config.set_user(user);
        config.set_working_dir(working_dir);
        config.set_stop_signal(stop_signal);
        parsed.set_config(Some(config));
    }
    if text > MAX_TEXT {
        return Err(format!("has {text} bytes of variables, commands and volumes, more than {MAX_TEXT}"));
    }
    Ok(ImageConfig { parsed: Arc::new(parsed), diff_ids, created })
}

impl ImageConfig {
    /// `Err` names the platform that the image is for instead.
    pub(crate) fn check_platform(&self, wanted: &Platform) -> Result<(), String> {
        let (os, architecture) = (self.parsed.os().to_string(), self.parsed.architecture().to_string());
        match wanted.distance(&os, &architecture, self.parsed.variant().as_deref()) {
            Some(_) => Ok(()),
            None => Err(format!("{os}/{architecture}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn config(config: Value, layers: usize) -> Result<ImageConfig, String> {
        let ids = vec![Digest::of(b"x"); layers];
        let text = json!({"architecture": "amd64", "os": "linux", "created": "2020-01-02T03:04:05Z", "config": config,
                          "rootfs": {"type": "layers", "diff_ids": ids}, "history": [{"created_by": "x"}]});
        parse_config(text.to_string().as_bytes())
    }

    #[test]
    fn only_what_a_container_needs_is_kept_in_memory() {
        let labels: serde_json::Map<String, Value> = (0..50_000).map(|i| (i.to_string(), json!("x"))).collect();
        let needed = json!({"User": "7:8", "Env": ["A=b"], "Entrypoint": ["/e"], "Cmd": null, "WorkingDir": "/w",
                            "Volumes": {"/v": {}}, "StopSignal": "SIGINT"});
        let mut whole = needed.clone();
        whole["Labels"] = Value::Object(labels);
        whole["ExposedPorts"] = json!({"80/tcp": {}});
        let (kept, whole) = (config(needed.clone(), 2).unwrap(), config(whole, 2).unwrap());
        assert_eq!(whole.parsed, kept.parsed);
        // The same as the specification's own type reads, where it counts.
        let reference: Config = serde_json::from_value(needed).unwrap();
        assert_eq!(kept.parsed.config().as_ref(), Some(&reference));
        assert_eq!((kept.parsed.history(), kept.diff_ids.len(), kept.created.is_some()), (&None, 2, true));
        assert!(config(Value::Null, 0).unwrap().parsed.config().is_none());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let many = |n: usize| vec!["x"; n];
        let keys = |n: usize| Value::Object((0..n).map(|i| (i.to_string(), json!({}))).collect());
        for (case, layers, problem) in [
            (json!({"Env": many(10_001)}), 1, "has 10001 environment variables, more than 10000"),
            (json!({"Cmd": many(20_000)}), 1, "has 20000 words of its command, more than 10000"),
            (json!({"Volumes": keys(10_001)}), 1, "has 10001 volumes, more than 10000"),
            (json!({"Env": ["x".repeat(MAX_TEXT)]}), 1, "bytes of variables"),
            (json!({"User": "x".repeat(MAX_TEXT)}), 1, "bytes of variables"),
            (json!({}), 500, "has 500 layers, more than 499"),
        ] {
            let error = config(case, layers).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
        config(json!({"Env": many(10_000), "Volumes": keys(10_000)}), 499).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _refused = parse_config(&bytes);
        }
    }
}
