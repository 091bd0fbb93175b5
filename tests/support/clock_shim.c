// LD_PRELOAD library that replaces the wall clock of a process: it begins at CLOCK_SHIM_SECONDS (since the Unix epoch)
// when the process starts, and runs on from there. Other clocks are unchanged.

#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long monotonic_at_start;

// Runs before the process has any thread.
__attribute__((constructor)) static void init(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    monotonic_at_start = now.tv_sec;
}

static time_t wall(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    const char *seconds = getenv("CLOCK_SHIM_SECONDS");
    return (seconds ? strtoll(seconds, NULL, 10) : 0) + (now.tv_sec - monotonic_at_start);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) {
        return (int)syscall(SYS_clock_gettime, clock, time);
    }
    time->tv_sec = wall();
    time->tv_nsec = 0;
    return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    time->tv_sec = wall();
    time->tv_usec = 0;
    return 0;
}

time_t time(time_t *result) {
    time_t now = wall();
    if (result) {
        *result = now;
    }
    return now;
}
