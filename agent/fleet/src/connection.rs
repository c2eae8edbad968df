//! How the API server is reached, and again when credentials change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use portreeve_crds::WorkloadReport;
use portreeve_node::Node;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::keeper::{Holding, Said};
use crate::{FleetConfig, configs, herald, judge, lease, watching};

/// Between attempts to reach a server whose credentials do not work.
const AGAIN: Duration = Duration::from_secs(5);

/// How an API server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A kubeconfig file, with its current context.
    Kubeconfig(PathBuf),
    /// The ServiceAccount of the pod that this agent runs in.
    InCluster,
}

/// Why an API server cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig {path} cannot be used: {reason}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// This agent runs in no pod.
    #[error("this agent has no ServiceAccount: {0}; outside a cluster, name a kubeconfig")]
    InCluster(String),
    /// No client can be made.
    #[error("no client can be made of these credentials: {0}")]
    Client(String),
}

impl Credentials {
    async fn config(&self) -> Result<Config, ConnectError> {
        let mut config = match self {
            Self::Kubeconfig(path) => {
                let failed = |error: kube::config::KubeconfigError| ConnectError::Kubeconfig {
                    path: path.clone(),
                    reason: error.to_string(),
                };
                let file = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)?
            }
            Self::InCluster => Config::incluster().map_err(|error| ConnectError::InCluster(error.to_string()))?,
        };
        config.connect_timeout = Some(Duration::from_secs(10));
        Ok(config)
    }

    /// The server's address.
    pub(crate) async fn server(&self) -> Result<String, ConnectError> {
        Ok(self.config().await?.cluster_url.to_string().trim_end_matches('/').to_owned())
    }

    async fn connect(&self) -> Result<Client, ConnectError> {
        Client::try_from(self.config().await?).map_err(|error| ConnectError::Client(error.to_string()))
    }
}

/// Whether the server does not know who asks: other credentials may lie where these were.
pub(crate) fn is_unauthorized(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 401)
}

/// Follows the server and reports to it, with new credentials when the old ones are refused; never ends.
pub(crate) async fn run(
    config: FleetConfig,
    node: Node,
    said: mpsc::Sender<Said>,
    holdings: watch::Receiver<Arc<Vec<Holding>>>,
    reports: watch::Receiver<Vec<WorkloadReport>>,
) {
    loop {
        let client = match config.credentials.connect().await {
            Ok(client) => client,
            Err(error) => {
                // Nobody listens only at the end.
                let _ = said.send(Said::Trouble(Some(error.to_string()))).await;
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let (labels_out, labels) = watch::channel(None);
        let (touched_out, touched) = mpsc::unbounded_channel();
        let (leading_out, leading) = watch::channel(false);
        tokio::select! {
            // Each ends only when its credentials are refused; what it had begun is begun again.
            () = herald::run(&config, client.clone(), node.clone(), said.clone(), reports.clone(), labels_out) => {}
            () = watching::run(client.clone(), said.clone(), labels, touched_out) => {}
            () = configs::run(client.clone(), said.clone(), holdings.clone()) => {}
            () = lease::run(&config, client.clone(), leading_out) => {}
            () = judge::run(&config, client, leading, touched) => {}
        }
        warn!("the API server refused this agent's credentials: reading them again");
        // As above.
        let _ = said.send(Said::Trouble(Some("the API server refuses the credentials".to_owned()))).await;
        tokio::time::sleep(AGAIN).await;
    }
}
