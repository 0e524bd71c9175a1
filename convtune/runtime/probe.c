/* Measures what this machine can do at most: multiply-adds in registers, and streams through memory.
 *
 * A team of threads does the same work in windows, which start together behind a barrier. The fastest window
 * counts: on a shared machine the others tell of the neighbours. Each function returns 0, or an errno.
 * Compiled with VECTOR_BYTES and VECTOR_REGISTERS, the target's. C11, POSIX threads, GCC's vector extensions. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))

enum { LANES = VECTOR_BYTES / 4, SPINS = 4000 };
static const double WINDOW_S = 2e-3; /* long beside the barrier (1 us), short beside a time slice of the scheduler */

typedef float Floats __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef uint64_t Words __attribute__((vector_size(VECTOR_BYTES), may_alias));

typedef struct {
    double best_s;         /* the fastest window, from the first thread's start to the last one's end */
    double work;           /* done in a window by all threads: multiply-adds, or bytes */
    int64_t windows;
    uint64_t checksum;     /* over all windows and threads */
    uint64_t expected;
} Result;

/* ---- the team --------------------------------------------------------------------------------------- */

typedef struct {
    _Alignas(64) double start, end;
    uint64_t checksum;
} Slot;

typedef struct Team {
    uint64_t (*window)(const struct Team *team, int thread); /* the work; returns a checksum */
    int threads;
    const int *cpus;       /* one for each thread */
    double deadline;
    int64_t least_windows; /* even past the deadline */
    Result *result;
    Slot *slots;
    int64_t iterations;    /* of the multiply-add loop, in a window, for each thread */
    float *a, *b, *c;      /* the streams */
    int64_t length;        /* floats in each */
    pthread_mutex_t gate;  /* closed until all threads exist */
    _Alignas(64) _Atomic int arrived;
    _Alignas(64) _Atomic int phase;
    int stop;              /* written by the last to arrive, before it opens the next phase */
} Team;

typedef struct {
    Team *team;
    int thread;
} Member;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void finish_window(Team *team) {
    double start = team->slots[0].start, end = team->slots[0].end;
    for (int i = 0; i < team->threads; ++i) {
        const Slot *slot = &team->slots[i];
        if (slot->start < start) start = slot->start;
        if (slot->end > end) end = slot->end;
        team->result->checksum += slot->checksum;
    }
    Result *result = team->result;
    if (result->windows++ == 0 || end - start < result->best_s) result->best_s = end - start;
    team->stop = end >= team->deadline && result->windows >= team->least_windows;
}

/* Returns when all have arrived; the last one calls `finish`, if any, before the others go on. */
static void barrier(Team *team, void (*finish)(Team *)) {
    int phase = atomic_load(&team->phase);
    if (atomic_fetch_add(&team->arrived, 1) == team->threads - 1) {
        if (finish) finish(team);
        atomic_store(&team->arrived, 0);
        atomic_store(&team->phase, phase + 1);
        return;
    }
    for (int i = 0; atomic_load(&team->phase) == phase; ++i)
        if (i > SPINS) sched_yield();
}

/* Left alone, Linux kept two spinning threads on one CPU for 0.2 s and more, with the other one idle. Where it
 * refuses, the figure is what the scheduler made of it. */
static void stay_on(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
    (void)sched_setaffinity(0, sizeof set, &set);
}

static void *member_main(void *argument) {
    const Member *member = argument;
    Team *team = member->team;
    stay_on(team->cpus[member->thread]);
    pthread_mutex_lock(&team->gate);
    pthread_mutex_unlock(&team->gate);
    Slot *slot = &team->slots[member->thread];
    if (team->stop) return NULL;
    barrier(team, NULL);
    while (!team->stop) {
        slot->start = now();
        slot->checksum = team->window(team, member->thread);
        slot->end = now();
        barrier(team, finish_window);
    }
    return NULL;
}

static int run_team(Team *team, double seconds) {
    Slot *slots = aligned_alloc(64, (size_t)team->threads * sizeof(Slot));
    Member *members = calloc((size_t)team->threads, sizeof(Member));
    pthread_t *threads = calloc((size_t)team->threads, sizeof(pthread_t));
    int error = slots && members && threads ? 0 : ENOMEM, started = 0;
    if (!error) {
        team->slots = slots;
        pthread_mutex_init(&team->gate, NULL);
        pthread_mutex_lock(&team->gate);
        for (; started < team->threads && !error; started += !error) {
            members[started] = (Member){team, started};
            error = pthread_create(&threads[started], NULL, member_main, &members[started]);
        }
        team->stop = error != 0;
        team->deadline = now() + seconds;
        pthread_mutex_unlock(&team->gate);
        for (int i = 0; i < started; ++i) pthread_join(threads[i], NULL);
        pthread_mutex_destroy(&team->gate);
    }
    free(slots);
    free(members);
    free(threads);
    return error;
}

/* ---- multiply-adds ---------------------------------------------------------------------------------- */

/* Enough independent sums to hide a latency of 5 cycles on two units; the two factors need registers too. */
#define EACH_12(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define EACH_24(DO) \
    EACH_12(DO) DO(12) DO(13) DO(14) DO(15) DO(16) DO(17) DO(18) DO(19) DO(20) DO(21) DO(22) DO(23)
#if VECTOR_REGISTERS >= 32
#define EACH_SUM EACH_24
enum { SUMS = 24 };
#else
#define EACH_SUM EACH_12
enum { SUMS = 12 };
#endif
/* Different starts, or the compiler sees that all sums are one. */
#define DECLARE(i) Floats sum_##i = zero + (float)(i);
#ifdef __aarch64__ /* NEON's adds to what it overwrites: compilers make a copy for each, or the product once for all */
#define MULTIPLY_ADD(i) __asm__("fmla %0.4s, %1.4s, %2.4s" : "+w"(sum_##i) : "w"(factor), "w"(summand));
#else
#define MULTIPLY_ADD(i) sum_##i = sum_##i * factor + summand;
#endif
#define ADD_UP(i) \
    for (int lane = 0; lane < LANES; ++lane) total += (uint64_t)sum_##i[lane];

static volatile float one = 1; /* volatile: unknown to the compiler */

/* Sum i becomes i + iterations, exactly up to 2^24, so the total tells that no iteration was optimised away. */
static uint64_t multiply_add_window(const Team *team, int thread) {
    (void)thread;
    const Floats zero = {0}, factor = zero + one, summand = zero + one;
    EACH_SUM(DECLARE)
    for (int64_t i = 0; i < team->iterations; ++i) {
        EACH_SUM(MULTIPLY_ADD)
    }
    uint64_t total = 0;
    EACH_SUM(ADD_UP)
    return total;
}

static int64_t iterations_per_window(void) {
    Team trial = {.iterations = 1 << 14};
    double fastest = WINDOW_S;
    for (int i = 0; i < 4; ++i) {
        double start = now();
        multiply_add_window(&trial, 0);
        double taken = now() - start;
        if (taken < fastest) fastest = taken;
    }
    double wanted = (double)trial.iterations * WINDOW_S / fastest;
    return wanted < 1 << 23 ? (int64_t)wanted : 1 << 23;
}

EXPORT int convtune_probe_multiply_add(int threads, const int *cpus, double seconds, Result *result) {
    *result = (Result){0};
    Team team = {.window = multiply_add_window, .threads = threads, .cpus = cpus, .result = result};
    team.iterations = iterations_per_window();
    int error = run_team(&team, seconds);
    uint64_t sums_each = (uint64_t)SUMS * (SUMS - 1) / 2 + (uint64_t)SUMS * (uint64_t)team.iterations;
    result->work = (double)team.iterations * SUMS * LANES * threads;
    result->expected = sums_each * LANES * (uint64_t)threads * (uint64_t)result->windows;
    return error;
}

/* ---- streams ---------------------------------------------------------------------------------------- */

enum {
    CHUNK = 16 * LANES, /* floats; a multiple of what a loop below takes at once */
    SLICES = 8,         /* a window is one slice, and the next one follows: short, and never in a cache */
};

typedef struct {
    int64_t begin, end;
} Range;

static Range share(const Team *team, int64_t window, int thread) {
    int64_t chunks = team->length / CHUNK / SLICES, first = window % SLICES * chunks;
    return (Range){
        (first + chunks * thread / team->threads) * CHUNK,
        (first + chunks * (thread + 1) / team->threads) * CHUNK,
    };
}

/* Each thread touches its own shares first, so that the memory lies near it. */
static uint64_t fill_window(const Team *team, int thread) {
    for (int slice = 0; slice < SLICES; ++slice) {
        Range range = share(team, slice, thread);
        for (int64_t i = range.begin; i < range.end; ++i) {
            team->a[i] = 0;
            team->b[i] = 1.0f + 0x1p-23f;
            team->c[i] = 0.25f;
        }
    }
    return 0;
}

static uint64_t triad_window(const Team *team, int thread) {
    const Floats zero = {0}, three = zero + 3 * one;
    Range range = share(team, team->result->windows, thread);
    for (int64_t i = range.begin; i < range.end; i += LANES)
        *(Floats *)&team->a[i] = *(const Floats *)&team->b[i] + three * *(const Floats *)&team->c[i];
    return 0;
}

/* Adds up the bits of pairs of floats as integers, which wrap around and so stay exact. */
static uint64_t read_window(const Team *team, int thread) {
    Words sums[4] = {{0}};
    Range range = share(team, team->result->windows, thread);
    for (int64_t i = range.begin; i < range.end; i += 4 * LANES)
        for (int k = 0; k < 4; ++k) sums[k] += *(const Words *)&team->a[i + k * LANES];
    const Words sum = sums[0] + sums[1] + sums[2] + sums[3];
    uint64_t total = 0;
    for (int lane = 0; lane < LANES / 2; ++lane) total += sum[lane];
    return total;
}

static float *stream(int64_t length) {
    size_t bytes = (size_t)length * sizeof(float);
    float *memory = aligned_alloc(1 << 21, (bytes + (1 << 21) - 1) >> 21 << 21);
#ifdef MADV_HUGEPAGE
    if (memory) madvise(memory, bytes, MADV_HUGEPAGE); /* a hint; NumPy gives it too */
#endif
    return memory;
}

typedef struct {
    uint64_t (*window)(const Team *, int);
    Result *result;
    double seconds;
    int64_t least_windows;
} Pass;

/* `length` floats in each of three arrays. The read pass checks what the triad wrote: 1 + 2^-23 + 3 * 0.25. */
EXPORT int convtune_probe_memory(
    int threads, const int *cpus, int64_t length, double seconds, Result *read, Result *triad) {
    length = length / CHUNK / SLICES * CHUNK * SLICES;
    float *a = stream(length), *b = stream(length), *c = stream(length);
    *read = *triad = (Result){0};
    int error = a && b && c ? 0 : ENOMEM;
    Result fill = {0};
    const Pass passes[] = {
        {fill_window, &fill, 0, 1},
        {triad_window, triad, seconds, SLICES}, /* or the read pass would find slices not yet written */
        {read_window, read, seconds, 1},
    };
    for (int i = 0; i < 3 && !error; ++i) {
        Team team = {.window = passes[i].window, .threads = threads, .cpus = cpus, .result = passes[i].result};
        team.a = a, team.b = b, team.c = c, team.length = length, team.least_windows = passes[i].least_windows;
        error = run_team(&team, passes[i].seconds);
    }
    free(a);
    free(b);
    free(c);
    read->work = (double)length / SLICES * sizeof(float);
    triad->work = 3 * read->work;
    const uint64_t pair = UINT64_C(0x3FE000013FE00001); /* the bits of 1.75 + 2^-23, twice */
    read->expected = pair * (uint64_t)(length / SLICES / 2) * (uint64_t)read->windows;
    return error;
}
