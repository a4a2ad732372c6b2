//! What the record of a run says of the machine.

use serde_json::{json, Map, Value};
use tch::Device;

use crate::nn::{cuda, libtorch};

/// `libtorch`, `device`, `gpu`, `repeatable_to_the_bit`, `threads` and `system` of run.json.
///
/// On GPUs some sums are made in the order in which threads happen to come, so the same training gives slightly other
/// numbers each time.
pub fn record(device: Device) -> Map<String, Value> {
    let entries = [
        ("libtorch", json!(libtorch::version())),
        ("device", json!(device_name(device))),
        ("gpu", gpu(device)),
        ("repeatable_to_the_bit", json!(!device.is_cuda())),
        ("threads", json!(tch::get_num_threads())),
        ("system", json!(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH))),
    ];
    entries.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// As `--device` takes it.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".into(),
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The card, in bytes and versions of CUDA; null on others than NVIDIA's.
fn gpu(device: Device) -> Value {
    let Device::Cuda(index) = device else { return Value::Null };
    let card = cuda::card(index);
    json!({
        "name": card.map(|card| &card.name),
        "compute_capability": card.map(|card| format!("{}.{}", card.capability.0, card.capability.1)),
        "memory": card.map(|card| card.memory),
        "free_memory": cuda::free_memory(index),
        "driver_runs": cuda::driver().ok().map(|driver| driver.cuda.to_string()),
        "libtorch_is_for": libtorch::cuda().map(|cuda| cuda.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_on_gpus_are_recorded_as_not_repeatable() {
        let of = |device, key: &str| record(device)[key].clone();
        let (cpu, gpu) = (Device::Cpu, Device::Cuda(3));
        assert_eq!([cpu, gpu].map(|d| of(d, "repeatable_to_the_bit")), [json!(true), json!(false)]);
        assert_eq!([cpu, gpu].map(|d| of(d, "device")), [json!("cpu"), json!("cuda:3")]);
        assert_eq!((of(cpu, "gpu").is_null(), of(gpu, "gpu").is_object()), (true, true));
    }
}
