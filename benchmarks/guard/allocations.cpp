// Counts the memory blocks that a process asks for, loaded before its libraries: calls.py. glibc alone.

#include <atomic>
#include <cerrno>
#include <cstddef>

extern "C" {

void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* block, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

static std::atomic<long> blocks;

long allocations() { return blocks; }

void* malloc(size_t size) {
  ++blocks;
  return __libc_malloc(size);
}

void* calloc(size_t count, size_t size) {
  ++blocks;
  return __libc_calloc(count, size);
}

void* realloc(void* block, size_t size) {
  ++blocks;
  return __libc_realloc(block, size);
}

void* memalign(size_t alignment, size_t size) {
  ++blocks;
  return __libc_memalign(alignment, size);
}

void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void** block, size_t alignment, size_t size) {
  *block = memalign(alignment, size);
  return *block == nullptr ? ENOMEM : 0;
}
}
