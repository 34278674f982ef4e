// The process behind harness.py: reads requests from standard input until its end, runs launchers, writes replies to
// standard output. Both sides are the same machine, so numbers travel in its byte order; harness.py holds the other
// half of the format. A bug in a kernel ends the process, with the reason on standard error.
#include "driver.h"

#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda_on_cpu.h"

namespace cuda_on_cpu {
namespace {

enum Status : int64_t { kOk = 0, kLauncherError = 1, kRequestError = 2 };

// The request does not fit its adapter: a mistake in a test.
struct RequestError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Ends the process by a signal when it has used that much processor time.
struct TimeLimit {
  explicit TimeLimit(unsigned seconds) { set(seconds); }
  ~TimeLimit() { set(0); }

  static void set(unsigned seconds) {
    const itimerval timer{{0, 0}, {static_cast<time_t>(seconds), 0}};
    setitimer(ITIMER_PROF, &timer, nullptr);
  }
};

[[noreturn]] void stop(const char* message) {
  std::fprintf(stderr, "driver: %s\n", message);
  std::exit(EXIT_FAILURE);
}

}  // namespace

void Buffer::Free::operator()(char* storage) const { release(storage); }

Buffer::Buffer(size_t bytes, size_t offset)
    : bytes_(bytes), before_(kGuardBytes + offset), storage_(allocate(before_, bytes, kGuardBytes)) {
  std::memset(storage_.get(), kPoison, before_ + bytes + kGuardBytes);
}

bool Buffer::intact() const {
  const auto untouched = [](char byte) { return static_cast<unsigned char>(byte) == kPoison; };
  const char* const end = data() + bytes_;
  return std::all_of(storage_.get(), data(), untouched) && std::all_of(end, end + kGuardBytes, untouched);
}

const std::vector<int64_t>& Request::shape(const std::string& name) {
  for (const Arrays* arrays : {&inputs_, &outputs_})
    if (const auto found = arrays->find(name); found != arrays->end()) return found->second.shape;
  throw RequestError("no array '" + name + "'");
}

void* Request::find(const Arrays& arrays, const std::string& name, const char* types) {
  const auto found = arrays.find(name);
  if (found == arrays.end()) throw RequestError("no array '" + name + "'");
  const Array& array = found->second;
  if (types != nullptr && std::strstr(types, array.type.c_str()) == nullptr)
    throw RequestError("array '" + name + "' has type " + array.type + ", the adapter wants " + types);
  used_.insert(name);
  return array.buffer.data();
}

int64_t Request::integer(const std::string& name) {
  const auto found = integers_.find(name);
  if (found == integers_.end()) throw RequestError("no number '" + name + "'");
  used_.insert(name);
  return found->second;
}

double Request::real(const std::string& name) {
  const auto found = reals_.find(name);
  if (found == reals_.end()) return static_cast<double>(integer(name));
  used_.insert(name);
  return found->second;
}

void* Request::workspace(int64_t bytes) {
  if (bytes == 0) return nullptr;
  return workspaces_.emplace_back(static_cast<size_t>(bytes)).data();
}

void Request::check_all_used() const {
  const auto check = [this](const auto& fields) {
    for (const auto& field : fields)
      if (used_.count(field.first) == 0) throw RequestError("the adapter did not ask for '" + field.first + "'");
  };
  check(inputs_);
  check(outputs_);
  check(integers_);
  check(reals_);
}

void Request::check_guards() const {
  const auto check = [](const std::string& name, const Buffer& buffer) {
    if (!buffer.intact()) stop((name + " was written outside of its bounds").c_str());
  };
  for (const Arrays* arrays : {&inputs_, &outputs_})
    for (const auto& [name, array] : *arrays) check("array '" + name + "'", array.buffer);
  for (const Buffer& buffer : workspaces_) check("workspace", buffer);
}

// Reads requests and writes replies.
class Session {
 public:
  Session(FILE* in, FILE* out) : in_(in), out_(out) {}

  void serve() {
    for (int next; (next = std::fgetc(in_)) != EOF;) {
      std::ungetc(next, in_);
      Request request;
      const auto seed = get<uint64_t>();
      const auto seconds = get<uint32_t>();
      get_fields(request);
      set_seed(seed);
      take_launch_count();
      take_report();
      reply(request, seconds);
      std::fflush(out_);
    }
  }

 private:
  void get_bytes(void* destination, size_t bytes) {
    if (std::fread(destination, 1, bytes, in_) != bytes) stop("a request ends too early");
  }
  template <class T>
  T get() {
    T value;
    get_bytes(&value, sizeof value);
    return value;
  }
  std::string get_string() {
    std::string text(get<uint32_t>(), '\0');
    get_bytes(text.data(), text.size());
    return text;
  }
  Request::Array get_array(bool with_content) {
    std::string type = get_string();
    std::vector<int64_t> shape(get<uint32_t>());
    size_t bytes = get<uint32_t>();  // of an element
    for (int64_t& size : shape) bytes *= static_cast<size_t>(size = get<int64_t>());
    Buffer buffer(bytes, get<uint32_t>());
    if (with_content) get_bytes(buffer.data(), bytes);
    return {std::move(type), std::move(shape), std::move(buffer)};
  }
  void get_fields(Request& request) {
    request.launcher_ = get_string();
    for (auto n = get<uint32_t>(); n > 0; --n) {
      const std::string name = get_string();
      request.integers_[name] = get<int64_t>();
    }
    for (auto n = get<uint32_t>(); n > 0; --n) {
      const std::string name = get_string();
      request.reals_[name] = get<double>();
    }
    for (auto n = get<uint32_t>(); n > 0; --n) {
      std::string name = get_string();
      request.inputs_.emplace(std::move(name), get_array(true));
    }
    for (auto n = get<uint32_t>(); n > 0; --n) {
      std::string name = get_string();
      request.outputs_.emplace(std::move(name), get_array(false));
    }
  }

  template <class T>
  void put(T value) {
    std::fwrite(&value, sizeof value, 1, out_);
  }
  void put_text(const std::string& text) {
    put(static_cast<uint32_t>(text.size()));
    std::fwrite(text.data(), 1, text.size(), out_);
  }
  void put_error(Status status, const std::string& message) {
    put<int64_t>(status);
    put_text(message);
  }
  void reply(Request& request, unsigned seconds) {
    try {
      run(request, seconds);
    } catch (const RequestError& error) {
      return put_error(kRequestError, request.launcher_ + ": " + error.what());
    } catch (const std::exception& error) {
      return put_error(kLauncherError, error.what());
    }
    put<int64_t>(kOk);
    put(take_launch_count());
    int64_t workspace = 0;
    for (const Buffer& buffer : request.workspaces_) workspace += static_cast<int64_t>(buffer.bytes());
    put(workspace);
    put_text(take_report());
    for (const auto& [name, array] : request.outputs_) std::fwrite(array.buffer.data(), 1, array.buffer.bytes(), out_);
  }
  void run(Request& request, unsigned seconds) {
    const auto launcher = launchers.find(request.launcher_);
    if (launcher == launchers.end()) throw RequestError("no such launcher");
    const TimeLimit limit(seconds);
    launcher->second(request);
    request.check_guards();
    request.check_all_used();
  }

  FILE* const in_;
  FILE* const out_;
};

}  // namespace cuda_on_cpu

int main() {
  // Replies have the original standard output for themselves.
  FILE* const out = fdopen(dup(STDOUT_FILENO), "wb");
  if (out == nullptr || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) cuda_on_cpu::stop("no standard output");
  cuda_on_cpu::Session(stdin, out).serve();
}
