//! `ListPodSandbox` and `StreamPodSandboxes`: sandboxes that a filter lets through, all of whose parts must hold.

use tonic::Status;

use super::{Answer, Batches, matches};
use crate::cri::v1::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter, StreamPodSandboxesRequest,
    StreamPodSandboxesResponse,
};
use crate::cri::{Cri, view};

pub(super) fn answer(cri: &Cri, asked: &ListPodSandboxRequest) -> Answer<ListPodSandboxResponse> {
    Ok(ListPodSandboxResponse { items: list(cri, asked.filter.as_ref()) })
}

pub(super) fn stream(
    cri: &Cri,
    asked: &StreamPodSandboxesRequest,
) -> Result<Batches<StreamPodSandboxesResponse>, Status> {
    let all = list(cri, asked.filter.as_ref());
    Ok(super::batches(all, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
}

fn list(cri: &Cri, filter: Option<&PodSandboxFilter>) -> Vec<PodSandbox> {
    let mut all: Vec<PodSandbox> = cri.sandboxes().into_iter().map(view::sandbox).collect();
    if let Some(filter) = filter {
        all.retain(|sandbox| {
            sandbox.id.starts_with(&filter.id)
                && filter.state.as_ref().is_none_or(|wanted| wanted.state == sandbox.state)
                && matches(&filter.label_selector, &sandbox.labels)
        });
    }
    all
}
