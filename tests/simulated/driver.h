// What an adapter sees of a request. An adapter maps requests onto launchers and lists those in `launchers`, by the
// names that harness.py's Harness.run gives. adapt_operator.cpp does so for every operator of the product.
//
// A name the request lacks, an element type that differs, and a field that no adapter asked for are errors: they stop
// the request with a message. So is a std::exception of the launcher; Python raises it as LauncherError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace cuda_on_cpu {

// Names of element types as numpy writes them.
template <class T>
constexpr const char* kTypeNames = nullptr;
template <>
inline constexpr const char* kTypeNames<bool> = "|b1";
template <>
inline constexpr const char* kTypeNames<uint8_t> = "|u1";
template <>
inline constexpr const char* kTypeNames<uint16_t> = "<u2 <f2";  // half types are read as their bits
template <>
inline constexpr const char* kTypeNames<int32_t> = "<i4";
template <>
inline constexpr const char* kTypeNames<uint32_t> = "<u4";
template <>
inline constexpr const char* kTypeNames<int64_t> = "<i8";
template <>
inline constexpr const char* kTypeNames<uint64_t> = "<u8";
template <>
inline constexpr const char* kTypeNames<float> = "<f4";
template <>
inline constexpr const char* kTypeNames<double> = "<f8";

// Poisoned heap memory, aligned like cudaMalloc's plus `offset`: what a view into a tensor looks like. AddressSanitizer
// gets a block that ends with the last byte; without it there is poison on both sides, that intact() looks at.
class Buffer {
 public:
  explicit Buffer(size_t bytes, size_t offset = 0);
  char* data() const { return storage_.get() + before_; }
  size_t bytes() const { return bytes_; }
  bool intact() const;

 private:
  struct Free {
    void operator()(char* storage) const;
  };
  size_t bytes_, before_;
  std::unique_ptr<char, Free> storage_;
};

class Request {
 public:
  // Sizes of an input or output.
  const std::vector<int64_t>& shape(const std::string& name);

  // Elements of an input; of any type with T = void.
  template <class T>
  const T* input(const std::string& name) {
    return static_cast<const T*>(find(inputs_, name, kTypeNames<T>));
  }

  // As input(), null when the request lacks it.
  template <class T>
  const T* optional_input(const std::string& name) {
    return inputs_.count(name) ? input<T>(name) : nullptr;
  }

  // Poisoned elements for the launcher to write.
  template <class T>
  T* output(const std::string& name) {
    return static_cast<T*>(find(outputs_, name, kTypeNames<T>));
  }

  // As output(), null when nobody wants it.
  template <class T>
  T* optional_output(const std::string& name) {
    return outputs_.count(name) ? output<T>(name) : nullptr;
  }

  int64_t integer(const std::string& name);
  int64_t optional_integer(const std::string& name) { return integers_.count(name) ? integer(name) : 0; }
  double real(const std::string& name);

  // Poisoned memory that lasts as long as the request; null for 0 bytes.
  void* workspace(int64_t bytes);

 private:
  friend class Session;

  struct Array {
    std::string type;
    std::vector<int64_t> shape;
    Buffer buffer;
  };
  using Arrays = std::map<std::string, Array>;

  void* find(const Arrays& arrays, const std::string& name, const char* types);
  void check_all_used() const;
  void check_guards() const;

  std::string launcher_;
  Arrays inputs_, outputs_;
  std::map<std::string, int64_t> integers_;
  std::map<std::string, double> reals_;
  std::vector<Buffer> workspaces_;
  std::set<std::string> used_;
};

using Launchers = std::map<std::string, void (*)(Request&)>;
extern const Launchers launchers;  // defined by the adapter

}  // namespace cuda_on_cpu
