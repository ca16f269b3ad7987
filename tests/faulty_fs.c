/* LD_PRELOAD: the n-th read or write below a folder comes short or fails, and flock succeeds for everybody. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char folder[4096];
static int left, writes, failure; /* calls before the one that fails, whether writes count, errno or 0: short */

void fail_at(const char *below, int call, int writing, int error) {
    snprintf(folder, sizeof folder, "%s", below);
    writes = writing, failure = error, left = call;
}

int calls_left(void) { return left > 0 ? left : 0; }

/* 1: this call fails, with errno set; 2: it comes short; 0: neither. */
static int fails(int file, int writing) {
    char link[64], path[4096];
    if (left <= 0 || writing != writes) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0 || strncmp(path, folder, strlen(folder))) return 0;
    if (__atomic_fetch_sub(&left, 1, __ATOMIC_SEQ_CST) != 1) return 0; /* threads read side by side: one of them fails */
    errno = failure;
    return failure ? 1 : 2;
}

#define CALL(name, buffer, writing, more, ...)                                  \
    ssize_t name(int file, buffer data, size_t size more) {                     \
        ssize_t (*next)(int, buffer, size_t, ...) = dlsym(RTLD_NEXT, #name);    \
        int how = fails(file, writing);                                         \
        return how == 1 ? -1 : next(file, data, how ? (size + 1) / 2 : size, ##__VA_ARGS__); \
    }
#define AT , off_t at
CALL(read, void *, 0, )
CALL(write, const void *, 1, )
CALL(pread, void *, 0, AT, at)
CALL(pread64, void *, 0, AT, at)
CALL(pwrite, const void *, 1, AT, at)
CALL(pwrite64, const void *, 1, AT, at)

int flock(int file, int operation) { return 0; }
