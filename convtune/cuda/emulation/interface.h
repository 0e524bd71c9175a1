// What a program that runs on the CPU and the scheduler of its threads know of each other.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
  unsigned x, y, z;
};

namespace emulation {

struct Cell;  // who touched a few bytes last: races.h

// An array that threads share. In the GPU's memory, or, cleared for each block, in shared memory.
struct Memory {
  const char* name;
  char* begin;
  size_t bytes;
  unsigned element_bytes;  // accesses are told apart by elements; of a dynamic array, those of its smallest type
  bool shared;
  bool initialised;  // so that it may be read before it is written
  Cell* cells;       // one for each element, where checked
};

// Where a thread is, and the shared memory of its block.
struct Place {
  uint3 thread, block, block_extent, grid_extent;
  char* shared;
  const Memory* arrays;
};

// What is passed for a pointer parameter of a kernel.
struct Argument {
  const Memory* memory;
  template <class Pointer>
  operator Pointer() const;
};

// A parameter or workspace of the program.
struct Array {
  const char* name;
  size_t bytes;
  unsigned element_bytes;
  bool is_parameter;
};

struct SharedArray {
  const char* name;
  size_t offset, bytes;  // in shared memory; a dynamic array comes last, with 0 bytes
  unsigned element_bytes;
};

struct Launch {
  const char* kernel;
  void (*call)(const Argument*);
  const int* arguments;  // indices of convtune_arrays
  int argument_count;
  uint3 grid, block;
  size_t dynamic_bytes, static_bytes;
  const SharedArray* shared;
  int shared_count;
  bool synchronises;  // its threads wait for each other
};

// The scheduler's services for a thread. `site` names a place in the source.
const Place& place();
void barrier(int site);
const uint64_t* gather(unsigned mask, uint64_t value, int site);  // the values of a warp's threads, by lane
int lane();
unsigned active_lanes();
void copy_later(const Memory* to_memory, void* to, const Memory* from_memory, const void* from, unsigned bytes,
                unsigned from_bytes);
void commit_copies();
void wait_for_copies(unsigned groups_left);
[[noreturn]] void give_up(const char* problem);
// value: what is to be written; null for a read.
void touch(const Memory* memory, const void* address, unsigned bytes, unsigned alignment, const void* value);

// The type of a value, whatever it was read through.
template <class T>
struct Plain {
  using type = T;
};

constexpr unsigned kNoGroups = ~0u;  // for wait_for_copies: those that were never committed, too

}  // namespace emulation

// Defined by the program.
extern "C" {
extern const emulation::Array convtune_arrays[];
extern const int convtune_array_count;
extern const emulation::Launch convtune_launches[];
extern const int convtune_launch_count;
}
