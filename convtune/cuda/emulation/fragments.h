// Products of matrices that a warp makes together, from fragments of its threads as the PTX ISA lays them out.
#pragma once
#include "half.h"
#include "interface.h"

namespace emulation {

// What one thread brings to mma.m16n8k16 or, with half the words, mma.m16n8k8: pairs of float16. Thread 4 g + t has of
// the left matrix, in its word 2 i + j, row g + 8 j at depths 8 i + 2 t and after it; of the right matrix, in its word
// i, column g at the same depths.
template <int kDepth>
struct Fragments {
  uint32_t left[kDepth / 4], right[kDepth / 8];
};

constexpr int kMultiplySite = -2, kMultipliedSite = -3;  // where threads wait; no line of the source

inline float half_of_pair(uint32_t pair, int which) { return widen((uint16_t)(pair >> 16 * which)); }

template <int kDepth>
inline float left_element(const uint64_t* all, int row, int k) {
  const auto* fragments = (const Fragments<kDepth>*)all[row % 8 * 4 + k % 8 / 2];
  return half_of_pair(fragments->left[k / 8 * 2 + row / 8], k % 2);
}

template <int kDepth>
inline float right_element(const uint64_t* all, int k, int column) {
  const auto* fragments = (const Fragments<kDepth>*)all[column * 4 + k % 8 / 2];
  return half_of_pair(fragments->right[k / 8], k % 2);
}

// Adds to a thread's sums: of rows g and g + 8, each of columns 2 t and 2 t + 1.
template <int kDepth, class Sum>
inline void multiply(Sum&& sum0, Sum&& sum1, Sum&& sum2, Sum&& sum3, Fragments<kDepth> mine) {
  if (active_lanes() != ~0u) give_up("multiplies on Tensor Cores without all threads of a warp");
  const uint64_t* all = gather(~0u, (uint64_t)&mine, kMultiplySite);
  int row = lane() / 4, column = lane() % 4 * 2;
  float sums[4] = {sum0, sum1, sum2, sum3};
  for (int k = 0; k < kDepth; k++) {
    float left[2] = {left_element<kDepth>(all, row, k), left_element<kDepth>(all, row + 8, k)};
    float right[2] = {right_element<kDepth>(all, k, column), right_element<kDepth>(all, k, column + 1)};
    for (int i = 0; i < 4; i++) sums[i] += left[i / 2] * right[i % 2];
  }
  gather(~0u, 0, kMultipliedSite);  // the others have read what this thread brings
  sum0 = sums[0];
  sum1 = sums[1];
  sum2 = sums[2];
  sum3 = sums[3];
}

}  // namespace emulation
