// Finds accesses that no barrier orders, and reads of what was never written.
#pragma once
#include <stdint.h>

#include "interface.h"

namespace emulation {

// An access: when, as the epoch, which every barrier of a block and every new block counts up, and by whom.
struct Access {
  uint32_t epoch;
  uint32_t thread : 10, warp_epoch : 19;  // __syncwarp counts a warp's epoch up
  uint32_t flags : 3;
};
static_assert(sizeof(Access) == 8);

struct Cell {
  Access write, read;
};

enum WriteFlags { kInFlight = 1 };  // of cp.async, so not there yet
// Of reads: `read` names one thread of the last epoch; there were others of its warp, of other warps, of other blocks.
enum ReadFlags { kManyThreads = 1, kManyWarps = 2, kManyBlocks = 4 };

struct Epochs {
  uint32_t launch, block, now;  // the first epoch of this launch and block, and this one
};

enum Hazard {
  kNone,
  kUnwritten,
  kUnfinished,
  kAfterWrite,         // of another thread of the block
  kAfterRead,
  kAfterForeignWrite,  // of another block
  kAfterForeignRead,
};

inline bool unordered(const Access& before, const Access& now) {
  if (before.thread == now.thread) return false;
  return before.thread / 32 != now.thread / 32 || before.warp_epoch == now.warp_epoch;
}

inline Hazard after_write(const Access& write, const Access& now, const Epochs& epochs) {
  if (write.epoch < epochs.launch) return kNone;
  if (write.epoch < epochs.block) return kAfterForeignWrite;
  if (write.flags & kInFlight) return kUnfinished;
  return write.epoch == epochs.now && unordered(write, now) ? kAfterWrite : kNone;
}

inline Hazard read_cell(Cell& cell, Access now, const Epochs& epochs, bool shared, bool initialised) {
  if (!initialised && cell.write.epoch < (shared ? epochs.block : 1)) return kUnwritten;
  Hazard hazard = after_write(cell.write, now, epochs);
  if (shared && hazard == kAfterForeignWrite) hazard = kNone;
  if (hazard) return hazard;
  Access& read = cell.read;
  if (read.epoch != epochs.now) {
    bool others = read.epoch >= epochs.launch && (read.epoch < epochs.block || read.flags & kManyBlocks);
    now.flags = others ? kManyBlocks : 0;
    read = now;
  } else if (read.thread / 32 != now.thread / 32) {
    read.flags |= kManyWarps;
  } else if (read.warp_epoch != now.warp_epoch) {
    now.flags = read.flags & ~kManyThreads;
    read = now;
  } else if (read.thread != now.thread) {
    read.flags |= kManyThreads;
  }
  return kNone;
}

// in_vain: the same value is there already.
inline Hazard write_cell(Cell& cell, Access now, const Epochs& epochs, bool shared, bool in_vain) {
  Hazard hazard = after_write(cell.write, now, epochs);
  if (shared && hazard == kAfterForeignWrite) hazard = kNone;
  if (in_vain && hazard == kAfterWrite) hazard = kNone;
  if (hazard) return hazard;
  const Access& read = cell.read;
  if (!shared && read.epoch >= epochs.launch && (read.epoch < epochs.block || read.flags & kManyBlocks))
    return kAfterForeignRead;
  if (read.epoch == epochs.now) {
    if (read.flags & kManyWarps || unordered(read, now)) return kAfterRead;
    if (read.flags & kManyThreads && read.warp_epoch == now.warp_epoch) return kAfterRead;
  }
  cell.write = now;
  return kNone;
}

}  // namespace emulation
