// Empty: cuda_on_cpu.h stands in for it.
