//! Leases: that this agent lives, and which agent judges the rollouts.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::FleetConfig;
use crate::connection::is_unauthorized;

/// The Lease of the agent that judges the rollouts.
const ROLLOUTS: &str = "portreeve-rollouts";
/// Who writes the fields that are the agents'.
pub(crate) const MANAGER: &str = "portreeve";
/// A Lease is renewed so many times before it ends.
const RENEWALS: u32 = 3;

/// Renews both until the credentials are refused; says in `leading` whether this agent judges.
pub(crate) async fn run(config: &FleetConfig, client: Client, leading: watch::Sender<bool>) {
    let api: Api<Lease> = Api::namespaced(client, &config.namespace);
    let mut seen = Seen { holder: None, renewed: None, since: Instant::now() };
    let mut told = false;
    loop {
        let outcome = renew(&api, config).await;
        let outcome = match outcome {
            Ok(()) => lead(&api, config, &mut seen).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(leads) => {
                told = false;
                leading.send_if_modified(|leading| {
                    let changed = *leading != leads;
                    if changed && leads {
                        info!("this agent judges the rollouts");
                    }
                    *leading = leads;
                    changed
                });
            }
            Err(error) if is_unauthorized(&error) => return,
            Err(error) => {
                leading.send_if_modified(std::mem::take);
                if !std::mem::replace(&mut told, true) {
                    warn!(namespace = %config.namespace, error = %error, "the Lease of this agent cannot be renewed");
                }
            }
        }
        tokio::time::sleep(config.lease / RENEWALS).await;
    }
}

/// Says that this agent lives.
async fn renew(api: &Api<Lease>, config: &FleetConfig) -> kube::Result<()> {
    let lease = Lease {
        metadata: ObjectMeta { name: Some(config.node_name.clone()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(config.node_name.clone()),
            lease_duration_seconds: i32::try_from(config.lease.as_secs()).ok(),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    api.patch(&config.node_name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&lease)).await?;
    Ok(())
}

/// What was last seen of the Lease of the rollouts, and since when, by this machine's clock: clocks of others say nothing.
struct Seen {
    holder: Option<String>,
    renewed: Option<MicroTime>,
    since: Instant,
}

/// Takes or keeps the Lease of the rollouts, if nobody else has it.
async fn lead(api: &Api<Lease>, config: &FleetConfig, seen: &mut Seen) -> kube::Result<bool> {
    let spec = |before: Option<&LeaseSpec>| {
        let now = MicroTime(Timestamp::now());
        let same = before.is_some_and(|spec| spec.holder_identity.as_deref() == Some(&config.node_name));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0) + i32::from(!same);
        let acquired = before.filter(|_| same).and_then(|spec| spec.acquire_time.clone());
        LeaseSpec {
            holder_identity: Some(config.node_name.clone()),
            lease_duration_seconds: i32::try_from(config.lease.as_secs()).ok(),
            acquire_time: acquired.or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    };
    let Some(mut lease) = api.get_opt(ROLLOUTS).await? else {
        let metadata = ObjectMeta { name: Some(ROLLOUTS.to_owned()), ..ObjectMeta::default() };
        return won(api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec(None)) }).await);
    };
    let before = lease.spec.clone().unwrap_or_default();
    if before.holder_identity != seen.holder || before.renew_time != seen.renewed {
        *seen =
            Seen { holder: before.holder_identity.clone(), renewed: before.renew_time.clone(), since: Instant::now() };
    }
    let ours = before.holder_identity.as_deref() == Some(&config.node_name);
    let length = Duration::from_secs(u64::try_from(before.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
    if !ours && before.holder_identity.is_some() && seen.since.elapsed() < length {
        return Ok(false);
    }
    lease.spec = Some(spec(Some(&before)));
    // It names the version that was read: of two who take it at once, one does.
    won(api.replace(ROLLOUTS, &PostParams::default(), &lease).await)
}

fn won<T>(written: kube::Result<T>) -> kube::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
