/* An Ollama that costs next to nothing, so that what is measured is the gateway.
 *
 *   upstream PORT LIFETIME_SECONDS          (port 0: any; prints "port N")
 *
 * GET  /api/tags /api/version, POST /api/show   one model, "bench:1b"
 * POST /v1/chat/completions, /api/chat          streamed or in one answer
 * GET  /bench/stats                             {"requests":..,"streams_open":..,"pieces":..,"stream_bytes":..}
 * GET  /bench/hangups                           [[tag, ns], ...] streams whose reader left, and when that was seen
 *
 * What to answer stands in the prompt, so that it survives any proxy:
 *
 *   bench pieces=100 every_us=10000 bytes=32 tag=7
 *
 * The first piece is sent at once, the others at their time. Each piece is one
 * HTTP chunk in one write and carries "t=<monotonic nanoseconds>". While the
 * reader does not take what was written nothing more is written. */

#include "wire.h"

#include <strings.h>
#include <sys/timerfd.h>

enum {
    MOST_FDS = 16384,
    MOST_HEAD = 65536,
    MOST_BODY = 32 << 20,
    MOST_PIECE = 65536,
    MOST_HANGUPS = 4096,
    PIECES_PER_TURN = 64,
    NOT_WAITING = -1,
};

struct connection {
    int fd;
    struct bytes in, out;
    size_t sent;            /* of out */
    size_t need;            /* bytes of the request being read, 0 while its head is incomplete */
    size_t head;            /* bytes of its head */
    bool watching_out;
    bool close_after;       /* this request is the last of its connection */
    bool answered;          /* the last request read has its answer, or its stream */
    bool streaming, sse, usage;
    unsigned pieces, piece, piece_bytes, tag;
    size_t prompt_bytes;
    uint64_t every, due;
    int place;              /* in the queue of streams, or NOT_WAITING */
};

static struct connection *connections[MOST_FDS];
static struct connection *queue[MOST_FDS]; /* binary heap, earliest due first */
static int queued;
static int poller, timer;
static uint64_t requests, pieces_sent, stream_bytes;
static unsigned streams_open;
static struct { unsigned tag; uint64_t seen; } hangups[MOST_HANGUPS];
static unsigned hangup_count;

static void put(int place, struct connection *c)
{
    queue[place] = c;
    c->place = place;
}

static void sift(int place, struct connection *c)
{
    while (place > 0 && queue[(place - 1) / 2]->due > c->due) {
        put(place, queue[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    for (;;) {
        int child = 2 * place + 1;
        if (child >= queued)
            break;
        if (child + 1 < queued && queue[child + 1]->due < queue[child]->due)
            child++;
        if (queue[child]->due >= c->due)
            break;
        put(place, queue[child]);
        place = child;
    }
    put(place, c);
}

static void leave_queue(struct connection *c)
{
    if (c->place == NOT_WAITING)
        return;
    int place = c->place;
    c->place = NOT_WAITING;
    struct connection *last = queue[--queued];
    if (last != c)
        sift(place, last);
}

static void join_queue(struct connection *c)
{
    if (c->place != NOT_WAITING)
        return;
    queued++;
    sift(queued - 1, c);
}

static void watch(struct connection *c, bool out)
{
    if (c->watching_out == out)
        return;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (out ? EPOLLOUT : 0), .data.fd = c->fd};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event) != 0)
        die("epoll_ctl");
    c->watching_out = out;
}

static void drop(struct connection *c)
{
    if (c->streaming) {
        streams_open--;
        hangups[hangup_count % MOST_HANGUPS].tag = c->tag;
        hangups[hangup_count % MOST_HANGUPS].seen = now_ns();
        hangup_count++;
    }
    leave_queue(c);
    connections[c->fd] = NULL;
    close(c->fd);
    free(c->in.at);
    free(c->out.at);
    free(c);
}

/* Write what waits; false when the connection is gone (and dropped). */
static bool flush(struct connection *c)
{
    while (c->sent < c->out.used) {
        ssize_t n = send(c->fd, c->out.at + c->sent, c->out.used - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            watch(c, true);
            return true;
        }
        if (n <= 0) {
            drop(c);
            return false;
        }
        c->sent += (size_t)n;
        if (c->streaming)
            stream_bytes += (uint64_t)n;
    }
    c->sent = c->out.used = 0;
    watch(c, false);
    return true;
}

static void answer(struct connection *c, const char *status, const char *type, const char *body, size_t length)
{
    char head[256];
    int n = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", status, type,
                     length);
    append(&c->out, head, (size_t)n);
    append(&c->out, body, length);
    c->answered = true;
}

static void answer_json(struct connection *c, const char *body)
{
    answer(c, "200 OK", "application/json; charset=utf-8", body, strlen(body));
}

static void append_chunk(struct bytes *out, const char *text, size_t length)
{
    char size[24];
    int n = snprintf(size, sizeof size, "%zx\r\n", length);
    append(out, size, (size_t)n);
    append(out, text, length);
    append(out, "\r\n", 2);
}

#define V1_CHUNK \
    "data: {\"id\":\"chatcmpl-417\",\"object\":\"chat.completion.chunk\",\"created\":1767323045," \
    "\"model\":\"bench:1b\",\"system_fingerprint\":\"fp_ollama\",\"choices\":["
#define NATIVE_LINE "{\"model\":\"bench:1b\",\"created_at\":\"2026-01-02T03:04:05.678901234Z\","

/* The text of one piece: the stamp, filled up with x to the length asked for. */
static const char *stamp(unsigned length)
{
    static char text[MOST_PIECE + 32];
    int n = snprintf(text, sizeof text, "t=%" PRIu64 " ", now_ns());
    unsigned filled = (unsigned)n < length ? length : (unsigned)n;
    memset(text + n, 'x', filled - (unsigned)n);
    text[filled] = '\0';
    return text;
}

static void append_piece(struct connection *c)
{
    static char line[MOST_PIECE + 512];
    const char *text = stamp(c->piece_bytes);
    int n = c->sse ? snprintf(line, sizeof line,
                              V1_CHUNK "{\"index\":0,\"delta\":{%s\"content\":\"%s\"},\"finish_reason\":null}]}\n\n",
                              c->piece == 0 ? "\"role\":\"assistant\"," : "", text)
                   : snprintf(line, sizeof line,
                              NATIVE_LINE "\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"done\":false}\n", text);
    append_chunk(&c->out, line, (size_t)n);
    c->piece++;
    pieces_sent++;
}

static void append_end(struct connection *c)
{
    char line[512];
    if (!c->sse) {
        int n = snprintf(line, sizeof line,
                         NATIVE_LINE "\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,"
                                     "\"done_reason\":\"stop\",\"total_duration\":912000000,\"load_duration\":51000000,"
                                     "\"prompt_eval_count\":%zu,\"prompt_eval_duration\":40000000,\"eval_count\":%u,"
                                     "\"eval_duration\":61000000}\n",
                         c->prompt_bytes / 4 + 1, c->pieces);
        append_chunk(&c->out, line, (size_t)n);
    } else {
        int n = snprintf(line, sizeof line, V1_CHUNK "{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
        append_chunk(&c->out, line, (size_t)n);
        if (c->usage) {
            n = snprintf(line, sizeof line,
                         V1_CHUNK "],\"usage\":{\"prompt_tokens\":%zu,\"completion_tokens\":%u,\"total_tokens\":%zu}}\n\n",
                         c->prompt_bytes / 4 + 1, c->pieces, c->prompt_bytes / 4 + 1 + c->pieces);
            append_chunk(&c->out, line, (size_t)n);
        }
        append_chunk(&c->out, "data: [DONE]\n\n", 14);
    }
    append(&c->out, "0\r\n\r\n", 5);
}

/* Send what is due of a stream; false when the connection is gone. */
static bool pump(struct connection *c)
{
    for (int turn = 0; c->streaming && c->out.used == 0 && turn < PIECES_PER_TURN; turn++) {
        if (c->due > now_ns())
            break;
        append_piece(c);
        c->due += c->every;
        bool last = c->piece == c->pieces;
        if (last)
            append_end(c);
        if (!flush(c))
            return false;
        if (last) {
            c->streaming = false;
            streams_open--;
        }
    }
    if (c->streaming && c->out.used == 0)
        join_queue(c);
    return true;
}

/* Whether body says "name": true, in JSON with or without spaces; otherwise when it does not say. */
static bool says_true(const char *body, size_t length, const char *name, bool otherwise)
{
    const char *at = memmem(body, length, name, strlen(name));
    if (at == NULL)
        return otherwise;
    const char *end = body + length;
    for (at += strlen(name); at < end && (*at == ' ' || *at == ':'); at++)
        ;
    return at < end && *at == 't';
}

static unsigned asked(const char *order, const char *end, const char *name, unsigned otherwise)
{
    const char *at = memmem(order, (size_t)(end - order), name, strlen(name));
    if (at == NULL)
        return otherwise;
    unsigned value = 0;
    for (at += strlen(name); at < end && *at >= '0' && *at <= '9' && value < 100000000; at++)
        value = value * 10 + (unsigned)(*at - '0');
    return value;
}

static void chat(struct connection *c, const char *body, size_t length, bool sse)
{
    const char *order = memmem(body, length, "bench pieces=", 13);
    const char *end = order ? order + 13 : body;
    while (order && end < body + length && *end != '"' && end - order < 120)
        end++;
    if (!order)
        order = end = body;
    c->sse = sse;
    c->pieces = asked(order, end, "pieces=", 1);
    c->every = asked(order, end, "every_us=", 0) * MICROSECOND;
    c->piece_bytes = asked(order, end, "bytes=", 0);
    c->tag = asked(order, end, "tag=", 0);
    c->prompt_bytes = length;
    c->usage = says_true(body, length, "\"include_usage\"", false);
    c->piece = 0;
    if (c->pieces == 0 || c->piece_bytes > MOST_PIECE) {
        answer(c, "400 Bad Request", "application/json", "{\"error\":\"impossible order\"}", 28);
        return;
    }
    if (says_true(body, length, "\"stream\"", !sse)) {
        const char *type = sse ? "text/event-stream" : "application/x-ndjson";
        char head[128];
        int n = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n", type);
        /* The head leaves in one write with the first piece, as Ollama's does. */
        append(&c->out, head, (size_t)n);
        append_piece(c);
        c->due = now_ns() + c->every;
        c->answered = true;
        c->streaming = true;
        streams_open++;
        if (c->piece == c->pieces) {
            append_end(c);
            c->streaming = false;
            streams_open--;
        }
        return;
    }
    static char text[MOST_PIECE + 1024];
    int n = sse ? snprintf(text, sizeof text,
                           "{\"id\":\"chatcmpl-417\",\"object\":\"chat.completion\",\"created\":1767323045,\"model\":\"bench:1b\","
                           "\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                           "\"content\":\"%s\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":%zu,"
                           "\"completion_tokens\":%u,\"total_tokens\":%zu}}\n",
                           stamp(c->piece_bytes), length / 4 + 1, c->pieces, length / 4 + 1 + c->pieces)
                : snprintf(text, sizeof text,
                           NATIVE_LINE "\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"done\":true,"
                                       "\"done_reason\":\"stop\",\"total_duration\":912000000,\"load_duration\":51000000,"
                                       "\"prompt_eval_count\":%zu,\"prompt_eval_duration\":40000000,\"eval_count\":%u,"
                                       "\"eval_duration\":61000000}",
                           stamp(c->piece_bytes), length / 4 + 1, c->pieces);
    pieces_sent++;
    answer(c, "200 OK", sse ? "application/json" : "application/json; charset=utf-8", text, (size_t)n);
}

static void list_hangups(struct connection *c)
{
    struct bytes text = {0};
    unsigned first = hangup_count > MOST_HANGUPS ? hangup_count - MOST_HANGUPS : 0;
    append(&text, "[", 1);
    for (unsigned i = first; i < hangup_count; i++) {
        char item[64];
        int n = snprintf(item, sizeof item, "%s[%u,%" PRIu64 "]", i > first ? "," : "", hangups[i % MOST_HANGUPS].tag,
                         hangups[i % MOST_HANGUPS].seen);
        append(&text, item, (size_t)n);
    }
    append(&text, "]", 1);
    answer(c, "200 OK", "application/json", text.at, text.used);
    free(text.at);
}

#define DETAILS \
    "\"details\":{\"parent_model\":\"\",\"format\":\"gguf\",\"family\":\"bench\",\"families\":[\"bench\"]," \
    "\"parameter_size\":\"1B\",\"quantization_level\":\"Q4_K_M\",\"context_length\":131072}"

static void route(struct connection *c, const char *line, size_t line_length, const char *body, size_t length)
{
    const char *target = memchr(line, ' ', line_length);
    const char *end = target ? memchr(target + 1, ' ', line_length - (size_t)(target + 1 - line)) : NULL;
    if (end == NULL) {
        c->close_after = true;
        answer(c, "400 Bad Request", "text/plain", "", 0);
        return;
    }
    target++;
    size_t path = (size_t)(end - target);
#define IS(text) (path == sizeof(text) - 1 && memcmp(target, text, sizeof(text) - 1) == 0)
    if (IS("/v1/chat/completions")) {
        requests++;
        chat(c, body, length, true);
    } else if (IS("/api/chat")) {
        requests++;
        chat(c, body, length, false);
    } else if (IS("/api/tags")) {
        answer_json(c, "{\"models\":[{\"name\":\"bench:1b\",\"model\":\"bench:1b\",\"modified_at\":\"2026-01-02T03:04:05Z\","
                       "\"size\":1000000000,\"digest\":\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\","
                       DETAILS ",\"capabilities\":[\"completion\",\"tools\"]}]}");
    } else if (IS("/api/show")) {
        answer_json(c, "{" DETAILS ",\"model_info\":{\"general.architecture\":\"bench\",\"bench.context_length\":131072},"
                       "\"capabilities\":[\"completion\",\"tools\"],\"modified_at\":\"2026-01-02T03:04:05Z\"}");
    } else if (IS("/api/version")) {
        answer_json(c, "{\"version\":\"0.33.0\"}");
    } else if (IS("/api/ps")) {
        answer_json(c, "{\"models\":[]}");
    } else if (IS("/")) {
        answer(c, "200 OK", "text/plain; charset=utf-8", "Ollama is running", 17);
    } else if (IS("/bench/hangups")) {
        list_hangups(c);
    } else if (IS("/bench/stats")) {
        char text[256];
        snprintf(text, sizeof text,
                 "{\"requests\":%" PRIu64 ",\"streams_open\":%u,\"pieces\":%" PRIu64 ",\"stream_bytes\":%" PRIu64 "}", requests,
                 streams_open, pieces_sent, stream_bytes);
        answer_json(c, text);
    } else {
        answer(c, "404 Not Found", "text/plain", "404 page not found", 18);
    }
#undef IS
}

/* Read the head of the request in the buffer: its length and that of the whole, or a refusal. */
static void measure(struct connection *c)
{
    char *end = memmem(c->in.at, c->in.used, "\r\n\r\n", 4);
    if (end == NULL) {
        if (c->in.used > MOST_HEAD) {
            c->close_after = true;
            answer(c, "431 Request Header Fields Too Large", "text/plain", "", 0);
        }
        return;
    }
    c->head = (size_t)(end + 4 - c->in.at);
    c->answered = false;
    uint64_t body = 0;
    bool refused = false;
    for (char *line = memmem(c->in.at, c->head, "\r\n", 2); line && line < end;) {
        line += 2;
        if (strncasecmp(line, "content-length:", 15) == 0) {
            char *rest = NULL;
            body = strtoull(line + 15, &rest, 10);
            refused |= rest == line + 15 || *rest != '\r' || body > MOST_BODY;
        }
        refused |= strncasecmp(line, "transfer-encoding:", 18) == 0;
        c->close_after |= strncasecmp(line, "connection: close", 17) == 0;
        line = memmem(line, (size_t)(end + 2 - line), "\r\n", 2);
    }
    if (refused) {
        c->close_after = true;
        answer(c, "400 Bad Request", "text/plain", "only a small enough Content-Length", 34);
        return;
    }
    c->need = c->head + body;
}

/* Answer every whole request in the buffer; false when the connection is gone. */
static bool serve(struct connection *c)
{
    while (!c->streaming && c->out.used == 0) {
        if (c->close_after && c->answered) {
            drop(c);
            return false;
        }
        if (c->need == 0)
            measure(c);
        if (c->need > 0 && c->in.used >= c->need) {
            size_t line = (size_t)((char *)memmem(c->in.at, c->head, "\r\n", 2) - c->in.at);
            route(c, c->in.at, line, c->in.at + c->head, c->need - c->head);
            memmove(c->in.at, c->in.at + c->need, c->in.used - c->need);
            c->in.used -= c->need;
            c->need = 0;
        } else if (c->out.used == 0) {
            return true;
        }
        if (!flush(c))
            return false;
        if (c->streaming && !pump(c))
            return false;
    }
    return true;
}

static void readable(struct connection *c)
{
    for (;;) {
        reserve_bytes(&c->in, 65536);
        ssize_t n = recv(c->fd, c->in.at + c->in.used, c->in.room - c->in.used, 0);
        if (n > 0) {
            c->in.used += (size_t)n;
            if (c->in.used > MOST_BODY + MOST_HEAD)
                break;
            if (c->in.used < c->in.room)
                break;
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        drop(c);
        return;
    }
    if (c->in.used > MOST_BODY + MOST_HEAD)
        drop(c);
    else
        serve(c);
}

static void accept_all(int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ECONNABORTED)
                return;
            if (errno == EINTR)
                continue;
            die("accept4");
        }
        if (fd >= MOST_FDS) {
            close(fd);
            continue;
        }
        int one = 1;
        if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
            die("TCP_NODELAY");
        struct connection *c = calloc(1, sizeof *c);
        if (c == NULL)
            die("calloc");
        c->fd = fd;
        c->place = NOT_WAITING;
        connections[fd] = c;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) != 0)
            die("epoll_ctl");
    }
}

static void ready(struct connection *c, uint32_t events)
{
    if (events & (EPOLLHUP | EPOLLERR)) {
        drop(c);
        return;
    }
    if (events & EPOLLOUT) {
        if (!flush(c))
            return;
        if (c->streaming && !pump(c))
            return;
        if (!c->streaming && !serve(c))
            return;
    }
    if (events & (EPOLLIN | EPOLLRDHUP))
        readable(c);
}

static void wake_at(uint64_t due)
{
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(due / SECOND), .tv_nsec = (long)(due % SECOND)}};
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL) != 0)
        die("timerfd_settime");
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: upstream PORT LIFETIME_SECONDS\n");
        return 2;
    }
    struct sockaddr_in address = loopback((uint16_t)number(argv[1], 65535));
    uint64_t stop_at = now_ns() + number(argv[2], 86400) * SECOND;
    end_with_parent();

    int listener = loopback_socket(), one = 1;
    socklen_t length = sizeof address;
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0)
        die("SO_REUSEADDR");
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0)
        die("bind");
    if (listen(listener, 4096) != 0)
        die("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &length) != 0)
        die("getsockname");
    if ((poller = epoll_create1(EPOLL_CLOEXEC)) < 0)
        die("epoll_create1");
    if ((timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) < 0)
        die("timerfd_create");
    int own[] = {listener, timer};
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = own[i]};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, own[i], &event) != 0)
            die("epoll_ctl");
    }
    printf("port %u\n", ntohs(address.sin_port));
    fflush(stdout);

    uint64_t woken_at = 0;
    while (now_ns() < stop_at) {
        if (queued > 0 && queue[0]->due != woken_at)
            wake_at(woken_at = queue[0]->due ? queue[0]->due : 1);
        struct epoll_event events[256];
        int n = epoll_wait(poller, events, 256, 500);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            uint64_t expirations;
            if (fd == listener)
                accept_all(listener);
            else if (fd == timer) {
                if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN)
                    die("timerfd");
                woken_at = 0;
            } else if (connections[fd] != NULL)
                ready(connections[fd], events[i].events);
        }
        /* A stream that is still due after its turn waits for the next one. */
        uint64_t now = now_ns();
        for (int turn = queued; turn > 0 && queued > 0 && queue[0]->due <= now; turn--) {
            struct connection *c = queue[0];
            leave_queue(c);
            if (pump(c) && !c->streaming)
                serve(c);
        }
    }
    return 0;
}
