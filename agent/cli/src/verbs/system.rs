//! `system df`, `system check` and `system prune`, and the pruning of images.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use http::Method;
use portreeve_api::size::size;
use portreeve_api::v1alpha1::{DiskReport, PruneReport};

use super::client::{Client, empty};
use super::image::{self, Document, IMAGES, VerifyArgs};
use super::output::{self, Columns};

const DISK: &str = "/apis/portreeve.dev/v1alpha1/disk";

/// Arguments of `system`.
#[derive(Debug, Args)]
pub(crate) struct SystemArgs {
    #[command(subcommand)]
    verb: SystemVerb,
}

#[derive(Debug, Subcommand)]
enum SystemVerb {
    /// Tell what images, containers, volumes and logs take on the disk, and what of it could go
    Df {
        /// How to print
        #[arg(short, long, value_enum)]
        output: Option<Document>,
    },
    /// Check that what is here of all images still is what was fetched and unpacked
    Check(VerifyArgs),
    /// Remove what nobody needs: images without a tag, layers of pulls that were broken off
    Prune(PruneArgs),
}

/// Arguments of `image prune` and `system prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove every image that no pod and no container needs, also those with a tag
    #[arg(short, long)]
    all: bool,
    /// Do not ask before
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn run(client: &Client, args: SystemArgs) -> anyhow::Result<ExitCode> {
    match args.verb {
        SystemVerb::Df { output } => df(client, output).await?,
        SystemVerb::Check(args) => return image::verify(client, &[], &args).await,
        SystemVerb::Prune(args) => return prune(client, &args).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn df(client: &Client, format: Option<Document>) -> anyhow::Result<()> {
    // Every directory of every pod is read.
    let answer = client.request_long(Method::GET, DISK, "application/json", empty()).await?;
    let report: DiskReport = answer.json().await?;
    let mut out = io::stdout().lock();
    match format {
        Some(Document::Json) => return output::json(&mut out, &report),
        Some(Document::Yaml) => return output::yaml(&mut out, &report),
        None => {}
    }
    let (images, pods) = (&report.images, &report.pods);
    let row = |kind: &str, count: u64, needed: u64, bytes: u64, reclaimable: u64| {
        let share = (reclaimable * 100).checked_div(bytes).unwrap_or(0);
        let reclaimable = format!("{} ({share}%)", size(reclaimable));
        vec![kind.to_owned(), count.to_string(), needed.to_string(), size(bytes), reclaimable]
    };
    // What pods have goes with their manifests, and blobs with their images.
    let all_needed =
        |kind, stored: portreeve_api::v1alpha1::Stored| row(kind, stored.count, stored.count, stored.bytes, 0);
    let rows = [
        row("Images", images.count, images.needed, images.bytes, images.reclaimable_bytes),
        all_needed("Image blobs", images.blobs),
        all_needed("Containers", pods.containers),
        all_needed("Volumes", pods.volumes),
        all_needed("Logs", pods.logs),
    ];
    Columns::new(["Type", "Total", "Active", "Size", "Reclaimable"], false).print(&mut out, &rows)?;
    let disk = &report.filesystem;
    writeln!(
        out,
        "{} of {} are free on the disk of the images",
        size(disk.available_bytes),
        size(disk.capacity_bytes)
    )?;
    Ok(())
}

pub(crate) async fn prune(client: &Client, args: &PruneArgs) -> anyhow::Result<ExitCode> {
    if !args.force && !confirmed(args.all)? {
        return Ok(ExitCode::FAILURE);
    }
    let path = format!("{IMAGES}/prune?all={}", args.all);
    let answer = client.request_long(Method::POST, &path, "application/json", empty()).await?;
    let report: PruneReport = answer.json().await?;
    let mut out = io::stdout().lock();
    for image in &report.images {
        writeln!(out, "Deleted: {image}")?;
    }
    writeln!(out, "Total reclaimed space: {}", size(report.freed_bytes))?;
    Ok(ExitCode::SUCCESS)
}

/// Asks a person; who is none, or says nothing, means no.
fn confirmed(all: bool) -> anyhow::Result<bool> {
    let what =
        if all { "every image that no pod and no container needs" } else { "images without a tag that nobody needs" };
    let mut err = io::stderr().lock();
    if !io::stdin().is_terminal() {
        writeln!(err, "error: this removes {what}; without a terminal to ask on, say so with --force")?;
        return Ok(false);
    }
    write!(err, "This removes {what}. Go on? [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
