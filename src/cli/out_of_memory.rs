//! libtorch's message where there is no memory, in words that help.

/// What libtorch says where the process, and where the GPU has none left.
const SAYS: [&str; 3] = ["can't allocate memory", "not enough memory", "out of memory"];
/// What oneDNN, which computes convolutions, says then, and seldom otherwise.
const MAY_SAY: [&str; 2] = ["could not create a primitive", "could not create a memory object"];

/// The line for an error that is one of memory.
pub(super) fn out_of_memory(text: &str) -> Option<String> {
    let found = |says: &[&'static str]| says.iter().copied().find(|says| text.contains(says));
    let what = match (found(&SAYS), found(&MAY_SAY)) {
        (Some(_), _) => "there is not enough memory".to_string() + &asked(text),
        (None, Some(says)) => format!("libtorch {says}, most often for lack of memory"),
        (None, None) => return None,
    };
    Some(format!("{what}: a smaller train.micro_batch or data.size (--size) takes less"))
}

/// How much libtorch asked for: on the CPU in bytes, on a GPU in words.
fn asked(text: &str) -> String {
    let after = |words: &str| text.split(words).nth(1);
    let bytes = after("you tried to allocate ").and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    let words = after("Tried to allocate ").and_then(|rest| rest.split(". ").next());
    match (bytes, words) {
        (Some(bytes), _) => format!(" (libtorch asked for {} MiB)", bytes.div_ceil(1 << 20)),
        (None, Some(words)) => format!(" (libtorch asked for {})", words.trim_end_matches('.')),
        (None, None) => String::new(),
    }
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
        assert!(out_of_memory("Torch(\"could not create a primitive\")").unwrap().contains("lack of memory"));
        assert_eq!(out_of_memory("shapes differ"), None);
    }
}
