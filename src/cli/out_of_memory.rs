//! libtorch's message where there is no memory, in words that help.

/// What libtorch says where the process, and where the GPU has none left.
const SAYS: [&str; 3] = ["can't allocate memory", "not enough memory", "out of memory"];

/// The line for an error that is one of memory.
pub(super) fn out_of_memory(text: &str) -> Option<String> {
    SAYS.iter().any(|says| text.contains(says)).then(|| {
        let asked = asked(text).map_or(String::new(), |asked| format!(" (libtorch asked for {asked})"));
        format!("there is not enough memory{asked}: a smaller train.micro_batch or data.size (--size) takes less")
    })
}

/// How much libtorch asked for: on the CPU in bytes, on a GPU in words.
fn asked(text: &str) -> Option<String> {
    let after = |words: &str| text.split(words).nth(1);
    if let Some(rest) = after("you tried to allocate ") {
        let bytes: u64 = rest.split(' ').next()?.parse().ok()?;
        return Some(format!("{} MiB", bytes.div_ceil(1 << 20)));
    }
    let rest = after("Tried to allocate ")?;
    Some(rest.split(". ").next()?.trim_end_matches('.').to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_make_smaller_is_named_with_how_much_was_asked_for() {
        let cpu =
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried \
                   to allocate 12884901888 bytes. Error code 12 (Cannot allocate memory)";
        let line = out_of_memory(cpu).unwrap();
        assert!(line.contains("12288 MiB") && line.contains("train.micro_batch or data.size"), "{line}");
        let gpu = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139 GiB";
        assert!(out_of_memory(gpu).unwrap().contains("asked for 2.50 GiB)"));
        assert_eq!(out_of_memory("shapes differ"), None);
    }
}
