// The CUDA runtime as nvcc's host code calls it, and what the driver asks of a runtime (../simulated/cuda_on_cpu.h).
// Kernels come from the file that PTX_FILE names, by kernel_name(): so host code of nvcc launches kernels of NVRTC as
// well. With PTX_COUNTS set, each request reports its launches as JSON; PTX_COUNTS=lines by line of the
// source.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "warp.h"

namespace cuda_on_cpu {

void set_seed(uint64_t seed);
int64_t take_launch_count();
std::string take_report();
char* allocate(size_t before, size_t bytes, size_t after);
void release(char* storage);

}  // namespace cuda_on_cpu

namespace ptx_on_cpu {

void stop(const std::string& message) {
  std::fprintf(stderr, "ptx_on_cpu: %s\n", message.c_str());
  std::fflush(stderr);
  std::_Exit(EXIT_FAILURE);
}

namespace {

const char* environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

const Kernels& kernels() {
  static const Kernels all = [] {
    try {
      return read_ptx(environment("PTX_FILE"));
    } catch (const std::exception& error) {
      stop(error.what());
    }
  }();
  return all;
}

std::unordered_map<const void*, const Kernel*>& kernels_of_host() {
  static std::unordered_map<const void*, const Kernel*> all;
  return all;
}

struct Configuration {
  Position grid, block;
  size_t shared_bytes;
  void* stream;
};

Configuration configuration;
Schedule schedule{0};
int64_t launch_count = 0;
std::string launches;  // of the report

std::string to_json(const Counters& counters) {
  std::ostringstream text;
  const char* separator = "";
  Counters(counters).fields([&](const char* name, uint64_t value) {
    text << separator << '"' << name << "\": " << value;
    separator = ", ";
  });
  return text.str();
}

void add(Counters& total, Counters& one) {
  uint64_t values[32];
  size_t count = 0;
  one.fields([&](const char*, uint64_t value) { values[count++] = value; });
  count = 0;
  total.fields([&](const char*, uint64_t& value) { value += values[count++]; });
}

void report(const Launch& launch, uint64_t cycles, bool by_line) {
  Counters total;
  std::map<std::pair<int, int>, Counters> lines;
  for (const Instruction& i : launch.kernel->code) {
    add(total, i.counters);
    if (by_line && i.counters.warp_instructions > 0) add(lines[{i.file, i.line}], i.counters);
  }
  std::ostringstream text;
  text << (launches.empty() ? "[" : ",\n") << "{\"kernel\": \"" << launch.kernel->name << "\", \"blocks\": ["
       << launch.grid.x << ", " << launch.grid.y << "], \"threads\": " << launch.block.x
       << ", \"longest_block_cycles\": " << cycles << ", " << to_json(total);
  if (by_line) {
    text << ", \"lines\": [";
    const char* separator = "";
    for (auto& [place, counters] : lines) {
      const auto& files = *launch.kernel->files;
      const auto file = static_cast<size_t>(place.first);
      text << separator << "\n  {\"file\": \"" << (file < files.size() ? files[file] : "")
           << "\", \"line\": " << place.second << ", " << to_json(counters) << "}";
      separator = ",";
    }
    text << "]";
  }
  text << "}";
  launches += text.str();
}

void launch_kernel(const Kernel& kernel, Position grid, Position block, void** arguments, size_t shared_bytes) {
  constexpr unsigned kMostThreads = 1024;
  constexpr size_t kMostShared = 48 << 10;  // without asking for more
  if (grid.x == 0 || grid.y == 0 || block.x == 0 || block.x > kMostThreads) stop(kernel.name + ": wrong launch shape");
  if (static_cast<size_t>(kernel.static_shared_bytes) + shared_bytes > kMostShared)
    stop(kernel.name + ": more than 48 KiB of shared memory");
  Launch launch{&kernel, block, grid, shared_bytes, {}};
  if (!kernel.parameters.empty())
    launch.parameters.resize(static_cast<size_t>(kernel.parameters.back().offset + kernel.parameters.back().bytes));
  for (size_t k = 0; k < kernel.parameters.size(); ++k)
    std::memcpy(launch.parameters.data() + kernel.parameters[k].offset, arguments[k],
                static_cast<size_t>(kernel.parameters[k].bytes));
  for (const Instruction& i : kernel.code) i.counters = {}, i.known_low = i.known_high = 0;
  const uint64_t cycles = run_grid(launch, schedule);
  ++launch_count;
  const std::string counts = environment("PTX_COUNTS");
  if (!counts.empty()) report(launch, cycles, counts == "lines");
}

}  // namespace
}  // namespace ptx_on_cpu

// --- What the driver asks for -----------------------------------------------------------------------------------------

void cuda_on_cpu::set_seed(uint64_t seed) { ptx_on_cpu::schedule = ptx_on_cpu::Schedule(seed); }

int64_t cuda_on_cpu::take_launch_count() { return std::exchange(ptx_on_cpu::launch_count, 0); }

std::string cuda_on_cpu::take_report() {
  std::string report = std::exchange(ptx_on_cpu::launches, {});
  if (!report.empty()) report += ']';
  return report;
}

char* cuda_on_cpu::allocate(size_t before, size_t bytes, size_t after) {
  return ptx_on_cpu::Arena::instance().allocate(before, bytes, after);
}

void cuda_on_cpu::release(char* storage) { ptx_on_cpu::Arena::instance().release(storage); }

// --- The runtime's ABI, as far as the launchers use it ----------------------------------------------------------------

struct dim3 {
  unsigned x, y, z;
};

namespace {

ptx_on_cpu::Position position(dim3 size) {
  if (size.z != 1) ptx_on_cpu::stop("a third dimension is not supported");
  return {size.x, size.y};
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  const auto& all = ptx_on_cpu::kernels();
  const auto found = all.find(ptx_on_cpu::kernel_name(name));
  ptx_on_cpu::kernels_of_host()[host] = found == all.end() ? nullptr : found->second.get();
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, void* stream) {
  if (block.y != 1) ptx_on_cpu::stop("blocks of two dimensions are not supported");
  ptx_on_cpu::configuration = {position(grid), position(block), shared_bytes, stream};
  return 0;
}

int __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  const auto& last = ptx_on_cpu::configuration;
  *grid = {last.grid.x, last.grid.y, 1};
  *block = {last.block.x, last.block.y, 1};
  *shared_bytes = last.shared_bytes;
  std::memcpy(stream, &last.stream, sizeof last.stream);
  return 0;
}

int cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** arguments, size_t shared_bytes, void*) {
  const ptx_on_cpu::Kernel* const kernel = ptx_on_cpu::kernels_of_host().at(host);
  if (kernel == nullptr) ptx_on_cpu::stop("PTX_FILE lacks the kernel of a launch");
  ptx_on_cpu::launch_kernel(*kernel, position(grid), position(block), arguments, shared_bytes);
  return 0;
}

// CUDA 13 goes this way: a handle first. Ours is the host function.
int __cudaGetKernel(const void** handle, const void* host) {
  *handle = host;
  return 0;
}

int __cudaLaunchKernel(const void* handle, dim3 grid, dim3 block, void** arguments, size_t shared_bytes, void* stream) {
  return cudaLaunchKernel(handle, grid, block, arguments, shared_bytes, stream);
}

int cudaMemsetAsync(void* destination, int value, size_t bytes, void*) {
  ptx_on_cpu::Instruction memset;
  const auto& arena = ptx_on_cpu::Arena::instance();
  if (bytes > 0 && arena.check(memset, reinterpret_cast<uint64_t>(destination), static_cast<int>(bytes)) == nullptr)
    ptx_on_cpu::stop("memset: access out of bounds in global memory");
  std::memset(destination, value, bytes);
  return 0;
}

int cudaGetLastError() { return 0; }
const char* cudaGetErrorString(int) { return "no error"; }

}  // extern "C"
