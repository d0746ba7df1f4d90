/* Callers against one address on loopback, in one thread; prints one line of JSON.
 *
 *   load MODE PORT PATH CALLERS [name=value ...]
 *
 * run      each caller asks again as soon as it has its answer
 * hold     each caller opens one stream and keeps it; prints "ready" when every
 *          one has its first piece, and ends when standard input does
 * stuck    as hold, but nothing of the answer is ever read
 * hangup   one stream after another, CALLERS of them, each left at its third piece
 *
 * stream=      1: streamed answers
 * pieces= every_us= bytes=    what the upstream is asked to send (see upstream.c)
 * prompt=      bytes of prompt
 * warmup_ms= measure_ms=      what is counted is what ends in the second span
 * tag=         number of the first stream of hangup; the following count on
 * spread_ms=   first requests are spread over this time
 * pid=         may repeat; CPU time of these processes over the measured span
 *
 * LOAD_SECRET in the environment is sent as Authorization: Bearer.
 *
 * An answer counts only when it is whole: status 200, the promised number of
 * pieces, its end mark and the end of its body. Everything else is an error. */

#include "wire.h"

#include <strings.h>
#include <sys/resource.h>

enum { MOST_CALLERS = 4096, MOST_PIDS = 16, MOST_HANGUPS = 4096, MOST_ERRORS = 1000, HANGUP_AT_PIECE = 3 };

enum mode { RUN, HOLD, STUCK, HANGUP };

enum part { CHUNK_SIZE, CHUNK_REST_OF_LINE, CHUNK_DATA, CHUNK_END, TRAILER };

struct caller {
    int fd;
    bool asking;            /* a request is under way */
    bool connected, watching_out;
    uint64_t start_at, began;
    size_t sent;            /* of the request */
    /* the answer */
    struct bytes head;
    bool in_body, chunked, close_after, end_mark;
    enum part part;
    uint64_t left;          /* bytes of the body, or of the chunk */
    char line[1024];        /* how the current line begins */
    size_t line_used;
    unsigned pieces;
};

struct samples {
    uint64_t *at;
    size_t used, room;
};

static enum mode mode;
static uint16_t port;
static struct caller callers[MOST_CALLERS];
static unsigned caller_count, with_first_piece;
static const char *secret = "";
static bool streamed;
static uint64_t pieces = 1, every_us, piece_bytes, prompt_bytes = 200, first_tag;
static uint64_t warmup = 200 * MILLISECOND, measure = SECOND, spread;
static int pids[MOST_PIDS], pid_count;

static int poller;
static struct bytes request;
static bool measuring, closing;
static uint64_t answers, counted_pieces, errors, reconnects, total_answers;
static char first_error[512];
static struct samples whole, first, transit;
static struct { unsigned tag; uint64_t at; } hangups[MOST_HANGUPS];
static unsigned hung_up;

static void sample(struct samples *samples, uint64_t value)
{
    if (samples->used == samples->room) {
        samples->room = samples->room ? samples->room * 2 : 65536;
        samples->at = realloc(samples->at, samples->room * sizeof *samples->at);
        if (samples->at == NULL)
            die("realloc");
    }
    samples->at[samples->used++] = value;
}

static void text(struct bytes *out, const char *words)
{
    append(out, words, strlen(words));
}

static void build_request(const char *path, unsigned tag)
{
    static struct bytes body;
    bool native = strncmp(path, "/api/", 5) == 0;
    char line[1024];
    body.used = request.used = 0;
    snprintf(line, sizeof line,
             "{\"model\":\"bench:1b\",\"messages\":[{\"role\":\"user\",\"content\":\"bench pieces=%" PRIu64
             " every_us=%" PRIu64 " bytes=%" PRIu64 " tag=%u ",
             pieces, every_us, piece_bytes, tag);
    text(&body, line);
    for (size_t filled = 0; filled < prompt_bytes; filled += 8)
        append(&body, "lorem ip", prompt_bytes - filled < 8 ? prompt_bytes - filled : 8);
    snprintf(line, sizeof line, native ? "\"}],\"stream\":%s,\"options\":{\"num_predict\":%" PRIu64 "}}"
                                       : "\"}],\"stream\":%s,\"max_tokens\":%" PRIu64 "}",
             streamed ? "true" : "false", pieces);
    text(&body, line);
    int n = snprintf(line, sizeof line,
                     "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nContent-Type: application/json\r\n"
                     "Accept: */*\r\nUser-Agent: bench\r\n%s%s%sContent-Length: %zu\r\n\r\n",
                     path, port, *secret ? "Authorization: Bearer " : "", secret, *secret ? "\r\n" : "", body.used);
    if (n < 0 || (size_t)n >= sizeof line)
        die("request head");
    text(&request, line);
    append(&request, body.at, body.used);
}

static void watch(struct caller *c, bool in, bool out)
{
    struct epoll_event event = {.events = (in ? EPOLLIN : 0) | (out ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event) != 0)
        die("epoll_ctl");
    c->watching_out = out;
}

static void hang_up(struct caller *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->connected = c->asking = false;
}

static void wrong(struct caller *c, const char *what, const char *detail, size_t length)
{
    if (errors++ == 0) {
        snprintf(first_error, sizeof first_error, "%s: %.*s", what, (int)(length > 300 ? 300 : length), detail);
        for (char *at = first_error; *at; at++)
            if (*at < ' ' || *at == '"' || *at == '\\' || *at > '~')
                *at = '.';
    }
    hang_up(c);
    /* A refusing server is asked again, but not in a tight loop. */
    c->start_at = now_ns() + 20 * MILLISECOND;
}

static void send_request(struct caller *c)
{
    while (c->sent < request.used) {
        ssize_t n = send(c->fd, request.at + c->sent, request.used - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (!c->watching_out)
                watch(c, true, true);
            return;
        }
        if (n <= 0) {
            wrong(c, "send", strerror(errno), strlen(strerror(errno)));
            return;
        }
        c->sent += (size_t)n;
    }
    if (mode == STUCK)
        watch(c, false, false);
    else if (c->watching_out)
        watch(c, true, false);
}

static void ask(struct caller *c)
{
    c->asking = true;
    c->sent = 0;
    c->head.used = 0;
    c->in_body = c->chunked = c->close_after = c->end_mark = false;
    c->line_used = 0;
    c->pieces = 0;
    if (c->fd < 0) {
        c->fd = loopback_socket();
        int small = 4096;
        if (mode == STUCK && setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small) != 0)
            die("SO_RCVBUF");
        struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event) != 0)
            die("epoll_ctl");
        c->watching_out = true;
        struct sockaddr_in address = loopback(port);
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0 && errno != EINPROGRESS)
            wrong(c, "connect", strerror(errno), strlen(strerror(errno)));
        return;
    }
    c->began = now_ns();
    send_request(c);
}

/* One line of an answer has ended: a piece, an end mark, or neither. */
static void line_ended(struct caller *c, uint64_t now)
{
    const char *stamp = memmem(c->line, c->line_used, "\"t=", 3);
    if (stamp != NULL) {
        uint64_t sent_at = 0;
        const char *end = c->line + c->line_used;
        for (const char *at = stamp + 3; at < end && *at >= '0' && *at <= '9'; at++)
            sent_at = sent_at * 10 + (uint64_t)(*at - '0');
        if (c->pieces++ == 0) {
            with_first_piece++;
            if (measuring)
                sample(&first, now - c->began);
        }
        if (measuring) {
            counted_pieces++;
            if (now >= sent_at)
                sample(&transit, now - sent_at);
        }
    }
    if (streamed && (memmem(c->line, c->line_used, "data: [DONE]", 12) || memmem(c->line, c->line_used, "\"done\":true", 11)))
        c->end_mark = true;
    c->line_used = 0;
}

static void answer_ended(struct caller *c, uint64_t now)
{
    if (c->line_used > 0)
        line_ended(c, now);
    if (c->pieces != (streamed ? pieces : 1) || c->end_mark != streamed) {
        char detail[80];
        int n = snprintf(detail, sizeof detail, "%u of %" PRIu64 " pieces, end mark %d", c->pieces, pieces, c->end_mark);
        wrong(c, "an answer was cut", detail, (size_t)n);
        return;
    }
    total_answers++;
    if (measuring) {
        answers++;
        sample(&whole, now - c->began);
    }
    c->asking = false;
    if (c->close_after) {
        hang_up(c);
        reconnects++;
    }
    if (!closing && mode == RUN)
        ask(c);
}

/* Look at bytes of the body, chunk marks taken off. */
static void body(struct caller *c, const char *at, size_t length, uint64_t now)
{
    while (length > 0) {
        const char *newline = memchr(at, '\n', length);
        size_t part = newline ? (size_t)(newline - at) : length;
        size_t room = sizeof c->line - c->line_used;
        size_t kept = part < room ? part : room;
        memcpy(c->line + c->line_used, at, kept);
        c->line_used += kept;
        if (newline == NULL)
            return;
        line_ended(c, now);
        at += part + 1;
        length -= part + 1;
    }
}

static const char *header(const struct caller *c, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = memchr(c->head.at, '\n', c->head.used); at != NULL;) {
        at++;
        size_t rest = c->head.used - (size_t)(at - c->head.at);
        if (rest > length && strncasecmp(at, name, length) == 0 && at[length] == ':') {
            for (at += length + 1; *at == ' '; at++)
                ;
            return at;
        }
        at = memchr(at, '\n', rest);
    }
    return NULL;
}

/* The head is whole: how does the body end? False when the answer is an error. */
static bool head_ended(struct caller *c)
{
    if (c->head.used < 12 || memcmp(c->head.at, "HTTP/1.1 200", 12) != 0) {
        wrong(c, "answer", c->head.at, c->head.used);
        return false;
    }
    const char *length = header(c, "content-length"), *coding = header(c, "transfer-encoding"), *end = header(c, "connection");
    c->close_after = end != NULL && strncasecmp(end, "close", 5) == 0;
    c->chunked = coding != NULL && strncasecmp(coding, "chunked", 7) == 0;
    if (!c->chunked && length == NULL) {
        wrong(c, "answer without a length", c->head.at, c->head.used);
        return false;
    }
    c->left = c->chunked ? 0 : strtoull(length, NULL, 10);
    c->part = CHUNK_SIZE;
    c->in_body = true;
    return true;
}

/* Take in what was received. Stops when the caller no longer waits for it. */
static void take(struct caller *c, const char *at, size_t length, uint64_t now)
{
    const char *end = at + length;
    if (!c->in_body) {
        size_t before = c->head.used;
        append(&c->head, at, length);
        char *mark = memmem(c->head.at, c->head.used, "\r\n\r\n", 4);
        if (mark == NULL) {
            if (c->head.used > 16384)
                wrong(c, "endless head", c->head.at, 200);
            return;
        }
        size_t head = (size_t)(mark + 4 - c->head.at);
        at += head - before;
        /* A refusal says why in its body: keep it for the message. */
        if (memcmp(c->head.at, "HTTP/1.1 200", 12) == 0)
            c->head.used = head;
        if (!head_ended(c))
            return;
    }
    if (!c->chunked) {
        uint64_t part = (uint64_t)(end - at) < c->left ? (uint64_t)(end - at) : c->left;
        body(c, at, part, now);
        c->left -= part;
        if (c->left == 0)
            answer_ended(c, now);
        return;
    }
    while (at < end) {
        char byte = *at;
        switch (c->part) {
        case CHUNK_SIZE: {
            int digit = byte >= '0' && byte <= '9' ? byte - '0' : (byte | 32) >= 'a' && (byte | 32) <= 'f' ? (byte | 32) - 'a' + 10 : -1;
            if (digit >= 0 && c->left < (1ull << 40)) {
                c->left = c->left * 16 + (uint64_t)digit;
                at++;
            } else if (byte == '\r' || byte == ';' || byte == '\n') {
                c->part = CHUNK_REST_OF_LINE;
            } else {
                wrong(c, "chunk size", at, (size_t)(end - at));
                return;
            }
            break;
        }
        case CHUNK_REST_OF_LINE:
            if (byte == '\n')
                c->part = c->left > 0 ? CHUNK_DATA : TRAILER;
            at++;
            break;
        case CHUNK_DATA: {
            uint64_t part = (uint64_t)(end - at) < c->left ? (uint64_t)(end - at) : c->left;
            body(c, at, part, now);
            at += part;
            c->left -= part;
            if (c->left == 0)
                c->part = CHUNK_END;
            break;
        }
        case CHUNK_END:
            if (byte == '\n')
                c->part = CHUNK_SIZE;
            else if (byte != '\r') {
                wrong(c, "chunk end", at, (size_t)(end - at));
                return;
            }
            at++;
            break;
        case TRAILER:
            at++;
            if (byte == '\n') {
                answer_ended(c, now);
                return;
            }
            break;
        }
    }
}

static void receive(struct caller *c)
{
    static char buffer[262144];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return;
    if (n <= 0) {
        if (c->asking)
            wrong(c, "the connection ended", n < 0 ? strerror(errno) : "early", n < 0 ? strlen(strerror(errno)) : 5);
        else {
            hang_up(c);
            reconnects++;
        }
        return;
    }
    if (!c->asking) {
        wrong(c, "bytes nobody asked for", buffer, (size_t)n);
        return;
    }
    take(c, buffer, (size_t)n, now_ns());
    if (mode == HANGUP && c->asking && c->pieces >= HANGUP_AT_PIECE) {
        hangups[hung_up].tag = (unsigned)first_tag + hung_up;
        hangups[hung_up].at = now_ns();
        hung_up++;
        hang_up(c);
        c->start_at = now_ns() + 5 * MILLISECOND;
    }
}

static void ready(struct caller *c, uint32_t events)
{
    if (!c->connected) {
        int trouble = 0;
        socklen_t length = sizeof trouble;
        if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &trouble, &length) != 0)
            die("SO_ERROR");
        if (trouble != 0) {
            wrong(c, "connect", strerror(trouble), strlen(strerror(trouble)));
            return;
        }
        c->connected = true;
        c->began = now_ns();
        watch(c, true, false);
        send_request(c);
        return;
    }
    if ((events & EPOLLOUT) && c->asking && c->sent < request.used) {
        send_request(c);
        if (c->fd < 0)
            return;
    }
    if (mode == STUCK && (events & (EPOLLHUP | EPOLLERR)))
        hang_up(c);
    else if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        receive(c);
}

/* User and system time of a process in microseconds (proc(5): fields 14 and 15 of stat). */
static uint64_t cpu_us(int pid)
{
    char path[64], line[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, line, sizeof line - 1);
    close(fd);
    if (n <= 0)
        return 0;
    line[n] = '\0';
    /* The name stands in brackets and may hold spaces. */
    const char *at = strrchr(line, ')');
    unsigned long user = 0, system = 0;
    if (at == NULL || sscanf(at + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
        return 0;
    return (uint64_t)(user + system) * 1000000 / (uint64_t)sysconf(_SC_CLK_TCK);
}

static uint64_t own_cpu_us(void)
{
    struct rusage used;
    if (getrusage(RUSAGE_SELF, &used) != 0)
        die("getrusage");
    return (uint64_t)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000 +
           (uint64_t)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static int ascending(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* The smallest sample that at least `share` per mille of all do not exceed, in microseconds. */
static double at_share(const struct samples *samples, uint64_t share)
{
    size_t rank = (samples->used * share + 999) / 1000;
    return (double)samples->at[rank ? rank - 1 : 0] / 1000.0;
}

static void print_samples(const char *name, struct samples *samples)
{
    if (samples->used == 0) {
        printf(",\"%s\":null", name);
        return;
    }
    qsort(samples->at, samples->used, sizeof *samples->at, ascending);
    printf(",\"%s\":{\"count\":%zu,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, samples->used,
           at_share(samples, 500), at_share(samples, 900), at_share(samples, 990), at_share(samples, 1000));
}

static void option(char *argument)
{
    char *value = strchr(argument, '=');
    if (value == NULL)
        die(argument);
    *value++ = '\0';
    if (strcmp(argument, "stream") == 0)
        streamed = number(value, 1);
    else if (strcmp(argument, "pieces") == 0)
        pieces = number(value, 1000000);
    else if (strcmp(argument, "every_us") == 0)
        every_us = number(value, 99999999);
    else if (strcmp(argument, "bytes") == 0)
        piece_bytes = number(value, 65536);
    else if (strcmp(argument, "prompt") == 0)
        prompt_bytes = number(value, 16 << 20);
    else if (strcmp(argument, "tag") == 0)
        first_tag = number(value, 1 << 26);
    else if (strcmp(argument, "warmup_ms") == 0)
        warmup = number(value, 60000) * MILLISECOND;
    else if (strcmp(argument, "measure_ms") == 0)
        measure = number(value, 600000) * MILLISECOND;
    else if (strcmp(argument, "spread_ms") == 0)
        spread = number(value, 60000) * MILLISECOND;
    else if (strcmp(argument, "pid") == 0 && pid_count < MOST_PIDS)
        pids[pid_count++] = (int)number(value, 1 << 30);
    else
        die(argument);
}

static void turn(uint64_t until)
{
    struct epoll_event events[512];
    uint64_t now = now_ns();
    int wait_ms = until > now ? (int)((until - now + MILLISECOND - 1) / MILLISECOND) : 0;
    int n = epoll_wait(poller, events, 512, wait_ms < 5 ? wait_ms : 5);
    if (n < 0 && errno != EINTR)
        die("epoll_wait");
    for (int i = 0; i < n; i++) {
        struct caller *c = events[i].data.ptr;
        if (c->fd >= 0)
            ready(c, events[i].events);
    }
}

static void begin_due(void)
{
    uint64_t now = now_ns();
    for (unsigned i = 0; i < caller_count; i++)
        if (!callers[i].asking && callers[i].start_at <= now)
            ask(&callers[i]);
}

static unsigned still_asking(void)
{
    unsigned count = 0;
    for (unsigned i = 0; i < caller_count; i++)
        count += callers[i].asking;
    return count;
}

static void run(void)
{
    uint64_t start = now_ns(), before[MOST_PIDS], begin_at = start + warmup, ended_at = 0, begun_at = 0;
    while (now_ns() < begin_at && errors < MOST_ERRORS) {
        begin_due();
        turn(begin_at);
    }
    uint64_t own = own_cpu_us();
    for (int i = 0; i < pid_count; i++)
        before[i] = cpu_us(pids[i]);
    begun_at = now_ns();
    uint64_t end_at = begun_at + measure;
    measuring = true;
    while (now_ns() < end_at && errors < MOST_ERRORS) {
        begin_due();
        turn(end_at);
    }
    measuring = false;
    ended_at = now_ns();
    printf("{\"seconds\":%.6f,\"cpu_us\":[", (double)(ended_at - begun_at) / 1e9);
    for (int i = 0; i < pid_count; i++)
        printf("%s%" PRIu64, i ? "," : "", cpu_us(pids[i]) - before[i]);
    printf("],\"own_cpu_us\":%" PRIu64, own_cpu_us() - own);

    /* Let the last answers end, so that they are booked as whole ones. */
    closing = true;
    uint64_t last = ended_at + 1500 * MILLISECOND;
    while (still_asking() > 0 && now_ns() < last)
        turn(last);
    printf(",\"answers\":%" PRIu64 ",\"pieces\":%" PRIu64 ",\"errors\":%" PRIu64 ",\"reconnects\":%" PRIu64
           ",\"total_answers\":%" PRIu64 ",\"abandoned\":%u,\"first_error\":\"%s\"",
           answers, counted_pieces, errors, reconnects, total_answers, still_asking(), first_error);
    print_samples("whole", &whole);
    print_samples("first", &first);
    print_samples("transit", &transit);
    printf("}\n");
}

static bool input_ended(void)
{
    char byte;
    ssize_t n = read(STDIN_FILENO, &byte, 1);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

static void hold(void)
{
    if (fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK) != 0)
        die("standard input");
    uint64_t last = now_ns() + measure;
    bool told = false;
    while (now_ns() < last && !input_ended()) {
        if (errors == 0)
            begin_due();
        turn(last);
        unsigned sent = 0;
        for (unsigned i = 0; mode == STUCK && i < caller_count; i++)
            sent += callers[i].sent == request.used;
        if (!told && (mode == STUCK ? sent : with_first_piece) == caller_count) {
            printf("ready\n");
            fflush(stdout);
            told = true;
        }
    }
    printf("{\"open\":%u,\"errors\":%" PRIu64 ",\"first_error\":\"%s\"}\n", still_asking(), errors, first_error);
}

static void hang_up_often(const char *path, unsigned times)
{
    uint64_t last = now_ns() + measure;
    unsigned asked = 0;
    while (hung_up < times && now_ns() < last && errors == 0) {
        if (!callers[0].asking && callers[0].start_at <= now_ns() && asked <= hung_up) {
            build_request(path, (unsigned)first_tag + hung_up);
            asked = hung_up + 1;
            ask(&callers[0]);
        }
        turn(last);
    }
    printf("{\"errors\":%" PRIu64 ",\"first_error\":\"%s\",\"hangups\":[", errors, first_error);
    for (unsigned i = 0; i < hung_up; i++)
        printf("%s[%u,%" PRIu64 "]", i ? "," : "", hangups[i].tag, hangups[i].at);
    printf("]}\n");
}

int main(int argc, char **argv)
{
    static const char *const modes[] = {"run", "hold", "stuck", "hangup"};
    if (argc < 5) {
        fprintf(stderr, "usage: load run|hold|stuck|hangup PORT PATH CALLERS [name=value ...]\n");
        return 2;
    }
    int chosen = -1;
    for (int i = 0; i < 4; i++)
        if (strcmp(argv[1], modes[i]) == 0)
            chosen = i;
    if (chosen < 0)
        die(argv[1]);
    mode = (enum mode)chosen;
    port = (uint16_t)number(argv[2], 65535);
    caller_count = (unsigned)number(argv[4], MOST_CALLERS);
    for (int i = 5; i < argc; i++)
        option(argv[i]);
    if (getenv("LOAD_SECRET") != NULL)
        secret = getenv("LOAD_SECRET");
    end_with_parent();
    if ((poller = epoll_create1(EPOLL_CLOEXEC)) < 0)
        die("epoll_create1");
    build_request(argv[3], 0);
    unsigned times = caller_count;
    if (caller_count == 0 || (mode == HANGUP && !streamed))
        die("CALLERS");
    if (mode == HANGUP)
        caller_count = 1;
    uint64_t now = now_ns();
    for (unsigned i = 0; i < caller_count; i++) {
        callers[i].fd = -1;
        callers[i].start_at = now + spread * i / caller_count;
    }
    if (mode == RUN)
        run();
    else if (mode == HANGUP)
        hang_up_often(argv[3], times);
    else
        hold();
    return 0;
}
