// Runs the threads of a block in turn, each until it has to wait for others.
#pragma once
#include "worker.h"

namespace emulation {

thread_local Worker* current_worker;

Worker::Worker(const Launch& launch, std::vector<Argument> arguments, int scratch_byte, bool checked)
    : launch_(launch),
      arguments_(std::move(arguments)),
      scratch_byte_(scratch_byte),
      checked_(checked),
      threads_(launch.block.x * launch.block.y * launch.block.z),
      fibers_(threads_),
      stacks_(launch.synchronises || checked ? threads_ : 0) {
  place.block_extent = launch.block;
  place.grid_extent = launch.grid;
  lay_out_shared();
  if (!place.shared || !stacks_.exist()) snprintf(problem, sizeof problem, "out of memory");
}

Worker::~Worker() { free(place.shared); }

void Worker::lay_out_shared() {
  shared_bytes_ = (launch_.static_bytes + launch_.dynamic_bytes + 2 * kZoneBytes + 255) / 256 * 256;
  place.shared = (char*)aligned_alloc(256, shared_bytes_);
  if (!place.shared) return;
  for (int i = 0; i < launch_.shared_count; i++) {
    const SharedArray& array = launch_.shared[i];
    size_t bytes = array.bytes ? array.bytes : launch_.dynamic_bytes;
    Memory memory = {array.name, place.shared + array.offset, bytes, array.element_bytes, true, false, nullptr};
    shared_.push_back(memory);
  }
  for (Memory& memory : shared_) {
    if (!checked_) break;
    cells_.emplace_back(memory.bytes / memory.element_bytes + 1);
    memory.cells = cells_.back().data();
  }
  place.arrays = shared_.data();
  if (scratch_byte_ >= 0) memset(place.shared, scratch_byte_, shared_bytes_);
  fill_zones();
}

void Worker::fill_zones() {
  auto fill = [](char* zone) {
    for (int i = 0; i < kZoneBytes; i += 4) memcpy(zone + i, &kZone, 4);
  };
  for (const Memory& memory : shared_) {
    fill(memory.begin - kZoneBytes);
    fill(memory.begin + memory.bytes);
  }
}

void Worker::check_zones() {
  auto damaged = [](const char* zone) {
    for (int i = 0; i < kZoneBytes; i += 4)
      if (memcmp(zone + i, &kZone, 4)) return true;
    return false;
  };
  for (const Memory& memory : shared_) {
    bool before = damaged(memory.begin - kZoneBytes);
    if (!failed() && (before || damaged(memory.begin + memory.bytes)))
      snprintf(problem, sizeof problem, "kernel %s wrote outside shared array %s: %s", launch_.kernel, memory.name,
               before ? "before its start" : "after its end");
  }
}

void Worker::enter() {
  Worker& worker = *current_worker;
  worker.launch_.call(worker.arguments_.data());
  worker.fiber().state = State::kDone;
  convtune_switch(&worker.fiber().stack, worker.scheduler_);
  __builtin_trap();
}

void Worker::fail(const char* format, ...) {
  if (!failed()) {
    int used = snprintf(problem, sizeof problem, "kernel %s: ", launch_.kernel);
    va_list values;
    va_start(values, format);
    vsnprintf(problem + used, sizeof problem - used, format, values);
    va_end(values);
  }
  convtune_switch(&fiber().stack, scheduler_);  // never to come back: what it would do next makes no sense
  __builtin_trap();
}

void Worker::wait(State state, int site, unsigned mask, uint64_t offered) {
  Fiber& mine = fiber();
  mine.state = state;
  mine.site = site;
  mine.mask = mask;
  mine.offered = offered;
  convtune_switch(&mine.stack, scheduler_);
}

void Worker::find_active() {
  memset(active_, 0, sizeof active_);
  for (int i = 0; i < threads_; i++)
    if (fibers_[i].state != State::kDone) active_[i / 32] |= 1u << i % 32;
}

void Worker::start(uint3 block) {
  place.block = block;
  if (checked_) {
    epochs.block = ++epochs.now;
    first_epochs.push_back(epochs.now);
    blocks.push_back(block);
  }
  if (scratch_byte_ >= 0) {
    for (const Memory& memory : shared_) memset(memory.begin, scratch_byte_, memory.bytes);
  }
  uint3 extent = launch_.block;
  for (unsigned i = 0; i < (unsigned)threads_; i++) {
    Fiber& fiber = fibers_[i];
    fiber.index = {i % extent.x, i / extent.x % extent.y, i / extent.x / extent.y};
    fiber.state = State::kReady;
    fiber.warp_epoch = 0;
    fiber.copies.clear();
    fiber.groups.clear();
    fiber.touches.clear();
  }
  find_active();
}

void Worker::run(uint3 block, Order order, uint64_t seed) {
  current_worker = this;
  order_ = order;
  random_ = seed;
  start(block);
  std::vector<int> sequence(threads_);
  arrange(sequence, order, seed);
  if (!launch_.synchronises && !checked_) {
    for (int thread : sequence) {
      current_ = thread;
      place.thread = fibers_[thread].index;
      launch_.call(arguments_.data());
    }
  } else {
    for (int i = 0; i < threads_; i++) fibers_[i].stack = stacks_.fresh(i, enter);
    while (run_ready(sequence) && release()) {
    }
  }
  check_zones();
  counts.blocks++;
}

// Runs every thread that need not wait; whether one is left that has not ended.
bool Worker::run_ready(const std::vector<int>& sequence) {
  bool left = false;
  find_active();
  for (int thread : sequence) {
    Fiber& fiber = fibers_[thread];
    if (fiber.state == State::kDone) continue;
    if (fiber.state == State::kReady) {
      current_ = thread;
      place.thread = fiber.index;
      convtune_switch(&scheduler_, fiber.stack);
      if (failed()) return false;
    }
    left |= fiber.state != State::kDone;
  }
  if (checked_) count_touches();
  return left;
}

// Lets threads go on that have what they waited for; whether any may run.
bool Worker::release() {
  bool ready = release_warps();
  int at_barrier = 0, site = -1;
  bool same_site = true;
  for (const Fiber& fiber : fibers_) {
    ready |= fiber.state == State::kReady;
    if (fiber.state != State::kAtBarrier) continue;
    at_barrier++;
    same_site &= site < 0 || fiber.site == site;
    site = fiber.site;
  }
  if (ready) return true;
  if (at_barrier < threads_ || !same_site) {
    describe_deadlock();
    return false;
  }
  for (Fiber& fiber : fibers_) {
    fiber.state = State::kReady;
    fiber.warp_epoch = 0;
  }
  epochs.now++;
  counts.barriers++;
  return true;
}

bool Worker::release_warps() {
  bool released = false;
  for (int first = 0; first < threads_; first += 32) {
    int count = threads_ - first < 32 ? threads_ - first : 32;
    for (int lane = 0; lane < count; lane++) {
      const Fiber& leader = fibers_[first + lane];
      if (leader.state != State::kAtWarp) continue;
      unsigned mask = leader.mask;
      int site = leader.site;
      bool complete = true;
      for (int i = 0; i < count; i++) {
        const Fiber& other = fibers_[first + i];
        if (!(mask >> i & 1) || other.state == State::kDone) continue;
        complete &= other.state == State::kAtWarp && other.mask == mask && other.site == site;
      }
      if (!complete) continue;
      released = true;
      for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        bool takes_part = i < count && fibers_[first + i].state == State::kAtWarp;
        warp_values[first / 32][i] = takes_part ? fibers_[first + i].offered : ~(uint64_t)0;
        if (!takes_part) continue;
        fibers_[first + i].state = State::kReady;
        fibers_[first + i].warp_epoch++;
      }
    }
  }
  return released;
}

void Worker::describe_deadlock() {
  if (failed()) return;
  int at_barrier = 0, at_warp = 0, done = 0, first_site = -1, other_site = -1;
  for (const Fiber& fiber : fibers_) {
    at_barrier += fiber.state == State::kAtBarrier;
    at_warp += fiber.state == State::kAtWarp;
    done += fiber.state == State::kDone;
    if (fiber.state != State::kAtBarrier) continue;
    if (first_site < 0) first_site = fiber.site;
    if (fiber.site != first_site) other_site = fiber.site;
  }
  int used = snprintf(problem, sizeof problem, "kernel %s, block (%u, %u, %u): ", launch_.kernel, place.block.x,
                      place.block.y, place.block.z);
  char* text = problem + used;
  size_t left = sizeof problem - used;
  if (at_warp)
    snprintf(text, left, "deadlock: %d threads wait for others of their warp, %d at a barrier, %d ended", at_warp,
             at_barrier, done);
  else if (at_barrier < threads_)
    snprintf(text, left, "divergent barrier: %d of %d threads reached the one in line %d of the source, %d ended",
             at_barrier, threads_, first_site, done);
  else
    snprintf(text, left, "divergent barriers: threads wait in line %d and in line %d of the source", first_site,
             other_site);
}

// The services for threads.
const Place& place() { return current_worker->place; }
void barrier(int site) { current_worker->wait(State::kAtBarrier, site, 0, 0); }
const uint64_t* gather(unsigned mask, uint64_t value, int site) {
  current_worker->wait(State::kAtWarp, site, mask, value);
  return current_worker->warp_values[current_worker->current() / 32];
}
int lane() { return current_worker->current() % 32; }
unsigned active_lanes() { return current_worker->active_lanes(); }
void give_up(const char* problem) { current_worker->fail("%s", problem); }
void commit_copies() {
  Fiber& fiber = current_worker->fiber();
  fiber.groups.push_back(fiber.copies.size());
}
void wait_for_copies(unsigned groups_left) { current_worker->wait_for_copies(groups_left); }

}  // namespace emulation
