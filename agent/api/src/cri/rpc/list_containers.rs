//! `ListContainers` and `StreamContainers`: containers that a filter lets through, all of whose parts must hold.

use tonic::Status;

use super::{Answer, Batches, matches};
use crate::cri::v1::{
    Container, ContainerFilter, ListContainersRequest, ListContainersResponse, StreamContainersRequest,
    StreamContainersResponse,
};
use crate::cri::{Cri, view};

pub(super) fn answer(cri: &Cri, asked: &ListContainersRequest) -> Answer<ListContainersResponse> {
    Ok(ListContainersResponse { containers: list(cri, asked.filter.as_ref()) })
}

pub(super) fn stream(cri: &Cri, asked: &StreamContainersRequest) -> Result<Batches<StreamContainersResponse>, Status> {
    let all = list(cri, asked.filter.as_ref());
    Ok(super::batches(all, |containers| StreamContainersResponse { containers }))
}

fn list(cri: &Cri, filter: Option<&ContainerFilter>) -> Vec<Container> {
    let mut all: Vec<Container> = cri.containers().into_iter().map(view::container).collect();
    if let Some(filter) = filter {
        all.retain(|container| {
            container.id.starts_with(&filter.id)
                && container.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
                && filter.state.as_ref().is_none_or(|wanted| wanted.state == container.state)
                && matches(&filter.label_selector, &container.labels)
        });
    }
    all
}
