//! What the engine is asked to build for a session. Pure.
//!
//! Invariants: no network, no capability that the profile does not give, no new privileges, our filter, limits of the session, a
//! root that can't be written to; nothing that an image says of itself (entry point, variables, volumes, health checks) runs or is
//! kept. Read `sandbox::contained` for what init adds from inside.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig};

use crate::sandbox::profile::Profile;
use crate::sandbox::spec::Limits;

use super::engine::Product;
use super::removal::{ENVIRONMENT_LABEL, SERVER_LABEL};

/// Where init and its socket are in a container.
pub const INIT: &str = "/.codebeaker/init";
/// The directory of the session, with the socket in it.
pub const SESSION: &str = "/.codebeaker/session";
/// The socket's name there.
pub const CONTROL: &str = "control";

/// Programs besides init.
const INIT_PROCESSES: u64 = 1;

/// What runc masks by default, and what tells of the host besides.
const MASKED: [&str; 18] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/driver",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/pagetypeinfo",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Variables that the loader of init would follow: an image has no say in it.
const LOADERS: [&str; 4] = ["GLIBC_TUNABLES=", "LD_AUDIT=", "LD_LIBRARY_PATH=", "LD_PRELOAD="];

/// Everything that decides what a container is.
pub struct Request<'a> {
    /// Who is asked.
    pub product: Product,
    /// `io.codebeaker.server`.
    pub server: &'a str,
    /// `io.codebeaker.environment`.
    pub environment: &'a str,
    /// Image as the engine knows it.
    pub image: &'a str,
    /// Walls and users.
    pub profile: &'a Profile,
    /// In force.
    pub limits: &'a Limits,
    /// Host path and path inside, all read-only.
    pub binds: &'a [(String, String)],
    /// Program and arguments of init.
    pub init: &'a [String],
    /// The filter, as a text or a path, as the engine takes it.
    pub seccomp: &'a str,
}

/// The body of `POST /containers/create`.
pub fn body(request: &Request<'_>) -> ContainerCreateBody {
    let labels = [(SERVER_LABEL, request.server), (ENVIRONMENT_LABEL, request.environment)];
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    ContainerCreateBody {
        hostname: Some("codebeaker".into()),
        user: Some(format!("{}:{}", request.profile.uid, request.profile.gid)),
        env: Some(owned(&LOADERS)),
        cmd: Some(Vec::new()),
        entrypoint: Some(request.init.to_vec()),
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() }),
        image: Some(request.image.to_owned()),
        working_dir: Some("/".into()),
        labels: Some(labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()),
        host_config: Some(HostConfig {
            masked_paths: Some(owned(&MASKED)),
            readonly_paths: Some(owned(&READ_ONLY)),
            ..host_config(request)
        }),
        ..ContainerCreateBody::default()
    }
}

fn host_config(request: &Request<'_>) -> HostConfig {
    let Request { profile, limits, .. } = request;
    let number = |value: u64| Some(i64::try_from(value).unwrap_or(i64::MAX));
    let bare = |name: &String| name.strip_prefix("CAP_").unwrap_or(name).to_owned();
    HostConfig {
        memory: number(limits.memory_bytes.get()),
        // Memory and swap together: no swap.
        memory_swap: number(limits.memory_bytes.get()),
        cpu_shares: number(limits.cpu_shares),
        // In billionths of a core.
        nano_cpus: limits.cpu_cores.map(|cores| (cores * 1e9) as i64),
        pids_limit: number(limits.pids + INIT_PROCESSES),
        shm_size: number(limits.disk_bytes),
        network_mode: Some("none".into()),
        ipc_mode: Some("private".into()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        cap_drop: Some(vec!["ALL".into()]),
        cap_add: Some(profile.capabilities.iter().map(bare).collect()),
        privileged: Some(false),
        security_opt: Some(security(request)),
        readonly_rootfs: Some(true),
        tmpfs: Some(["/workspace", "/tmp"].into_iter().map(|path| (path.to_owned(), tmpfs(request, path))).collect()),
        binds: Some(request.binds.iter().map(|(source, target)| format!("{source}:{target}:ro")).collect()),
        auto_remove: Some(true),
        init: Some(false),
        log_config: Some(HostConfigLogConfig { typ: Some("none".into()), config: Some(HashMap::new()) }),
        ..HostConfig::default()
    }
}

/// Podman takes paths to mask as an option only.
fn security(request: &Request<'_>) -> Vec<String> {
    let mut options = vec!["no-new-privileges".into(), format!("seccomp={}", request.seccomp)];
    match request.product {
        Product::Docker => {}
        Product::Podman => options.push(format!("mask={}", MASKED.join(":"))),
    }
    options
}

/// Podman knows neither an owner nor a number of files: there the directory is everybody's, who is the session's user alone.
fn tmpfs(request: &Request<'_>, path: &str) -> String {
    let Request { profile, limits, product, .. } = request;
    let (bytes, files) = (limits.disk_bytes, limits.inodes);
    let owner = match (path, product) {
        ("/tmp", _) => "mode=1777".to_owned(),
        (_, Product::Docker) => format!("mode=0755,uid={},gid={}", profile.uid, profile.gid),
        (_, Product::Podman) => "mode=0777".to_owned(),
    };
    let count = match product {
        Product::Docker => format!(",nr_inodes={files}"),
        Product::Podman => String::new(),
    };
    format!("rw,nosuid,nodev,exec,size={bytes}{count},{owner}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::profile::Profiles;

    fn of(name: &str) -> ContainerCreateBody {
        by(Product::Docker, name)
    }

    fn by(product: Product, name: &str) -> ContainerCreateBody {
        let profile = Profiles::load(None).expect("built in").get(name).expect("built in");
        let limits = profile.limits().expect("limits");
        body(&Request {
            product,
            server: "1-2-3",
            environment: "env_x",
            image: "image",
            profile: &profile,
            limits: &limits,
            binds: &[("/usr".into(), "/usr".into())],
            init: &["/init".into()],
            seccomp: "{}",
        })
    }

    #[test]
    fn a_container_has_the_limits_of_its_session_and_no_way_out() {
        let body = of("default");
        let host = body.host_config.expect("a host part");
        assert_eq!((host.memory, host.memory_swap, host.cpu_shares), (Some(512 << 20), Some(512 << 20), Some(1024)));
        assert_eq!(host.pids_limit, Some(257), "256 programs and init");
        assert_eq!((host.network_mode.as_deref(), host.readonly_rootfs), (Some("none"), Some(true)));
        assert_eq!((host.cap_drop, host.cap_add), (Some(vec!["ALL".into()]), Some(vec![])));
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges".into(), "seccomp={}".into()]));
        assert_eq!(host.binds, Some(vec!["/usr:/usr:ro".into()]));
        assert_eq!((body.user.as_deref(), host.privileged, host.auto_remove), (Some("1000:1000"), Some(false), Some(true)));
        let workspace = &host.tmpfs.expect("tmpfs")["/workspace"];
        assert!(workspace.contains("size=268435456") && workspace.contains("nr_inodes=65536"), "{workspace}");
    }

    #[test]
    fn podman_is_asked_in_its_own_words() {
        let host = by(Product::Podman, "default").host_config.expect("a host part");
        let workspace = &host.tmpfs.expect("tmpfs")["/workspace"];
        assert_eq!(workspace, "rw,nosuid,nodev,exec,size=268435456,mode=0777");
        let options = host.security_opt.expect("options");
        assert!(options.iter().any(|option| option.starts_with("mask=/proc/") && option.ends_with(":/sys")), "{options:?}");
    }

    #[test]
    fn only_a_profile_that_gives_capabilities_adds_some() {
        let host = of("permissive").host_config.expect("a host part");
        let added = host.cap_add.expect("a list");
        assert!(!added.is_empty() && added.iter().all(|name| !name.starts_with("CAP_")), "{added:?}");
        assert_eq!(host.cap_drop, Some(vec!["ALL".into()]));
    }
}
