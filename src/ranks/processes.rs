//! `--processes N`: starts the ranks on this machine, keeps their store, and ends them all when one fails.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::c10d::Server;
use super::host_name;

/// Between two looks at the children.
const LOOK: Duration = Duration::from_millis(20);
/// Children that know of a failure end by themselves; after so long they are ended.
const GRACE: Duration = Duration::from_secs(10);

/// Runs this program again so many times, each a rank, until all are done.
///
/// # Errors
/// If they cannot be started, or one is killed.
pub fn start_and_wait(count: usize) -> Result<ExitCode> {
    ensure!(count > 0, "--processes takes how many processes train together: 1 or more");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on 127.0.0.1")?;
    let port = listener.local_addr()?.port();
    let _server = Server::start(listener)?;
    let mut asked = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1]).context("cannot listen for signals")?;
    let mut children = Children(Vec::new());
    for rank in 0..count {
        children.0.push(start(rank, count, port)?);
    }
    children.wait(&mut asked)
}

fn start(rank: usize, count: usize, port: u16) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1));
    let (rank, count) = (rank.to_string(), count.to_string());
    command.env("RANK", &rank).env("LOCAL_RANK", &rank).env("WORLD_SIZE", &count).env("LOCAL_WORLD_SIZE", &count);
    command.env("MASTER_ADDR", Ipv4Addr::LOCALHOST.to_string()).env("MASTER_PORT", port.to_string());
    command.env("TORCHELASTIC_USE_AGENT_STORE", "True");
    // Signals come to this process alone, which passes each on once.
    command.process_group(0);
    command.spawn().with_context(|| format!("cannot start rank {rank}"))
}

/// Processes that end with this one.
struct Children(Vec<Child>);

impl Children {
    fn wait(&mut self, asked: &mut Signals) -> Result<ExitCode> {
        let mut ended: Vec<Option<ExitStatus>> = vec![None; self.0.len()];
        let mut failed_at = None;
        while ended.iter().any(Option::is_none) {
            for number in asked.pending() {
                self.0.iter().for_each(|child| signal(child, number));
            }
            for (rank, (child, ended)) in self.0.iter_mut().zip(&mut ended).enumerate() {
                if ended.is_some() {
                    continue;
                }
                let status = child.try_wait().with_context(|| format!("cannot wait for rank {rank}"))?;
                let Some(status) = status else { continue };
                *ended = Some(status);
                if let Some(number) = status.signal() {
                    bail!("rank {rank} on {} (process {}) was killed by signal {number}", host_name(), child.id());
                }
                if !status.success() && failed_at.is_none() {
                    failed_at = Some(Instant::now());
                }
            }
            if failed_at.is_some_and(|at| at.elapsed() > GRACE) {
                break;
            }
            thread::sleep(LOOK);
        }
        // Who failed by itself has another code than who ended because of it.
        let codes = ended.iter().flatten().filter_map(ExitStatus::code).filter(|code| *code != 0);
        let own = codes.clone().find(|code| *code != i32::from(super::ANOTHER_FAILED));
        let code = own.or_else(|| codes.clone().next()).unwrap_or(0);
        Ok(ExitCode::from(code as u8))
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // An error means that it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn signal(child: &Child, number: i32) {
    // SAFETY: it sends a signal to a child that has not been waited for, or to nobody.
    let _ = unsafe { libc::kill(child.id() as i32, number) };
}
