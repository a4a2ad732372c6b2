// Memory of tensors on the CPU that can be taken again for a tensor of the same size.
//
// libtorch asks the C library for memory at a multiple of 64 bytes. glibc then takes a block that is larger, and gives
// back what is before and behind. Small objects settle there, and the next tensor of the same size, for which a larger
// block is looked for again, does not fit in between. Here the larger block is kept as it is.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdlib>

namespace {

// libtorch's own: a line of the cache, and the longest vector.
constexpr size_t ALIGNMENT = 64;

// Before the tensor's memory stands where its block begins.
struct WholeBlocks final : c10::Allocator {
    static void release(void *memory) {
        if (memory != nullptr) {
            std::free(static_cast<void **>(memory)[-1]);
        }
    }

    c10::DataPtr allocate(size_t bytes) override {
        void *memory = nullptr;
        if (bytes > 0) {
            // What is beyond this no process has, and with what comes on top it could begin anew at 0.
            void *block = bytes <= PTRDIFF_MAX ? std::malloc(bytes + sizeof(void *) + ALIGNMENT - 1) : nullptr;
            // In the words of libtorch's own.
            TORCH_CHECK(block != nullptr, "not enough memory: you tried to allocate ", bytes, " bytes.");
            const auto least = reinterpret_cast<uintptr_t>(block) + sizeof(void *);
            memory = reinterpret_cast<void *>((least + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
            static_cast<void **>(memory)[-1] = block;
        }
        return {memory, memory, &release, c10::Device(c10::DeviceType::CPU)};
    }

    c10::DeleterFnPtr raw_deleter() const override { return &release; }

    void copy_data(void *to, const void *from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

} // namespace

// From here on, tensors on the CPU have such memory. Those that are there keep theirs.
extern "C" void vigdet_take_whole_blocks() {
    static WholeBlocks allocator;
    c10::SetCPUAllocator(&allocator, 1);
}
