//! What a repository has: tags, and what refers to a manifest.
//!
//! Source: OCI distribution-spec v1.1, §Content Discovery.

use std::collections::BTreeMap;

use reqwest::{Method, Response, StatusCode, Url, header::LINK};
use serde::Deserialize;

use crate::{
    digest::Digest,
    manifest::MAX_MANIFEST,
    registry::{RegistryError, Session},
    text::shown,
};

/// Pages of one list; a registry that never comes to an end is not asked forever.
const MAX_PAGES: usize = 1000;
/// What is asked for at a time; a registry may give less.
const PAGE: &str = "n=1000";
/// Bytes of all pages of one list.
const MAX_BYTES: usize = 8 << 20;
/// Names in one list.
const MAX_NAMES: usize = 100_000;

/// What refers to a manifest: a signature, a bill of materials, or whatever its type says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// Of its manifest.
    pub digest: Digest,
    /// What kind of manifest that is.
    pub media_type: String,
    /// Bytes of the manifest.
    pub size: u64,
    /// What it is.
    #[serde(default)]
    pub artifact_type: String,
    /// What whoever pushed it says of it.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Tags {
    /// A repository without any may say so by `null`.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<serde_json::Value>,
}

impl Index {
    /// Those that have a digest by which they can be asked for; one that has none hides no other.
    fn referrers(self) -> impl Iterator<Item = Referrer> {
        self.manifests.into_iter().filter_map(|entry| serde_json::from_value(entry).ok())
    }
}

impl Session {
    /// Every tag of the repository, as the registry has them in order.
    pub(crate) async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        let mut tags = Vec::new();
        let first = format!("{}?{PAGE}", self.url("tags", "list"));
        self.pages(first, |url, page| {
            let page: Tags = parse(url, page)?;
            let page = page.tags.unwrap_or_default();
            if tags.len() + page.len() > MAX_NAMES {
                return Err(too_long(url));
            }
            tags.extend(page.iter().map(|tag| shown(tag)));
            Ok(())
        })
        .await?;
        Ok(tags)
    }

    /// What refers to a manifest; where a registry has no list of that, what a tag made of the digest lists. A registry
    /// may leave out what is not of the type, and need not.
    pub(crate) async fn referrers(
        &self,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Referrer>, RegistryError> {
        let mut found = Vec::new();
        let mut first = self.url("referrers", digest.as_str());
        if let (Some(kind), Ok(mut url)) = (artifact_type, Url::parse(&first)) {
            url.query_pairs_mut().append_pair("artifactType", kind);
            first = url.into();
        }
        let asked = self
            .pages(first, |url, page| {
                let page: Index = parse(url, page)?;
                found.extend(page.referrers());
                Ok(())
            })
            .await;
        match asked {
            // It does not know what it was asked.
            Err(error) if matches!(error.status(), Some(400 | 404 | 405 | 406 | 410 | 415 | 501)) => {}
            other => return other.map(|()| found),
        }
        let tag = format!("sha256-{}", digest.hex());
        match self.manifest(&tag).await {
            Ok(index) => Ok(parse::<Index>(&self.url("manifests", &tag), &index.bytes)?.referrers().collect()),
            Err(error) if error.status() == Some(404) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Reads a list from page to page.
    async fn pages(
        &self,
        first: String,
        mut take: impl FnMut(&str, &[u8]) -> Result<(), RegistryError>,
    ) -> Result<(), RegistryError> {
        let (mut url, mut left) = (first, MAX_BYTES);
        for _ in 0..MAX_PAGES {
            let answer = self.ask(&url, || self.request(Method::GET, &url)).await?;
            if answer.status() != StatusCode::OK {
                return Err(self.complaint(url, answer).await);
            }
            let next = self.next_page(&url, &answer)?;
            let page = self.body(&url, answer).read(MAX_MANIFEST).await?;
            left = left.checked_sub(page.len()).ok_or_else(|| too_long(&url))?;
            take(&url, &page)?;
            let Some(next) = next else { return Ok(()) };
            url = next;
        }
        Err(too_long(&url))
    }

    /// Where the list goes on. Source: RFC 8288, with one link.
    fn next_page(&self, url: &str, answer: &Response) -> Result<Option<String>, RegistryError> {
        let Some(link) = answer.headers().get(LINK).and_then(|link| link.to_str().ok()) else { return Ok(None) };
        let told =
            link.split_once('<').and_then(|(_, rest)| rest.split_once('>')).filter(|(_, rel)| rel.contains("next"));
        let Some((target, _)) = told else { return Ok(None) };
        let next = Url::parse(url).and_then(|here| here.join(target));
        // Our login goes with the request.
        match next {
            Ok(next) if next.as_str() == url => {
                let problem = "it goes on where it began".to_owned();
                Err(RegistryError::Protocol { url: url.to_owned(), problem })
            }
            Ok(next) if self.is_own(&next) => Ok(Some(next.into())),
            _ => {
                let problem = shown(&format!("it goes on at {target:?}, which is not the registry"));
                Err(RegistryError::Protocol { url: url.to_owned(), problem })
            }
        }
    }
}

fn too_long(url: &str) -> RegistryError {
    RegistryError::TooLong { url: url.to_owned(), limit: MAX_BYTES as u64 }
}

fn parse<'a, T: Deserialize<'a>>(url: &str, page: &'a [u8]) -> Result<T, RegistryError> {
    serde_json::from_slice(page).map_err(|error| RegistryError::Protocol {
        url: url.to_owned(),
        problem: shown(&format!("it is no such list: {error}")),
    })
}
