// Instructions that compute registers from registers (PTX ISA, sections 9.7.1 to 9.7.8 and 9.7.9.1 ff.).
//
// A register holds 64 bits per lane. An instruction reads as many as its type has; floats lie in the low bits. What it
// writes is extended by the sign of its type, which only a wider reader could see, and PTX has none but cvt.
#include <bit>
#include <cmath>
#include <concepts>
#include <type_traits>
#include <unordered_map>

#include "warp.h"

namespace ptx_on_cpu {
namespace {

template <class T>
T get(const uint64_t* lanes, int lane) {
  if constexpr (std::same_as<T, float>)
    return std::bit_cast<float>(static_cast<uint32_t>(lanes[lane]));
  else if constexpr (std::same_as<T, double>)
    return std::bit_cast<double>(lanes[lane]);
  else if constexpr (std::same_as<T, bool>)
    return lanes[lane] != 0;
  else
    return static_cast<T>(lanes[lane]);
}

template <class T>
uint64_t bits_of(T value) {
  if constexpr (std::same_as<T, float>)
    return std::bit_cast<uint32_t>(value);
  else if constexpr (std::same_as<T, double>)
    return std::bit_cast<uint64_t>(value);
  else
    return static_cast<uint64_t>(value);
}

template <class T, auto compute>
void unary(Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint64_t* const a = warp.lanes(i.a);
  uint64_t* const result = warp.lanes(i.result);
  each_lane(lanes, [&](int lane) { result[lane] = bits_of(compute(get<T>(a, lane))); });
}

template <class T, auto compute, class Second = T>
void binary(Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint64_t *const a = warp.lanes(i.a), *const b = warp.lanes(i.b);
  uint64_t* const result = warp.lanes(i.result);
  each_lane(lanes, [&](int lane) { result[lane] = bits_of(compute(get<T>(a, lane), get<Second>(b, lane))); });
}

template <class T, auto compute, class Third = T>
void ternary(Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint64_t *const a = warp.lanes(i.a), *const b = warp.lanes(i.b), *const c = warp.lanes(i.c);
  uint64_t* const result = warp.lanes(i.result);
  each_lane(lanes,
            [&](int lane) { result[lane] = bits_of(compute(get<T>(a, lane), get<T>(b, lane), get<Third>(c, lane))); });
}

using Table = std::unordered_map<std::string, Execute>;

// Integers wrap; of unsigned arithmetic that is so in C++ too.
template <class T>
using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
template <class T>
constexpr T wrapped(uint64_t value) {
  return static_cast<T>(value);
}

template <class T>
void add_comparisons(Table& table, const std::string& type) {
  table["setp.eq." + type] = binary<T, [](T a, T b) { return a == b; }>;
  table["setp.lt." + type] = binary<T, [](T a, T b) { return a < b; }>;
  table["setp.le." + type] = binary<T, [](T a, T b) { return a <= b; }>;
  table["setp.gt." + type] = binary<T, [](T a, T b) { return (a > b); }>;
  table["setp.ge." + type] = binary<T, [](T a, T b) { return a >= b; }>;
  if constexpr (std::integral<T>) table["setp.ne." + type] = binary<T, [](T a, T b) { return a != b; }>;
}

template <class T>
void add_integers(Table& table, const std::string& type) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  add_comparisons<T>(table, type);
  table["add." + type] = binary<T, [](T a, T b) { return wrapped<T>(uint64_t(a) + uint64_t(b)); }>;
  table["sub." + type] = binary<T, [](T a, T b) { return wrapped<T>(uint64_t(a) - uint64_t(b)); }>;
  table["mul.lo." + type] = binary<T, [](T a, T b) { return wrapped<T>(uint64_t(a) * uint64_t(b)); }>;
  table["mad.lo." + type] =
      ternary<T, [](T a, T b, T c) { return wrapped<T>(uint64_t(a) * uint64_t(b) + uint64_t(c)); }>;
  table["neg." + type] = unary<T, [](T a) { return wrapped<T>(0 - uint64_t(a)); }>;
  table["max." + type] = binary<T, [](T a, T b) { return (a > b) ? a : b; }>;
  table["min." + type] = binary<T, [](T a, T b) { return a < b ? a : b; }>;
  // Division by zero gives all ones, which is what the hardware does (section 9.7.1.9).
  table["div." + type] = binary<T, [](T a, T b) {
    return b == 0 ? wrapped<T>(~uint64_t{0}) : wrapped<T>(uint64_t(Wide<T>(a) / Wide<T>(b)));
  }>;
  table["rem." + type] = binary<T, [](T a, T b) {
    return b == 0 ? wrapped<T>(~uint64_t{0}) : wrapped<T>(uint64_t(Wide<T>(a) % Wide<T>(b)));
  }>;
  // Shifts by too much give zero, or the sign (section 9.7.8.8).
  table["shr." + type] = binary<T,
                                [](T a, uint32_t by) {
                                  if (by >= kBits) return wrapped<T>(a < 0 ? ~uint64_t{0} : 0);
                                  return wrapped<T>(uint64_t(Wide<T>(a) >> by));
                                },
                                uint32_t>;
}

template <class T>
void add_bits(Table& table, const std::string& type) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  table["and." + type] = binary<T, [](T a, T b) { return T(a & b); }>;
  table["or." + type] = binary<T, [](T a, T b) { return T(a | b); }>;
  table["xor." + type] = binary<T, [](T a, T b) { return T(a ^ b); }>;
  table["not." + type] = unary<T, [](T a) { return T(~a); }>;
  table["setp.eq." + type] = binary<T, [](T a, T b) { return a == b; }>;
  table["setp.ne." + type] = binary<T, [](T a, T b) { return a != b; }>;
  table["shl." + type] =
      binary<T, [](T a, uint32_t by) { return by >= kBits ? T(0) : T(uint64_t(a) << by); }, uint32_t>;
  table["shr." + type] =
      binary<T, [](T a, uint32_t by) { return by >= kBits ? T(0) : T(uint64_t(a) >> by); }, uint32_t>;
  table["popc." + type] = unary<T, [](T a) { return uint32_t(std::popcount(a)); }>;
  table["clz." + type] = unary<T, [](T a) { return uint32_t(std::countl_zero(a)); }>;
  table["brev." + type] = unary<T, [](T a) {
    T reversed = 0;
    for (uint32_t k = 0; k < kBits; ++k) reversed = T(reversed << 1 | (a >> k & 1));
    return reversed;
  }>;
}

// bfi (section 9.7.1.17): the low bits of a into b, from a position on.
template <class T>
void insert_bits(Warp& warp, const Instruction& i, uint32_t lanes) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  each_lane(lanes, [&](int lane) {
    const auto a = get<T>(warp.lanes(i.a), lane), b = get<T>(warp.lanes(i.b), lane);
    const uint32_t position = warp.lanes(i.c)[lane] & 255, count = warp.lanes(i.d)[lane] & 255;
    T mask = 0;
    for (uint32_t k = position; k < std::min(position + count, kBits); ++k) mask |= T(1) << k;
    warp.lanes(i.result)[lane] = position >= kBits ? b : T((b & ~mask) | (T(a << position) & mask));
  });
}

// bfe (section 9.7.1.16), unsigned.
template <class T>
void extract_bits(Warp& warp, const Instruction& i, uint32_t lanes) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  each_lane(lanes, [&](int lane) {
    const auto a = get<T>(warp.lanes(i.a), lane);
    const uint32_t position = warp.lanes(i.b)[lane] & 255, count = warp.lanes(i.c)[lane] & 255;
    const T shifted = position >= kBits ? 0 : a >> position;
    warp.lanes(i.result)[lane] = count >= kBits ? shifted : T(shifted & ((T(1) << count) - 1));
  });
}

// A NaN loses against a number, +0 is more than -0 (sections 9.7.3.10, 9.7.3.11).
constexpr auto larger_float = [](float a, float b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
};
constexpr auto smaller_float = [](float a, float b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
};

template <class T>
void add_floats(Table& table, const std::string& type) {
  add_comparisons<T>(table, type);
  table["setp.ne." + type] = binary<T, [](T a, T b) { return a < b || (a > b); }>;
  table["setp.equ." + type] = binary<T, [](T a, T b) { return !(a < b || a > b); }>;
  table["setp.neu." + type] = binary<T, [](T a, T b) { return !(a == b); }>;
  table["setp.ltu." + type] = binary<T, [](T a, T b) { return !(a >= b); }>;
  table["setp.leu." + type] = binary<T, [](T a, T b) { return !(a > b); }>;
  table["setp.gtu." + type] = binary<T, [](T a, T b) { return !(a <= b); }>;
  table["setp.geu." + type] = binary<T, [](T a, T b) { return !(a < b); }>;
  table["setp.nan." + type] = binary<T, [](T a, T b) { return std::isnan(a) || std::isnan(b); }>;
  table["setp.num." + type] = binary<T, [](T a, T b) { return !std::isnan(a) && !std::isnan(b); }>;
  for (const char* rounding : {"", "rn."}) {
    table["add." + (rounding + type)] = binary<T, [](T a, T b) { return a + b; }>;
    table["sub." + (rounding + type)] = binary<T, [](T a, T b) { return a - b; }>;
    table["mul." + (rounding + type)] = binary<T, [](T a, T b) { return a * b; }>;
  }
  table["div.rn." + type] = binary<T, [](T a, T b) { return a / b; }>;
  table["rcp.rn." + type] = unary<T, [](T a) { return T(1) / a; }>;
  table["fma.rn." + type] = ternary<T, [](T a, T b, T c) { return std::fma(a, b, c); }>;
  table["neg." + type] = unary<T, [](T a) { return -a; }>;
  table["abs." + type] = unary<T, [](T a) { return std::abs(a); }>;
}

template <class T>
void add_moves(Table& table, const std::string& type) {
  table["mov." + type] = unary<T, [](T a) { return a; }>;
  table["selp." + type] = ternary<T, [](T a, T b, bool first) { return first ? a : b; }, bool>;
}

void add_predicates(Table& table) {
  add_moves<bool>(table, "pred");
  table["and.pred"] = binary<bool, [](bool a, bool b) { return a && b; }>;
  table["or.pred"] = binary<bool, [](bool a, bool b) { return a || b; }>;
  table["xor.pred"] = binary<bool, [](bool a, bool b) { return a != b; }>;
  table["not.pred"] = unary<bool, [](bool a) { return !a; }>;
}

template <class Product, class T>
void add_wide(Table& table, const std::string& type) {
  table["mul.wide." + type] = binary<T, [](T a, T b) { return Product(Product(a) * Product(b)); }>;
  table["mad.wide." + type] =
      ternary<T, [](T a, T b, Product c) { return Product(uint64_t(Product(a) * Product(b)) + uint64_t(c)); }, Product>;
}

template <class To, class From>
constexpr auto converted = [](From a) { return static_cast<To>(a); };

// To an integer towards zero: what does not fit becomes the nearest, NaN becomes 0 (section 9.7.9.21).
template <class From>
constexpr auto truncated = [](From a) {
  if (std::isnan(a)) return int32_t{0};
  if (a >= From(2147483648.0)) return int32_t{2147483647};
  if (a <= From(-2147483648.0)) return int32_t{-2147483647 - 1};
  return static_cast<int32_t>(a);
};

template <class From>
void add_integer_conversions(Table& table, const std::string& from) {
  table["cvt.u16." + from] = unary<From, converted<uint16_t, From>>;
  table["cvt.s16." + from] = unary<From, converted<int16_t, From>>;
  table["cvt.u32." + from] = unary<From, converted<uint32_t, From>>;
  table["cvt.s32." + from] = unary<From, converted<int32_t, From>>;
  table["cvt.u64." + from] = unary<From, converted<uint64_t, From>>;
  table["cvt.s64." + from] = unary<From, converted<int64_t, From>>;
  table["cvt.rn.f32." + from] = unary<From, converted<float, From>>;
  table["cvt.rn.f64." + from] = unary<From, converted<double, From>>;
}

void add_conversions(Table& table) {
  add_integer_conversions<uint8_t>(table, "u8");
  add_integer_conversions<int8_t>(table, "s8");
  add_integer_conversions<uint16_t>(table, "u16");
  add_integer_conversions<int16_t>(table, "s16");
  add_integer_conversions<uint32_t>(table, "u32");
  add_integer_conversions<int32_t>(table, "s32");
  add_integer_conversions<uint64_t>(table, "u64");
  add_integer_conversions<int64_t>(table, "s64");
  table["cvt.f64.f32"] = unary<float, converted<double, float>>;
  table["cvt.rn.f32.f64"] = unary<double, converted<float, double>>;
  table["cvt.rzi.s32.f32"] = unary<float, truncated<float>>;
  table["cvt.rzi.s32.f64"] = unary<double, truncated<double>>;
  table["cvta.to.global.u64"] = unary<uint64_t, [](uint64_t a) { return a; }>;  // addresses are generic: one memory
}

template <class T>
void add_findings(Table& table, const std::string& type) {
  table["bfind.shiftamt." + type] = unary<T, [](T a) { return a == 0 ? ~uint32_t{0} : uint32_t(std::countl_zero(a)); }>;
  table["bfind." + type] =
      unary<T, [](T a) { return a == 0 ? ~uint32_t{0} : uint32_t(8 * sizeof(T) - 1) - uint32_t(std::countl_zero(a)); }>;
}

Table make_table() {
  Table table;
  add_bits<uint16_t>(table, "b16");
  add_bits<uint32_t>(table, "b32");
  add_bits<uint64_t>(table, "b64");
  add_integers<uint16_t>(table, "u16");
  add_integers<int16_t>(table, "s16");
  add_integers<uint32_t>(table, "u32");
  add_integers<int32_t>(table, "s32");
  add_integers<uint64_t>(table, "u64");
  add_integers<int64_t>(table, "s64");
  add_floats<float>(table, "f32");
  add_floats<double>(table, "f64");
  table["max.f32"] = binary<float, larger_float>;
  table["min.f32"] = binary<float, smaller_float>;
  for (const char* type : {"b16", "u16", "s16"}) add_moves<uint16_t>(table, type);
  for (const char* type : {"b32", "u32", "s32", "f32"}) add_moves<uint32_t>(table, type);
  for (const char* type : {"b64", "u64", "s64", "f64"}) add_moves<uint64_t>(table, type);
  add_predicates(table);
  add_wide<uint32_t, uint16_t>(table, "u16");
  add_wide<int32_t, int16_t>(table, "s16");
  add_wide<uint64_t, uint32_t>(table, "u32");
  add_wide<int64_t, int32_t>(table, "s32");
  table["mul.hi.u32"] = binary<uint32_t, [](uint32_t a, uint32_t b) { return uint32_t(uint64_t{a} * b >> 32); }>;
  table["bfi.b32"] = insert_bits<uint32_t>;
  table["bfi.b64"] = insert_bits<uint64_t>;
  table["bfe.u32"] = extract_bits<uint32_t>;
  table["bfe.u64"] = extract_bits<uint64_t>;
  add_findings<uint32_t>(table, "u32");
  add_findings<uint64_t>(table, "u64");
  add_conversions(table);
  return table;
}

}  // namespace

Execute find_arithmetic(const std::string& operation) {
  static const Table table = make_table();
  const auto found = table.find(operation);
  return found == table.end() ? nullptr : found->second;
}

// mov of a vector into a register, and back (section 9.7.9.3).
void pack(Warp& warp, const Instruction& i, uint32_t lanes) {
  const int bits = 8 * i.element_bytes;
  each_lane(lanes, [&](int lane) {
    uint64_t whole = 0;
    for (int k = i.vector_size - 1; k >= 0; --k) {
      const uint64_t part = warp.lanes(i.vector[static_cast<size_t>(k)])[lane];
      whole = whole << bits | (part & (~uint64_t{0} >> (64 - bits)));
    }
    warp.lanes(i.result)[lane] = whole;
  });
}

void unpack(Warp& warp, const Instruction& i, uint32_t lanes) {
  const int bits = 8 * i.element_bytes;
  each_lane(lanes, [&](int lane) {
    const uint64_t whole = warp.lanes(i.a)[lane];
    for (int k = 0; k < i.vector_size; ++k)
      warp.lanes(i.vector[static_cast<size_t>(k)])[lane] = whole >> (bits * k) & (~uint64_t{0} >> (64 - bits));
  });
}

}  // namespace ptx_on_cpu
