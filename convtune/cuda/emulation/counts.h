// Counts what a warp's accesses to memory cost a GPU: requests, sectors, and wavefronts of shared memory.
#pragma once
#include <stdint.h>

#include <unordered_map>
#include <vector>

#include "interface.h"

namespace emulation {

// As in emulator.py.
struct Counts {
  uint64_t blocks;
  uint64_t global_load_requests, global_store_requests, global_load_sectors, global_store_sectors;
  uint64_t shared_load_requests, shared_store_requests, shared_load_wavefronts, shared_store_wavefronts;
  uint64_t barriers;
};

// One thread's access to memory that threads share.
struct Touch {
  const void* site;  // the place in the program
  const Memory* memory;
  size_t offset;
  unsigned bytes;
  bool write;
};

// What the threads of a warp do at one place of the program, at the same time on a GPU.
struct Request {
  Touch first;
  unsigned lanes;
  size_t offsets[32];
};

class Counter {
 public:
  // Adds the accesses of a warp's threads since the last call; the n-th at a place belong together.
  void add(const std::vector<Touch>* const* threads, int count, Counts& counts) {
    used_.assign(used_.size(), 0);
    for (int lane = 0; lane < count; lane++) {
      seen_.assign(seen_.size(), 0);
      for (const Touch& touch : *threads[lane]) place(touch, lane);
    }
    for (size_t site = 0; site < used_.size(); site++)
      for (int i = 0; i < used_[site]; i++) evaluate(requests_[site][i], counts);
  }

 private:
  void place(const Touch& touch, int lane) {
    auto [entry, is_new] = sites_.try_emplace((uintptr_t)touch.site, (int)requests_.size());
    if (is_new) {
      requests_.emplace_back();
      used_.push_back(0);
      seen_.push_back(0);
    }
    int site = entry->second, occurrence = seen_[site]++;
    std::vector<Request>& requests = requests_[site];
    if (occurrence == used_[site]) {
      if (occurrence == (int)requests.size()) requests.emplace_back();
      requests[used_[site]++] = {touch, 0, {}};
    }
    requests[occurrence].lanes |= 1u << lane;
    requests[occurrence].offsets[lane] = touch.offset;
  }

  static void evaluate(const Request& request, Counts& counts) {
    bool write = request.first.write;
    if (request.first.memory->shared) {
      (write ? counts.shared_store_requests : counts.shared_load_requests)++;
      (write ? counts.shared_store_wavefronts : counts.shared_load_wavefronts) += wavefronts(request);
    } else {
      (write ? counts.global_store_requests : counts.global_load_requests)++;
      (write ? counts.global_store_sectors : counts.global_load_sectors) += sectors(request);
    }
  }

  // Different sectors of 32 bytes. Arrays start at a multiple of 256 bytes.
  static int sectors(const Request& request) {
    size_t found[64];
    int count = 0;
    for (int lane = 0; lane < 32; lane++) {
      if (!(request.lanes >> lane & 1)) continue;
      for (size_t end : {request.offsets[lane], request.offsets[lane] + request.first.bytes - 1})
        add_new(found, count, end / 32);
    }
    return count;
  }

  // 32 banks of 4 bytes: a wavefront reads one word of each. 8 bytes a thread go in halves of a warp, 16 in quarters.
  static int wavefronts(const Request& request) {
    unsigned bytes = request.first.bytes;
    int phase = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8, total = 0;
    for (int start = 0; start < 32; start += phase) {
      size_t words[32][32];
      int in_bank[32] = {}, most = 0;
      for (int lane = start; lane < start + phase; lane++) {
        if (!(request.lanes >> lane & 1)) continue;
        size_t last = (request.offsets[lane] + bytes - 1) / 4;
        for (size_t word = request.offsets[lane] / 4; word <= last; word++) {
          add_new(words[word % 32], in_bank[word % 32], word);
          if (in_bank[word % 32] > most) most = in_bank[word % 32];
        }
      }
      total += most;
    }
    return total;
  }

  static void add_new(size_t* found, int& count, size_t value) {
    for (int i = count - 1; i >= 0; i--)
      if (found[i] == value) return;
    found[count++] = value;
  }

  std::unordered_map<uintptr_t, int> sites_;
  std::vector<std::vector<Request>> requests_;  // by site
  std::vector<int> used_, seen_;                // by site: requests so far, and of the present thread
};

}  // namespace emulation
