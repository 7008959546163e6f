//! A blocking client of the few CRI calls that the harness makes, over the runtime's Unix socket.

pub mod messages;

use std::io;
use std::path::Path;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio::runtime::{Builder, Runtime};
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use messages::{
    CreateContainerRequest, CreateContainerResponse, Empty, ExecSyncRequest, ExecSyncResponse, IdRequest,
    ListImagesResponse, ListPodSandboxResponse, PodSandboxStatusRequest, PodSandboxStatusResponse,
    RunPodSandboxRequest, RunPodSandboxResponse, RuntimeCondition, StatusRequest, StatusResponse,
};

/// Longer than a plugin's own deadline.
const LIMIT: Duration = Duration::from_secs(60);

/// A connection to a container runtime. Calls block; any thread may make them.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    /// Prepares a connection; it is made with the first call, and again when it was lost.
    pub fn new(socket: &Path) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let endpoint =
            Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(io::Error::other)?;
        let channel = {
            // The channel starts a task of its own.
            let _inside = runtime.enter();
            endpoint.timeout(LIMIT).connect_lazy()
        };
        Ok(Self { runtime, channel })
    }

    /// The runtime's conditions: `RuntimeReady`, `NetworkReady`.
    pub fn conditions(&self) -> Result<Vec<RuntimeCondition>, Status> {
        let status: StatusResponse = self.call("Status", StatusRequest { verbose: false })?;
        Ok(status.status.unwrap_or_default().conditions)
    }

    pub fn run_pod_sandbox(&self, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Status> {
        self.call("RunPodSandbox", request)
    }

    pub fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatusResponse, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        self.call("PodSandboxStatus", request)
    }

    pub fn stop_pod_sandbox(&self, id: &str) -> Result<(), Status> {
        self.by_id("StopPodSandbox", id)
    }

    pub fn remove_pod_sandbox(&self, id: &str) -> Result<(), Status> {
        self.by_id("RemovePodSandbox", id)
    }

    /// The ids of all pods, running or not.
    pub fn list_pod_sandbox(&self) -> Result<Vec<String>, Status> {
        let list: ListPodSandboxResponse = self.call("ListPodSandbox", Empty {})?;
        Ok(list.items.into_iter().map(|pod| pod.id).collect())
    }

    pub fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, Status> {
        self.call("CreateContainer", request)
    }

    pub fn start_container(&self, id: &str) -> Result<(), Status> {
        self.by_id("StartContainer", id)
    }

    pub fn stop_container(&self, id: &str) -> Result<(), Status> {
        self.by_id("StopContainer", id)
    }

    pub fn remove_container(&self, id: &str) -> Result<(), Status> {
        self.by_id("RemoveContainer", id)
    }

    pub fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
        self.call("ExecSync", request)
    }

    /// The names of all images.
    pub fn list_images(&self) -> Result<Vec<String>, Status> {
        let list: ListImagesResponse =
            self.rpc("/runtime.v1.ImageService/ListImages".to_owned(), Empty {})?;
        Ok(list.images.into_iter().flat_map(|image| image.repo_tags).collect())
    }

    fn by_id(&self, method: &str, id: &str) -> Result<(), Status> {
        self.call(method, IdRequest { id: id.to_owned() }).map(|Empty {}| ())
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.rpc(format!("/runtime.v1.RuntimeService/{method}"), request)
    }

    fn rpc<Q, A>(&self, path: String, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(path).map_err(|error| Status::internal(error.to_string()))?;
        let mut grpc = Grpc::new(self.channel.clone());
        self.runtime.block_on(async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            Ok(grpc.unary(Request::new(request), path, codec).await?.into_inner())
        })
    }
}
