/* What a compiled kernel needs at run time, in place of TVM's runtime: one pool of threads for the whole
 * process, scratch memory, the error message, and a clock. C11 and POSIX threads, Linux, any CPU.
 *
 * What a parallel region adds to its work, on two cores of a Zen 5 at 2.6 GHz: 0.01 us on one thread, 0.2 us on
 * two that are awake, 30 us where the other one sleeps. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum {
    MAX_THREADS = 1024,
    MAX_TASKS = 65535,      /* must fit 16 bits of `job` */
    TASKS_PER_THREAD = 1,   /* above 1, a thread that ends early takes work from the slower ones */
    SPINS = 4000,           /* pauses before a thread sleeps: long enough to bridge the gap between two layers */
    PATIENCE = 16,          /* pauses before the caller takes what another thread has not begun */
    BETWEEN_MOVES = 2000000, /* ns: where the system brings a thread back to the caller's CPU, it may have its reasons */
    ALIGNMENT = 64,         /* what TVM assumes of every buffer */
    APART = 128,            /* bytes between what different threads write: CPUs fetch lines in pairs */
};

typedef struct {
    void *sync_handle;      /* for TVMBackendParallelBarrier, which the linker refuses */
    int32_t num_task;
} ParallelEnv;
typedef int (*Lambda)(int task, ParallelEnv *env, void *closure);

/* ---- the error message of the calling thread ------------------------------------------------------- */

static _Thread_local char message[1024];

EXPORT const char *convtune_kernel_error(void) { return message; }

EXPORT void convtune_set_error(const char *kind, const char **parts, int num_parts) {
    size_t used = (size_t)snprintf(message, sizeof message, "%s: ", kind);
    for (int i = 0; i < num_parts && used < sizeof message; ++i)
        if (parts[i]) used += (size_t)snprintf(message + used, sizeof message - used, "%s", parts[i]);
}

#include "scratch.h"

/* ---- the pool ---------------------------------------------------------------------------------------
 * A launch publishes its region and then `job` = epoch | threads | tasks. Each thread has a share of the tasks, the same
 * one at every launch, so that what a layer wrote is in the cache of the thread that reads it next: where threads took
 * the tasks as they came, two of them swapped at every other launch, and where the hypervisor had put the two CPUs far
 * apart (0.2 us one way), a depthwise layer of 5 us took 13. Tasks are claimed one by one, as `claimed` = epoch | next,
 * because the caller takes over what a sleeping thread has not begun. Who claims a task may read the region, as the
 * launch cannot end before the task is done; who comes too late finds a later epoch, or no task left. */

static struct {
    _Alignas(APART) _Atomic uint64_t claimed;
    _Atomic int cpu;        /* where its thread began its last part */
} shares[MAX_THREADS];

static struct {
    pthread_mutex_t launch; /* held while the pool runs a region, or changes its size */
    pthread_mutex_t sleep;
    pthread_cond_t wake;
    _Alignas(APART) _Atomic uint64_t job;
    Lambda lambda;          /* the region, beside `job`: one line tells a thread all */
    void *closure;
    ParallelEnv env;
    _Atomic int leading;    /* the CPU of the caller at the launch */
    _Atomic int stopping;
    _Alignas(APART) _Atomic uint32_t done; /* tasks, of all launches */
    _Atomic int failed;
    _Alignas(APART) _Atomic int sleepers;
    char message[sizeof message];
    int requested;          /* threads wanted, the caller's included; 0: not known yet */
    int workers;            /* threads running, the caller's not included */
    pthread_mutex_t moving; /* held while a worker's CPUs are chosen: by itself or by `place_workers` */
    int placing;            /* whether each of them is kept on a CPU of its own, and not on the caller's */
    int caller_cpu;         /* where the caller was when they were placed; -1: they have to be placed */
    pthread_t threads[MAX_THREADS];
} pool = {.launch = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER,
          .moving = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local int inside_region;

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* `yield` is a no-op on the cores at hand */
#endif
}

static uint32_t epoch_of(uint64_t word) { return (uint32_t)(word >> 32); }
static int threads_of(uint64_t job) { return (int)(job >> 16 & 0xffff); }
static int tasks_of(uint64_t job) { return (int)(job & 0xffff); }

/* The first task of a thread's share. */
static uint32_t share_of(int thread, uint64_t job) {
    return (uint32_t)((int64_t)thread * tasks_of(job) / threads_of(job));
}

/* The next task of a thread's share, or -1. */
static int claim(int thread, uint64_t job) {
    uint32_t epoch = epoch_of(job), end = share_of(thread + 1, job);
    uint64_t seen = atomic_load(&shares[thread].claimed);
    for (;;) {
        uint32_t next = epoch_of(seen) == epoch ? (uint32_t)seen : share_of(thread, job);
        if (next >= end || (int32_t)(epoch_of(seen) - epoch) > 0) return -1;
        if (atomic_compare_exchange_weak(&shares[thread].claimed, &seen, (uint64_t)epoch << 32 | (next + 1))) return (int)next;
    }
}

static void run_share(int thread, uint64_t job) {
    uint32_t ran = 0;
    for (int task; (task = claim(thread, job)) >= 0; ++ran)
        if (pool.lambda(task, &pool.env, pool.closure) != 0 && !atomic_exchange(&pool.failed, 1))
            memcpy(pool.message, message, sizeof message);
    if (ran) atomic_fetch_add(&pool.done, ran);
}

/* Of all threads but `first`. */
static void run_other_shares(int first, uint64_t job) {
    for (int i = 1; i < threads_of(job); ++i) run_share((first + i) % threads_of(job), job);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Leaves the calling worker's CPU, for one that no other thread of the pool was seen on if there is one. All that it
 * may use may it use again once it has moved, so that the system can still take it away from a busy CPU. */
static void leave_cpu(int thread, int threads, int here) {
    cpu_set_t usable, free_cpus, others, found;
    if (sched_getaffinity(0, sizeof usable, &usable) != 0) return;
    others = usable;
    CPU_CLR(here, &others);
    free_cpus = others;
    for (int w = 1; w < threads; ++w)
        if (w != thread) CPU_CLR(atomic_load(&shares[w].cpu), &free_cpus);
    if (CPU_COUNT(&free_cpus) == 0) free_cpus = others;
    if (CPU_COUNT(&free_cpus) == 0 || sched_setaffinity(0, sizeof free_cpus, &free_cpus) != 0) return;
    /* somebody else may have given it other CPUs meanwhile: then they stay */
    if (sched_getaffinity(0, sizeof found, &found) == 0 && CPU_EQUAL(&found, &free_cpus))
        sched_setaffinity(0, sizeof usable, &usable);
}

/* Linux may keep a worker on the caller's CPU for tenths of a second while another is idle: a call then takes
 * 1.6 to 2.5 times as long. Only the worker can tell, when it gets that CPU. */
static void make_way(int thread, int threads) {
    static _Thread_local int64_t next_move;
    int here = sched_getcpu();
    atomic_store_explicit(&shares[thread].cpu, here, memory_order_relaxed);
    if (here < 0 || here != atomic_load_explicit(&pool.leading, memory_order_relaxed) || now_ns() < next_move) return;
    if (pthread_mutex_trylock(&pool.moving) != 0) return;
    if (!pool.placing) leave_cpu(thread, threads, here);
    pthread_mutex_unlock(&pool.moving);
    next_move = now_ns() + BETWEEN_MOVES;
}

/* A worker's part of the launch it finds; returns its epoch. */
static uint32_t take_part(int thread) {
    uint64_t job = atomic_load(&pool.job);
    if (thread < threads_of(job)) {
        make_way(thread, threads_of(job));
        run_share(thread, job);
        /* to look at the others' shares costs them a cache miss each: only where they may be unequal */
        if (tasks_of(job) > threads_of(job)) run_other_shares(thread, job);
    }
    return epoch_of(job);
}

/* The caller's part: its own share, then what others have not begun, then to wait for the rest. */
static void lead(uint64_t job, uint32_t done) {
    run_share(0, job);
    for (int i = 0; atomic_load(&pool.done) != done; ++i) {
        if (i == PATIENCE) run_other_shares(0, job);
        i < SPINS ? relax() : (void)sched_yield();
    }
}

static void wait_for_launch(uint32_t seen) {
    for (int i = 0; i < SPINS; ++i, relax())
        if (epoch_of(atomic_load(&pool.job)) != seen || atomic_load(&pool.stopping)) return;
    pthread_mutex_lock(&pool.sleep);
    atomic_fetch_add(&pool.sleepers, 1); /* before the job is read again: a launch reads them in reverse */
    while (epoch_of(atomic_load(&pool.job)) == seen && !atomic_load(&pool.stopping))
        pthread_cond_wait(&pool.wake, &pool.sleep);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.sleep);
}

static void wake_sleepers(void) {
    if (atomic_load(&pool.sleepers) == 0) return;
    pthread_mutex_lock(&pool.sleep);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.sleep);
}

static void *work(void *thread) {
    inside_region = 1;
    while (!atomic_load(&pool.stopping)) wait_for_launch(take_part((int)(intptr_t)thread));
    return NULL;
}

static int default_threads(void) {
    cpu_set_t cpus;
    long count = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : sysconf(_SC_NPROCESSORS_ONLN);
    count = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
    const char *text = getenv("CONVTUNE_NUM_THREADS");
    if (!text || !*text) return (int)count;
    char *end;
    long wanted = strtol(text, &end, 10);
    if (*end == '\0' && wanted >= 1 && wanted <= MAX_THREADS) return (int)wanted;
    fprintf(stderr, "convtune: CONVTUNE_NUM_THREADS=%s is not a number from 1 to %d; using %ld\n", text, MAX_THREADS, count);
    return (int)count;
}

/* Returns the number of threads that will take part; `pool.launch` is held. */
static int start_workers(void) {
    if (pool.requested == 0) pool.requested = default_threads();
    if (pool.workers < pool.requested - 1) {
        sigset_t all, before; /* signals belong to the program's own threads */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        while (pool.workers < pool.requested - 1) {
            void *thread = (void *)(intptr_t)(pool.workers + 1);
            if (pthread_create(&pool.threads[pool.workers], NULL, work, thread) != 0) break;
            ++pool.workers;
        }
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pool.caller_cpu = -1;
        pool.requested = pool.workers + 1; /* where the system gives no more threads, do not ask at every launch */
    }
    return pool.workers + 1;
}

/* The system moves the caller as it likes, so this is checked at each launch. Where the caller may use too few CPUs,
 * and after `placing` has ended, each worker may use all of them. A refusal, such as of a CPU that was just taken
 * away, changes nothing but the speed. */
static void place_workers(void) {
    cpu_set_t usable;
    int here = sched_getcpu(), cpu = 0;
    if (here == pool.caller_cpu || sched_getaffinity(0, sizeof usable, &usable) != 0) return;
    pool.caller_cpu = here;
    pthread_mutex_lock(&pool.moving);
    int apart = pool.placing && CPU_COUNT(&usable) > pool.workers;
    for (int w = 0; w < pool.workers; ++w, ++cpu) {
        cpu_set_t own = usable;
        if (apart) {
            while (cpu == here || !CPU_ISSET(cpu, &usable)) ++cpu;
            CPU_ZERO(&own);
            CPU_SET(cpu, &own);
        }
        pthread_setaffinity_np(pool.threads[w], sizeof own, &own);
    }
    pthread_mutex_unlock(&pool.moving);
}

static void stop_workers(void) {
    atomic_store(&pool.stopping, 1);
    wake_sleepers();
    while (pool.workers > 0) pthread_join(pool.threads[--pool.workers], NULL);
    atomic_store(&pool.stopping, 0);
}

static int run_inline(Lambda lambda, void *closure, int num_task) {
    ParallelEnv env = {NULL, num_task == 0 ? 1 : num_task};
    for (int task = 0; task < env.num_task; ++task)
        if (lambda(task, &env, closure) != 0) return -1;
    return 0;
}

/* num_task == 0 leaves the number to us. A region inside a region, and one that finds the pool busy with
 * another thread's region, runs on the calling thread. */
EXPORT int convtune_parallel_launch(Lambda lambda, void *closure, int num_task) {
    if (inside_region || num_task == 1 || num_task > MAX_TASKS || pthread_mutex_trylock(&pool.launch) != 0)
        return run_inline(lambda, closure, num_task);
    int threads = start_workers();
    if (threads == 1) {
        pthread_mutex_unlock(&pool.launch);
        return run_inline(lambda, closure, num_task);
    }
    if (pool.placing) place_workers();
    int tasks = num_task ? num_task : threads * TASKS_PER_THREAD;
    pool.lambda = lambda, pool.closure = closure, pool.env.num_task = tasks;
    uint64_t epoch = epoch_of(atomic_load(&pool.job)) + 1u;
    uint64_t job = epoch << 32 | (uint64_t)threads << 16 | (uint64_t)tasks;
    uint32_t done = atomic_load(&pool.done) + (uint32_t)tasks;
    atomic_store_explicit(&pool.leading, sched_getcpu(), memory_order_relaxed); /* the job's store publishes it */
    atomic_store(&pool.job, job);
    wake_sleepers();
    inside_region = 1;
    lead(job, done);
    inside_region = 0;
    int failed = atomic_load(&pool.failed);
    if (failed) {
        memcpy(message, pool.message, sizeof message);
        atomic_store(&pool.failed, 0);
    }
    pthread_mutex_unlock(&pool.launch);
    return failed ? -1 : 0;
}

/* Threads a kernel runs on, the caller's included; count <= 0 goes back to the default. Not from in a kernel. */
EXPORT void convtune_set_num_threads(int count) {
    pthread_mutex_lock(&pool.launch);
    stop_workers();
    pool.requested = count <= 0 ? default_threads() : count > MAX_THREADS ? MAX_THREADS : count;
    pthread_mutex_unlock(&pool.launch);
}

/* For measuring: keeps each thread of the pool on a CPU of its own, other than the caller's. Not from in a kernel. */
EXPORT void convtune_place_threads(int on) {
    pthread_mutex_lock(&pool.launch);
    pthread_mutex_lock(&pool.moving);
    pool.placing = on;
    pthread_mutex_unlock(&pool.moving);
    pool.caller_cpu = -1;
    place_workers();
    pthread_mutex_unlock(&pool.launch);
}

EXPORT int convtune_num_threads(void) {
    pthread_mutex_lock(&pool.launch);
    if (pool.requested == 0) pool.requested = default_threads();
    int count = pool.requested;
    pthread_mutex_unlock(&pool.launch);
    return count;
}

/* ---- time, start and fork --------------------------------------------------------------------------- */

typedef struct {
    int32_t type_index, zero;
    union {
        int64_t integer;
        void *pointer;
    };
} Any;
typedef int (*Kernel)(void *handle, const Any *args, int32_t num_args, Any *result);

/* Seconds per call, the mean of `number` calls, `repeat` times. */
EXPORT int convtune_time(Kernel kernel, const Any *args, int num_args, int number, int repeat, double *seconds) {
    for (int r = 0; r < repeat; ++r) {
        struct timespec start, end;
        Any result = {0};
        clock_gettime(CLOCK_MONOTONIC, &start);
        for (int i = 0; i < number; ++i) {
            int status = kernel(NULL, args, num_args, &result);
            if (status != 0) return status;
        }
        clock_gettime(CLOCK_MONOTONIC, &end);
        seconds[r] = ((double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec)) / number;
    }
    return 0;
}

/* Only the forking thread lives on in the child: forget the others, and start new ones at the next launch. */
static void forget_workers(void) {
    pool.launch = pool.sleep = pool.moving = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    pool.wake = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    pool.workers = 0;
    atomic_store(&pool.failed, 0);
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.stopping, 0);
}

__attribute__((constructor)) static void start(void) {
    pthread_key_create(&blocks_key, free_blocks);
    pthread_atfork(NULL, NULL, forget_workers);
}
