//! From `[network]` and `[packages]` to the ways out of sandboxes.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use super::{CliError, PlanRow};
use crate::allowlist::{Allowlist, IndexUrl, parse_host_entry};
use crate::config::{Config, NetworkConfig, PackagesConfig};
use crate::language::PackageSyntax;
use crate::runtime::egress::{Egress, EgressBounds, EgressRules, GrantedBy};
use crate::sandbox::profile::{Installs, Network, Profile};

/// Longest file of certificates.
const CERTIFICATES_BYTES_MAX: u64 = 4 << 20;

/// By the configuration, whose values have been checked; what could not be read all the same is an error and no smaller list.
pub(super) fn egress(config: &Config) -> Result<Arc<Egress>, CliError> {
    let (network, packages) = (&config.network, &config.packages);
    let hosts: Result<BTreeMap<_, _>, _> = network.hosts.iter().map(|entry| parse_host_entry(entry)).collect();
    Ok(Egress::new(EgressRules {
        programs: list("network.egress_allow", &network.egress_allow)?,
        package_hosts: list("packages.hosts", &packages.hosts)?,
        indexes: indexes(packages)?,
        certificates: certificates(packages)?,
        hosts: hosts.map_err(|problem| CliError::new(format!("network.hosts: an entry has {problem}")))?,
        bounds: bounds(network),
    }))
}

fn bounds(network: &NetworkConfig) -> EgressBounds {
    EgressBounds {
        connections_max: network.connections_max as usize,
        connections_per_way_max: network.connections_per_session_max as usize,
        idle_timeout: Duration::from_secs(network.idle_timeout_s),
        bytes_max: network.bytes_max,
        ..EgressBounds::default()
    }
}

fn list(key: &str, words: &[String]) -> Result<Allowlist, CliError> {
    Allowlist::parse(words).map_err(|word| CliError::new(format!("{key}: `{word}` is no host")))
}

fn indexes(packages: &PackagesConfig) -> Result<BTreeMap<PackageSyntax, IndexUrl>, CliError> {
    let all = [
        (PackageSyntax::Pep508, "packages.pip_index", &packages.pip_index),
        (PackageSyntax::Npm, "packages.npm_registry", &packages.npm_registry),
        (PackageSyntax::Gem, "packages.gem_source", &packages.gem_source),
    ];
    let named = all.into_iter().filter(|(_, _, text)| !text.is_empty());
    named
        .map(|(syntax, key, text)| match text.parse() {
            Ok(index) => Ok((syntax, index)),
            Err(problem) => Err(CliError::new(format!("{key}: `{text}` is {problem}"))),
        })
        .collect()
}

fn certificates(packages: &PackagesConfig) -> Result<Option<Vec<u8>>, CliError> {
    let Some(path) = &packages.ca_file else { return Ok(None) };
    let failed = |problem: String| {
        CliError::new(format!("packages.ca_file: {} {problem}", path.display()))
            .hint("name a file of certificates in PEM, 4 MiB at most, or leave the key out")
    };
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| failed(format!("can't be read: {error}")))?;
    file.take(CERTIFICATES_BYTES_MAX + 1)
        .read_to_end(&mut content)
        .map_err(|error| failed(format!("can't be read: {error}")))?;
    // A key would be shown to every session that installs.
    let text = String::from_utf8_lossy(&content);
    if content.len() as u64 > CERTIFICATES_BYTES_MAX || !text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(failed("holds no certificates".into()));
    }
    if text.contains("PRIVATE KEY-----") {
        return Err(failed("holds a private key, which sessions could read".into()));
    }
    Ok(Some(content))
}

/// What a session under this profile could be granted, for `codebeaker plan`.
pub(super) fn rows(egress: &Egress, profile: &Profile) -> Vec<PlanRow> {
    let programs = match profile.network {
        Network::None | Network::Loopback => GrantedBy::Nobody,
        Network::Egress => GrantedBy::Request,
    };
    let installs = match profile.installs {
        Installs::Offline => GrantedBy::Nobody,
        Installs::Index => GrantedBy::Request,
    };
    let row = |(process, call): (&'static str, String)| PlanRow { process: process.into(), wall: "network".into(), call };
    egress.describe(programs, installs).into_iter().map(row).collect()
}
