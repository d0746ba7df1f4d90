/* What the upstream and the load generator share: clock, strict numbers,
 * growing byte buffers and loopback sockets. Both measure with the same
 * monotonic clock, so a stamp written by one can be read by the other. */

#ifndef WIRE_H
#define WIRE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ull
#define MILLISECOND 1000000ull
#define MICROSECOND 1000ull

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "refused");
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) != 0)
        die("clock_gettime");
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

/* The whole of text as a decimal number between 0 and most, or the end of the program. */
static uint64_t number(const char *text, uint64_t most)
{
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || *text == '-' || value > most)
        die(text);
    return value;
}

struct bytes {
    char *at;
    size_t used, room;
};

static void reserve_bytes(struct bytes *buffer, size_t more)
{
    if (buffer->used + more <= buffer->room)
        return;
    size_t room = buffer->room ? buffer->room : 2048;
    while (room < buffer->used + more)
        room *= 2;
    buffer->at = realloc(buffer->at, room);
    if (buffer->at == NULL)
        die("realloc");
    buffer->room = room;
}

static void append(struct bytes *buffer, const void *data, size_t length)
{
    reserve_bytes(buffer, length);
    memcpy(buffer->at + buffer->used, data, length);
    buffer->used += length;
}

static int loopback_socket(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    int one = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
        die("TCP_NODELAY");
    return fd;
}

static struct sockaddr_in loopback(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/* Nothing started by the harness may outlive it. */
static void end_with_parent(void)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
        die("PR_SET_PDEATHSIG");
    if (signal(SIGPIPE, SIG_IGN) == SIG_ERR)
        die("SIGPIPE");
}

#endif
