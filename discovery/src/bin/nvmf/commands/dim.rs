//! `nvmf dim`: enters this host into a central discovery controller, or takes it out.

use nvmf_core::spec::dim::DimTask;
use nvmf_discovery::register;

use crate::connect::{ConnectArgs, detach};
use crate::fabrics::FabricsArgs;
use crate::failure::Failure;

/// Enter this host into a central discovery controller, or take it out
///
/// Discovery Information Management, as `nvme dim`. The association ends with the command; whether the registration lasts longer is
/// up to the discovery controller. `nvmf monitor` registers for as long as it runs.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf dim -t tcp -a 192.0.2.1 --task register
  nvmf dim -t tcp -a 192.0.2.1 --task deregister")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: ConnectArgs,

    #[command(flatten)]
    fabrics: FabricsArgs,

    /// What to do
    #[arg(long, value_enum)]
    task: Task,

    /// A name for people that goes with the registration
    #[arg(long, value_name = "NAME")]
    hostsymname: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Task {
    Register,
    Deregister,
    Update,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let trid = args.connect.trid()?;
    let mut options = args.connect.options(1)?;
    options.keep_alive_timeout = std::time::Duration::ZERO;
    args.fabrics.apply(&mut options)?;
    let driver = args.connect.driver()?;
    let controller =
        driver.connect(&trid, &options).map_err(|error| args.connect.discovery_failure(&error))?;
    let task = match args.task {
        Task::Register => DimTask::REGISTER,
        Task::Deregister => DimTask::DEREGISTER,
        Task::Update => DimTask::UPDATE,
    };
    let result = register(&controller, task, args.hostsymname.as_deref(), options.admin_timeout);
    detach(controller);
    result.map_err(Failure::from)
}
