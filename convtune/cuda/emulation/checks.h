// What is done with the accesses of a thread to memory that threads share: checked, counted, and copied late.
#pragma once
#include "worker.h"

namespace emulation {

void Worker::touch(const Memory* memory, const void* address, unsigned bytes, unsigned alignment, bool write,
                   const void* value, const void* site) {
  const char *verb = write ? "write" : "read", *kind = memory->shared ? "shared array " : "";
  long long offset = (const char*)address - memory->begin;
  long long element = offset >= 0 ? offset / memory->element_bytes : -((-offset + memory->element_bytes - 1) / memory->element_bytes);
  uint3 t = place.thread, b = place.block;
  if (offset < 0 || offset + bytes > memory->bytes)
    fail("%s of %u bytes out of bounds at element %lld of %s%s, which has %zu, by thread (%u, %u, %u) of block (%u, %u, %u)",
         verb, bytes, element, kind, memory->name, memory->bytes / memory->element_bytes, t.x, t.y, t.z, b.x, b.y, b.z);
  if (offset % alignment)
    fail("misaligned %s of %u bytes at element %lld of %s%s by thread (%u, %u, %u) of block (%u, %u, %u)", verb, bytes,
         element, kind, memory->name, t.x, t.y, t.z, b.x, b.y, b.z);
  Fiber& mine = fiber();
  Access now = {epochs.now, (uint32_t)current_, mine.warp_epoch, write && !value ? kInFlight : 0u};
  // Threads that write what is there already do in vain, and no harm: tiles are loaded by more threads than needed.
  // In global memory it is reported all the same: more than one thread computes an element of the result.
  bool in_vain = memory->shared && value && !memcmp(address, value, bytes);
  size_t last = (offset + bytes - 1) / memory->element_bytes;
  for (size_t i = offset / memory->element_bytes; i <= last; i++) {
    Cell& cell = memory->cells[i];
    Hazard hazard = write ? write_cell(cell, now, epochs, memory->shared, in_vain)
                          : read_cell(cell, now, epochs, memory->shared, memory->initialised);
    if (hazard) {
      bool after_read = hazard == kAfterRead || hazard == kAfterForeignRead;
      report(hazard, *memory, i, after_read ? cell.read : cell.write, write);
    }
  }
  mine.touches.push_back({site, memory, (size_t)offset, bytes, write});
}

void Worker::report(Hazard hazard, const Memory& memory, size_t element, const Access& other, bool write) {
  const char *kind = memory.shared ? "shared array " : "", *name = memory.name;
  uint3 b = place.block;
  char where[64];
  snprintf(where, sizeof where, "of block (%u, %u, %u)", b.x, b.y, b.z);
  if (hazard == kUnwritten)
    fail("%s%s is read before written at element %zu by thread %d %s", kind, name, element, current_, where);
  if (hazard == kUnfinished)
    fail("%s%s is %s at element %zu by thread %d %s while a cp.async of thread %u to it is not waited for", kind, name,
         write ? "written" : "read", element, current_, where, other.thread);
  bool after_write = hazard == kAfterWrite || hazard == kAfterForeignWrite;
  const char* what = !write ? "write, then read" : after_write ? "write, then write" : "read, then write";
  if (hazard == kAfterWrite || hazard == kAfterRead)
    fail("race on %s%s at element %zu between threads %u and %d %s: %s, and no barrier between", kind, name, element,
         other.thread, current_, where, what);
  if (other.epoch >= epochs.block)  // some other block did before this one
    fail("race on %s at element %zu between another block and thread %d %s: %s", name, element, current_, where, what);
  size_t i = first_epochs.size() - 1;
  while (i > 0 && first_epochs[i] > other.epoch) i--;
  uint3 f = blocks[i];
  fail("race on %s at element %zu between thread %u of block (%u, %u, %u) and thread %d %s: %s", name, element,
       other.thread, f.x, f.y, f.z, current_, where, what);
}

void Worker::count_touches() {
  const std::vector<Touch>* threads[32];
  for (int first = 0; first < threads_; first += 32) {
    int count = 0;
    for (; count < 32 && first + count < threads_; count++) threads[count] = &fibers_[first + count].touches;
    counter_.add(threads, count, counts);
  }
  for (Fiber& fiber : fibers_) fiber.touches.clear();
}

void Worker::copy_later(const Copy& copy, const void* site) {
  if (checked_) {
    // at least one byte apart from each other, so that both stay places of their own
    if (copy.from_bytes) touch(copy.from_memory, copy.from, copy.from_bytes, copy.from_bytes, false, nullptr, site);
    touch(copy.to_memory, copy.to, copy.bytes, copy.bytes, true, nullptr, (const char*)site + 1);
  }
  // Hardware copies at any time between. The latest shows a missing wait, the earliest a missing barrier before.
  bool now = order_ == Order::kReverse || (order_ == Order::kShuffled && next_random(random_) % 2);
  if (now && !checked_)
    finish(copy);
  else
    fiber().copies.push_back(copy);
}

void Worker::finish(const Copy& copy) {
  memcpy(copy.to, copy.from, copy.from_bytes);
  memset((char*)copy.to + copy.from_bytes, 0, copy.bytes - copy.from_bytes);
  if (!checked_) return;
  size_t offset = (char*)copy.to - copy.to_memory->begin;
  unsigned unit = copy.to_memory->element_bytes;
  Access now = {epochs.now, (uint32_t)current_, fiber().warp_epoch, 0};
  for (size_t k = offset / unit; k <= (offset + copy.bytes - 1) / unit; k++) copy.to_memory->cells[k].write = now;
}

void Worker::wait_for_copies(unsigned groups_left) {
  Fiber& mine = fiber();
  size_t groups = mine.groups.size(), finished = groups, count = mine.copies.size();
  if (groups_left != kNoGroups) {
    finished = groups > groups_left ? groups - groups_left : 0;
    count = finished ? mine.groups[finished - 1] : 0;
  }
  for (size_t i = 0; i < count; i++) finish(mine.copies[i]);
  mine.copies.erase(mine.copies.begin(), mine.copies.begin() + count);
  mine.groups.erase(mine.groups.begin(), mine.groups.begin() + finished);
  for (size_t& end : mine.groups) end -= count;
}

__attribute__((noinline)) void touch(const Memory* memory, const void* address, unsigned bytes, unsigned alignment,
                                     const void* value) {
  Worker& worker = *current_worker;
  if (worker.fiber().touches.size() >= kTouchesAtATime) worker.pause();
  worker.touch(memory, address, bytes, alignment, value != nullptr, value, __builtin_return_address(0));
}

__attribute__((noinline)) void copy_later(const Memory* to_memory, void* to, const Memory* from_memory,
                                          const void* from, unsigned bytes, unsigned from_bytes) {
  current_worker->copy_later({to_memory, from_memory, to, from, bytes, from_bytes}, __builtin_return_address(0));
}

}  // namespace emulation
