//! Networks as an administrator configures them: `*.conflist`, and single plugins in `*.conf` and `*.json`.
//!
//! What plugins make of their own fields is theirs: these are kept as they are.
//! Source: CNI specification 1.1 §Section 1, and 0.3.1, 0.4.0, 1.0.0 for what older networks say.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::CniError;

/// Nobody configures a network with more.
const MAX_BYTES: u64 = 1 << 20;

/// A version of the specification that is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: `CHECK`, and the result of `ADD` for `DEL`.
    V0_4_0,
    /// 1.0.0: addresses without a version.
    V1_0_0,
    /// 1.1.0: `GC` and `STATUS`.
    V1_1_0,
}

impl SpecVersion {
    const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// As configurations write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

/// A network: plugins that are run one behind the other.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// Unique on the machine.
    pub name: String,
    /// What all its plugins are spoken to in.
    pub version: SpecVersion,
    /// The file that it is from.
    pub path: PathBuf,
    pub(super) check: bool,
    pub(super) collect: bool,
    pub(super) plugins: Vec<Plugin>,
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plugin {
    /// The name of its program.
    pub(super) kind: String,
    /// What it takes of a pod beyond the usual.
    pub(super) capabilities: BTreeSet<String>,
    fields: Map<String, Value>,
}

impl Plugin {
    /// What the plugin reads, without what belongs to one pod.
    pub(super) fn configuration(&self, network: &NetworkList) -> Map<String, Value> {
        let mut fields = self.fields.clone();
        fields.insert("name".to_owned(), network.name.as_str().into());
        fields.insert("cniVersion".to_owned(), network.version.as_str().into());
        fields
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    name: Option<String>,
    cni_version: Option<String>,
    #[serde(default)]
    cni_versions: Vec<String>,
    #[serde(default)]
    disable_check: Flag,
    #[serde(default, rename = "disableGC")]
    disable_gc: Flag,
    plugins: Option<Vec<Map<String, Value>>>,
    #[serde(default)]
    load_only_inlined_plugins: bool,
}

/// Older versions have it as text.
#[derive(Default)]
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Bool(flag) => Ok(Self(flag)),
            Value::String(text) if text == "true" => Ok(Self(true)),
            Value::String(text) if text == "false" || text.is_empty() => Ok(Self(false)),
            other => Err(serde::de::Error::custom(format!("{other} is neither true nor false"))),
        }
    }
}

impl NetworkList {
    /// The first network of a directory, by the names of its files; `None` when there is none. A file that cannot be
    /// used is passed over with a word, as long as there is another one.
    ///
    /// # Errors
    /// When every file of a network is unusable: what is wrong with the first.
    pub fn first_of(directory: &Path) -> Result<Option<Self>, CniError> {
        let failed = |source| CniError::Io { operation: "listing", path: directory.to_owned(), source };
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let paths: Result<BTreeSet<PathBuf>, io::Error> = entries.map(|entry| Ok(entry?.path())).collect();
        let is_network = |path: &PathBuf| {
            path.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "conflist" | "conf" | "json"))
        };
        let mut refused = None;
        for path in paths.map_err(failed)?.into_iter().filter(is_network) {
            match Self::read(&path) {
                Ok(network) => return Ok(Some(network)),
                Err(error) => {
                    tracing::warn!(%error, "a network configuration is passed over");
                    refused = refused.or(Some(error));
                }
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// Names of the programs that its plugins are, in the order in which they run.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|plugin| plugin.kind.as_str())
    }

    /// The network of one file.
    ///
    /// # Errors
    /// When it cannot be read or used.
    pub fn read(path: &Path) -> Result<Self, CniError> {
        let failed = |source| CniError::Io { operation: "reading", path: path.to_owned(), source };
        let length = fs::metadata(path).map_err(failed)?.len();
        if length > MAX_BYTES {
            let problem = format!("it has {length} bytes, more than {MAX_BYTES}");
            return Err(CniError::Configuration { path: path.to_owned(), problem });
        }
        Self::parse(path, &fs::read_to_string(path).map_err(failed)?)
    }

    /// The network of a text that came from `path`.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, CniError> {
        let wrong = |problem: String| CniError::Configuration { path: path.to_owned(), problem };
        let raw: Raw = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let name = raw.name.filter(|name| is_name(name)).ok_or_else(|| {
            wrong("its name must begin with a letter or digit and have only these, '_', '.' and '-'".to_owned())
        })?;
        let version = version(raw.cni_version.as_deref(), &raw.cni_versions).map_err(wrong)?;
        let mut plugins = match raw.plugins {
            Some(plugins) => plugins,
            // A file of one plugin is the list of that.
            None => vec![serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?],
        };
        if !raw.load_only_inlined_plugins && plugins.is_empty() {
            plugins = beside(path, &name)?;
        }
        if plugins.is_empty() {
            return Err(wrong("it has no plugins".to_owned()));
        }
        let plugins = plugins.into_iter().map(plugin).collect::<Result<_, _>>().map_err(wrong)?;
        let (check, collect) = (!raw.disable_check.0, !raw.disable_gc.0);
        Ok(Self { name, version, path: path.to_owned(), check, collect, plugins })
    }

    /// Whether its plugins say by themselves whether pods can be attached.
    #[must_use]
    pub fn tells_status(&self) -> bool {
        self.version >= SpecVersion::V1_1_0
    }

    /// All of it in one document, also what is in other files, for [`NetworkList::parse`].
    pub(super) fn whole(&self) -> Value {
        json!({
            "name": self.name,
            "cniVersion": self.version.as_str(),
            "disableCheck": !self.check,
            "disableGC": !self.collect,
            "plugins": self.plugins.iter().map(|plugin| &plugin.fields).collect::<Vec<_>>(),
        })
    }
}

/// The plugins that a list without any has in a directory of its name, by the names of their files.
fn beside(path: &Path, name: &str) -> Result<Vec<Map<String, Value>>, CniError> {
    let directory = path.parent().unwrap_or(path).join(name);
    let Ok(entries) = fs::read_dir(&directory) else { return Ok(Vec::new()) };
    let files: BTreeSet<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "conf"));
    files
        .map(|path| {
            let text = fs::read_to_string(&path);
            let text = text.map_err(|source| CniError::Io { operation: "reading", path: path.clone(), source })?;
            let wrong = |error: serde_json::Error| CniError::Configuration { path, problem: error.to_string() };
            serde_json::from_str(&text).map_err(wrong)
        })
        .collect()
}

/// The newest version that both sides know.
fn version(single: Option<&str>, several: &[String]) -> Result<SpecVersion, String> {
    let offered: Vec<&str> = several.iter().map(String::as_str).chain(single).collect();
    offered.iter().copied().filter_map(SpecVersion::named).max().ok_or_else(|| {
        let known: Vec<&str> = SpecVersion::ALL.into_iter().map(SpecVersion::as_str).collect();
        let offered = if offered.is_empty() { "none".to_owned() } else { offered.join(", ") };
        format!("its cniVersion is {offered}, known are {}", known.join(", "))
    })
}

fn plugin(fields: Map<String, Value>) -> Result<Plugin, String> {
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let ipam = fields.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
    for kind in [Some(kind.as_str()), ipam].into_iter().flatten() {
        // It becomes a path below the directories of plugins (CVE-2021-20206).
        if kind.is_empty() || kind == "." || kind == ".." || kind.contains(['/', '\0']) {
            return Err(format!("{kind:?} is no type of a plugin: it must be the name of a program"));
        }
    }
    let capabilities = fields.get("capabilities").and_then(Value::as_object);
    let capabilities = capabilities.into_iter().flatten().filter(|(_, wanted)| wanted.as_bool() == Some(true));
    Ok(Plugin { kind, capabilities: capabilities.map(|(name, _)| name.clone()).collect(), fields })
}

/// What networks and containers may be called.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    name.len() <= 128
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && name.as_bytes().iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetworkList, String> {
        NetworkList::parse(Path::new("/n/10.conflist"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn lists_and_single_plugins_are_read() {
        let list = parse(
            r#"{"cniVersion":"0.4.0","cniVersions":["1.0.0","1.1.0","9.9.9"],"name":"a.b","disableCheck":"true",
                "plugins":[{"type":"bridge","bridge":"cni0","name":"other"},
                           {"type":"portmap","capabilities":{"portMappings":true,"ips":false}}]}"#,
        )
        .unwrap();
        assert_eq!(
            (list.name.as_str(), list.version, list.check, list.collect),
            ("a.b", SpecVersion::V1_1_0, false, true)
        );
        let configuration = list.plugins[0].configuration(&list);
        assert_eq!((&configuration["name"], &configuration["bridge"]), (&"a.b".into(), &"cni0".into()));
        assert_eq!(configuration["cniVersion"], "1.1.0");
        assert_eq!(list.plugins[1].capabilities, ["portMappings".to_owned()].into());
        let again = parse(&list.whole().to_string()).unwrap();
        assert_eq!((again.whole(), again.version), (list.whole(), SpecVersion::V1_1_0));
        let single = parse(r#"{"cniVersion":"0.3.1","name":"lo","type":"loopback"}"#).unwrap();
        assert_eq!((single.plugins.len(), single.plugins[0].kind.as_str()), (1, "loopback"));
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        for (text, why) in [
            ("{", "EOF"),
            (r#"{"name":"a","plugins":[{"type":"x"}]}"#, "cniVersion is none, known are 0.3.1"),
            (r#"{"name":"a","cniVersion":"2.0.0","plugins":[{"type":"x"}]}"#, "cniVersion is 2.0.0"),
            (r#"{"name":"../a","cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#, "its name must"),
            (r#"{"name":"a","cniVersion":"1.0.0","plugins":[]}"#, "no plugins"),
            (r#"{"name":"a","cniVersion":"1.0.0","plugins":[{"type":"../../bin/sh"}]}"#, "no type of a plugin"),
            (r#"{"name":"a","cniVersion":"1.0.0","plugins":[{"type":"x","ipam":{"type":"../sh"}}]}"#, "no type"),
            (r#"{"name":"a","cniVersion":"1.0.0","plugins":[{}]}"#, "no type of a plugin"),
            (r#"{"name":"a","cniVersion":"1.0.0","disableCheck":3,"plugins":[{"type":"x"}]}"#, "neither true nor"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why) && error.contains("/n/10.conflist"), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_usable_file_by_name_counts() {
        let directory = tempfile::tempdir().unwrap();
        let name = |found: Result<Option<NetworkList>, CniError>| found.unwrap().map(|network| network.name);
        assert_eq!(name(NetworkList::first_of(&directory.path().join("absent"))), None);
        assert_eq!(name(NetworkList::first_of(directory.path())), None);
        let write = |file: &str, text: &str| fs::write(directory.path().join(file), text).unwrap();
        write("00-note.txt", "no network");
        write("05-broken.conf", "{");
        assert!(NetworkList::first_of(directory.path()).unwrap_err().to_string().contains("05-broken.conf"));
        write("20-b.conf", r#"{"cniVersion":"1.0.0","name":"b","type":"x"}"#);
        write("10-a.conflist", r#"{"cniVersion":"1.1.0","name":"a","plugins":[]}"#);
        assert_eq!(name(NetworkList::first_of(directory.path())).as_deref(), Some("b"), "a has no plugins yet");
        fs::create_dir(directory.path().join("a")).unwrap();
        write("a/10-x.conf", r#"{"type":"x"}"#);
        assert_eq!(name(NetworkList::first_of(directory.path())).as_deref(), Some("a"));
    }
}
