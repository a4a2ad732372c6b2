//! Which rank this process is and where the others are found, as torchrun or Slurm says in the environment.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

use anyhow::{bail, ensure, Context, Result};

/// A process among those that train together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// Processes in all.
    pub size: usize,
    /// Its number on its machine.
    pub local_rank: usize,
    /// Processes on its machine.
    pub local_size: usize,
    /// Where the store is.
    pub host: String,
    /// The store's port.
    pub port: u16,
    /// Whether whoever started the processes keeps the store; otherwise rank 0 does.
    pub store_is_theirs: bool,
    /// How often the processes were started again after a failure.
    pub restarts: u32,
    /// Threads that a scheduler gave to this process, if it says so.
    pub threads: Option<usize>,
}

impl Place {
    /// What the environment says; `None`: an ordinary single process.
    ///
    /// # Errors
    /// Values that are missing or make no sense.
    pub fn of_environment() -> Result<Option<Self>> {
        Self::read(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn read(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str| -> Result<Option<usize>> {
            let parse = |text: String| text.parse().with_context(|| format!("{name}={text} is not a number"));
            get(name).map(parse).transpose()
        };
        let place = match (number("RANK")?, number("WORLD_SIZE")?) {
            (Some(rank), Some(size)) => Self::of_torchrun(rank, size, &get, &number)?,
            (None, None) => match (number("SLURM_PROCID")?, number("SLURM_STEP_NUM_TASKS")?) {
                (Some(rank), Some(size)) => Self::of_slurm(rank, size, &get, &number)?,
                (Some(rank), None) => match number("SLURM_NTASKS")? {
                    Some(size) => Self::of_slurm(rank, size, &get, &number)?,
                    None => return Ok(None),
                },
                _ => return Ok(None),
            },
            _ => bail!("of RANK and WORLD_SIZE only one is set: torchrun sets both"),
        };
        ensure!(place.rank < place.size, "rank {} of {} processes: ranks count from 0", place.rank, place.size);
        Ok(Some(place))
    }

    fn of_torchrun(
        rank: usize,
        size: usize,
        get: &impl Fn(&str) -> Option<String>,
        number: &impl Fn(&str) -> Result<Option<usize>>,
    ) -> Result<Self> {
        let host = get("MASTER_ADDR").filter(|_| size > 1);
        let port = number("MASTER_PORT")?;
        ensure!(size == 1 || host.is_some() && port.is_some(), "RANK is set, but not MASTER_ADDR and MASTER_PORT");
        let host = host.unwrap_or_default();
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        Ok(Self {
            rank,
            size,
            local_rank: number("LOCAL_RANK")?.unwrap_or(if here { rank } else { 0 }),
            local_size: number("LOCAL_WORLD_SIZE")?.unwrap_or(if here { size } else { 1 }),
            port: port_of(port.unwrap_or_default())?,
            host,
            store_is_theirs: get("TORCHELASTIC_USE_AGENT_STORE")
                .is_some_and(|value| value.eq_ignore_ascii_case("true")),
            restarts: number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0) as u32,
            // torchrun itself sets 1 where nobody has set anything.
            threads: number("OMP_NUM_THREADS")?.filter(|n| *n > 1 || get("TORCHELASTIC_RUN_ID").is_none()),
        })
    }

    fn of_slurm(
        rank: usize,
        size: usize,
        get: &impl Fn(&str) -> Option<String>,
        number: &impl Fn(&str) -> Result<Option<usize>>,
    ) -> Result<Self> {
        let nodes = get("SLURM_STEP_NODELIST").or_else(|| get("SLURM_JOB_NODELIST"));
        let host = get("MASTER_ADDR").or_else(|| nodes.as_deref().and_then(first_host));
        ensure!(size == 1 || host.is_some(), "neither SLURM_JOB_NODELIST nor MASTER_ADDR says where rank 0 is");
        let node = number("SLURM_NODEID")?.unwrap_or(0);
        let tasks = get("SLURM_STEP_TASKS_PER_NODE").or_else(|| get("SLURM_TASKS_PER_NODE"));
        let local_size = tasks.and_then(|tasks| expanded(&tasks).get(node).copied());
        // Jobs that share a machine shall not meet.
        let job = number("SLURM_JOB_ID")?.unwrap_or(0);
        Ok(Self {
            rank,
            size,
            local_rank: number("SLURM_LOCALID")?.unwrap_or(0),
            local_size: local_size.unwrap_or(1),
            host: host.unwrap_or_default(),
            port: port_of(number("MASTER_PORT")?.unwrap_or(20_000 + job % 10_000))?,
            store_is_theirs: false,
            restarts: number("SLURM_RESTART_COUNT")?.unwrap_or(0) as u32,
            threads: number("SLURM_CPUS_PER_TASK")?,
        })
    }

    /// Where the store is.
    ///
    /// # Errors
    /// If its name has no address, or one that other machines cannot reach although there are some.
    pub fn store(&self) -> Result<SocketAddr> {
        let (host, port) = (self.host.as_str(), self.port);
        let found = (host, port).to_socket_addrs().with_context(|| format!("MASTER_ADDR={host} has no address"))?;
        let found: Vec<SocketAddr> = found.collect();
        let address = found.iter().find(|address| address.is_ipv4()).or(found.first());
        let address = *address.with_context(|| format!("MASTER_ADDR={host} has no address"))?;
        ensure!(
            self.local_size >= self.size || !address.ip().is_loopback(),
            "MASTER_ADDR={host} is {} here, which other machines cannot reach: name this machine's address on their \
             network",
            address.ip()
        );
        Ok(address)
    }

    /// The address of this machine from which the store is reached.
    ///
    /// # Errors
    /// If there is no way to it.
    pub fn own_address(&self) -> Result<IpAddr> {
        let store = self.store()?;
        let any = if store.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        // Nothing is sent: the system looks up its routes.
        let look = || UdpSocket::bind(any).and_then(|socket| socket.connect(store).and_then(|()| socket.local_addr()));
        Ok(look().with_context(|| format!("there is no way to MASTER_ADDR={}", self.host))?.ip())
    }
}

fn port_of(number: usize) -> Result<u16> {
    number.try_into().ok().with_context(|| format!("MASTER_PORT={number} is no port"))
}

/// The first of Slurm's list of hosts: `node[003-005,009],other` → `node003`.
fn first_host(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let name = &list[..end];
    let Some(inside) = list[end..].strip_prefix('[') else { return Some(name.to_string()) };
    let (numbers, rest) = inside.split_once(']')?;
    let number = numbers.split([',', '-']).next()?;
    let suffix = rest.split(',').next()?;
    Some(format!("{name}{number}{suffix}"))
}

/// Slurm's list of numbers, one for each node: `4(x2),3` → 4, 4, 3.
fn expanded(list: &str) -> Vec<usize> {
    let item = |item: &str| -> Option<Vec<usize>> {
        let (number, times) = match item.split_once("(x") {
            Some((number, times)) => (number, times.strip_suffix(')')?.parse().ok()?),
            None => (item, 1),
        };
        Some(vec![number.trim().parse().ok()?; times])
    };
    list.split(',').filter_map(item).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        Place::read(|name| Some(variables.iter().find(|(n, _)| *n == name)?.1.to_string()))
    }

    #[test]
    fn torchruns_variables_are_understood() {
        let of_torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "10.0.0.1"),
            ("MASTER_PORT", "29400"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            ("OMP_NUM_THREADS", "1"),
            ("TORCHELASTIC_RUN_ID", "none"),
        ];
        let place = Place {
            rank: 5,
            size: 8,
            local_rank: 1,
            local_size: 4,
            host: "10.0.0.1".into(),
            port: 29400,
            store_is_theirs: true,
            restarts: 2,
            threads: None,
        };
        assert_eq!(read(&of_torchrun).unwrap(), Some(place));
        let by_hand = [("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "4000")];
        let place = read(&by_hand).unwrap().unwrap();
        assert_eq!((place.local_rank, place.local_size, place.store_is_theirs), (1, 2, false));
        assert_eq!(read(&[("PATH", "/bin")]).unwrap(), None);
        let error = |variables: &[(&str, &str)]| read(variables).unwrap_err().to_string();
        assert!(error(&by_hand[..1]).contains("only one is set"));
        assert!(error(&by_hand[..2]).contains("MASTER_ADDR"));
        assert!(error(&[("RANK", "2"), ("WORLD_SIZE", "2"), by_hand[2], by_hand[3]]).contains("rank 2 of 2"));
        assert!(error(&[("RANK", "x"), by_hand[1]]).contains("RANK=x"));
        assert!(error(&[by_hand[0], by_hand[1], by_hand[2], ("MASTER_PORT", "70000")]).contains("MASTER_PORT=70000"));
    }

    #[test]
    fn slurms_variables_are_understood() {
        let of_slurm = [
            ("SLURM_PROCID", "7"),
            ("SLURM_NTASKS", "11"),
            ("SLURM_LOCALID", "3"),
            ("SLURM_NODEID", "1"),
            ("SLURM_TASKS_PER_NODE", "4(x2),3"),
            ("SLURM_JOB_NODELIST", "node[003-005],gpu1"),
            ("SLURM_JOB_ID", "1234567"),
            ("SLURM_CPUS_PER_TASK", "6"),
        ];
        let place = read(&of_slurm).unwrap().unwrap();
        assert_eq!((place.rank, place.size, place.local_rank, place.local_size), (7, 11, 3, 4));
        assert_eq!((place.host.as_str(), place.port, place.threads), ("node003", 24567, Some(6)));
        // A step of fewer tasks than the job.
        let step = [&of_slurm[..], &[("SLURM_STEP_NUM_TASKS", "8"), ("MASTER_ADDR", "head")]].concat();
        let place = read(&step).unwrap().unwrap();
        assert_eq!((place.size, place.host.as_str()), (8, "head"));
        assert_eq!(first_host("a,b").as_deref(), Some("a"));
        assert_eq!(first_host("rack[07,09]-gpu").as_deref(), Some("rack07-gpu"));
        assert_eq!(first_host("host").as_deref(), Some("host"));
    }

    #[test]
    fn a_store_that_other_machines_cannot_reach_is_refused() {
        let place = |local_size: &str| {
            let variables = [
                ("RANK", "0"),
                ("WORLD_SIZE", "4"),
                ("LOCAL_WORLD_SIZE", local_size),
                ("MASTER_ADDR", "127.0.0.1"),
                ("MASTER_PORT", "4000"),
            ];
            read(&variables).unwrap().unwrap()
        };
        assert_eq!(place("4").store().unwrap(), "127.0.0.1:4000".parse().unwrap());
        assert_eq!(place("4").own_address().unwrap(), "127.0.0.1".parse::<IpAddr>().unwrap());
        let error = place("2").store().unwrap_err().to_string();
        assert!(error.contains("other machines cannot reach"), "{error}");
    }
}
