/* Counts how often each basic block of an emulated kernel runs, and stops one that runs without end. Unicorn calls it
 * at the start of each block: in C, as one call of a Python function there would take longer than the block. */
#include <stdint.h>

typedef struct {
    uint64_t start, bytes;  /* the addresses that blocks start at; where others start is an error elsewhere */
    uint64_t *executions;   /* by the block's first byte, counted from `start` */
    uint32_t *sizes;        /* of the blocks, in bytes */
    uint64_t left;          /* bytes of code that may still run */
    int (*stop)(void *machine);
} Counter;

__attribute__((visibility("default"))) void convtune_count_block(void *machine, uint64_t address, uint32_t size,
                                                                 Counter *counter) {
    uint64_t at = address - counter->start;
    if (at < counter->bytes) {
        ++counter->executions[at];
        counter->sizes[at] = size;
    }
    if (counter->left >= size) counter->left -= size;
    else {
        counter->left = 0;
        counter->stop(machine);
    }
}
