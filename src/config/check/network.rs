//! `[network]` and `[packages]`: a list that can't be read would be a wall with a hole, so nothing of it is passed over.

use super::{Complaint, at_least, complain};
use crate::allowlist::{Allowlist, IndexUrl, PATTERN_TAKES, parse_host_entry};
use crate::config::{NetworkConfig, PackagesConfig};

pub(super) fn check(network: &NetworkConfig, packages: &PackagesConfig) -> Result<(), Complaint> {
    list("network.egress_allow", &network.egress_allow)?;
    list("packages.hosts", &packages.hosts)?;
    if let Some(entry) = network.hosts.iter().find(|entry| parse_host_entry(entry).is_err()) {
        return complain(
            "network.hosts",
            format!("holds `{entry}`, which is no name with its address"),
            "write `name=address`: `index.example.org=192.0.2.7`",
        );
    }
    at_least("network.connections_max", network.connections_max.into(), 1)?;
    at_least("network.connections_per_session_max", network.connections_per_session_max.into(), 1)?;
    at_least("network.idle_timeout_s", network.idle_timeout_s, 1)?;
    at_least("network.bytes_max", network.bytes_max, 1)?;
    index("packages.pip_index", &packages.pip_index)?;
    index("packages.npm_registry", &packages.npm_registry)?;
    index("packages.gem_source", &packages.gem_source)
}

fn list(key: &'static str, words: &[String]) -> Result<(), Complaint> {
    match Allowlist::parse(words) {
        Ok(_) => Ok(()),
        Err(word) => complain(key, format!("holds `{word}`, which is no host"), format!("write {PATTERN_TAKES}")),
    }
}

fn index(key: &'static str, text: &str) -> Result<(), Complaint> {
    match text.parse::<IndexUrl>() {
        Err(problem) if !text.is_empty() => complain(
            key,
            format!("is {problem}"),
            "write scheme, host, port and path: `https://index.example.org/simple`; sessions could read credentials in it, so put \
             them into a mirror of yours",
        ),
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut NetworkConfig, &mut PackagesConfig);

    fn complaint(change: Change) -> Option<&'static str> {
        let (mut network, mut packages) = (NetworkConfig::default(), PackagesConfig::default());
        change(&mut network, &mut packages);
        check(&network, &packages).err().map(|complaint| complaint.key)
    }

    #[test]
    fn every_entry_that_can_not_be_read_is_refused_with_its_key() {
        assert_eq!(complaint(|_, _| {}), None);
        let sound = complaint(|network, packages| {
            network.egress_allow = vec!["*.example.org:8443".into()];
            network.hosts = vec!["a.example.org=192.0.2.7".into()];
            packages.pip_index = "https://index.example.org/simple".into();
            packages.hosts = vec!["files.example.org".into()];
        });
        assert_eq!(sound, None);
        let cases: [(&str, Change); 8] = [
            ("network.egress_allow", |network, _| network.egress_allow = vec!["https://a.example.org".into()]),
            ("network.hosts", |network, _| network.hosts = vec!["a.example.org".into()]),
            ("network.connections_max", |network, _| network.connections_max = 0),
            ("network.idle_timeout_s", |network, _| network.idle_timeout_s = 0),
            ("network.bytes_max", |network, _| network.bytes_max = 0),
            ("packages.hosts", |_, packages| packages.hosts = vec!["a b".into()]),
            ("packages.pip_index", |_, packages| packages.pip_index = "https://user:secret@a.example.org/".into()),
            ("packages.npm_registry", |_, packages| packages.npm_registry = "a.example.org".into()),
        ];
        for (key, change) in cases {
            assert_eq!(complaint(change), Some(key));
        }
    }
}
