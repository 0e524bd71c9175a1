// One thread of the CPU that runs blocks, and the CUDA threads of its block as fibers.
#pragma once
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <vector>

#include "counts.h"
#include "fiber_switch.h"
#include "interface.h"
#include "races.h"

namespace emulation {

enum class Order { kForward, kReverse, kShuffled };
enum class State : uint8_t { kReady, kAtBarrier, kAtWarp, kDone };

struct Copy {
  const Memory *to_memory, *from_memory;
  void* to;
  const void* from;
  unsigned bytes, from_bytes;  // the rest is zero
};

// A thread of the block.
struct Fiber {
  void* stack;
  uint3 index;
  State state;
  int site;           // where it waits
  unsigned mask;      // for which lanes of its warp
  uint64_t offered;   // to them
  uint32_t warp_epoch;
  std::vector<Copy> copies;
  std::vector<size_t> groups;  // of copies: where each ends
  std::vector<Touch> touches;
};

// A small generator of random numbers (Steele, Lea and Flood, "Fast splittable pseudorandom number generators").
inline uint64_t next_random(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

template <class Number>
void arrange(std::vector<Number>& sequence, Order order, uint64_t seed) {
  for (size_t i = 0; i < sequence.size(); i++) sequence[i] = order == Order::kReverse ? sequence.size() - 1 - i : i;
  if (order != Order::kShuffled) return;
  for (size_t i = sequence.size(); i > 1; i--) std::swap(sequence[i - 1], sequence[next_random(seed) % i]);
}

constexpr int kZoneBytes = 256;  // before and after each shared array
constexpr uint32_t kZone = 0x7fe5a5a5;
constexpr size_t kTouchesAtATime = 1024;

class Worker;
extern thread_local Worker* current_worker;

class Worker {
 public:
  Worker(const Launch& launch, std::vector<Argument> arguments, int scratch_byte, bool checked);
  ~Worker();

  // Runs a block; what went wrong is `problem` then.
  void run(uint3 block, Order order, uint64_t seed);

  char problem[400] = "";
  Counts counts = {};
  Place place = {};
  Epochs epochs = {};
  std::vector<uint32_t> first_epochs;  // of each block that ran
  std::vector<uint3> blocks;

  [[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 2, 3)));
  void wait(State state, int site, unsigned mask, uint64_t offered);
  void touch(const Memory* memory, const void* address, unsigned bytes, unsigned alignment, bool write,
             const void* value, const void* site);
  void pause() { convtune_switch(&fiber().stack, scheduler_); }  // so that its touches are counted and forgotten
  void copy_later(const Copy& copy, const void* site);
  void wait_for_copies(unsigned groups_left);
  Fiber& fiber() { return fibers_[current_]; }
  int current() const { return current_; }
  unsigned active_lanes() const { return active_[current_ / 32]; }
  uint64_t warp_values[32][32];  // by warp and lane

 private:
  static void enter();
  void start(uint3 block);
  void lay_out_shared();
  void fill_zones();
  void check_zones();
  void find_active();
  bool run_ready(const std::vector<int>& sequence);
  bool release();
  bool release_warps();
  void describe_deadlock();
  void count_touches();
  void finish(const Copy& copy);
  void report(Hazard hazard, const Memory& memory, size_t element, const Access& other, bool write);
  bool failed() const { return problem[0] != 0; }

  const Launch& launch_;
  std::vector<Argument> arguments_;
  int scratch_byte_;
  bool checked_;
  int threads_;
  std::vector<Fiber> fibers_;
  Stacks stacks_;
  std::vector<Memory> shared_;
  std::vector<std::vector<Cell>> cells_;  // by shared array
  size_t shared_bytes_;
  void* scheduler_ = nullptr;
  int current_ = 0;
  unsigned active_[32];  // lanes by warp, since all threads were last run in turn
  Order order_ = Order::kForward;
  uint64_t random_ = 0;
  Counter counter_;
};

}  // namespace emulation
