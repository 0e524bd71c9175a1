// Runs the launches of a program, each block on one of some threads of the CPU.
#pragma once
#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "checks.h"
#include "scheduler.h"
#include "worker.h"

namespace emulation {

// As in emulator.py.
struct Options {
  int32_t order, threads;
  uint64_t seed;
  int64_t blocks;        // of each launch; 0: all
  int32_t scratch_byte;  // what shared memory is full of at first; -1: what was left there
  int32_t problem_bytes;
};

// Blocks to run, in the order of their start: all, or the first, the last, and some between.
inline std::vector<int64_t> choose_blocks(int64_t count, const Options& options, uint64_t seed) {
  std::vector<int64_t> chosen(count);
  arrange(chosen, (Order)options.order, seed);
  int64_t wanted = options.blocks;
  if (!wanted || wanted >= count) return chosen;
  std::vector<char> take(count);
  take[0] = 1;
  int64_t taken = 1;
  if (wanted > 1) take[count - 1] = 1, taken = 2;
  while (taken < wanted) {
    char& candidate = take[next_random(seed) % count];
    taken += !candidate;
    candidate = 1;
  }
  chosen.erase(std::remove_if(chosen.begin(), chosen.end(), [&](int64_t block) { return !take[block]; }), chosen.end());
  return chosen;
}

class Run {
 public:
  Run(const Launch& launch, const std::vector<Argument>& arguments, const Options& options, uint64_t seed,
      Epochs& epochs)
      : launch_(launch),
        arguments_(arguments),
        options_(options),
        seed_(seed),
        epochs_(epochs),
        blocks_(choose_blocks((int64_t)launch.grid.x * launch.grid.y * launch.grid.z, options, seed)) {}

  bool finish(Counts& counts, char* problem) {
    std::vector<pthread_t> others;
    for (int i = 1; i < options_.threads && i < (int64_t)blocks_.size(); i++) {
      pthread_t thread;
      if (pthread_create(&thread, nullptr, [](void* run) { return ((Run*)run)->work(), (void*)nullptr; }, this)) break;
      others.push_back(thread);
    }
    work();
    for (pthread_t thread : others) pthread_join(thread, nullptr);
    counts = counts_;
    if (problem_[0]) snprintf(problem, options_.problem_bytes, "%s", problem_);
    return !problem_[0];
  }

 private:
  void work() {
    Worker worker(launch_, arguments_, options_.scratch_byte, EMULATION_CHECKED);
    worker.epochs = epochs_;
    worker.epochs.launch = worker.epochs.now + 1;
    while (!worker.problem[0] && !stop_) {
      size_t next = next_++;
      if (next >= blocks_.size()) break;
      uint64_t i = blocks_[next], x = launch_.grid.x, y = launch_.grid.y;
      uint3 block = {(unsigned)(i % x), (unsigned)(i / x % y), (unsigned)(i / x / y)};
      worker.run(block, (Order)options_.order, seed_ + i);
    }
    pthread_mutex_lock(&lock_);
    if (worker.problem[0] && !problem_[0]) memcpy(problem_, worker.problem, sizeof problem_);
    stop_ = problem_[0];
    if (EMULATION_CHECKED) counts_ = worker.counts, epochs_ = worker.epochs;
    pthread_mutex_unlock(&lock_);
  }

  const Launch& launch_;
  const std::vector<Argument>& arguments_;
  const Options& options_;
  uint64_t seed_;
  Epochs& epochs_;
  std::vector<int64_t> blocks_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> stop_{false};
  pthread_mutex_t lock_ = PTHREAD_MUTEX_INITIALIZER;
  Counts counts_ = {};
  char problem_[sizeof Worker::problem] = "";
};

}  // namespace emulation

// Runs the program on its arrays, `data`, parameters before workspaces. counts: of each launch. problem: what was wrong,
// empty if nothing was.
extern "C" __attribute__((visibility("default"))) void convtune_emulate(char* const* data,
                                                                        const emulation::Options* options,
                                                                        emulation::Counts* counts, char* problem) {
  using namespace emulation;
  std::vector<Memory> memories;
  std::vector<std::vector<Cell>> cells(convtune_array_count);
  for (int i = 0; i < convtune_array_count; i++) {
    const Array& array = convtune_arrays[i];
    if (EMULATION_CHECKED) cells[i].resize(array.bytes / array.element_bytes + 1);
    memories.push_back(
        {array.name, data[i], array.bytes, array.element_bytes, false, array.is_parameter, cells[i].data()});
  }
  Epochs epochs = {};
  problem[0] = 0;
  for (int i = 0; i < convtune_launch_count; i++) {
    const Launch& launch = convtune_launches[i];
    std::vector<Argument> arguments;
    for (int k = 0; k < launch.argument_count; k++) arguments.push_back({&memories[launch.arguments[k]]});
    if (!Run(launch, arguments, *options, options->seed + i, epochs).finish(counts[i], problem)) return;
  }
}
