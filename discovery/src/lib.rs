//! Discovery: asking a discovery controller which NVM subsystems there are, and printing the answer the way scripts
//! expect it.
//!
//! * [`discover`] attaches a discovery controller, reads its log in one consistent piece, and detaches again.
//! * [`walk`](walk()) asks any number of them side by side, and those they refer to, and tells what each entry comes to.
//! * [`DiscoveryMonitor`] stays connected to discovery controllers, named, referred to or announced by multicast DNS, and tells
//!   what changes.
//! * [`register`](register()) enters this host into a central discovery controller.
//! * [`config`] reads nvme-cli's configuration files.
//! * [`output`] renders a log as `nvme discover` does, byte for byte: text, JSON and the raw log page.
//!
//! ```no_run
//! use nvmf_core::{ControllerOptions, Driver};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let driver = Driver::builder().build(); // register transports here
//! let trid = "trtype:tcp traddr:192.168.1.20 trsvcid:8009".parse()?;
//! let discovery = nvmf_discovery::discover(&driver, &trid, &ControllerOptions::default())?;
//! print!("{}", nvmf_discovery::output::text(&discovery.log));
//! # Ok(())
//! # }
//! ```
//!
//! The `nvmf` program of this package puts a command line around it.

#![forbid(unsafe_code)]

mod client;
pub mod config;
#[cfg(feature = "mdns")]
mod mdns;
mod monitor;
pub mod output;
mod register;
mod walk;

pub use client::{DiscoverOptions, Discovery, discover, discover_with};
#[cfg(feature = "mdns")]
pub use mdns::{MdnsBrowser, MdnsOptions, SERVICE as MDNS_SERVICE};
pub use monitor::{DiscoveryMonitor, EventQueue, MonitorEvent, MonitorOptions, Path};
pub use register::{is_central, register};
pub use walk::{Asked, Seed, Verdict, Walk, walk};

// The examples of the README compile, and the one that can runs.
#[cfg(all(doctest, feature = "tcp"))]
#[doc = include_str!("../../README.md")]
struct Readme;
