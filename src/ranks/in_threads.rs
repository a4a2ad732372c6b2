//! Ranks that are threads of a test and not processes.

use std::net::Ipv4Addr;

use super::*;

/// A test that fails on one rank shall not wait for the others for long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What each of so many ranks makes.
pub(crate) fn each<T: Send>(size: usize, work: impl Fn(&Ranks) -> T + Sync) -> Vec<T> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let _server = Server::start(listener).unwrap();
    thread::scope(|scope| {
        let start = |rank| {
            let work = &work;
            scope.spawn(move || {
                let ranks = join(rank, size, port);
                let made = work(&ranks);
                ranks.joined.as_ref().unwrap().group.barrier().unwrap();
                made
            })
        };
        let threads: Vec<_> = (0..size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn join(rank: usize, size: usize, port: u16) -> Ranks {
    let host = Ipv4Addr::LOCALHOST.to_string();
    let store = Store::connect(&host, port, "test", PATIENCE).unwrap();
    let group = Group::meet(&store, (rank, size), &host, None, PATIENCE, None).unwrap();
    let place = Place {
        rank,
        size,
        local_rank: rank,
        local_size: size,
        host,
        port,
        store_is_theirs: true,
        restarts: 0,
        threads: None,
    };
    Ranks { joined: Some(Arc::new(Joined { place, group, watch: Mutex::new(None), _server: None })), restarts: 0 }
}
