//! What values a configuration may hold, beyond their types.
//!
//! Invariant: pure; every complaint names the key and holds the mend. Called by `load` only, on the merged whole. What leads out
//! of a sandbox is checked in `network`.

mod network;

use super::{Config, ImagesConfig, PoolConfig, RuntimesConfig, SandboxConfig, ServerConfig, SessionConfig};

/// Walls without which nothing runs unless `sandbox.allow_degraded` names them (DESIGN section 3).
pub const REQUIRED_WALLS: [&str; 10] =
    ["user", "mount", "pid", "network", "ipc", "uts", "capabilities", "no_new_privs", "seccomp", "masked_paths"];

/// Smallest request and response that still hold a useful message.
const MESSAGE_BYTES_MIN: u64 = 4096;

/// A value that is of the right type and yet can't be taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    /// Dotted key.
    pub key: &'static str,
    /// What is wrong with it, a sentence fragment after the key.
    pub problem: String,
    /// What the operator can do.
    pub mend: String,
}

fn complain(key: &'static str, problem: impl Into<String>, mend: impl Into<String>) -> Result<(), Complaint> {
    Err(Complaint { key, problem: problem.into(), mend: mend.into() })
}

/// The first complaint about a configuration, in the order of its sections.
pub(super) fn check(config: &Config) -> Result<(), Complaint> {
    server(&config.server)?;
    session(&config.session)?;
    sandbox(&config.sandbox)?;
    network::check(&config.network, &config.packages)?;
    pool(&config.pool)?;
    images(&config.images)?;
    runtimes(&config.runtimes)
}

fn pool(pool: &PoolConfig) -> Result<(), Complaint> {
    if pool.sandboxes_max > 0 && pool.ready_min > pool.sandboxes_max {
        let problem = format!("is {}, more than the {} of all kinds", pool.ready_min, pool.sandboxes_max);
        return complain("pool.ready_min", problem, "raise pool.sandboxes_max, or keep fewer of each kind ready");
    }
    at_least("pool.ready_min", pool.ready_min.into(), 1)?;
    at_least("pool.keep_s", pool.keep_s, 1)
}

fn runtimes(runtimes: &RuntimesConfig) -> Result<(), Complaint> {
    let keys = [("runtimes.deno", &runtimes.deno), ("runtimes.bun", &runtimes.bun), ("runtimes.nodejs", &runtimes.nodejs)];
    for (key, place) in keys {
        let sound = place.is_empty() || place == "off" || place.starts_with("image:") || place.starts_with('/');
        if !sound {
            let mend = "write an absolute path, `image:NAME`, or `off`; leave it empty to have the engine looked for";
            return complain(key, format!("is `{place}`, which is no place"), mend);
        }
    }
    let docker = runtimes.docker.as_str();
    if !(docker.is_empty() || docker == "off" || docker.strip_prefix("unix://").unwrap_or(docker).starts_with('/')) {
        return complain(
            "runtimes.docker",
            format!("is `{docker}`, which is no Unix socket of this host"),
            "write the absolute path of the engine's socket, or `off`; leave it empty to have an engine looked for",
        );
    }
    if !runtimes.wasm.is_empty() && runtimes.wasm != "off" {
        return complain("runtimes.wasm", format!("is `{}`", runtimes.wasm), "write `off`, or leave it empty");
    }
    for (key, place) in
        [("runtimes.wasm_python", &runtimes.wasm_python), ("runtimes.wasm_javascript", &runtimes.wasm_javascript)]
    {
        if !(place.is_empty() || place == "off" || place.starts_with('/')) {
            let mend = "write the absolute path of a module, or `off`; leave it empty for the one that is installed";
            return complain(key, format!("is `{place}`, which is no place"), mend);
        }
    }
    if runtimes.engines_dir.as_ref().is_some_and(|path| !path.is_absolute()) {
        return complain("runtimes.engines_dir", "is no absolute path", "write one that begins with `/`");
    }
    at_least("runtimes.isolates_per_engine", runtimes.isolates_per_engine, 1)?;
    at_least("runtimes.isolate_engines_max", runtimes.isolate_engines_max, 1)?;
    at_least("runtimes.isolate_executions_max", runtimes.isolate_executions_max, 1)?;
    at_least("runtimes.isolate_engine_memory_mb", runtimes.isolate_engine_memory_mb, 512)
}

fn at_least(key: &'static str, value: u64, least: u64) -> Result<(), Complaint> {
    if value < least {
        return complain(key, format!("is {value}, which is too small"), format!("give {least} or more"));
    }
    Ok(())
}

fn server(server: &ServerConfig) -> Result<(), Complaint> {
    if server.no_auth && !server.listen.ip().is_loopback() {
        return complain(
            "server.no_auth",
            format!("can't be used while listening on {}, where other machines can connect", server.listen),
            "listen on a loopback address such as 127.0.0.1:5000, or leave no_auth out and use tokens",
        );
    }
    at_least("server.request_bytes_max", server.request_bytes_max.into(), MESSAGE_BYTES_MIN)?;
    at_least("server.response_bytes_max", server.response_bytes_max.into(), MESSAGE_BYTES_MIN)?;
    at_least("server.batch_max", server.batch_max.into(), 1)?;
    at_least("server.connections_max", server.connections_max.into(), 1)?;
    at_least("server.requests_in_flight_max", server.requests_in_flight_max.into(), 1)?;
    at_least("server.ping_interval_s", server.ping_interval_s, 1)?;
    at_least("server.ping_misses_max", server.ping_misses_max.into(), 1)?;
    if server.rate_limit_burst > 0 && server.rate_limit_per_s == 0 {
        return complain(
            "server.rate_limit_burst",
            "is set without a rate",
            "set server.rate_limit_per_s too, or leave the burst 0",
        );
    }
    if let Some(host) = server.allowed_hosts.iter().find(|host| !is_host_name(host)) {
        return complain(
            "server.allowed_hosts",
            format!("holds `{host}`, which is no host name"),
            "write the bare name or address, without scheme, port or path: `sandbox.example.org`",
        );
    }
    if let Some(origin) = server.allowed_origins.iter().find(|origin| !is_origin(origin)) {
        return complain(
            "server.allowed_origins",
            format!("holds `{origin}`, which is no origin"),
            "write scheme, host and port as a browser sends them: `https://app.example.org`",
        );
    }
    Ok(())
}

fn session(session: &SessionConfig) -> Result<(), Complaint> {
    at_least("session.idle_timeout_minutes", session.idle_timeout_minutes.into(), 1)?;
    at_least("session.lifetime_minutes", session.lifetime_minutes.into(), 1)?;
    at_least("session.sweep_interval_s", session.sweep_interval_s, 1)?;
    at_least("session.queue_max", session.queue_max.into(), 1)?;
    at_least("session.background_max", session.background_max.into(), 1)?;
    at_least("session.stream_buffer_bytes_max", session.stream_buffer_bytes_max, MESSAGE_BYTES_MIN)?;
    at_least("session.outcomes_max", session.outcomes_max.into(), 1)?;
    at_least("session.closed_max", session.closed_max.into(), 1)
}

fn sandbox(sandbox: &SandboxConfig) -> Result<(), Complaint> {
    if let Some(wall) = sandbox.allow_degraded.iter().find(|wall| !REQUIRED_WALLS.contains(&wall.as_str())) {
        return complain(
            "sandbox.allow_degraded",
            format!("names `{wall}`, which is no required wall"),
            format!("the required walls are {}", REQUIRED_WALLS.join(", ")),
        );
    }
    if sandbox.profiles.is_empty() {
        return complain("sandbox.profiles", "is empty, so no session could be made", "name at least one: [\"default\"]");
    }
    if let Some(profile) = sandbox.profiles.iter().find(|profile| !is_plain_name(profile)) {
        return complain(
            "sandbox.profiles",
            format!("holds `{profile}`, which is no profile name"),
            "a name holds lower-case letters, digits, `-` and `_` only; its file is NAME.toml in sandbox.profile_dir",
        );
    }
    if sandbox.isolation_level_min > 10 {
        return complain(
            "sandbox.isolation_level_min",
            format!("is {}, and no runtime can reach that", sandbox.isolation_level_min),
            "give 0 (any) to 10 (the strongest)",
        );
    }
    Ok(())
}

fn images(images: &ImagesConfig) -> Result<(), Complaint> {
    for (key, value) in [
        ("images.bytes_max", images.bytes_max),
        ("images.entries_max", images.entries_max),
        ("images.depth_max", images.depth_max),
        ("images.layers_max", images.layers_max),
        ("images.expansion_max", images.expansion_max),
    ] {
        at_least(key, value, 1)?;
    }
    at_least("images.document_bytes_max", images.document_bytes_max, MESSAGE_BYTES_MIN)?;
    at_least("images.header_bytes_max", images.header_bytes_max, MESSAGE_BYTES_MIN)?;
    at_least("images.names_bytes_max", images.names_bytes_max, MESSAGE_BYTES_MIN)?;
    let plain = |registry: &&String| !registry.is_empty() && !registry.contains(['/', ' ', '@']);
    if let Some(registry) = images.plain_http_registries.iter().find(|registry| !plain(registry)) {
        return complain(
            "images.plain_http_registries",
            format!("holds `{registry}`, which is no registry"),
            "write host and port, without scheme or path: `127.0.0.1:5000`",
        );
    }
    Ok(())
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
}

/// A DNS name, an IPv4 address or an IPv6 address (bracketed or not), without a port.
fn is_host_name(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if bare.parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// `scheme://host[:port]`, or the word `null` that sandboxed pages send.
fn is_origin(origin: &str) -> bool {
    if origin == "null" {
        return true;
    }
    origin.split_once("://").is_some_and(|(scheme, authority)| {
        !scheme.is_empty() && !authority.is_empty() && !authority.contains(['/', '?', '#', ' '])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(change: impl FnOnce(&mut Config)) -> Option<&'static str> {
        let mut config = Config::default();
        change(&mut config);
        check(&config).err().map(|complaint| complaint.key)
    }

    #[test]
    fn the_defaults_are_taken() {
        assert_eq!(complaint(|_| {}), None);
    }

    #[test]
    fn no_auth_is_taken_on_loopback_and_nowhere_else() {
        assert_eq!(complaint(|config| config.server.no_auth = true), None);
        for public in ["0.0.0.0:5000", "[::]:5000", "10.0.0.1:5000"] {
            let refused = complaint(|config| {
                config.server.no_auth = true;
                config.server.listen = public.parse().expect("an address");
            });
            assert_eq!(refused, Some("server.no_auth"), "{public}");
        }
        assert_eq!(complaint(|config| config.server.listen = "0.0.0.0:5000".parse().expect("an address")), None);
    }

    #[test]
    fn a_bound_of_zero_is_refused_where_zero_has_no_meaning() {
        assert_eq!(complaint(|config| config.server.batch_max = 0), Some("server.batch_max"));
        assert_eq!(complaint(|config| config.session.sweep_interval_s = 0), Some("session.sweep_interval_s"));
        assert_eq!(complaint(|config| config.session.sessions_max = 0), None, "0 = what memory allows");
    }

    #[test]
    fn hosts_are_bare_and_origins_are_whole() {
        assert_eq!(
            complaint(|config| config.server.allowed_hosts = vec!["a.example".into(), "::1".into(), "[::1]".into()]),
            None
        );
        for host in ["a.example:80", "http://a.example", ""] {
            assert_eq!(
                complaint(|config| config.server.allowed_hosts = vec![host.into()]),
                Some("server.allowed_hosts"),
                "{host}"
            );
        }
        assert_eq!(
            complaint(|config| config.server.allowed_origins = vec!["https://a.example:8443".into(), "null".into()]),
            None
        );
        for origin in ["a.example", "https://a.example/", "*"] {
            let refused = complaint(|config| config.server.allowed_origins = vec![origin.into()]);
            assert_eq!(refused, Some("server.allowed_origins"), "{origin}");
        }
    }

    #[test]
    fn only_required_walls_can_be_allowed_to_degrade() {
        assert_eq!(complaint(|config| config.sandbox.allow_degraded = vec!["seccomp".into()]), None);
        assert_eq!(complaint(|config| config.sandbox.allow_degraded = vec!["secomp".into()]), Some("sandbox.allow_degraded"));
    }

    #[test]
    fn an_engine_is_a_socket_of_this_host() {
        let refused = |place: &str| complaint(|config| config.runtimes.docker = place.into());
        for place in ["", "off", "/var/run/docker.sock", "unix:///run/podman/podman.sock"] {
            assert_eq!(refused(place), None, "{place}");
        }
        for place in ["tcp://127.0.0.1:2375", "docker.sock", "unix://docker.sock"] {
            assert_eq!(refused(place), Some("runtimes.docker"), "{place}");
        }
    }

    #[test]
    fn a_profile_name_can_not_be_a_path() {
        assert_eq!(complaint(|config| config.sandbox.profiles = vec!["my-own_2".into()]), None);
        assert_eq!(complaint(|config| config.sandbox.profiles = vec!["../x".into()]), Some("sandbox.profiles"));
        assert_eq!(complaint(|config| config.sandbox.profiles = vec![]), Some("sandbox.profiles"));
    }
}
