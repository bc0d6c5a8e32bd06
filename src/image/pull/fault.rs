//! What went wrong between us and a registry, in words that say what mends it.
//!
//! Invariant: nothing of a registry's own text reaches a terminal unescaped or past [`SAID_CHARS_MAX`].

use std::error::Error;
use std::io;

use rustls::CertificateError;
use serde::Deserialize;

use crate::image::ImageError;
use crate::image::error::CertificateFault;

/// Of a registry's own words.
const SAID_CHARS_MAX: usize = 300;

/// A request that had no answer.
pub(super) fn of(error: &reqwest::Error, registry: &str, reference: &str) -> ImageError {
    match tls_cause(error) {
        Some(rustls::Error::InvalidCertificate(cause)) => {
            ImageError::Certificate { registry: registry.to_owned(), fault: certificate(cause) }
        }
        Some(rustls::Error::InvalidMessage(_)) => ImageError::NoTls { registry: registry.to_owned() },
        Some(_) | None => {
            ImageError::Registry { operation: "asking for".into(), reference: reference.to_owned(), cause: chain(error) }
        }
    }
}

fn certificate(cause: &CertificateError) -> CertificateFault {
    match cause {
        CertificateError::UnknownIssuer => CertificateFault::UnknownIssuer,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => CertificateFault::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => CertificateFault::NotValidYet,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => CertificateFault::OtherName,
        other => CertificateFault::Other(printable(&other.to_string())),
    }
}

/// What rustls said, however deep it lies.
fn tls_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An io::Error passes over what it carries: its source is that one's source.
        let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = carried.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

/// reqwest says the most in its sources.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    printable(&text)
}

/// The errors that a registry lists, `CODE: message` each; empty when it lists none.
pub(super) fn envelope(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Listed>,
    }
    #[derive(Deserialize)]
    struct Listed {
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(envelope) = serde_json::from_slice::<Envelope>(bytes) else { return String::new() };
    let texts: Vec<String> = envelope.errors.iter().map(|listed| format!("{}: {}", listed.code, listed.message)).collect();
    printable(&texts.join("; "))
}

/// Foreign text for a terminal.
pub(super) fn printable(text: &str) -> String {
    let short: String = text.chars().take(SAID_CHARS_MAX).collect();
    short.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_tls_is_found_below_any_number_of_errors() {
        let tls = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let nested = io::Error::other(io::Error::other(tls()));
        assert!(tls_cause(&nested).is_some_and(|found| *found == tls()));
        assert!(tls_cause(&io::Error::other("something else")).is_none());
    }

    #[test]
    fn a_registrys_words_are_short_and_hold_no_control_character() {
        let text = format!(r#"{{"errors":[{{"code":"DENIED","message":"\u001b[31m{}"}}]}}"#, "x".repeat(10_000));
        let said = envelope(text.as_bytes());
        assert!(said.starts_with("DENIED:  [31mxx") && said.chars().count() == SAID_CHARS_MAX, "{said}");
        for bytes in [&b""[..], b"<html>", b"{}", br#"{"errors":[1]}"#] {
            assert_eq!(envelope(bytes), "");
        }
    }
}
