//! What stands in for c10d where vigdet was built without it: nothing can be made, so nothing can be called.

use std::convert::Infallible;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{bail, Result};
use tch::Tensor;

const WHY: &str = "vigdet was built without training in several processes: its libtorch lacks c10d, as the build said";

/// See the other `Server`.
#[derive(Debug)]
pub struct Server(#[allow(dead_code)] Infallible);

/// See the other `Store`.
#[derive(Debug)]
pub struct Store(Infallible);

/// See the other `Group`.
#[derive(Debug)]
pub struct Group(Infallible);

#[allow(missing_docs)]
impl Server {
    pub fn start(_: TcpListener) -> Result<Self> {
        bail!(WHY)
    }
}

#[allow(missing_docs)]
impl Store {
    pub fn connect(_: &str, _: u16, _: &str, _: Duration) -> Result<Self> {
        bail!(WHY)
    }

    pub fn set(&self, _: &str, _: &str) -> Result<()> {
        match self.0 {}
    }

    pub fn claim(&self, _: &str, _: &str) -> Result<String> {
        match self.0 {}
    }

    pub fn look(&self, _: &str) -> Result<Option<String>> {
        match self.0 {}
    }

    pub fn add(&self, _: &str, _: i64) -> Result<i64> {
        match self.0 {}
    }
}

#[allow(missing_docs)]
impl Group {
    pub fn meet(
        store: &Store,
        _: (usize, usize),
        _: &str,
        _: Option<&str>,
        _: Duration,
        _: Option<usize>,
    ) -> Result<Self> {
        match store.0 {}
    }

    pub fn reduces_on_gpus(&self) -> bool {
        match self.0 {}
    }

    pub fn all_reduce(&self, _: &[Tensor]) -> Result<()> {
        match self.0 {}
    }

    pub fn broadcast(&self, _: &Tensor) -> Result<()> {
        match self.0 {}
    }

    pub fn gather(&self, _: &Tensor, _: &[Tensor]) -> Result<()> {
        match self.0 {}
    }

    pub fn barrier(&self) -> Result<()> {
        match self.0 {}
    }
}
