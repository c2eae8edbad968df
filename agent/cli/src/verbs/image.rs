//! `image pull|pulls|push|ls|inspect|history|tag|tags|referrers|artifact|save|load|export|import|verify|rm|prune`.

mod archive;
mod inspect;
mod lists;
mod login;
mod verify;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use http::Method;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use jiff::Timestamp;
use portreeve_api::age::age;
use portreeve_api::size::size;
use portreeve_api::v1alpha1::{Image, LayerView, ObjectList, PullProgress, TriedHost};
use portreeve_node::PullReport;
use serde_json::Value;

use super::client::{Client, TABLE, empty, full, with_query};
use super::get;
use super::output::{self, Columns, Table, cell};
use super::system::{self, PruneArgs};

pub(super) use inspect::Document;
use login::Logins;
pub(super) use verify::{VerifyArgs, verify};

pub(super) const IMAGES: &str = "/apis/portreeve.dev/v1alpha1/images";
const PULLS: &str = "/apis/portreeve.dev/v1alpha1/pulls";

/// Arguments of `image`.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    verb: ImageVerb,
}

#[derive(Debug, Subcommand)]
enum ImageVerb {
    /// Pull an image from its registry
    Pull {
        /// The image, e.g. nginx:1.27 or registry.example/app@sha256:...
        reference: String,
        /// Show the progress also where there is no terminal
        #[arg(long)]
        progress: bool,
        /// Fetch layers also outside of the agent's download window
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        logins: Logins,
    },
    /// Push an image to a registry
    Push {
        /// The image, by name or id
        #[arg(value_name = "IMAGE")]
        reference: String,
        /// The name that it gets there, registry and tag with it [default: that of the image]
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// Show the progress also where there is no terminal
        #[arg(long)]
        progress: bool,
        #[command(flatten)]
        logins: Logins,
    },
    /// List the tags that a repository has in its registry
    Tags {
        /// The repository, e.g. registry.example/team/app
        repository: String,
        /// How to print
        #[arg(short, long, value_enum)]
        output: Option<Document>,
        #[command(flatten)]
        logins: Logins,
    },
    /// Fetch the files of an OCI artifact into a directory, as oras does
    Artifact {
        /// The artifact, e.g. registry.example/team/sbom:1 or one by its digest
        #[arg(value_name = "ARTIFACT")]
        reference: String,
        /// The directory: new, or an empty one
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
        #[command(flatten)]
        logins: Logins,
    },
    /// List what refers to an image in its registry: signatures, bills of materials, other artifacts
    Referrers {
        /// The image, by name
        #[arg(value_name = "IMAGE")]
        reference: String,
        /// Only those of this type, e.g. application/spdx+json
        #[arg(long, value_name = "TYPE")]
        artifact_type: Option<String>,
        /// How to print
        #[arg(short, long, value_enum)]
        output: Option<Document>,
        #[command(flatten)]
        logins: Logins,
    },
    /// Tell how far the pulls of pods' images are, why and until when others wait, and where the last ones came from
    Pulls {
        /// How to print
        #[arg(short, long, value_enum)]
        output: Option<Document>,
    },
    /// List the images on this machine
    #[command(visible_alias = "list")]
    Ls {
        /// How to print
        #[arg(short, long, value_enum)]
        output: Option<get::Format>,
    },
    /// Print all that is known of images, as docker and podman do
    Inspect {
        /// The images, by name or id
        #[arg(required = true, value_name = "IMAGE")]
        references: Vec<String>,
        /// How to print
        #[arg(short, long, value_enum, default_value = "json")]
        output: Document,
    },
    /// Tell how an image was made, the last step first, and what each step added
    History {
        /// The image, by name or id
        #[arg(value_name = "IMAGE")]
        reference: String,
        /// Print commands whole
        #[arg(long)]
        no_trunc: bool,
        /// How to print
        #[arg(short, long, value_enum)]
        output: Option<Document>,
    },
    /// Give an image one more name, which leaves the image that it was on
    Tag {
        /// The image, by name or id
        #[arg(value_name = "IMAGE")]
        reference: String,
        /// The name, with a tag or for the tag `latest`
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Save images as a tar that docker, podman and skopeo read: docker-archive and OCI layout in one
    Save {
        /// The images, by name; by id they are saved without a name
        #[arg(required = true, value_name = "IMAGE")]
        references: Vec<String>,
        /// The tar [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        logins: Logins,
    },
    /// Write images into a directory, as an OCI layout
    Export {
        /// The images, by name
        #[arg(required = true, value_name = "IMAGE")]
        references: Vec<String>,
        /// The directory: new, or an empty one
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
        #[command(flatten)]
        logins: Logins,
    },
    /// Load the images of a directory that is an OCI layout
    Import {
        /// The directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Load images from a tar: an OCI layout or what docker save writes
    Load {
        /// The tar, also compressed; - for standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Check that what is here of images still is what was fetched and unpacked, every file of it
    Verify {
        /// The images, by name or id [default: all]
        #[arg(value_name = "IMAGE")]
        references: Vec<String>,
        #[command(flatten)]
        check: VerifyArgs,
    },
    /// Remove images that no pod and no container needs
    Prune(PruneArgs),
    /// Remove an image, by name or id
    #[command(visible_alias = "remove")]
    Rm {
        /// The images
        #[arg(required = true, value_name = "IMAGE")]
        references: Vec<String>,
    },
}

pub(crate) async fn run(client: &Client, args: ImageArgs) -> anyhow::Result<ExitCode> {
    match args.verb {
        ImageVerb::Pull { reference, progress, now, logins } => {
            let auth = logins.body(&[&reference])?;
            let mut query = vec![("reference", reference.as_str())];
            query.extend(now.then_some(("now", "true")));
            let path = with_query(&format!("{IMAGES}/pull"), &query);
            transfer(client, &path, auth, &format!("pulling {reference}"), Shown::new(progress, false)).await?;
        }
        ImageVerb::Push { reference, name, progress, logins } => {
            let name = name.unwrap_or_else(|| reference.clone());
            let auth = logins.body(&[&name, &reference])?;
            let path = with_query(&format!("{IMAGES}/push"), &[("reference", &reference), ("name", &name)]);
            transfer(client, &path, auth, &format!("pushing {name}"), Shown::new(progress, true)).await?;
        }
        ImageVerb::Tags { repository, output, logins } => lists::tags(client, &repository, output, &logins).await?,
        ImageVerb::Artifact { reference, output, logins } => {
            archive::artifact(client, &reference, &logins, output).await?;
        }
        ImageVerb::Referrers { reference, artifact_type, output, logins } => {
            lists::referrers(client, &reference, artifact_type.as_deref(), output, &logins).await?;
        }
        ImageVerb::Pulls { output } => pulls(client, output).await?,
        ImageVerb::Ls { output } => list(client, output).await?,
        ImageVerb::Inspect { references, output } => inspect::inspect(client, &references, output).await?,
        ImageVerb::History { reference, no_trunc, output } => {
            inspect::history(client, &reference, no_trunc, output).await?;
        }
        ImageVerb::Tag { reference, name } => {
            let path = with_query(&format!("{IMAGES}/tag"), &[("reference", &reference), ("name", &name)]);
            let _tagged: Image = client.request(Method::POST, &path, "application/json", empty()).await?.json().await?;
        }
        ImageVerb::Verify { references, check } => return verify::verify(client, &references, &check).await,
        ImageVerb::Prune(args) => return system::prune(client, &args).await,
        ImageVerb::Save { references, output, logins } => archive::save(client, &references, &logins, output).await?,
        ImageVerb::Export { references, output, logins } => {
            archive::export(client, &references, &logins, output).await?;
        }
        ImageVerb::Import { directory } => archive::import(client, directory).await?,
        ImageVerb::Load { file } => archive::load(client, file).await?,
        ImageVerb::Rm { references } => remove(client, &references).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn transfer(client: &Client, path: &str, auth: Vec<u8>, what: &str, mut shown: Shown) -> anyhow::Result<()> {
    let mut lines = client.request(Method::POST, path, "application/json", full(auth)).await?.lines();
    while let Some(step) = lines.next::<PullProgress>().await? {
        match step {
            PullProgress::Resolving => {}
            PullProgress::Fetching { layers, host, tried } => {
                shown.hosts(host.as_deref(), &tried)?;
                shown.update(&layers)?;
            }
            PullProgress::Done { image } => {
                shown.clear();
                let digest = image.status.repo_digests.first().unwrap_or(&image.status.id);
                writeln!(io::stdout(), "{} {digest}", image.metadata.name)?;
                return Ok(());
            }
            PullProgress::Failed { message } => {
                shown.clear();
                bail!("{what}: {message}");
            }
        }
    }
    Err(anyhow!("{what}: the agent stopped before it was done"))
}

/// How a pull shows: a bar per layer on a terminal, a line per finished layer when asked for.
struct Shown {
    layers: Layers,
    /// It is a push.
    pushes: bool,
    /// Hosts that were told of.
    hosts: usize,
    from: Option<String>,
}

enum Layers {
    Bars { all: MultiProgress, bars: Vec<ProgressBar> },
    Lines { done: Vec<bool> },
    Nothing,
}

impl Shown {
    fn new(asked: bool, pushes: bool) -> Shown {
        let layers = if io::stderr().is_terminal() {
            Layers::Bars { all: MultiProgress::new(), bars: Vec::new() }
        } else if asked {
            Layers::Lines { done: Vec::new() }
        } else {
            Layers::Nothing
        };
        Shown { layers, pushes, hosts: 0, from: None }
    }

    /// Where the image comes from, when that is not the first host that was asked.
    fn hosts(&mut self, host: Option<&str>, tried: &[TriedHost]) -> io::Result<()> {
        let mut lines: Vec<String> =
            tried.iter().skip(self.hosts).map(|tried| format!("{}: {}", tried.host, tried.problem)).collect();
        self.hosts = tried.len();
        if !tried.is_empty() && host != self.from.as_deref() {
            lines.extend(host.map(|host| format!("{host}: has the image")));
            self.from = host.map(str::to_owned);
        }
        for line in lines {
            match &self.layers {
                Layers::Bars { all, .. } => all.println(line)?,
                Layers::Lines { .. } => writeln!(io::stderr(), "{line}")?,
                Layers::Nothing => {}
            }
        }
        Ok(())
    }

    fn update(&mut self, layers: &[LayerView]) -> io::Result<()> {
        let pushes = self.pushes;
        match &mut self.layers {
            Layers::Bars { all, bars } => {
                let style = ProgressStyle::with_template("{prefix:12} {bar:30} {bytes:>10} / {total_bytes:10} {msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
                while let Some(layer) = layers.get(bars.len()) {
                    let bar = all.add(ProgressBar::new(layer.total_bytes).with_style(style.clone()));
                    bar.set_prefix(short(&layer.digest));
                    bars.push(bar);
                }
                for (bar, layer) in bars.iter().zip(layers) {
                    bar.set_position(if layer.present { layer.total_bytes } else { layer.fetched_bytes });
                    bar.set_message(word(layer, pushes));
                    if layer.done && !bar.is_finished() {
                        bar.finish();
                    }
                }
            }
            Layers::Lines { done } => {
                done.resize(layers.len(), false);
                let mut err = io::stderr().lock();
                for (done, layer) in done.iter_mut().zip(layers) {
                    if layer.done && !std::mem::replace(done, true) {
                        let (name, word) = (short(&layer.digest), word(layer, pushes));
                        writeln!(err, "{name}: {word} ({} bytes{})", layer.total_bytes, parts(layer))?;
                    }
                }
            }
            Layers::Nothing => {}
        }
        Ok(())
    }

    fn clear(&self) {
        if let Layers::Bars { all, .. } = &self.layers {
            // A terminal that is gone needs no cleaning.
            let _gone = all.clear();
        }
    }
}

/// What partial pulls have made of it, when they are on.
fn parts(layer: &LayerView) -> String {
    match layer {
        LayerView { reused_bytes: 1.., .. } => format!(", {} bytes of files were here", layer.reused_bytes),
        LayerView { whole: Some(reason), .. } => format!(", fetched whole: {reason}"),
        _ => String::new(),
    }
}

fn word(layer: &LayerView, pushes: bool) -> &'static str {
    match layer {
        LayerView { foreign: true, .. } => "not to be passed on",
        LayerView { present: true, .. } if pushes => "already there",
        LayerView { present: true, .. } => "already here",
        LayerView { done: true, .. } => "done",
        LayerView { fetched_bytes: 0, .. } => "waiting",
        _ if pushes => "sending",
        LayerView { fetched_bytes, total_bytes, .. } if fetched_bytes >= total_bytes => "unpacking",
        _ => "fetching",
    }
}

fn short(digest: &str) -> String {
    digest.split_once(':').map_or(digest, |(_, hex)| hex).chars().take(12).collect()
}

async fn list(client: &Client, format: Option<get::Format>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match format {
        None | Some(get::Format::Wide) => {
            let table: Table = client.get_as(IMAGES, TABLE).await?;
            let definitions = table.column_definitions.unwrap_or_default();
            let shown: Vec<bool> = definitions.iter().map(|column| format.is_some() || column.priority == 0).collect();
            let headers = definitions.iter().zip(&shown).filter(|(_, shown)| **shown).map(|(column, _)| &column.name);
            let rows: Vec<Vec<String>> = table
                .rows
                .iter()
                .map(|row| {
                    row.cells.iter().zip(&shown).filter(|(_, shown)| **shown).map(|(value, _)| cell(value)).collect()
                })
                .collect();
            Columns::new(headers, false).print(&mut out, &rows)?;
        }
        Some(get::Format::Name) => {
            let images: ObjectList<Image> = client.get(IMAGES).await?;
            for image in images.items {
                writeln!(out, "{}", image.metadata.name)?;
            }
        }
        Some(get::Format::Json) => output::json(&mut out, &client.get::<Value>(IMAGES).await?)?,
        Some(get::Format::Yaml) => output::yaml(&mut out, &client.get::<Value>(IMAGES).await?)?,
    }
    Ok(())
}

async fn pulls(client: &Client, format: Option<Document>) -> anyhow::Result<()> {
    let pulls: ObjectList<PullReport> = client.get(PULLS).await?;
    let mut out = io::stdout().lock();
    match format {
        Some(Document::Json) => return output::json(&mut out, &pulls.items),
        Some(Document::Yaml) => return output::yaml(&mut out, &pulls.items),
        None => {}
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = pulls
        .items
        .into_iter()
        .map(|pull| {
            let PullReport { layers, layers_done, bytes, total_bytes, bytes_per_second, attempts, .. } = pull;
            let counted = |text: String| if layers == 0 { "-".to_owned() } else { text };
            vec![
                pull.image,
                pull.ended_at.map_or(pull.state.clone(), |at| format!("{} {} ago", pull.state, age(at, now))),
                counted(format!("{layers_done}/{layers}")),
                counted(format!("{}/{}", size(bytes), size(total_bytes))),
                counted(format!("{}/s", size(bytes_per_second))),
                attempts.to_string(),
                pull.next_try.map_or_else(|| "-".to_owned(), |at| age(now, at)),
                pull.message.unwrap_or_default(),
            ]
        })
        .collect();
    let titles = ["Image", "State", "Layers", "Bytes", "Rate", "Failures", "Next Try", "Message"];
    Columns::new(titles, false).print(&mut out, &rows)?;
    Ok(())
}

/// Removes each of them; what cannot be is told when the others are gone.
async fn remove(client: &Client, references: &[String]) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for reference in references {
        let removed = match get::remove(client, &with_query(IMAGES, &[("reference", reference)])).await {
            Ok(removed) => removed,
            Err(error) => {
                failed.push(format!("{error:#}"));
                continue;
            }
        };
        for line in removed.pointer("/removed").and_then(Value::as_array).into_iter().flatten() {
            writeln!(io::stdout(), "{}", cell(line))?;
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!(failed.join("\nerror: ")) }
}
