// PyTorch's c10d behind a few C functions: a store of keys that all ranks reach, and a group of ranks that reduce,
// broadcast and gather tensors. Every function gives null, or the text of what went wrong, for vigdet_text_free.

#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace {

struct Store {
  // Keys of this attempt alone: a store that outlives a crash still has those of the one before.
  c10::intrusive_ptr<c10d::Store> keys;
};

struct Group {
  c10::intrusive_ptr<c10d::Backend> cpu;
  // Null: tensors of GPUs have to come by way of the CPU.
  c10::intrusive_ptr<c10d::Backend> gpu;

  c10d::Backend& of(const at::Tensor& tensor) const {
    TORCH_CHECK(tensor.is_cpu() || gpu, "there is no group of ranks for ", tensor.device().str());
    return tensor.is_cpu() ? *cpu : *gpu;
  }
};

std::chrono::milliseconds milliseconds(int64_t count) {
  return std::chrono::milliseconds(count);
}

std::vector<uint8_t> bytes(const char* data, size_t length) {
  return {data, data + length};
}

char* guarded(const std::function<void()>& work) {
  try {
    work();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception of no known type");
  }
}

// c10d warns of host names that have no entry anywhere: what matters comes as an exception.
void log_errors_only() {
  constexpr int errors = 2;
  if (!std::getenv("TORCH_CPP_LOG_LEVEL")) {
    FLAGS_caffe2_log_level = errors;
  }
}

c10::intrusive_ptr<c10d::Backend> group_of_cpus(const Store& store, int rank, int size, const char* address,
                                       const char* interface, int64_t timeout) {
  auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(timeout));
  options->devices.push_back(interface ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                       : c10d::ProcessGroupGloo::createDeviceForHostname(address));
  auto keys = c10::make_intrusive<c10d::PrefixStore>("gloo", store.keys);
  return c10::make_intrusive<c10d::ProcessGroupGloo>(keys, rank, size, options);
}

}  // namespace

extern "C" {

void vigdet_text_free(char* text) {
  free(text);
}

// Listens on a socket that is bound already, which becomes the store's.
char* vigdet_store_serve(int socket, uint16_t port, const char* host, c10d::TCPStore** out) {
  return guarded([&] {
    log_errors_only();
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = true;
    options.waitWorkers = false;
    options.masterListenFd = socket;
    *out = c10::make_intrusive<c10d::TCPStore>(host, options).release();
  });
}

void vigdet_server_free(c10d::TCPStore* server) {
  c10::intrusive_ptr<c10d::TCPStore>::reclaim(server);
}

char* vigdet_store_connect(const char* host, uint16_t port, const char* prefix, int64_t timeout, Store** out) {
  return guarded([&] {
    log_errors_only();
    c10d::TCPStoreOptions options;
    options.port = port;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *out = new Store{c10::make_intrusive<c10d::PrefixStore>(prefix, store)};
  });
}

void vigdet_store_free(Store* store) {
  delete store;
}

char* vigdet_store_set(Store* store, const char* key, const char* value, size_t length) {
  return guarded([&] { store->keys->set(key, bytes(value, length)); });
}

// Sets the key if nobody has yet. Gives what it holds now.
char* vigdet_store_claim(Store* store, const char* key, const char* value, size_t length, char** held) {
  return guarded([&] {
    auto now = store->keys->compareSet(key, std::vector<uint8_t>{}, bytes(value, length));
    *held = strndup(reinterpret_cast<const char*>(now.data()), now.size());
  });
}

// What the key holds; null where nobody has set it.
char* vigdet_store_look(Store* store, const char* key, char** held) {
  return guarded([&] {
    *held = nullptr;
    if (store->keys->check({key})) {
      auto now = store->keys->get(key);
      *held = strndup(reinterpret_cast<const char*>(now.data()), now.size());
    }
  });
}

char* vigdet_store_add(Store* store, const char* key, int64_t amount, int64_t* sum) {
  return guarded([&] { *sum = store->keys->add(key, amount); });
}

// `interface`: the network interface to use, or null: the one with this address. `gpu`: this rank's, or −1.
char* vigdet_group_new(Store* store, int rank, int size, const char* address, const char* interface, int64_t timeout,
                       int gpu, Group** out) {
  return guarded([&] {
    auto group = std::make_unique<Group>();
    group->cpu = group_of_cpus(*store, rank, size, address, interface, timeout);
#ifdef USE_C10D_NCCL
    if (gpu >= 0) {
      auto options = c10d::ProcessGroupNCCL::Options::create();
      options->timeout = milliseconds(timeout);
      auto keys = c10::make_intrusive<c10d::PrefixStore>("nccl", store->keys);
      auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(keys, rank, size, options);
      nccl->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(gpu)));
      group->gpu = nccl;
    }
#endif
    *out = group.release();
  });
}

void vigdet_group_free(Group* group) {
  delete group;
}

bool vigdet_group_reduces_on_gpus(const Group* group) {
  return static_cast<bool>(group->gpu);
}

// Each tensor becomes the sum of all ranks'. All are under way at once.
char* vigdet_all_reduce(Group* group, at::Tensor** tensors, size_t count) {
  return guarded([&] {
    std::vector<c10::intrusive_ptr<c10d::Work>> under_way;
    for (size_t i = 0; i < count; i++) {
      std::vector<at::Tensor> one{*tensors[i]};
      under_way.push_back(group->of(one[0]).allreduce(one));
    }
    for (auto& work : under_way) {
      work->wait();
    }
  });
}

char* vigdet_broadcast(Group* group, at::Tensor* tensor, int from) {
  return guarded([&] {
    std::vector<at::Tensor> one{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = from;
    group->of(one[0]).broadcast(one, options)->wait();
  });
}

// Rank 0 gets every rank's tensor in `gathered`, all of one shape; the others give none.
char* vigdet_gather(Group* group, at::Tensor* own, at::Tensor** gathered, size_t count) {
  return guarded([&] {
    std::vector<at::Tensor> input{*own};
    std::vector<std::vector<at::Tensor>> output;
    if (count > 0) {
      output.emplace_back();
      for (size_t i = 0; i < count; i++) {
        output[0].push_back(*gathered[i]);
      }
    }
    group->of(input[0]).gather(output, input)->wait();
  });
}

char* vigdet_barrier(Group* group) {
  return guarded([&] { group->cpu->barrier()->wait(); });
}

}  // extern "C"
