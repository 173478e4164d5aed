//! The `nvmf` program itself, against a target in this process: what it prints, what it does to data, how it fails.

mod commands;
mod config;
mod data;
mod discovery;
mod failures;
mod metadata;
mod monitor;
mod recovery;
mod share;
mod support;
