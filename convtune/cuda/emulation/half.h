// CUDA's half and half2: every operation rounds to 16 bits.
#pragma once
#include <stdint.h>

namespace emulation {

#if defined(__aarch64__) || (defined(__clang__) && defined(__F16C__))
#if defined(__aarch64__)
using Native = __fp16;
#else
using Native = _Float16;
#endif
inline float widen(uint16_t bits) { return (float)__builtin_bit_cast(Native, bits); }
inline uint16_t narrow(float value) { return __builtin_bit_cast(uint16_t, (Native)value); }
#else
inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
#if defined(__F16C__)
typedef float Float4 __attribute__((vector_size(16)));
typedef short Short8 __attribute__((vector_size(16)));
inline float widen(uint16_t bits) {
  Short8 vector = {(short)bits, 0, 0, 0, 0, 0, 0, 0};
  return ((Float4)__builtin_ia32_vcvtph2ps(vector))[0];
}
inline uint16_t narrow(float value) {
  Float4 vector = {value, 0, 0, 0};
  return (uint16_t)((Short8)__builtin_ia32_vcvtps2ph(vector, 0))[0];
}
#else
inline float widen(uint16_t bits) {
  uint32_t sign = (uint32_t)(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // a denormal's fraction becomes a number by what a product with 2^112 does to the exponent
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}
inline uint16_t narrow(float value) {
  uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520, half way to the next power of two
  if (magnitude < 0x38800000) {                       // 2^-14: denormal; the sum leaves its multiples of 2^-24
    return sign | (uint16_t)(bits_of(float_of(magnitude) + 0.5f) - 0x3f000000);
  }
  magnitude += 0xfff + (magnitude >> 13 & 1);  // to nearest, ties to even
  return sign | (uint16_t)((magnitude - 0x38000000) >> 13);
}
#endif
#endif

}  // namespace emulation

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float value) : bits(emulation::narrow(value)) {}
  __half(double value) : __half((float)value) {}
  __half(int value) : __half((float)value) {}
  __half(unsigned value) : __half((float)value) {}
  __half(long long value) : __half((float)value) {}
  operator float() const { return emulation::widen(bits); }
  __half& operator+=(__half other) { return *this = __half((float)*this + (float)other); }
  __half& operator-=(__half other) { return *this = __half((float)*this - (float)other); }
  __half& operator*=(__half other) { return *this = __half((float)*this * (float)other); }
};
using half = __half;

#define HALF_OPERATOR(op, name)                                                          \
  inline half operator op(half a, half b) { return half((float)a op(float) b); }         \
  inline half name(half a, half b) { return half((float)a op(float) b); }
HALF_OPERATOR(+, __hadd)
HALF_OPERATOR(-, __hsub)
HALF_OPERATOR(*, __hmul)
HALF_OPERATOR(/, __hdiv)
#undef HALF_OPERATOR
#define HALF_COMPARISON(op, name)                                              \
  inline bool operator op(half a, half b) { return (float)a op(float) b; }     \
  inline bool name(half a, half b) { return (float)a op(float) b; }
HALF_COMPARISON(<, __hlt)
HALF_COMPARISON(>, __hgt)
HALF_COMPARISON(<=, __hle)
HALF_COMPARISON(>=, __hge)
HALF_COMPARISON(==, __heq)
HALF_COMPARISON(!=, __hne)
#undef HALF_COMPARISON

inline half operator-(half a) { return half(-(float)a); }
inline half __hneg(half a) { return -a; }
inline half __float2half(float a) { return half(a); }
inline half __float2half_rn(float a) { return half(a); }
inline float __half2float(half a) { return a; }
inline half __hfma(half a, half b, half c) { return half(__builtin_fmaf(a, b, c)); }
inline half __hmax(half a, half b) { return half(__builtin_fmaxf(a, b)); }
inline half __hmin(half a, half b) { return half(__builtin_fminf(a, b)); }
inline half hexp(half a) { return half(__builtin_expf(a)); }
inline half hsqrt(half a) { return half(__builtin_sqrtf(a)); }
inline half hrsqrt(half a) { return half(1.0f / __builtin_sqrtf(a)); }
inline half hlog(half a) { return half(__builtin_logf(a)); }
inline half hfloor(half a) { return half(__builtin_floorf(a)); }
inline half hceil(half a) { return half(__builtin_ceilf(a)); }

struct alignas(4) __half2 {
  half x, y;
};
using half2 = __half2;
inline half2 make_half2(half a, half b) { return {a, b}; }
inline half2 __halves2half2(half a, half b) { return {a, b}; }
inline half2 __float2half2_rn(float a) { return {half(a), half(a)}; }
inline half2 __hadd2(half2 a, half2 b) { return {a.x + b.x, a.y + b.y}; }
inline half2 __hmul2(half2 a, half2 b) { return {a.x * b.x, a.y * b.y}; }
inline half2 __hfma2(half2 a, half2 b, half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
