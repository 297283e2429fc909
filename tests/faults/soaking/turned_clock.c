/* A wall clock that is off by as many seconds as the file TURNED_CLOCK says, for one process and the threads in it.
 *
 * broken_clocks.py compiles this and has the dynamic linker load it into daemons (LD_PRELOAD, ld.so(8)). The file holds one 64-bit
 * number, which is mapped, so that a clock is turned at once and asking for the time costs no system call more. Monotonic clocks and
 * sleeping are left alone, because no host's are turned. A wait until a moment of the wall clock (futex(2), as gRPC uses it) is told
 * the moment that the kernel's own clock will show then. Nothing is changed where the variable is not set.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *turned;
static int (*real_gettime)(clockid_t, struct timespec *);
static long (*real_syscall)(long, ...);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("TURNED_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    real_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    real_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (file >= 0) {
        void *found = mmap(NULL, sizeof *turned, PROT_READ, MAP_SHARED, file, 0);
        turned = found == MAP_FAILED ? NULL : found;
        close(file);
    }
}

static int64_t off(void) { return turned ? *turned : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real_gettime) begin();
    int answer = real_gettime(clock, now);
    if (answer == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += off();
    return answer;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *kept) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME_COARSE, &found);
    if (kept) *kept = found.tv_sec;
    return found.tv_sec;
}

long syscall(long number, ...) {
    long a[6];
    struct timespec moment;
    va_list given;
    va_start(given, number);
    for (int each = 0; each < 6; each++) a[each] = va_arg(given, long);
    va_end(given);
    if (!real_syscall) begin();
    if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) && a[3]) {
        moment = *(const struct timespec *)a[3];
        moment.tv_sec -= off();
        if (moment.tv_sec < 0) moment.tv_sec = 0;
        a[3] = (long)&moment;
    }
    return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
