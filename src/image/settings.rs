//! What an image's configuration asks for, reduced to what a session can honour and what `image inspect` shows.
//!
//! Invariant: every text is bounded and free of NUL, no name of the environment is empty or holds a space or control character; what is left out
//! is left out here, at the edge. docs/images.md says what each field means for a session.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::ImageError;

/// Variables of one image.
const VARIABLES_MAX: usize = 1024;
/// One text.
const TEXT_BYTES_MAX: usize = 128 << 10;
/// Words of a command, labels.
const WORDS_MAX: usize = 1024;

/// The part of the configuration that is kept with the image's record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Environment of the programs of a session.
    pub env: BTreeMap<String, String>,
    /// Where programs would start; absolute.
    pub working_dir: Option<String>,
    /// Whom the image's own program would run as.
    pub user: Option<String>,
    /// The image's own program.
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program itself.
    pub cmd: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `os/architecture`.
    pub platform: Option<String>,
}

impl Settings {
    /// Reads a configuration that has been verified.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let broken = |reason: String| ImageError::Document { what: "configuration".into(), reason };
        let image: ImageConfiguration = serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
        let platform = Some(format!("{}/{}", image.os(), image.architecture()));
        let Some(config) = image.config() else { return Ok(Self { platform, ..Self::default() }) };
        let texts = |list: &Option<Vec<String>>| list.iter().flatten().cloned().collect::<Vec<String>>();
        let (variables, entrypoint, cmd) = (texts(config.env()), texts(config.entrypoint()), texts(config.cmd()));
        let labels: BTreeMap<String, String> = config.labels().clone().unwrap_or_default().into_iter().collect();
        if variables.len() > VARIABLES_MAX || entrypoint.len().max(cmd.len()).max(labels.len()) > WORDS_MAX {
            return Err(broken(format!("it has more than {VARIABLES_MAX} variables, words or labels")));
        }
        let single = [config.working_dir(), config.user()].into_iter().flatten();
        let all = variables.iter().chain(&entrypoint).chain(&cmd).chain(single);
        if all.chain(labels.iter().flat_map(|(key, value)| [key, value])).any(|text| !is_sound(text)) {
            return Err(broken(format!("a text of it holds a NUL or more than {TEXT_BYTES_MAX} bytes")));
        }
        let mut env = BTreeMap::new();
        for variable in &variables {
            match variable.split_once('=') {
                Some((name, value)) if is_name(name) => env.insert(name.to_owned(), value.to_owned()),
                Some(_) | None => return Err(broken(format!("`{}` is no variable", variable.escape_debug()))),
            };
        }
        let working_dir = config.working_dir().clone().filter(|directory| !directory.is_empty());
        let user = config.user().clone().filter(|user| !user.is_empty());
        Ok(Self { env, working_dir, user, entrypoint, cmd, labels, platform })
    }
}

fn is_sound(text: &str) -> bool {
    text.len() <= TEXT_BYTES_MAX && !text.contains('\0')
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_control() || c == ' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(config: &str) -> Result<Settings, ImageError> {
        let text =
            format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}},"config":{config}}}"#);
        Settings::parse(text.as_bytes())
    }

    #[test]
    fn what_a_configuration_says_is_kept() {
        let settings = parse(
            r#"{"Env":["PATH=/opt/bin:/bin","EMPTY="],"WorkingDir":"/srv","User":"app","Entrypoint":["/run"],"Cmd":["-v"]}"#,
        );
        let settings = settings.expect("a sound configuration");
        assert_eq!(settings.env["PATH"], "/opt/bin:/bin");
        assert_eq!(settings.env["EMPTY"], "");
        assert_eq!((settings.working_dir.as_deref(), settings.user.as_deref()), (Some("/srv"), Some("app")));
        assert_eq!((settings.entrypoint, settings.cmd), (vec!["/run".to_owned()], vec!["-v".to_owned()]));
        assert_eq!(settings.platform.as_deref(), Some("linux/amd64"));
    }

    #[test]
    fn a_variable_that_is_none_a_nul_and_too_much_are_refused() {
        assert!(parse(r#"{"Env":["A=1"]}"#).is_ok(), "the control");
        for config in [r#"{"Env":["A"]}"#, r#"{"Env":["=1"]}"#, r#"{"Env":["A\nB=1"]}"#, r#"{"Env":["A=\u0000"]}"#] {
            assert!(matches!(parse(config), Err(ImageError::Document { .. })), "{config}");
        }
        let many = format!(r#"{{"Env":[{}"A=1"]}}"#, r#""A=1","#.repeat(VARIABLES_MAX));
        assert!(parse(&many).is_err());
        assert!(parse(&format!(r#"{{"WorkingDir":"/{}"}}"#, "x".repeat(TEXT_BYTES_MAX))).is_err());
    }
}
