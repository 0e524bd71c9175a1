// What CUDA C finds when it is compiled as C++ for the CPU: vector types, mathematics, and the threads of a block.
#pragma once
#include "interface.h"

#include "half.h"
#include "fragments.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

using dim3 = uint3;

#define VECTORS(T, name)                                                                              \
  struct name##1 { T x; };                                                                            \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                                  \
  struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; };                  \
  inline name##1 make_##name##1(T x) { return {x}; }                                                  \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                          \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define VECTORS_OF_3(T, name)                                                                         \
  struct name##3 { T x, y, z; };                                                                      \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }
VECTORS(float, float)
VECTORS(double, double)
VECTORS(int, int)
VECTORS(unsigned, uint)
VECTORS(short, short)
VECTORS(unsigned short, ushort)
VECTORS(signed char, char)
VECTORS(unsigned char, uchar)
VECTORS(long long, longlong)
VECTORS_OF_3(float, float)
VECTORS_OF_3(int, int)
VECTORS_OF_3(signed char, char)
VECTORS_OF_3(unsigned char, uchar)
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
#undef VECTORS
#undef VECTORS_OF_3

#include "device_math.h"

#if EMULATION_CHECKED
#include "traced.h"
#else
namespace emulation {
template <class Pointer>
inline Argument::operator Pointer() const {
  return (Pointer)memory->begin;
}
inline void copy_async(void* to, const void* from, unsigned bytes, unsigned from_bytes) {
  copy_later(nullptr, to, nullptr, from, bytes, from_bytes);
}
inline void zero(void* to, unsigned bytes) { __builtin_memset(to, 0, bytes); }
}  // namespace emulation
inline void* __cvta_generic_to_shared(const void* pointer) { return (void*)pointer; }
template <class T>
inline T __ldg(const T* pointer) {
  return *pointer;
}
#endif

// The order of memory is the CPU's own, and nothing else runs between two waits.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline unsigned __activemask() { return emulation::active_lanes(); }

// The source says __syncthreads(), and so on; what calls these adds which of them it is.
namespace emulation {

inline void sync_warp(int site, unsigned mask = ~0u) { gather(mask, 0, site); }

template <class T>
inline T from_lane(int site, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  const uint64_t* all = gather(mask, bits, site);
  // undefined where that thread takes no part; reductions of a part of a warp compute with it what nobody reads
  uint64_t given = mask >> source & 1 ? all[source] : ~(uint64_t)0;
  __builtin_memcpy(&value, &given, sizeof value);
  return value;
}

template <class T>
inline typename Plain<T>::type shuffle(int site, unsigned mask, T value, int source, int width = 32) {
  return from_lane<typename Plain<T>::type>(site, mask, value, (lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
inline typename Plain<T>::type shuffle_up(int site, unsigned mask, T value, unsigned delta, int width = 32) {
  int source = lane() - (int)delta;
  return from_lane<typename Plain<T>::type>(site, mask, value, source < (lane() & ~(width - 1)) ? lane() : source);
}
template <class T>
inline typename Plain<T>::type shuffle_down(int site, unsigned mask, T value, unsigned delta, int width = 32) {
  int source = lane() + (int)delta;
  return from_lane<typename Plain<T>::type>(site, mask, value, source > (lane() | (width - 1)) ? lane() : source);
}
template <class T>
inline typename Plain<T>::type shuffle_xor(int site, unsigned mask, T value, int bits, int width = 32) {
  int source = lane() ^ bits;
  return from_lane<typename Plain<T>::type>(site, mask, value, source > (lane() | (width - 1)) ? lane() : source);
}

inline unsigned ballot(int site, unsigned mask, int predicate) {
  const uint64_t* all = gather(mask, predicate != 0, site);
  unsigned votes = 0;
  for (int i = 0; i < 32; i++) votes |= (mask >> i & 1 && all[i]) ? 1u << i : 0;
  return votes;
}
inline int any(int site, unsigned mask, int predicate) { return ballot(site, mask, predicate) != 0; }
inline int all(int site, unsigned mask, int predicate) { return ballot(site, mask, !predicate) == 0; }

}  // namespace emulation
