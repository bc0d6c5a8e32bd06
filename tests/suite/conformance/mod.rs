//! PROTOCOL from outside: every method, command, alias, field, error code and event. One page per part of the contract.

mod auth;
mod bounds;
mod code;
mod connections;
mod disconnect;
mod endpoints;
mod errors;
mod files;
mod matrix;
pub mod methods;
mod openrpc;
mod programs;
mod sessions;
mod source;
mod speech;
mod stream;
mod tree;
mod wire;

/// All trials of the contract.
pub fn trials() -> Vec<libtest_mimic::Trial> {
    let pages = [
        wire::trials(),
        bounds::trials(),
        endpoints::trials(),
        openrpc::trials(),
        connections::trials(),
        errors::trials(),
        auth::trials(),
        methods::trials(),
        sessions::trials(),
        files::trials(),
        tree::trials(),
        programs::trials(),
        code::trials(),
        source::trials(),
        matrix::trials(),
        stream::trials(),
        disconnect::trials(),
    ];
    pages.into_iter().flatten().collect()
}
