#ifdef REFINEDET_WITH_CUDA

#include "python/launchers.h"

#include <pybind11/stl.h>

#include <array>
#include <string>

#include "cuda/driver.h"
#include "kernel_resources.h"
#include "ops/detect/detect_cuda.h"
#include "ops/match/match_cuda.h"
#include "ops/mine/mine_cuda.h"
#include "ops/nms/nms_cuda.h"
#include "ops/refine/refine_cuda.h"
#include "ops/soft_nms/soft_nms_cuda.h"
#include "ops/vote/vote_cuda.h"

namespace py = pybind11;

namespace refinedet::cuda {
namespace {

// --- From a Python object to the field of a struct -------------------------------------------------------------------

template <class T>
void convert(const py::handle& value, T& field) {
  field = value.cast<T>();
}

// An address of device memory, or of a stream; 0 = none.
template <class T>
void convert(const py::handle& value, T*& field) {
  field = reinterpret_cast<T*>(value.cast<std::uintptr_t>());
}

void convert(const py::handle& value, InputType& field) {
  const auto name = value.cast<std::string>();
  if (name == "float32") {
    field = InputType::kFloat32;
  } else if (name == "float16") {
    field = InputType::kFloat16;
  } else if (name == "bfloat16") {
    field = InputType::kBFloat16;
  } else {
    throw py::value_error("type is '" + name + "', expected float32, float16 or bfloat16");
  }
}

void convert(const py::handle& value, Variances& field) {
  const auto v = value.cast<std::array<float, 4>>();
  field = {v[0], v[1], v[2], v[3]};
}

// --- From keyword arguments to structs -------------------------------------------------------------------------------

// The keyword arguments of a call. As a visitor of fields it sets each from the argument of its name.
class Arguments {
 public:
  Arguments(std::string function, const py::kwargs& given) : function_(std::move(function)), rest_(given) {}

  template <class T>
  void operator()(const char* name, T& field) const {
    if (!rest_.contains(name)) throw py::type_error(function_ + "() lacks the argument '" + name + "'");
    set(name, rest_.attr("pop")(name), field);
  }

  // An array is a list of tuples, each of the fields of an item.
  template <class T, size_t N>
  void operator()(const char* name, T (&items)[N], int& count) const {
    py::list given;
    (*this)(name, given);
    if (given.empty() || given.size() > N)
      throw py::value_error(std::string(name) + " has " + std::to_string(given.size()) + " items, expected 1 to " +
                            std::to_string(N));
    count = 0;
    for (const py::handle item : given) {
      py::list values;
      set(name, item, values);
      size_t used = 0;
      items[count++].fields([&](const char* field_name, auto& field) {
        if (used < values.size()) set(field_name, values[used], field);
        ++used;
      });
      if (used != values.size())
        throw py::value_error("an item of " + std::string(name) + " has " + std::to_string(values.size()) +
                              " values, expected " + std::to_string(used));
    }
  }

  void check_all_used() const {
    for (const auto& [name, value] : rest_)
      throw py::type_error(function_ + "() has no argument '" + name.cast<std::string>() + "'");
  }

 private:
  template <class T>
  void set(const char* name, const py::handle& value, T& field) const {
    try {
      convert(value, field);
    } catch (const py::cast_error&) {
      throw py::type_error(function_ + "(): " + name + " cannot be " + py::repr(value).cast<std::string>());
    }
  }

  std::string function_;
  py::dict rest_;  // not yet used
};

// Visits the sizes alone.
struct Sizes {
  const Arguments& arguments;

  void operator()(const char* name, int64_t& size) const { arguments(name, size); }

  template <class... Field>
  void operator()(const char*, Field&...) const {}
};

// Visits fields for their names: "type, levels = [(arm_loc, arm_conf), ...], anchors, ".
struct Names {
  std::string& text;

  template <class T>
  void operator()(const char* name, T&) const {
    text.append(name).append(", ");
  }

  template <class T, size_t N>
  void operator()(const char* name, T (&items)[N], int&) const {
    text.append(name).append(" = [(");
    items[0].fields(*this);
    text.erase(text.size() - 2).append("), ...], ");
  }
};

// --- Operators -------------------------------------------------------------------------------------------------------

void check_accepted(const std::string& reason_to_refuse) {
  if (!reason_to_refuse.empty()) throw py::value_error(reason_to_refuse);
}

// An operator by the convention of csrc/kernels.h.
template <class Inputs, class Options, class Outputs>
void bind_operator(py::module_& launchers, const std::string& op, std::string (*limits)(const Inputs&, const Options&),
                   int64_t (*workspace_bytes)(const Inputs&, const Options&),
                   void (*run)(const Inputs&, const Options&, const Outputs&, void*, Stream)) {
  launchers.def((op + "_workspace_bytes").c_str(),
                [=](const py::kwargs& given) {
                  const Arguments arguments(op + "_workspace_bytes", given);
                  Inputs inputs{};
                  Options options{};
                  inputs.fields(Sizes{arguments});
                  options.fields(Sizes{arguments});
                  arguments.check_all_used();
                  check_accepted(limits(inputs, options));
                  return workspace_bytes(inputs, options);
                },
                "Bytes of the workspace, from the sizes among the arguments of the launcher.");
  std::string names;
  Inputs().fields(Names{names});
  Options().fields(Names{names});
  Outputs().fields(Names{names});
  launchers.def(
      op.c_str(),
      [=](const py::kwargs& given) {
        const Arguments arguments(op, given);
        Inputs inputs{};
        Options options{};
        Outputs outputs{};
        inputs.fields(arguments);
        options.fields(arguments);
        outputs.fields(arguments);
        check_accepted(limits(inputs, options));
        void* workspace = nullptr;
        Stream stream = nullptr;
        if (workspace_bytes(inputs, options) > 0) arguments("workspace", workspace);
        arguments("stream", stream);
        arguments.check_all_used();
        run(inputs, options, outputs, workspace, stream);
      },
      (names + "workspace unless it has no bytes, stream.").c_str());
}

}  // namespace

void bind(py::module_& module) {
  module.def(
      "kernel_resources", [] { return kKernelResources; },
      "JSON list: registers, spills, memory and threads of every kernel on every architecture.");
  module.def("driver_version", &driver_version,
             "Newest CUDA that the driver of this machine supports: 13000 is CUDA 13.0, 0 no driver.");
  py::module_ launchers = module.def_submodule(
      "launchers",
      "The kernels without torch in between: addresses of device memory as integers (0 = none), sizes, the address of "
      "a stream (0 = the default stream), all by keyword. Contracts: csrc/ops/<op>/<op>.h and <op>_cuda.h, whose names "
      "these are. Only sizes are checked.");
  bind_operator(launchers, "detect", detect_limits, detect_workspace_bytes, detect);
  bind_operator(launchers, "match", match_limits, match_workspace_bytes, match);
  bind_operator(launchers, "mine", mine_limits, mine_workspace_bytes, mine);
  bind_operator(launchers, "nms", nms_limits, nms_workspace_bytes, nms);
  bind_operator(launchers, "refine", refine_limits, refine_workspace_bytes, refine);
  bind_operator(launchers, "soft_nms", soft_nms_limits, soft_nms_workspace_bytes, soft_nms);
  bind_operator(launchers, "vote", vote_limits, vote_workspace_bytes, vote);
}

}  // namespace refinedet::cuda

#endif
