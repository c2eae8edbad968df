//! `portreeve doctor`: what this machine offers, and what to do about each lack.

mod kubelet;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use owo_colors::OwoColorize;
use portreeve_engine::image::{PolicySurvey, survey_policy};
use portreeve_engine::{AppArmor, chain, network, survey_apparmor};
use portreeve_oci::kernel::{self, Fact, Verdict};
use serde_json::json;

use crate::agent::cni_config;
use crate::config::{Config, Settings, resolve};

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// The agent's configuration file
    #[arg(long, value_name = "FILE", env = "PORTREEVE_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Also what a kubelet would meet that runs its pods here
    #[arg(long)]
    cri: bool,
    /// The kubelet's configuration file, for --cri
    #[arg(long, value_name = "FILE", default_value = kubelet::CONFIGURATION, requires = "cri")]
    kubelet_config: PathBuf,
    /// How the facts are printed
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Prints every fact; 1 when containers cannot run here, 0 otherwise.
///
/// # Errors
/// A configuration that cannot be.
pub(crate) fn run(args: DoctorArgs, run: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    // All settings of an agent, by the same flags and variables: the facts are those that it would meet.
    let config = resolve(args.config.as_deref(), Settings { run, ..args.settings })?;
    let mut facts = kernel::survey();
    facts.push(state_directory(&config.root));
    facts.push(node_name(&config));
    facts.push(image_trust(config.image_policy.as_deref()));
    facts.push(apparmor(survey_apparmor()));
    if args.cri {
        facts.extend(kubelet::facts(&config, &cni_config(&config), &args.kubelet_config));
    }
    let mut network = network::Config::new(config.run.join("network"));
    network.bridge = config.bridge;
    network.nft_table = config.nft_table;
    facts.extend(network_facts(&network::survey(&network)));
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => {
            let rows: Vec<_> = facts.iter().map(row).collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
        }
        Output::Text => {
            let width = facts.iter().map(|fact| fact.name.len()).max().unwrap_or(0);
            for fact in &facts {
                writeln!(out, "{} {:width$}  {}", mark(fact.verdict), fact.name, fact.found)?;
                if let Some(advice) = &fact.advice {
                    writeln!(out, "        {:width$}  -> {advice}", "")?;
                }
            }
        }
    }
    let fit = facts.iter().all(|fact| fact.verdict != Verdict::Missing);
    Ok(if fit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the file system of the state directory, which need not exist yet, can hold what containers write.
pub(crate) fn state_directory(root: &Path) -> Fact {
    let place = root.ancestors().find(|above| above.is_dir()).unwrap_or(Path::new("/"));
    let tried = tempfile::Builder::new().prefix(".portreeve-overlay-").tempdir_in(place);
    let mut fact = tried.and_then(|directory| kernel::overlay_upon(directory.path())).unwrap_or_else(|error| Fact {
        name: "state",
        // A full disk, for example, is no reason to leave alone what runs.
        verdict: Verdict::Limited,
        found: format!("nothing can be written there: {error}"),
        advice: Some("make room, mount it writable, or choose another root".to_owned()),
    });
    fact.found = format!("{}: {}", root.display(), fact.found);
    fact
}

/// Whether an agent would have a name for this node.
fn node_name(config: &Config) -> Fact {
    let (verdict, found, advice) = match config.node_name() {
        Ok(name) => (Verdict::Present, name, None),
        Err(error) => {
            let advice = "set nodeName or --node-name, or the machine's host name: without it no agent starts";
            (Verdict::Limited, format!("{error:#}"), Some(advice.to_owned()))
        }
    };
    Fact { name: "node name", verdict, found, advice }
}

/// What confines containers that name no AppArmor profile.
fn apparmor(found: AppArmor) -> Fact {
    let (verdict, found, advice) = match found {
        AppArmor::Ready => (Verdict::Present, "containers that name no profile have one", None),
        AppArmor::Off => (Verdict::Present, "the kernel does not confine by it", None),
        AppArmor::NoParser => {
            let advice =
                "install apparmor_parser (Debian: apparmor): until then containers have no profile of their own";
            (Verdict::Limited, "on, and nothing can load a profile", Some(advice.to_owned()))
        }
    };
    Fact { name: "AppArmor", verdict, found: found.to_owned(), advice }
}

/// Which images an agent would use.
fn image_trust(policy: Option<&Path>) -> Fact {
    let name = "image trust";
    let Some(path) = policy else {
        let found = "every image is accepted: no imagePolicy is set".to_owned();
        return Fact { name, verdict: Verdict::Present, found, advice: None };
    };
    match survey_policy(path) {
        Ok(PolicySurvey { scopes, default }) => {
            let scopes = if scopes == 1 { "1 scope".to_owned() } else { format!("{scopes} scopes") };
            let found = format!("{}: {scopes} of registries, by default {}", path.display(), default.join(" and "));
            Fact { name, verdict: Verdict::Present, found, advice: None }
        }
        Err(error) => {
            let advice = "mend it: as long as it is so, images that it concerns are neither pulled nor started; \
                          what runs goes on";
            Fact { name, verdict: Verdict::Missing, found: chain(&error), advice: Some(advice.to_owned()) }
        }
    }
}

fn row(fact: &Fact) -> serde_json::Value {
    json!({ "name": fact.name, "verdict": word(fact.verdict), "found": fact.found, "advice": fact.advice })
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Present => "ok",
        Verdict::Limited => "limited",
        Verdict::Missing => "missing",
    }
}

fn mark(verdict: Verdict) -> String {
    let word = format!("{:7}", word(verdict));
    if !std::io::stdout().is_terminal() {
        return word;
    }
    match verdict {
        Verdict::Present => word.green().to_string(),
        Verdict::Limited => word.yellow().to_string(),
        Verdict::Missing => word.red().to_string(),
    }
}

/// What the network crate found, as facts beside the kernel's.
fn network_facts(survey: &network::Survey) -> Vec<Fact> {
    let mut facts = vec![
        fault(
            "links",
            "made over netlink",
            survey.netlink_fault.as_deref(),
            "pods with a network of their own need it",
        ),
        fault(
            "nftables",
            "rules are made over netlink",
            survey.nftables_fault.as_deref(),
            "load the kernel's nf_tables, nft_nat, nft_masq and nft_fib_ipv4 modules, or use hostNetwork pods only",
        ),
        Fact {
            name: "forwarding",
            verdict: Verdict::Present,
            found: match (survey.ip_forward, survey.turned_ip_forward_on) {
                (true, true) => "on; an agent of ours turned it on".to_owned(),
                (true, false) => "on".to_owned(),
                (false, _) => "off; the agent turns net.ipv4.ip_forward on and records that it did".to_owned(),
            },
            advice: None,
        },
    ];
    for lack in &survey.lacks {
        facts.push(Fact {
            name: "nftables",
            verdict: Verdict::Limited,
            found: lack.to_string(),
            advice: Some("load the module or use a kernel built with the option, then restart the agent".to_owned()),
        });
    }
    for chain in survey.foreign_drops.iter().filter(|chain| !chain.accepts_our_bridge) {
        facts.push(Fact {
            name: "firewall",
            verdict: if chain.blocks_pods() { Verdict::Limited } else { Verdict::Present },
            found: chain.to_string(),
            advice: Some("accept packets that enter or leave through the pods' bridge in that chain".to_owned()),
        });
    }
    if !survey.legacy_iptables.is_empty() {
        facts.push(Fact {
            name: "iptables",
            verdict: Verdict::Limited,
            found: format!("legacy tables are in use: {}", survey.legacy_iptables.join(" ")),
            advice: Some("check with iptables-legacy -S FORWARD that nothing drops the pods' packets".to_owned()),
        });
    }
    facts
}

fn fault(name: &'static str, fine: &str, fault: Option<&str>, advice: &str) -> Fact {
    match fault {
        None => Fact { name, verdict: Verdict::Present, found: fine.to_owned(), advice: None },
        Some(found) => {
            Fact { name, verdict: Verdict::Limited, found: found.to_owned(), advice: Some(advice.to_owned()) }
        }
    }
}
