// Maps requests onto the launchers of any operator, by the names of its fields. The harness compiles it once for each,
// with the header in front and REFINEDET_OPERATOR its name.
#include "box_math.h"
#include "driver.h"
#include "input_type.h"

namespace {

using cuda_on_cpu::Request;
using refinedet::InputType;
using refinedet::Variances;

// Sets fields from a request. Names end with `suffix`: of an item in an array, its number.
struct Reader {
  Request& request;
  std::string suffix = "";

  void operator()(const std::string& name, int64_t& field) const { field = request.integer(name + suffix); }
  void operator()(const std::string& name, bool& field) const { field = request.integer(name + suffix) != 0; }
  void operator()(const std::string& name, double& field) const { field = request.real(name + suffix); }
  void operator()(const std::string& name, float& field) const {
    field = static_cast<float>(request.real(name + suffix));
  }
  void operator()(const std::string& name, InputType& field) const {
    field = static_cast<InputType>(request.integer(name + suffix));
  }

  // "variance_x" to "variance_h".
  void operator()(const std::string& name, Variances& field) const {
    const std::string one = name.substr(0, name.size() - 1);
    (*this)(one + "_x", field.x);
    (*this)(one + "_y", field.y);
    (*this)(one + "_w", field.w);
    (*this)(one + "_h", field.h);
  }

  // What the request lacks is null.
  template <class T>
  void operator()(const std::string& name, const T*& field) const {
    field = request.optional_input<T>(name + suffix);
  }

  template <class T>
  void operator()(const std::string& name, T*& field) const {
    field = request.output<T>(name + suffix);
  }

  template <class T, size_t N>
  void operator()(const std::string& name, T (&items)[N], int& count) const {
    count = static_cast<int>(request.integer("num_" + name));
    for (int i = 0; i < count; ++i) items[i].fields(Reader{request, std::to_string(i)});
  }
};

// Sets the sizes alone, as far as the request has them.
struct SizeReader {
  Request& request;

  void operator()(const std::string& name, int64_t& size) const { size = request.optional_integer(name); }

  template <class... Field>
  void operator()(const std::string&, Field&...) const {}
};

template <class Inputs, class Options, class Outputs>
struct Operator {
  std::string (*limits)(const Inputs&, const Options&);
  int64_t (*workspace_bytes)(const Inputs&, const Options&);
  void (*launch)(const Inputs&, const Options&, const Outputs&, void*, refinedet::cuda::Stream);

  // As the registration does.
  void check(const Inputs& inputs, const Options& options) const {
    const std::string reason = limits(inputs, options);
    if (!reason.empty()) throw std::invalid_argument(reason);
  }

  void run(Request& request) const {
    Inputs inputs{};
    Options options{};
    Outputs outputs{};
    inputs.fields(Reader{request});
    options.fields(Reader{request});
    outputs.fields(Reader{request});
    check(inputs, options);
    launch(inputs, options, outputs, request.workspace(workspace_bytes(inputs, options)), nullptr);
  }

  // Only whether the sizes are taken: no tensors of 300,000 anchors and 600 classes. Gives the bytes of the
  // workspace to whom wants them.
  void size(Request& request) const {
    Inputs inputs{};
    Options options{};
    inputs.fields(SizeReader{request});
    options.fields(SizeReader{request});
    check(inputs, options);
    if (auto* const bytes = request.optional_output<int64_t>("workspace_bytes"))
      *bytes = workspace_bytes(inputs, options);
  }
};

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

constexpr Operator kOperator{refinedet::cuda::JOIN(REFINEDET_OPERATOR, _limits),
                             refinedet::cuda::JOIN(REFINEDET_OPERATOR, _workspace_bytes),
                             refinedet::cuda::REFINEDET_OPERATOR};

}  // namespace

const cuda_on_cpu::Launchers cuda_on_cpu::launchers = {
    {TEXT(REFINEDET_OPERATOR), [](Request& request) { kOperator.run(request); }},
    {"size", [](Request& request) { kOperator.size(request); }},
};
