// A program without Python: loads the operator library by dlopen and calls operators through torch's dispatcher.
// Arguments: the library. Output: its version, the schema of every operator refinedet::*, and what two of them return.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/from_blob.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <set>

namespace {

void* load(const char* path) {
  void* const library = dlopen(path, RTLD_NOW);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::exit(1);
  }
  return library;
}

c10::OperatorHandle find(const c10::OperatorName& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.name.c_str(), name.overload_name.c_str());
}

void print_schemas() {
  std::set<std::string> schemas;
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.starts_with("refinedet::")) schemas.insert(c10::toString(find(name).schema()));
  }
  for (const std::string& schema : schemas) std::cout << "schema " << schema << '\n';
}

// Float32 values; they have to outlive the tensor.
at::Tensor tensor(std::vector<float>& values, at::IntArrayRef shape) { return at::from_blob(values.data(), shape); }

template <class T>
void print(const char* name, const at::Tensor& tensor) {
  std::cout << name;
  for (int64_t i = 0; i < tensor.numel(); ++i) std::cout << ' ' << tensor.const_data_ptr<T>()[i];
  std::cout << '\n';
}

void run_nms() {
  std::vector<float> boxes{0, 0, 2, 2, 0, 0, 2, 2, 5, 5, 6, 6}, scores{0.5f, 0.9f, 0.7f};
  torch::jit::Stack stack{tensor(boxes, {3, 4}), tensor(scores, {3}), c10::IValue(), 0.5};
  find({"refinedet::nms", ""}).callBoxed(&stack);
  print<int64_t>("nms", stack.at(0).toTensor());
}

// Two anchors: one is an object of class 1, the other is none.
void run_detect() {
  std::vector<float> anchors{0.5f, 0.5f, 0.25f, 0.5f, 0.25f, 0.25f, 0.5f, 0.5f};
  std::vector<float> offsets(8), logits{0, 9, 9, -9};
  const at::Tensor loc = tensor(offsets, {1, 2, 4}), conf = tensor(logits, {1, 2, 2});
  const std::vector<double> variances{0.1, 0.1, 0.2, 0.2};
  torch::jit::Stack stack{loc, conf, loc, conf, tensor(anchors, {2, 4}), 0.01, 0.01, 0.45, 1000, 1, variances};
  find({"refinedet::detect", "whole"}).callBoxed(&stack);
  print<float>("boxes", stack.at(0).toTensor());
  print<float>("scores", stack.at(1).toTensor());
  print<int64_t>("labels", stack.at(2).toTensor());
  print<int64_t>("indices", stack.at(3).toTensor());
  print<int64_t>("counts", stack.at(4).toTensor());
}

}  // namespace

int main(int, char** arguments) {
  void* const library = load(arguments[1]);
  std::cout << "version " << reinterpret_cast<const char* (*)()>(dlsym(library, "refinedet_version"))() << '\n';
  print_schemas();
  run_nms();
  run_detect();
  return 0;
}
