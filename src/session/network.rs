//! What of the network a request gets: where profile, operator and request all say so, and nothing otherwise.
//!
//! Pure. A refusal names the field of the request, who said no, and what would mend it.

use crate::config::Config;
use crate::runtime::Permissions;
use crate::runtime::egress::NetworkGrant;
use crate::sandbox::profile::{Installs, Network, Profile};

use super::api::SessionError;

/// What a request asks for, each by the field that says it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Network for its programs.
    pub(super) programs: Option<&'static str>,
    /// The package index for its install steps.
    pub(super) installs: Option<&'static str>,
}

impl Asked {
    /// By `permissions` of `session.create`.
    pub(super) fn by(permissions: Option<&Permissions>) -> Self {
        let said = |says: fn(&Permissions) -> bool, field| permissions.is_some_and(says).then_some(field);
        Self {
            programs: said(|permissions| permissions.allow_net, "permissions.allowNet"),
            installs: said(|permissions| permissions.allow_package_index, "permissions.allowPackageIndex"),
        }
    }
}

/// What is granted of that under this profile.
pub(super) fn grant(asked: Asked, profile: &Profile, config: &Config) -> Result<NetworkGrant, SessionError> {
    if let Some(field) = asked.programs {
        match profile.network {
            Network::Egress => {}
            Network::None | Network::Loopback => return Err(no_network(field, profile)),
        }
        if config.network.egress_allow.is_empty() {
            let message = format!("`{field}`: the operator lists nothing that programs could reach");
            return Err(denied(field, message, "leave it off; the operator lists hosts in network.egress_allow"));
        }
    }
    if let Some(field) = asked.installs {
        if profile.installs == Installs::Offline {
            let message = format!("`{field}`: the profile `{}` lets install steps reach nothing", profile.name);
            return Err(denied(field, message, "leave it off, or ask for a profile with installs = \"index\""));
        }
        let packages = &config.packages;
        if [&packages.pip_index, &packages.npm_registry, &packages.gem_source].iter().all(|index| index.is_empty()) {
            let message = format!("`{field}`: the operator has configured no package index");
            return Err(denied(field, message, "leave it off; the operator names an index below [packages]"));
        }
    }
    Ok(match (asked.programs, asked.installs) {
        (Some(_), _) => NetworkGrant::Programs,
        (None, Some(_)) => NetworkGrant::Installs,
        (None, None) => NetworkGrant::None,
    })
}

fn no_network(field: &str, profile: &Profile) -> SessionError {
    let message = format!("`{field}`: the profile `{}` allows no network", profile.name);
    denied(field, message, "leave the network off; only the operator's profiles can allow it")
}

fn denied(field: &str, message: String, hint: &str) -> SessionError {
    SessionError::PolicyDenied { field: field.into(), message, hint: hint.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::simulated::profile;

    fn operator(egress: &[&str], index: &str) -> Config {
        let mut config = Config::default();
        config.network.egress_allow = egress.iter().map(|host| (*host).to_owned()).collect();
        config.packages.npm_registry = index.to_owned();
        config
    }

    fn refused_field(answer: Result<NetworkGrant, SessionError>) -> Option<String> {
        match answer {
            Err(SessionError::PolicyDenied { field, message, hint }) => {
                assert!(message.contains(&field) && !hint.is_empty(), "{message}");
                Some(field)
            }
            Err(other) => panic!("{other:?}"),
            Ok(_) => None,
        }
    }

    #[test]
    fn network_takes_the_profile_the_operator_and_the_request() {
        for network in [Network::None, Network::Loopback, Network::Egress] {
            for egress in [&[][..], &["a.example"]] {
                for asked in [None, Some("permissions.allowNet")] {
                    let profile = Profile { network, ..profile() };
                    let answer = grant(Asked { programs: asked, installs: None }, &profile, &operator(egress, ""));
                    let all = network == Network::Egress && !egress.is_empty();
                    match asked {
                        None => assert_eq!(answer.expect("nothing is asked for"), NetworkGrant::None),
                        Some(_) if all => assert_eq!(answer.expect("all say so"), NetworkGrant::Programs),
                        Some(field) => assert_eq!(refused_field(answer).as_deref(), Some(field)),
                    }
                }
            }
        }
    }

    #[test]
    fn an_index_takes_the_profile_the_operator_and_the_request() {
        for installs in [Installs::Offline, Installs::Index] {
            for index in ["", "https://a.example/"] {
                for asked in [None, Some("allowPackageIndex")] {
                    let profile = Profile { installs, ..profile() };
                    let answer = grant(Asked { programs: None, installs: asked }, &profile, &operator(&["a.example"], index));
                    let all = installs == Installs::Index && !index.is_empty();
                    match asked {
                        None => assert_eq!(answer.expect("nothing is asked for"), NetworkGrant::None),
                        Some(_) if all => assert_eq!(answer.expect("all say so"), NetworkGrant::Installs),
                        Some(field) => assert_eq!(refused_field(answer).as_deref(), Some(field)),
                    }
                }
            }
        }
    }

    #[test]
    fn no_built_in_profile_but_permissive_gives_programs_a_network_and_strict_gives_nothing() {
        let profiles = crate::sandbox::profile::Profiles::load(None).expect("the built-in profiles");
        let of = |name| profiles.get(name).map(|profile| (profile.network, profile.installs));
        assert_eq!(of("strict"), Some((Network::None, Installs::Offline)));
        assert_eq!(of("default"), Some((Network::Loopback, Installs::Index)));
        assert_eq!(of("permissive"), Some((Network::Egress, Installs::Index)));
    }
}
