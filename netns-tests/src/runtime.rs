//! A container runtime of a node's own: a private containerd, driven through its CRI as a kubelet does.

mod config;
mod image;

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cgroup;
use crate::cri::Client;
use crate::cri::messages::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec,
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, RunPodSandboxRequest,
};
use crate::host;
use crate::inside::{Inside, text};
use crate::node::Node;
use crate::require::podtool;
use crate::sys;
use crate::wait::{poll, wait_until};
use config::Paths;

/// The only image: for the pause container and the tool container of each pod.
const IMAGE: &str = "weft.test/podtool:1";
/// Where the tool container of each pod tells callers their address.
const PORT: u16 = 8080;
/// containerd is up in about 0.2 s.
const START: Duration = Duration::from_secs(20);

/// A running containerd. Dropping it stops its pods, kills what is left, and removes its files.
#[derive(Debug)]
pub struct Runtime {
    node: Node,
    containerd: Child,
    client: Client,
    paths: Paths,
    group: String,
    sequence: AtomicUsize,
}

/// A pod that was made through the CRI: a sandbox with one container of the tool image.
#[derive(Clone, Debug)]
pub struct CriPod {
    /// The sandbox's id, which is the CNI container id.
    pub id: String,
    /// The name it was asked for with.
    pub name: String,
    /// The addresses that the runtime reports, the preferred one first.
    pub ips: Vec<IpAddr>,
    /// The path of its network namespace, as the node sees it.
    pub netns: PathBuf,
    /// How long the runtime waited for the CNI plugins, where it says so.
    pub network_setup: Option<Duration>,
    /// How long `RunPodSandbox` took.
    pub sandbox_setup: Duration,
    container: String,
}

/// A pod that could not be made, stopped or removed.
#[derive(Clone, Debug)]
pub struct CriError(String);

/// How a command in a pod ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl std::fmt::Display for CriError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CriError {}

impl CriPod {
    /// The port on which the pod tells callers the address they come from.
    pub const PORT: u16 = PORT;

    /// Its address of the same family as `like`.
    pub fn ip_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| ip.is_ipv4() == like.is_ipv4())
    }
}

impl Runtime {
    /// Starts a containerd in the node's namespaces whose only network is `conflist`, with the plugins
    /// of `bin_dirs`, the first of a name first. Returns when it can start pods. It is killed when the
    /// calling thread ends.
    pub fn start(node: &Node, conflist: &Value, bin_dirs: &[PathBuf]) -> Self {
        Self::try_start(node, conflist, bin_dirs).unwrap_or_else(|error| panic!("start containerd: {error}"))
    }

    fn try_start(node: &Node, conflist: &Value, bin_dirs: &[PathBuf]) -> io::Result<Self> {
        let group = format!("{}.{}", node.tag(), node.name());
        let paths =
            Paths { work: Path::new(host::WORK).join(&group), state: node.lab_dir().join(node.name()) };
        fs::create_dir_all(&paths.work)?;
        let snapshotter = if overlay_works(node, &paths.work) { "overlayfs" } else { "native" };
        paths.prepare(conflist, bin_dirs, IMAGE, snapshotter)?;
        image::write(&paths.image(), IMAGE, &podtool(bin_dirs))?;
        let containerd = spawn(node, &paths)?;
        cgroup::enter(&group, "containerd", containerd.id())?;
        let client = Client::new(&paths.socket())?;
        let runtime =
            Self { node: node.clone(), containerd, client, paths, group, sequence: AtomicUsize::new(0) };
        runtime.await_condition("RuntimeReady");
        runtime.import(snapshotter);
        runtime.await_condition("NetworkReady");
        Ok(runtime)
    }

    /// Starts a pod; panics when the runtime refuses.
    pub fn run_pod(&self, name: &str) -> CriPod {
        self.try_run_pod(name).unwrap_or_else(|error| panic!("run pod {name}: {error}"))
    }

    /// Starts a pod: a sandbox, and in it a container that tells callers their address.
    pub fn try_run_pod(&self, name: &str) -> Result<CriPod, CriError> {
        self.run_pod_with_ports(name, &[])
    }

    /// Starts a pod with TCP host ports: pairs of host port and container port.
    pub fn run_pod_with_ports(&self, name: &str, ports: &[(u16, u16)]) -> Result<CriPod, CriError> {
        let config = self.sandbox(name, ports);
        let started = Instant::now();
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let id = self.client.run_pod_sandbox(request).map_err(said)?.pod_sandbox_id;
        let sandbox_setup = started.elapsed();
        let status = self.client.pod_sandbox_status(&id).map_err(said)?;
        let network = status.status.unwrap_or_default().network.unwrap_or_default();
        let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        let container = self.tool_container(&id, config)?;
        Ok(CriPod {
            name: name.to_owned(),
            ips: ips.filter_map(|ip| ip.parse().ok()).collect(),
            netns: netns(status.info.get("info")),
            network_setup: network_setup(&self.log(), &id),
            sandbox_setup,
            container,
            id,
        })
    }

    /// Runs a command in the pod's tool container. `/podtool` is all there is.
    pub fn exec<S: AsRef<str>>(&self, pod: &CriPod, words: impl IntoIterator<Item = S>) -> ExecOutput {
        let cmd: Vec<String> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let request = ExecSyncRequest { container_id: pod.container.clone(), cmd: cmd.clone(), timeout: 30 };
        let answer = self.client.exec_sync(request);
        let answer = answer.unwrap_or_else(|status| panic!("exec {cmd:?} in {}: {}", pod.name, said(status)));
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        ExecOutput { code: answer.exit_code, stdout: text(&answer.stdout), stderr: text(&answer.stderr) }
    }

    /// Stops a pod, which takes its network away. Stopping it again is no error.
    pub fn stop_pod(&self, pod: &CriPod) -> Result<(), CriError> {
        self.client.stop_pod_sandbox(&pod.id).map_err(said)
    }

    /// Removes a stopped pod.
    pub fn remove_pod(&self, pod: &CriPod) -> Result<(), CriError> {
        self.client.remove_pod_sandbox(&pod.id).map_err(said)
    }

    /// Replaces the pod's tool container by a fresh one; its network stays.
    pub fn restart_container(&self, pod: &mut CriPod) -> Result<(), CriError> {
        self.client.stop_container(&pod.container).map_err(said)?;
        self.client.remove_container(&pod.container).map_err(said)?;
        pod.container = self.tool_container(&pod.id, self.sandbox(&pod.name, &[]))?;
        Ok(())
    }

    /// The ids of the pods it knows, running or stopped.
    pub fn pods(&self) -> Vec<String> {
        self.client.list_pod_sandbox().unwrap_or_else(|status| panic!("list pods: {}", said(status)))
    }

    /// Whether the runtime says that its network can take pods, and why not.
    pub fn network_ready(&self) -> Result<(), CriError> {
        let conditions = self.client.conditions().map_err(said)?;
        let condition = conditions.iter().find(|condition| condition.kind == "NetworkReady");
        match condition {
            Some(condition) if condition.status => Ok(()),
            Some(condition) => Err(CriError(format!("{}: {}", condition.reason, condition.message))),
            None => Err(CriError("the runtime does not say".to_owned())),
        }
    }

    /// The file with its network, which it reads again when another is renamed there.
    pub fn conflist(&self) -> PathBuf {
        self.paths.conflist()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.paths.log()).unwrap_or_default()
    }

    fn sandbox(&self, name: &str, ports: &[(u16, u16)]) -> PodSandboxConfig {
        let number = self.sequence.fetch_add(1, Ordering::Relaxed);
        let uid = format!("{}-{number}", self.group);
        let metadata =
            PodSandboxMetadata { name: name.to_owned(), uid, namespace: "lab".to_owned(), attempt: 0 };
        let ports = ports.iter().map(|&(host, container)| PortMapping {
            protocol: 0,
            container_port: container.into(),
            host_port: host.into(),
            host_ip: String::new(),
        });
        PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            log_directory: String::new(),
            port_mappings: ports.collect(),
            annotations: std::iter::empty::<(String, String)>().collect(),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: format!("/{}", self.group) }),
        }
    }

    fn tool_container(&self, sandbox: &str, config: PodSandboxConfig) -> Result<String, CriError> {
        let metadata = ContainerMetadata { name: "tool".to_owned(), attempt: 0 };
        let container = ContainerConfig {
            metadata: Some(metadata),
            image: Some(ImageSpec { image: IMAGE.to_owned() }),
            args: vec!["serve".to_owned(), PORT.to_string()],
            log_path: String::new(),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let id = self.client.create_container(request).map_err(said)?.container_id;
        self.client.start_container(&id).map_err(said)?;
        Ok(id)
    }

    fn await_condition(&self, kind: &str) {
        let is_true = || {
            let conditions = self.client.conditions().unwrap_or_default();
            conditions.iter().any(|condition| condition.kind == kind && condition.status)
        };
        if poll(START, || is_true().then_some(())).is_none() {
            panic!("containerd does not become {kind}:\n{}", last_lines(&self.log(), 15));
        }
    }

    fn import(&self, snapshotter: &str) {
        let (socket, image) = (self.paths.socket(), self.paths.image());
        let mut ctr = self.node.command("ctr");
        ctr.arg("--address").arg(&socket).args(["--namespace", "k8s.io", "images", "import"]);
        let output = ctr.args(["--snapshotter", snapshotter]).arg(&image).output().expect("run ctr");
        assert!(output.status.success(), "import the image: {}", text(&output));
        wait_until("the image is known", START, || {
            self.client.list_images().is_ok_and(|names| names.iter().any(|name| name == IMAGE))
        });
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Best effort, in the order of a node that is drained; the control group catches the rest.
        for id in self.client.list_pod_sandbox().unwrap_or_default() {
            let _ = self.client.stop_pod_sandbox(&id);
            let _ = self.client.remove_pod_sandbox(&id);
        }
        if let Ok(pid) = i32::try_from(self.containerd.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if !sys::wait_exit(self.containerd.id(), Duration::from_secs(5)).unwrap_or(true) {
            let _ = self.containerd.kill();
        }
        let _ = self.containerd.wait();
        cgroup::destroy(&self.group);
        self.node
            .enter(|| unmount_below(&[&self.paths.work, &self.paths.state, Path::new("/run/containerd/")]));
        let _ = fs::remove_dir_all(&self.paths.work);
        let _ = fs::remove_dir_all(&self.paths.state);
    }
}

fn spawn(node: &Node, paths: &Paths) -> io::Result<Child> {
    let log = File::create(paths.log())?;
    let mut command = node.command("containerd");
    command.arg("--config").arg(paths.config()).stdout(log.try_clone()?).stderr(log);
    command.spawn().map_err(|error| io::Error::new(error.kind(), format!("containerd: {error}")))
}

/// Whether the kernel mounts an overlay with its upper folder on this file system.
fn overlay_works(node: &Node, work: &Path) -> bool {
    let dirs = ["lower", "upper", "inner", "merged"].map(|name| work.join("probe").join(name));
    let [lower, upper, inner, merged] = &dirs;
    let options = [("lowerdir", lower), ("upperdir", upper), ("workdir", inner)];
    let options = options.map(|(key, dir)| format!("{key}={}", dir.display())).join(",");
    let made = dirs.iter().all(|dir| fs::create_dir_all(dir).is_ok());
    made && node.enter(|| {
        let mounted =
            mount(Some("overlay"), merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
        mounted.is_ok() && umount2(merged, MntFlags::MNT_DETACH).is_ok()
    })
}

/// The path of the pod's network namespace in the runtime's verbose status.
fn netns(info: Option<&String>) -> PathBuf {
    let info: Value = info.and_then(|info| serde_json::from_str(info).ok()).unwrap_or_default();
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().into_iter().flatten();
    let network = namespaces.into_iter().find(|namespace| namespace["type"] == "network");
    network.and_then(|namespace| namespace["path"].as_str()).unwrap_or_default().into()
}

/// How long containerd waited for the plugins of a pod, from its log: the time between
/// `begin cni setup` and `cni result`. None where a version words it differently.
fn network_setup(log: &str, id: &str) -> Option<Duration> {
    let ours: Vec<_> = log.lines().filter(|line| line.contains(&format!("podsandboxid={id}"))).collect();
    let at = |message: &str| time_of_day(ours.iter().find(|line| line.contains(message))?);
    let (begin, end) = at("msg=\"begin cni setup").zip(at("msg=\"cni result"))?;
    // Midnight in between is not worth a calendar.
    end.checked_sub(begin)
}

/// The time of a line like `time="2026-11-21T09:57:04.885361006Z" …`.
fn time_of_day(line: &str) -> Option<Duration> {
    let time = line.strip_prefix("time=\"")?.split('T').nth(1)?;
    let time = time.split(['Z', '+', '"']).next()?;
    let parts: Vec<f64> = time.split(':').filter_map(|part| part.parse().ok()).collect();
    let &[hours, minutes, seconds] = parts.as_slice() else { return None };
    Duration::try_from_secs_f64((hours * 60.0 + minutes) * 60.0 + seconds).ok()
}

/// Unmounts what the calling thread's mount namespace has below these folders, the newest first.
fn unmount_below(folders: &[&Path]) {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    for path in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(Path::new) {
        if folders.iter().any(|folder| path.starts_with(folder) && path != *folder) {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

fn said(status: tonic::Status) -> CriError {
    CriError(status.message().to_owned())
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
