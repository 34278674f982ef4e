// Reads PTX (PTX ISA 9.0: syntax in section 4, state spaces and types in 5, operands in 6, directives in 11). Made for
// what nvcc and NVRTC write: one statement on a line, or several in braces.
#include <cxxabi.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <unordered_map>

#include "ptx.h"

namespace ptx_on_cpu {
namespace {

using Strings = std::vector<std::string>;

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error("PTX reader: " + what); }

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r"), last = text.find_last_not_of(" \t\r");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

bool starts_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

Strings words_of(const std::string& text) {
  std::istringstream stream(text);
  Strings words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

// Parts of a text between separators outside of brackets.
Strings split(const std::string& text, char separator) {
  Strings parts(1);
  int depth = 0;
  for (const char c : text) {
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (c == separator && depth == 0)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  for (std::string& part : parts) part = trimmed(part);
  if (parts.back().empty()) parts.pop_back();
  return parts;
}

int bytes_of_type(const std::string& type) {
  if (type == "pred") return 1;
  if (type.size() < 2 || std::atoi(type.c_str() + 1) % 8 != 0) refuse("unknown type ." + type);
  return std::atoi(type.c_str() + 1) / 8;
}

int aligned(int offset, int alignment) { return (offset + alignment - 1) / alignment * alignment; }

// A variable: ".shared .align 4 .b8 name[1048]", ".param .u64 name".
struct Variable {
  std::string name;
  int alignment = 0, bytes = 0;
  bool sized = true;  // not "name[]"
};

Variable read_variable(const std::string& text) {
  Variable variable;
  Strings words = words_of(text);
  std::string name = words.back(), type;
  words.pop_back();
  for (size_t k = 0; k < words.size() && words[k] != ".ptr"; ++k) {
    if (words[k] == ".align")
      variable.alignment = std::atoi(words[++k].c_str());
    else if (words[k] != ".extern" && words[k] != ".shared" && words[k] != ".param")
      type = words[k].substr(1);
  }
  int count = 1;
  if (const size_t bracket = name.find('['); bracket != std::string::npos) {
    variable.sized = name[bracket + 1] != ']';
    count = std::atoi(name.c_str() + bracket + 1);
    name.resize(bracket);
  }
  variable.name = name;
  variable.bytes = bytes_of_type(type) * count;
  if (variable.alignment == 0) variable.alignment = bytes_of_type(type);
  return variable;
}

class Reader {
 public:
  Kernels read(const std::string& path) {
    std::ifstream file(path);
    if (!file) refuse("cannot read " + path);
    for (std::string line; std::getline(file, line);) read_line(line);
    for (auto& [name, kernel] : kernels_) kernel->files = files_;
    return std::move(kernels_);
  }

 private:
  void read_line(std::string line) {
    if (const size_t comment = line.find("//"); comment != std::string::npos) line.resize(comment);
    line = trimmed(line);
    if (line.empty()) return;
    if (starts_with(line, ".file")) return read_file(line);
    if (kernel_ == nullptr) return read_module_line(line);
    if (depth_ == 0) return read_header_line(line);
    if (starts_with(line, ".loc")) return read_location(line);
    read_statements(line);
  }

  void read_file(const std::string& line) {
    const Strings words = words_of(line);
    const auto number = static_cast<size_t>(std::atoi(words.at(1).c_str()));
    if (files_->size() <= number) files_->resize(number + 1);
    const size_t first = line.find('"'), last = line.rfind('"');
    (*files_)[number] = line.substr(first + 1, last - first - 1);
  }

  void read_module_line(const std::string& line) {
    if (line.find(".func") != std::string::npos) refuse("functions are not supported: " + line);
    if (starts_with(line, ".extern .shared")) {
      dynamic_ = read_variable(line.substr(0, line.size() - 1)).name;
      return;
    }
    if (starts_with(line, ".shared")) {
      const Variable variable = read_variable(line.substr(0, line.size() - 1));
      module_shared_[variable.name] = variable;
      return;
    }
    const size_t entry = line.find(".entry ");
    if (entry == std::string::npos) return;
    std::string name = line.substr(entry + 7);
    name = trimmed(name.substr(0, name.find('(')));
    auto kernel = std::make_unique<Kernel>();
    kernel->name = kernel_name(name);
    kernel_ = kernel.get();
    kernels_[kernel_->name] = std::move(kernel);
    registers_.clear();
    variables_.clear();
    labels_.clear();
    branches_.clear();
    parameter_bytes_ = 0;
    if (line.find('(') != std::string::npos) read_header_line(line.substr(line.find('(') + 1));
  }

  void read_header_line(const std::string& line) {
    if (line == "{") {
      depth_ = 1;
      return;
    }
    const size_t parameter = line.find(".param");
    if (parameter == std::string::npos) return;
    const Variable variable = read_variable(line.substr(parameter, line.find_last_not_of(",) \t") + 1 - parameter));
    parameter_bytes_ = aligned(parameter_bytes_, variable.alignment);
    variables_[variable.name] = parameter_bytes_;
    kernel_->parameters.push_back({parameter_bytes_, variable.bytes});
    parameter_bytes_ += variable.bytes;
  }

  void read_location(const std::string& line) {
    const Strings words = words_of(line);
    location_file_ = std::atoi(words.at(1).c_str());
    location_line_ = std::atoi(words.at(2).c_str());
  }

  // "{ .reg .b32 tmp; mov.b64 {tmp, %r1}, %rd1; }", or a statement, a label, a brace.
  void read_statements(std::string text) {
    if (text == "{") {
      ++depth_;
      return;
    }
    if (text == "}") {
      if (--depth_ == 0) finish_kernel();
      return;
    }
    if (text.front() == '{' && text.back() == '}') text = trimmed(text.substr(1, text.size() - 2));
    for (const std::string& statement : split(text, ';')) read_statement(statement);
  }

  void read_statement(const std::string& text) {
    if (text.back() == ':') {
      labels_[text.substr(0, text.size() - 1)] = static_cast<int>(kernel_->code.size());
      labelled_ = true;
    } else if (starts_with(text, ".reg")) {
      read_registers(text);
    } else if (starts_with(text, ".shared")) {
      place_shared(read_variable(text));
    } else if (starts_with(text, ".pragma")) {
      return;
    } else if (text.front() == '.') {
      refuse("unknown directive: " + text);
    } else {
      read_instruction(text);
    }
  }

  // ".reg .b32 %r<686>", or names. Registers of a kind are made when they are first used.
  void read_registers(const std::string& text) {
    const Strings words = words_of(text);
    for (size_t k = 2; k < words.size(); ++k) {
      std::string name = words[k];
      if (name.back() == ',') name.pop_back();
      if (const size_t count = name.find('<'); count != std::string::npos)
        prefixes_[name.substr(0, count)] = true;
      else
        registers_[name] = kernel_->num_registers++;
    }
  }

  void place_shared(const Variable& variable) {
    kernel_->static_shared_bytes = aligned(kernel_->static_shared_bytes, variable.alignment);
    variables_[variable.name] = kernel_->static_shared_bytes;
    kernel_->static_shared_bytes += variable.bytes;
  }

  int new_constant(const std::string& name, uint64_t value) {
    const int reg = kernel_->num_registers++;
    registers_[name] = reg;
    kernel_->constants.push_back({reg, value});
    return reg;
  }

  int special_register(const std::string& name) {
    static const std::unordered_map<std::string, Special> known = {
        {"%tid.x", Special::kThread},     {"%tid.y", Special::kZero},     {"%tid.z", Special::kZero},
        {"%ntid.x", Special::kBlockSize}, {"%ntid.y", Special::kOne},     {"%ntid.z", Special::kOne},
        {"%ctaid.x", Special::kBlockX},   {"%ctaid.y", Special::kBlockY}, {"%ctaid.z", Special::kZero},
        {"%nctaid.x", Special::kGridX},   {"%nctaid.y", Special::kGridY}, {"%nctaid.z", Special::kOne},
        {"%laneid", Special::kLane},
    };
    const auto found = known.find(name);
    if (found == known.end()) return kNoRegister;
    const int reg = kernel_->num_registers++;
    registers_[name] = reg;
    kernel_->specials.emplace_back(reg, found->second);
    return reg;
  }

  // The register of an operand (section 6): a register, a number, the address of a variable.
  int operand(const std::string& text) {
    if (const auto found = registers_.find(text); found != registers_.end()) return found->second;
    if (text == "_") return kernel_->num_registers++;  // a result that nobody wants
    if (text.front() == '%') {
      if (const int reg = special_register(text); reg != kNoRegister) return reg;
      const size_t digits = text.find_first_of("0123456789", text.find_first_not_of("%abcdefghijklmnopqrstuvwxyz"));
      if (digits == std::string::npos || prefixes_.count(text.substr(0, digits)) == 0)
        refuse("unknown register " + text);
      return registers_[text] = kernel_->num_registers++;
    }
    if (const auto found = variables_.find(text); found != variables_.end())
      return new_constant(text, static_cast<uint64_t>(found->second));
    if (text == dynamic_) {
      kernel_->dynamic_shared = true;
      dynamic_users_.push_back(kernel_->constants.size());
      return new_constant(text, 0);
    }
    if (const auto found = module_shared_.find(text); found != module_shared_.end()) {
      place_shared(found->second);
      return operand(text);
    }
    return new_constant(text, read_number(text));
  }

  static uint64_t read_number(const std::string& text) {
    const bool is_float = text.size() > 2 && text[0] == '0' && std::string("fFdD").find(text[1]) != std::string::npos;
    char* end = nullptr;
    const uint64_t value = is_float         ? std::strtoull(text.c_str() + 2, &end, 16)
                           : text[0] == '-' ? static_cast<uint64_t>(std::strtoll(text.c_str(), &end, 0))
                                            : std::strtoull(text.c_str(), &end, 0);
    if (*end != '\0' && *end != 'U') refuse("unknown operand " + text);
    return value;
  }

  void read_instruction(const std::string& text) {
    Instruction i;
    i.text = text;
    i.file = location_file_;
    i.line = location_line_;
    i.labelled = labelled_;
    labelled_ = false;
    std::string rest = text;
    if (rest.front() == '@') {
      const size_t space = rest.find_first_of(" \t");
      i.negated = rest[1] == '!';
      i.predicate = operand(rest.substr(i.negated ? 2 : 1, space - (i.negated ? 2 : 1)));
      rest = trimmed(rest.substr(space));
    }
    const size_t space = rest.find_first_of(" \t");
    const std::string operation = rest.substr(0, space);
    const Strings operands = space == std::string::npos ? Strings{} : split(rest.substr(space), ',');
    i.timing = timing_of(operation);
    read_operation(i, operation, operands);
    for (const int reg : {i.predicate, i.a, i.b, i.c, i.d, i.members})
      if (reg != kNoRegister) i.sources.push_back(reg);
    for (const int reg : {i.result, i.second_result})
      if (reg != kNoRegister) i.results.push_back(reg);
    auto& vector_users = i.writes || i.execute == pack ? i.sources : i.results;
    for (int k = 0; k < i.vector_size; ++k) vector_users.push_back(i.vector[static_cast<size_t>(k)]);
    kernel_->code.push_back(std::move(i));
  }

  void read_operation(Instruction& i, const std::string& operation, const Strings& operands) {
    const Strings parts = split(operation, '.');
    const std::string& name = parts.front();
    const std::string last_two = parts.size() < 2 ? "" : parts[parts.size() - 2] + "." + parts.back();
    if (name == "bra") {
      i.flow = Flow::kBranch;
      branches_.emplace_back(kernel_->code.size(), operands.at(0));
    } else if (name == "ret" || name == "exit") {
      i.flow = Flow::kReturn;
    } else if (operation == "bar.warp.sync") {
      read_collective(i, synchronise_lanes, operands.at(0));
    } else if (name == "bar" || name == "barrier") {
      read_barrier(i, operation, operands);
    } else if (name == "ld" || name == "st") {
      read_access(i, parts, operands);
    } else if (name == "atom" || name == "red") {
      read_atomic(i, parts, operands);
    } else if (name == "vote") {
      read_vote(i, parts, operands);
    } else if (name == "shfl") {
      read_shuffle(i, parts, operands);
    } else if (name == "redux") {
      i.result = operand(operands.at(0));
      i.a = operand(operands.at(1));
      read_collective(i, known(find_reduction(last_two), i), operands.at(2));
    } else if (name == "mov" && (operands.at(0).front() == '{' || operands.at(1).front() == '{')) {
      read_vector_move(i, parts.back(), operands);
    } else {
      read_arithmetic(i, operation, operands);
    }
  }

  static Execute known(Execute execute, const Instruction& i) {
    if (execute == nullptr) refuse("unknown instruction: " + i.text);
    return execute;
  }

  void read_collective(Instruction& i, Execute execute, const std::string& members) {
    i.flow = Flow::kCollective;
    i.execute = execute;
    i.members = operand(members);
  }

  // bar.sync and bar.red of the whole block (section 9.7.13.1).
  void read_barrier(Instruction& i, const std::string& operation, const Strings& operands) {
    static const std::unordered_map<std::string, int> kinds = {
        {"sync", 0}, {"red.or.pred", 1}, {"red.and.pred", 2}, {"red.popc.u32", 3}};
    const auto kind = kinds.find(operation.substr(operation.find('.') + 1));
    if (kind == kinds.end()) refuse("unknown instruction: " + i.text);
    i.flow = Flow::kBarrier;
    i.variant = kind->second;
    if (i.variant == 0 && operands.size() == 1 && operands[0] == "0") return;
    if (i.variant == 0 || operands.size() != 3 || operands[1] != "0") refuse("only barrier 0 is supported: " + i.text);
    i.result = operand(operands[0]);
    i.a = operand(negation_of(operands[2], i));
  }

  // "!%p1" sets a bit of the variant.
  std::string negation_of(const std::string& text, Instruction& i) {
    if (text.front() != '!') return text;
    i.variant |= kNegated;
    return text.substr(1);
  }

  void read_address(Instruction& i, const std::string& text) {
    std::string base = text.substr(1, text.size() - 2);
    if (const size_t plus = base.find('+'); plus != std::string::npos) {
      i.offset = std::strtoll(base.c_str() + plus + 1, nullptr, 0);
      base = trimmed(base.substr(0, plus));
    }
    i.a = operand(base);
  }

  void read_vector(Instruction& i, const std::string& text) {
    const Strings elements = text.front() == '{' ? split(text.substr(1, text.size() - 2), ',') : Strings{text};
    if (elements.size() > i.vector.size()) refuse("too many elements: " + i.text);
    for (const std::string& element : elements) i.vector[static_cast<size_t>(i.vector_size++)] = operand(element);
  }

  // Without a state space an address is generic, which is global here: no pointer to shared memory becomes generic,
  // for cvta.shared is unknown.
  static Space space_of(const Strings& parts) {
    for (const std::string& part : parts) {
      if (part == "param") return Space::kParameter;
      if (part == "shared") return Space::kShared;
      if (part == "local" || part == "const") refuse("state space ." + part + " is not supported");
    }
    return Space::kGlobal;
  }

  void read_access(Instruction& i, const Strings& parts, const Strings& operands) {
    i.space = space_of(parts);
    i.writes = parts.front() == "st";
    i.execute = i.writes ? store : load;
    i.element_bytes = bytes_of_type(parts.back());
    i.sign_extends = !i.writes && parts.back().front() == 's';
    read_vector(i, operands.at(i.writes ? 1 : 0));
    read_address(i, operands.at(i.writes ? 0 : 1));
  }

  void read_atomic(Instruction& i, const Strings& parts, const Strings& operands) {
    const bool returns = parts.front() == "atom";
    const bool swaps = parts[parts.size() - 2] == "cas";
    if (operands.size() != 2u + returns + swaps) refuse("unknown instruction: " + i.text);
    i.space = space_of(parts);
    i.writes = i.atomic = true;
    i.execute = known(find_atomic(parts[parts.size() - 2] + "." + parts.back()), i);
    if (returns) i.result = operand(operands[0]);
    read_address(i, operands[returns ? 1 : 0]);
    i.b = operand(operands[returns ? 2 : 1]);
    if (swaps) i.c = operand(operands[3]);
  }

  void read_vote(Instruction& i, const Strings& parts, const Strings& operands) {
    const std::string& kind = parts.at(2);
    i.result = operand(operands.at(0));
    std::string source = operands.at(1);
    if (source.front() == '!') source = source.substr(1), i.variant |= 1;
    i.a = operand(source);
    if (kind == "all") i.variant |= 2;
    if (kind != "ballot" && kind != "any" && kind != "all") refuse("unknown instruction: " + i.text);
    read_collective(i, kind == "ballot" ? ballot : vote, operands.at(2));
  }

  void read_shuffle(Instruction& i, const Strings& parts, const Strings& operands) {
    static const Strings kinds = {"up", "down", "bfly", "idx"};
    const auto kind = std::find(kinds.begin(), kinds.end(), parts.at(2));
    if (kind == kinds.end()) refuse("unknown instruction: " + i.text);
    i.variant = static_cast<int>(kind - kinds.begin());
    const Strings results = split(operands.at(0), '|');
    i.result = operand(results[0]);
    if (results.size() > 1) i.second_result = operand(results[1]);
    i.a = operand(operands.at(1));
    i.b = operand(operands.at(2));
    i.c = operand(operands.at(3));
    read_collective(i, shuffle, operands.at(4));
  }

  void read_vector_move(Instruction& i, const std::string& type, const Strings& operands) {
    const bool unpacks = operands[0].front() == '{';
    i.execute = unpacks ? unpack : pack;
    read_vector(i, operands[unpacks ? 0 : 1]);
    i.element_bytes = bytes_of_type(type) / i.vector_size;
    if (unpacks)
      i.a = operand(operands[1]);
    else
      i.result = operand(operands[0]);
  }

  void read_arithmetic(Instruction& i, const std::string& operation, const Strings& operands) {
    i.execute = known(find_arithmetic(operation), i);
    int* const places[] = {&i.result, &i.a, &i.b, &i.c, &i.d};
    if (operands.size() > std::size(places)) refuse("too many operands: " + i.text);
    for (size_t k = 0; k < operands.size(); ++k) *places[k] = operand(operands[k]);
  }

  void finish_kernel() {
    constexpr int kDynamicAlignment = 16;
    for (const auto& [place, label] : branches_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) refuse("no label " + label);
      kernel_->code[place].target = found->second;
    }
    for (const size_t user : dynamic_users_)
      kernel_->constants[user].value = static_cast<uint64_t>(aligned(kernel_->static_shared_bytes, kDynamicAlignment));
    dynamic_users_.clear();
    kernel_ = nullptr;
  }

  Kernels kernels_;
  std::shared_ptr<Strings> files_ = std::make_shared<Strings>();
  std::unordered_map<std::string, Variable> module_shared_;
  std::string dynamic_;  // name of the dynamic shared array

  Kernel* kernel_ = nullptr;  // being read
  int depth_ = 0;             // of braces in it
  int parameter_bytes_ = 0;
  std::unordered_map<std::string, int> registers_, variables_, labels_;
  std::unordered_map<std::string, bool> prefixes_;  // of registers: "%rd"
  std::vector<std::pair<size_t, std::string>> branches_;
  std::vector<size_t> dynamic_users_;
  bool labelled_ = false;
  int location_file_ = 0, location_line_ = 0;
};

}  // namespace

std::string kernel_name(const std::string& mangled) {
  int status = 0;
  char* const text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  if (status != 0) return mangled;
  std::string name = text;
  std::free(text);
  for (const char* part : {"(anonymous namespace)::", "refinedet::cuda::", "sample::", "void "})
    for (size_t at; (at = name.find(part)) != std::string::npos;) name.erase(at, std::string(part).size());
  return name.substr(0, name.find('('));
}

std::string site(const Kernel& kernel, const Instruction& i) {
  const auto& files = *kernel.files;
  std::string file = static_cast<size_t>(i.file) < files.size() ? files[static_cast<size_t>(i.file)] : "";
  file = file.substr(file.rfind('/') + 1);
  return i.text + (file.empty() ? "" : "  (" + file + ":" + std::to_string(i.line) + ")");
}

Kernels read_ptx(const std::string& path) { return Reader().read(path); }

}  // namespace ptx_on_cpu
