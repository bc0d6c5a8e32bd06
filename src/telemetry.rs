//! Logs and metrics: set up once, at the start of `serve`.
//!
//! Invariant: logs go to standard error; standard output is for data. Calls carry a request id in their span (`rpc::middleware`).

use std::io::IsTerminal;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Upper ends of the buckets of call durations, in seconds.
const SECONDS_BUCKETS: [f64; 12] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0];

/// Why logs or metrics could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.filter` is no filter.
    #[error("log.filter `{filter}` is no tracing filter")]
    Filter {
        /// As configured.
        filter: String,
        /// Why.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logs were set up before.
    #[error("logs are set up already")]
    Subscriber(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Metrics were set up before, or a bucket is wrong.
    #[error("metrics can't be set up")]
    Metrics(#[source] metrics_exporter_prometheus::BuildError),
}

/// Text on a terminal, JSON otherwise, unless the configuration says which.
pub fn init_logs(config: &LogConfig) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|source| TelemetryError::Filter { filter: config.filter.clone(), source })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let on_terminal = std::io::stderr().is_terminal();
    let as_text = match config.format {
        LogFormat::Auto => on_terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let outcome = if as_text { builder.with_ansi(on_terminal).try_init() } else { builder.json().try_init() };
    outcome.map_err(TelemetryError::Subscriber)
}

/// Installs the recorder and describes what is counted; the handle is what `/metrics` shows.
pub fn init_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(TelemetryError::Metrics)?;
    metrics::describe_counter!("codebeaker_rpc_calls_total", "Calls answered, by method and outcome.");
    metrics::describe_histogram!("codebeaker_rpc_call_seconds", metrics::Unit::Seconds, "Time from a call to its answer.");
    metrics::describe_counter!("codebeaker_connections_total", "Connections accepted.");
    metrics::describe_gauge!("codebeaker_websockets", "WebSockets open.");
    metrics::describe_counter!("codebeaker_unauthorized_total", "Requests without a valid token.");
    metrics::describe_counter!("codebeaker_warm_interpreters_total", "Warm interpreters that got ready or were given up.");
    metrics::describe_gauge!(
        "codebeaker_warm_interpreter_bytes",
        metrics::Unit::Bytes,
        "Memory of the last warm interpreter that got ready, without what it shares with files."
    );
    metrics::describe_counter!(
        "codebeaker_warm_programs_total",
        "Programs offered to a warm interpreter, by what carried them out: it, a fresh one in its place, or a fresh one because none was ready."
    );
    metrics::describe_gauge!("codebeaker_sessions_active", "Sessions open.");
    metrics::describe_counter!("codebeaker_sessions_created_total", "Sessions made.");
    metrics::describe_counter!("codebeaker_sessions_closed_total", "Sessions closed, by reason.");
    metrics::describe_counter!("codebeaker_launcher_restarts_total", "Launchers started in place of one that ended.");
    metrics::describe_counter!(
        "codebeaker_pool_requests_total",
        "Sandboxes asked of the pool: hit, miss (none was ready), unfit (none could be made what was asked for); failed: one could not be made \
         ready."
    );
    metrics::describe_counter!(
        "codebeaker_begun_ahead_total",
        "Sandboxes begun before anybody asked for them, by outcome: taken by a request, or given_up."
    );
    metrics::describe_gauge!("codebeaker_groups_leaving", "Control groups of closed sessions that wait to be removed.");
    metrics::describe_gauge!("codebeaker_mounts_leaving", "File systems of closed sessions that wait to be unmounted.");
    metrics::describe_counter!("codebeaker_pool_discarded_total", "Ready sandboxes that were ended unused, by reason.");
    metrics::describe_gauge!("codebeaker_pool_ready", "Sandboxes that are ready.");
    metrics::describe_gauge!("codebeaker_pool_memory_bytes", metrics::Unit::Bytes, "Memory of the sandboxes that are ready.");
    metrics::describe_histogram!("codebeaker_pool_refill_seconds", metrics::Unit::Seconds, "Time to make one sandbox ready.");
    metrics::describe_histogram!(
        "codebeaker_sweep_seconds",
        metrics::Unit::Seconds,
        "Time of one look for sessions that are past their time."
    );
    metrics::describe_counter!("codebeaker_commands_total", "Commands carried out, by command and verdict.");
    metrics::describe_counter!(
        "codebeaker_blocked_syscalls_total",
        "Executions that made a call against their profile, by call."
    );
    metrics::describe_counter!(
        "codebeaker_egress_connections_total",
        "Connections outwards of sandboxes, by who wanted them and whether they were let through."
    );
    metrics::describe_counter!("codebeaker_egress_bytes_total", "Bytes through the proxies of sandboxes.");
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let handle = init_metrics().expect("the first and only recorder of this test program");
        metrics::counter!("codebeaker_test_total").increment(3);
        metrics::histogram!("codebeaker_test_seconds").record(0.002);
        let shown = handle.render();
        assert!(shown.contains("codebeaker_test_total 3"), "{shown}");
        assert!(shown.contains("codebeaker_test_seconds_bucket{le=\"0.0025\"} 1"), "{shown}");
    }

    #[test]
    fn a_filter_that_is_none_is_named() {
        let config = LogConfig { filter: "info,=".into(), format: LogFormat::Text };
        let error = init_logs(&config).expect_err("no filter");
        assert!(error.to_string().contains("info,="));
    }
}
