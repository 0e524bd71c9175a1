/* Runs kernels on the machine of a TVM RPC server, in child processes: whatever a kernel does, the session and its
 * server live on. Uploaded beside the kernels; TVM loads it and calls `watch`, `run`, `time`. It knows kernels as
 * runtime/kernel.py does, those of a CPU and launchers for a GPU alike. C11, Linux, any CPU.
 *
 * The last two write into the tensor `report` one line, what came of it:
 *     ok COUNT | error MESSAGE | crash SIGNAL | exited CODE | timeout | outside ARGUMENT BEFORE AFTER |
 *     changed ARGUMENT ELEMENT */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "rpc_guards.h"

#define EXPORT __attribute__((visibility("default")))

enum {
    MAX_ARGUMENTS = 64,     /* of a kernel */
    MAX_KERNELS = 16,
    MAX_REPEATS = 1024,
    MAX_DESCRIPTORS = 1024,
    ALIGNMENT = 64,         /* what TVM assumes of every array */
};

typedef int Main(void *handle, const Any *args, int32_t num_args, Any *result);
typedef int Time(Main *kernel, const Any *args, int num_args, int number, int repeat, double *seconds);

typedef struct {
    Main *main;
    Time *time;
    const char *(*message)(void);
} Kernel;

typedef struct { /* what a child tells its parent */
    char report[REPORT_BYTES];
    double seconds[];
} Shared;

static int say(const Tensor *report, const char *text) {
    snprintf(report->data, bytes_of(report), "%s", text);
    return 0;
}

/* ---- in the child ----------------------------------------------------------------------------------- */

static _Noreturn void end(Shared *shared, const char *kind, const char *message) {
    snprintf(shared->report, sizeof shared->report, "%s %s", kind, message);
    _exit(0);
}

/* Beyond what it has now, as measure/worker_main.py does: a kernel must not take all of a machine's memory. */
static void limit_memory(double bytes) {
    unsigned long pages = 0;
    struct rlimit limit;
    FILE *file = fopen("/proc/self/statm", "r");
    int read = file ? fscanf(file, "%*u %*u %*u %*u %*u %lu", &pages) : 0;
    if (file) fclose(file);
    if (read != 1 || getrlimit(RLIMIT_DATA, &limit) != 0) return;
    rlim_t wanted = (rlim_t)(bytes + (double)pages * (double)sysconf(_SC_PAGESIZE));
    if (wanted < limit.rlim_cur) limit.rlim_cur = wanted;
    setrlimit(RLIMIT_DATA, &limit);
}

static Kernel load(Shared *shared, const char *path, int threads, int byte) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) end(shared, "error", dlerror());
    Kernel kernel = {
        .main = (Main *)dlsym(library, "__tvm_ffi_main"),
        .time = (Time *)dlsym(library, "convtune_time"),
        .message = (const char *(*)(void))dlsym(library, "convtune_kernel_error"),
    };
    void (*set_threads)(int) = (void (*)(int))dlsym(library, "convtune_set_num_threads");
    void (*place)(int) = (void (*)(int))dlsym(library, "convtune_place_threads");
    void (*fill)(int) = (void (*)(int))dlsym(library, "convtune_fill_workspace");
    if (!kernel.main || !kernel.time || !kernel.message || !set_threads || !place || !fill)
        end(shared, "error", "the library is no kernel of this convtune");
    set_threads(threads);
    place(1);
    fill(byte);
    return kernel;
}

static void check(Shared *shared, const Kernel *kernel, int status) {
    if (status == 0) return;
    char text[REPORT_BYTES];
    const char *message = kernel->message();
    snprintf(text, sizeof text, "kernel failed with status %d: %s", status, *message ? message : "it gave no message");
    end(shared, "error", text);
}

/* ---- the child's life ------------------------------------------------------------------------------- */

typedef struct {
    pid_t process;
    int ended; /* the reading end of a pipe that closes with the child */
} Child;

/* As fork: 0 in the child, negative where there is none. */
static pid_t begin(Child *child) {
    int ends[2];
    if (pipe(ends) != 0) return -1;
    pid_t parent = getpid();
    child->process = fork();
    child->ended = ends[0];
    if (child->process != 0) close(ends[1]);
    if (child->process < 0) close(ends[0]);
    if (child->process == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(0);
    }
    return child->process;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Waits for the child, no longer than `seconds`; the report of one that gave none is made up here. */
static void finish(const Child *child, double seconds, Shared *shared) {
    double deadline = now() + seconds;
    struct pollfd ended = {.fd = child->ended, .events = POLLIN};
    int in_time, status;
    do {
        double left = deadline - now();
        in_time = poll(&ended, 1, left > 0 ? (int)(1e3 * left) + 1 : 0);
    } while (in_time < 0 && errno == EINTR);
    if (in_time <= 0) kill(child->process, SIGKILL);
    while (waitpid(child->process, &status, 0) < 0 && errno == EINTR) continue;
    close(child->ended);
    if (in_time <= 0) snprintf(shared->report, REPORT_BYTES, "timeout");
    else if (WIFSIGNALED(status)) snprintf(shared->report, REPORT_BYTES, "crash %d", WTERMSIG(status));
    else if (WEXITSTATUS(status) != 0 || !shared->report[0])
        snprintf(shared->report, REPORT_BYTES, "exited %d", WEXITSTATUS(status));
}

/* ---- watch ------------------------------------------------------------------------------------------ */

static int session; /* its socket */

static void end_without_client(int number) {
    (void)number;
    int before = errno;
    struct pollfd client = {.fd = session, .events = POLLRDHUP};
    if (poll(&client, 1, 0) > 0) _exit(0);
    errno = before;
}

/* The port at which a connected socket of ours lies; -1 for anything else. */
static int port_of(int descriptor) {
    struct sockaddr_storage own, other;
    socklen_t own_bytes = sizeof own, other_bytes = sizeof other;
    if (getsockname(descriptor, (struct sockaddr *)&own, &own_bytes) != 0) return -1;
    if (getpeername(descriptor, (struct sockaddr *)&other, &other_bytes) != 0) return -1;
    if (own.ss_family == AF_INET) return ntohs(((struct sockaddr_in *)&own)->sin_port);
    return own.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)&own)->sin6_port) : -1;
}

/* watch(port): from now on the process ends well, with its children, as soon as the client of the server at that port
 * is gone. By itself it would notice at the end of a kernel, and fail: TVM 0.27's server serves nobody after that. A
 * signal comes before the read that fails returns, where a thread that watches may come too late. */
EXPORT int __tvm_ffi_watch(void *handle, const Any *args, int32_t num_args, Any *result) {
    (void)handle, (void)num_args, (void)result;
    struct sigaction action = {.sa_handler = end_without_client, .sa_flags = SA_RESTART};
    struct f_owner_ex owner = {.type = F_OWNER_TID, .pid = (pid_t)syscall(SYS_gettid)};
    while (session < MAX_DESCRIPTORS && port_of(session) != args[0].integer) ++session;
    if (session == MAX_DESCRIPTORS || sigaction(SIGIO, &action, NULL) != 0) return 0;
    if (fcntl(session, F_SETOWN_EX, &owner) == 0) fcntl(session, F_SETFL, fcntl(session, F_GETFL) | O_ASYNC);
    return 0;
}

/* ---- run -------------------------------------------------------------------------------------------- */

enum { THREADS, SECONDS, MEMORY, BYTE, AT_END, OUTSIDE, UNWRITTEN, ALIGNMENTS }; /* numbers of `run` */

static _Noreturn void run_child(Shared *shared, const char *path, const double *numbers, const Guarded *guarded,
                                const Any *args, int count) {
    Tensor tensors[MAX_ARGUMENTS];
    Any own[MAX_ARGUMENTS], result = {0};
    for (int i = 0; i < count; ++i) {
        tensors[i] = *args[i].tensor;
        tensors[i].data = guarded[i].array;
        own[i] = (Any){.type_index = TENSOR, .tensor = &tensors[i]};
    }
    limit_memory(numbers[MEMORY]);
    Kernel kernel = load(shared, path, (int)numbers[THREADS], (int)numbers[BYTE]);
    check(shared, &kernel, kernel.main(NULL, own, count, &result));
    end(shared, "ok", "");
}

static int run_guarded(Shared *shared, const char *path, const double *numbers, Guarded *guarded, const Any *args,
                       int count) {
    uint32_t outside = (uint32_t)numbers[OUTSIDE];
    for (int i = 0; i < count; ++i) {
        const Tensor *tensor = args[i].tensor;
        if (guard(&guarded[i], bytes_of(tensor), (size_t)numbers[ALIGNMENTS + i], numbers[AT_END] != 0, outside) != 0)
            return -1;
        if (i < count - 1) memcpy(guarded[i].array, tensor->data, guarded[i].bytes);
        else fill_words(guarded[i].array, guarded[i].array + guarded[i].bytes, (uint32_t)numbers[UNWRITTEN]);
    }
    Child child;
    pid_t forked = begin(&child);
    if (forked < 0) return -1;
    if (forked == 0) run_child(shared, path, numbers, guarded, args, count);
    finish(&child, numbers[SECONDS], shared);
    if (strncmp(shared->report, "ok", 2) != 0) return 0;
    inspect(guarded, args, count, outside, shared->report);
    memcpy(args[count - 1].tensor->data, guarded[count - 1].array, guarded[count - 1].bytes);
    return 0;
}

/* run(path, numbers, report, arguments...): one call on guarded copies of the arguments, of which the last, y, is
 * brought back. */
EXPORT int __tvm_ffi_run(void *handle, const Any *args, int32_t num_args, Any *result) {
    (void)handle, (void)result;
    Guarded guarded[MAX_ARGUMENTS] = {{0}};
    const Tensor *report = args[2].tensor;
    int count = num_args - 3;
    if (count < 1 || count > MAX_ARGUMENTS) return say(report, "error too many arguments");
    Shared *shared = shared_memory(sizeof *shared);
    const double *numbers = (const double *)args[1].tensor->data;
    int failed = !shared || run_guarded(shared, args[0].tensor->data, numbers, guarded, args + 3, count) != 0;
    say(report, failed ? "error MemoryError: no memory for arrays and process of a kernel" : shared->report);
    for (int i = 0; i < count; ++i)
        if (guarded[i].memory) munmap(guarded[i].memory, guarded[i].memory_bytes);
    if (shared) munmap(shared, sizeof *shared);
    return 0;
}

/* ---- time: as measure/timing.py, whose plan comes with the call ----------------------------------------- */

typedef struct { /* numbers of `time` */
    double threads, seconds, memory, kernels, rounds, best_s;
    double repeat_s, fewest, most, settled, budget_s, first, hopeless;
} Plan;

typedef struct {
    Shared *shared;
    Kernel kernel;
    const Any *args;
    int count, number;      /* of arguments; of calls in a repeat */
} Timed;

static void measure(const Timed *t, int number, int repeat, double *seconds) {
    check(t->shared, &t->kernel, t->kernel.time(t->kernel.main, t->args, t->count, number, repeat, seconds));
}

static int calls_per_repeat(const Timed *t, const Plan *plan) {
    for (double number = 1;;) {
        double two[2];
        measure(t, (int)number, 2, two);
        double total = number * (two[0] < two[1] ? two[0] : two[1]);
        int enough = (int)(number * plan->repeat_s / (total > 1e-9 ? total : 1e-9) + 0.5);
        if (total >= plan->repeat_s / 4) return enough < 1 ? 1 : enough;
        double half = enough / 2 < 16 * number ? enough / 2 : 16 * number;
        number = half > 2 * number ? half : 2 * number;
    }
}

static int ascending(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static int enough(const double *seconds, int count, double elapsed, const Plan *plan) {
    double ordered[MAX_REPEATS];
    if (count < plan->first) return 0;
    if (count >= plan->most || elapsed >= plan->budget_s) return 1;
    memcpy(ordered, seconds, (size_t)count * sizeof *seconds);
    qsort(ordered, (size_t)count, sizeof *ordered, ascending);
    if (plan->best_s > 0 && ordered[0] > plan->hopeless * plan->best_s) return 1;
    return count >= plan->fewest && ordered[count / 2] <= (1 + plan->settled) * ordered[0];
}

static _Noreturn void time_child(Shared *shared, const char *path, const Plan *plan, const Any *args, int count,
                                 void *y) {
    Timed timed[MAX_KERNELS];
    int kernels = (int)plan->kernels, rounds = 0;
    limit_memory(plan->memory);
    for (int k = 0; k < kernels; ++k, path += strlen(path) + 1)
        timed[k] = (Timed){shared, load(shared, path, (int)plan->threads, -1), args + k * count, count, 0};
    for (int k = 0; k < kernels; ++k) timed[k].number = calls_per_repeat(&timed[k], plan);
    double start = now();
    while (plan->rounds > 0 ? rounds < plan->rounds : !enough(shared->seconds, rounds, now() - start, plan)) {
        for (int k = 0; k < kernels; ++k) {
            double warm;
            if (plan->rounds > 0) measure(&timed[k], 1, 1, &warm); /* its data is out of the caches, and its code too */
            measure(&timed[k], timed[k].number, 1, &shared->seconds[rounds * kernels + k]);
        }
        ++rounds;
    }
    const Tensor *result = args[count - 1].tensor;
    memcpy(y, result->data, bytes_of(result));
    char text[16];
    snprintf(text, sizeof text, "%d", rounds);
    end(shared, "ok", text);
}

static const char *refusal(const Plan *plan, const Any *args, int count, const Tensor *seconds) {
    if (plan->kernels < 1 || plan->kernels > MAX_KERNELS || count < 1) return "error too many kernels";
    double repeats = plan->rounds > 0 ? plan->rounds : plan->most;
    if (repeats > MAX_REPEATS || repeats * plan->kernels * sizeof(double) > (double)bytes_of(seconds))
        return "error too many repeats";
    for (int i = 0; i < count * (int)plan->kernels; ++i)
        if ((uintptr_t)args[i].tensor->data % ALIGNMENT) return "error the session has an unaligned array";
    return NULL;
}

/* time(paths, plan, report, seconds, arguments of the first kernel, of the second...): the arrays are those of the
 * session, which the child has as its own: it writes to copies. y of the first kernel is brought back. */
EXPORT int __tvm_ffi_time(void *handle, const Any *args, int32_t num_args, Any *result) {
    (void)handle, (void)result;
    const Plan *plan = (const Plan *)args[1].tensor->data;
    const Tensor *report = args[2].tensor, *seconds = args[3].tensor;
    int count = plan->kernels >= 1 ? (num_args - 4) / (int)plan->kernels : 0;
    const char *refused = refusal(plan, args += 4, count, seconds);
    if (refused) return say(report, refused);
    const Tensor *y = args[count - 1].tensor;
    size_t shared_bytes = sizeof(Shared) + bytes_of(seconds);
    Shared *shared = shared_memory(shared_bytes);
    void *result_y = shared_memory(bytes_of(y));
    Child child;
    pid_t forked = shared && result_y ? begin(&child) : -1;
    if (forked == 0) time_child(shared, args[-4].tensor->data, plan, args, count, result_y);
    if (forked > 0) {
        finish(&child, plan->seconds, shared);
        memcpy(seconds->data, shared->seconds, bytes_of(seconds));
        memcpy(y->data, result_y, bytes_of(y));
        say(report, shared->report);
    } else say(report, "error MemoryError: no memory for results and process of a kernel");
    if (result_y) munmap(result_y, bytes_of(y));
    if (shared) munmap(shared, shared_bytes);
    return 0;
}
