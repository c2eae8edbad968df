//! `image tags` and `image referrers`.

use std::io::{self, Write};

use http::Method;
use portreeve_api::size::size;
use portreeve_api::v1alpha1::{ReferrerList, TagList};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Document, IMAGES, Logins};
use crate::verbs::client::{Client, full, with_query};
use crate::verbs::output::{self, Columns};

pub(super) async fn tags(
    client: &Client,
    repository: &str,
    format: Option<Document>,
    logins: &Logins,
) -> anyhow::Result<()> {
    let list: TagList = ask(client, "tags", repository, logins).await?;
    if printed(&list, format)? {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    for tag in &list.tags {
        writeln!(out, "{tag}")?;
    }
    Ok(())
}

pub(super) async fn referrers(
    client: &Client,
    reference: &str,
    artifact_type: Option<&str>,
    format: Option<Document>,
    logins: &Logins,
) -> anyhow::Result<()> {
    let mut list: ReferrerList = ask(client, "referrers", reference, logins).await?;
    list.referrers.retain(|referrer| artifact_type.is_none_or(|wanted| referrer.artifact_type == wanted));
    if printed(&list, format)? {
        return Ok(());
    }
    let row = |referrer: &portreeve_api::v1alpha1::ReferrerView| {
        let kind = if referrer.artifact_type.is_empty() { &referrer.media_type } else { &referrer.artifact_type };
        vec![referrer.digest.clone(), kind.clone(), size(referrer.size)]
    };
    let rows: Vec<Vec<String>> = list.referrers.iter().map(row).collect();
    Columns::new(["Digest", "Artifact Type", "Size"], false).print(&mut io::stdout().lock(), &rows)?;
    Ok(())
}

async fn ask<T: DeserializeOwned>(client: &Client, what: &str, reference: &str, logins: &Logins) -> anyhow::Result<T> {
    let path = with_query(&format!("{IMAGES}/{what}"), &[("reference", reference)]);
    let body = full(logins.body(&[reference])?);
    client.request(Method::POST, &path, "application/json", body).await?.json().await
}

/// Prints what is wanted as a document.
fn printed(list: &impl Serialize, format: Option<Document>) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match format {
        Some(Document::Json) => output::json(&mut out, list)?,
        Some(Document::Yaml) => output::yaml(&mut out, list)?,
        None => return Ok(false),
    }
    Ok(true)
}
