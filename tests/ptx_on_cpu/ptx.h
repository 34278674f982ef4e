// What a PTX file says, read once and executed often (PTX ISA 9.0; sections are named where they are followed).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "counters.h"
#include "timing.h"

namespace ptx_on_cpu {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

class Warp;
struct Instruction;

// Carries an instruction out for the lanes of the mask.
using Execute = void (*)(Warp&, const Instruction&, uint32_t lanes);

// State spaces (section 5.1). There is no local memory: the kernels have none.
enum class Space : uint8_t { kNone, kParameter, kGlobal, kShared };

// What decides about the next instruction (sections 9.7.12, 9.7.13).
enum class Flow : uint8_t { kStraight, kBranch, kReturn, kBarrier, kCollective };

constexpr int kNoRegister = -1;
constexpr int kNegated = 16;  // in `variant`: of the predicate that bar.red reads

struct Instruction {
  Execute execute = nullptr;  // null: nothing to do
  Flow flow = Flow::kStraight;
  Space space = Space::kNone;

  // Registers by number; immediates and special registers are registers that nothing writes.
  int result = kNoRegister, second_result = kNoRegister;
  int a = kNoRegister, b = kNoRegister, c = kNoRegister, d = kNoRegister;
  int predicate = kNoRegister;
  bool negated = false;                                                           // the predicate
  std::array<int, 4> vector{kNoRegister, kNoRegister, kNoRegister, kNoRegister};  // {a,b,c,d} of a load, store or mov
  int vector_size = 0;

  int target = -1;            // of a branch
  int members = kNoRegister;  // mask of a collective
  int64_t offset = 0;         // added to an address
  int element_bytes = 0;      // of an access
  bool sign_extends = false, writes = false, atomic = false;
  int variant = 0;        // what `execute` has to know besides
  bool labelled = false;  // a branch may come here

  std::vector<int> sources, results;  // all of them
  Timing timing;
  int file = 0, line = 0;  // of the source
  std::string text;

  mutable Counters counters;
  mutable uint64_t known_low = 0, known_high = 0;  // bounds of the allocation it met last
};

struct Parameter {
  int offset, bytes;
};

struct Constant {
  int reg;
  uint64_t value;
};

enum class Special : uint8_t { kThread, kBlockSize, kBlockX, kBlockY, kGridX, kGridY, kLane, kOne, kZero };

struct Kernel {
  std::string name;  // kernel_name()
  std::vector<Instruction> code;
  std::vector<Parameter> parameters;
  std::vector<Constant> constants;
  std::vector<std::pair<int, Special>> specials;
  int num_registers = 0;
  int static_shared_bytes = 0;
  bool dynamic_shared = false;
  std::shared_ptr<const std::vector<std::string>> files;  // by their numbers in the instructions
};

using Kernels = std::map<std::string, std::unique_ptr<Kernel>>;  // by name

// Reads a PTX file. Throws std::runtime_error for an instruction or operand that the interpreter does not know.
Kernels read_ptx(const std::string& path);

// "add.s32 %r1, %r2, %r3 (block.h:20)", for messages.
std::string site(const Kernel& kernel, const Instruction& i);

// "score_anchors_kernel<Half>": demangled, without namespaces and parameters, which nvcc and NVRTC mangle differently
// (int64_t is long to one, long long to the other).
std::string kernel_name(const std::string& mangled);

// The function that carries out an arithmetic instruction; null if there is none.
Execute find_arithmetic(const std::string& operation);

// Memory, collectives (memory.cpp, warp.cpp).
Execute find_atomic(const std::string& operation_and_type);
void load(Warp& warp, const Instruction& i, uint32_t lanes);
void store(Warp& warp, const Instruction& i, uint32_t lanes);
void ballot(Warp& warp, const Instruction& i, uint32_t lanes);
void vote(Warp& warp, const Instruction& i, uint32_t lanes);
void shuffle(Warp& warp, const Instruction& i, uint32_t lanes);
Execute find_reduction(const std::string& operation_and_type);
void synchronise_lanes(Warp& warp, const Instruction& i, uint32_t lanes);
void pack(Warp& warp, const Instruction& i, uint32_t lanes);
void unpack(Warp& warp, const Instruction& i, uint32_t lanes);

// Reports a bug of a kernel, or something that the interpreter does not know, and ends the process.
[[noreturn]] void stop(const std::string& message);

}  // namespace ptx_on_cpu
