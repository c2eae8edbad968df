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
    let mut seen = Seen { lease: None, since: Instant::now() };
    let mut look_at = Instant::now();
    let mut told = false;
    loop {
        let outcome = renew(&api, config).await;
        let outcome = match outcome {
            Ok(()) if Instant::now() < look_at => Ok(None),
            Ok(()) => lead(&api, config, &mut seen).await.map(Some),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(None) => told = false,
            Ok(Some(leads)) => {
                told = false;
                // Who leads renews in time; who does not looks whether nobody does.
                look_at = Instant::now() + if leads { config.lease / 2 } else { config.lease };
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

/// The Lease of the rollouts as it was last seen, and since when, by this machine's clock: clocks of others say nothing.
struct Seen {
    lease: Option<Lease>,
    since: Instant,
}

impl Seen {
    fn take(&mut self, lease: Lease) {
        if self.lease.as_ref().is_none_or(|before| before.metadata.resource_version != lease.metadata.resource_version)
        {
            *self = Self { lease: Some(lease), since: Instant::now() };
        }
    }
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
    let ours = |lease: &Lease| {
        lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) == Some(config.node_name.as_str())
    };
    // Who has it writes what it wrote last; anybody else looks first.
    if !seen.lease.as_ref().is_some_and(ours) {
        match api.get_opt(ROLLOUTS).await? {
            Some(lease) => seen.take(lease),
            None => {
                let metadata = ObjectMeta { name: Some(ROLLOUTS.to_owned()), ..ObjectMeta::default() };
                let made = api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec(None)) }).await;
                return won(made, seen);
            }
        }
    }
    let Some(mut lease) = seen.lease.clone() else { return Ok(false) };
    let before = lease.spec.clone().unwrap_or_default();
    let length = Duration::from_secs(u64::try_from(before.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
    if !ours(&lease) && before.holder_identity.is_some() && seen.since.elapsed() < length {
        return Ok(false);
    }
    lease.spec = Some(spec(Some(&before)));
    // It names the version that was read: of two who take it at once, one does.
    won(api.replace(ROLLOUTS, &PostParams::default(), &lease).await, seen)
}

/// Whether the Lease was written; if somebody else was first, it is looked at again.
fn won(written: kube::Result<Lease>, seen: &mut Seen) -> kube::Result<bool> {
    match written {
        Ok(lease) => {
            seen.take(lease);
            Ok(true)
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
            seen.lease = None;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
