// CUDA's wmma: matrix products of a warp. Which thread holds which element is CUDA's to choose; here each holds a run of
// a row (of a column, in column-major order), the one whose address it would give to the instruction ldmatrix.
#pragma once
#include "cuda_on_cpu.h"

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K>
struct Extents;
template <int M, int N, int K>
struct Extents<matrix_a, M, N, K> {
  static constexpr int rows = M, columns = K;
};
template <int M, int N, int K>
struct Extents<matrix_b, M, N, K> {
  static constexpr int rows = K, columns = N;
};
template <int M, int N, int K>
struct Extents<accumulator, M, N, K> {
  static constexpr int rows = M, columns = N;
};

template <class Layout>
constexpr bool kByRows = true;
template <>
constexpr bool kByRows<col_major> = false;

// An accumulator, which has no layout, is held by rows.
template <class Use, int M, int N, int K, class T, class Layout = row_major>
struct fragment {
  using Of = Extents<Use, M, N, K>;
  static constexpr int num_elements = Of::rows * Of::columns / 32;
  static constexpr int lines = kByRows<Layout> ? Of::rows : Of::columns;
  alignas(16) T x[num_elements];

  // The line of a lane's elements, and where they start in it; lane and index of an element.
  static int line(int lane) { return lane % lines; }
  static int start(int lane) { return lane / lines * num_elements; }
  static int lane_of(int line, int position) { return line + position / num_elements * lines; }
  static int index_of(int position) { return position % num_elements; }
};

// As many elements as one instruction of a thread can load.
template <class T, int count>
struct alignas(sizeof(T) * count) Run {
  T elements[count];
};

#if EMULATION_CHECKED
template <class T>
using Address = emulation::Pointer<T>;
inline uintptr_t number(Address<unsigned char> address) { return (uintptr_t)address.place; }
#else
template <class T>
using Address = T*;
inline uintptr_t number(const void* address) { return (uintptr_t)address; }
#endif

// Calls `move(run, address)` for each run of the fragment, whose lines are `stride` elements apart in memory.
template <class Fragment, class T, class Move>
inline void for_each_run(Fragment& fragment, Address<T> tile, unsigned stride, Move move) {
  if (number(tile) % 32) emulation::give_up("a tile of wmma starts at an address that is no multiple of 32 bytes");
  if (stride * sizeof(T) % 16) emulation::give_up("the lines of a tile of wmma are no multiple of 16 bytes apart");
  constexpr int most = 16 / sizeof(T), length = Fragment::num_elements < most ? Fragment::num_elements : most;
  int lane = emulation::lane();
  Address<T> own = tile + (Fragment::line(lane) * stride + Fragment::start(lane));
  for (int i = 0; i < Fragment::num_elements; i += length)
    move(*(Run<T, length>*)&fragment.x[i], (Address<Run<T, length>>)(own + i));
}

template <class Use, int M, int N, int K, class T, class Layout, class Source>
inline void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& into, Source tile, unsigned stride) {
  for_each_run<fragment<Use, M, N, K, T, Layout>, T>(into, tile, stride, [](auto& run, auto from) { run = *from; });
}
template <int M, int N, int K, class T, class Source>
inline void load_matrix_sync(fragment<accumulator, M, N, K, T>& into, Source tile, unsigned stride, layout_t layout) {
  if (layout == mem_row_major) return load_matrix_sync(into, tile, stride);
  int lane = emulation::lane(), row = into.line(lane), column = into.start(lane);
  Address<T> from = tile;
  for (int i = 0; i < into.num_elements; i++) into.x[i] = from[(column + i) * stride + row];
}
template <int M, int N, int K, class T, class Target>
inline void store_matrix_sync(Target tile, const fragment<accumulator, M, N, K, T>& from, unsigned stride,
                              layout_t layout) {
  using Fragment = const fragment<accumulator, M, N, K, T>;
  if (layout == mem_row_major)
    return for_each_run<Fragment, T>(from, tile, stride, [](auto& run, auto to) { *to = run; });
  int lane = emulation::lane(), row = from.line(lane), column = from.start(lane);
  Address<T> to = tile;
  for (int i = 0; i < from.num_elements; i++) to[(column + i) * stride + row] = from.x[i];
}

template <class Fragment>
inline void fill_fragment(Fragment& into, float value) {
  for (auto& element : into.x) element = value;
}

// What all lanes hold of a fragment, as a matrix of float32.
template <class Use, int M, int N, int K, class T, class Layout, int rows, int columns>
inline void assemble(const fragment<Use, M, N, K, T, Layout>* const* lanes, float (&matrix)[rows][columns]) {
  using Fragment = fragment<Use, M, N, K, T, Layout>;
  for (int row = 0; row < rows; row++)
    for (int column = 0; column < columns; column++) {
      int line = kByRows<Layout> ? row : column, position = kByRows<Layout> ? column : row;
      matrix[row][column] = lanes[Fragment::lane_of(line, position)]->x[Fragment::index_of(position)];
    }
}

// d = a b + c: products and sums in float32, rounded once to what d holds.
template <int M, int N, int K, class D, class T, class LayoutA, class LayoutB, class C>
inline void mma_sync(fragment<accumulator, M, N, K, D>& d, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
                     const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, C>& c) {
  struct Given {
    const fragment<matrix_a, M, N, K, T, LayoutA>* a;
    const fragment<matrix_b, M, N, K, T, LayoutB>* b;
    const fragment<accumulator, M, N, K, C>* c;
    fragment<accumulator, M, N, K, D>* d;
  } mine = {&a, &b, &c, &d}, all[32];
  constexpr int kSite = -10;  // no line of the source
  const uint64_t* given = emulation::gather(~0u, (uint64_t)&mine, kSite);
  for (int lane = 0; lane < 32; lane++)
    if (given[lane] == ~(uint64_t)0) emulation::give_up("mma_sync without all 32 threads of a warp");
  if (emulation::lane() == 0) {  // for the whole warp
    decltype(mine.a) as[32];
    decltype(mine.b) bs[32];
    decltype(mine.c) cs[32];
    for (int lane = 0; lane < 32; lane++) {
      all[lane] = *(const Given*)given[lane];
      as[lane] = all[lane].a, bs[lane] = all[lane].b, cs[lane] = all[lane].c;
    }
    float left[M][K], right[K][N], sums[M][N];
    assemble(as, left);
    assemble(bs, right);
    assemble(cs, sums);
    for (int i = 0; i < M; i++)
      for (int k = 0; k < K; k++)
        for (int j = 0; j < N; j++) sums[i][j] += left[i][k] * right[k][j];
    for (int i = 0; i < M; i++)
      for (int j = 0; j < N; j++) all[d.lane_of(i, j)].d->x[d.index_of(j)] = sums[i][j];
  }
  emulation::gather(~0u, 0, kSite - 1);  // before, none may change its a and b
}

}  // namespace wmma
}  // namespace nvcuda
