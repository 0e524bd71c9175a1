// Switches stacks: what a thread of the CPU needs to run the threads of a CUDA block in turn.
#pragma once
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

// Saves the registers that a function must keep, and the stack pointer to *from; goes on where `to` was saved.
extern "C" void convtune_switch(void** from, void* to) __attribute__((visibility("hidden")));

#if defined(__x86_64__)
asm(R"(
.text
.globl convtune_switch
.hidden convtune_switch
.type convtune_switch, @function
convtune_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size convtune_switch, .-convtune_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl convtune_switch
.hidden convtune_switch
.type convtune_switch, %function
convtune_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size convtune_switch, .-convtune_switch
)");
#else
#error "the emulator switches stacks on x86-64 and aarch64 only"
#endif

namespace emulation {

// Stacks in one piece, each above a page without access.
class Stacks {
 public:
  explicit Stacks(int count) : guard_(sysconf(_SC_PAGESIZE)), stride_(guard_ + kBytes), bytes_(count * stride_) {
    if (!count) return;
    memory_ = (char*)mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) memory_ = nullptr;
    for (int i = 0; memory_ && i < count; i++) mprotect(memory_ + i * stride_, guard_, PROT_NONE);
  }
  ~Stacks() {
    if (memory_) munmap(memory_, bytes_);
  }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  bool exist() const { return memory_ || !bytes_; }

  // A stack for convtune_switch, on which `entry` runs from its start.
  void* fresh(int i, void (*entry)()) const {
    // at equal distances the tops of all stacks would share a few lines of the caches
    void** frame = (void**)(memory_ + (i + 1) * stride_ - i % 48 * 64 - 256);
#if defined(__x86_64__)
    *--frame = nullptr;  // where `entry` would return to; with it the stack is aligned as a call leaves it
    *--frame = (void*)entry;
    frame -= 6;
#else
    frame -= 20;
    frame[11] = (void*)entry;  // x30
#endif
    return frame;
  }

 private:
  static constexpr size_t kBytes = 64 << 10;
  size_t guard_, stride_, bytes_;
  char* memory_ = nullptr;
};

}  // namespace emulation
